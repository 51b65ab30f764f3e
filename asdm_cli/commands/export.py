"""A model handed over: as one file that other programs read, or as a directory in another number format; and sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import yaml

from asdm_cli.console import hand_over, note
from asdm_cli.errors import ModelError
from asdm_cli.models import formats, readers, single_file
from asdm_cli.models.card import CARD, drawing, loading, model_card, quoted, rows
from asdm_cli.models.directory import BESIDE_FILE, CONFIG, EXTRAS, UNETS, ModelDirectory, check_parts, check_unet, find
from asdm_cli.models.metadata import history, measured_with, patches_of, record, unet_components
from asdm_cli.models.push import check_push, described, push
from asdm_cli.models.write import atomic_directory, carry, carry_configs, refuse_existing, refuse_sources
from asdm_cli.recipe.messages import choice
from asdm_cli.recipe.patches import PatchSpec
from asdm_cli.recipe.schema import places
from asdm_cli.report.export import to_markdown
from asdm_cli.report.run_directory import is_run, read
from asdm_cli.unet.blocks import EXPERTS, STOCK
from asdm_cli.unet.weights import Piece, as_it_is, read_headers

SINGLE_FILE = "single-file"
LEFT_OUT = ("safety_checker", "image_encoder")
"""Components with weights that a single file has not, and that pipelines do without."""
TORCH_KEYS = ("dtype", "torch_dtype")
"""Where a config says in which format its weights are."""


@dataclass(frozen=True)
class Plan:
    """What would be written: the weights of each file below the target, and what there is to say."""

    source: ModelDirectory
    weights: dict[str, dict[str, Piece]]
    dtype: str | None
    unet_only: bool = False
    patches: tuple[PatchSpec, ...] = ()
    """Kept by a directory; a file has none."""
    said: list[str] = field(default_factory=list)
    extra: dict[str, Any] | None = None
    """For A1111's .yaml."""

    @property
    def name(self) -> str:
        return self.source.name.replace("/", "-")

    @property
    def is_file(self) -> bool:
        return f"{self.name}.safetensors" in self.weights

    def described(self) -> Iterator[str]:
        for file, tensors in self.weights.items():
            size, dtype = formats.size(tensors, self.dtype), formats.told(tensors, self.dtype)
            yield f"{file}: {len(tensors):,} tensors, {size / 1e6:,.2f} MB, {dtype}"
        yield from self.said

    def loading(self, where: str) -> list[str]:
        """The lines of Python that load what lies in the folder `where`; none, where diffusers cannot."""
        if not self.is_file:
            return loading(self.source, where, self.dtype, bool(self.patches))
        if readers.diffusers(self.source).not_because:
            return []
        kind, name = (STOCK, "unet") if self.unet_only else (self.source.index["_class_name"], "pipe")
        told = [quoted(f"{where}/{self.name}.safetensors"), f"config={quoted(f'{where}/{BESIDE_FILE}')}"]
        told += ['subfolder="unet"'] if self.unet_only else []
        return [f"from diffusers import {kind}", "", f"{name} = {kind}.from_single_file({', '.join(told)})"]

    def loading_from_hub(self, repo: str) -> list[str]:
        """The same of what was sent there."""
        lines = self.loading(repo)
        if not lines or ".from_pretrained(" in lines[-1]:
            return lines
        *imports, line = lines
        line = line.replace(f'"{repo}"', "folder").replace(f'"{repo}/', 'f"{folder}/')
        return [
            "from huggingface_hub import snapshot_download",
            *imports,
            f'folder = snapshot_download("{repo}")',
            line,
        ]


def export(model: str, to: str, out: Path, how: dict[str, Any], overwrite: bool, dry_run: bool) -> None:
    """`how` is unet_only, dtype, plain, and where it is sent: push, private."""
    refuse_existing(out, overwrite or dry_run)
    if how["dtype"] not in (None, *formats.FORMATS):
        raise ModelError(f"--dtype: {choice(list(formats.FORMATS), how['dtype'])}")
    if how["push"]:
        check_push(how["push"], dry_run)
    elif how["private"]:
        raise ModelError("--private: goes with --push, which sends it somewhere; add that, or leave it out")
    source = find(model)
    refuse_sources(out, [source.path, *places(model)])
    plan = _single_file(source, how) if to == SINGLE_FILE else _directory(source, how)
    for line in (*plan.described(), *plan.loading(str(out))[-1:]):
        note(line)
    if how["push"]:
        note(described(how["push"], how["private"]))
    if dry_run:
        if out.exists() and not overwrite:
            note(f"{out}: exists already; the export itself needs --overwrite, or another place")
        return
    with atomic_directory(out.resolve(), overwrite) as folder:
        _write(plan, folder)
        load = plan.loading_from_hub(how["push"]) if how["push"] else plan.loading("PATH")
        model_card(plan.name, _what(plan), history(source), load, _figures(source)).save(folder / CARD)
    if how["push"]:
        note(push(out, how["push"], how["private"]))
    hand_over(out)


