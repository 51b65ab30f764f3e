"""`asdm condconv-expand`: convolutions become banks of experts, or plain ones again, each the mean of its experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from asdm_cli.compare.run import QUALITY, SAMPLES
from asdm_cli.compare.setup import common_size, drawing, drawn_from, misfits
from asdm_cli.errors import ModelError
from asdm_cli.experts.convert import Expansion, expand, first_experts, folded
from asdm_cli.metrics.distances import compare
from asdm_cli.models.directory import ModelDirectory, check_unet, find
from asdm_cli.models.load import device_and_dtype, load_pipeline
from asdm_cli.models.metadata import one_unet, record
from asdm_cli.models.schedulers import SCHEDULER, own_scheduler, set_sampler
from asdm_cli.models.write import assemble_directory
from asdm_cli.patches.noise import alphas_cumprod
from asdm_cli.profiling.latency import versions
from asdm_cli.recipe.verbs import CondConvRecipe, Expand, Fold
from asdm_cli.records import Images, Record, Report, under
from asdm_cli.report.run_directory import Run
from asdm_cli.sampling.generate import SamplingSettings, draw
from asdm_cli.sampling.image_set import ImageSet
from asdm_cli.sampling.prompts import PromptList, read_prompts
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import TIMESTEPS, Config, Spec, specs, with_experts
from asdm_cli.unet.flops import parameters
from asdm_cli.unet.shapes import tensor_shapes
from asdm_cli.unet.weights import Checkpoint, Entry, open_checkpoint, require, write_shards
from asdm_cli.verbs.change import change

RESUMABLE = False
VERB = "condconv-expand"
ROWS = 2
"""Of a UNet call with guidance."""
BEFORE, AFTER = "with experts", "folded"
EQUAL = "their experts are equal: nothing changes"
MEAN = "each is the mean of its experts"
UNSEEN = f"{MEAN}; what that costs is not seen, because a bare UNet draws nothing"


@dataclass(frozen=True)
class ExpandPlan:
    """An expansion that will fit: configs and weights of the model have been read."""

    source: ModelDirectory
    donor: ModelDirectory | None
    expansion: Expansion
    checkpoint: Checkpoint

    def report(self) -> Report:
        spec, own, config = self.expansion.spec, self.checkpoint.tensors, self.source.config("unet")
        anatomy, made = Anatomy.of(config), {}
        for name in self.expansion.convolutions:
            address = f"{anatomy.address_of_key(f'{name}.weight')} {name.rpartition('.')[2]}"
            made[address] = f"{spec.experts} of {' × '.join(map(str, own[f'{name}.weight'].shape))}"
        written = _grown(self.checkpoint, config, self.expansion.config)
        stretch = f"{spec.experts} experts each, for {spec.timesteps / spec.experts:g} timesteps each"
        made = {"convolutions": f"{len(made)}, of {stretch}", **made}
        return change(VERB, self.source, (config, self.expansion.config), written, made, batch=ROWS)

    def run(self, run: Run) -> Report:
        changed = first_experts(self.expansion, self.checkpoint.tensors)
        asked = {"donor": self.donor.name if self.donor else None, "convolutions": len(self.expansion.convolutions)}
        asked |= {"experts": self.expansion.spec.experts}
        _write(self.source, run, self.expansion.config, self.checkpoint.tensors, changed, asked)
        return self.report()


@dataclass(frozen=True)
class FoldPlan:
    """`prompts` is None for a bare UNet, which draws nothing."""

    recipe: CondConvRecipe
    wanted: Fold
    source: ModelDirectory
    checkpoint: Checkpoint
    prompts: PromptList | None

    @cached_property
    def config(self) -> Config:
        """The plain UNet's."""
        return with_experts(self.source.config("unet"), {})

    def report(self, equal: bool = False) -> Report:
        before = self.source.config("unet")
        how = EQUAL if equal else MEAN if self.prompts else UNSEEN
        made = {"convolutions": f"{len(specs(before))} become plain; {how}"}
        written = _grown(self.checkpoint, before, self.config)
        return change(VERB, self.source, (before, self.config), written, made, batch=ROWS)

    def run(self, run: Run) -> Report:
        """Write the plain model, and find out what that costs."""
        wide = specs(self.source.config("unet"))
        kernels, equal = folded(wide, self.checkpoint.tensors)
        _write(self.source, run, self.config, self.checkpoint.tensors, kernels, {"folded": len(wide)})
        if equal or self.prompts is None:
            return self.report(equal)
        sets = {name: ImageSet(run.path / SAMPLES / name, len(self.prompts.prompts)) for name in (BEFORE, AFTER)}
        for name, model in {BEFORE: self.source, AFTER: find(str(run.path / "model"))}.items():
            self._draw(model, sets[name])
        return self._measured(sets)

    def _draw(self, model: ModelDirectory, images: ImageSet) -> None:
        assert self.prompts, "there is something to draw"
        wanted = self.wanted
        pipe = load_pipeline(model, *device_and_dtype(self.recipe.device, self.recipe.dtype), with_patches=False)
        set_sampler(pipe, wanted.sampler)
        strength, image_guidance = wanted.strength, wanted.image_guidance
        settings = SamplingSettings(
            wanted.steps, wanted.guidance, None, wanted.seed, strength=strength, image_guidance=image_guidance
        )
        prompts = self.prompts
        for index, image in draw(pipe, prompts.prompts, range(images.count), settings, given=prompts.given):
            images.save(index, image)

    def _measured(self, sets: Mapping[str, ImageSet]) -> Report:
        """What folding costs, image by image."""
        assert self.prompts, "there are images"
        each, report = compare("psnr", sets[AFTER], sets[BEFORE], torch.device("cpu")), self.report()
        low, middle, high = float(each.min()), float(each.mean()), float(each.max())
        spread = {"low": low, "high": high, "interval": "all images", "n": len(each)}
        psnr = Record(AFTER, "psnr_db", middle, against=BEFORE, **spread)  # type: ignore[arg-type]
        report.setups.update({name: {"model": self.source.source} for name in sets})
        report.records.extend(under(QUALITY, [psnr]))
        asked = self.wanted.model_dump(include={"sampler", "steps", "guidance", "seed"})
        drawn = {"prompts": self.prompts.title, "pictures": len(each), **asked, "versions": versions()}
        report.protocols[QUALITY] = {"model": self.source.name, **drawn}
        folders = {name: f"{SAMPLES}/{name}" for name in sets}
        return replace(report, images=Images(list(self.prompts.prompts[:8]), folders))


