"""What a recipe makes of a training, and what of a student does not learn: by address, by module, by donor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from asdm_cli.errors import ModelError
from asdm_cli.recipe.verbs import DistillRecipe
from asdm_cli.training.plan import SHARDED, ErrorCollector, check_settings, frozen_keys
from asdm_cli.training.student import optimizer_of
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import preset
from asdm_cli.unet.shapes import tensor_shapes
from tests.data import tars

KEYS = list(tensor_shapes(preset("sd15")))
TAKEN = {
    "original": ["down.2", "down.3", "mid", "up.0", "up.1", "time_embedding"],
    "base": ["down.0", "down.1", "up.2", "up.3", "conv_in", "conv_norm_out", "conv_out"],
}
DEEP = ("down_blocks.2.", "down_blocks.3.", "mid_block.", "up_blocks.0.", "up_blocks.1.", "time_embedding.")
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"


def settings(**changes: Any) -> dict[str, Any]:
    """What the optimizer of such a recipe is set to, if the recipe may be trained."""
    students = [{"name": "s", "model": "m"}]
    recipe = {"verb": "distill", "teacher": "p", "students": students, "steps": 3, "out": "o", "device": "cpu"}
    errors = ErrorCollector()
    read = DistillRecipe.model_validate({**recipe, **changes})
    check_settings(read, errors)
    errors.raise_all()
    return optimizer_of(read.optimizer, [torch.nn.Parameter(torch.zeros(1))]).defaults


def frozen(patterns: str | list[str], taken: dict[str, list[str]] = TAKEN) -> frozenset[str]:
    return frozen_keys(Anatomy.of(preset("sd15")), KEYS, patterns, taken)


def test_optimizers_that_can_take_one_fused_pass() -> None:
    assert (settings()["fused"], settings()["weight_decay"]) == (True, 0.01)
    assert not settings(optimizer={"options": {"fused": False}})["fused"]
    assert "fused" not in settings(optimizer={"name": "RMSprop", "options": {}})
    assert settings(optimizer={"options": {"foreach": True}})["foreach"]


@pytest.mark.parametrize(
    ("optimizer", "fault"),
    [
        ({"options": {"weight_dekay": 0.1}}, "AdamW does not take the options"),
        ({"options": {"betas": [0.9]}}, r"AdamW does not take the options \(.*index out of range"),
        ({"name": "Muon"}, "Muon does not take the options"),
        ({"schedule": "polynomial", "lr": 1e-8}, ".*lr_end"),
        ({"name": "LBFGS", "options": {}}, "LBFGS"),
        ({"name": "SparseAdam", "options": {}}, "SparseAdam"),
        ({"name": "Optimizer", "options": {}}, "Optimizer"),
        ({"name": "json:loads"}, "'json:loads' is no torch optimizer"),
        ({"name": "no.such.package:Adam"}, "'no.such.package:Adam' is not there"),
        ({"name": ".there:Adam"}, "'.there:Adam' is not there"),
    ],
)
def test_optimizers_that_cannot_be_used_are_refused(optimizer: dict[str, Any], fault: str) -> None:
    with pytest.raises(ModelError, match=f"^optimizer: {fault}"):
        settings(optimizer=optimizer)


@pytest.mark.parametrize("name", SHARDED)
def test_shared_out_weights_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ModelError, match=f"^device: the launcher switched {name} on"):
        settings()


def test_compiling_for_a_cpu_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^compile: .*leave it out here$"):
        settings(compile=True)


@pytest.mark.parametrize(
    ("patterns", "prefixes"),
    [
        ("mid", ("mid_block.",)),
        (["down.0", "up.3.1"], ("down_blocks.0.", "up_blocks.3.resnets.1.", "up_blocks.3.attentions.1.")),
        ("level.3", ("down_blocks.3.", "up_blocks.0.")),
        (["conv_in", "time_embedding"], ("conv_in.", "time_embedding.")),
        (["conv_norm_out", "mid.0.resnet"], ("conv_norm_out.", "mid_block.resnets.0.")),
        ("down.?.sampler", tuple(f"down_blocks.{i}.downsamplers." for i in range(3))),
        ("down.0.0.self", (f"{BLOCK}.attn1.", f"{BLOCK}.norm1.")),
        ("down.0.0.attn", ("down_blocks.0.attentions.0.",)),
        ("down.0.0.attn.0", (f"{BLOCK}.",)),
        ("from original", DEEP),
        (["from original", "conv_in"], (*DEEP, "conv_in.")),
        (["from original", "from base"], ("",)),
    ],
)
def test_patterns_freeze_what_they_name(patterns: str | list[str], prefixes: tuple[str, ...]) -> None:
    found = frozen(patterns)
    assert found
    assert found == {key for key in KEYS if key.startswith(prefixes)}


@pytest.mark.parametrize(
    ("patterns", "taken", "fault"),
    [
        ("from nobody", TAKEN, "'from nobody': the student has nothing from 'nobody'; its donors are original, base"),
        ("from original", {}, "'from original': the student has nothing from 'original'; it was not made by asdm as"),
        ("down.7", {}, r"down\.7"),
        (["mid", "conv_inn"], {}, "conv_inn: .*; outside .* are conv_in, conv_norm_out, conv_out, time_embedding$"),
    ],
)
def test_what_names_nothing_is_refused(patterns: str | list[str], taken: dict[str, list[str]], fault: str) -> None:
    with pytest.raises(ModelError, match=fault):
        frozen(patterns, taken)


def test_what_is_learnt_from_is_not_held_out(tmp_path: Path) -> None:
    for number in range(3):
        tars.write(tmp_path / f"{number}.tar", tars.samples(number))
    settings(data={"train": f"{tmp_path}/[01].tar", "held_out": f"{tmp_path}/2.tar"})
    with pytest.raises(ModelError, match=r"^data\.held_out: .*/1\.tar: is learnt from, as data\.train names it; hold"):
        settings(data={"train": f"{tmp_path}/[01].tar", "held_out": f"{tmp_path}/{{1,2}}.tar"})


def test_streams_are_for_a_cache() -> None:
    with pytest.raises(ModelError, match=r"^data\.cache: .*can only be read from its start; train from a cache"):
        settings(data={"cache": "none"})
