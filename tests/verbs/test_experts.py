"""Models with expert convolutions in the other verbs: assembled, pruned, taught, judged, drawn, under plans and in
turns with others. Benches are in tests/compare."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import asdm_cli
from asdm_cli.experts.unet import expert_layers
from asdm_cli.models.card import loading
from asdm_cli.models.directory import find
from asdm_cli.training.distillation import Distillation
from asdm_cli.unet.blocks import specs
from asdm_cli.unet.weights import WEIGHTS
from tests import expanding, turns
from tests.data import tars
from tests.expanding import done, drawn, expand, on_its_own, picture
from tests.typed import asdm

BANK = "down_blocks.1.resnets.0.conv1"


def weights(model: Path) -> dict[str, Tensor]:
    return {name: each for file in (model / "unet").glob("*.safetensors") for name, each in load_file(file).items()}


def experts(folder: Path, model: Path, **what: Any) -> Path:
    run = done(folder, {"verb": "condconv-expand", "model": str(model), "expand": what})
    return expanding.stirred(run / "model")


def test_assembled_of_several_kinds_each_part_stays_what_it_was(
    tiny_pipeline: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """Of donors with two experts, with four and with none: their tensors, byte for byte."""
    two = experts(tmp_path / "two", tiny_base, experts=2, donor=str(tiny_pipeline))
    four = experts(tmp_path / "four", tiny_base, experts=4, donor=str(tiny_pipeline))
    models = {"stock": tiny_pipeline, "two": two, "four": four}
    sides = ["two", "four", "stock", "stock"]
    recipe = {"verb": "assemble", "donors": {name: str(model) for name, model in models.items()}}
    run = done(tmp_path / "made", {**recipe, "levels": sides, "mid": "stock"})
    held = specs(find(str(run)).config("unet"))
    counts = {name: spec.experts for name, spec in held.items()}
    level = {"down_blocks.0": 2, "up_blocks.3": 2, "down_blocks.1": 4, "up_blocks.2": 4}
    assert {".".join(name.split(".")[:2]) for name in counts} == set(level)
    assert len(counts) == 2 * 2 * (1 + 2)
    for name, count in counts.items():
        assert count == level[".".join(name.split(".")[:2])]
    have, seen = {name: weights(model) for name, model in models.items()}, 0
    for name, tensor in weights(run / "model").items():
        for block, count in level.items():
            if name.startswith(block):
                assert torch.equal(tensor, have[{2: "two", 4: "four"}[count]][name]), name
                seen += name.rpartition(".")[0] in counts
    assert seen == 12 * 2
    made = expanding.unet(run)
    assert set(expert_layers(made)) == set(counts)
    assert expanding.answer(made).isfinite().all()


def test_pruned_of_all_its_experts_it_is_stock_again(tiny_pipeline: Path, tmp_path: Path) -> None:
    gone = ["down.0.1", "up.3.1"]
    grown = experts(tmp_path / "grown", tiny_pipeline, experts=2, at=gone)
    assert len(expert_layers(expanding.unet(grown))) == 4
    pruned, plain = (
        done(tmp_path / name, {"verb": "prune", "model": str(model), "remove": gone})
        for name, model in {"pruned": grown, "plain": tiny_pipeline}.items()
    )
    for file in ("model_index.json", "unet/config.json", f"unet/{WEIGHTS}"):
        assert (pruned / "model" / file).read_bytes() == (plain / "model" / file).read_bytes(), file
    assert type(expanding.unet(pruned)).__name__ == "UNet2DConditionModel"


def test_pruned_experts_follow_their_layers(tiny_experts: Path, tmp_path: Path) -> None:
    gone = ["down.2.sampler", "down.3", "mid", "up.0"]
    pruned = done(tmp_path, {"verb": "prune", "model": str(tiny_experts), "remove": gone})
    left, whole = (expert_layers(expanding.unet(model)) for model in (pruned, tiny_experts))
    moved = {name: name.replace("up_blocks.0", "up_blocks.1") for name in left if name.startswith("up_blocks.0")}
    assert (len(left), len(moved)) == (18, 4)
    for name, origin in {**moved, "down_blocks.2.resnets.0.conv2": "down_blocks.2.resnets.0.conv2"}.items():
        mine, theirs = left[name].state_dict(), whole[origin].state_dict()
        assert len(mine) == 2
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.fixture(scope="module")
def lesson(
    tiny_pipeline: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """A short distillation of copies, level 0 frozen, and the model that it begins with."""
    folder = tmp_path_factory.mktemp("lesson")
    tars.write(folder / "train.tar", tars.samples(*range(8)))
    said = expand(folder, tiny_base, experts=3, donor=str(tiny_pipeline))
    assert said.code == 0, said.err
    recipe = {
        "verb": "distill",
        "teacher": str(tiny_pipeline),
        "students": [{"name": "experts", "model": str(folder / "run"), "freeze": "level.0"}],
        "data": {"train": str(folder / "train.tar"), "cache_folder": str(folder / "cache")},
        "steps": 4,
        "batch": 4,
        "precision": "float32",
        "optimizer": {"lr": 1e-2, "warmup": 1},
        "ema": {"decay": 0.5},
        "validation": {"every": 2, "prompts": ["a fox", "an owl"], "steps": 2},
        "device": "cpu",
    }
    return recipe, folder / "run/model"


@pytest.fixture(scope="module")
def taught(lesson: tuple[dict[str, Any], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return done(tmp_path_factory.mktemp("taught"), lesson[0])


def test_experts_learn_apart_and_frozen_ones_stay(lesson: tuple[dict[str, Any], Path], taught: Path) -> None:
    before, after = weights(lesson[1]), weights(taught / "model")
    assert before.keys() == after.keys()
    frozen = [name for name in before if name.startswith(("down_blocks.0.", "up_blocks.3."))]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    first, second, third = after[f"{BANK}.weight"].chunk(3)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    unet = expanding.unet(taught)
    assert len(expert_layers(unet)) == 24
    assert expanding.answer(unet).isfinite().all()
    assert "it has expert convolutions" in (taught / "model/README.md").read_text()
    made: dict[str, Any] = {}
    place = str(taught / "model/unet")  # a bare UNet has no pipeline to load
    exec("\n".join(loading(find(place), place)), made)
    assert torch.equal(made["unet"].state_dict()[f"{BANK}.weight"], after[f"{BANK}.weight"])


def test_an_interrupted_lesson_ends_the_same(
    lesson: tuple[dict[str, Any], Path], taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, calls = Distillation.read, []

    def stop_at_the_third(self: Distillation, rows: Tensor, noise: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return reads(self, rows, noise)

    monkeypatch.setattr(Distillation, "read", stop_at_the_third)
    told = expanding.run(tmp_path, lesson[0])
    assert told.code == 1
    assert "the same command goes on" in told.text
    told = asdm("distill", tmp_path / "recipe.yaml")
    assert told.code == 0, told.err
    assert len(calls) == 4, "no step was done twice"
    mine, theirs = weights(tmp_path / "run/model"), weights(taught / "model")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


# In company


@pytest.mark.parametrize("interval", [1, 2])
def test_residuals_of_experts_are_reused(tiny_pipeline: Path, tmp_path: Path, interval: int) -> None:
    """Where conv2, which ends a resnet's branch, is a bank of equal experts, what is kept is what the plain UNet
    keeps."""
    assert expand(tmp_path, tiny_pipeline, experts=2, at=["down.?", "up.?"]).code == 0
    pipes: list[Any] = [asdm_cli.load(str(each), "cpu") for each in (tiny_pipeline, tmp_path / "run")]
    assert len(expert_layers(pipes[1].unet)) == 2 * (4 * 2 + 4 * 3)
    pictures = []
    for pipe in pipes:
        on_its_own(pipe.unet)
        with asdm_cli.inherit(pipe, {"preset": "base-mask", "interval": interval}):
            pictures.append(picture(pipe, 4))
    assert torch.equal(*pictures)
    assert torch.equal(pictures[0], picture(pipes[0], 4)) == (interval == 1)


def test_directories_of_several_unets(tiny_experts: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    """As the first UNet and as another one; where one serves everything it is as if it were alone."""
    alone, plain = drawn(tiny_experts), drawn(tiny_pipeline)
    pipe: Any = asdm_cli.load(str(turns.switching(tiny_pipeline, tiny_experts, tmp_path / "both")), "cpu")
    kinds = {name: type(unet).__name__ for name, unet in pipe.unet.unets.items()}
    assert kinds == {"large": "UNet2DConditionModel", "small v1.5": "ExpertUNet"}
    assert not any(torch.equal(picture(pipe), each) for each in (alone, plain))
    for folder, pair, serves in (
        ("other", (tiny_pipeline, tiny_experts), "small v1.5"),
        ("first", (tiny_experts, tiny_pipeline), "large"),
    ):
        model = turns.switching(*pair, tmp_path / folder, parts=[{"unet": serves}])
        pipe = asdm_cli.load(str(model), "cpu")
        assert torch.equal(picture(pipe), alone)
