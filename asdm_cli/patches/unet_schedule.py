"""Several UNets in one generation: a module in the pipeline's `unet` place asks the one whose turn it is.

Each stretch of calls that one UNet serves is a generation of what is in force on that UNet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from inspect import ismethod
from itertools import pairwise, takewhile
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn

from asdm_cli.errors import ModelError
from asdm_cli.patches import feature_cache
from asdm_cli.patches.base import (
    Configs,
    Handle,
    Layer,
    Live,
    Load,
    Patch,
    Stats,
    Trajectory,
    check_class,
    check_pipeline,
    in_force,
    live_on,
    stats_of,
)
from asdm_cli.patches.cache_plan import Reused, resolve
from asdm_cli.patches.feature_cache.forecast import LINE, NEWEST
from asdm_cli.patches.feature_cache.state import ALL, ModuleHistory
from asdm_cli.recipe.messages import did_you_mean
from asdm_cli.recipe.patches import (
    FALLING,
    NULLS,
    By,
    CachePlan,
    Segment,
    Switching,
    UNetScheduleSpec,
    reserved,
    unknown_unets,
)
from asdm_cli.records import Timeline
from asdm_cli.unet.blocks import unlike_inputs

FOR_ALL = frozenset(
    {
        "enable_freeu",
        "disable_freeu",
        "fuse_qkv_projections",
        "unfuse_qkv_projections",
        "set_attn_processor",
        "set_default_attn_processor",
        "set_attention_slice",
    }
)
"""Methods by which pipelines and people change how a UNet computes: they go to every one. Others are refused."""
NULL_LETTERS = dict(zip(NULLS, "·~", strict=True))
SPARE = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def assign(rules: Switching, where: Sequence[float | Fraction]) -> tuple[str, ...]:
    """Who serves each call; `where[i]` is call i's place in `rules.by`.

    A part serves the calls before its `until` is reached; the call at `until` itself is the next part's. So a part
    serves timesteps above it, log-SNRs below it, calls with i/n < until, and calls i < until. What is reached stays
    reached. Numbers are compared as they are written in decimals: 0.2 of 25 calls is 5 calls.

    Null models stay in the result. Only where nothing has been predicted yet, as when image to image begins inside
    such a part, the nearest UNet that follows serves instead; where none follows, the last one before.
    """
    names, bounds = zip(*((part.unet, part.until) for part in rules.parts), strict=True)
    exact = [None if bound is None else Fraction(str(bound)) for bound in bounds]
    indices: list[int] = []
    at = 0
    for place in (Fraction(str(place)) for place in where):
        while (bound := exact[at]) is not None and (place <= bound if rules.by in FALLING else place >= bound):
            at += 1
        indices.append(at)
    served = [names[index] for index in indices]
    if served and served[0] in NULLS:
        around = [*served, *names[indices[-1] :], *reversed(names[: indices[0]])]
        served[0] = next(name for name in around if name not in NULLS)
    return tuple(served)


def rules_of(served: Sequence[str], timesteps: Sequence[float]) -> Switching:
    """Rules by which these serve these calls: `assign` gives `served` back.

    By timestep, with boundaries midway between two calls, so that they stay where they are when the number of steps
    changes. By step where a boundary lies between calls of one timestep, or of rising ones.
    """
    ends = [call for call in range(1, len(served)) if served[call] != served[call - 1]]
    falls = all(later <= earlier for earlier, later in pairwise(timesteps))
    if falls and all(timesteps[end] < timesteps[end - 1] for end in ends):
        by: By = "timestep"
        untils = [(timesteps[end - 1] + timesteps[end]) / 2 for end in ends]
    else:
        by, untils = "step", [float(end) for end in ends]
    parts = [Segment(unet=served[end - 1], until=until) for end, until in zip(ends, untils, strict=True)]
    return Switching(by=by, parts=[*parts, Segment(unet=served[-1])])


def alone(name: str) -> Switching:
    """The rules by which one UNet serves every call."""
    return Switching(by="step", parts=[Segment(unet=name)])


def served_by(rules: Switching, scheduler: Any) -> tuple[str, ...]:
    """Who serves each call of a whole run of a scheduler whose timesteps are set. Raises ModelError for an axis that
    the scheduler does not know."""
    return assign(rules, Trajectory.whole(scheduler).places(rules.by, "timestep"))


class ScheduleState:
    """Of one generation. `names[i]` serves call i.

    Calls of the null model inside a stretch do not end it; what is in force on the UNet is not called for them, and
    neither counts nor places them. Its memory goes when another UNet begins, and a later stretch starts anew.
    """

    def __init__(self, names: Sequence[str], trajectory: Trajectory, inside: Mapping[str, Live]):
        self.names, self.trajectory, self.inside = list(names), trajectory, inside
        self.call = -1
        self.groups: tuple[str, ...] = ALL
        self.served: list[str] = []
        self.reused: dict[str, list[Reused]] = {}
        self.cache_bytes = 0
        self.serving = ""
        self.stretch: Any = None
        """The state of what is in force on the UNet that serves."""
        self.shape: tuple[int, ...] = ()
        self.predicted = ModuleHistory(LINE)

    def next(self, sample: Tensor) -> str:
        """Who serves the next call. Of a new shape nothing has been predicted: the next UNet serves."""
        self.call += 1
        at, rows = self.call, self.trajectory.rows
        self.groups = ALL if rows is None else rows[at]
        shape = (len(sample) // len(self.groups), *sample.shape[1:])
        if shape != self.shape:
            self.shape, self.predicted = shape, ModuleHistory(LINE)
        known = self.predicted.groups
        if self.names[at] in NULLS and not all(group in known and known[group].known for group in self.groups):
            around = (*self.names[at:], *reversed(self.names[:at]))
            self.names[at] = next(name for name in around if name not in NULLS)
            self.close()  # the stretch was announced without this call
        name = self.names[at]
        if name not in NULLS and name != self.serving:
            self.close()
            self.serving = name
            if live := self.inside.get(name):
                stretch = takewhile(lambda call: self.names[call] in (name, *NULLS), range(at, len(self.names)))
                mine = [call for call in stretch if self.names[call] == name]
                self.stretch = live.begin(self.trajectory.part(mine))
        self.served.append(name)
        return name

    def keep(self, prediction: Tensor) -> None:
        """A UNet's answer to this call, a copy of it, if a null model may want it."""
        if any(name in NULLS for name in self.names[self.call :]):
            self.predicted.prepare(self.call, self.call, True, self.groups)
            self.predicted.store(prediction.clone())

    def null(self, name: str) -> Tensor:
        """What stands for a prediction at a call of this null model; a tensor of its own."""
        self.predicted.prepare(self.call, self.call, False, self.groups)
        if name == "reuse":
            for history in self.predicted.present:
                history.weights, history.latent_weight = NEWEST
        return self.predicted.value().clone()

    def close(self) -> None:
        """End the stretch under way, if there is one."""
        live = self.inside.get(self.serving)
        if live is not None and self.stretch is not None:
            live.end([self.stretch])
            live.thread.handed = live.thread.step = None
            found = live.stats()
            for calls in found.reused.values():
                self.reused.setdefault(self.serving, []).extend(calls)
            self.cache_bytes = max(self.cache_bytes, found.cache_bytes or 0)
        self.serving, self.stretch = "", None


