"""Probes: read from their two files, asked about features, counted in an evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import binomtest

from asdm_cli.errors import ModelError
from asdm_cli.measure.eval_plan import make_plan
from asdm_cli.measure.features import Features
from asdm_cli.measure.probe import CONFIG, WEIGHTS, read_probe, wilson
from asdm_cli.methods import evaluate
from asdm_cli.recipe.verbs import EvalRecipe
from asdm_cli.report.document import Interval, Table
from asdm_cli.report.run_directory import Run
from tests import pages
from tests.drawings import shard

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


def test_inputs_are_laid_end_to_end(tmp_path: Path) -> None:
    read = read_probe(probe(tmp_path, target={"inputs": ["stages", "pooled"]}))
    features = Features(torch.tensor([[3.0, 9.0]]), None, torch.tensor([[0.0, 8.0]]))  # 0 8 3 (9): logits 0 8 8
    assert read.ranks("label", features, ["red"]).tolist() == [2]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"network": "vgg"}, "network is 'vgg'; it must be one of efficientnet_lite0, inception"),
        ({"network": "inception", "target": {"inputs": ["stages"]}}, "inception gives pooled"),
        ({"target": {"power": "x"}}, "is no probe's config"),
        ({"target": {"power": 0}}, "label has the power 0.0; it must lie between 0 and 2"),
        ({"target": {"inputs": []}}, r"label has the inputs \[\]"),
        ({"target": {"classes": ["red", "red", "blue"]}}, "label names a class twice"),
        ({"target": {"classes": ["red", "blue"]}}, "label has not the 2 classes"),
        ({"targets": None}, "is no probe's config"),
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


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (3, 7), (7, 7), (480, 512)])
def test_wilson_is_scipy_s(hits: int, n: int) -> None:
    found = wilson(hits, n, 0.9)
    theirs = binomtest(hits, n).proportion_ci(0.9, method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((hits / n, theirs.low, theirs.high), abs=1e-9)


@pytest.fixture
def recipe(tiny_pipeline: Path, tmp_path: Path) -> dict[str, Any]:
    """A probe that takes everything for red, and six samples of which two are red."""
    own = probe(tmp_path / "probe", width=1280)
    save_file({"label.weight": torch.zeros(3, 1280), "label.bias": torch.tensor([1.0, 0, 0])}, own / WEIGHTS)
    named = {i: {"json": json.dumps({"label": CLASSES[i % 3], "split": "ab"[i % 2]}).encode()} for i in range(6)}
    return {
        "verb": "eval",
        "models": [{"name": "one", "model": str(tiny_pipeline)}],
        "prompts": str(shard(tmp_path / "six.tar", 6, named)),
        "per_prompt": 2,
        "metrics": ["label_accuracy"],
        "probe": str(own),
        "steps": 1,
        "bootstrap": 10,
        "device": "cpu",
        "out": str(tmp_path / "run"),
    }


def test_an_evaluation_counts_beside_real_pictures_and_reconstructions(recipe: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    report = evaluate.run(make_plan(EvalRecipe.model_validate(recipe)), Run(run))
    whole, splits = (part for part in report.parts if isinstance(part, Table))
    for row in whole.rows:
        found = row["label_accuracy"]
        assert isinstance(found, Interval)
        assert found.value == pytest.approx(1 / 3), row["name"]
    spread = {row["name"]: row["label_accuracy"] for row in whole.rows}
    assert [spread["one"], spread["real pictures"]] == [wilson(4, 12, 0.95), wilson(2, 6, 0.95)]
    assert {(row["name"], row["split"]) for row in splits.rows} >= {("one", "a"), ("real pictures", "b")}
    pictures = sorted((run / "pictures" / "one").glob("*.png"))
    assert len({picture.read_bytes() for picture in pictures}) == 12, "each with a seed of its own"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"probe": "own"}, "has no folder probe/; give a probe's directory as `probe`"),
        ({"metrics": ["style_accuracy"]}, "knows no style, only label"),
        ({"prompts": "unnamed.tar"}, "label_accuracy needs prompts that name their label"),
        ({"prompts": "strange.tar"}, "label 'pink' is no class of the probe"),
    ],
)
def test_what_a_probe_cannot_tell_is_told_before_drawing(
    changes: dict[str, Any], told: str, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shard(tmp_path / "unnamed.tar", 2, {1: {"json": None}})
    shard(tmp_path / "strange.tar", 2, {i: {"json": b'{"label": "pink"}'} for i in range(2)})
    with pytest.raises(ModelError, match=told):
        make_plan(EvalRecipe.model_validate(recipe | changes))
