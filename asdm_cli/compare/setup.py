"""A set-up: a model, what is in force on it, and how it draws. What a comparison compares, before its weights are
read and, in a session, in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count
from typing import Any, TypeVar

import psutil
import torch
from diffusers import UNet2DConditionModel

from asdm_cli.compare.pareto import ALONE, FEWER
from asdm_cli.errors import AsdmError, ModelError, blame
from asdm_cli.models.directory import UNET, ModelDirectory, check_drawing, check_parts
from asdm_cli.models.load import load_pipeline, load_unet, random_unet
from asdm_cli.models.metadata import (
    Origin,
    checked_patches,
    history,
    member,
    schedule_of,
    stamps,
    unet_components,
)
from asdm_cli.models.pipelines import PIPELINES
from asdm_cli.models.schedulers import SCHEDULER, planned_scheduler, set_sampler, strength_of
from asdm_cli.patches.base import Layer, Stats, Trajectory, applied, check_patches, patch_of
from asdm_cli.patches.cache_plan import resolve
from asdm_cli.patches.feature_cache.state import CacheState
from asdm_cli.patches.guidance import GROUPS, HALVES, computed_groups
from asdm_cli.recipe.patches import (
    OUT,
    CachePlan,
    CacheRule,
    DeepCacheSpec,
    Explicit,
    FeatureCacheSpec,
    GuidanceScheduleSpec,
    PatchSpec,
    Stability,
    Switching,
    Threshold,
    UNetScheduleSpec,
)
from asdm_cli.sampling.generate import SamplingSettings, arguments
from asdm_cli.sampling.prompts import Given, PromptList
from asdm_cli.unet.blocks import Config
from asdm_cli.unet.flops import parameters, rows
from asdm_cli.unet.shapes import latent_size
from asdm_cli.unet.weights import read_headers

PLAIN, CONVERGED = "plain", "converged"
REAL, VAE, INPUTS = REFERENCES = "real pictures", "real, VAE reconstruction", "inputs"
"""Series, whose points a plot joins by a line."""
SD_FACTOR, SD_TOKENS = 8, 77
"""Pixels per latent, and text tokens, in every Stable Diffusion so far; what a UNet without its pipeline is taken to
have."""
MAKER_STEP = 8
"""diffusers' pipelines draw only multiples of this many pixels, whatever the VAE's factor."""
SHARES = (0.8, 0.65, 0.5, 0.35, 0.2)
"""Of the steps, at which the plain model draws too where a recipe names no `fewer_steps`."""
PROMPT = "a red fox"
"""What whole images are timed with; the text encoder pads it, so its length changes no cost."""
CPU = torch.device("cpu")
Network = TypeVar("Network", bound=torch.nn.Module)


@dataclass(frozen=True)
class Setup:
    """`model` None: random weights of `config`. `patches` are all that is in force; of UNets that take turns, `unets`
    holds those that do not lie in the model itself, by name. `make` puts a UNet together from others in memory."""

    name: str
    model: ModelDirectory | None
    config: Config
    patches: tuple[PatchSpec, ...] = ()
    unets: Mapping[str, ModelDirectory] = field(default_factory=dict)
    sampler: str = "own"
    steps: int = 25
    guidance: float = 3.0
    strength: float | None = None
    """This and the next two: of pipelines that draw from a picture; None is the pipeline's own."""
    image_guidance: float | None = None
    given: Given | None = None
    """The picture that it is timed with."""
    series: str = ""
    varied: Mapping[str, str | int] = field(default_factory=dict)
    """Of one of many combinations: what it is of, by name."""
    source: str = ""
    """What reports call its model."""
    draws: bool = True
    """Whether whole images are timed, not only UNet calls."""
    make: Callable[[Callable[[ModelDirectory], Any]], Any] | None = None
    made_of: Origin | None = None
    """All that a UNet put together depends on."""

    @property
    def configs(self) -> dict[str, Config]:
        """Of every UNet, by its name; `unet` where it is the only one."""
        if self.model is None or self.make is not None:
            return {UNET: self.config}
        schedule = schedule_of(self.patches)
        names = schedule.unets if schedule else [UNET]
        own = unet_components(self.patches)
        return {
            name: self.unets[name].config(UNET) if name in self.unets else self.model.config(own[name])
            for name in names
        }

    @property
    def serving(self) -> dict[str, Config]:
        """Those of `configs` that compute a part of a generation."""
        schedule = schedule_of(self.patches)
        return {name: each for name, each in self.configs.items() if schedule is None or name in schedule.serving}

    @property
    def one_unet(self) -> bool:
        return schedule_of(self.patches) is None

    @property
    def sees_all(self) -> bool:
        """Whether its UNet gets every call of a generation, and whole."""
        return all(patch_of(spec).layer >= Layer.CACHE for spec in self.patches)

    @property
    def computed(self) -> tuple[tuple[str, ...], ...]:
        """The groups of rows that each UNet call of its pipeline computes: all, where no guidance-schedule leaves any
        out; none is named where there is no guidance. Raises ModelError where its scheduler cannot say where they lie.
        """
        rows, scheduler = (GROUPS.get(self.kind, HALVES) if self.rows > 1 else (),) * self.calls, self.scheduler
        trajectory = replace(Trajectory.whole(scheduler), rows=rows)
        found = [spec for spec in self.patches if isinstance(spec, GuidanceScheduleSpec)]
        return computed_groups(found[0], trajectory) if found else rows

    @property
    def cache(self) -> FeatureCacheSpec | None:
        """Of the one UNet."""
        found = [spec for spec in self.patches if isinstance(spec, FeatureCacheSpec)]
        return found[0] if found and self.one_unet else None

    @property
    def body(self) -> tuple[Any, ...]:
        """Equal where UNet calls without patches are the same: they are measured, and in memory, only once."""
        return (
            ("random", str(sorted(self.config.items())))
            if self.model is None
            else (self.model.path, self.model.adapters, str(self.made_of))
        )

    @property
    def surroundings(self) -> tuple[int, int]:
        """Pixels per latent, and text tokens, of the pipeline around the UNet; those of SD where there is none."""
        if self.model is None or not self.model.is_pipeline:
            return SD_FACTOR, SD_TOKENS
        if "vae" not in self.model.components:
            return SD_FACTOR, self.model.tokens
        return 2 ** (len(self.model.config("vae").get("block_out_channels", ())) - 1), self.model.tokens

    def latent(self, size: int | None) -> tuple[int, int]:
        """Height and width. Raises ModelError for a size that is no multiple of the VAE's factor."""
        factor, _ = self.surroundings
        if size is not None and size % factor:
            what = f"size {size} is no multiple of its {factor} pixels per latent; round it"
            raise ModelError(f"contestant {self.name!r}: {what}")
        return latent_size(self.config) if size is None else (size // factor, size // factor)

    @property
    def calls(self) -> int:
        """UNet calls of an image, of which some samplers make more than steps; of a UNet alone, its steps."""
        if self.model is None or SCHEDULER not in self.model.components:
            return self.steps
        return len(self.scheduler.timesteps)

    @property
    def scheduler(self) -> Any:
        """Of its pipeline, with the timesteps of one image's UNet calls. Raises ModelError."""
        assert self.model is not None, "only set-ups with a pipeline draw"
        return planned_scheduler(self.model, self.sampler, self.steps, self.strength)

    @property
    def kind(self) -> str:
        """The class of its pipeline."""
        return "" if self.model is None else str(self.model.index.get("_class_name", ""))

    @property
    def rows(self) -> int:
        """Latents in a UNet call of one picture."""
        return rows(self.config, self.guidance, len(GROUPS.get(self.kind, HALVES)) or 1)

    @property
    def begun(self) -> dict[str, float]:
        """What it was told of how to draw from a picture."""
        told = {"strength": self.strength, "image_guidance": self.image_guidance}
        return {key: value for key, value in told.items() if value is not None}

    def sampling(self, size: int | None, seed: int = 0, **where: Any) -> SamplingSettings:
        drawn_with: dict[str, Any] = {"sampler": self.sampler, **self.begun, **where}
        return SamplingSettings(self.steps, self.guidance, size, seed, **drawn_with)

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says of it."""
        told = [line for spec in self.patches for line in spec.told()]
        found = {"model": self.source, "steps": self.steps, "guidance": self.guidance, "sampler": self.sampler}
        found |= self.begun
        made = [step["verb"] for step in history(self.model)] if self.model else []
        adapters = [each.told for each in self.model.adapters] if self.model else []
        unets = {name: each.source for name, each in self.unets.items()}
        beside = {"unets": unets, "patches": told, "adapters": adapters, "made": made, "varied": dict(self.varied)}
        return {**found, "series": self.series or self.name, **{key: each for key, each in beside.items() if each}}

    def origin(self) -> Origin:
        """All that its images depend on besides prompts, seeds, size and machine."""
        files = {"": stamps(self.model)} if self.model else {}
        return {
            "sampler": self.sampler,
            "steps": self.steps,
            "guidance": self.guidance,
            **self.begun,
            "patches": [spec.written() for spec in self.patches],
            "adapters": [each.told for each in self.model.adapters] if self.model else [],
            "files": {**files, **{name: stamps(directory) for name, directory in self.unets.items()}},
            "made_of": self.made_of,
        }

    def with_patches(self, specs: Sequence[PatchSpec], **changes: Any) -> Setup:
        """The same with these in force, in the place of those of their kinds."""
        kinds = {spec.kind for spec in specs}
        kept = (spec for spec in self.patches if spec.kind not in kinds)
        return replace(self, patches=(*kept, *specs), **changes)

    def at(self, steps: int) -> Setup:
        """The same in so many steps, of which the DeepCache package is told."""
        told = [spec.model_copy(update={"steps": steps}) for spec in self.patches if isinstance(spec, DeepCacheSpec)]
        return self.with_patches(told, steps=steps)

    def with_cache(self, name: str, plan: CachePlan, **changes: Any) -> Setup:
        """The same with a plan on every UNet, in the place of those that each had of its own."""
        return self.with_patches([cache_spec(plan)], name=name, **changes)

    def scheduled(self, name: str, rules: Switching, **changes: Any) -> Setup:
        """The same with other rules for the UNets that take turns."""
        patches = tuple(
            spec.model_copy(update={"by": rules.by, "parts": rules.parts})
            if isinstance(spec, UNetScheduleSpec)
            else spec
            for spec in self.patches
        )
        return replace(self, name=name, patches=patches, **changes)


def cache_spec(plan: CachePlan, unet: str | None = None) -> FeatureCacheSpec:
    return FeatureCacheSpec(rules=plan.rules, cache_text=plan.cache_text, unet=unet)


def drawing(name: str, model: ModelDirectory, carried: bool = True, **settings: Any) -> Setup:
    """A whole pipeline that draws: all that can be known of it beforehand has been checked. What it carries is in
    force, unless `carried` is false. Raises ModelError."""
    check_drawing(model)
    specs = checked_patches(model)
    check_parts(model)
    patches = specs if carried else tuple(spec for spec in specs if not isinstance(spec, FeatureCacheSpec))
    return Setup(name, model, model.config(UNET), patches, source=model.source, **settings)


def fewer_steps(plain: Setup, counts: Sequence[int] | None) -> list[Setup]:
    """The same at fewer steps: the first thing to beat."""
    if counts is None:
        wanted = {max(1, round(share * plain.steps)) for share in SHARES} - {plain.steps}
        wanted = {count for count in wanted if int(count * strength_of(plain.kind, plain.strength))}
        counts = sorted(wanted, reverse=True)
    names = {count: "1 step" if count == 1 else f"{count} steps" for count in counts}
    return [replace(plain.at(count), name=names[count], series=FEWER) for count in counts]


LONGEST = 80
"""Letters of a set-up's name, which is a folder's too."""


def output_alone(setups: Iterable[Setup]) -> list[Setup]:
    """For every plan's key steps a straight line through the UNet's output, with nothing of the UNet in it: the second
    thing to beat, as it says what a plan's features add, or its fit. What is such a line itself has none beside it, nor
    what leaves out no call."""
    lines: list[tuple[Setup, str, str]] = []
    same: list[tuple[Any, ...]] = []
    setups = list(setups)
    for setup in setups:
        if setup.cache is None:
            continue
        steps = resolve(setup.cache, setup.config).steps(setup.calls)
        adaptive = [rule.schedule for rule in setup.cache.rules if isinstance(rule.schedule, Stability | Threshold)]
        full = [call for call in range(steps.calls) if not steps.reused(call)]
        if len(full) == steps.calls and not adaptive:
            continue
        schedule: Any = adaptive[0] if adaptive else Explicit(mode="explicit", steps=[*full])
        line = CacheRule(nodes=OUT, schedule=schedule, extrapolate="linear")
        made = setup.with_cache("", CachePlan(rules=[line]), series=ALONE)
        name = f"{ALONE}, {schedule if adaptive else f'{len(full)} calls of {steps.calls}'}"
        if any(isinstance(spec, GuidanceScheduleSpec) for spec in setup.patches):
            name = f"{name}, guidance in an interval"[:LONGEST]
        lines.append((made, name, f"{name}, {setup.cache.rules[0].schedule}"[:LONGEST]))
        if [rule.model_copy(update={"schedule": schedule}).as_line for rule in setup.cache.rules] == [line]:
            same.append((made.patches, made.steps))
    found: dict[str, Setup] = {}
    taken = {setup.name for setup in setups}
    for made, name, longer in lines:
        if (key := (made.patches, made.steps)) not in same:
            same.append(key)
            names = chain([name, longer], (f"{longer} {number}" for number in count(2)))
            name = next(each for each in names if each not in found.keys() | taken)
            found[name] = replace(made, name=name)
    return list(found.values())


def converged(plain: Setup, steps: int | None) -> Setup | None:
    """Who draws the images near the solution that every sampler is after, if a recipe wants any: without plans."""
    if steps is None:
        return None
    patches = tuple(spec for spec in plain.patches if not isinstance(spec, FeatureCacheSpec))
    return replace(plain, name=CONVERGED, series=CONVERGED, steps=steps, sampler="dpm++2m", patches=patches)


def misfits(setups: Iterable[Setup]) -> list[str]:
    """A fault for each name that two have, as tables and folders go by it; for each that asks for steps or a sampler
    that its scheduler does not know; for patches that do not fit their UNets, or not together; for plans that do not
    fit the sampler's calls; and for the DeepCache package where it is told of other steps, among which it would look
    for a call's timestep."""
    setups = list(setups)
    names = [setup.name for setup in setups]
    twice = sorted({name for name in names if names.count(name) > 1})
    faults = [f"name {name!r} is taken by another way to draw; choose another" for name in twice]
    faults += [
        f"name {name!r} is what the report calls a reference; choose another" for name in names if name in REFERENCES
    ]
    for setup in setups:
        try:
            wrong = check_patches([patch_of(spec) for spec in setup.patches], setup.configs)
            wrong += [
                f"the DeepCache package is told of {spec.steps} steps, and there are {setup.steps}; give it as many"
                for spec in setup.patches
                if isinstance(spec, DeepCacheSpec) and spec.steps != setup.steps
            ]
            interval = any(isinstance(spec, GuidanceScheduleSpec) for spec in setup.patches)
            if setup.draws and interval and setup.rows == 1:
                more = ", or give more" if setup.guidance <= 1 else ""
                what = "has no calls without the prompt, which a guidance schedule could leave out"
                wrong.append(f"guidance {setup.guidance:g} {what}; leave it out{more}")
            if not setup.one_unet:
                what = "was fitted to all calls of a generation, and here UNets take turns"
                wrong += [
                    f"the plan of {spec.unet or 'these UNets'} {what}; give another one, or a model without"
                    for spec in setup.patches
                    if isinstance(spec, FeatureCacheSpec) and any(rule.fit for rule in spec.rules)
                ]
            if not wrong and setup.draws and setup.model is not None:
                trajectory = Trajectory.whole(setup.scheduler)
                if setup.cache is not None:
                    CacheState(resolve(setup.cache, setup.config), trajectory)
        except AsdmError as error:
            wrong = str(error).splitlines()
            if setup.series == FEWER and setup.cache is not None:
                wrong[-1] += "; fewer steps are those of what is named first: name a model without a plan"
        faults += [f"{setup.name}: {each}" for each in wrong]
    return list(dict.fromkeys(faults))


def common_size(asked: int | None, setups: Sequence[Setup]) -> int:
    """Pixels: the recipe's, or the UNet's latent size times the VAE's scale, which must be one for all."""
    if asked is not None:
        if asked % MAKER_STEP:
            better = asked // MAKER_STEP * MAKER_STEP + MAKER_STEP
            what = f"is no multiple of {MAKER_STEP}, which every pipeline asks for; try {better}"
            raise ModelError(f"size: {asked} {what}")
        return asked
    own = {setup.name: latent_size(setup.config)[0] * setup.surroundings[0] for setup in setups}
    if len(set(own.values())) > 1:
        each = ", ".join(f"{name}: {size}" for name, size in own.items())
        raise ModelError(f"size: these models draw at different sizes ({each}); give `size` in the recipe")
    return next(iter(own.values()))


def drawn_from(setups: Sequence[Setup], prompts: PromptList | None, size: int, instead: str = "") -> list[Setup]:
    """The same, those that draw with the picture that they are timed with. Raises ModelError with all that does not fit
    between what pipelines draw from and what is given; `instead` is what a verb can do without."""
    given = prompts.given if prompts else ()
    drawing = [setup for setup in setups if setup.draws]
    faults = [fault for setup in drawing for fault in _unlike_given(setup, given, size, instead)]
    for key in ("strength", "image_guidance"):
        asked = [setup for setup in drawing if key in setup.begun]
        if asked and not any(key in PIPELINES[setup.kind].takes for setup in asked):
            faults.append(f"{key}: a {asked[0].kind} takes none; leave it out")
    if faults:
        raise ModelError("\n".join(dict.fromkeys(faults)))
    return [replace(setup, given=given[0]) if given and setup.draws else setup for setup in setups]


def _unlike_given(setup: Setup, given: Sequence[Given], size: int, instead: str) -> Iterator[str]:
    kind = PIPELINES[setup.kind]
    masks = "mask" in kind.takes
    if not kind.given or not given:
        held = "captions and masks (NAME.png, NAME.txt, NAME.mask.png)" if masks else "captions (NAME.png, NAME.txt)"
        what, way = "a picture", f"name shards or a folder of pictures with {held}{instead}"
        if given:
            what, way = "prompts alone", "leave them out"
        if given or kind.given:
            yield f"inputs: {setup.name} is a {setup.kind}, which draws from {what}; {way}"
        return
    scale = setup.surroundings[0] if kind.enlarges else 1
    side = size // scale
    if odd := [each for each in given if each.size != (side, side)]:
        (width, height), *others = {each.size for each in given}
        fits = not others and width == height and not width * scale % MAKER_STEP
        way = f"give `size: {width * scale}`, or" if fits else "save them all so:"
        what = f"is {odd[0].size[0]} x {odd[0].size[1]} pixels{_more(odd)}, and {setup.name} draws from {side} x {side}"
        yield f"inputs: {odd[0].name}: {what}; {way} pictures of that size"
    if unmasked := [each for each in given if masks and not each.mask]:
        what = f"has no mask{_more(unmasked)}, and {setup.name} is a {setup.kind}"
        yield f"inputs: {unmasked[0].name}: {what}; put NAME.mask.png beside NAME.png, white where it shall paint"


def _more(those: Sequence[Given]) -> str:
    return f" (and {len(those) - 1} more)" if those[1:] else ""


def weight_bytes(setup: Setup, itemsize: int, device: torch.device) -> int:
    """Of everything that will be on the device: the pipeline where it draws, else the UNet."""
    counts = [sum(parameters(config).values()) for config in setup.configs.values()]
    schedule = schedule_of(setup.patches)
    waits = schedule is not None and schedule.offload and device.type != "cpu"
    held = max(counts) if waits else sum(counts)
    if setup.draws and setup.model is not None:
        others = {*setup.model.classes} & {*setup.model.components} - {UNET, "safety_checker"}
        for name in others:
            if (setup.model.component(name) / "config.json").is_file():  # a part with weights
                tensors = read_headers(setup.model.weights(name)).tensors
                held += sum(torch.Size(entry.shape).numel() for entry in tensors.values())
    return held * itemsize


def check_memory(setups: Iterable[Setup], device: torch.device, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of each body's weights. Raises ModelError where they do not fit beside each other on the CPU, or one
    alone on a GPU: there those that wait are moved away."""
    weights: dict[Any, tuple[str, int]] = {}
    for setup in setups:
        here = setup.name, weight_bytes(setup, dtype.itemsize, device)
        weights[setup.body] = max(weights.get(setup.body, here), here, key=lambda each: each[1])
    sizes = dict(weights.values())
    needed = max(sizes.values()) if device.type == "cuda" else sum(sizes.values())
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        each = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in sizes.items())
        raise ModelError(
            f"the weights of all these take {needed / 1e9:.2f} GB ({each}) and {free / 1e9:.2f} GB are free on "
            f"{device}: use a smaller dtype, or several runs with the first one in each"
        )
    return sizes


# In memory ------------------------------------------------------------------------------------------------------------


class Session:
    """Where set-ups draw. On a GPU that does not hold all of them, models that wait live in the CPU's memory; moving
    them is never timed."""

    def __init__(self, device: torch.device, dtype: torch.dtype, setups: Sequence[Setup] = ()):
        self.device, self.dtype = device, dtype
        sizes = check_memory(setups, device, dtype) if setups else {}
        several = device.type == "cuda" and len(sizes) > 1  # one alone waits for nobody
        self.crowded = several and sum(sizes.values()) > 0.8 * torch.cuda.mem_get_info(device)[0]
        self._home = CPU if self.crowded else device
        self._pipelines: dict[tuple[Any, ...], Any] = {}
        self._unets: dict[tuple[Any, ...], Any] = {}

    @contextmanager
    def stage(self, setup: Setup) -> Iterator[tuple[Any, Callable[[], Stats]]]:
        """The pipeline, which draws as the set-up does, and what tells of its last drawing; afterwards it is what it
        was."""
        assert setup.model is not None, "only set-ups with a pipeline draw"
        with blame(setup.name, "loading the weights"):
            pipe = self.pipeline(setup.model)
            unet = self.made(setup) if setup.make is not None else pipe.unet
        own = pipe.scheduler, pipe.unet
        with ExitStack() as stack:
            try:
                pipe.unet = unet
                for network in networks(pipe).values():
                    stack.enter_context(self.present(network))
                set_sampler(pipe, setup.sampler)
                turn = partial(self.turn, setup, stack)
                with applied(pipe, [patch_of(spec) for spec in setup.patches], turn) as stats:
                    yield pipe, stats
            finally:
                pipe.scheduler, pipe.unet = own

    def pipeline(self, model: ModelDirectory) -> Any:
        """Without what it carries: a set-up says itself what is in force."""
        if (key := (model.path, model.adapters)) not in self._pipelines:
            self._pipelines[key] = load_pipeline(model, self._home, self.dtype, with_patches=False)
        return self._pipelines[key]

    def unet(self, model: ModelDirectory, device: torch.device | None = None) -> UNet2DConditionModel:
        """That of a pipeline that is loaded, or read alone."""
        if (key := (model.path, model.adapters)) in self._pipelines:
            return self._pipelines[key].unet
        if key not in self._unets:
            self._unets[key] = load_unet(model, device or self._home, self.dtype)
        return self._unets[key]

    def made(self, setup: Setup) -> UNet2DConditionModel:
        """The UNet that is put together from others, whose tensors it shares."""
        key = (*setup.body, setup.name)
        if key not in self._unets:
            assert setup.make is not None, "others have one of their own"
            self._unets[key] = setup.make(self.unet)
        return self._unets[key]

    def turn(self, setup: Setup, stack: ExitStack, name: str) -> UNet2DConditionModel:
        """One of the UNets that take turns beside the first: of another model, or of this one's `unets/`. Where it is
        not its turn's business to move it, it is here until the stack is closed."""
        assert setup.model is not None, "only set-ups with a pipeline switch"
        schedule, inside = schedule_of(setup.patches), unet_components(setup.patches)[name]
        waits = schedule is not None and schedule.offload
        model = setup.unets[name] if name in setup.unets else member(setup.model, name, inside)
        unet = self.unet(model, CPU if waits else None)
        return unet if waits else stack.enter_context(self.present(unet))

    @contextmanager
    def present(self, network: Network) -> Iterator[Network]:
        """Where it works, whoever sent it away; where not all have room, only until this is left."""
        if self.device.type != "cpu":
            network.to(self.device)
        try:
            yield network
        finally:
            if self.crowded:
                network.to(CPU)

    def bare(self, setup: Setup) -> UNet2DConditionModel:
        """The UNet alone, without patches, maybe not `present`; those of one body share every tensor, in modules for
        hooks of their own."""
        with blame(setup.name, "loading the weights" if setup.model else "making random weights"):
            if setup.make is not None:
                return self.made(setup)
            if setup.model is not None:
                return self.unet(setup.model)
            if setup.body not in self._unets:
                self._unets[setup.body] = random_unet(setup.config, self._home, self.dtype)
            return self._unets[setup.body]


def twin(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Modules of its own, for hooks of its own, around the same tensors."""
    shared = {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())}
    return copy.deepcopy(unet, shared)


def networks(pipe: Any) -> dict[str, torch.nn.Module]:
    """Every network of a pipeline, by its own names."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def image_call(pipe: Any, setup: Setup, size: int | None, images: int = 1) -> Any:
    """Text, and the picture to draw from, to pixels of one seed, as a user would call the pipeline."""
    given = [setup.given] * images if setup.given else []

    def call() -> None:
        pipe(
            **arguments(pipe, [PROMPT] * images, setup.sampling(size), given),
            generator=torch.Generator("cpu").manual_seed(0),
            output_type="np",
        )

    return call
