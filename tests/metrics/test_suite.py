"""The suite: which records there are of what, gate 3, and that nothing is loaded that no metric asks for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from asdm_cli.errors import ModelError
from asdm_cli.metrics import distances, suite
from asdm_cli.metrics.distances import resamples, wilson
from asdm_cli.metrics.features import FeatureNetwork, Features
from asdm_cli.metrics.probe import read_probe
from asdm_cli.metrics.suite import METRICS, MetricSuite, check
from asdm_cli.models.directory import find
from asdm_cli.recipe.verbs import Drawing
from asdm_cli.records import Record
from asdm_cli.sampling.image_set import ImageSet, real_set
from asdm_cli.sampling.prompts import PromptList, read_prompts
from tests.drawings import drawing, picture_set, shard
from tests.metrics.test_probe import probe

CPU = torch.device("cpu")
CLASSES = ["red", "green", "blue"]
ALL = ["kid", "fd", "is", "clip_score", "clip_retrieval", "label_accuracy", "psnr", "ssim", "fd_original"]


def look(images: Tensor) -> Features:
    """A network that sees mean colours, in 1280 numbers of which it knows three classes."""
    colours = images.float().mean((2, 3)) / 255
    return Features(torch.nn.functional.pad(colours, (0, 1277)), 5 * colours, colours)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    network = suite.feature_network

    def small(name: str, clip: Any, device: torch.device) -> FeatureNetwork:
        return network(name, clip, device) if name == "clip" else FeatureNetwork("small", "none", device, look)

    monkeypatch.setattr(suite, "feature_network", small)
    monkeypatch.setattr(suite, "require", lambda _name: None)


def recipe(folder: Path, metrics: list[str], **changes: Any) -> Any:
    usual = {"features": "efficientnet_lite0", "clip": "own", "probe": str(folder / "probe"), "bootstrap": 20}
    return SimpleNamespace(**{"metrics": metrics, **usual, "confidence": 0.9, "seed": 3, **changes})


@pytest.fixture
def prompts(tmp_path: Path) -> PromptList:
    """Six samples of two parts, of which two are red; each twice."""
    named = {i: {"json": json.dumps({"label": CLASSES[i % 3], "split": "ab"[i % 2]}).encode()} for i in range(6)}
    return read_prompts(str(shard(tmp_path / "six.tar", 6, named)), per_prompt=2)


@pytest.fixture
def built(tiny_pipeline: Path, prompts: PromptList, tmp_path: Path) -> MetricSuite:
    """A probe that takes everything for red."""
    own = probe(tmp_path / "probe", width=1280)
    save_file(
        {"label.weight": torch.zeros(3, 1280), "label.bias": torch.tensor([1.0, 0, 0])}, own / "model.safetensors"
    )
    settings = check(recipe(tmp_path, ALL), prompts, find(str(tiny_pipeline)))
    reference = picture_set(tmp_path / "plain", [drawing(index) for index in range(12)])
    real = real_set(prompts, 32, tmp_path / "real")
    return MetricSuite(settings, prompts, "plain", reference, real, tmp_path, CPU)


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    return picture_set(tmp_path / "ours", [drawing(index + 50) for index in range(12)])


def by_key(records: list[Record], of: str = "") -> dict[str, Record]:
    return {record.metric: record for record in records if record.of == of}


def test_every_metric_of_recipes_is_in_the_table() -> None:
    annotation: Any = Drawing.model_fields["metrics"].annotation
    assert set(get_args(get_args(annotation)[0])) == METRICS.keys()


def test_records_of_a_set_of_images(built: MetricSuite, images: ImageSet) -> None:
    records = built.measure("ours", images)
    whole = by_key(records)
    keys = ["kid", "fd", "is", "clip_score", "recall_at_1", "recall_at_5", "label_accuracy", "label_accuracy_change"]
    keys += ["psnr_db", "ssim", "fd_original"]
    assert list(whole) == keys
    assert {record.setup for record in records} == {"ours"}
    assert {record.n for record in whole.values()} == {12}
    assert {key: record.against for key, record in whole.items() if record.against} == {
        "label_accuracy_change": "plain",
        "psnr_db": "plain",
        "ssim": "plain",
        "fd_original": "plain",
    }
    for record in records:
        assert record.low is not None
        assert record.high is not None
        assert record.low <= record.value <= record.high
    kinds = {record.metric: record.interval for record in records}
    assert (kinds["kid"], kinds["fd"]) == ("90 % bootstrap", "90 % bootstrap, centred")
    assert {kinds[key] for key in ("recall_at_1", "label_accuracy")} == {"90 % Wilson"}
    right = whole["label_accuracy"]  # two pictures of a prompt, which are not two witnesses
    wider = [wilson(4, 12, 0.9, effect) for effect in (1, 2)]
    assert (right.value, right.n) == (wider[0].value, 12)
    assert wider[1].low <= right.low <= wider[0].low < wider[0].high <= right.high <= wider[1].high
    real, mine = (
        torch.cat([look(batch).pooled for batch in each.batches()]) for each in (built.real or images, images)
    )
    kid = distances.interval(distances.kid(mine, real, resamples(6, 20, 3).repeat(1, 2), resamples(6, 20, 4), 2), 0.9)
    assert (whole["kid"].value, whole["kid"].low, whole["kid"].high) == pytest.approx(kid[:3])
    for part, red in (("a", 2), ("b", 2)):  # of six each
        split = by_key(records, f"split/{part}")
        assert list(split) == ["clip_score", "recall_at_1", "recall_at_5", "label_accuracy"]
        assert (split["label_accuracy"].value, split["label_accuracy"].n) == (red / 6, 6)


def test_the_reference_real_images_and_the_unpaired_compare_with_nobody(built: MetricSuite, images: ImageSet) -> None:
    for records in (built.measure("plain", built.reference), built.measure("vae", images, paired=False)):
        assert not {"psnr_db", "ssim", "fd_original", "label_accuracy_change"} & by_key(records).keys()
        assert "kid" in by_key(records)
    real = built.measure_real("real")
    assert list(by_key(real)) == ["kid", "clip_score", "recall_at_1", "recall_at_5", "label_accuracy"]
    assert {record.n for record in by_key(real).values()} == {6}
    assert by_key(real, "split/a")["label_accuracy"].n == 3


def test_a_change_of_accuracy_is_that_of_the_same_prompts(built: MetricSuite, tmp_path: Path) -> None:
    """A probe that sees colours; of three pictures of each label one is made right, and another one wrong."""
    sees = torch.zeros(3, 1280)
    sees[:, :3] = torch.eye(3)
    asked = probe(tmp_path / "seeing", width=1280)
    save_file({"label.weight": sees, "label.bias": torch.zeros(3)}, asked / "model.safetensors")
    settings = replace(built.settings, metrics=("label_accuracy",), probe=read_probe(asked))

    def painted(name: str, wrong: set[int]) -> ImageSet:
        return picture_set(
            tmp_path / name,
            [Image.new("RGB", (32, 32), CLASSES[(index + (index in wrong)) % 3]) for index in range(12)],
        )

    suite = replace(built, settings=settings, reference=painted("original", {0, 1, 2}), _networks={})
    records = by_key(suite.measure("ours", painted("other", {2, 3})))
    assert records["label_accuracy"].value == pytest.approx(10 / 12)
    change = records["label_accuracy_change"]
    assert (change.value, change.n, change.against) == (pytest.approx(1 / 12), 12, "plain")
    assert change.low is not None
    assert change.low < 0 < change.value
    (same,) = (each for each in suite.measure("twin", painted("twin", {0, 1, 2})) if each.metric == change.metric)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_fd_to_the_original_is_of_its_pictures_and_nothing_for_equal_ones(
    built: MetricSuite, images: ImageSet, tmp_path: Path
) -> None:
    asked = replace(built, settings=replace(built.settings, metrics=("fd_original",)), real=None)
    (record,) = asked.measure("ours", images)
    mine, original = (torch.cat([look(batch).pooled for batch in each.batches()]) for each in (images, built.reference))
    ones = torch.ones(1, 12, dtype=torch.float64)
    wanted = distances.frechet(mine, original, ones, ones)
    assert record.value == pytest.approx(float(wanted), rel=1e-4)
    assert record.value > 0
    twin = picture_set(tmp_path / "twin", [drawing(index) for index in range(12)])
    (same,) = asked.measure("twin", twin)
    assert (same.value, same.low, same.high) == pytest.approx((0, 0, 0), abs=1e-6)


def test_only_what_is_asked_for_is_loaded(
    built: MetricSuite, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "load_clip", lambda *_: pytest.fail("no metric asks for it"))
    monkeypatch.setattr(suite, "feature_network", lambda *_: pytest.fail("no metric asks for it"))
    paired = replace(built, settings=replace(built.settings, metrics=("psnr", "ssim")))
    assert len(paired.measure("ours", images)) == 2


@pytest.mark.parametrize(
    ("metrics", "changes", "told"),
    [
        (
            ["kid", "fd"],
            {"prompts": "list.txt"},
            "metrics: fd and kid compare with real pictures, and list.txt has none",
        ),
        (["is"], {"limit": 1}, "is need pictures of two prompts or more; raise `limit`"),
        (["is"], {"features": "clip"}, "is needs a network that knows classes"),
        (["clip_score"], {"clip": "nowhere"}, "nowhere: has no config.json; give a transformers CLIP directory"),
        (["label_accuracy"], {"probe": "own"}, "has no folder probe/; give a probe's directory as `probe`"),
        (["style_accuracy"], {}, "knows no style, only label"),
        (["label_agreement", "label_accuracy"], {}, "label_accuracy needs prompts that name their label"),
        (["label_accuracy"], {"prompts": "unnamed.tar"}, "label_accuracy needs prompts that name their label"),
        (["label_accuracy"], {"prompts": "strange.tar"}, "label 'pink' is no class of the probe"),
    ],
)
def test_what_cannot_be_measured_is_told_before_drawing(
    metrics: list[str], changes: dict[str, Any], told: str, tiny_pipeline: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    probe(tmp_path / "probe")
    (tmp_path / "list.txt").write_text("a\nb\n")
    shard(tmp_path / "unnamed.tar", 2, {1: {"json": None}})
    shard(tmp_path / "strange.tar", 2, {i: {"json": b'{"label": "pink"}'} for i in range(2)})
    prompts = read_prompts(changes.pop("prompts", "unnamed.tar"), changes.pop("limit", None))
    with pytest.raises(ModelError, match=told):
        check(recipe(tmp_path, metrics, **changes), prompts, find(str(tiny_pipeline)))


def test_what_pictures_show_agrees_with_the_reference_of_the_same_seed(
    built: MetricSuite, images: ImageSet, tmp_path: Path
) -> None:
    """By a probe that takes the strongest colour for the label: prompts that name none will do, and no real picture is
    asked for."""
    save_file({"label.weight": torch.eye(3, 1280), "label.bias": torch.zeros(3)}, tmp_path / "probe/model.safetensors")
    shard(tmp_path / "unnamed.tar", 6, {i: {"json": None} for i in range(6)})
    unnamed = read_prompts(str(tmp_path / "unnamed.tar"), per_prompt=2)
    settings = check(recipe(tmp_path, ["label_agreement"]), unnamed, find("pocket"))
    assert not suite.against_real(settings.metrics)
    asked = replace(built, settings=settings, prompts=unnamed, real=None)
    seen = [torch.cat([look(batch).pooled[:, :3] for batch in each.batches()]) for each in (images, built.reference)]
    alike = int((seen[0].argmax(1) == seen[1].argmax(1)).sum())
    assert 0 < alike < 12, "the pictures of the test tell right from wrong"
    right = seen[0].argmax(1) == seen[1].argmax(1)
    effect = distances.design_effect(right, 2)
    wanted = Record("ours", "label_agreement", *wilson(alike, 12, 0.9, effect), n=12, against="plain")
    assert asked.measure("ours", images) == [wanted]
    assert asked.measure("plain", built.reference) == []
    twin = picture_set(tmp_path / "twin", [drawing(index) for index in range(12)])
    assert asked.measure("twin", twin)[0].value == 1
