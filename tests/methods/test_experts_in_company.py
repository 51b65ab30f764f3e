"""Models with experts under plans and in turns with others: what they inherit and when they serve is what plain
models would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import asdm_cli
from asdm_cli.errors import ModelError
from asdm_cli.experts.unet import ExpertUNet, expert_layers
from tests import turns
from tests.expanding import done, drawn, expand, on_its_own, picture


@pytest.mark.parametrize("interval", [1, 2])
def test_residuals_of_experts_are_inherited(tiny_pipeline: Path, tmp_path: Path, interval: int) -> None:
    """Where conv2, which ends a resnet's branch, is a bank of equal experts, what is carried is what the plain UNet
    carries."""
    assert expand(tmp_path, tiny_pipeline, experts=2, at=["down.?", "up.?"], router="time").code == 0
    pipes: list[Any] = [asdm_cli.load(str(each), "cpu") for each in (tiny_pipeline, tmp_path / "run")]
    assert len(expert_layers(pipes[1].unet)) == 2 * (4 * 2 + 4 * 3)
    pictures = []
    for pipe in pipes:
        on_its_own(pipe.unet)
        with asdm_cli.inherit(pipe, {"preset": "base-mask", "interval": interval}):
            pictures.append(picture(pipe, 4))
    assert torch.equal(*pictures)
    assert torch.equal(pictures[0], picture(pipes[0], 4)) == (interval == 1)


def test_a_written_plan_is_in_force(tiny_experts: Path, tmp_path: Path) -> None:
    """Through `asdm inherit`, which measures it: what it writes draws by its plan."""
    (tmp_path / "prompts.txt").write_text("a fox\ntwo owls\n")
    recipe = {
        "verb": "inherit",
        "model": str(tiny_experts),
        "prompts": str(tmp_path / "prompts.txt"),
        "plan": {"preset": "deepcache", "interval": 2},
        "metrics": ["psnr"],
        "steps": 4,
        "fewer_steps": [2],
        "repeats": 1,
        "warmups": 1,
    }
    pipe: Any = asdm_cli.load(str(done(tmp_path, recipe)), "cpu")
    assert type(pipe.unet) is ExpertUNet
    plain = drawn(tiny_experts)
    assert not torch.equal(picture(pipe), plain)
    asdm_cli.remove(pipe)
    assert torch.equal(picture(pipe), plain)


def test_directories_of_several_unets(tiny_experts: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    """As the first UNet and as another one; where one serves everything it is as if it were alone."""
    alone, plain = drawn(tiny_experts), drawn(tiny_pipeline)
    pipe: Any = asdm_cli.load(str(turns.switching(tiny_pipeline, tiny_experts, tmp_path / "both", plans={})), "cpu")
    kinds = {name: type(unet).__name__ for name, unet in pipe.unet.unets.items()}
    assert kinds == {"large": "UNet2DConditionModel", "small v1.5": "ExpertUNet"}
    assert not any(torch.equal(picture(pipe), each) for each in (alone, plain))
    for folder, pair, serves in (
        ("other", (tiny_pipeline, tiny_experts), "small v1.5"),
        ("first", (tiny_experts, tiny_pipeline), "large"),
    ):
        model = turns.switching(*pair, tmp_path / folder, plans={}, parts=[{"unet": serves}])
        pipe = asdm_cli.load(str(model), "cpu")
        assert torch.equal(picture(pipe), alone)
        pipe.unet.unets[serves].train().eval()  # forgets every kernel
        assert torch.equal(picture(pipe), alone)


def test_one_of_several_unets_is_not_expanded(tiny_experts: Path, tiny_base: Path, tmp_path: Path) -> None:
    model = turns.switching(tiny_base, tiny_experts, tmp_path / "both", plans={})
    said = expand(tmp_path / "no", model, at=["mid"])
    assert (said.code, said.out) == (2, "")
    assert "holds several UNets that take turns" in said.text


def test_a_damaged_member_is_named(tiny_experts: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    model = turns.switching(tiny_pipeline, tiny_experts, tmp_path / "both", plans={})
    folder = model / "unets" / "small v1.5"
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=r"small v1\.5.*is missing"):
        asdm_cli.load(str(model), "cpu")


def test_half_precision_draws_alike(tiny_experts: Path) -> None:
    half: Any = asdm_cli.load(str(tiny_experts), "cpu", "bfloat16")
    found = picture(half)
    torch.testing.assert_close(found, drawn(tiny_experts), atol=0.2, rtol=0)
    assert torch.equal(found, picture(half))
