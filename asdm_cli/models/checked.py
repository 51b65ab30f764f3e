"""A model's UNets held against their configs, from small files and the headers of weights alone."""

from __future__ import annotations

from asdm_cli.errors import ModelError
from asdm_cli.models.source import ModelDirectory
from asdm_cli.unet.checkpoint import Checkpoint, open_checkpoint, require


def check_unet(directory: ModelDirectory, component: str = "unet") -> Checkpoint:
    """The headers of a UNet's weights. Raises ModelError, with the file, unless they hold what its config promises."""
    from asdm_cli.unet.cost import shapes  # builds UNets without storage: that takes torch

    folder = directory.component(component)
    config = directory.config(component)
    try:
        promised = shapes(config)
    except ModelError as error:
        raise ModelError(f"{folder / 'config.json'}: {error}") from None
    checkpoint = open_checkpoint(folder, directory.path)
    require(checkpoint, promised, folder)
    return checkpoint
