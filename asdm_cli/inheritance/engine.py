"""Hooks on a UNet's own modules that carry a plan out; every module's forward stays its own.

A hook looks up what its module does at this call; on modules that the plan leaves alone there is nothing to look up.
Hooks are diffusers' own, so that they stand together with those of others, and lie beneath accelerate's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn

from asdm_cli.errors import ModelError
from asdm_cli.inheritance.course import DEAD as ROLE_DEAD
from asdm_cli.inheritance.course import INHERIT, KEEP, Course, Nodes
from asdm_cli.inheritance.dead import DEAD
from asdm_cli.inheritance.generation import Announced, Call, Generation
from asdm_cli.inheritance.nodes import Outlet
from asdm_cli.recipe.patches import Rules
from asdm_cli.unet.anatomy import Anatomy

NAME = "asdm_inherit"
ACCELERATE = "_old_forward"
"""Where accelerate keeps the forward that it found, which it calls, and puts back when its hook goes."""
OUTSIDE = (
    "this UNet carries a plan and was called outside a generation, so nobody knows which step this is; put the plan on "
    "the pipeline that calls it: asdm_cli.remove(pipe), then asdm_cli.inherit(pipe, plan)"
)
COPIED = (
    "a plan, or several UNets in turn, are in force here, and can be neither copied nor saved with it; take them off "
    "first: asdm_cli.remove(pipe), or remove() on the handle"
)
TEXT_MODULES = ("to_k", "to_v")
ARGUMENTS = ("sample", "timestep")
"""What every call of a UNet gets, in this order or by these names."""
Calls = int | Callable[[], int] | Course
Noise = Callable[[str, int, float], Sequence[float]]
"""(coordinate, UNet calls, timestep of the first) -> where each call lies."""


class Current(threading.local):
    """Of each thread: the generation under way, and its call. Threads that share a UNet do not meet here.

    Set per thread: torch's compiler (2.11) takes what it finds on the class for what every thread has.
    """

    def __init__(self) -> None:
        self.generation: Generation | Pending | None = None
        self.call: Call | None = None
        self.plain: bool = False
        """Whether calls outside a generation are meant."""

    def __reduce__(self) -> Any:
        """A copy's hooks would compute with this UNet's modules."""
        raise ModelError(COPIED)


class Engine:
    """A plan on a UNet (compiled or not). Raises ModelError where they do not fit, or where one is on it already.

    What was worked out for one UNet, its `nodes`, serves all of its shape.
    """

    def __init__(self, unet: nn.Module, plan: Rules | Nodes):
        self.unet = unet
        self.inner: UNet2DConditionModel = unwrap_module(unet)
        self.nodes = plan if isinstance(plan, Nodes) else Nodes(plan, Anatomy.of(dict(self.inner.config)))
        self.current = Current()
        self.last_steps: list[frozenset[int]] = []
        self.last_cache_bytes = 0
        self.undo: list[Callable[[], object]] = []
        """What else is to be done when it is removed."""
        self._outlets = self.nodes.by_module
        if engine_on(self.inner):
            raise ModelError("this UNet inherits already; take the earlier plan off: asdm_cli.remove(pipe)")
        try:
            self._attach()
        except BaseException:
            self.remove()
            raise

    @contextmanager
    def generation(self, calls: Calls, noise: Noise | None = None) -> Iterator[None]:
        """Everything that the UNet is called for inside is one generation of so many `calls`, or of that course.

        A function is asked at the first UNet call, as `noise` is by plans that count in it. Calls that were not
        announced raise ModelError. Nothing is left behind, whatever happens.
        """
        before = self.current.generation
        self.current.generation = Pending(calls, noise)
        try:
            yield
        finally:
            done = self.current.generation
            if isinstance(done, Generation):
                self.last_steps, self.last_cache_bytes = done.steps, done.cache_bytes()
            self.current.generation, self.current.call = before, None

    @property
    def called(self) -> bool:
        """Whether the generation under way has seen the UNet."""
        return isinstance(self.current.generation, Generation)

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Calls inside are computed as if there were no plan."""
        before, self.current.plain = self.current.plain, True
        try:
            yield
        finally:
            self.current.plain = before

    def remove(self) -> None:
        """The UNet as it was. May be called again."""
        for module in (self.unet, *self.inner.modules()):
            registry = module.__dict__.get("_diffusers_hook")
            if registry is not None and registry.get_hook(NAME):
                with _beneath_accelerate(module):
                    registry.remove_hook(NAME, recurse=False)
                    _tidy(module)
        while self.undo:
            self.undo.pop()()

    @torch.compiler.disable
    def begin(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Before a UNet call: decide what its modules do."""
        generation = self.current.generation
        if generation is None:
            self.current.call = None
            if not self.current.plain:
                raise ModelError(OUTSIDE)
            return
        sample, timestep = (*arguments, *(named[key] for key in ARGUMENTS[len(arguments) :]))[:2]
        if isinstance(generation, Pending):
            generation = self.current.generation = generation.start(self.nodes, timestep)
        if self.current.call is not None and self.current.call.compiled:
            generation.take_over()
        self.current.call = generation.begin(sample, timestep, self._written_into(named))

    def _written_into(self, named: dict[str, Any]) -> bool:
        """FreeU scales hidden states in place, and T2I adapters add to them."""
        adapter = named.get("down_intrablock_additional_residuals") is not None
        return adapter or any(getattr(block, "s1", None) is not None for block in self.inner.up_blocks)

    def _attach(self) -> None:
        _hook(self.unet, CallHook(self))
        modules = dict(self.inner.named_modules())
        for name in sorted(self.nodes.touched):
            for real in _real_names(name, modules):
                _hook(modules[real], NodeHook(self.current, name, self._outlets.get(name)))
        for name, module in modules.items() if self.nodes.plan.text_once else ():
            if name.endswith(".attn2") and getattr(module, "is_cross_attention", True):
                for part in TEXT_MODULES:
                    _hook(modules[f"{name}.{part}"], TextHook(self.current, f"{name}.{part}"))


class Pending:
    """A generation before its first UNet call, when nobody knows yet how many there will be."""

    def __init__(self, calls: Calls, noise: Noise | None):
        self.calls, self.noise = calls, noise

    def start(self, nodes: Nodes, timestep: Tensor | float) -> Generation:
        """`timestep` is that of the first call; it is read from the device only where a plan counts in noise."""
        course = self._course(nodes)
        coordinates: dict[str, Sequence[float]] = {"step": range(course.calls)}
        for name in {rule.coordinate for rule in nodes.plan.rules} - {"step"}:
            if self.noise is None:
                raise ModelError(f"coordinate {name!r}: only a pipeline's scheduler knows the noise; use `step`")
            coordinates[name] = self.noise(name, course.calls, float(timestep))
        return Generation(course, coordinates, Announced(course.calls))

    def _course(self, nodes: Nodes) -> Course:
        if isinstance(self.calls, Course):
            return self.calls
        return nodes.course(self.calls if isinstance(self.calls, int) else self.calls())


class CallHook(ModelHook):
    """On the UNet: every call begins here."""

    def __init__(self, engine: Engine):
        super().__init__()
        self.engine = engine

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002 - diffusers' signature
        self.engine.begin(args, kwargs)
        return self.fn_ref.original_forward(*args, **kwargs)


class NodeHook(ModelHook):
    """On a module that a plan touches: compute, compute and keep, hand on, or nothing."""

    def __init__(self, current: Current, name: str, outlet: Outlet | None):
        super().__init__()
        self.current, self.name = current, name
        self.tupled = outlet is not None and outlet.tupled

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        call = self.current.call
        role = None if call is None else call.roles.get(self.name)
        if call is None or role is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        if role == ROLE_DEAD:
            return DEAD
        if role == INHERIT:
            value = _own(call.memory[self.name].hand_on(), call.protect)
            return (value,) if self.tupled else value
        assert role == KEEP, "there are no other roles"
        output = self.fn_ref.original_forward(*args, **kwargs)
        call.compiled = torch.compiler.is_compiling()
        call.memory[self.name].keep(_own(output[0] if self.tupled else output, call.protect))
        return output


class TextHook(ModelHook):
    """On a projection of the text: the same input as before, the same answer. Weights may have changed meanwhile."""

    def __init__(self, current: Current, name: str):
        super().__init__()
        self.current, self.name = current, name

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        call, text = self.current.call, args[0] if args else None
        if call is None or not isinstance(text, Tensor) or text.is_inference():
            return self.fn_ref.original_forward(*args, **kwargs)
        known = call.texts.get(self.name)
        if known is None or known[0] is not text or known[1] != text._version:
            call.compiled = torch.compiler.is_compiling()
            known = call.texts[self.name] = (text, text._version, self.fn_ref.original_forward(*args, **kwargs))
        return known[2]


def _own(value: Tensor, protect: bool) -> Tensor:
    return value.clone() if protect else value


def _real_names(name: str, modules: dict[str, nn.Module]) -> list[str]:
    """A name may end in `.*` for all entries of a list, and may be one that this UNet lacks (`add_embedding`)."""
    if name.endswith(".*"):
        return [f"{name[:-1]}{index}" for index in range(len(modules[name[:-2]]))]
    return [name] if name in modules else []


def engine_on(unet: Any) -> Engine | None:
    """The engine whose plan is on this UNet, whichever pipeline it was put on by."""
    registry = getattr(unwrap_module(unet), "_diffusers_hook", None)
    hook = registry.get_hook(NAME) if registry is not None else None
    return hook.engine if hook is not None else None


def _hook(module: nn.Module, hook: ModelHook) -> None:
    with _beneath_accelerate(module):
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, NAME)


@contextmanager
def _beneath_accelerate(module: nn.Module) -> Iterator[None]:
    """What is done to a module's forward inside is done to the one that accelerate calls: its own hook loads the
    weights first, and comes and goes as it likes."""
    outer = module.__dict__.get("forward")
    if ACCELERATE not in module.__dict__ or outer is None:
        yield
        return
    module.forward = module.__dict__[ACCELERATE]
    try:
        yield
    finally:
        module.__dict__[ACCELERATE], module.forward = module.forward, outer


def _tidy(module: nn.Module) -> None:
    """diffusers leaves its registry and a bound forward behind; without other hooks both say nothing."""
    if module._diffusers_hook.hooks:
        return
    del module._diffusers_hook
    forward = module.__dict__.get("forward")
    if getattr(forward, "__func__", None) is type(module).forward:
        del module.forward
