"""Hooks on a UNet's own modules that carry a plan out; every module's forward stays its own.

A hook looks up what its module does at this call; on modules that the plan leaves alone there is nothing to look up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.hooks import ModelHook
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn

from asdm_cli.errors import ModelError
from asdm_cli.patches.base import CallHook, Live, Stats, Trajectory, hook, live_on, sample_and_timestep, unhook
from asdm_cli.patches.feature_cache.plan import REUSE, SKIP, STORE, Outlet, ResolvedPlan, Reused
from asdm_cli.patches.feature_cache.state import CacheState
from asdm_cli.recipe.patches import CachePlan
from asdm_cli.unet.addresses import Anatomy

NAME = "asdm_feature_cache"
UNET = "unet"
TEXT_MODULES = ("to_k", "to_v")


class Skipped(torch.Tensor):
    """The value of a node that nobody reads: whatever is done with it costs nothing and gives it again.

    A block's own forward goes through the motions (concatenate, add, reshape) around modules that were not computed.
    This tensor takes part in them and absorbs all but what asks what it is: four dimensions of nothing.
    """

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.__name__ == "__get__" or func in _SHOWING:
            return super().__torch_function__(func, types, args, kwargs or {})
        return SKIPPED


_QUESTIONS = [name for name in dir(torch.Tensor) if name.removeprefix("_").startswith("is_")]
_SHOWING = {
    method
    for name in ("__repr__", "__format__", "dim", "size", "stride", "storage_offset", *_QUESTIONS)
    if callable(method := getattr(torch.Tensor, name))
}
"""torch.compile asks most of these of every tensor that it meets."""
SKIPPED = torch.empty(0, 0, 0, 0).as_subclass(Skipped)
"""The only one."""


class FeatureCache(Live):
    """A plan on a UNet (compiled or not). Raises ModelError where they do not fit, or where one is on it already.

    What was worked out for one UNet, its `resolved` plan, serves all of its shape.
    """

    outside = (
        "this UNet carries a plan and was called outside a generation, so nobody knows which step this is; put the "
        "plan on the pipeline that calls it: asdm_cli.remove(pipe), then asdm_cli.inherit(pipe, plan)"
    )

    def __init__(self, unet: nn.Module, plan: CachePlan | ResolvedPlan):
        super().__init__()
        self.unet = unet
        self.inner: UNet2DConditionModel = unwrap_module(unet)
        self.resolved = plan if isinstance(plan, ResolvedPlan) else resolve(plan, dict(self.inner.config))
        self.last: list[CacheState] = []
        self._reused: list[Reused] = []
        self._cache_bytes = 0
        if cache_on(self.inner):
            raise ModelError("this UNet inherits already; take the earlier plan off: asdm_cli.remove(pipe)")
        try:
            self._attach()
        except BaseException:
            self.remove()
            raise

    @property
    def unets(self) -> Mapping[str, nn.Module]:
        return {}

    def begin(self, trajectory: Trajectory) -> CacheState:
        return CacheState.of(self.resolved, trajectory)

    def end(self, states: Sequence[CacheState]) -> None:
        """Several streams: the first one's calls, and what all keep."""
        self._reused, self._cache_bytes = states[0].reused, sum(state.cache_bytes for state in states)

    def stats(self) -> Stats:
        return Stats(reused={UNET: self._reused}, cache_bytes=self._cache_bytes)

    def remove(self) -> None:
        for module in (self.unet, *self.inner.modules()):
            unhook(module, NAME)
        while self.undo:
            self.undo.pop()()

    @torch.compiler.disable
    def step(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Before a UNet call: decide what its modules do."""
        sample, timestep = sample_and_timestep(arguments, named)
        state: CacheState | None = self.arriving(timestep)
        if state is None:
            self.thread.step = None
            return
        before = self.thread.step
        if before is not None and before.compiled:
            state.take_over()
        self.thread.step = state.next(sample, self._written_into(named))

    def _written_into(self, named: dict[str, Any]) -> bool:
        """FreeU scales hidden states in place, and T2I adapters add to them."""
        adapter = named.get("down_intrablock_additional_residuals") is not None
        return adapter or any(getattr(block, "s1", None) is not None for block in self.inner.up_blocks)

    def _attach(self) -> None:
        def call(forward: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            self.step(arguments, named)
            return forward(*arguments, **named)

        hook(self.unet, CallHook(self, call), NAME)
        modules = dict(self.inner.named_modules())
        for name in sorted(self.resolved.touched):
            for real in _real_names(name, modules):
                hook(modules[real], NodeHook(self, name, self.resolved.by_module.get(name)), NAME)
        for name, module in modules.items() if self.resolved.plan.cache_text else ():
            if name.endswith(".attn2") and getattr(module, "is_cross_attention", True):
                for part in TEXT_MODULES:
                    hook(modules[f"{name}.{part}"], TextHook(self, f"{name}.{part}"), NAME)


class NodeHook(ModelHook):
    """On a module that a plan touches: compute, compute and store, hand on, or nothing."""

    def __init__(self, cache: FeatureCache, name: str, outlet: Outlet | None):
        super().__init__()
        self.thread, self.name = cache.thread, name
        self.tupled = outlet is not None and outlet.tupled

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        step = self.thread.step
        role = None if step is None else step.roles.get(self.name)
        if step is None or role is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        if role == SKIP:
            return SKIPPED
        if role == REUSE:
            value = _own(step.memory[self.name].value(), step.protect)
            return (value,) if self.tupled else value
        assert role == STORE, "there are no other roles"
        output = self.fn_ref.original_forward(*args, **kwargs)
        step.compiled = torch.compiler.is_compiling()
        step.memory[self.name].store(_own(output[0] if self.tupled else output, step.protect))
        return output


class TextHook(ModelHook):
    """On a projection of the text: the same input as before, the same answer. Weights may have changed meanwhile."""

    def __init__(self, cache: FeatureCache, name: str):
        super().__init__()
        self.thread, self.name = cache.thread, name

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        step, text = self.thread.step, args[0] if args else None
        if step is None or not isinstance(text, Tensor) or text.is_inference():
            return self.fn_ref.original_forward(*args, **kwargs)
        known = step.texts.get(self.name)
        if known is None or known[0] is not text or known[1] != text._version:
            step.compiled = torch.compiler.is_compiling()
            known = step.texts[self.name] = (text, text._version, self.fn_ref.original_forward(*args, **kwargs))
        return known[2]


def resolve(plan: CachePlan, config: dict[str, Any]) -> ResolvedPlan:
    """Raises ModelError where the plan does not fit a UNet of this config."""
    return ResolvedPlan(plan, Anatomy.of(config))


def cache_on(unet: Any) -> FeatureCache | None:
    """The cache whose plan is on this UNet, whichever pipeline it was put on by."""
    return next((live for live in live_on(unet) if isinstance(live, FeatureCache)), None)


def _own(value: Tensor, protect: bool) -> Tensor:
    return value.clone() if protect else value


def _real_names(name: str, modules: dict[str, nn.Module]) -> list[str]:
    """A name may end in `.*` for all entries of a list, and may be one that this UNet lacks (`add_embedding`)."""
    if name.endswith(".*"):
        return [f"{name[:-1]}{index}" for index in range(len(modules[name[:-2]]))]
    return [name] if name in modules else []
