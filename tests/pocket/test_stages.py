"""The stages on a handful of drawings: each leaves what the next one reads; parts come from a checkpoint, too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel

from asdm_cli.errors import RunError
from pocket import export as exporting
from pocket import stages
from pocket.drawings import read
from pocket.stages import SHARDS, Shop, parts_of_checkpoint, run_chain, run_stage


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    few = read(SHARDS / "held-out.tar.gz")
    few = type(few)(few.images[:6], few.captions[:6], few.about[:6])
    monkeypatch.setattr(Shop, "shard", lambda _shop, _name: few)
    monkeypatch.setattr(stages, "COPIES", {"cpu": 1})
    plans = {name: replace(plan, steps=2, batch=2, warmup=1) for name, plan in stages.PLANS.items()}
    monkeypatch.setattr(stages, "PLANS", plans)
    return Shop(tmp_path / "data", tmp_path / "run", device=torch.device("cpu"))


def test_a_chain_leaves_every_part_in_its_time(shop: Shop) -> None:
    figures = run_chain(shop, minutes=0.02)
    assert figures.keys() == {"vae", "clip", "score", "unet"}
    parts = shop.folder / "parts"
    kinds = {"vae": AutoencoderKL, "text_encoder": CLIPTextModel, "clip": CLIPModel, "unet": UNet2DConditionModel}
    for name, kind in kinds.items():
        settings = {"torch_dtype" if name in ("vae", "unet") else "dtype": torch.float16}
        part = kind.from_pretrained(parts / name, use_safetensors=True, **settings)
        assert {weight.dtype for weight in part.parameters()} == {torch.float16}
    latents = AutoencoderKL.from_pretrained(parts / "vae", use_safetensors=True)
    assert latents.config["scaling_factor"] == 1


def test_what_goes_on_stays_beside_what_it_learnt_with(shop: Shop) -> None:
    run_stage(on := replace(shop, go_on=True), "unet", shop.plan("unet"))
    for name in ("vae", "text_encoder", "tokenizer"):
        for file in (stages.WEIGHTS / name).iterdir():
            assert (shop.folder / "parts" / name / file.name).read_bytes() == file.read_bytes()
    (shop.folder / "shipped/weights").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "WEIGHTS", shop.folder / "shipped/weights")
        patch.setattr(exporting, "RECORDS", shop.folder / "shipped/weights/training")
        assert (exporting.export(shop.folder, "generator") / "unet/config.json").is_file()
    (shop.folder / "parts/vae/config.json").write_text("{}")
    with pytest.raises(RunError, match="is not what the shipped UNet learnt with; go on in another --folder"):
        run_stage(on, "unet", shop.plan("unet"))


def test_a_stage_at_its_end_stays_as_it_is_unless_it_is_asked_for(shop: Shop) -> None:
    plan = shop.plan("clip")
    figures = run_stage(shop, "clip", plan, again=False)
    weights = shop.folder / "parts/text_encoder/model.safetensors"
    trained = weights.read_bytes()
    (shop.folder / "clip.json").unlink()  # killed while its parts were written
    weights.unlink()
    assert run_stage(shop, "clip", plan, again=False) == pytest.approx(figures)
    assert weights.read_bytes() == trained
    weights.unlink()
    assert run_stage(shop, "clip", plan, again=False) == pytest.approx(figures)
    assert not weights.exists(), "nothing was done"
    run_stage(shop, "clip", plan)
    assert json.loads((shop.folder / "clip.json").read_text())["steps"] == 2 * plan.steps
    assert weights.read_bytes() != trained


def test_what_was_learnt_so_far_is_written_from_a_checkpoint(shop: Shop) -> None:
    with pytest.raises(RunError, match="has no checkpoint yet"):
        parts_of_checkpoint(shop, "vae")
    run_stage(shop, "vae", shop.plan("vae"))
    weights = shop.folder / "parts" / "vae" / "diffusion_pytorch_model.safetensors"
    trained = weights.read_bytes()
    weights.unlink()
    parts_of_checkpoint(shop, "vae")
    assert weights.read_bytes() == trained
