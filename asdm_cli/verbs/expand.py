"""`asdm condconv-expand`: convolutions become banks of experts, or plain ones again, each router frozen."""

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
from asdm_cli.experts.convert import Expansion, Init, expand, first_experts
from asdm_cli.experts.layer import ROUTINGS
from asdm_cli.experts.unet import expert_layers
from asdm_cli.metrics.distances import compare
from asdm_cli.models.directory import ModelDirectory, check_unet, find
from asdm_cli.models.load import device_and_dtype, load_pipeline, load_unet
from asdm_cli.models.metadata import one_unet, record
from asdm_cli.models.schedulers import set_sampler
from asdm_cli.models.write import assemble_directory
from asdm_cli.profiling.latency import versions
from asdm_cli.recipe.verbs import CondConvRecipe, Expand, Fold
from asdm_cli.records import Images, Record, Report, under
from asdm_cli.report.run_directory import Run
from asdm_cli.sampling.generate import SamplingSettings
from asdm_cli.sampling.image_set import ImageSet
from asdm_cli.sampling.prompts import PromptList, read_prompts
from asdm_cli.sampling.routing import Routing, observe
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import Config, Spec, specs, with_experts
from asdm_cli.unet.flops import parameters
from asdm_cli.unet.shapes import tensor_shapes
from asdm_cli.unet.weights import Checkpoint, Entry, open_checkpoint, require, write_shards
from asdm_cli.verbs.change import change

RESUMABLE = False
VERB = "condconv-expand"
ROWS = 2
"""Of a UNet call with guidance."""
BEFORE, AFTER = "with experts", "folded"


@dataclass(frozen=True)
class ExpandPlan:
    """An expansion that will fit: configs and weights of model and donor have been read."""

    wanted: Expand
    source: ModelDirectory
    donor: ModelDirectory | None
    expansion: Expansion
    checkpoint: Checkpoint
    donated: Mapping[str, Entry]

    @property
    def init(self) -> Init:
        given = {"noise": self.wanted.noise, "share": self.wanted.share}
        return Init(self.wanted.start, **{key: value for key, value in given.items() if value})

    def report(self) -> Report:
        spec, own, config = self.expansion.spec, self.checkpoint.tensors, self.source.config("unet")
        anatomy, made = Anatomy.of(config), {}
        for name in self.expansion.siblings:
            address = f"{anatomy.address_of_key(f'{name}.weight')} {name.rpartition('.')[2]}"
            others = self.expansion.inherited(name, own, self.donated, self.init)
            kernel = " × ".join(map(str, own[f"{name}.weight"].shape))
            made[address] = f"{spec.experts} of {kernel}: its own, then {', '.join(others) or 'copies of it'}"
        written = _grown(self.checkpoint, config, self.expansion.config)
        wanted = f"{spec.experts} experts each (router: {spec.router}, {spec.weights}; start: {self.wanted.start})"
        made = {"convolutions": f"{len(made)}, of {wanted}", **made}
        return change(VERB, self.source, (config, self.expansion.config), written, made, batch=ROWS)

    def run(self, run: Run) -> Report:
        changed = first_experts(self.expansion, self.checkpoint.tensors, self.donated, self.init, self.wanted.seed)
        asked = self.wanted.model_dump(mode="json", exclude_none=True, exclude={"donor"})
        asked |= {"donor": self.donor.name if self.donor else None, "convolutions": len(self.expansion.siblings)}
        _write(self.source, run, self.expansion.config, self.checkpoint.tensors, changed, asked)
        return self.report()


