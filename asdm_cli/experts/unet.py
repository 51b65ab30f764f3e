"""UNets of which some convolutions are banks of experts.

Everything that builds a UNet of a config does it here; a config without experts gives diffusers' own class.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from asdm_cli.errors import ModelError
from asdm_cli.experts.layer import ExpertConv2d
from asdm_cli.experts.router import LOOKS, ROUTINGS, TimestepContext
from asdm_cli.experts.spec import specs
from asdm_cli.unet.blocks import Config
from asdm_cli.unet.stock import EXPERTS
from asdm_cli.unet.weights import find_weights, read_mapping


class ExpertUNet(UNet2DConditionModel):  # type: ignore[misc]
    """A UNet2DConditionModel with expert convolutions; `context` tells their routers the time."""

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
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **settings: Any) -> Any:
        """A UNet folder; of diffusers' settings, dtype (torch_dtype) and output_loading_info have a meaning here.

        Every tensor that the config promises comes from the files, and there is no other in them: `models.load`
        has compared the headers.
        """
        folder = Path(pretrained_model_name_or_path)
        config = read_mapping(folder / "config.json")
        with torch.device("meta"):
            unet = build(config)
        state: dict[str, Tensor] = {}
        for file in find_weights(folder).files:
            # memory of their own: where in a file a tensor lies must not change the last bit of a product
            state |= {name: tensor.clone() for name, tensor in load_file(file).items()}
        unet.load_state_dict(state, assign=True)
        dtype = settings.get("dtype") or settings.get("torch_dtype")
        unet = (torch.nn.Module.to(unet, dtype) if dtype else unet).eval()
        return (unet, {"missing_keys": []}) if settings.get("output_loading_info") else unet


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
    unet.time_embedding.register_forward_hook(unet.context.hear)
    width, modules = unet.time_embedding.linear_2.out_features, dict(unet.named_modules())
    for name, spec in wanted.items():
        if not isinstance(modules.get(name), torch.nn.Conv2d):
            raise ModelError(f"config.json: {EXPERTS}: {name} is no convolution of this UNet; write the model again")
        for key, words in {"router": LOOKS, "weights": tuple(ROUTINGS)}.items():
            if getattr(spec, key) not in words:
                raise ModelError(f"config.json: {EXPERTS}: {name}: {key} must be one of {', '.join(words)}")
        parent, _, last = name.rpartition(".")
        setattr(modules[parent], last, ExpertConv2d(modules[name], spec, width, unet.context))
    unet.register_to_config(**{EXPERTS: {name: asdict(spec) for name, spec in wanted.items()}})
    return unet


def expert_layers(unet: torch.nn.Module) -> dict[str, ExpertConv2d]:
    """Expert convolutions by module name, in forward order; none of a stock UNet."""
    return {name: module for name, module in unet.named_modules() if isinstance(module, ExpertConv2d)}
