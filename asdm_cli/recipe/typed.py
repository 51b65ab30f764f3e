"""A recipe that is typed instead of written: models in its file's place, the rest by options."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from asdm_cli.errors import Fault, RecipeError
from asdm_cli.recipe.messages import validated
from asdm_cli.recipe.reader import Mark, Override, Source
from asdm_cli.recipe.verbs import Adapted, Adapter

RECIPES = (".yaml", ".yml")
WEIGHTS = (".safetensors", ".ckpt", ".bin", ".pt", ".pth", ".json")
"""Files that people take for a model; all other files are recipes."""
LONGEST = 64
SHORT = LONGEST - 3
"""With a number behind it."""
"""Letters of a run directory's name that is made of its models'."""
FOLDERS = ("model", "students", "stages", "runs")
"""Names of folders that say nothing of the model in them."""
ADAPTER = re.compile(r"(.+?)(?::([-+]?\d*\.?\d+)(?::(.+))?)?")
"""A LoRA: its file, how much of it, and the model that it was trained on."""


def _of_one(verb: str, models: list[str], **more: Any) -> dict[str, Any]:
    return {"verb": verb, "model": models[0], **more}


def _of_several(verb: str, models: list[str]) -> dict[str, Any]:
    return {"verb": verb, "models": [{"name": name, "model": model} for name, model in named(models).items()]}


TYPED: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "prune": lambda models: _of_one("prune", models),
    "inherit": lambda models: _of_one("inherit", models, plan="last-block", measure=False),
    "bench": lambda models: _of_several("bench", models),
    "eval": lambda models: _of_several("eval", models),
}
"""Verb -> the recipe that models alone say."""
WRITTEN = ("measure", "plan", "patches", "adapters", "sampler", "steps", "guidance", "strength", "out")
"""Keys that matter where a plan is written unmeasured."""


def is_recipe(text: str) -> bool:
    """Whether a verb was given a recipe's file, and not a model."""
    path = Path(text)
    return path.suffix in RECIPES or (path.is_file() and path.suffix not in WEIGHTS)


def typed(verb: str, models: Sequence[str], options: Sequence[Override] = ()) -> Source:
    """The recipe of a verb that was given models; `options` are what will be put into it afterwards. Raises RecipeError
    where both together say too little."""
    command = f"asdm {verb}"
    if len(models) > 1 and any(is_recipe(text) for text in models):
        raise RecipeError(command, [Fault("takes one recipe, or models")])
    if verb not in TYPED:
        what = f"takes a recipe's FILE; `asdm init {verb} --model {models[0]}` writes one to start from"
        raise RecipeError(command, [Fault(what)])
    data = TYPED[verb]([*models])
    if any(option.where == ("target",) for option in options):  # which is found by drawing, and stands for a plan
        data = {key: value for key, value in data.items() if key not in ("plan", "measure")}
    measured = any(option.where == ("measure",) and option.value for option in options)
    if data.get("measure") is False and not measured:
        dead = dict.fromkeys(str(option.where[0]) for option in options if option.where[0] not in WRITTEN)
        if dead:
            what = "is only there to be measured, and 'measure' is false; add --measure, or leave it out"
            raise RecipeError(command, [Fault(what, key) for key in dead])
    if "model" in data and len(models) > 1:
        raise RecipeError(command, [Fault(f"takes one model, got {len(models)}: {', '.join(models)}")])
    removed = [each for option in options if option.where[0] == "remove" for each in _list(option.value)]
    if verb == "prune" and not removed:
        what = f"say what to remove: --remove base (or small, tiny, or an address that `asdm show {models[0]}` prints)"
        raise RecipeError(command, [Fault(what)])
    folder = "-".join([verb, *named(models), *(re.sub(r"[^\w.]+", "", str(each)) for each in removed)])
    data["out"] = f"runs/{folder[:LONGEST]}"
    return Source(command, data, values={(): Mark()})


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def named(models: Sequence[str]) -> dict[str, str]:
    """A short name of each model -> it: the last part of a path or id that says something, numbered where two agree."""
    found: dict[str, str] = {}
    for text in models:
        parts = [part for part in re.split(r"[/\\]|--", text.rstrip("/\\")) if part]
        said = next((part for part in reversed(parts) if part not in FOLDERS), "model")
        word = re.sub(r"[^\w.+-]+", "-", said.removesuffix(".safetensors").partition("@")[0])
        short = word[:SHORT].strip("-.") or "model"
        numbered = (f"{short}-{number}" for number in range(2, len(models) + 2))
        found[next(name for name in (short, *numbered) if name not in found)] = text
    return found


def read_adapters(given: Sequence[Mapping[str, Any] | str], source: str = "load") -> list[Adapter]:
    """Those that do not come from a recipe: mappings as there, or `FILE[:SCALE[:OF]]`. Raises RecipeError; `source`
    names them."""
    held = [_adapter(each) if isinstance(each, str) else dict(each) for each in given]
    read: Adapted = validated(Adapted, {"adapters": held}, source)
    return read.adapters


def _adapter(text: str) -> dict[str, Any]:
    found = ADAPTER.fullmatch(text)
    path, scale, of = found.groups() if found else (text, None, None)
    return {"path": path, "scale": float(scale or 1), "of": of}
