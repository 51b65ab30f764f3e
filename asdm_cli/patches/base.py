"""Patches: what changes how a pipeline draws. They stand in layers, whatever the order in which they are given:
guidance, which UNet serves, what a UNet's features are computed from. Each layer tells the next which calls it will
see.

A generation is one call of a pipeline. It is opened here, and calls are counted here: several UNet calls at one
timestep (views of a panorama, a guidance that calls alone) are streams, each with a state of its own.
"""

from __future__ import annotations

import atexit
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from enum import IntEnum
from fractions import Fraction
from functools import cache, partial, reduce
from importlib import import_module
from operator import or_
from types import FrameType
from typing import Any, ClassVar, Generic, Self, TypeVar
from weakref import WeakSet, ref

from diffusers import UNet2DConditionModel
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn

from asdm_cli.errors import ModelError
from asdm_cli.patches.noise import coordinates
from asdm_cli.recipe.patches import NULLS, PatchSpec
from asdm_cli.records import Timeline

MARK, HELD = "_asdm_patches", "_asdm_stack"
ACCELERATE = "_old_forward"
"""Where accelerate keeps the forward that it found, which it calls, and puts back when its hook goes."""
ARGUMENTS = ("sample", "timestep")
"""What every call of a UNet gets, in this order or by these names."""
AGAIN = "put it on again: asdm_cli.remove(pipe), then asdm_cli.inherit(pipe, plan)"
OFF = "asdm_cli.remove(pipe) takes a plan off, pipe.unet.remove() several UNets"
COPIED = (
    "a plan, or several UNets in turn, are in force here, and can be neither copied nor saved with it; first take them "
    f"off: {OFF}"
)
SAVED = (
    "a plan, or several UNets in turn, are in force here, which diffusers would leave out; first take them off "
    f"({OFF}), or let `asdm inherit` or `asdm switch` write a model that carries them"
)
REFUSED = {"__reduce_ex__": COPIED, "save_pretrained": SAVED}
"""What a pipeline must not do while something is in force on it."""
ONE_CALL = (
    "several views, or a guidance that calls it alone, can be told apart only where each is called at every timestep: "
    f"draw this without plans and turns ({OFF})"
)


class Layer(IntEnum):
    """From the outermost to the innermost."""

    GUIDANCE = 0
    SCHEDULE = 1
    CACHE = 2
    MODULE = 3


# Generations ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trajectory:
    """The UNet calls of one generation, as a layer sees them.

    `timeline(axis, instead)` gives the place of each on an axis that the scheduler knows (`timestep`, `log-snr`,
    `angle`). `rows[i]` names the groups of rows that call i has, equal parts of its batch; None: they never change.
    `plan` is a step plan that a cache follows instead of that of its own schedules. `sampler` is the scheduler's class,
    `prediction` what it says the model predicts.
    """

    calls: int
    timeline: Callable[[str, str], Sequence[float]] | None = None
    rows: tuple[tuple[str, ...], ...] | None = None
    plan: Any = None
    sampler: str = ""
    prediction: str = ""

    @classmethod
    def of(cls, scheduler: Any, calls: int, first: Tensor | float) -> Trajectory:
        """So many calls by a scheduler whose timesteps are set; the first one's is read from its device once, if at
        all."""

        @cache
        def timeline(axis: str, instead: str) -> Sequence[float]:
            start = float(first.flatten()[0]) if isinstance(first, Tensor) else first
            return coordinates(scheduler, axis, calls, start, instead)

        if scheduler is None:
            return cls(calls)
        return cls(
            calls, timeline, sampler=type(scheduler).__name__, prediction=scheduler.config.get("prediction_type", "")
        )

    @classmethod
    def whole(cls, scheduler: Any) -> Trajectory:
        """All calls of a scheduler whose timesteps are set."""
        return cls.of(scheduler, len(scheduler.timesteps), float(scheduler.timesteps[0]))

    def places(self, axis: str, instead: str = "step") -> Sequence[float | Fraction]:
        """Where each call lies. Raises ModelError, which names the axis to use `instead`, where that is not known."""
        if axis == "step":
            return range(self.calls)
        if axis == "fraction":
            return [Fraction(call, self.calls) for call in range(self.calls)]
        if self.timeline is None:
            raise ModelError(f"axis {axis!r}: only a pipeline's scheduler knows it; use `{instead}`")
        return self.timeline(axis, instead)

    def part(self, calls: Sequence[int], rows: Sequence[tuple[str, ...]] | None = None) -> Trajectory:
        """These of the calls alone, as the layer inside sees them: it counts its own, and they lie where they lay."""
        kept = rows if rows is not None else [self.rows[call] for call in calls] if self.rows else None

        def timeline(axis: str, instead: str) -> list[float]:
            places = self.places(axis, instead)
            return [float(places[call]) for call in calls]

        return replace(self, calls=len(calls), timeline=timeline, rows=None if kept is None else tuple(kept))


