"""Models with experts under every other command: cut, put together, taught, drawn, measured, shown and switched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

import asdm_cli
from asdm_cli.measure import memory
from asdm_cli.measure.trajectory import count
from asdm_cli.models.source import find
from asdm_cli.recipe.verbs import VERBS
from asdm_cli.unet.checkpoint import bytes_digest, open_checkpoint
from asdm_cli.unet.cost import macs
from asdm_cli.unet.expert_unet import ExpertUNet, expert_layers
from tests import expanding, tiny, turns
from tests.expanding import answer, done, drawn, expand, on_its_own, picture, run, unet
from tests.typed import asdm

STOCK_CLASS = ["diffusers", "UNet2DConditionModel"]


def expanded(folder: Path, model: Path, **what: Any) -> Path:
    said = expand(folder, model, **what)
    assert said.code == 0, said.err
    return folder / "run"


def part(folder: Path, title: str) -> dict[str, Any]:
    parts = json.loads((folder / "report.json").read_text())["parts"]
    found: dict[str, Any] = next(each for each in parts if each["title"] == title)
    return found


def named_class(model: Path) -> list[str]:
    found: list[str] = json.loads((find(str(model)).path / "model_index.json").read_text())["unet"]
    return found


def test_prune_takes_experts_along(tiny_experts: Path, tmp_path: Path) -> None:
    """Where blocks get other numbers, too."""
    recipe = {"verb": "prune", "model": str(tiny_experts), "remove": ["down.2.sampler", "down.3", "mid", "up.0"]}
    left, whole = expert_layers(unet(done(tmp_path, recipe))), expert_layers(unet(tiny_experts))
    assert len(left) == 18
    for name, origin in {
        "up_blocks.0.resnets.0.conv1": "up_blocks.1.resnets.0.conv1",
        "down_blocks.2.resnets.0.conv2": "down_blocks.2.resnets.0.conv2",
    }.items():
        mine, theirs = left[name].state_dict(), whole[origin].state_dict()
        assert list(mine) == ["weight", "bias", "router.bias", "router.features.weight", "router.time.weight"]
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items())


def test_without_its_last_expert_a_model_is_plain(tiny_base: Path, tmp_path: Path) -> None:
    wide = expanded(tmp_path / "wide", tiny_base, experts=2, at=["mid"])
    assert named_class(wide) == ["asdm_cli", "ExpertUNet"]
    runs = [
        done(tmp_path / each.parent.name, {"verb": "prune", "model": str(each), "remove": ["mid"]})
        for each in (wide, tiny_base)
    ]
    assert [named_class(each) for each in runs] == [STOCK_CLASS] * 2
    files = [each / "model/unet" for each in runs]
    assert (files[0] / "config.json").read_bytes() == (files[1] / "config.json").read_bytes()
    assert type(unet(runs[0])) is UNet2DConditionModel
    assert torch.equal(*(answer(unet(each)) for each in runs))


def test_assemble_takes_experts_along(tiny_base: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    """Of donors with two experts, with four and with none; byte for byte."""
    donors = {
        "two": expanded(tmp_path / "two", tiny_base, experts=2, donor=str(tiny_pipeline), start="noise"),
        "four": expanded(tmp_path / "four", tiny_base, donor=str(tiny_pipeline), router="both", weights="sigmoid", start="noise"),
        "whole": tiny_pipeline,
    }  # fmt: skip
    recipe = {
        "verb": "assemble",
        "donors": {name: str(path) for name, path in donors.items()},
        "levels": ["four", "two", "whole", None],
        "mid": "whole",
        "blocks": {"down.3": ["whole/down.3.0", "two/down.3.0"], "up.0": "whole"},
    }
    made = done(tmp_path / "made", recipe)
    layers = {name: layer.spec for name, layer in expert_layers(unet(made)).items()}
    homes = {"down_blocks.0": 4, "up_blocks.3": 4, "down_blocks.1": 2, "up_blocks.2": 2, "down_blocks.3.resnets.1": 2}
    counts = {home: [spec.experts for name, spec in layers.items() if name.startswith(home)] for home in homes}
    assert counts == {home: [count] * (4 if home.startswith("up") else 2) for home, count in homes.items()}
    assert len(layers) == sum(map(len, counts.values()))
    assert {(spec.router, spec.weights) for spec in layers.values()} == {("time", "softmax"), ("both", "sigmoid")}
    entries = {name: open_checkpoint(find(str(path)).component("unet")).tensors for name, path in donors.items()}
    mine, seen = open_checkpoint(made / "model/unet").tensors, 0
    for home, experts in homes.items():
        source, there = entries["four" if experts == 4 else "two"], home.replace("resnets.1", "resnets.0")
        for name, entry in mine.items():
            if name.startswith(home) and ".router." in name:
                seen += 1
                old = name.replace(home, there, 1)
                assert bytes_digest(entry) == bytes_digest(source[old])
                bank, kernels = (each.partition(".router.")[0] + ".weight" for each in (name, old))
                assert bytes_digest(mine[bank]) == bytes_digest(source[kernels])
    assert seen == 6 * 3 + 8 * 2, "routers of both look at two things, and have a bias"


def test_an_assembly_that_takes_no_expert_is_plain(tiny_experts: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    donors = {"experts": str(tiny_experts), "whole": str(tiny_pipeline)}
    recipe = {"verb": "assemble", "donors": donors, "levels": ["whole"] * 4, "mid": "whole", "ends": "experts"}
    made = done(tmp_path, recipe)
    assert named_class(made) == STOCK_CLASS
    assert torch.equal(answer(unet(made)), answer(unet(tiny_pipeline)))


def test_inherit_at_every_call_changes_nothing(tiny_experts: Path) -> None:
    pipe: Any = asdm_cli.load(str(tiny_experts), "cpu")
    wanted = picture(pipe)
    rule: dict[str, Any] = {"nodes": "level.0", "carry": "residual"}
    with asdm_cli.inherit(pipe, {"rules": [{**rule, "schedule": {"mode": "uniform", "interval": 1}}]}):
        assert torch.equal(picture(pipe), wanted)
    with asdm_cli.inherit(pipe, {"rules": [{**rule, "schedule": {"mode": "uniform", "interval": 2}}]}):
        assert not torch.equal(picture(pipe), wanted)
    assert torch.equal(picture(pipe), wanted)


@pytest.mark.parametrize("interval", [1, 2])
def test_residuals_of_experts_are_inherited(tiny_pipeline: Path, tmp_path: Path, interval: int) -> None:
    """Where conv2, which ends a resnet's branch, is a bank of equal experts: what is carried is what the plain UNet
    carries."""
    pipes: list[Any] = [
        asdm_cli.load(str(each), "cpu")
        for each in (tiny_pipeline, expanded(tmp_path, tiny_pipeline, experts=2, at=["down.?", "up.?"], router="time"))
    ]
    pictures = []
    for pipe in pipes:
        on_its_own(pipe.unet)
        with asdm_cli.inherit(pipe, {"preset": "base-mask", "interval": interval, "carry": "residual"}):
            pictures.append(picture(pipe, 4))
    assert len(expert_layers(pipes[1].unet)) == 2 * (4 * 2 + 4 * 3)
    assert torch.equal(*pictures)
    assert torch.equal(pictures[0], picture(pipes[0], 4)) == (interval == 1)


def test_a_written_plan_of_a_model_with_experts(tiny_experts: Path, tmp_path: Path) -> None:
    """Through `asdm inherit`: it measures, and what it writes draws by its plan."""
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
    made = done(tmp_path, recipe)
    pipe: Any = asdm_cli.load(str(made), "cpu")
    assert type(pipe.unet) is ExpertUNet
    assert not torch.equal(picture(pipe), drawn(tiny_experts))
    asdm_cli.remove(pipe)
    assert torch.equal(picture(pipe), drawn(tiny_experts))


def test_takes_turns(tiny_experts: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    alone = drawn(tiny_experts)
    model = turns.switching(tiny_pipeline, tiny_experts, tmp_path / "both", plans={})
    pipe: Any = asdm_cli.load(str(model), "cpu")
    kinds = {name: type(member).__name__ for name, member in pipe.unet.unets.items()}
    assert kinds == {"large": "UNet2DConditionModel", "small v1.5": "ExpertUNet"}
    assert not torch.equal(picture(pipe), alone)
    parts = [{"unet": "small v1.5"}]
    model = turns.switching(tiny_pipeline, tiny_experts, tmp_path / "one", plans={}, parts=parts)
    assert torch.equal(drawn(model), alone), "always choosing one is that one"
    model = turns.switching(tiny_experts, tiny_pipeline, tmp_path / "first", plans={}, parts=[{"unet": "large"}])
    assert torch.equal(drawn(model), alone)
    said = expand(tmp_path / "no", model, at=["mid"])
    assert (said.code, said.out) == (2, "")
    assert "holds several UNets that take turns" in said.text


def test_generate_and_show(tiny_experts: Path, tmp_path: Path) -> None:
    said = asdm("generate", tiny_experts, "a fox", "two owls", "--steps", 2, "--out", tmp_path / "drawn")
    assert said.code == 0, said.err
    assert (tmp_path / "drawn/000.png").read_bytes() != (tmp_path / "drawn/001.png").read_bytes()
    again = asdm("generate", tiny_experts, "a fox", "two owls", "--steps", 2, "--out", tmp_path / "again")
    assert again.code == 0
    assert all(
        (tmp_path / "drawn" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        for name in ("000.png", "001.png")
    )
    said = asdm("show", tiny_experts)
    assert said.code == 0, said.err
    assert "ExpertUNet" in said.out
    whole = unet(tiny_experts)
    own = sum(each.numel() for each in whole.down_blocks[0].resnets[0].parameters())
    assert f"{sum(each.numel() for each in whole.parameters()):,}" in said.out
    assert f"down.0.0.resnet {own:,}" in said.out


def test_eval_shows_how_experts_are_used(tiny_experts: Path, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a fox\na red apple\n")
    models = [{"name": "base", "model": str(tiny_base)}, {"name": "wide", "model": str(tiny_experts)}]
    recipe = {
        "verb": "eval",
        "models": models,
        "prompts": str(tmp_path / "prompts.txt"),
        "metrics": ["psnr"],
        "steps": 2,
    }
    made = done(tmp_path, recipe)
    table = part(made, "How the experts of wide are used")
    assert len(table["rows"]) == 24
    assert all(1 <= row["effective"] <= 3 + 1e-6 for row in table["rows"])
    titles = [each["title"] for each in json.loads((made / "report.json").read_text())["parts"]]
    assert not any("experts of base" in title for title in titles)


def test_bench_times_it(tiny_experts: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "measure_in_fresh_process", memory.build_and_measure)  # which takes seconds each
    (tmp_path / "tiny.json").write_text(json.dumps(tiny.shape("sd15")))
    shape = str(tmp_path / "tiny.json")
    what = {"experts": 2, "donor": shape, "router": "features"}
    models = [
        {"name": "base", "model": str(tiny_base)},
        {"name": "wide", "model": str(tiny_experts)},
        {"name": "random", "random": shape, "remove": "base", "expand": what},
    ]
    recipe = {"verb": "bench", "models": models, "batches": [1], "repeats": 1, "warmups": 1, "steps": 2}
    said = run(tmp_path, recipe, "--dry-run")
    assert said.code == 0, said.err
    assert "tiny.json without base, 2 experts by features" in said.text
    rows = {row["name"]: row for row in part(done(tmp_path, recipe), "Cost")["rows"]}
    for name, model in (("base", tiny_base), ("wide", tiny_experts)):
        config = find(str(model)).config("unet")
        assert rows[name]["unet_params_m"] == pytest.approx(
            sum(each.numel() for each in unet(model).parameters()) / 1e6
        )
        assert rows[name]["unet_macs_g"] == pytest.approx(macs(config, tokens=tiny.TOKENS).total / 1e9)
        assert rows[name]["image_ms"] > 0
    assert all(row["unet_ms"] > 0 for row in rows.values())
    assert rows["base"]["unet_macs_g"] < rows["wide"]["unet_macs_g"]
    assert rows["base"]["image_macs_g"] < rows["wide"]["image_macs_g"]


def test_bench_refuses_experts_that_do_not_fit(tiny_base: Path, tmp_path: Path) -> None:
    wrong: dict[str, dict[str, Any]] = {
        "models[0].expand: goes with 'random' only; expand it first": {
            "model": str(tiny_base),
            "expand": {"at": ["mid"]},
        },
        "contestant 'a': nowhere": {"random": "sd15", "expand": {"at": ["nowhere"]}},
        "contestant 'a': expand.at: no block has fewer layers": {"random": "sd15", "expand": {"donor": "sd15"}},
        "neither a preset": {"random": "sd15", "expand": {"donor": "sd99"}},
    }
    for message, contestant in wrong.items():
        said = run(tmp_path, {"verb": "bench", "models": [{"name": "a", **contestant}]}, "--dry-run")
        assert said.code == 2
        assert message in said.text, said.err


@pytest.mark.parametrize("router", ["time", "both"])
def test_images_are_counted_with_their_mixing(tiny_base: Path, tmp_path: Path, router: str) -> None:
    """All of it, although kernels may have been kept from the picture before."""
    model = expanded(tmp_path, tiny_base, experts=2, at=["down.1"], router=router)
    pipe: Any = asdm_cli.load(str(model), "cpu")
    wanted = macs(dict(pipe.unet.config), batch=2, tokens=tiny.TOKENS).total
    for _ in range(2):
        seen = count("it", {"unet": pipe.unet}, lambda: picture(pipe))
        assert (seen.calls, seen.rows) == (3, 6)
        assert seen.components["unet"].total == 3 * wanted


def test_every_verb_is_tried() -> None:
    """Here and in its own tests; distill's are in test_distill_experts.py."""
    assert set(VERBS) == {"prune", "assemble", "condconv-expand", "inherit", "switch", "distill", "eval", "bench"}


def test_a_picture_in_half_precision(tiny_experts: Path) -> None:
    half: Any = asdm_cli.load(str(tiny_experts), "cpu", "bfloat16")
    found: Tensor = picture(half)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, drawn(tiny_experts), atol=0.3, rtol=0)
    assert torch.equal(found, picture(half))
    assert expanding.CPU == half.device
