"""The verb condconv-expand as typed: what it makes of a model, how that folds again, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

import asdm_cli
from asdm_cli.experts.unet import expert_layers
from asdm_cli.report.run_directory import read
from asdm_cli.sampling.generate import SamplingSettings
from asdm_cli.sampling.routing import observe
from asdm_cli.unet.flops import macs
from tests import expanding
from tests.apart import shared
from tests.expanding import answer, expand, figures, unet
from tests.typed import Said

WAYS = (
    ("copies", "softmax", "features"),
    ("noise", "normalised-sigmoid", "time"),
    ("inherited", "sigmoid", "both"),
)
PROMPTS = ("a fox", "two red owls")
LOOK = {"steps": 3, "guidance": 2.0, "seed": 5}
SETTINGS = SamplingSettings(3, 2.0, None, 5)


def fold(folder: Path, model: Path, *options: object, **what: Any) -> Said:
    return expanding.run(folder, {"verb": "condconv-expand", "model": str(model), "fold": what}, *options)


@pytest.mark.parametrize(("init", "weights", "router"), WAYS)
def test_begins_as_what_it_was(
    tiny_base: Path, tiny_pipeline: Path, tmp_path: Path, init: str, weights: str, router: str
) -> None:
    """With what a recipe does not say left out. All ways there are: tests/experts/test_convert.py."""
    said = expand(tmp_path, tiny_base, donor=str(tiny_pipeline), router=router, start=init, weights=weights)
    assert said.code == 0, said.err
    wide, base = unet(tmp_path / "run"), unet(tiny_base)
    assert [layer.spec.experts for layer in expert_layers(wide).values()] == [4] * 24
    for rows in (1, 2):
        got, wanted = answer(wide, rows), answer(base, rows)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
        assert torch.equal(got, wanted) or init != "copies" or (rows > 1 and router != "time")


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
    told: Any = read(tmp_path / "run").facts
    assert sum(": its own, then " in str(how) for how in told.values()) == 24
    assert str(told["convolutions"]).startswith("24, of 3 experts each (router: time, softmax; start: inherited)")
    assert told["down.0.0.resnet conv2"] == "3 of 8 × 8 × 3 × 3: its own, then down_blocks.0.resnets.1.conv2"
    assert told["up.2.1.resnet conv1"].endswith("its own, then copies of it")


def test_says_what_it_costs_and_by_dry_run_writes_nothing(tiny_base: Path, tmp_path: Path) -> None:
    what = {"experts": 2, "at": ["down.0"], "router": "features"}
    recipe = {"verb": "condconv-expand", "model": str(tiny_base), "expand": what}
    said = expanding.run(tmp_path, recipe, "--dry-run")
    assert (said.code, said.out) == (0, "")
    assert "2, of 2 experts each" in said.text
    assert not (tmp_path / "run").exists()
    assert expanding.run(tmp_path, recipe).code == 0
    before, after = unet(tiny_base), unet(tmp_path / "run")
    counts = [sum(each.numel() for each in of.parameters()) for of in (before, after)]
    assert counts[1] - counts[0] == 2 * (8 * 8 * 9 + 8 + 2 * 8 + 2)
    costs = [macs(dict(of.config), batch=2, tokens=16).total for of in (before, after)]
    assert costs[1] - costs[0] == 2 * (2 * (8 * 8 * 9 + 8) + 2 * 2 * 8), "kernels of two rows, and two routers"
    report = read(tmp_path / "run")
    assert list(figures(report, "params_m").values()) == [each / 1e6 for each in counts]
    assert list(figures(report, "macs_g").values()) == [each / 1e9 for each in costs]


def test_the_rest_is_copied_or_linked_and_the_history_told(
    tiny_base: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    what = {"experts": 2, "donor": str(tiny_pipeline), "start": "noise"}
    recipe = {"verb": "condconv-expand", "model": str(tiny_base), "expand": what}
    made, base = tmp_path / "run/model", tiny_base / "model"
    assert expanding.run(tmp_path, recipe, "--link").code == 0
    weights = {f"{name}/{file}.safetensors" for name, file in (("vae", "diffusion_pytorch_model"), ("clip", "model"))}
    assert shared(made, tiny_base) == weights | {"text_encoder/model.safetensors"}
    assert expanding.run(tmp_path, recipe).code == 0
    assert all((made / file).read_bytes() == (base / file).read_bytes() for file in weights)
    assert not shared(made, base, tiny_pipeline)
    first, last = json.loads((made / "asdm.json").read_text())["history"]
    known = {"donor": tiny_pipeline.name, "convolutions": 24, "experts": 2, "router": "time", "start": "noise"}
    assert (first["verb"], {key: last[key] for key in known}) == ("prune", known)
    assert str(tiny_pipeline.parent) not in (made / "asdm.json").read_text()


REFUSED: dict[str, dict[str, Any]] = {
    "expand.donor: must be given, or 'at'": {},
    "expand.donor: must be given with 'start: inherited'": {"start": "inherited", "at": ["mid"]},
    "expand.experts: must be at least 2": {"experts": 1, "at": ["mid"]},
    "expand.noise: goes with 'start: noise'": {"at": ["mid"], "noise": 0.1},
    "expand.share: goes with 'start: inherited'": {"at": ["mid"], "share": 0.1},
    "nowhere": {"at": ["nowhere"]},
    "has no resnet": {"at": ["down.0.sampler"]},
    "expand.router: must be one of": {"at": ["mid"], "router": "moon"},
    "equal copies under 'sigmoid' would all learn the same": {"at": ["mid"], "weights": "sigmoid"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_refused(tiny_base: Path, tmp_path: Path, message: str) -> None:
    said = expand(tmp_path, tiny_base, **REFUSED[message])
    assert (said.code, said.out) == (2, "")
    assert message in said.text
    assert not (tmp_path / "run").exists()


def stock(model: Path) -> Any:
    """As stock diffusers reads it, which misses nothing and finds nothing that it does not know."""
    found, told = UNet2DConditionModel.from_pretrained(model / "unet", output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert "experts" not in found.config
    assert json.loads((model / "model_index.json").read_text())["unet"] == ["diffusers", "UNet2DConditionModel"]
    return expanding.on_its_own(found.eval())


@pytest.fixture(scope="module")
def even(tiny_pipeline: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts that differ, under routers that look at nothing."""
    folder = tmp_path_factory.mktemp("even")
    said = expand(folder, tiny_base, experts=2, donor=str(tiny_pipeline), start="noise", noise=0.3)
    assert said.code == 0, said.err
    return folder / "run/model"


