"""asdm: make Stable Diffusion smaller and faster.

`asdm_cli.load(model)` gives what `asdm` itself would run: a diffusers pipeline. Nothing heavy is imported before that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from asdm_cli.inheritance.pipelines import Handle

__version__ = "0.1.0"


def load(model: str, device: str = "auto", dtype: str = "auto") -> DiffusionPipeline:
    """The pipeline of a model directory, a run directory or `pocket`. Raises ModelError."""
    from asdm_cli.models.load import device_and_dtype, load_pipeline
    from asdm_cli.models.source import find

    return load_pipeline(find(model), *device_and_dtype(device, dtype))


def inherit(pipe: DiffusionPipeline, plan: Any) -> Handle:
    """Put a plan (as in a recipe: a mapping, or one of asdm_cli.recipe.plans) in force on a pipeline.

    Until `remove()` on what this returns, or to the end of a `with` block, every call of the pipeline inherits.
    Raises RecipeError, ModelError.
    """
    from asdm_cli.inheritance.pipelines import attach
    from asdm_cli.recipe.plans import read_plan

    return attach(pipe, read_plan(plan))


def remove(pipe: DiffusionPipeline) -> None:
    """Take off the plan that is in force on a pipeline, whoever put it there; nothing happens without one."""
    from asdm_cli.inheritance.pipelines import detach

    detach(pipe)
