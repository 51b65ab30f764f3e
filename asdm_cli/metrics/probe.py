"""Linear probes: what an image shows, by classes fitted on a feature network's view of real images.

A probe is a folder of two files. `config.json`:

    {"network": "efficientnet_lite0",
     "targets": {"label": {"classes": ["fox", ...], "inputs": ["pooled"], "power": 0.5},
                 "style": {"classes": ["noto", ...], "inputs": ["pooled", "stages"]}}}

`network` is a feature network's name; a target is named as the samples of a prompt shard name it in their .json, and
its `inputs` are laid end to end (`pooled` and `stages`, see `features.Features`), each raised to `power` with its sign
kept (1 if left out). `model.safetensors` holds
`TARGET.weight` [classes, inputs] and `TARGET.bias` [classes] of each target.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from asdm_cli.errors import ModelError
from asdm_cli.metrics.features import Features
from asdm_cli.unet.weights import read_mapping

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOP = (1, 5)
GIVES = {"efficientnet_lite0": {"pooled", "stages"}, "inception": {"pooled"}}
"""Feature networks that a probe may be fitted on, and what each gives it."""


class Target(BaseModel):
    """What is asked for: `classes` in the order of the weights' rows, and the view of the features that they take."""

    classes: Annotated[list[str], Field(min_length=2)]
    inputs: Annotated[list[Literal["pooled", "stages"]], Field(min_length=1)]
    power: Annotated[float, Field(gt=0, le=2)] = 1.0

    def view(self, features: Features) -> Tensor:
        """float32 [n, d]"""
        whole = torch.cat([getattr(features, name) for name in self.inputs], dim=1).float()
        return whole.sign() * whole.abs() ** self.power


class Config(BaseModel):
    network: Literal["efficientnet_lite0", "inception"]
    targets: dict[str, Target]

    @model_validator(mode="after")
    def _fits(self) -> Config:
        for name, target in self.targets.items():
            if len(set(target.classes)) < len(target.classes):
                raise ValueError(f"{name} names a class twice")
            if set(target.inputs) - GIVES[self.network]:
                raise ValueError(f"{name} has the inputs {target.inputs}; {self.network} gives pooled")
        return self


@dataclass(frozen=True)
class Probe:
    """`weight` [classes, d] and `bias` [classes] by target."""

    folder: Path
    network: str
    targets: dict[str, Target]
    weight: dict[str, Tensor]
    bias: dict[str, Tensor]

    def ranks(self, target: str, features: Features, truth: list[str]) -> Tensor:
        """How many classes fit each image better than its true one, int64 [n]."""
        logits = self.logits(target, features)
        own = logits.gather(1, torch.tensor([[self.targets[target].classes.index(name)] for name in truth]))
        return (logits > own).sum(1)

    def logits(self, target: str, features: Features) -> Tensor:
        """float32 [n, classes]"""
        return self.targets[target].view(features) @ self.weight[target].T + self.bias[target]


def read_probe(folder: Path) -> Probe:
    """Raises ModelError with the file and all that is wrong in it."""
    try:
        config = Config.model_validate(read_mapping(folder / CONFIG))
    except ValidationError as error:
        faults = [": ".join([".".join(map(str, each["loc"])), each["msg"]]).lstrip(": ") for each in error.errors()]
        said = "\n".join(f"{folder / CONFIG}: {fault}" for fault in faults)
        raise ModelError(f"{said}\nthis is no probe's config; docs/measure.md shows one") from None
    try:
        tensors = load_file(folder / WEIGHTS)
        weight = {name: tensors[f"{name}.weight"].float() for name in config.targets}
        bias = {name: tensors[f"{name}.bias"].float() for name in config.targets}
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(f"{folder / WEIGHTS}: is not the weights of {CONFIG} beside it ({error})") from None
    for name, target in config.targets.items():
        if weight[name].ndim != 2 or not len(weight[name]) == len(bias[name]) == len(target.classes):
            raise ModelError(
                f"{folder / WEIGHTS}: {name} has not the {len(target.classes)} classes that {CONFIG} names"
            )
    return Probe(folder, config.network, config.targets, weight, bias)