@pytest.fixture(scope="module")
def folded(tiny_experts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folded")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    said = fold(folder, tiny_experts, routing="mean", prompts=str(folder / "prompts.txt"), **LOOK)
    assert said.code == 0, said.err
    return folder / "run"


@pytest.mark.parametrize(
    ("weights", "router"), [("softmax", "features"), ("normalised-sigmoid", "both"), ("sigmoid", "time")]
)
def test_constant_routers_fold_without_loss(
    tiny_pipeline: Path, tiny_base: Path, tmp_path: Path, weights: str, router: str
) -> None:
    """Bit by bit where one kernel serves all rows before: it is what is written."""
    what = {"donor": str(tiny_pipeline), "weights": weights, "router": router, "start": "noise", "noise": 0.3}
    assert expand(tmp_path / "wide", tiny_base, experts=3, **what).code == 0
    wide = unet(tmp_path / "wide/run")
    assert not any(torch.equal(*layer.weight.chunk(3)[:2]) for layer in expert_layers(wide).values())
    said = fold(tmp_path, tmp_path / "wide/run", routing="constant")
    assert said.code == 0, said.err
    assert read(tmp_path / "run").facts["convolutions"] == "24 become plain; their routing is constant: nothing changes"
    found = stock(tmp_path / "run/model")
    assert torch.equal(answer(found, 1), answer(wide, 1))
    torch.testing.assert_close(answer(found, 2), answer(wide, 2), atol=1e-6, rtol=1e-6)


def test_a_bare_unet_folds(even: Path, tmp_path: Path) -> None:
    said = fold(tmp_path, even / "unet", routing="constant")
    assert said.code == 0, said.err
    found = unet(tmp_path / "run")
    assert type(found) is UNet2DConditionModel
    assert torch.equal(answer(found), answer(unet(even)))
    said = fold(tmp_path / "mean", even / "unet", routing="mean")
    assert (said.code, said.out) == (2, "")
    assert "mean routing is seen while drawing" in said.text


def test_routers_that_choose_are_not_constant(tiny_experts: Path, even: Path, tmp_path: Path) -> None:
    said = fold(tmp_path, tiny_experts, routing="constant")
    assert (said.code, said.out) == (2, "")
    assert "24 of 24 routers choose by what they see" in said.text
    assert "freeze them with `routing: mean`" in said.text
    one = unet(even).state_dict()
    name = next(name for name in sorted(one) if name.endswith("router.time.weight"))
    model = tmp_path / "one"
    model.mkdir()
    (model / "config.json").write_bytes((even / "unet/config.json").read_bytes())
    one[name][1, 3] = 1e-3
    save_file(one, model / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    said = fold(tmp_path, model, routing="constant")
    assert f"1 of 24 routers choose by what they see ({name.partition('.router')[0]}, ...)" in said.text


def test_the_mean_is_of_what_was_seen(folded: Path, tiny_experts: Path) -> None:
    """Kernels by hand, from the weights that routers give while those pictures are drawn."""
    pipe: Any = asdm_cli.load(str(tiny_experts), "cpu")
    routing, _ = observe(pipe, PROMPTS, SETTINGS)
    result = stock(folded / "model").state_dict()
    layers = expert_layers(pipe.unet)
    assert len(layers) == 24
    for name, layer in layers.items():
        weights = routing.weights[name].double().reshape(-1, 3).mean(0)
        assert float(weights.std()) > 1e-3, "they do not weigh the same"
        for part in ("weight", "bias"):
            each = torch.stack(getattr(layer, part).detach().double().chunk(3))
            wanted = torch.einsum("k,k...->...", weights, each)
            torch.testing.assert_close(result[f"{name}.{part}"].double(), wanted, atol=1e-6, rtol=1e-5)