@dataclass
class Stats:
    """What patches did in the last generation: `served`, `reused` and `cache_bytes` are None where nobody knows.

    `served[i]`: who answered call i; `reused[unet][i]`: the rules of its plan whose nodes were reused at its call i;
    `cache_bytes`: kept at the end. Others than the patches that ship leave `figures`, by the metric's key.
    """

    served: tuple[str, ...] | None = None
    reused: dict[str, list[frozenset[int]]] = field(default_factory=dict)
    cache_bytes: int | None = None
    figures: dict[str, float] = field(default_factory=dict)
    timelines: list[Timeline] = field(default_factory=list)

    def __or__(self, other: Stats) -> Stats:
        """Two layers' accounts of one generation: the first's, where both say something."""
        return Stats(
            self.served if self.served is not None else other.served,
            self.reused or other.reused,
            self.cache_bytes if self.cache_bytes is not None else other.cache_bytes,
            other.figures | self.figures,
            self.timelines or other.timelines,
        )

    @property
    def full_calls(self) -> int | None:
        """UNet calls that were computed in full; None where nothing was reused by a plan."""
        if not self.reused:
            return None
        unplanned = [name for name in self.served or () if name not in (*self.reused, *NULLS)]
        return len(unplanned) + sum(not rules for calls in self.reused.values() for rules in calls)


@dataclass
class Stream:
    calls: int
    state: Any
    count: int = 0


class Generation:
    """The states of a layer in one generation. `calls` may be asked for at the first UNet call only.

    Which element of the scheduler's list a timestep is, is told by where it lies in memory: nothing is read from a GPU,
    and a value may stand in the list more than once. Timesteps that are no elements are only counted.
    """

    def __init__(self, live: Live, calls: int | Callable[[], int] | Trajectory, scheduler: Any = None):
        self.live, self.calls, self.scheduler = live, calls, scheduler
        self.streams: list[Stream] = []
        self.last: Tensor | None = None
        """The element of the list of timesteps at hand, and with it the list, whose memory nothing else can get."""
        self.turn = 0
        self.around: FrameType | None = None
        """The call of a pipeline that nobody patched, if it is of one."""

    def next(self, timestep: Tensor | float) -> Any:
        """The state for the next call. Raises ModelError for a call that was not announced."""
        passed = self.passed(timestep)
        if passed is not None and passed < 0:
            raise ModelError(f"the UNet was called at an earlier timestep again; {ONE_CALL}")
        self.turn = self.turn + 1 if passed == 0 else 0
        self.last = timestep if isinstance(timestep, Tensor) else None
        if self.turn == len(self.streams):
            calls = self.calls() if callable(self.calls) else self.calls
            known = calls if isinstance(calls, Trajectory) else Trajectory.of(self.scheduler, calls, timestep)
            self.streams.append(Stream(known.calls, self.live.begin(known)))
        stream = self.streams[self.turn]
        stream.count += 1
        if stream.count > stream.calls:
            what = f"the UNet was called {stream.count} times where {stream.calls} calls were announced"
            raise ModelError(f"{what}; {ONE_CALL}")
        if stream.count < self.streams[0].count:
            raise ModelError(f"the UNet was called again at a timestep (call {self.streams[0].count}); {ONE_CALL}")
        return stream.state

    @property
    def done(self) -> bool:
        return all(stream.count >= stream.calls for stream in self.streams)

    def passed(self, timestep: Tensor | float) -> int | None:
        """How many elements of their list lie between the last timestep and this one; None where one of them is of no
        list (a single number has no neighbours; an expanded element is one still), or where they are of two."""
        if not isinstance(timestep, Tensor) or self.last is None or not (of_a_list(timestep) and of_a_list(self.last)):
            return None
        if self.last.untyped_storage().data_ptr() != timestep.untyped_storage().data_ptr():
            return None
        return timestep.storage_offset() - self.last.storage_offset()


