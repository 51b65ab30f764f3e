"""Addresses that a recipe names, held against the configs of the UNets that it names: told at their place in the file,
before anything heavy is imported. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from asdm_cli.errors import ModelError
from asdm_cli.models.directory import POCKET, UNETS, find
from asdm_cli.recipe.schema import Misfit, Strict, addressed
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import PRESETS, preset

WORDS = re.compile(r"compressed|encoder|out|deepcache\.\d+")
"""What stands for addresses that only a verb can find."""


def unknown_addresses(recipe: Strict) -> Iterator[Misfit]:
    """Of models that are there; where one is missing, or several UNets take turns in it, the verb tells."""
    anatomy = cache(_anatomy)  # for this recipe only: the next one may come after a model has changed
    for way, pattern, models in addressed(recipe, []):
        for unet in [] if WORDS.fullmatch(pattern) else filter(None, map(anatomy, models)):
            try:
                unet.match(pattern)
            except ModelError as error:
                yield way, str(error)
                break


def _anatomy(model: str) -> Anatomy | None:
    if model in PRESETS:
        return Anatomy.of(preset(model))
    try:
        if model != POCKET and not Path(model).is_dir():  # to fetch or convert one is no check
            return None
        directory = find(model)
        several = any(name.startswith(f"{UNETS}/") for name in directory.components)
        return None if several else Anatomy.of(directory.config("unet"))
    except (ModelError, OSError):  # the latter of a name that no disk has room for
        return None
