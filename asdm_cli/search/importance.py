"""What a UNet loses with each of its units: the error of its output, or of its features, on noisy latents that the
model itself made while it drew; and the set of units that saves enough at the least error.

As LAPTOP-Diff (arXiv 2404.11098) has it, errors of units measured alone add up well enough for a knapsack to choose by.
Here the chosen set is then measured whole, and beside it every set that does without one of its units, until none is
better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from statistics import median
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from asdm_cli.compare.setup import Session, Setup, twin
from asdm_cli.console import track
from asdm_cli.errors import ModelError, RunError, blame
from asdm_cli.profiling.latency import clocked
from asdm_cli.sampling.generate import SamplingSettings, latents
from asdm_cli.sampling.prompts import Given
from asdm_cli.training.distillation import FeatureRecorder
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import Config
from asdm_cli.unet.feature_pairs import BRANCH_END, feature_pairs
from asdm_cli.unet.flops import meta_unet, module_macs
from asdm_cli.unet.removals import NOTHING, Removals, Unit, modules, split
from asdm_cli.unet.shapes import tensor_shapes
from asdm_cli.unet.surgery import Surgery

BLOCKS = ("down.?", "up.?")
"""Whose outputs are compared by `feature`."""
PASSES = 7
"""Calls that modules are timed in."""
ROUNDS = 3
"""Times that the chosen set may give way to a neighbour."""

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a UNet call."""


@dataclass(frozen=True)
class Latents:
    """UNet calls of drawings, what the whole UNet answers, and by `feature` what its blocks do."""

    calls: list[Call]
    outputs: list[Tensor]
    features: list[dict[str, Tensor]]


def listen(  # noqa: PLR0913 - who draws, how, and what is kept of it
    session: Session,
    setup: Setup,
    prompts: Sequence[str],
    settings: SamplingSettings,
    calls: int,
    given: Sequence[Given] = (),
    features: bool = False,
    first: int = 0,
) -> Latents:
    """So many calls of each prompt's drawing, evenly from the first to the last. Prompt i has the seed of prompt
    `first` + i of any other drawing."""
    found: list[Call] = []
    planned = setup.calls
    wanted = {round(place * (planned - 1) / max(calls - 1, 1)) for place in range(calls)}
    with session.stage(setup) as (pipe, _), blame(setup.name, "making noisy latents"):
        unet = pipe.unet
        for index, prompt in enumerate(track(prompts, "making noisy latents", len(prompts))):
            heard: list[Call] = []
            handle = unet.register_forward_pre_hook(
                lambda _, args, named, heard=heard: heard.append((args, dict(named))), with_kwargs=True
            )
            try:
                latents(pipe, prompt, settings, first + index, given[index : index + 1])
            finally:
                handle.remove()
            found += [call for number, call in enumerate(heard) if number in wanted]
        recorder = _recorder(unet, dict(unet.config)) if features else None
        outputs, kept = [], []
        for call in found:
            output, seen = _answer(unet, call, recorder)
            outputs.append(output)
            kept.append(seen)
    return Latents(found, outputs, kept)


def _recorder(unet: UNet2DConditionModel, config: Config) -> FeatureRecorder:
    """All that `feature_pairs` may compare blocks by: one that loses its resampler is compared by what lies before."""
    names = [node.modules[0] for node in Anatomy.of(config).nodes if node.kind == "block" and node.address != "mid"]
    held = set(dict(unet.named_modules()))
    for block in tuple(names):
        last = len(unet.get_submodule(f"{block}.resnets")) - 1
        inside = [f"attentions.{last}", f"attentions.{last}.{BRANCH_END}", f"resnets.{last}"]
        names += [name for name in (f"{block}.{each}" for each in inside) if name in held]
    return FeatureRecorder(unet, names)