def of_a_list(timestep: Tensor | float) -> bool:
    """Whether it is an element of a tensor of several, or an expanded one."""
    if not isinstance(timestep, Tensor) or any(timestep.stride()):
        return False
    return timestep.untyped_storage().nbytes() > timestep.element_size()


class ThreadState(threading.local):
    """Of each thread: what is under way. Threads that share a UNet do not meet here.

    Set per thread: torch's compiler (2.11) takes what it finds on the class for what every thread has.
    """

    def __init__(self) -> None:
        self.generation: Generation | None = None
        self.found: Generation | None = None
        """That of a pipeline that nobody patched, around a UNet that somebody did."""
        self.handed: Any = None
        """The state that the layer outside gives."""
        self.step: Any = None

    def __reduce__(self) -> Any:
        """A copy's hooks would compute with this UNet's modules."""
        raise ModelError(COPIED)


class Live(ABC):
    """A patch in force on a UNet: it sees every call, in the state that `begin` made for this generation."""

    layer: ClassVar[Layer] = Layer.CACHE
    """Others on the same UNet lie around or inside by theirs, whoever came first."""
    outside = "this UNet was called outside a generation"
    """What a call is told that nobody announced."""

    def __init__(self) -> None:
        self.thread = ThreadState()
        self.undo = ExitStack()
        """What takes it off."""
        self.last = Stats()

    @abstractmethod
    def begin(self, trajectory: Trajectory) -> Any:
        """The state of a generation with these calls."""

    @abstractmethod
    def end(self, states: Sequence[Any]) -> None:
        """A generation is over: keep its statistics as `last`, and nothing else."""

    @property
    def unets(self) -> Mapping[str, nn.Module]:
        """Those that take turns in it, by name."""
        return {}

    def stats(self) -> Stats:
        """Of the last generation."""
        return self.last

    def attach(self, module: nn.Module, made: ModelHook, name: str) -> None:
        """A hook on a module, until `remove`."""
        hook(module, made, name)
        for each in dict.fromkeys((module, unwrap_module(module))):  # a compiled one keeps its registry within
            self.undo.callback(unhook, each, name)

    def remove(self) -> None:
        """The UNet as it was. May be called again."""
        self.undo.close()

    @contextmanager
    def generation(self, calls: int | Callable[[], int] | Trajectory, scheduler: Any = None) -> Iterator[Generation]:
        """Everything that the UNet is called for inside is one generation of so many `calls`.

        A function is asked at the first UNet call. The scheduler, with its timesteps set, says where calls lie; plans
        that count in steps need none. Nothing is left behind, whatever happens.
        """
        thread, made = self.thread, Generation(self, calls, scheduler)
        before, thread.generation = thread.generation, made
        try:
            yield made
        finally:
            thread.generation, thread.step = before, None
            if made.streams:
                self.end([stream.state for stream in made.streams])

    def arriving(self, timestep: Tensor | float) -> Any:
        """The state for the call that arrives. Raises ModelError outside a generation."""
        thread = self.thread
        if thread.generation is not None:
            return thread.generation.next(timestep)
        if thread.handed is not None:
            return thread.handed
        found, around = thread.found, None
        passed = None if found is None else found.passed(timestep)
        if found is not None and passed is None and not of_a_list(timestep):  # nothing but who calls tells which it is
            around = frame_around(self)
            if around is not None and around is found.around:
                return found.next(timestep)
        if found is None or passed is None or passed < 0 or (passed and found.done):  # it cannot be the next call
            self.leave()
            around = around or frame_around(self)
            if around is None:
                raise ModelError(self.outside)
            pipe = around.f_locals["self"]
            thread.found = found = Generation(self, partial(unet_calls, pipe), pipe.scheduler)
            found.around = around
        return found.next(timestep)

    def leave(self) -> None:
        """Forget a generation that was found."""
        found, self.thread.found, self.thread.step = self.thread.found, None, None
        if found is not None and found.streams:
            self.end([stream.state for stream in found.streams])


