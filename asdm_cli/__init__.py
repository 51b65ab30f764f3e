"""asdm: make Stable Diffusion smaller and faster.

`asdm_cli.load(model)` gives what `asdm` itself would run: a diffusers pipeline. Nothing heavy is imported before that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__version__ = "0.1.0"


def load(model: str, device: str = "auto", dtype: str = "auto") -> DiffusionPipeline:
    """The pipeline of a model directory, a run directory or `pocket`. Raises ModelError."""
    from asdm_cli.models.load import device_and_dtype, load_pipeline
    from asdm_cli.models.source import find

    return load_pipeline(find(model), *device_and_dtype(device, dtype))
