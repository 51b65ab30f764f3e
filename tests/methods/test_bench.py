"""Gate 3 of `bench`: everything that headers and configs can tell is told before anything slow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from asdm_cli.report.document import Table
from safetensors.torch import load_file, save_file

from asdm_cli.errors import ModelError
from asdm_cli.recipe.patches import read_plan
from asdm_cli.recipe.verbs import BenchRecipe, Contestant
from asdm_cli.verbs import bench
from tests import tiny
from tests.carrying import carrying, every

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def recipe(*models: Contestant, **changes: Any) -> BenchRecipe:
    return BenchRecipe(verb="bench", models=list(models), out="runs/x", **{"device": "cpu", **changes})


def whole(folder: Path, name: str = "whole", **changes: Any) -> Contestant:
    return Contestant(name=name, model=str(folder), **changes)


@pytest.fixture
def copy(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """A pipeline that a test may spoil."""
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "copy"))


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "unet/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_published_costs_of_stable_diffusion_and_bk_base() -> None:
    plan = bench.plan(
        recipe(Contestant(name="sd", random="sd15"), Contestant(name="base", random="sd15", remove="base"))
    )
    (table,) = plan.report().parts
    assert isinstance(table, Table)
    figures = [(row["unet_params_m"], row["unet_macs_g"], row["unet_macs_without_attention_g"]) for row in table.rows]
    assert figures == [
        pytest.approx((859.520964, 401.64, 338.61), abs=0.01),
        pytest.approx((579.384964, 261.50, 223.68), abs=0.01),
    ]
    assert plan.weights == {"sd": 4 * 859_520_964, "base": 4 * 579_384_964}
    assert [row["source"] for row in table.rows] == ["random sd15", "random sd15 without base"]


def test_plan_of_a_pipeline_counts_every_network(tiny_pipeline: Path) -> None:
    plan = bench.plan(recipe(whole(tiny_pipeline, steps=7), dtype="float32"))
    (entrant,) = plan.entrants
    assert (entrant.draws, entrant.steps, entrant.latent, entrant.tokens) == (True, 7, (4, 8, 8), tiny.TOKENS)
    files = [tiny_pipeline / WEIGHTS, tiny_pipeline / "text_encoder/model.safetensors"]
    files.append(tiny_pipeline / "vae/diffusion_pytorch_model.safetensors")
    held = [tensor.numel() for file in files for tensor in load_file(file).values()]
    assert plan.weights == {"whole": 4 * sum(held)}


def test_without_images_only_the_unet_is_loaded(tiny_pipeline: Path) -> None:
    plan = bench.plan(recipe(whole(tiny_pipeline), images=False, dtype="float16"))
    (entrant,) = plan.entrants
    assert not entrant.draws
    assert plan.weights == {"whole": 2 * sum(entrant.parameters.values())}
    assert plan.notes == ()


def test_size_is_in_pixels(tiny_pipeline: Path) -> None:
    pipeline, unet = bench.plan(recipe(whole(tiny_pipeline), Contestant(name="sd", random="sd15"), size=64)).entrants
    assert pipeline.latent == (4, 16, 16)  # three stages: 4 pixels per latent
    assert unet.latent == (4, 8, 8)


def test_random_shape_from_a_config_file(tmp_path: Path) -> None:
    file = tmp_path / "unet.json"
    file.write_text(json.dumps(tiny.shape("sdxl")))
    (entrant,) = bench.plan(recipe(Contestant(name="xl", random=str(file), remove="base"))).entrants
    assert "mid" in entrant.parameters
    assert entrant.config["layers_per_block"] == 1


def test_notes_tell_what_is_unlike(tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    plan = bench.plan(recipe(whole(tiny_pipeline), Contestant(name="sd", random="sd15"), dtype="bfloat16"))
    assert [note.split(":")[0].split(" (")[0] for note in plan.notes] == [
        "This CPU computes no bfloat16 of its own",
        "Contestants differ in latent shape",
        "UNet calls only, because there is no pipeline around the UNet",
    ]
    assert all(note in plan.report().summary for note in plan.notes)


def test_no_bfloat16_note_where_it_is_native(tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert bench.plan(recipe(whole(tiny_pipeline), dtype="bfloat16")).notes == ()


def test_images_of_unlike_size_are_not_compared(tiny_pipeline: Path, copy: Path) -> None:
    change_config(copy, sample_size=16)
    both = whole(tiny_pipeline, "small"), whole(copy, "large")
    with pytest.raises(ModelError, match=r"'small' draws latents of 4×8×8 and 'large' of 4×16×16.*`size`"):
        bench.plan(recipe(*both))
    assert len(bench.plan(recipe(*both, size=64)).entrants) == 2
    assert len(bench.plan(recipe(*both, images=False)).entrants) == 2


def test_too_little_memory_is_told_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.psutil, "virtual_memory", lambda: SimpleNamespace(available=5_000_000_000))
    two = Contestant(name="sd", random="sd15"), Contestant(name="base", random="sd15", remove="base")
    with pytest.raises(ModelError, match=r"5\.76 GB together \(sd 3\.44, base 2\.32\) and 5\.00 GB are free on cpu"):
        bench.plan(recipe(*two))
    assert len(bench.plan(recipe(*two, dtype="float16")).entrants) == 2


@pytest.mark.parametrize("size", [66, 68])
def test_sizes_that_cannot_be_drawn(tiny_pipeline: Path, size: int) -> None:
    with pytest.raises(ModelError, match=r"contestant 'whole': .*round"):
        bench.plan(recipe(whole(tiny_pipeline), size=size))


@pytest.mark.parametrize(
    ("contestant", "message"),
    [
        (Contestant(name="a", random="sd16"), r"random 'sd16': neither a preset \(sd15, sd21, sdxl\)"),
        (Contestant(name="a", model="no/such/place"), "no/such/place: no such directory"),
        (Contestant(name="a", random="sd15", remove="down.0.0"), "no stock UNet lacks just that"),
    ],
)
def test_contestants_that_are_not_there(contestant: Contestant, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        bench.plan(recipe(contestant))


def test_weights_that_do_not_fit_their_config(copy: Path) -> None:
    change_config(copy, cross_attention_dim=24)
    with pytest.raises(ModelError, match=r"to_k\.weight has the shape \[8, 16\] where config\.json asks for \[8, 24\]"):
        bench.plan(recipe(whole(copy)))


def test_weights_that_lack_a_tensor(copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS)
    del tensors["conv_in.bias"]
    save_file(tensors, copy / WEIGHTS)
    with pytest.raises(ModelError, match=r"the weights lack conv_in\.bias"):
        bench.plan(recipe(whole(copy)))


def test_a_pipeline_of_another_kind_draws_no_images(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": "KandinskyPipeline"}))
    with pytest.raises(ModelError, match=r"'whole': is a KandinskyPipeline; .*images: false"):
        bench.plan(recipe(whole(copy)))
    assert not bench.plan(recipe(whole(copy), images=False)).entrants[0].draws


@pytest.mark.parametrize("lacking", ["text_encoder", "vae", "scheduler"])
def test_unet_calls_need_nothing_around_the_unet(lacking: str, copy: Path) -> None:
    """As of an image-variation model, which has no text encoder."""
    shutil.rmtree(copy / lacking)
    index = json.loads((copy / "model_index.json").read_text())
    index.pop(lacking)
    (copy / "model_index.json").write_text(
        json.dumps({**index, "_class_name": "StableDiffusionImageVariationPipeline"})
    )
    (entrant,) = bench.plan(recipe(whole(copy, steps=7), images=False)).entrants
    assert entrant.latent == (4, 8, 8)
    assert entrant.tokens == (77 if lacking == "text_encoder" else tiny.TOKENS)
    assert entrant.calls == 7


def test_plans_come_from_the_recipe_or_from_the_model(tiny_pipeline: Path, tmp_path: Path) -> None:
    model = carrying(tiny_pipeline, tmp_path / "model", every(2))
    plan = bench.plan(
        recipe(
            whole(tiny_pipeline, "plain"),
            whole(model, "its own"),
            whole(model, "another", plan=read_plan(every(3, "*.cross"))),
            whole(tiny_pipeline, "given", plan=read_plan(every(4)), steps=7),
        )
    )
    found = {one.name: one.nodes and one.nodes.plan for one in plan.entrants}
    plans = (None, every(2), every(3, "*.cross"), every(4))
    assert list(found.values()) == [given and read_plan(given) for given in plans]
    (table,) = plan.report().parts
    assert isinstance(table, Table)
    timed = [str(row["timed"]) for row in table.rows]
    assert [", a plan for 25 calls" in words for words in timed] == [False, True, True, False]
    assert "a plan for 7 calls" in timed[3]


def test_a_plan_that_does_not_fit_names_the_contestant(tiny_pipeline: Path) -> None:
    wrong = whole(tiny_pipeline, plan=read_plan(every(2, "up.9")))
    with pytest.raises(ModelError, match=r"contestant 'whole': rules\[0\]\.nodes: .*up\.9"):
        bench.plan(recipe(wrong))


def test_one_random_shape_needs_memory_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "unet.json"
    file.write_text(json.dumps(tiny.shape("sd15")))
    alike = [Contestant(name=f"plan {each}", random=str(file), plan=read_plan(every(each))) for each in (2, 3)]
    unlike = Contestant(name="base", random=str(file), remove="base")
    weights = bench.plan(recipe(*alike, unlike)).weights
    assert weights["plan 2"] == weights["plan 3"] > weights["base"]
    free = weights["plan 2"] + weights["base"]
    monkeypatch.setattr(bench.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    assert f"Weights take {free / 1e9:.2f} GB together" in bench.plan(recipe(*alike, unlike)).report().summary
    monkeypatch.setattr(bench.psutil, "virtual_memory", lambda: SimpleNamespace(available=free - 1))
    with pytest.raises(ModelError, match="the contestants' weights take"):
        bench.plan(recipe(*alike, unlike))
