"""Linear probes: what a picture shows, by classes fitted on a feature network's view of real pictures.

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

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from asdm_cli.errors import ModelError
from asdm_cli.measure.features import Features
from asdm_cli.report.document import Interval
from asdm_cli.unet.weights import read_mapping

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOP = (1, 5)
GIVES = {"efficientnet_lite0": ("pooled", "stages"), "inception": ("pooled",)}
"""Feature networks that a probe may be fitted on, and what each gives it."""


@dataclass(frozen=True)
class Target:
    """What is asked for: `classes` in the order of the weights' rows, and the view of the features that they take."""

    classes: list[str]
    inputs: list[str]
    power: float

    def view(self, features: Features) -> Tensor:
        """float32 [n, d]"""
        parts = [getattr(features, name) for name in self.inputs]
        assert all(part is not None for part in parts), "inputs are checked against the network when a probe is read"
        whole = torch.cat(parts, dim=1).float()
        return whole.sign() * whole.abs() ** self.power


@dataclass(frozen=True)
class Probe:
    """`weight` [classes, d] and `bias` [classes] by target."""

    folder: Path
    network: str
    targets: dict[str, Target]
    weight: dict[str, Tensor]
    bias: dict[str, Tensor]

    def ranks(self, target: str, features: Features, truth: list[str]) -> Tensor:
        """How many classes fit each picture better than its true one, int64 [n]."""
        logits = self.targets[target].view(features) @ self.weight[target].T + self.bias[target]
        own = logits.gather(1, torch.tensor([[self.targets[target].classes.index(name)] for name in truth]))
        return (logits > own).sum(1)


def read_probe(folder: Path) -> Probe:
    """Raises ModelError with the file and what is wrong in it."""
    config = read_mapping(folder / CONFIG)
    try:
        targets = {target: _target(about) for target, about in config["targets"].items()}
        network = config["network"]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{folder / CONFIG}: is no probe's config ({error!r}); docs/measure.md shows one") from None
    if network not in GIVES:
        raise ModelError(f"{folder / CONFIG}: network is {network!r}; it must be one of {', '.join(GIVES)}")
    if faults := [f"{name} {fault}" for name, target in targets.items() for fault in _faults(target, network)]:
        raise ModelError("\n".join(f"{folder / CONFIG}: {fault}" for fault in faults))
    try:
        tensors = load_file(folder / WEIGHTS)
        weight = {name: tensors[f"{name}.weight"].float() for name in targets}
        bias = {name: tensors[f"{name}.bias"].float() for name in targets}
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(f"{folder / WEIGHTS}: is not the weights of {CONFIG} beside it ({error})") from None
    for name, target in targets.items():
        if weight[name].ndim != 2 or not len(weight[name]) == len(bias[name]) == len(target.classes):
            raise ModelError(
                f"{folder / WEIGHTS}: {name} has not the {len(target.classes)} classes that {CONFIG} names"
            )
    return Probe(folder, network, targets, weight, bias)


def _target(about: Any) -> Target:
    return Target(
        [str(name) for name in about["classes"]], list(map(str, about["inputs"])), float(about.get("power", 1))
    )


def _faults(target: Target, network: str) -> list[str]:
    faults = []
    if not target.inputs or set(target.inputs) - set(GIVES[network]):
        faults.append(f"has the inputs {target.inputs}; {network} gives {', '.join(GIVES[network])}")
    if not 0 < target.power <= 2:
        faults.append(f"has the power {target.power}; it must lie between 0 and 2")
    if len(set(target.classes)) < max(2, len(target.classes)):
        faults.append("names a class twice, or fewer than two")
    return faults


def wilson(hits: int, n: int, confidence: float) -> Interval:
    """A share of independent pictures with Wilson's score interval (1927)."""
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(confidence, dtype=torch.float64)))
    share, spread = hits / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), f"{100 * confidence:.4g} % Wilson")