class CallHook(ModelHook):
    """On a UNet: every call begins here, in the state of its generation."""

    def __init__(self, live: Live, call: Callable[..., Any]):
        super().__init__()
        self.live, self.call = live, call

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002 - diffusers' signature
        output = self.call(self.fn_ref.original_forward, args, kwargs)
        if self.live.thread.found is not None and self.live.thread.found.done:
            self.live.leave()
        return output


def sample_and_timestep(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Tensor, Tensor | float]:
    return (*arguments, *(named[key] for key in ARGUMENTS[len(arguments) :]))[:2]


def unet_calls(pipe: Any) -> int:
    """UNet calls of the drawing under way; known from its first UNet call on. A pipeline that does not say may have cut
    its scheduler's timesteps."""
    if said := getattr(pipe, "_num_timesteps", 0):
        return int(said)
    frame = _call_by(lambda caller: caller is pipe)
    own = frame.f_locals.get("timesteps") if frame else None
    return len(pipe.scheduler.timesteps if own is None else own)


def frame_around(live: Live) -> FrameType | None:
    """The `__call__` under way of the pipeline that calls one of these UNets, whichever was patched; None where there
    is none."""
    return _call_by(lambda one: isinstance(one, DiffusionPipeline) and live in live_on(getattr(one, "unet", None)))


def _call_by(drawing: Callable[[Any], bool]) -> FrameType | None:
    """The innermost `__call__` under way of whom this is true."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not (frame.f_code.co_name == "__call__" and drawing(frame.f_locals.get("self"))):
        frame = frame.f_back
    return frame


def call_around(live: Live) -> tuple[Any, Mapping[str, Any]]:
    """That pipeline, and the variables of its `__call__`; None and nothing where there is none."""
    frame = frame_around(live)
    return (frame.f_locals["self"], frame.f_locals) if frame else (None, {})


# On modules and pipelines ---------------------------------------------------------------------------------------------


def hook(module: nn.Module, made: ModelHook, name: str) -> None:
    """The hook that is put on last is the outermost, but that patches of outer layers stay around it. It lies beneath
    accelerate's, which load weights first."""
    with _beneath_accelerate(module):
        registry, around = HookRegistry.check_if_exists_or_initialize(module), {}
        if isinstance(made, CallHook):
            held = {key: each for key, each in registry.hooks.items() if isinstance(each, CallHook)}
            around = {key: each for key, each in held.items() if each.live.layer < made.live.layer}
        for key in around:
            _take_out(registry, key)
        for key, each in {name: made, **around}.items():
            registry.register_hook(each, key)


def unhook(module: nn.Module, name: str) -> None:
    """Nothing happens where there is none. diffusers leaves its registry and a bound forward behind."""
    registry = module.__dict__.get("_diffusers_hook")
    if registry is None or registry.get_hook(name) is None:
        return
    with _beneath_accelerate(module):
        _take_out(registry, name)
        if not registry.hooks:
            del module._diffusers_hook
            forward = module.__dict__.get("forward")
            if getattr(forward, "__func__", None) is type(module).forward:
                del module.forward


def _take_out(registry: HookRegistry, name: str) -> None:
    """Where a hook goes, diffusers (0.42) passes over the next one around it too, if that has a forward of its own."""
    at = registry._hook_order.index(name)
    mine, *around = registry._fn_refs[at : at + 2]
    held = [(each, each.forward) for each in around if each.original_forward is not None]
    registry.remove_hook(name, recurse=False)
    for each, forward in held:
        each.forward, each.original_forward = forward, mine.original_forward or mine.forward


@contextmanager
def _beneath_accelerate(module: nn.Module) -> Iterator[None]:
    """What is done to a module's forward inside is done to the one that accelerate calls: its own hook comes and goes
    as it likes."""
    outer = module.__dict__.get("forward")
    if ACCELERATE not in module.__dict__ or outer is None:
        yield
        return
    module.forward = module.__dict__[ACCELERATE]
    try:
        yield
    finally:
        module.__dict__[ACCELERATE], module.forward = module.forward, outer