@dataclass(frozen=True)
class FoldPlan:
    """`prompts` is None where routing is constant, and nothing needs to be drawn."""

    recipe: CondConvRecipe
    wanted: Fold
    source: ModelDirectory
    checkpoint: Checkpoint
    prompts: PromptList | None

    @cached_property
    def config(self) -> Config:
        """The plain UNet's."""
        return with_experts(self.source.config("unet"), {})

    def report(self) -> Report:
        before = self.source.config("unet")
        how = {"constant": "their routing is constant: nothing changes", "mean": "each router is frozen at its mean"}
        made = {"convolutions": f"{len(specs(before))} become plain; {how[self.wanted.routing]}"}
        written = _grown(self.checkpoint, before, self.config)
        return change(VERB, self.source, (before, self.config), written, made, batch=ROWS)

    def run(self, run: Run) -> Report:
        """Write the plain model, and where the routing was not constant find out what that costs."""
        if self.prompts is None:
            self._fold(constant_routing(self.source), run)
            return self.report()
        routing, before = self._observe(self.source)
        self._fold({name: routing.mean(name) for name in routing.weights}, run)
        _, after = self._observe(find(str(run.path / "model")))
        sets = {name: ImageSet(run.path / SAMPLES / name, len(before)) for name in (BEFORE, AFTER)}
        for name, images in {BEFORE: before, AFTER: after}.items():
            for index, image in enumerate(images):
                sets[name].save(index, image)
        return self._measured(routing, sets)

    def _observe(self, model: ModelDirectory) -> tuple[Routing, list[Any]]:
        assert self.prompts, "there is something to draw"
        wanted = self.wanted
        pipe = load_pipeline(model, *device_and_dtype(self.recipe.device, self.recipe.dtype), with_patches=False)
        set_sampler(pipe, wanted.sampler)
        strength, image_guidance = wanted.strength, wanted.image_guidance
        settings = SamplingSettings(
            wanted.steps, wanted.guidance, None, wanted.seed, strength=strength, image_guidance=image_guidance
        )
        return observe(pipe, self.prompts.prompts, settings, self.prompts.given)

    def _fold(self, routings: Mapping[str, Tensor], run: Run) -> None:
        own, changed = self.checkpoint.tensors, {}
        formats = {"F16": torch.float16, "BF16": torch.bfloat16}
        unet = load_unet(self.source, torch.device("cpu"), torch.float32)
        for name, layer in expert_layers(unet).items():
            with torch.no_grad():
                kernel, bias = layer.kernel(routings[name])
            for key, tensor in {f"{name}.weight": kernel, f"{name}.bias": bias}.items():
                if tensor is not None:
                    changed[key] = tensor.to(formats.get(own[key].dtype, torch.float32))
        gone = tuple(f"{name}.router." for name in routings)
        kept = {key: entry for key, entry in own.items() if not key.startswith(gone)}
        asked = {"fold": self.wanted.routing, "convolutions": len(routings)}
        _write(self.source, run, self.config, kept, changed, asked)

    def _measured(self, routing: Routing, sets: Mapping[str, ImageSet]) -> Report:
        """What folding costs, image by image, and how the experts were used."""
        assert self.prompts, "there are images"
        each, report = compare("psnr", sets[AFTER], sets[BEFORE], torch.device("cpu")), self.report()
        low, middle, high = float(each.min()), float(each.mean()), float(each.max())
        spread = {"low": low, "high": high, "interval": "all images", "n": len(each)}
        psnr = Record(AFTER, "psnr_db", middle, against=BEFORE, **spread)  # type: ignore[arg-type]
        report.setups.update({name: {"model": self.source.source} for name in sets})
        report.records.extend(under(QUALITY, [psnr, *routing.records(BEFORE)]))
        asked = self.wanted.model_dump(include={"sampler", "steps", "guidance", "seed"})
        drawn = {"prompts": self.prompts.title, "pictures": len(each), **asked, "versions": versions()}
        report.protocols[QUALITY] = {"model": self.source.name, **drawn}
        folders = {name: f"{SAMPLES}/{name}" for name in sets}
        return replace(report, images=Images(list(routing.prompts[:8]), folders))


def plan(recipe: CondConvRecipe) -> ExpandPlan | FoldPlan:
    """What would be made of what, from configs and the headers of the weights. Raises ModelError."""
    source = one_unet(find(recipe.model))
    config, checkpoint = source.config("unet"), check_unet(source)
    if wanted := recipe.expand:
        donor = one_unet(find(wanted.donor)) if wanted.donor else None
        spec = Spec(wanted.experts, wanted.router, wanted.weights)
        expansion = expand(config, spec, wanted.at, donor.config("unet") if donor else None)
        return ExpandPlan(wanted, source, donor, expansion, checkpoint, check_unet(donor).tensors if donor else {})
    fold = recipe.fold
    assert fold, "the recipe holds one of the two"
    if not specs(config):
        raise ModelError(f"model: {source.path}: has no expert convolutions; there is nothing to fold")
    if fold.routing == "constant":
        constant_routing(source)
        return FoldPlan(recipe, fold, source, checkpoint, None)
    try:
        setup = drawing(VERB, source, **fold.drawn_with)
    except ModelError as error:
        raise ModelError(f"fold.routing: mean routing is seen while drawing: {error}") from None
    prompts = read_prompts(fold.prompts, fold.limit, inputs=fold.inputs)
    if faults := misfits(drawn_from([setup], prompts, common_size(None, [setup]))):
        raise ModelError("\n".join(faults))
    return FoldPlan(recipe, fold, source, checkpoint, prompts)


def run(plan: ExpandPlan | FoldPlan, run: Run) -> Report:
    """Write the model to `run.path / "model"`."""
    return plan.run(run)


def constant_routing(source: ModelDirectory) -> dict[str, Tensor]:
    """Convolution -> weights [experts], of routers that look at nothing: theirs are all zero. ModelError names those
    that are not."""
    layers = expert_layers(load_unet(source, torch.device("cpu"), torch.float32))
    looks = {name: (layer.router.features, layer.router.time) for name, layer in layers.items()}
    looking = [name for name, parts in looks.items() if any(part and bool(part.weight.any()) for part in parts)]
    if looking:
        raise ModelError(
            f"fold.routing: {len(looking)} of {len(layers)} routers choose by what they see ({looking[0]}, ...); "
            "freeze them with `routing: mean`"
        )
    return {name: ROUTINGS[each.spec.weights](each.router.bias.detach()[None])[0] for name, each in layers.items()}


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
