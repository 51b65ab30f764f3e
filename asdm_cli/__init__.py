"""asdm: make Stable Diffusion smaller and faster.

`asdm_cli.load(model)` gives what `asdm` itself would run: a diffusers pipeline. Nothing heavy is imported before that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffusers import DiffusionPipeline, UNet2DConditionModel

    from asdm_cli.patches.base import Handle
    from asdm_cli.patches.unet_schedule import ScheduleHandle

__version__ = "0.1.0"


def load(
    model: str, device: str = "auto", dtype: str = "auto", adapters: Sequence[Mapping[str, Any]] = ()
) -> DiffusionPipeline:
    """The pipeline of a model, as a recipe names it (`docs/models.md`), with LoRAs in its weights: `{"path": FILE,
    "scale": 0.8}` each. Raises RecipeError, ModelError, RunError."""
    from asdm_cli.models.directory import find
    from asdm_cli.models.load import device_and_dtype, load_pipeline
    from asdm_cli.recipe.typed import read_adapters

    return load_pipeline(find(model, read_adapters(adapters)), *device_and_dtype(device, dtype))


def inherit(pipe: DiffusionPipeline, plan: Any) -> Handle:
    """Put a plan (as in a recipe: a mapping, or one of asdm_cli.recipe.patches) in force on a pipeline.

    Until `remove()` on what this returns, or to the end of a `with` block, every call of the pipeline inherits, and of
    any other pipeline around its UNet. Where several UNets take turns, it is a plan for each of them. Raises
    RecipeError, ModelError.
    """
    from asdm_cli.patches.feature_cache import inherit
    from asdm_cli.recipe.patches import read_plan

    return inherit(pipe, read_plan(plan))


def remove(pipe: DiffusionPipeline) -> None:
    """Take off the plans that are in force on a pipeline, whoever put them there; nothing happens without one. UNets
    that take turns stay: `pipe.unet.remove()`."""
    from asdm_cli.patches import feature_cache

    feature_cache.remove(pipe)


def switch(
    pipe: DiffusionPipeline,
    unets: Mapping[str, str | UNet2DConditionModel],
    parts: Sequence[Mapping[str, Any]],
    by: str = "timestep",
    *,
    plans: Mapping[str, Any] | None = None,
    offload: bool = False,
) -> ScheduleHandle:
    """Let several UNets take turns in a pipeline, until `remove()` on what this returns or the end of a `with` block.

    `unets` are modules, or models as `load` takes them, whose UNets are read in the pipeline's number format. The
    first is the pipeline's own (`pipe.unet`) or takes its place. `parts` say who serves what, as in a recipe:
    `[{"unet": "small", "until": 400}, {"unet": "large"}]`. `plans` are what each UNet inherits, by its name; with
    `offload` UNets live there while they serve nothing. Raises RecipeError, ModelError.
    """
    from asdm_cli.models.load import switch_unets
    from asdm_cli.recipe.patches import read_plan, read_switching

    rules = read_switching({"by": by, "parts": list(parts)}, "switch")
    read = {name: read_plan(plan, f"plans.{name}") for name, plan in (plans or {}).items()}
    return switch_unets(pipe, unets, rules, read, offload)


def __getattr__(name: str) -> Any:
    """What a model_index.json may ask this package for: a UNet class, and the base by which diffusers knows one."""
    if name == "ExpertUNet":
        from asdm_cli.experts.unet import ExpertUNet

        return ExpertUNet
    if name == "ModelMixin":
        from diffusers import ModelMixin

        return ModelMixin
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
