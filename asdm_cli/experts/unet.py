"""UNets of which some convolutions are banks of experts.

Everything that builds a UNet of a config does it here; a config without experts gives diffusers' own class.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from asdm_cli.errors import ModelError
from asdm_cli.experts.layer import ExpertConv2d, TimestepContext
from asdm_cli.unet.blocks import EXPERTS, Config, specs


class ExpertUNet(UNet2DConditionModel):  # type: ignore[misc]
    """A UNet2DConditionModel with expert convolutions; `context` tells them the time."""

    context: TimestepContext
    __module__ = "asdm_cli"  # where diffusers, writing a pipeline, says that the class is to be found

    def forward(self, sample: Tensor, timestep: Tensor | float | int, *args: Any, **kwargs: Any) -> Any:
        """As that of the stock class."""
        self.context.announce(timestep)
        return super().forward(sample, timestep, *args, **kwargs)

    @classmethod
    def from_config(cls, config: Config, **_: Any) -> UNet2DConditionModel:
        """Random weights, as of the stock class."""
        return build(dict(config))

    @classmethod
    def from_pretrained(cls, *args: Any, **settings: Any) -> Any:
        """As that of the stock class, in memory of its own: where in a file a tensor lies must not change the last bit
        of a product."""
        settings.pop("use_safetensors", None)  # safetensors or nothing
        loaded = super().from_pretrained(*args, use_safetensors=True, **settings)
        unet = loaded[0] if isinstance(loaded, tuple) else loaded
        for tensor in (*unet.parameters(), *unet.buffers()):
            tensor.data = tensor.data.clone()
        return loaded


def build(config: Config) -> UNet2DConditionModel:
    """A UNet of this config with random weights, on the device of the context. Raises what diffusers raises, and
    ModelError for experts that do not fit."""
    wanted = specs(config)
    unet = UNet2DConditionModel.from_config(
        {key: value for key, value in config.items() if key not in (EXPERTS, "_class_name")}
    )
    if not wanted:
        return unet
    unet.__class__ = ExpertUNet
    unet.context = TimestepContext()
    modules = dict(unet.named_modules())
    for name, spec in wanted.items():
        if not isinstance(modules.get(name), torch.nn.Conv2d):
            raise ModelError(f"config.json: {EXPERTS}: {name} is no convolution of this UNet; write the model again")
        parent, _, last = name.rpartition(".")
        setattr(modules[parent], last, ExpertConv2d(modules[name], spec, unet.context))
    unet.register_to_config(**{EXPERTS: {name: asdict(spec) for name, spec in wanted.items()}})
    return unet


def expert_layers(unet: torch.nn.Module) -> dict[str, ExpertConv2d]:
    """Expert convolutions by module name, in forward order; none of a stock UNet."""
    return {name: module for name, module in unet.named_modules() if isinstance(module, ExpertConv2d)}
