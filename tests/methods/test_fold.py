"""Folding as typed: plain models that stock diffusers loads, what freezing routers costs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import asdm_cli
from asdm_cli.measure.routing import observe
from asdm_cli.unet.expert_unet import expert_layers
from tests import expanding
from tests.typed import Said

PROMPTS = ("a fox", "two red owls")
LOOK = {"steps": 3, "guidance": 2.0, "seed": 5}


def fold(folder: Path, model: Path, *options: object, **what: Any) -> Said:
    return expanding.run(folder, {"verb": "condconv-expand", "model": str(model), "fold": what}, *options)


def at_the_mean(folder: Path, model: Path) -> Said:
    folder.mkdir(exist_ok=True)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return fold(folder, model, routing="mean", prompts=str(folder / "prompts.txt"), **LOOK)


@pytest.fixture(scope="module")
def even(tiny_pipeline: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts that differ, under routers that look at nothing."""
    folder = tmp_path_factory.mktemp("even")
    said = expanding.expand(folder, tiny_base, experts=2, donor=str(tiny_pipeline), start="noise", noise=0.3)
    assert said.code == 0, said.err
    return folder / "run/model"


@pytest.fixture(scope="module")
def folded(tiny_experts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folded")
    said = at_the_mean(folder, tiny_experts)
    assert said.code == 0, said.err
    return folder / "run"


def report(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "report.json").read_text())
    return found


