"""Feature inheritance without training: a plan says which nodes are reused from earlier calls, and hooks on a UNet's
own modules carry it out; every module's forward stays its own.

A hook looks up what its module does at this call; on modules that the plan leaves alone there is nothing to look up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.hooks import ModelHook
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn

from asdm_cli.errors import ModelError
from asdm_cli.patches.base import (
    MARK,
    CallHook,
    Configs,
    Handle,
    Layer,
    Live,
    Load,
    Patch,
    Stats,
    Trajectory,
    check_pipeline,
    in_force,
    live_on,
    sample_and_timestep,
    unhook,
)
from asdm_cli.patches.cache_plan import REUSE, SKIP, STORE, WHOLE, ResolvedPlan, misfits, resolve
from asdm_cli.patches.feature_cache.state import CacheState
from asdm_cli.recipe.patches import CachePlan, FeatureCacheSpec, Stability, Threshold

NAME = "asdm_feature_cache"
UNET = "unet"
TEXT_MODULES = ("to_k", "to_v", "to_kv")
"""Projections of the text; the last where diffusers has fused the other two."""


class Skipped(torch.Tensor):
    """The value of a node that nobody reads: whatever is done with it costs nothing and gives it again.

    A block's own forward goes through the motions (concatenate, add, reshape) around modules that were not computed.
    This tensor takes part in them and absorbs all but what asks what it is: four dimensions of nothing. Of chunks, as
    resnets with a scale and a shift make two, there are as many as are asked for.
    """

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.__name__ == "__get__" or func in _SHOWING:
            return super().__torch_function__(func, types, args, kwargs or {})
        return (SKIPPED,) * args[1] if func is torch.chunk else SKIPPED


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
        self.whole_output = WHOLE in self.resolved.by_module
        self.last = Stats(reused={UNET: []}, cache_bytes=0)
        if cache_on(self.inner):
            raise ModelError("this UNet inherits already; take the earlier plan off: asdm_cli.remove(pipe)")
        self.hooked: dict[str, nn.Module] = {}
        try:
            self.hook_nodes()
            modules = dict(self.inner.named_modules())
            for name, module in modules.items() if self.resolved.plan.cache_text else ():
                if name.endswith(".attn2") and getattr(module, "is_cross_attention", True):
                    for part in (f"{name}.{each}" for each in TEXT_MODULES if f"{name}.{each}" in modules):
                        self.attach(modules[part], TextHook(self, part), NAME)
            self.attach(unet, CallHook(self, self.call), NAME)
        except BaseException:
            self.remove()
            raise

    def hook_nodes(self) -> None:
        """On the modules that the nodes are now: a LoRA that came or went meanwhile put others in their places."""
        modules = dict(self.inner.named_modules())
        for name in sorted(self.resolved.touched - {WHOLE}):
            module, before = modules.get(name), self.hooked.get(name)
            if module is None or module is before:  # `add_embedding` is one that not every UNet has
                continue
            if before is not None:
                unhook(before, NAME)
            outlet = self.resolved.by_module.get(name)
            self.attach(module, NodeHook(self, name, outlet is not None and outlet.tupled), NAME)
            self.hooked[name] = module

    def begin(self, trajectory: Trajectory) -> CacheState:
        self.hook_nodes()
        return CacheState(self.resolved, trajectory)

    def end(self, states: Sequence[CacheState]) -> None:
        """Several streams: the first one's calls, and what all keep."""
        self.last = Stats(reused={UNET: states[0].reused}, cache_bytes=sum(state.cache_bytes for state in states))

    def call(self, forward: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        self.step(arguments, named)
        return self.whole(forward, arguments, named) if self.whole_output else forward(*arguments, **named)

    @torch.compiler.disable(recursive=False)
    def whole(self, forward: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The UNet's answer, kept; or what stands for it, and nothing of the UNet is computed."""
        output, (sample, _) = self.thread.step.output, sample_and_timestep(arguments, named)
        if output is None:
            return forward(*arguments, **named)
        answered = None if output.reused else forward(*arguments, **named)
        answer = output.answer(sample) if answered is None else output.keep(sample, answered[0])
        if answer is None:
            return answered
        return UNet2DConditionOutput(sample=answer) if named.get("return_dict", True) else (answer,)

    @torch.compiler.disable
    def step(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Before a UNet call: decide what its modules do."""
        sample, timestep = sample_and_timestep(arguments, named)
        state: CacheState = self.arriving(timestep)
        before = self.thread.step
        if before is not None and before.compiled:
            state.take_over()
        # FreeU scales hidden states in place, and T2I adapters add to them
        adapter = named.get("down_intrablock_additional_residuals") is not None
        freeu = any(getattr(block, "s1", None) is not None for block in self.inner.up_blocks)
        latents = sample[:, : self.inner.config.out_channels]  # beside them a mask, or a picture
        self.thread.step = state.next(latents, protect=adapter or freeu)


class NodeHook(ModelHook):
    """On a module that a plan touches: compute, compute and store, hand on, or nothing."""

    def __init__(self, cache: FeatureCache, name: str, tupled: bool):
        super().__init__()
        self.thread, self.name, self.tupled = cache.thread, name, tupled

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        step = self.thread.step
        role = None if step is None else step.roles.get(self.name)
        if step is None or role is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        if role == SKIP:
            return SKIPPED
        if role == REUSE:
            value = step.memory[self.name].value()
            value = value.clone() if step.protect else value
            return (value,) if self.tupled else value
        assert role == STORE, "there are no other roles"
        output = self.fn_ref.original_forward(*args, **kwargs)
        step.compiled = torch.compiler.is_compiling()
        value = output[0] if self.tupled else output
        step.memory[self.name].store(value.clone() if step.protect else value)
        return output


class TextHook(ModelHook):
    """On a projection of the text: the same input as before, the same answer. Weights may have changed meanwhile."""

    def __init__(self, cache: FeatureCache, name: str):
        super().__init__()
        self.thread, self.name = cache.thread, name

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        step, text = self.thread.step, args[0] if args else None
        if step is None or not isinstance(text, Tensor) or text.is_inference():  # which counts no changes
            return self.fn_ref.original_forward(*args, **kwargs)
        known = step.texts.get(self.name)
        if known is None or known[0] is not text or known[1] != text._version:
            step.compiled = torch.compiler.is_compiling()
            known = step.texts[self.name] = (text, text._version, self.fn_ref.original_forward(*args, **kwargs))
        return known[2]


def cache_on(unet: Any) -> FeatureCache | None:
    """The cache whose plan is on this UNet, whichever pipeline it was put on by."""
    return next((live for live in live_on(unet) if isinstance(live, FeatureCache)), None)


@dataclass
class CacheHandle(Handle):
    """Plans that are in force on the UNets of `pipe`: a cache for each, by its name."""

    caches: dict[str, FeatureCache]

    @property
    def cache(self) -> FeatureCache:
        """Of the only UNet, or the first."""
        return next(iter(self.caches.values()))


def inherit(pipe: DiffusionPipeline, plan: CachePlan | Mapping[str, CachePlan], unet: str | None = None) -> CacheHandle:
    """A plan for every UNet of a pipeline, or for one; or plans by the UNet's name. Raises ModelError, and changes
    nothing, where one does not fit, or where one has a plan already."""
    check_pipeline(pipe)
    unets = unets_of(pipe)
    plans = plan if isinstance(plan, Mapping) else dict.fromkeys(unets if unet is None else [unet], plan)
    if taken := [name for name in plans if cache_on(unets[name])]:
        who = "this UNet" if len(unets) == 1 else f"UNet {', '.join(map(repr, taken))}"
        raise ModelError(f"{who} inherits already; take the earlier plan off: asdm_cli.remove(pipe)")
    made: dict[nn.Module, FeatureCache] = {}
    try:
        for name, each in plans.items():
            if unets[name] not in made:
                made[unets[name]] = FeatureCache(unets[name], each)
                in_force(pipe, made[unets[name]])
    except BaseException:
        for cache in made.values():
            cache.remove()
        raise
    return CacheHandle(pipe, list(made.values()), {name: made[unets[name]] for name in plans})


def remove(pipe: Any) -> None:
    """Take off whatever is in force on the UNets, also on one that was replaced meanwhile; UNets keep their places."""
    for live in [*getattr(type(pipe), MARK, ()), *caches_on(pipe).values()]:
        if not live.unets:
            live.remove()


def unets_of(pipe: Any) -> dict[str, nn.Module]:
    """The UNets of a pipeline by name: `unet` where it is the only one."""
    several = [dict(live.unets) for live in live_on(pipe.unet) if live.unets]
    return several[-1] if several else {UNET: pipe.unet}


def caches_on(pipe: Any) -> dict[str, FeatureCache]:
    """The cache of every UNet that has one, by the UNet's name."""
    found = {name: cache_on(unet) for name, unet in unets_of(pipe).items()} if getattr(pipe, "unet", None) else {}
    return {name: cache for name, cache in found.items() if cache is not None}


class FeatureCachePatch(Patch[FeatureCacheSpec]):
    layer = Layer.CACHE

    @property
    def together(self) -> bool:
        return not any(isinstance(rule.schedule, Stability | Threshold) for rule in self.spec.rules)

    def check(self, configs: Configs, others: Sequence[Patch[Any]]) -> list[str]:
        if self.spec.unet is not None and self.spec.unet not in configs:
            return [f"no UNet is called {self.spec.unet!r}; there are {', '.join(configs)}"]
        plans = [other.spec.unet for other in others if isinstance(other, FeatureCachePatch)]
        names = list(configs) if self.spec.unet is None else [self.spec.unet]
        faults = [f"{name!r} has two plans; leave one out" for unet in plans for name in names if unet in (None, name)]
        return faults + misfits(self.spec, configs)

    @contextmanager
    def apply(self, pipe: Any, load: Load) -> Iterator[Callable[[], Stats]]:  # noqa: ARG002 - every patch's signature
        with inherit(pipe, self.spec, self.spec.unet) as handle:
            yield handle.stats


patch = FeatureCachePatch
