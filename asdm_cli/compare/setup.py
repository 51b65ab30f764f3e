"""A set-up: a model, what is in force on it, and how it draws. What a comparison compares, before its weights are
read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
import torch

from asdm_cli.errors import AsdmError, ModelError
from asdm_cli.models.directory import UNET, ModelDirectory, check_drawing, check_parts
from asdm_cli.models.load import PIPELINES
from asdm_cli.models.metadata import Origin, checked_patches, history, schedule_of, stamps, unet_components
from asdm_cli.models.schedulers import SCHEDULER, planned_scheduler
from asdm_cli.patches.base import Layer, check_patches, patch_of
from asdm_cli.recipe.patches import CachePlan, FeatureCacheSpec, PatchSpec, Switching, UNetScheduleSpec
from asdm_cli.unet.blocks import Config
from asdm_cli.unet.flops import latent_size, parameters
from asdm_cli.unet.weights import read_headers

PLAIN, FEWER, DEEPCACHE, CONVERGED = "plain", "fewer steps", "DeepCache", "converged"
"""Series, whose points a plot joins by a line."""
SD_FACTOR, SD_TOKENS = 8, 77
"""Pixels per latent, and text tokens, in every Stable Diffusion so far; what a UNet without its pipeline is taken to
have."""
MAKER_STEP = 8
"""diffusers' pipelines draw only multiples of this many pixels, whatever the VAE's factor."""
SHARES = (0.8, 0.65, 0.5, 0.35, 0.2)
"""Of the steps, at which the plain model draws too where a recipe names no `fewer_steps`."""


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
    series: str = ""
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
    def parameters(self) -> dict[str, int]:
        """Of the UNet, by block; of several, by name."""
        configs = self.configs
        if len(configs) == 1:
            return parameters(next(iter(configs.values())))
        return {name: sum(parameters(config).values()) for name, config in configs.items()}

    @property
    def one_unet(self) -> bool:
        return schedule_of(self.patches) is None

    @property
    def sees_all(self) -> bool:
        """Whether its UNet gets every call of a generation, and whole."""
        return all(patch_of(spec).layer >= Layer.CACHE for spec in self.patches)

    @property
    def cache(self) -> FeatureCacheSpec | None:
        """Of the one UNet."""
        found = [spec for spec in self.patches if isinstance(spec, FeatureCacheSpec)]
        return found[0] if found and self.one_unet else None

    @property
    def body(self) -> tuple[Any, ...]:
        """Equal where UNet calls without patches are the same: they are measured, and in memory, only once."""
        return (
            ("random", str(sorted(self.config.items()))) if self.model is None else (self.model.path, str(self.made_of))
        )

    @property
    def surroundings(self) -> tuple[int, int]:
        """Pixels per latent, and text tokens, of the pipeline around the UNet; those of SD where there is none."""
        if self.model is None or not self.model.is_pipeline:
            return SD_FACTOR, SD_TOKENS
        return pixels_per_latent(self.model), self.model.tokens

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
        return len(planned_scheduler(self.model, self.sampler, self.steps).timesteps)

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says of it."""
        told = [line for spec in self.patches for line in spec.told()]
        found = {"model": self.source, "steps": self.steps, "guidance": self.guidance, "sampler": self.sampler}
        made = [step["verb"] for step in history(self.model)] if self.model else []
        beside = {"patches": told, "made": made}
        return {**found, "series": self.series or self.name, **{key: each for key, each in beside.items() if each}}

    def origin(self) -> Origin:
        """All that its images depend on besides prompts, seeds, size and machine."""
        files = {"": stamps(self.model)} if self.model else {}
        return {
            "sampler": self.sampler,
            "steps": self.steps,
            "guidance": self.guidance,
            "patches": [spec.written() for spec in self.patches],
            "files": {**files, **{name: stamps(directory) for name, directory in self.unets.items()}},
            "made_of": self.made_of,
        }

    def with_cache(self, name: str, plan: CachePlan, **changes: Any) -> Setup:
        """The same with a plan on every UNet, in the place of those that each had of its own."""
        kept = tuple(spec for spec in self.patches if not isinstance(spec, FeatureCacheSpec))
        return replace(self, name=name, patches=(*kept, cache_spec(plan)), **changes)

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
    if not model.is_pipeline or model.index["_class_name"] not in PIPELINES:
        kinds = " or ".join(PIPELINES)
        raise ModelError(f"{model.path}: must be a whole {kinds} to draw pictures; give the directory around it")
    specs = checked_patches(model)
    check_drawing(model)
    check_parts(model)
    patches = specs if carried else tuple(spec for spec in specs if not isinstance(spec, FeatureCacheSpec))
    return Setup(name, model, model.config(UNET), patches, source=model.source, **settings)