def plan(recipe: CondConvRecipe) -> ExpandPlan | FoldPlan:
    """What would be made of what, from configs and the headers of the weights. Raises ModelError."""
    source = one_unet(find(recipe.model))
    checkpoint = check_unet(source)
    if wanted := recipe.expand:
        return _expansion(wanted, source, checkpoint)
    assert recipe.fold, "the recipe holds one of the two"
    return _folding(recipe, recipe.fold, source, checkpoint)


def _expansion(wanted: Expand, source: ModelDirectory, checkpoint: Checkpoint) -> ExpandPlan:
    donor = one_unet(find(wanted.donor)) if wanted.donor else None
    trained = TIMESTEPS
    if SCHEDULER in source.components:
        scheduler = own_scheduler(source)
        if alphas_cumprod(scheduler) is None:
            what = f"its {type(scheduler).__name__} does not tell a UNet timesteps, which experts share out"
            raise ModelError(f"model: {source.name}: {what}; use a model whose noise is given by betas")
        trained = scheduler.config.num_train_timesteps
    config = donor.config("unet") if donor else None
    expansion = expand(source.config("unet"), Spec(wanted.experts, trained), wanted.at, config)
    return ExpandPlan(source, donor, expansion, checkpoint)


def _folding(recipe: CondConvRecipe, fold: Fold, source: ModelDirectory, checkpoint: Checkpoint) -> FoldPlan:
    if not specs(source.config("unet")):
        raise ModelError(f"model: {source.path}: has no expert convolutions; there is nothing to fold")
    if not source.is_pipeline:
        return FoldPlan(recipe, fold, source, checkpoint, None)
    try:
        setup = drawing(source.name, source, **fold.drawn_with)
        prompts = read_prompts(fold.prompts, fold.limit, inputs=fold.inputs)
        if faults := misfits(drawn_from([setup], prompts, common_size(None, [setup]))):
            raise ModelError("\n".join(faults))
    except ModelError as error:
        way = f"to fold it unseen, give its UNet alone: model: {source.path / 'unet'}"
        raise ModelError(f"fold: what it costs is seen while drawing: {error}; {way}") from None
    return FoldPlan(recipe, fold, source, checkpoint, prompts)


def run(plan: ExpandPlan | FoldPlan, run: Run) -> Report:
    """Write the model to `run.path / "model"`."""
    return plan.run(run)


def _write(
    source: ModelDirectory,
    run: Run,
    config: Config,
    own: Mapping[str, Entry],
    changed: Mapping[str, Tensor],
    facts: Mapping[str, Any],
) -> None:
    """The model with these tensors in the place of its own; all others stay as they lie on disk."""
    model = run.path / "model"
    folder = assemble_directory(source, model, run.link, config)
    write_shards({name: entry for name, entry in own.items() if name not in changed}, changed, folder)
    require(open_checkpoint(folder), tensor_shapes(config), folder)
    record(source, model, VERB, **facts)


def _grown(checkpoint: Checkpoint, before: Config, after: Config) -> int:
    """Bytes of weights after, were all of them of one number format."""
    old, new = (sum(parameters(each).values()) for each in (before, after))
    return checkpoint.size * new // old