class UNetSchedule(nn.Module, Live):
    """UNets by name, and the rules by which one of them, or a null model, answers each call of a generation.

    What a pipeline asks of a UNet (config, dtype, add_embedding, ...) the first one answers. A UNet may stand under
    several names. With `offload` those that do not serve live in the CPU's memory. Raises ModelError with all that
    does not fit.
    """

    outside = (
        "several UNets were called outside a generation, so nobody knows whose turn it is; draw with the pipeline that "
        "switches (asdm_cli.switch), or call inside `with unet.generation(calls, scheduler):`"
    )

    def __init__(self, unets: Mapping[str, UNet2DConditionModel], rules: Switching, offload: bool = False):
        nn.Module.__init__(self)
        Live.__init__(self)
        check_members(unets, rules)
        self.names = tuple(unets)
        self.members = nn.ModuleList(unets.values())  # by place: a name may hold what a module's name may not
        self.rules = rules
        self.offload = offload
        self._moving = threading.RLock()
        self._here = self.names[0]
        self._home: torch.device = self.members[0].device
        if offload:
            for unet in self._idle():
                unet.to("cpu")

    @property
    def unets(self) -> dict[str, UNet2DConditionModel]:
        return dict(zip(self.names, self.members, strict=True))

    @property
    def device(self) -> torch.device:
        """Where calls are answered."""
        return self._home if self.offload else self.members[0].device

    def begin(self, trajectory: Trajectory) -> ScheduleState:
        inside = {name: live[0] for name, unet in self.unets.items() if (live := live_on(unet))}
        return ScheduleState(assign(self.rules, trajectory.places(self.rules.by, "timestep")), trajectory, inside)

    def end(self, states: Sequence[ScheduleState]) -> None:
        for state in states:
            state.close()
        first = states[0]
        caches = any(feature_cache.cache_on(unet) for unet in self.members)
        kept = sum(state.cache_bytes for state in states) if caches else None
        timeline = who_serves({"UNet": first.served}, self.names)
        self.last = Stats(tuple(first.served), first.reused, kept, timelines=[timeline])

    @contextmanager
    def ruled(self, rules: Switching) -> Iterator[None]:
        """Other rules for the generations that begin inside. Raises ModelError for names that are not known."""
        check_rules(self.names, rules)
        before, self.rules = self.rules, rules
        try:
            yield
        finally:
            self.rules = before

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        *,
        return_dict: bool = True,
        **named: Any,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Like UNet2DConditionModel's. Raises ModelError outside a generation: nobody knows whose turn it is."""
        state, name = self._next(sample, timestep)
        if name in NULLS:
            prediction = state.null(name)
        else:
            with self.present(name) as unet:
                if live := state.inside.get(name):
                    live.thread.handed = state.stretch
                prediction = unet(sample, timestep, encoder_hidden_states, return_dict=False, **named)[0]
            state.keep(prediction)
        if self.thread.found is not None and self.thread.found.done:
            self.leave()
        return UNet2DConditionOutput(sample=prediction) if return_dict else (prediction,)

    @torch.compiler.disable
    def _next(self, sample: Tensor, timestep: Tensor | float) -> tuple[ScheduleState, str]:
        state: ScheduleState = self.arriving(timestep)
        return state, state.next(sample)

    @contextmanager
    def present(self, name: str) -> Iterator[UNet2DConditionModel]:
        """The UNet, where calls are answered. While it answers there, no other thread moves it away."""
        unet = self.unets[name]
        if not self.offload or self._home.type == "cpu":
            yield unet
            return
        with self._moving:
            if unet is not self.unets[self._here]:
                self.unets[self._here].to("cpu")
                unet.to(self._home)
            self._here = name
            yield unet

    def _idle(self) -> list[nn.Module]:
        return [unet for unet in dict.fromkeys(self.members) if unet is not self.unets[self._here]]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> UNetSchedule:
        """How `to()`, `half()` and their like reach the UNets: one by one, so that idle ones take no room at once."""
        here = self.unets[self._here]
        here._apply(fn, recurse)
        self._home = here.device
        for unet in self._idle():
            unet._apply(fn, recurse)
            if self.offload:
                unet.to("cpu")
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "members" not in self.__dict__.get("_modules", {}):
                raise
            if name.startswith("_") and not ismethod(getattr(self.members[0], name, None)):
                raise
        found = getattr(self.members[0], name)
        return partial(self._each, name) if ismethod(found) else found

    def _each(self, method: str, *args: Any, **named: Any) -> None:
        if method not in FOR_ALL:
            raise ModelError(f"{method}() is about one UNet; call it on each of `.unets`, or before you switch")
        for unet in dict.fromkeys(self.members):
            getattr(unet, method)(*args, **named)


