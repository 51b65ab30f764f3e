"""Linear probes: what a picture shows, by classes fitted on a feature network's view of real pictures.

A probe is a folder of two files. `config.json`:

    {"network": "efficientnet_lite0",
     "targets": {"label": {"classes": ["fox", ...], "inputs": ["pooled"]},
                 "style": {"classes": ["noto", ...], "inputs": ["pooled", "stages"]}}}

`network` is a feature network's name; a target is named as the samples of a prompt shard name it in their .json, and
its `inputs` are laid end to end (`pooled` and `stages`, see `features.Features`). `model.safetensors` holds
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
from asdm_cli.unet.weight_files import read_mapping

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOP = (1, 5)
NETWORKS = ("efficientnet_lite0", "inception")


@dataclass(frozen=True)
class Probe:
    """`classes`, `inputs`, `weight` [classes, d] and `bias` [classes], each by target."""

    folder: Path
    network: str
    classes: dict[str, list[str]]
    inputs: dict[str, list[str]]
    weight: dict[str, Tensor]
    bias: dict[str, Tensor]

    def ranks(self, target: str, features: Features, truth: list[str]) -> Tensor:
        """How many classes fit each picture better than its true one, int64 [n]."""
        logits = view(features, self.inputs[target]) @ self.weight[target].T + self.bias[target]
        own = logits.gather(1, torch.tensor([[self.classes[target].index(name)] for name in truth]))
        return (logits > own).sum(1)


def view(features: Features, inputs: list[str]) -> Tensor:
    """float32 [n, d]: the named parts of the features, end to end."""
    parts = [getattr(features, name) for name in inputs]
    assert all(part is not None for part in parts), "a probe's inputs are checked against its network when it is read"
    return torch.cat(parts, dim=1).float()


def read_probe(folder: Path) -> Probe:
    """Raises ModelError with the file and what is wrong in it."""
    config = _config(folder / CONFIG)
    classes = {target: about["classes"] for target, about in config["targets"].items()}
    inputs = {target: about["inputs"] for target, about in config["targets"].items()}
    try:
        tensors = load_file(folder / WEIGHTS)
        weight = {target: tensors[f"{target}.weight"].float() for target in classes}
        bias = {target: tensors[f"{target}.bias"].float() for target in classes}
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(f"{folder / WEIGHTS}: is not the weights of {CONFIG} beside it ({error})") from None
    for target, names in classes.items():
        if weight[target].ndim != 2 or not len(weight[target]) == len(bias[target]) == len(names):
            raise ModelError(f"{folder / WEIGHTS}: {target} has not the {len(names)} classes that {CONFIG} names")
    return Probe(folder, config["network"], classes, inputs, weight, bias)


def probe_classes(folder: Path) -> dict[str, list[str]]:
    """The classes of each target, from the config alone. Raises ModelError."""
    return {target: about["classes"] for target, about in _config(folder / CONFIG)["targets"].items()}


def _config(file: Path) -> dict[str, Any]:
    try:
        config = read_mapping(file)
        targets = {
            target: {"classes": [str(name) for name in about["classes"]], "inputs": [str(x) for x in about["inputs"]]}
            for target, about in config["targets"].items()
        }
        network = config["network"]
    except (TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{file}: is no probe's config ({error!r}); docs/measure.md shows one") from None
    known = {"pooled", "stages"} if network == "efficientnet_lite0" else {"pooled"}
    if network not in NETWORKS:
        raise ModelError(f"{file}: network is {network!r}; it must be one of {', '.join(NETWORKS)}")
    for target, about in targets.items():
        if not about["inputs"] or set(about["inputs"]) - known:
            raise ModelError(
                f"{file}: {target} has the inputs {about['inputs']}; {network} gives {', '.join(sorted(known))}"
            )
        if len(set(about["classes"])) < max(2, len(about["classes"])):
            raise ModelError(f"{file}: {target} names a class twice, or fewer than two")
    return {"network": network, "targets": targets}


def wilson(hits: int, n: int, confidence: float) -> Interval:
    """A share of independent pictures with Wilson's score interval (1927)."""
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(confidence, dtype=torch.float64)))
    share, spread = hits / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), f"{100 * confidence:.4g} % Wilson")