def live_on(unet: Any) -> list[Live]:
    """What is in force on a module in the place of a UNet, the outermost first; whoever put it on."""
    if unet is None:
        return []
    inner = unwrap_module(unet)
    registries = [each.__dict__.get("_diffusers_hook") for each in dict.fromkeys((unet, inner))]
    hooks = [each for registry in registries if registry for each in reversed(registry.hooks.values())]
    found: list[Live] = [each.live for each in hooks if isinstance(each, CallHook)]
    return [*found, inner] if isinstance(inner, Live) else found


def inside(live: Live, unet: Any) -> Live | None:
    """What is in force on the same UNet one layer further in."""
    there = live_on(unet)
    return there[there.index(live) + 1] if live in there[:-1] else None


def in_force(pipe: DiffusionPipeline, live: Live) -> Live:
    """Make every call of the pipeline a generation, as long as the patch is on; what was in force before stays so.

    `pipe(...)` looks its `__call__` up on the class, nowhere else: the pipeline gets a subclass under the same name,
    until its last patch goes.
    """
    kind, here = type(pipe), ref(pipe)
    marked: list[Live] | None = getattr(kind, MARK, None)
    if marked is None:
        marked = []
        pipe.__class__ = _generating(kind, marked)
    marked.append(live)

    def restore() -> None:
        marked.remove(live)
        held = here()
        if not marked and getattr(type(held), MARK, None) is marked:
            held.__class__ = type(held).__bases__[0]

    live.undo.callback(restore)
    return live


def _generating(kind: type[DiffusionPipeline], marked: list[Live]) -> type[DiffusionPipeline]:
    """A subclass each call of which is a generation. Raises ModelError where the UNet that draws does not know of what
    was put on this pipeline."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not marked:  # a copy of a pipeline that all was taken off meanwhile
            self.__class__ = kind
            return self(*args, **kwargs)
        there = live_on(self.unet)
        within = [live for each in there for unet in each.unets.values() for live in live_on(unet)]
        if any(live not in (*there, *within) for live in marked):
            raise ModelError(f"the plan on this pipeline is not on its UNet, which was replaced; {AGAIN}")
        with there[0].generation(partial(unet_calls, self), self.scheduler) as generation:
            drawn = kind.__call__(self, *args, **kwargs)
            if not generation.streams:
                what = "the plan saw no call of the UNet, whose hooks were taken off: this is drawn plain"
                raise ModelError(f"{what}; {AGAIN}")
            return drawn

    call.__doc__, call.__wrapped__ = kind.__call__.__doc__, kind.__call__  # type: ignore[attr-defined]
    names: dict[str, Any] = {"__call__": call, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    refused = {key: _refusing(kind, key, marked) for key in REFUSED}
    return type(kind.__name__, (kind,), {**names, **refused, "__copy__": _shallow, MARK: marked})


def _shallow(pipe: Any) -> Any:
    """`copy.copy`: the same networks, and what is in force on them."""
    made = object.__new__(type(pipe))
    made.__dict__.update(pipe.__dict__)
    return made


def _refusing(kind: type[DiffusionPipeline], key: str, marked: list[Live]) -> Callable[..., Any]:
    """A method that is what it was when all was taken off, also on copies."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if marked:
            raise ModelError(REFUSED[key])
        self.__class__ = kind
        return getattr(self, key)(*args, **kwargs)

    return method


def check_pipeline(pipe: Any) -> None:
    """ModelError unless this is a pipeline whose UNet is of the class that Stable Diffusion's are of."""
    name = type(pipe).__name__
    if not isinstance(pipe, DiffusionPipeline):
        raise ModelError(f"{name}: is no diffusers pipeline; give a Stable Diffusion pipeline")
    if (unet := getattr(pipe, "unet", None)) is None:
        why = " (it has a transformer, and DiTs are not supported)" if getattr(pipe, "transformer", None) else ""
        raise ModelError(f"{name}: is no pipeline with a UNet{why}; give a Stable Diffusion 1.x, 2.x or SDXL pipeline")
    if not isinstance(unwrap_module(unet), Live):
        check_class(f"{name}: its UNet", unet)


