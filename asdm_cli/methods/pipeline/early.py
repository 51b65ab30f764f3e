"""What can be known of a stage before the models that it names exist: its data, prompts, networks and settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from asdm_cli.data.sources import find_shards
from asdm_cli.methods import method
from asdm_cli.methods.pipeline.stages import Stage
from asdm_cli.metrics.features import require
from asdm_cli.recipe.verbs import DistillRecipe, Drawing, Recipe
from asdm_cli.sampling.prompts import locate
from asdm_cli.training.gate import Faults
from asdm_cli.training.settings import training_plan

BY_NETWORK = {"kid", "fd", "is"}


def check_all(ready: list[Stage], waiting: list[Stage], allow_pipes: bool) -> dict[str, str]:
    """Gate 3 of the stages that are ready, and what of it is possible for the others; the plans' summaries by stage.

    Raises one ModelError with everything that is wrong, each with its stage.
    """
    faults, summaries = Faults(), dict[str, str]()
    for stage in ready:
        with faults.catching(f"stage '{stage.name}'"):
            permissions = {"allow_pipes": allow_pipes} if stage.verb == "distill" else {}
            summaries[stage.name] = method(stage.verb).plan(stage.recipe, **permissions).report().summary
    for stage in waiting:
        with faults.catching(f"stage '{stage.name}'"):
            _check(stage.recipe, allow_pipes)
    faults.raise_all()
    return summaries


def _check(recipe: Recipe, allow_pipes: bool) -> None:
    faults = Faults()
    for kind, look in LOOKS:
        if isinstance(recipe, kind):
            look(recipe, faults, allow_pipes)
    faults.raise_all()


def _look_at_training(recipe: DistillRecipe, faults: Faults, allow_pipes: bool) -> None:
    for key, sources in (("data.train", recipe.data.train), ("data.held_out", recipe.data.held_out)):
        named = [sources] if isinstance(sources, str) else sources
        if named:
            faults.catch(key, partial(find_shards, named, allow_pipes))
    training_plan(recipe, faults)


def _look_at_drawing(recipe: Drawing, faults: Faults, _allow_pipes: bool) -> None:
    faults.catch("prompts", lambda: locate(recipe.prompts))
    if BY_NETWORK & {*recipe.metrics}:
        with faults.catching("features"):
            require(recipe.features)


LOOKS: tuple[tuple[type, Callable[[Any, Faults, bool], None]], ...] = (
    (DistillRecipe, _look_at_training),
    (Drawing, _look_at_drawing),
)