def plain(model: Path) -> Any:
    """As stock diffusers reads it, which misses nothing and finds nothing that it does not know."""
    found, told = UNet2DConditionModel.from_pretrained(model / "unet", output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert "experts" not in found.config
    assert json.loads((model / "model_index.json").read_text())["unet"] == ["diffusers", "UNet2DConditionModel"]
    return expanding.on_its_own(found.eval())


@pytest.mark.parametrize(
    ("weights", "router"), [("softmax", "features"), ("normalised-sigmoid", "both"), ("sigmoid", "time")]
)
def test_constant_routers_fold_without_loss(
    tiny_pipeline: Path, tiny_base: Path, tmp_path: Path, weights: str, router: str
) -> None:
    """Bit by bit: one kernel serves all rows before, and it is what is written."""
    what = {"donor": str(tiny_pipeline), "weights": weights, "router": router, "start": "noise", "noise": 0.3}
    assert expanding.expand(tmp_path / "wide", tiny_base, experts=3, **what).code == 0
    wide = expanding.unet(tmp_path / "wide/run")
    for layer in expert_layers(wide).values():
        assert not torch.equal(*layer.weight.chunk(3)[:2])
    said = fold(tmp_path, tmp_path / "wide/run", routing="constant")
    assert said.code == 0, said.err
    assert "24 convolutions become plain" in said.text
    assert "nothing changes" in said.text
    assert torch.equal(expanding.answer(plain(tmp_path / "run/model")), expanding.answer(wide))


def test_a_bare_unet_folds(even: Path, tmp_path: Path) -> None:
    said = fold(tmp_path, even / "unet", routing="constant")
    assert said.code == 0, said.err
    found = expanding.unet(tmp_path / "run")
    assert type(found) is UNet2DConditionModel
    assert torch.equal(expanding.answer(found), expanding.answer(expanding.unet(even)))
    said = fold(tmp_path / "mean", even / "unet", routing="mean")
    assert (said.code, said.out) == (2, "")
    assert "mean routing is seen while drawing, which takes a whole StableDiffusionPipeline" in said.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_number_formats_stay(even: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """And everything that is no bank stays as it is, byte for byte."""
    (tmp_path / "unet").mkdir()
    held: dict[str, Tensor] = {}
    for file in sorted((even / "unet").iterdir()):
        if file.suffix == ".safetensors":
            tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
            save_file(tensors, tmp_path / "unet" / file.name, {"format": "pt"})
            held |= tensors
        else:
            (tmp_path / "unet" / file.name).write_bytes(file.read_bytes())
    assert fold(tmp_path, tmp_path / "unet", routing="constant").code == 0
    found: dict[str, Tensor] = {}
    for file in (tmp_path / "run/model").glob("*.safetensors"):
        found |= load_file(file)
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    banks = {name for name in found if not torch.equal(found[name], held[name])}
    assert found.keys() == {name for name in held if ".router." not in name}
    assert len(banks) == 2 * 24
    for name in banks:
        first, second = held[name].double().chunk(2)
        torch.testing.assert_close(found[name].double(), (first + second) / 2, atol=1e-3, rtol=1e-2)


def test_routers_that_choose_are_not_constant(tiny_experts: Path, even: Path, tmp_path: Path) -> None:
    said = fold(tmp_path, tiny_experts, routing="constant")
    assert (said.code, said.out) == (2, "")
    assert "24 of 24 routers choose by what they see" in said.text
    assert "freeze them with `routing: mean`" in said.text
    assert not (tmp_path / "run").exists()
    one = expanding.unet(even).state_dict()
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
    routing, _ = observe(pipe, PROMPTS, LOOK["steps"], LOOK["guidance"], None, LOOK["seed"])
    result, seen = plain(folded / "model").state_dict(), 0
    for name, layer in expert_layers(pipe.unet).items():
        weights = routing.weights[name].double().reshape(-1, 3).mean(0)
        assert float(weights.std()) > 1e-3, "they do not weigh the same"
        for part in ("weight", "bias"):
            each = torch.stack(getattr(layer, part).detach().double().chunk(3))
            wanted = torch.einsum("k,k...->...", weights, each)
            torch.testing.assert_close(result[f"{name}.{part}"].double(), wanted, atol=1e-6, rtol=1e-5)
            seen += 1
    assert seen == 2 * 24


def test_the_cost_is_of_the_model_that_was_written(folded: Path) -> None:
    """Pictures that were drawn in memory are those of the directory, and the figures are theirs."""
    pipe: Any = asdm_cli.load(str(folded), "cpu")
    _, drawn = observe(pipe, PROMPTS, LOOK["steps"], LOOK["guidance"], None, LOOK["seed"])
    shown = next(part for part in report(folded)["parts"] if part["title"] == "The same prompts and seeds")
    assert shown["rows"] == list(PROMPTS)
    decibels = []
    for pictures, again in zip(shown["pictures"], drawn, strict=True):
        before, after = (numpy.asarray(Image.open(folded / each)).astype(float) for each in pictures)
        assert not numpy.array_equal(before, after)
        assert numpy.array_equal(after, numpy.asarray(again).astype(float))
        decibels.append(10 * numpy.log10(255**2 / ((before - after) ** 2).mean()))
    table = next(part for part in report(folded)["parts"] if part["title"] == "What folding costs")
    figures = {row["figure"]: row["psnr_db"] for row in table["rows"]}
    wanted = {"mean": numpy.mean(decibels), "worst picture": min(decibels), "best picture": max(decibels)}
    assert figures == pytest.approx({name: float(each) for name, each in wanted.items()}, abs=1e-3)
    assert f"PSNR to the pictures with experts: {figures['mean']:.1f} dB" in report(folded)["summary"]


def test_the_report_tells_how_experts_were_used(folded: Path) -> None:
    parts = {part["title"]: part for part in report(folded)["parts"]}
    table = next(part for title, part in parts.items() if title.startswith("How the experts of"))
    assert len(table["rows"]) == 24
    card = report(folded)["cards"]["pictures"]
    assert (card["pictures"], card["steps"], card["guidance"], card["seed"]) == (2, 3, 2.0, 5)


def test_the_history_says_how(folded: Path) -> None:
    steps = json.loads((folded / "model/asdm.json").read_text())["history"]
    assert [step["verb"] for step in steps] == ["prune", "condconv-expand", "condconv-expand"]
    assert (steps[-1]["fold"], steps[-1]["convolutions"]) == ("mean", 24)


def test_nothing_to_fold(tiny_base: Path, tmp_path: Path) -> None:
    said = fold(tmp_path, tiny_base)
    assert (said.code, said.out) == (2, "")
    assert "has no expert convolutions; there is nothing to fold" in said.text


def test_a_dry_run_tells_and_writes_nothing(tiny_experts: Path, tmp_path: Path) -> None:
    said = fold(tmp_path, tiny_experts, "--dry-run", limit=2)
    assert (said.code, said.out) == (0, ""), said.err
    assert "24 convolutions become plain" in said.text
    assert "frozen at its mean" in said.text
    assert not (tmp_path / "run").exists()
