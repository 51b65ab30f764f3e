"""The verb condconv-expand as typed: what it makes of a model, how that folds again, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from asdm_cli.experts.unet import expert_layers
from asdm_cli.report.run_directory import read
from asdm_cli.unet.blocks import Spec
from asdm_cli.unet.flops import macs
from tests import expanding
from tests.apart import shared
from tests.expanding import answer, expand, figures, unet
from tests.typed import Said

PROMPTS = ("a fox", "two red owls")
LOOK = {"steps": 3, "guidance": 2.0, "seed": 5}


def fold(folder: Path, model: Path, *options: object, **what: Any) -> Said:
    return expanding.run(folder, {"verb": "condconv-expand", "model": str(model), "fold": what}, *options)


def test_begins_as_what_it_was(tiny_base: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    """To the bit, with what a recipe does not say left out."""
    said = expand(tmp_path, tiny_base, donor=str(tiny_pipeline))
    assert said.code == 0, said.err
    wide, base = unet(tmp_path / "run"), unet(tiny_base)
    assert [layer.spec for layer in expert_layers(wide).values()] == [Spec(4, 1000)] * 24
    for rows in (1, 2):
        assert torch.equal(answer(wide, rows), answer(base, rows))
    told = read(tmp_path / "run").facts
    assert told["convolutions"] == "24, of 4 experts each, for 250 timesteps each"
    assert told["down.0.0.resnet conv2"] == "4 of 8 × 8 × 3 × 3"


def test_experts_share_out_the_timesteps_that_the_model_was_trained_with(tiny_base: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_base / "model", tmp_path / "model"))
    file = model / "scheduler/scheduler_config.json"
    held = json.loads(file.read_text())
    file.unlink()
    file.write_text(json.dumps({**held, "num_train_timesteps": 600}))
    assert expand(tmp_path, model, at="mid").code == 0
    assert {layer.spec for layer in expert_layers(unet(tmp_path / "run")).values()} == {Spec(4, 600)}


def test_says_what_it_costs_and_by_dry_run_writes_nothing(tiny_base: Path, tmp_path: Path) -> None:
    what = {"experts": 2, "at": ["down.0"]}
    recipe = {"verb": "condconv-expand", "model": str(tiny_base), "expand": what}
    said = expanding.run(tmp_path, recipe, "--dry-run")
    assert (said.code, said.out) == (0, "")
    assert "2, of 2 experts each" in said.text
    assert not (tmp_path / "run").exists()
    assert expanding.run(tmp_path, recipe).code == 0
    before, after = unet(tiny_base), unet(tmp_path / "run")
    counts = [sum(each.numel() for each in of.parameters()) for of in (before, after)]
    assert counts[1] - counts[0] == 2 * (8 * 8 * 9 + 8)
    costs = [macs(dict(of.config), batch=2, tokens=16).total for of in (before, after)]
    assert costs[1] == costs[0], "one expert serves a call"
    report = read(tmp_path / "run")
    assert list(figures(report, "params_m").values()) == [each / 1e6 for each in counts]
    assert list(figures(report, "macs_g").values()) == [each / 1e9 for each in costs]


def test_the_rest_is_copied_or_linked_and_the_history_told(
    tiny_base: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    what = {"experts": 2, "donor": str(tiny_pipeline)}
    recipe = {"verb": "condconv-expand", "model": str(tiny_base), "expand": what}
    made, base = tmp_path / "run/model", tiny_base / "model"
    assert expanding.run(tmp_path, recipe, "--link").code == 0
    weights = {f"{name}/{file}.safetensors" for name, file in (("vae", "diffusion_pytorch_model"), ("clip", "model"))}
    assert shared(made, tiny_base) == weights | {"text_encoder/model.safetensors"}
    assert expanding.run(tmp_path, recipe).code == 0
    assert all((made / file).read_bytes() == (base / file).read_bytes() for file in weights)
    assert not shared(made, base, tiny_pipeline)
    first, last = json.loads((made / "asdm.json").read_text())["history"]
    known = {"donor": tiny_pipeline.name, "convolutions": 24, "experts": 2}
    assert (first["verb"], {key: last[key] for key in known}) == ("prune", known)
    assert str(tiny_pipeline.parent) not in (made / "asdm.json").read_text()


REFUSED: dict[str, dict[str, Any]] = {
    "expand.donor: must be given, or 'at'": {},
    "expand.experts: must be at least 2": {"experts": 1, "at": ["mid"]},
    "nowhere": {"at": ["nowhere"]},
    "has no resnet": {"at": ["down.0.sampler"]},
    "expand.router: unknown key": {"at": ["mid"], "router": "time"},
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
def folded(tiny_experts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folded")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    said = fold(folder, tiny_experts, prompts=str(folder / "prompts.txt"), **LOOK)
    assert said.code == 0, said.err
    return folder / "run"


def test_a_pipeline_that_draws_from_pictures_is_folded_by_its_unet(tiny_experts: Path, tmp_path: Path) -> None:
    """What it loses is seen while drawing, for which there are no pictures; the way out that is told works."""
    model = Path(shutil.copytree(tiny_experts, tmp_path / "model"))
    index = model / "model_index.json"
    said = index.read_text().replace('"StableDiffusionPipeline"', '"StableDiffusionImg2ImgPipeline"')
    index.unlink()
    index.write_text(said)
    refused = fold(tmp_path, model)
    assert refused.code == 2
    assert f"to fold it unseen, give its UNet alone: model: {model / 'unet'}" in refused.text
    assert fold(tmp_path, model / "unet").code == 0
    assert not expert_layers(unet(tmp_path / "run"))


def test_equal_experts_fold_without_loss(tiny_pipeline: Path, tiny_base: Path, tmp_path: Path) -> None:
    """Weights and answers are what they were, and nothing needs to be drawn."""
    assert expand(tmp_path / "wide", tiny_base, experts=3, donor=str(tiny_pipeline)).code == 0
    said = fold(tmp_path, tmp_path / "wide/run")
    assert said.code == 0, said.err
    assert read(tmp_path / "run").facts["convolutions"] == "24 become plain; their experts are equal: nothing changes"
    found, was = stock(tmp_path / "run/model"), unet(tiny_base)
    assert all(torch.equal(tensor, was.state_dict()[name]) for name, tensor in found.state_dict().items())
    assert torch.equal(answer(found), answer(was))
    assert not (tmp_path / "run/samples").exists()


def test_a_bare_unet_folds_unseen(tiny_experts: Path, folded: Path, tmp_path: Path) -> None:
    said = fold(tmp_path, tiny_experts / "unet")
    assert said.code == 0, said.err
    found = unet(tmp_path / "run")
    assert type(found) is UNet2DConditionModel
    assert torch.equal(answer(found), answer(stock(folded / "model")))
    assert "what that costs is not seen" in read(tmp_path / "run").facts["convolutions"]


def test_kernels_become_the_mean_of_their_experts(folded: Path, tiny_experts: Path) -> None:
    result, layers = stock(folded / "model").state_dict(), expert_layers(unet(tiny_experts))
    assert len(layers) == 24
    for name, layer in layers.items():
        for part in ("weight", "bias"):
            each = torch.stack(getattr(layer, part).detach().double().chunk(3))
            assert not torch.equal(each[0], each[1])
            torch.testing.assert_close(result[f"{name}.{part}"].double(), each.mean(0), atol=1e-7, rtol=1e-6)


def test_what_folding_costs_is_seen_on_pictures(folded: Path) -> None:
    report = read(folded)
    (psnr,) = (each for each in report.records if each.metric == "psnr_db")
    assert (psnr.setup, psnr.against, psnr.n) == ("folded", "with experts", 2)
    assert psnr.low <= psnr.value <= psnr.high < 60, "experts that differ are missed"
    for name in ("folded", "with experts"):
        assert len(list((folded / "samples" / name).glob("*.png"))) == 2


def test_what_cannot_be_drawn_is_refused_with_a_way_out(tiny_experts: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_experts, tmp_path / "model"))
    held = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").unlink()
    (model / "model_index.json").write_text(json.dumps({**held, "_class_name": "StableDiffusionUpscalePipeline"}))
    said = fold(tmp_path, model)
    assert (said.code, said.out) == (2, "")
    assert f"give its UNet alone: model: {model / 'unet'}" in " ".join(said.text.split())
    assert fold(tmp_path, tiny_experts.parent / "nothing").code == 2
