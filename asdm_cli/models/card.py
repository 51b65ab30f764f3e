"""The model card, README.md beside a model, for whoever gets it without the run: what it is, how it was made, how it is
loaded, and its figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from asdm_cli import __version__
from asdm_cli.models.directory import OURS, ModelDirectory
from asdm_cli.recipe.patches import PatchSpec
from asdm_cli.recipe.redact import redact
from asdm_cli.unet.blocks import EXPERT_CLASS, EXPERTS, STOCK

CARD = "README.md"
NAMED = ("removed", "taken", "unets", "experts", "teacher", "steps", "adapters", "dtype")
"""Of what a verb tells of itself, the words that a card has; the rest is in asdm.json."""


def model_card(
    name: str,
    what: Sequence[str],
    history: Sequence[Mapping[str, Any]],
    load: Sequence[str],
    figures: Sequence[str] = (),
) -> ModelCard:
    """`what` are sentences, `load` lines of Python, `figures` pieces of Markdown. The library that the card names is
    the one that the lines import."""
    ours = any(line.startswith(("import asdm_cli", "from asdm_cli")) for line in load)
    data = ModelCardData(
        library_name="asdm-cli" if ours else "diffusers", pipeline_tag="text-to-image", tags=["stable-diffusion"]
    )
    steps = [f"{number}. {_told(step)}" for number, step in enumerate(history, 1)]
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        "\n".join(what),
        *(["## How it was made", "\n".join(steps)] if steps else []),
        *(["## How to load it", "```python\n" + "\n".join(load) + "\n```"] if load else []),
        *(["## Figures", *figures] if figures else []),
        f"Written by asdm {__version__}. Its licence is that of the model that it was made from.",
    ]
    return ModelCard("\n\n".join(parts) + "\n")


def quoted(text: str) -> str:
    """As Python has it."""
    return json.dumps(text, ensure_ascii=False)


def loading(directory: ModelDirectory, where: str, dtype: str | None = None, patched: bool = False) -> list[str]:
    """The lines of Python that load the directory, once it lies at `where`; asdm's, if stock diffusers would read less
    than there is."""
    if directory.config("unet").get(EXPERTS) and not directory.is_pipeline:
        kind = EXPERT_CLASS
        return [f"from asdm_cli.experts.unet import {kind}", "", f"unet = {kind}.from_pretrained({quoted(where)})"]
    if patched or directory.classes["unet"].startswith(OURS):
        return ["import asdm_cli", "", f"pipe = asdm_cli.load({quoted(where)})"]
    kind, name = (directory.index["_class_name"], "pipe") if directory.is_pipeline else (STOCK, "unet")
    given, imports = (f", torch_dtype=torch.{dtype}", ["import torch"]) if dtype else ("", [])
    return [*imports, f"from diffusers import {kind}", "", f"{name} = {kind}.from_pretrained({quoted(where)}{given})"]


def drawing(patches: Sequence[PatchSpec], measured: Mapping[str, Any]) -> list[str]:
    """Sentences of what is in force whenever a model draws, and with what it was `measured` last."""
    told = [line for spec in patches for line in spec.told()]
    if told:
        told.append("`asdm_cli.load` and `asdm generate` draw so; plain diffusers reads the weights, and is no faster.")
    if measured:
        settings = ", ".join(f"{key} {value}" for key, value in measured.items())
        told.append(f"Where nothing else is asked for, `asdm generate` draws with {settings}.")
    return told


def rows(facts: Mapping[str, Any]) -> str:
    """A table of two columns."""
    lines = [f"| {key} | {_cell(value)} |" for key, value in redact(dict(facts)).items()]
    return "\n".join(["| what | value |", "| --- | --- |", *lines])


def _cell(value: object) -> str:
    text = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
    return " ".join(text.split()).replace("|", "/")


def _told(step: Mapping[str, Any]) -> str:
    known = [f"{key} {_inline(step[key])}" for key in NAMED if step.get(key)]
    return f"`{step['verb']}` of {step.get('source', 'a model')}" + (f": {'; '.join(known)}" if known else "")


def _inline(value: object) -> str:
    """Names of what is in it; what is inside of that stands in asdm.json."""
    if isinstance(value, Mapping):
        return ", ".join(
            f"{key} ({_inline(each)})" if isinstance(each, list) else str(key) for key, each in value.items()
        )
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
