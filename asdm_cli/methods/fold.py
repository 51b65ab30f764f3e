"""Folding: a model with experts becomes a plain one, each router frozen at constant weights."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL.Image import Image
from torch import Tensor

from asdm_cli.errors import ModelError
from asdm_cli.experts.layer import ExpertConv2d
from asdm_cli.experts.mixing import one_kernel
from asdm_cli.experts.router import ROUTINGS
from asdm_cli.measure.cards import Card, versions
from asdm_cli.measure.metrics import PSNR_CEILING
from asdm_cli.measure.paired import compare, comparison
from asdm_cli.measure.pictures import PictureSet
from asdm_cli.measure.prompts import PromptList, read_prompts
from asdm_cli.measure.routing import Routing, observe
from asdm_cli.measure.routing_report import routing_parts
from asdm_cli.models.checked import check_unet
from asdm_cli.models.experts import write_changed
from asdm_cli.models.load import PIPELINES, device_and_dtype, load_pipeline, load_unet
from asdm_cli.models.parts import check_parts
from asdm_cli.models.provenance import record
from asdm_cli.models.schedulers import planned_scheduler, set_sampler
from asdm_cli.models.source import ModelDirectory
from asdm_cli.models.write import assemble_directory, carried_size, takes
from asdm_cli.recipe.verbs import CondConvRecipe, Fold
from asdm_cli.report.document import Cell, Column, Grid, Interval, Part, Report, Table
from asdm_cli.report.run_directory import Run
from asdm_cli.unet.checkpoint import Checkpoint, open_checkpoint, require
from asdm_cli.unet.cost import parameters, shapes
from asdm_cli.unet.expert_config import specs, with_specs
from asdm_cli.unet.expert_unet import expert_layers

CARD = "pictures"
BEFORE, AFTER = "with experts", "folded"
Routings = dict[str, Tensor]
"""Convolution -> constant weights [experts]."""


@dataclass(frozen=True)
class Plan:
    recipe: CondConvRecipe
    wanted: Fold
    source: ModelDirectory
    checkpoint: Checkpoint
    prompts: PromptList | None
    """None where nothing needs to be drawn."""

    def report(self) -> Report:
        return Report("condconv-expand", f"Folding {self.source.name}", _summary(self), [])


def plan(recipe: CondConvRecipe, wanted: Fold, source: ModelDirectory) -> Plan:
    """Raises ModelError where there is nothing to fold, or where constant routing is asked for and is not there."""
    if not specs(source.config("unet")):
        raise ModelError(f"model: {source.path}: has no expert convolutions; there is nothing to fold")
    checkpoint = check_unet(source)
    if wanted.routing == "constant":
        _constant(source)
        return Plan(recipe, wanted, source, checkpoint, None)
    if not source.is_pipeline or source.index["_class_name"] not in PIPELINES:
        kinds = " or ".join(PIPELINES)
        raise ModelError(f"model: {source.path}: mean routing is seen while drawing, which takes a whole {kinds}")
    check_parts(source)
    planned_scheduler(source, wanted.sampler, wanted.steps)  # which must know as many
    return Plan(recipe, wanted, source, checkpoint, read_prompts(wanted.prompts, wanted.limit))


def run(plan: Plan, run: Run) -> Report:
    """Write the plain model, and where the routing was not constant find out what that costs."""
    if plan.prompts is None:
        _write(plan, _constant(plan.source), run)
        return plan.report()
    pipe = _pipeline(plan)
    routing, before = observe(pipe, plan.prompts.prompts, *_style(plan))
    routings = {name: routing.mean(name) for name in routing.weights}
    _write(plan, routings, run)
    _freeze(pipe, routings)
    _, after = observe(pipe, plan.prompts.prompts, *_style(plan))
    return _measured(plan, run.path, routing, {BEFORE: before, AFTER: after})


def _constant(source: ModelDirectory) -> Routings:
    """Of routers that look at nothing: their weights are all zero. ModelError names those that are not."""
    unet = load_unet(source, torch.device("cpu"), torch.float32)
    layers = expert_layers(unet)
    looking = [name for name, layer in layers.items() if _looks(layer)]
    if looking:
        raise ModelError(
            f"fold.routing: {len(looking)} of {len(layers)} routers choose by what they see ({looking[0]}, ...); "
            "freeze them with `routing: mean`"
        )
    return {name: _at_rest(layer) for name, layer in layers.items()}


def _looks(layer: ExpertConv2d) -> bool:
    parts = (layer.router.features, layer.router.time)
    return any(bool(part.weight.any()) for part in parts if part is not None)


def _at_rest(layer: ExpertConv2d) -> Tensor:
    return ROUTINGS[layer.spec.weights](layer.router.bias.detach()[None])[0]


def _pipeline(plan: Plan) -> DiffusionPipeline:
    pipe = load_pipeline(plan.source, *device_and_dtype(plan.recipe.device, plan.recipe.dtype), with_plan=False)
    set_sampler(pipe, plan.wanted.sampler)
    return pipe


def _style(plan: Plan) -> tuple[int, float, None, int]:
    return plan.wanted.steps, plan.wanted.guidance, None, plan.wanted.seed


def _kernels(layer: ExpertConv2d, weights: Tensor) -> tuple[Tensor, Tensor | None]:
    with torch.no_grad():
        return one_kernel(weights[None], layer.weight, layer.bias, layer.anchored)


@torch.no_grad()
def _write(plan: Plan, routings: Routings, run: Run) -> None:
    """The rest of the UNet is copied as it lies on disk."""
    target = run.path / "model"
    shutil.rmtree(target, ignore_errors=True)
    source = plan.source
    unet = load_unet(source, torch.device("cpu"), torch.float32)
    own, changed = plan.checkpoint.tensors, {}
    formats = {"F16": torch.float16, "BF16": torch.bfloat16}
    for name, layer in expert_layers(unet).items():
        for part, tensor in zip(("weight", "bias"), _kernels(layer, routings[name]), strict=True):
            if tensor is not None:
                key = f"{name}.{part}"
                changed[key] = tensor.to(formats.get(own[key].dtype, torch.float32))
    gone = tuple(f"{name}.router." for name in routings)
    kept = {key: entry for key, entry in own.items() if key not in changed and not key.startswith(gone)}
    assemble_directory(source, target, {"unet"}, run.link)
    config = with_specs(source.config("unet"), {})
    folder = target / "unet" if source.is_pipeline else target
    write_changed(config, kept, changed, folder)
    require(open_checkpoint(folder), shapes(config), folder)
    record(source, target, "condconv-expand", fold=plan.wanted.routing, convolutions=len(routings))


def _freeze(pipe: Any, routings: Routings) -> None:
    """In memory, what `_write` does on disk: routers look at nothing and give these weights."""
    for name, layer in expert_layers(pipe.unet).items():
        layer.router.register_forward_hook(_instead(routings[name]))
        layer.kept.clear()


def _instead(weights: Tensor) -> Any:
    return lambda _module, _inputs, given: weights.to(given).expand_as(given)


def _measured(plan: Plan, folder: Path, routing: Routing, drawn: dict[str, list[Image]]) -> Report:
    sets = {name: PictureSet(folder / "pictures" / name, len(pictures)) for name, pictures in drawn.items()}
    for name, pictures in drawn.items():
        for index, picture in enumerate(pictures):
            sets[name].save(index, picture)
    each = compare(comparison("psnr", torch.device("cpu")), sets[AFTER], sets[BEFORE], torch.device("cpu"))
    rows: list[dict[str, Cell | Interval]] = [
        {"figure": "mean", "psnr_db": float(each.mean())},
        {"figure": "worst picture", "psnr_db": float(each.min())},
        {"figure": "best picture", "psnr_db": float(each.max())},
    ]
    heads = [Column("figure", ""), Column("psnr_db", "PSNR to the pictures with experts, dB", "higher", 1)]
    note = f"{len(each)} pictures; equal ones count as {PSNR_CEILING:g} dB."
    rows_of_grid = list(routing.prompts[:8])
    cells: list[list[Path | None]] = [
        [each.path(index) for each in sets.values()] for index in range(len(rows_of_grid))
    ]
    parts: list[Part] = [Table("What folding costs", heads, rows, note, CARD)]
    parts += routing_parts(routing, plan.source.name, CARD)
    parts.append(Grid("The same prompts and seeds", list(sets), rows_of_grid, cells))
    said = f"{_summary(plan)} PSNR to the pictures with experts: {float(each.mean()):.1f} dB."
    return Report("condconv-expand", f"Folded: {plan.source.name}", said, parts, {CARD: _card(plan)})


def _summary(plan: Plan) -> str:
    config = plan.source.config("unet")
    before, after = (sum(parameters(each).values()) / 1e6 for each in (config, with_specs(config, {})))
    how = {"constant": "Their routing is constant: nothing changes.", "mean": "Each router is frozen at its mean."}
    said = f"{len(specs(config))} convolutions become plain: {before:.2f} M → {after:.2f} M parameters."
    size = takes(round(plan.checkpoint.size * after / before), carried_size(plan.source, {"unet"}))
    return f"{said} {how[plan.wanted.routing]} {size}"


def _card(plan: Plan) -> Card:
    assert plan.prompts, "there are pictures"
    wanted = plan.wanted
    return {
        "model": plan.source.name,
        "prompts": plan.prompts.title,
        "pictures": len(plan.prompts.prompts),
        "sampler": wanted.sampler,
        "steps": wanted.steps,
        "guidance": wanted.guidance,
        "seed": wanted.seed,
        "versions": versions(),
    }