def check_class(what: str, unet: Any) -> None:
    """ModelError unless `what` is a UNet2DConditionModel."""
    if not isinstance(inner := unwrap_module(unet), UNet2DConditionModel):
        kind = type(inner).__name__
        raise ModelError(f"{what} is a {kind}; only UNet2DConditionModel, as Stable Diffusion has it, is supported")


@dataclass
class Handle:
    """What is in force on `pipe` until `remove()`, or to the end of a `with` block."""

    pipe: DiffusionPipeline
    lives: list[Live]

    def stats(self) -> Stats:
        return stats_of(self.pipe)

    def remove(self) -> None:
        """Pipeline and UNets as they were. May be called again."""
        for live in self.lives:
            live.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


# Patches --------------------------------------------------------------------------------------------------------------

PROMPT = "conditional"
"""The group of rows that sees the prompt, and is always computed."""
Spec = TypeVar("Spec", bound=PatchSpec)
Configs = Mapping[str, Mapping[str, Any]]
"""UNet's name -> config: the pipeline's own first, under `unet` where it is the only one."""
Load = Callable[[str], nn.Module]
"""A UNet that takes turns, by its name."""


@dataclass
class Patch(ABC, Generic[Spec]):
    """What a recipe or a model's asdm.json says of a way of drawing, and how it is done. One file for each kind."""

    spec: Spec
    layer: ClassVar[Layer]
    reentrant: ClassVar[bool] = True
    """Whether threads may share a pipeline that carries it."""

    @property
    def together(self) -> bool:
        """Whether what it computes for a picture depends on no other picture of the call."""
        return True

    @abstractmethod
    def check(self, configs: Configs, others: Sequence[Patch[Any]]) -> list[str]:
        """What does not fit these UNets, or beside these other patches; from configs alone."""

    @abstractmethod
    def apply(self, pipe: Any, load: Load) -> AbstractContextManager[Callable[[], Stats]]:
        """On, and off again, whatever happens. What it yields tells of the last generation."""


def patch_of(spec: PatchSpec) -> Patch[Any]:
    """The patch of a spec; its kind names the file."""
    made: Patch[Any] = import_module(spec.module).patch(spec)
    return made


def ways_to_draw(specs: Sequence[PatchSpec]) -> dict[str, Any]:
    """How `draw` may use a pipeline that carries these."""
    patches = [patch_of(spec) for spec in specs]
    return {"reentrant": all(each.reentrant for each in patches), "together": all(each.together for each in patches)}


def check_patches(patches: Sequence[Patch[Any]], configs: Configs) -> list[str]:
    """Everything that does not fit, each fault once."""
    faults = []
    for patch in patches:
        faults += patch.check(configs, [other for other in patches if other is not patch])
    return list(dict.fromkeys(faults))


@contextmanager
def applied(pipe: Any, patches: Sequence[Patch[Any]], load: Load) -> Iterator[Callable[[], Stats]]:
    """All of them on and off again: UNets in their places first, then layers from the innermost to the outermost. What
    it yields tells of the last generation."""
    inwards = sorted(patches, key=lambda patch: (patch.layer != Layer.SCHEDULE, -patch.layer))
    with ExitStack() as stack:
        told = [stack.enter_context(patch.apply(pipe, load)) for patch in inwards]
        yield lambda: reduce(or_, (each() for each in told), Stats())


def put_on(pipe: Any, patches: Sequence[Patch[Any]], load: Load) -> None:
    """All of them on until each is removed, or for as long as what is in the UNet's place lives, in any pipeline."""
    if patches:
        stack = ExitStack()
        stack.enter_context(applied(pipe, patches, load))
        unwrap_module(pipe.unet).__dict__[HELD] = stack  # what takes them off when it is collected
        _HELD.add(stack)


_HELD: WeakSet[ExitStack] = WeakSet()


@atexit.register
def _let_go() -> None:
    """While everything that this needs is still there: an interpreter that ends takes modules away first."""
    for stack in list(_HELD):
        stack.close()


def stats_of(pipe: Any) -> Stats:
    """Of the last generation, whatever is in force."""
    return reduce(or_, (live.stats() for live in live_on(pipe.unet)), Stats())