def fewer_steps(plain: Setup, counts: Sequence[int] | None) -> list[Setup]:
    """The same at fewer steps: the first thing to beat."""
    if counts is None:
        wanted = {max(1, round(share * plain.steps)) for share in SHARES} - {plain.steps}
        counts = sorted(wanted, reverse=True)
    names = {count: "1 step" if count == 1 else f"{count} steps" for count in counts}
    return [replace(plain, name=names[count], steps=count, series=FEWER) for count in counts]


def converged(plain: Setup, steps: int | None) -> Setup | None:
    """Who draws the images near the solution that every sampler is after, if a recipe wants any."""
    if steps is None:
        return None
    return replace(plain, name=CONVERGED, series=CONVERGED, steps=steps, sampler="dpm++2m")


def misfits(setups: Iterable[Setup]) -> list[str]:
    """A fault for each name that two have, as tables and folders go by it; for each that asks for steps or a sampler
    that its scheduler does not know; and for patches that do not fit their UNets, or not together."""
    setups = list(setups)
    names = [setup.name for setup in setups]
    twice = sorted({name for name in names if names.count(name) > 1})
    faults = [f"name {name!r} is taken by another way to draw; choose another" for name in twice]
    for setup in setups:
        try:
            if setup.draws and setup.model is not None:
                planned_scheduler(setup.model, setup.sampler, setup.steps)
            wrong = check_patches([patch_of(spec) for spec in setup.patches], setup.configs)
        except AsdmError as error:
            wrong = str(error).splitlines()
        faults += [f"{setup.name}: {each}" for each in wrong]
    return list(dict.fromkeys(faults))


def pixels_per_latent(model: ModelDirectory) -> int:
    if "vae" not in model.components:
        return SD_FACTOR
    return int(2 ** (len(model.config("vae").get("block_out_channels", ())) - 1))


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


def weight_bytes(setup: Setup, itemsize: int, device: torch.device) -> int:
    """Of everything that will be on the device: the pipeline where it draws, else the UNet."""
    counts = setup.parameters.values()
    schedule = schedule_of(setup.patches)
    waits = schedule is not None and schedule.offload and device.type != "cpu"
    held = max(counts) if waits else sum(counts)
    if setup.draws and setup.model is not None:
        others = [name for name in setup.model.classes if name not in (UNET, "safety_checker")]
        held += sum(_elements(setup.model, name) for name in others if name in setup.model.components)
    return held * itemsize


def _elements(model: ModelDirectory, component: str) -> int:
    if not (model.component(component) / "config.json").is_file():
        return 0
    return sum(torch.Size(entry.shape).numel() for entry in read_headers(model.weights(component)).tensors.values())


def check_memory(setups: Iterable[Setup], device: torch.device, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of each body's weights. Raises ModelError where they do not fit beside each other on the CPU, or one
    alone on a GPU: there those that wait are moved away."""
    weights: dict[Any, tuple[str, int]] = {}
    for setup in setups:
        weights.setdefault(setup.body, (setup.name, weight_bytes(setup, dtype.itemsize, device)))
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