@dataclass
class ScheduleHandle(Handle):
    """UNets that take turns in `pipe`."""

    unet: UNetSchedule


def switch(
    pipe: DiffusionPipeline,
    unets: Mapping[str, UNet2DConditionModel],
    rules: Switching,
    plans: Mapping[str, CachePlan] | None = None,
    offload: bool = False,
) -> ScheduleHandle:
    """The first UNet is the pipeline's own, or takes its place; `plans` are what each inherits while it serves.
    Raises ModelError with all that does not fit."""
    check_free(pipe)
    check_members(unets, rules, plans)
    whole: Any = pipe
    before, unet = whole.unet, UNetSchedule(unets, rules, offload)
    others = {live for member in unet.members for live in live_on(member)}

    def back() -> None:
        for live in dict.fromkeys(live for member in unet.members for live in live_on(member)):
            if live not in others:
                live.remove()
        if whole.unet is unet:
            home = unet.device
            for member in unet.members if offload else ():
                if member is not before:
                    member.to("cpu")  # the one that served last is with the pipeline
            before.to(home)
            whole.unet = before

    whole.unet = unet
    unet.undo.callback(back)
    in_force(pipe, unet)
    try:
        feature_cache.inherit(pipe, plans or {})
    except BaseException:
        unet.remove()
        raise
    return ScheduleHandle(pipe, [unet], unet)


def check_free(pipe: DiffusionPipeline) -> None:
    """ModelError unless this is a pipeline whose UNet may be put in another's place."""
    check_pipeline(pipe)
    if schedule_on(pipe) is not None:
        raise ModelError("this pipeline switches already; call pipe.unet.remove() first")
    if live_on(pipe.unet):
        raise ModelError("this pipeline inherits; take its plan off (asdm_cli.remove), switch, and inherit then")


