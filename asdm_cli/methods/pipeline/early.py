"""What can be known of a stage before the models that it names exist: its data, prompts, networks and settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asdm_cli.measure.features import require
from asdm_cli.measure.prompts import locate
from asdm_cli.methods import method
from asdm_cli.methods.pipeline.stages import Stage
from asdm_cli.recipe.verbs import DistillRecipe, Drawing, Recipe
from asdm_cli.training.plan import ErrorCollector, check_settings

BY_NETWORK = {"kid", "fd", "is"}


def check_all(ready: list[Stage], waiting: list[Stage], allow_pipes: bool) -> dict[str, str]:
    """Gate 3 of the stages that are ready, and what of it is possible for the others; the plans' summaries by stage.

    Raises one ModelError with everything that is wrong, each with its stage.
    """
    faults, summaries = ErrorCollector(), dict[str, str]()
    for stage in ready:
        with faults.at(f"stage '{stage.name}'"):
            permissions = {"allow_pipes": allow_pipes} if stage.verb == "distill" else {}
            summaries[stage.name] = method(stage.verb).plan(stage.recipe, **permissions).report().summary
    for stage in waiting:
        with faults.at(f"stage '{stage.name}'"):
            _check(stage.recipe, allow_pipes)
    faults.raise_all()
    return summaries


def _check(recipe: Recipe, allow_pipes: bool) -> None:
    faults = ErrorCollector()
    for kind, look in LOOKS:
        if isinstance(recipe, kind):
            look(recipe, faults, allow_pipes)
    faults.raise_all()


def _look_at_training(recipe: DistillRecipe, faults: ErrorCollector, allow_pipes: bool) -> None:
    check_settings(recipe, faults, allow_pipes)


def _look_at_drawing(recipe: Drawing, faults: ErrorCollector, _allow_pipes: bool) -> None:
    with faults.at("prompts"):
        locate(recipe.prompts)
    if BY_NETWORK & {*recipe.metrics}:
        with faults.at("features"):
            require(recipe.features)


LOOKS: tuple[tuple[type, Callable[[Any, ErrorCollector, bool], None]], ...] = (
    (DistillRecipe, _look_at_training),
    (Drawing, _look_at_drawing),
)
