"""Probes: read from their two files, asked about features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from asdm_cli.errors import ModelError
from asdm_cli.metrics.features import Features
from asdm_cli.metrics.probe import CONFIG, WEIGHTS, read_probe
from tests import pages

CLASSES = ["red", "green", "blue"]


def probe(folder: Path, width: int = 4, **changes: Any) -> Path:
    """One target, whose classes are the first three features, in that order."""
    folder.mkdir(parents=True, exist_ok=True)
    target = {"classes": CLASSES, "inputs": ["pooled"]} | changes.pop("target", {})
    (folder / CONFIG).write_text(json.dumps({"network": "efficientnet_lite0", "targets": {"label": target}} | changes))
    weight = torch.eye(3, width)
    save_file({"label.weight": weight.half(), "label.bias": torch.tensor([0.0, 0, 5])}, folder / WEIGHTS)
    return folder


def test_ranks_count_the_classes_that_fit_better(tmp_path: Path) -> None:
    read = read_probe(probe(tmp_path))
    pooled = torch.tensor([[9.0, 0, 0, 7], [2, 1, 0, 7], [0, 6, 0, 7]])  # logits 9 0 5, 2 1 5, 0 6 5
    assert read.ranks("label", Features(pooled), ["red", "green", "blue"]).tolist() == [0, 2, 1]


def test_inputs_are_raised_to_a_power(tmp_path: Path) -> None:
    read = read_probe(probe(tmp_path, target={"power": 0.5}))
    pooled = torch.tensor([[36.0, 0, -4, 0]])  # 6 0 -2: logits 6 0 3
    assert read.ranks("label", Features(pooled), ["blue"]).tolist() == [1]
    assert read.ranks("label", Features(-pooled), ["blue"]).tolist() == [0]  # -6 0 2: logits -6 0 7


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"network": "vgg"}, "network: Input should be 'efficientnet_lite0' or 'inception'"),
        ({"network": "inception", "target": {"inputs": ["stages"]}}, "inception gives pooled"),
        ({"target": {"power": "x"}}, "this is no probe's config; docs/measure.md shows one"),
        ({"target": {"power": 0}}, "targets.label.power: Input should be greater than 0"),
        ({"target": {"power": 2.1}}, "targets.label.power: Input should be less than or equal to 2"),
        ({"target": {"inputs": []}}, "targets.label.inputs: List should have at least 1 item"),
        ({"target": {"classes": ["red", "red", "blue"]}}, "label names a class twice"),
        ({"target": {"classes": ["red", "blue"]}}, "label has not the 2 classes"),
        ({"targets": None}, "targets: Input should be a valid dictionary"),
        ({"targets": {"style": {"classes": ["a", "b"], "inputs": ["pooled"]}}}, "is not the weights of"),
    ],
)
def test_a_probe_that_is_none_is_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=told):
        read_probe(probe(tmp_path, **changes))


def test_the_probe_of_the_page_is_one(tmp_path: Path) -> None:
    (block,) = [block for block in pages.blocks(pages.ROOT / "docs" / "measure.md") if block.kind == "json"]
    (tmp_path / CONFIG).write_text(block.text)
    weights = {
        f"{name}.{part}": torch.zeros(2, *[1] * (part == "weight"))
        for name in ("label", "style")
        for part in ("weight", "bias")
    }
    save_file(weights, tmp_path / WEIGHTS)
    read = read_probe(tmp_path)
    assert read.targets["label"].classes == ["fox", "owl"]
    assert [target.power for target in read.targets.values()] == [0.5, 1]
