"""The verb condconv-expand as typed: what it makes of a model, what it says of it, and what it refuses."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from asdm_cli.methods import condconv
from asdm_cli.unet.cost import macs
from asdm_cli.unet.expert_unet import expert_layers
from tests import expanding
from tests.apart import shared
from tests.expanding import answer, expand, unet

STARTS = ("copies", "noise", "inherited")
WEIGHTS = ("softmax", "normalised-sigmoid", "sigmoid")
WAYS = [each for each in product(STARTS, WEIGHTS) if each != ("copies", "sigmoid")]
"""That one is refused."""


@pytest.fixture(scope="module")
def plain(tiny_base: Path) -> dict[int, Tensor]:
    """What Base answers for one row and for two."""
    base = unet(tiny_base)
    return {rows: answer(base, rows) for rows in (1, 2)}


@pytest.mark.parametrize("way", range(len(WAYS)))
def test_begins_as_what_it_was(
    tiny_base: Path, tiny_pipeline: Path, plain: dict[int, Tensor], tmp_path: Path, way: int
) -> None:
    """With what a recipe does not say left out. Routers in turn: tests/models/test_experts.py goes on."""
    (start, weights), router = WAYS[way], ("features", "time", "both")[way % 3]
    what = {"donor": str(tiny_pipeline), "router": router, "start": start, "weights": weights}
    said = expand(tmp_path, tiny_base, **what)
    assert said.code == 0, said.err
    wide = unet(tmp_path / "run")
    assert {layer.spec.experts for layer in expert_layers(wide).values()} == {4}
    assert len(expert_layers(wide)) == 24
    for rows, wanted in plain.items():
        got = answer(wide, rows)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
        if start == "copies" and (rows == 1 or router == "time"):
            assert torch.equal(got, wanted)


def test_copies_draw_the_same_pictures(tiny_base: Path, tmp_path: Path) -> None:
    """Which takes a whole picture apart and together again: through guidance and over all steps."""
    assert expand(tmp_path, tiny_base, at=["down.0", "up.1"], router="time").code == 0
    assert torch.equal(expanding.drawn(tmp_path / "run"), expanding.drawn(tiny_base))


def test_inherits_the_removed_kernels(tiny_base: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    assert expand(tmp_path, tiny_base, experts=3, donor=str(tiny_pipeline), start="inherited").code == 0
    wide, donor, own = (unet(each) for each in (tmp_path / "run", tiny_pipeline, tiny_base))
    pairs = {
        "down_blocks.0.resnets.0.conv2": "down_blocks.0.resnets.1.conv2",
        "up_blocks.1.resnets.1.conv2": "up_blocks.1.resnets.1.conv2",
    }
    for name, sibling in pairs.items():
        kept, taken, filled = wide.get_submodule(name).weight.chunk(3)
        assert torch.equal(kept, own.get_submodule(name).weight)
        assert torch.equal(taken, donor.get_submodule(sibling).weight)
        assert torch.equal(filled, kept)
    unfit = wide.get_submodule("up_blocks.2.resnets.1.conv1").weight.chunk(3)  # the removed one is wider
    assert torch.equal(unfit[0], unfit[1])
    rows = table(tmp_path, "Convolutions of experts")
    told = {row["address"]: row["inherits"] for row in rows}
    assert len(told) == 24
    assert told["down.0.0.resnet conv2"] == "down_blocks.0.resnets.1.conv2"
    assert told["up.2.1.resnet conv1"] == "copies of its own"


def table(folder: Path, title: str) -> list[dict[str, Any]]:
    parts = json.loads((folder / "run/report.json").read_text())["parts"]
    rows: list[dict[str, Any]] = next(part["rows"] for part in parts if part["title"] == title)
    return rows


def test_says_what_it_costs(tiny_base: Path, tmp_path: Path) -> None:
    said = expand(tmp_path, tiny_base, experts=2, at=["down.0"], router="features")
    assert said.code == 0, said.err
    before, after = unet(tiny_base), unet(tmp_path / "run")
    counts = [sum(each.numel() for each in of.parameters()) for of in (before, after)]
    assert counts[1] - counts[0] == 2 * (8 * 8 * 9 + 8 + 2 * 8 + 2)
    costs = [macs(dict(of.config), batch=2, tokens=16).total for of in (before, after)]
    mixing = 2 * (8 * 8 * 9 + 8)
    assert costs[1] - costs[0] == 2 * (mixing + 2 * 2 * 8), "kernels of two rows, and two routers"
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert f"2 convolutions of 2 experts, {counts[0] / 1e6:.2f} M → {counts[1] / 1e6:.2f} M" in report["summary"]
    assert f"({costs[1] / costs[0] - 1:+.1%})" in report["summary"]
    assert report["cards"]["macs"]["rows"] == "2, a kernel each"


def test_a_dry_run_tells_and_writes_nothing(tiny_base: Path, tmp_path: Path) -> None:
    what = {"experts": 2, "at": ["down.0"]}
    recipe = {"verb": "condconv-expand", "model": str(tiny_base), "expand": what}
    said = expanding.run(tmp_path, recipe, "--dry-run")
    assert (said.code, said.out) == (0, "")
    assert "2 convolutions of 2 experts" in said.text
    assert not (tmp_path / "run").exists()


def test_by_link_weights_are_those_of_the_source(tiny_base: Path, tmp_path: Path) -> None:
    recipe = {"verb": "condconv-expand", "model": str(tiny_base), "expand": {"experts": 2, "at": ["down.0"]}}
    assert expanding.run(tmp_path, recipe, "--link").code == 0
    weights = {f"{name}/{file}.safetensors" for name, file in (("vae", "diffusion_pytorch_model"), ("clip", "model"))}
    assert shared(tmp_path / "run/model", tiny_base) == weights | {"text_encoder/model.safetensors"}


def test_the_rest_is_copied_and_the_history_told(tiny_base: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    assert expand(tmp_path, tiny_base, experts=2, donor=str(tiny_pipeline), start="noise").code == 0
    made, base = tmp_path / "run/model", tiny_base / "model"
    for file in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (made / file).read_bytes() == (base / file).read_bytes()
    assert not shared(made, base, tiny_pipeline)
    first, last = json.loads((made / "asdm.json").read_text())["history"]
    assert (first["verb"], last["verb"], last["donor"], last["convolutions"]) == (
        "prune",
        "condconv-expand",
        tiny_pipeline.name,
        24,
    )
    assert (last["experts"], last["router"], last["weights"], last["start"]) == (2, "time", "softmax", "noise")
    assert str(tiny_pipeline.parent) not in (made / "asdm.json").read_text()
    assert json.loads((tmp_path / "run/report.json").read_text())["cards"]["macs"]["rows"] == "2, one kernel for all"


def test_a_bare_unet(tiny_base: Path, tmp_path: Path) -> None:
    assert expand(tmp_path, tiny_base / "model/unet", experts=2, at=["mid", "level.1"]).code == 0
    assert not (tmp_path / "run/model/model_index.json").exists()
    wide = unet(tmp_path / "run")
    assert len(expert_layers(wide)) == 2 * (2 + 1 + 2)
    assert torch.equal(answer(wide), answer(unet(tiny_base)))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no donor": ({}, "expand.donor: must be given, or 'at'"),
    "nothing to inherit": (
        {"start": "inherited", "at": ["mid"]},
        "expand.donor: must be given with 'start: inherited'",
    ),
    "one": ({"experts": 1, "at": ["mid"]}, "expand.experts: must be at least 2"),
    "noise": ({"at": ["mid"], "noise": 0.1}, "expand.noise: goes with 'start: noise'"),
    "share": ({"at": ["mid"], "share": 0.1}, "expand.share: goes with 'start: inherited'"),
    "address": ({"at": ["nowhere"]}, "nowhere"),
    "sampler": ({"at": ["down.0.sampler"]}, "has no resnet"),
    "router": ({"at": ["mid"], "router": "moon"}, "expand.router: must be one of"),
    "twins": ({"at": ["mid"], "weights": "sigmoid"}, "equal copies under 'sigmoid' would all learn the same"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_what_does_not_fit_is_refused(tiny_base: Path, tmp_path: Path, which: str) -> None:
    what, message = REFUSED[which]
    said = expand(tmp_path, tiny_base, **what)
    assert (said.code, said.out) == (2, "")
    assert message in said.text
    assert not (tmp_path / "run").exists()


def test_models_that_do_not_fit_are_refused(
    tiny_experts: Path, tiny_pipeline: Path, tiny_base: Path, tmp_path: Path
) -> None:
    said = expand(tmp_path, tiny_experts, at=["mid"])
    assert (said.code, said.out) == (2, "")
    assert "made of experts already" in said.text
    said = expand(tmp_path, tiny_pipeline, donor=str(tiny_pipeline))
    assert "no block has fewer layers than the donor's" in said.text
    for message, keys in {
        "expand: must be given, or 'fold'": {},
        "fold: either 'expand' or 'fold', not both": {"expand": {"at": ["mid"]}, "fold": {}},
    }.items():
        said = expanding.run(tmp_path, {"verb": "condconv-expand", "model": str(tiny_base), **keys})
        assert said.code == 2
        assert message in said.text


def test_a_donor_of_experts_gives_no_single_kernel(tiny_experts: Path, tiny_base: Path, tmp_path: Path) -> None:
    """Its banks are of another shape: copies fill up, and the model begins as it was."""
    what = {"experts": 2, "donor": str(tiny_experts), "at": ["down.0"], "start": "inherited"}
    assert expand(tmp_path, tiny_base, **what).code == 0
    torch.testing.assert_close(answer(unet(tmp_path / "run")), answer(unet(tiny_base)), atol=1e-5, rtol=1e-5)


def test_what_a_recipe_does_not_say() -> None:
    assert (condconv.NOISE, condconv.SHARE) == (0.05, 1e-6), "as the recipe's descriptions have it"