@torch.no_grad()
def _answer(unet: Any, call: Call, recorder: FeatureRecorder | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    args, named = call
    if recorder is None:
        return unet(*args, **{**named, "return_dict": False})[0], {}
    with recorder.recorded() as seen:
        return unet(*args, **{**named, "return_dict": False})[0], seen


def error(unet: UNet2DConditionModel, config: Config, latents: Latents, whole: Config | None = None) -> float:
    """Mean over calls of the squared error of a UNet's output over the square of the whole UNet's; with `whole`, that
    one's config, the same of its blocks' outputs, their mean."""
    if whole is None:
        found = [
            _relative(_answer(unet, call)[0], output)
            for call, output in zip(latents.calls, latents.outputs, strict=True)
        ]
    else:
        pairs = [
            pair
            for each in feature_pairs(Anatomy.of(config), Anatomy.of(whole), BLOCKS)
            for pair in zip(each.student_modules, each.teacher_modules, strict=True)
        ]
        recorder = FeatureRecorder(unet, [ours for ours, _ in pairs])
        found = []
        for call, seen in zip(latents.calls, latents.features, strict=True):
            mine = _answer(unet, call, recorder)[1]
            found.append(sum(_relative(mine[ours], seen[theirs]) for ours, theirs in pairs) / len(pairs))
    return sum(found) / len(found)


def _relative(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.float(), theirs.float()
    return float((ours - theirs).square().mean() / theirs.square().mean())


@dataclass(frozen=True)
class Left:
    """What is left of a UNet without something: its config, and what builds it of the whole one, around the same
    tensors."""

    name: str
    config: Config
    build: Callable[[UNet2DConditionModel], UNet2DConditionModel]

    @classmethod
    def of(cls, name: str, surgery: Surgery) -> Left:
        return cls(name, surgery.config, partial(built, surgery=surgery))

    @classmethod
    def without(cls, removals: Removals, units: Sequence[Unit]) -> Left:
        """A single block of a depth goes also where a config could not say so. Raises ModelError."""
        name = f"without {removals.name(units)}"
        if len(units) == 1 and units[0] not in removals.alone:
            return cls(name, removals.config, partial(_without_block, removals=removals, unit=units[0]))
        return cls.of(name, removals.surgery(units))


def built(unet: UNet2DConditionModel, surgery: Surgery) -> UNet2DConditionModel:
    state = unet.state_dict()
    made = meta_unet(surgery.config)
    made.load_state_dict({new: state[old] for new, old in surgery.key_map(state).items()}, assign=True)
    return made.eval()


def _without_block(unet: UNet2DConditionModel, removals: Removals, unit: Unit) -> UNet2DConditionModel:
    made = twin(unet)
    (module,) = removals.anatomy.node(unit[0]).modules
    inner, _, number = module.rpartition(".")
    del made.get_submodule(inner)[int(number)]
    return made


Errs = Callable[[Sequence[Unit]], float]


def measure(removals: Removals, errs: Errs) -> dict[Unit, float]:
    """Of every unit alone. Raises RunError for what is no number."""
    found = {}
    for unit in track(removals.units, "measuring every unit alone", len(removals.units)):
        found[unit] = errs([unit])
        if not found[unit] < float("inf"):
            raise RunError(f"without {removals.name([unit])} the UNet answers what is no number; try `dtype: float32`")
    return found


# what units cost ------------------------------------------------------------------------------------------------------


def paper_costs(
    removals: Removals, kind: str, size: tuple[int, int] | None, tokens: int
) -> dict[Unit, dict[str, float]]:
    """By dropped levels: module (of the whole UNet) -> parameters, multiply-accumulates or layers of it in what is then
    left, '' for all that stands in no block."""
    found = {}
    for drop in removals.drops:
        surgery = removals.surgery([drop] if drop else [])
        names = surgery.sources
        own = _paper(surgery.config, kind, size, tokens)
        found[drop] = {names.get(module, module): cost for module, cost in own.items()}
    return found


def _paper(config: Config, kind: str, size: tuple[int, int] | None, tokens: int) -> dict[str, float]:
    anatomy = Anatomy.of(config)
    wanted = modules(anatomy)
    if kind == "layers":
        return {module: 1.0 for module in wanted if ".resnets." in module}
    if kind == "macs":
        counted = module_macs(config, size=size, tokens=tokens)
        costs, total = {module: float(counted.get(module, 0)) for module in wanted}, float(counted[""])
    else:
        sizes = {name: torch.Size(shape).numel() for name, shape in tensor_shapes(config).items()}
        costs = {
            module: float(sum(n for name, n in sizes.items() if name.startswith(f"{module}."))) for module in wanted
        }
        total = float(sum(sizes.values()))
    costs = split(costs)
    return {**costs, "": total - sum(costs.values())}


def time_costs(
    removals: Removals, unet: UNet2DConditionModel, call: Call, device: torch.device
) -> dict[Unit, dict[str, float]]:
    """The same in seconds, measured. Without some levels, what is left is taken to cost as much as with them, but for
    the mid block, which then works at another resolution and is built and timed."""
    found = {}
    for drop in removals.drops:
        surgery = removals.surgery([drop] if drop else [])
        own = built(unet, surgery) if drop else unet
        names = modules(Anatomy.of(surgery.config))
        seconds: dict[str, list[float]] = {}
        with clocked({"": own, **{name: own.get_submodule(name) for name in names}}, device) as taken:
            for _ in range(PASSES):
                _answer(own, call)
            seconds = taken()
        costs = {name: median(each[1:]) for name, each in seconds.items()}
        whole = costs.pop("")
        costs = {name: max(cost, 0.0) for name, cost in split(costs).items()}
        found[drop] = {surgery.sources.get(name, name): cost for name, cost in costs.items()}
        found[drop][""] = max(whole - sum(costs.values()), 0.0)
    return found


# choosing -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """A set of units: what its errors alone add up to, and what it really errs; `tried` sets were measured for it."""

    units: list[Unit]
    predicted: float
    error: float
    tried: int


def least_left(removals: Removals, costs: Mapping[Unit, Mapping[str, float]]) -> tuple[float, float]:
    """What remains where all goes that can, and what there is."""
    nothing = dict.fromkeys(removals.units, 0.0)
    least = min(
        sum(costs[drop].values()) - point.saved
        for drop in removals.drops
        for point in removals.front(drop, nothing, costs[drop])[:1]
    )
    return least, sum(costs[NOTHING].values())


def choose(
    removals: Removals, errors: Mapping[Unit, float], costs: Mapping[Unit, Mapping[str, float]], most: float, errs: Errs
) -> Chosen:
    """The knapsack's set, or the best of its neighbours, each of which does without one unit of the set. Raises
    ModelError where nothing costs so little."""
    starts = [units for _, units in removals.best(errors, costs, most)]
    if not starts:
        least, whole = least_left(removals, costs)
        share = ceil(1000 * least / whole) / 1000
        raise ModelError(f"remove.budget: the least that a stock config can leave is {share:.3f} of it; raise it")
    measured: dict[tuple[Unit, ...], float] = {}

    def real(units: list[Unit]) -> float:
        key = tuple(sorted(units))
        if key not in measured:
            try:
                measured[key] = errs(units)
            except ModelError:  # choices at several levels that no config says together
                measured[key] = float("inf")
        return measured[key]

    best = min(starts, key=real)
    for _ in range(ROUNDS):
        others = []
        for unit in best:
            rest = {each: error for each, error in errors.items() if each != unit}
            others += [units for _, units in removals.best(rest, costs, most)[:1]]
        nearer = min(track(others, "measuring what does without one of them", len(others)), key=real, default=best)
        if real(nearer) >= real(best):
            break
        best = nearer
    if real(best) == float("inf"):
        raise ModelError("remove.budget: what was chosen is no stock UNet; name addresses instead")
    return Chosen(best, sum(errors[unit] for unit in best), real(best), len(measured))
