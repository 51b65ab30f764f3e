"""LoRAs of set-ups, from a recipe to its report: of bench, eval, inherit, switch, and of `asdm generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from asdm_cli.models.directory import find
from asdm_cli.models.load import load_unet
from asdm_cli.report.run_directory import read
from tests.carrying import every
from tests.expanding import done, pixels
from tests.expanding import run as ran
from tests.loras import Lora, weights, written
from tests.typed import asdm

KEY = "mid_block.attentions.0.proj_in.weight"


@pytest.fixture(scope="module")
def lora(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Lora:
    return written(tmp_path_factory.mktemp("lora") / "fox.safetensors", tiny_pipeline)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("a fox\nan owl\n")
    settings = {"steps": 2, "bootstrap": 20, "metrics": ["psnr"], "device": "cpu", "dtype": "float32"}
    return {"prompts": str(prompts), **settings}


def test_eval_draws_with_them_side_by_side(
    lora: Lora, quick: dict[str, Any], tiny_pipeline: Path, tiny_base: Path, tmp_path: Path
) -> None:
    def model(name: str, source: Path, *scales: float) -> dict[str, Any]:
        return {"name": name, "model": str(source), "adapters": [{"path": str(lora.file), "scale": s} for s in scales]}

    models = [model("plain", tiny_pipeline), model("none", tiny_pipeline, 0), model("fox", tiny_pipeline, 0.5)]
    models += [model("more", tiny_pipeline, 0.75, 0.75), model("base", tiny_base), model("base fox", tiny_base, 1.5)]
    run = done(tmp_path, {"verb": "eval", "models": models, **quick})
    drawn = {each["name"]: pixels(run / "samples" / each["name"] / "000000.png") for each in models}
    assert drawn["plain"] == drawn["none"]
    assert len({*drawn.values()}) == 5
    report = read(run)
    assert report.setups["fox"]["model"].endswith(" + fox.safetensors × 0.5")
    assert "plain" not in report.setups["plain"].get("adapters", ())
    (told,) = report.setups["base fox"]["adapters"]
    assert "of what run has not" in told
    assert any("fox.safetensors × 0.5" in line for line in report.protocols["cost"]["contestants"])
    assert "fox.safetensors × 0.5" in (run / "report.html").read_text()
    again = done(tmp_path, {"verb": "eval", "models": [*models[:2], model("fox", tiny_pipeline, 0.6)], **quick})
    assert pixels(again / "samples" / "fox" / "000000.png") != drawn["fox"]


def test_bench_measures_them(lora: Lora, tiny_pipeline: Path, tmp_path: Path) -> None:
    adapters = [{"path": str(lora.file)}]
    unets = {"other": str(tiny_pipeline / "unet")}
    parts = [{"unet": "both", "until": 500}, {"unet": "other"}]
    models = [
        {"name": "plain", "model": str(tiny_pipeline)},
        {"name": "fox", "model": str(tiny_pipeline), "adapters": adapters},
        {"name": "both", "model": str(tiny_pipeline), "unets": unets, "parts": parts, "adapters": adapters},
    ]
    quick = {"batches": [1], "repeats": 1, "warmups": 1, "steps": 2, "device": "cpu"}
    report = read(done(tmp_path, {"verb": "bench", "models": models, **quick}))
    timed = {each.setup for each in report.records if each.metric == "unet_ms" and not each.of}
    assert timed == {"plain", "fox"}
    assert {each.setup for each in report.records if each.metric == "peak_memory_mb"} == {"plain", "fox", "both"}


@pytest.mark.parametrize("link", [[], ["--link"]], ids=["copied", "linked"])
def test_inherit_writes_them_into_the_weights(link: list[str], lora: Lora, tiny_pipeline: Path, tmp_path: Path) -> None:
    recipe = {"verb": "inherit", "model": str(tiny_pipeline), "plan": every(2, "up.3"), "measure": False}
    said = ran(tmp_path, {**recipe, "adapters": [{"path": str(lora.file), "scale": 0.5}]}, *link)
    assert said.code == 0, said.err
    written = find(str(tmp_path / "run"))
    for component in ("unet", "text_encoder"):
        before, after = weights(tiny_pipeline, component), weights(tmp_path / "run", component)
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert torch.allclose(after[name], lora.changed(component, name, tensor, 0.5), atol=1e-6)
    assert not torch.equal(weights(tiny_pipeline, "unet")[KEY], weights(tmp_path / "run", "unet")[KEY])
    assert "fox.safetensors × 0.5 changes" in (written.path / "asdm.json").read_text()
    assert written.source not in ("", str(tiny_pipeline))
    assert (written.path / "vae").is_dir()


def test_switch_has_them_in_all_its_unets(
    lora: Lora, quick: dict[str, Any], tiny_pipeline: Path, tiny_base: Path, tmp_path: Path
) -> None:
    unets = {"large": {"model": str(tiny_pipeline)}, "base": {"model": str(tiny_base)}}
    parts = [{"unet": "base", "until": 0.5}, {"unet": "large"}]
    recipe = {"verb": "switch", "unets": unets, "by": "fraction", "parts": parts, "measure": False, **quick}
    run = done(tmp_path, {**recipe, "adapters": [{"path": str(lora.file)}]})
    before = weights(tiny_pipeline, "unet")[KEY]
    for unet in (run / "model" / "unet", run / "model" / "unets" / "base"):
        after = load_unet(find(str(unet)), torch.device("cpu"), torch.float32).state_dict()[KEY]
        assert torch.allclose(after, lora.changed("unet", KEY, before), atol=1e-6)


def test_generate(lora: Lora, tiny_pipeline: Path, tmp_path: Path) -> None:
    settings = ["--steps", 2, "--device", "cpu", "--out"]
    assert asdm("generate", tiny_pipeline, "a fox", *settings, tmp_path / "plain").code == 0
    said = asdm("generate", tiny_pipeline, "a fox", "--lora", f"{lora.file}:0.5", *settings, tmp_path / "fox")
    assert said.code == 0, said.err
    assert f"fox.safetensors × 0.5 changes {len(lora.low)} weights" in said.text
    plain, fox = (Image.open(tmp_path / name / "000.png") for name in ("plain", "fox"))
    assert plain.tobytes() != fox.tobytes()
    assert fox.text["lora"] == "fox.safetensors × 0.5"  # type: ignore[attr-defined]
    assert not plain.text["lora"]  # type: ignore[attr-defined]
    said = asdm("generate", tiny_pipeline, "a fox", "--lora", tmp_path / "no.safetensors", *settings, tmp_path / "x")
    assert (said.code, "no such file; give a LoRA's .safetensors file" in said.text) == (2, True)
    said = asdm("generate", tiny_pipeline, "a fox", "--lora", f"{lora.file}:999", *settings, tmp_path / "x")
    assert (said.code, "--lora: adapters[0].scale: must be at most 100, got 999" in said.text) == (2, True), said.text


def test_faults_are_told_together_and_early(lora: Lora, tiny_pipeline: Path, tmp_path: Path) -> None:
    models = [
        {"name": "one", "model": str(tiny_pipeline), "adapters": [{"path": str(tmp_path / "no.safetensors")}]},
        {"name": "two", "model": str(tiny_pipeline), "adapters": [{"path": str(lora.file), "of": "fox"}]},
    ]
    said = ran(tmp_path, {"verb": "bench", "models": models})
    assert said.code == 2
    for told in ("'one': adapters[0]", "no such file", "'two': adapters[0]", "was not made from 'fox'"):
        assert told in said.text
    said = ran(
        tmp_path, {"verb": "bench", "models": [{"name": "one", "random": "sd15", "adapters": models[0]["adapters"]}]}
    )
    assert (said.code, "adapters: goes with 'model' only" in said.text) == (2, True)
    said = ran(tmp_path, {"verb": "prune", "model": str(tiny_pipeline), "remove": "base", "adapters": []})
    assert (said.code, "adapters: unknown key" in said.text) == (2, True)