def _single_file(source: ModelDirectory, how: dict[str, Any]) -> Plan:
    """Raises ModelError with all that such a file cannot say."""
    unet_only = how["unet_only"] or not source.is_pipeline
    faults = [*_unsaid(source, how["plain"]), *([] if unet_only else _homeless(source))]
    if faults:
        raise ModelError("\n".join(f"{source.path}: {fault}" for fault in faults))
    check_unet(source)
    if not unet_only:
        check_parts(source)
    name = f"{source.name.replace('/', '-')}.safetensors"
    left = "; ".join(line for spec in patches_of(source) for line in spec.told())
    weights = {name: single_file.pieces(source, unet_only)}
    interface, extra = readers.a1111(source, not unet_only)
    said = [str(each) for each in (readers.diffusers(source), readers.comfyui(source, not unet_only), interface)]
    if not unet_only and (gone := [each for each in LEFT_OUT if each in source.components]):
        said.append(f"Left out, since no single file has it: {', '.join(gone)}.")
    if left:
        said.append(f"Left out, so it draws as before, and no faster: {left}.")
    return Plan(source, weights, how["dtype"], unet_only, (), said, extra)


def _unsaid(source: ModelDirectory, plain: bool) -> Iterator[str]:
    """What the model does when it draws, beyond its weights."""
    specs = patches_of(source)
    if specs and not plain:
        told = "; ".join(line for spec in specs for line in spec.told())
        yield (
            f"carries what no single file can say ({told}); --to diffusers keeps it, and --plain leaves it out: the "
            "weights alone, as stock diffusers reads them, which draw correctly without"
        )
    if source.config("unet").get(EXPERTS):
        yield (
            "has expert convolutions, which no single file can say; make plain ones of them first, with `fold` in a "
            "recipe of asdm condconv-expand"
        )


def _homeless(source: ModelDirectory) -> Iterator[str]:
    known = {"unet", "vae", *single_file.FAMILIES[single_file.family(source)], *LEFT_OUT, *EXTRAS}
    for name in source.components:
        if name not in known and not name.startswith(f"{UNETS}/") and (source.component(name) / CONFIG).is_file():
            yield f"{name} has no place in a single file; export --unet-only, or --to diffusers"


def _directory(source: ModelDirectory, how: dict[str, Any]) -> Plan:
    if how["unet_only"]:
        raise ModelError("--unet-only is for --to single-file; for a directory give the folder unet/ as MODEL")
    specs = patches_of(source)
    kept = () if how["plain"] else specs
    weights = {}
    for component in unet_components(specs).values():
        check_unet(source, component)
    for name in source.components:
        if how["plain"] and name.startswith(f"{UNETS}/"):
            continue
        if name not in EXTRAS and (source.component(name) / CONFIG).is_file() and source.weights(name):
            stem = source.weights(name)[0].name.partition(".")[0].partition("-0")[0]
            file = f"{name}/{stem}.safetensors" if source.is_pipeline else f"{stem}.safetensors"
            tensors = read_headers(source.weights(name)).tensors
            weights[file] = {key: as_it_is(entry) for key, entry in tensors.items()}
    said = drawing(kept, measured_with(source))
    return Plan(source, weights, how["dtype"], False, kept, said)


def _write(plan: Plan, folder: Path) -> None:
    configs = folder / BESIDE_FILE if plan.is_file else folder
    others = () if plan.patches else [name for name in plan.source.components if name.startswith(f"{UNETS}/")]
    gone = [*others, *((*LEFT_OUT, *EXTRAS) if plan.is_file else ())]
    carry_configs(plan.source, configs, {"unet"} if plan.unet_only else None, gone)
    with formats.written_as(plan.dtype) as lost:
        for file, tensors in plan.weights.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            formats.write(tensors, folder / file, plan.dtype, lost)
    if not plan.is_file:
        for name in EXTRAS:  # what is measured with stays as it is
            for weights in plan.source.weights(name) if name in plan.source.components else ():
                carry(weights, folder / name / weights.name)
    if plan.dtype:
        _tell_format(configs, plan.dtype)
    if plan.extra:
        text = yaml.safe_dump(plan.extra, sort_keys=False)
        (folder / f"{plan.name}.yaml").write_text(text, encoding="utf-8")
    facts = {"dtype": plan.dtype} if plan.dtype else {}
    if plan.is_file:
        file = f"{plan.name}.safetensors"
        facts |= {"file": file, "header": read_headers([folder / file]).digest}
    record(plan.source, configs, "export", plan.patches, **facts)


def _tell_format(configs: Path, dtype: str) -> None:
    """Text encoders' configurations say in which format their weights are, and transformers reads them so."""
    for file in (each for each in configs.glob(f"*/{CONFIG}") if each.parent.name not in EXTRAS):
        held = json.loads(file.read_text(encoding="utf-8"))
        if told := [key for key in TORCH_KEYS if key in held]:
            file.write_text(json.dumps(held | dict.fromkeys(told, dtype), indent=2) + "\n", encoding="utf-8")


def _what(plan: Plan) -> list[str]:
    """Sentences of the card."""
    count = sum(prod(each.shape) for each in read_headers(plan.source.weights("unet")).tensors.values())
    name = readers.NAMES[single_file.family(plan.source)]
    kind = "one file of the original layout" if plan.is_file else "a diffusers directory"
    alone = ": the UNet alone" if plan.unet_only else ""
    return [
        f"{name} with a UNet of {count / 1e6:,.1f} M parameters; {kind}{alone}.",
        "",
        *(f"* {e}" for e in plan.said),
    ]


def _figures(source: ModelDirectory) -> list[str]:
    """What the run that made the model found out, and how it was measured."""
    run = source.path.parent
    if source.path.name != "model" or not is_run(run):
        return []
    report = read(run)
    return [to_markdown(report), *(f"How ({name}):\n\n{rows(card)}" for name, card in report.protocols.items())]