def schedule_on(pipe: Any) -> UNetSchedule | None:
    """The UNets that take turns in this pipeline, if several do."""
    unet = getattr(pipe, "unet", None)
    return unet if isinstance(unet, UNetSchedule) else None


def _config(unet: Any) -> dict[str, Any]:
    """With what an image adapter that came later left beside its entries."""
    return {**unet.config, **{key: value for key, value in vars(unet.config).items() if key in unet.config}}


def check_members(unets: Mapping[str, Any], rules: Switching, plans: Mapping[str, CachePlan] | None = None) -> None:
    """ModelError for UNets that cannot stand in one another's place, for names that are not theirs, and for plans that
    do not fit."""
    for name, unet in unets.items():
        check_class(f"unets: {name}", unet)
    faults = [f"unets: {reserved(name)}" for name in unets if name in NULLS]
    if not unets:
        faults.append("unets: none is given; name one or more")
    else:
        faults += [f"unets: {each}" for each in unlike_inputs({name: _config(unet) for name, unet in unets.items()})]
    formats = {name: str(unet.dtype).removeprefix("torch.") for name, unet in unets.items()}
    if len(set(formats.values())) > 1:
        each = ", ".join(f"{name} is in {form}" for name, form in formats.items())
        faults.append(f"unets: all must be in one number format: {each}")
    faults += _unknown(unets, rules)
    plans = plans or {}
    for name, plan in plans.items():
        if name not in unets:
            faults.append(f"plans.{name}: no UNet is called '{name}'{did_you_mean(name, list(unets))}")
            continue
        try:
            resolve(plan, dict(unets[name].config))
        except ModelError as error:
            faults.append(f"plans.{name}: {error}")
        twins = [other for other in plans if other != name and unets.get(other) is unets[name]]
        if any(plans[other] != plan for other in twins) and name > min(twins):
            what = f"is the same UNet as {', '.join(twins)}, which has another plan; load it twice"
            faults.append(f"plans.{name}: {what}")
    if faults:
        raise ModelError("\n".join(faults))


def check_rules(names: Sequence[str] | Mapping[str, Any], rules: Switching) -> None:
    """ModelError where the rules name what is no UNet."""
    if faults := _unknown(names, rules):
        raise ModelError("\n".join(faults))


def _unknown(names: Sequence[str] | Mapping[str, Any], rules: Switching) -> list[str]:
    return [f"parts[{place[1]}].unet: {what}" for place, what in unknown_unets(rules.parts, list(names))]


def who_serves(schedules: Mapping[str, Sequence[str]], unets: Sequence[str]) -> Timeline:
    """Names of ways to draw -> who serves each call, as a row of letters: one of a name's own where that is free."""
    letters: dict[str, str] = {}
    for name in dict.fromkeys(unets):
        own = [letter for letter in (name[0], name[0].upper(), *name) if letter.isalnum()]
        letters[next(letter for letter in (*own, *SPARE) if letter not in letters)] = name
    letters |= {letter: name for name, letter in NULL_LETTERS.items()}
    by_name = {name: letter for letter, name in letters.items()}
    rows = {name: "".join(by_name[each] for each in served) for name, served in schedules.items()}
    return Timeline("Who serves which call", rows, letters)


class UNetSchedulePatch(Patch[UNetScheduleSpec]):
    layer = Layer.SCHEDULE

    def check(self, configs: Configs, others: Sequence[Patch[Any]]) -> list[str]:
        faults = [
            f"a {other.spec.kind} works on one UNet, and {len(self.spec.unets)} take turns here; leave it out"
            for other in others
            if other.layer == Layer.MODULE
        ]
        if any(isinstance(other, UNetSchedulePatch) for other in others):
            faults.append("UNets take turns twice; give one unet-schedule")
        known = {name: dict(configs[name]) for name in self.spec.unets if name in configs}
        return [*faults, *(f"unets: {each}" for each in unlike_inputs(known) if len(known) > 1)]

    @contextmanager
    def apply(self, pipe: Any, load: Load) -> Iterator[Callable[[], Stats]]:
        """A pipeline in which these UNets take turns already draws by other rules; else they take their places."""
        here = schedule_on(pipe)
        if here is not None:
            with here.ruled(self.spec.rules):
                yield partial(stats_of, pipe)
            return
        first, *others = self.spec.unets
        unets: dict[str, Any] = {first: pipe.unet, **{name: load(name) for name in others}}
        with switch(pipe, unets, self.spec.rules, offload=self.spec.offload) as handle:
            yield handle.stats


patch = UNetSchedulePatch
