"""`asdm assemble` from the command line: the model it writes, what it remembers, explorations, and faults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from asdm_cli.compare import run as comparing
from asdm_cli.models.directory import find
from asdm_cli.models.metadata import taken
from asdm_cli.report.run_directory import read
from asdm_cli.unet.surgery import apply
from asdm_cli.unet.weights import WEIGHTS
from asdm_cli.verbs import explore as exploring
from tests import expanding, tiny
from tests.apart import shared
from tests.expanding import done, figures
from tests.forking import plain
from tests.typed import Said

SIDES = ["base", "base", "original", "original"]
OPEN = [None, *SIDES[1:]]
"""Level 0 is left to blocks."""
PROMPTS = ["a fox", "an owl"]
MOST = 0.335
"""Millions of parameters, of an exploration."""
DRAW = """
import sys, torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1])
picture = pipe("a fox", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
assert not any(name.startswith("asdm") for name in sys.modules)
print(picture.size, pipe.unet.config.layers_per_block)
"""


def assemble(folder: Path, *options: object, **recipe: Any) -> Said:
    """The verb on this recipe, which it writes to `folder`; a run goes to `folder / "run"`."""
    return expanding.run(folder, {"verb": "assemble", **recipe}, *options)


@pytest.fixture(scope="module")
def base(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return expanding.learned(tiny_pipeline, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def donors(tiny_pipeline: Path, base: Path) -> dict[str, str]:
    return {"original": str(tiny_pipeline), "base": str(base)}


@pytest.fixture(scope="module")
def said(donors: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    folder = tmp_path_factory.mktemp("assemble")
    return folder / "run", assemble(folder, donors=donors, levels=SIDES, mid="original")


@pytest.fixture(scope="module")
def run(said: tuple[Path, Said]) -> Path:
    return said[0]


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / WEIGHTS)


def test_stdout_is_the_path_and_the_plan_is_told(said: tuple[Path, Said]) -> None:
    path, told = said
    assert (told.code, told.out) == (0, f"{path}\n")
    assert "(0.547 → 0.514 M)" in told.text, told.err
    assert "Writes 2.38 MB" in told.text
    assert {each.name for each in path.iterdir()} == {".asdm", "model", "report.json", "report.html", "recipe.yaml"}


def test_plain_diffusers_draws_with_it(run: Path, tmp_path: Path) -> None:
    told = plain(DRAW, run / "model", cwd=tmp_path)
    assert told.code == 0, told.err[-2000:]
    assert told.out == "(32, 32) [1, 1, 2, 2]\n"


def test_every_tensor_is_its_donors_and_the_rest_is_the_first_ones(run: Path, tiny_pipeline: Path, base: Path) -> None:
    have = {"original": weights(tiny_pipeline / "unet"), "base": weights(base / "model/unet")}
    made = weights(run / "model/unet")
    shallow = ("down_blocks.0.", "down_blocks.1.", "up_blocks.2.", "up_blocks.3.", "conv_")
    for name, value in made.items():
        assert torch.equal(value, have["base" if name.startswith(shallow) else "original"][name]), name
    assert len(made) > 500
    same = [file for file in tiny_pipeline.rglob("*") if file.is_file() and file.parent.name != "unet"]
    assert all((run / "model" / file.relative_to(tiny_pipeline)).read_bytes() == file.read_bytes() for file in same)
    assert {file.parent.name for file in same} >= {"vae", "text_encoder", "tokenizer", "scheduler", "clip"}
    assert not shared(run, tiny_pipeline, base)


def test_the_model_remembers_what_was_taken_from_whom(run: Path, base: Path, tmp_path: Path) -> None:
    directory = find(str(run))
    assert taken(directory) == {
        "original": ["down.2", "down.3", "mid", "up.0", "up.1", "time_embedding"],
        "base": ["down.0", "down.1", "up.2", "up.3", "conv_in", "conv_norm_out", "conv_out"],
    }
    (step,) = json.loads((run / "model/asdm.json").read_text())["history"]
    assert step["donors"]["original"].keys() == {"source", "unet_header_sha256", "unet_config"}
    assert step["donors"]["base"]["history"][0]["verb"] == "prune"
    assert str(base.parent) not in (run / "model/asdm.json").read_text()
    assert taken(find(str(base))) == {}
    assert assemble(tmp_path / "again", donors={"new": str(run)}, levels=["new"] * 4, mid="none").code == 0
    assert list(taken(find(str(tmp_path / "again/run")))) == ["new"], "the newest assembly's donors count"


def test_all_from_one_is_that_one(tiny_pipeline: Path, tmp_path: Path) -> None:
    assert assemble(tmp_path, donors={"one": str(tiny_pipeline)}, levels=["one"] * 4, mid="one").code == 0
    ours, theirs = tmp_path / "run/model/unet", tiny_pipeline / "unet"
    config = json.loads((theirs / "config.json").read_text())
    config.pop("_name_or_path", None)
    assert json.loads((ours / "config.json").read_text()) == config
    made, own = weights(ours), weights(theirs)
    assert made.keys() == own.keys()
    assert all(torch.equal(made[key], own[key]) for key in own)
    assert len(own) > 500


def test_three_donors_blocks_and_layers(donors: dict[str, str], tmp_path: Path) -> None:
    """The third is a bare UNet of three levels; a block is given layer by layer."""
    config = tiny.SHAPES["sd15"]
    shorter, state = apply(config, tiny.unet(config, 7).state_dict(), "tiny")
    bare = tmp_path / "bare"
    bare.mkdir()
    save_file({name: value.contiguous() for name, value in state.items()}, bare / WEIGHTS)
    (bare / "config.json").write_text(json.dumps(shorter))
    told = assemble(
        tmp_path / "work",
        donors={**donors, "tiny": str(bare)},
        levels=["tiny", None, "base", "original"],
        blocks={
            "down.1": "base",
            "up.2": ["base/up.2.0", "original/up.2.2", "tiny/up.1.sampler"],
        },
        mid="none",
        embeddings="base",
    )
    assert told.code == 0, told.err
    made = weights(tmp_path / "work/run/model/unet")
    original, base = weights(Path(donors["original"], "unet")), weights(Path(donors["base"], "model/unet"))
    conv = "resnets.{}.conv1.weight"
    expected = {
        f"up_blocks.2.{conv.format(0)}": base[f"up_blocks.2.{conv.format(0)}"],
        f"up_blocks.2.{conv.format(1)}": original[f"up_blocks.2.{conv.format(2)}"],
        "up_blocks.2.upsamplers.0.conv.weight": state["up_blocks.1.upsamplers.0.conv.weight"],
        f"up_blocks.3.{conv.format(1)}": state[f"up_blocks.2.{conv.format(1)}"],
        "conv_out.weight": state["conv_out.weight"],
        "time_embedding.linear_1.weight": base["time_embedding.linear_1.weight"],
    }
    assert all(torch.equal(made[key], value) for key, value in expected.items())
    assert not any(key.startswith("mid_block") for key in made)
    assert taken(find(str(tmp_path / "work/run")))["tiny"] == [
        "down.0", "up.2.sampler", "up.3", "conv_in", "conv_norm_out", "conv_out",
    ]  # fmt: skip


def test_bare_unets_give_a_bare_unet(tmp_path: Path) -> None:
    for seed in (0, 1):
        tiny.unet(tiny.SHAPES["sdxl"], seed).half().save_pretrained(tmp_path / str(seed), max_shard_size="200KB")
    named = {"zero": str(tmp_path / "0"), "one": str(tmp_path / "1")}
    told = assemble(tmp_path / "work", donors=named, levels=["zero", "one", "zero"], mid="one")
    assert told.code == 0, told.err
    model = tmp_path / "work/run/model"
    assert {file.name for file in model.iterdir()} == {"config.json", "asdm.json", "README.md", WEIGHTS}
    assert {tensor.dtype for tensor in weights(model).values()} == {torch.float16}
    assert taken(find(str(model)))["one"] == ["down.1", "mid", "up.1", "add_embedding", "time_embedding"]


FAULTS = [
    ({"levels": ["base", "basse", "original", "original"]}, "recipe.yaml:8:3: levels[1]: no donor is called 'basse'"),
    ({"mid": "orginal"}, "mid: no donor is called 'orginal' (did you mean 'original'?)"),
    ({"levels": ["base"] * 5}, "levels[4]: donor base has no level 4; its levels are 0..3"),
    ({"blocks": {"up.3": "base"}}, "blocks.up.3: levels[0] gives it already"),
    ({"levels": OPEN}, "levels[0]: nothing gives down.0; a UNet of 4 levels has it"),
    ({"levels": OPEN, "blocks": {"down.0": "base", "up.3": ["base/up.3.9"]}}, "blocks.up.3[0]: donor base: up.3.9"),
    ({"levels": OPEN, "blocks": {"down.0": "base", "up.3": ["base/up.9"]}}, "must be donor/layer, as in"),
    ({"explore": {"combinations": "all"}}, "explore.budget: must be given for 'all'"),
    ({"ends": "nobody"}, "ends: no donor is called 'nobody'"),
    ({"mid": None, "explore": {"combinations": "all", "budget": {"macs_g": 1}}}, "mid: does not go with 'explore'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_faults_are_told_with_their_place_and_nothing_is_written(
    change: dict[str, Any], message: str, donors: dict[str, str], tmp_path: Path
) -> None:
    told = assemble(tmp_path, **{"donors": donors, "levels": SIDES, "mid": "original", **change})
    assert told.code == 2
    assert message in told.err
    assert {each.name for each in tmp_path.iterdir()} == {"recipe.yaml"}


def test_missing_and_unlike_donors_are_told_at_once(donors: dict[str, str], tmp_path: Path) -> None:
    other = Path(shutil.copytree(donors["original"], tmp_path / "other"))
    settings = json.loads((other / "scheduler/scheduler_config.json").read_text())
    (other / "scheduler/scheduler_config.json").write_text(json.dumps({**settings, "prediction_type": "v_prediction"}))
    named = {**donors, "other": str(other), "gone": str(tmp_path / "gone")}
    told = assemble(tmp_path / "work", donors=named, levels=SIDES, mid="other")
    assert told.code == 2
    assert "donors.gone: " in told.err
    assert "prediction_type of the scheduler must be the same everywhere: original has 'epsilon'" in told.err
    assert not (tmp_path / "work/run").exists()


# Explorations


@pytest.fixture(scope="module")
def explore(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    quick = {"limit": 2, "steps": 2, "repeats": 2, "warmups": 1, "bootstrap": 20, "device": "cpu", "dtype": "float32"}
    return {**quick, "prompts": str(prompts), "combinations": "all", "budget": {"parameters_m": MOST}}


@pytest.fixture(scope="module")
def explored(donors: dict[str, str], explore: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return done(tmp_path_factory.mktemp("explore"), {"verb": "assemble", "donors": donors, "explore": explore})


def test_what_is_written_has_a_card(explored: Path) -> None:
    models = sorted((explored / "models").iterdir())
    assert models
    assert all(f"# {model.name}" in (model / "README.md").read_text() for model in models)


def test_what_the_budget_lets_pass_is_measured_and_written(explored: Path, base: Path) -> None:
    report = read(explored)
    first, *names = report.setups
    over = report.facts["above the budget"]
    assert first == "original"
    assert len(names) + len(over) == 2**4 * 3 - 1, "all but the original itself"
    assert len(names) == 3
    assert set(over.values()) == {f"parameters_m is above {MOST:g}"}
    params, psnr, macs = (figures(report, metric) for metric in ("params_m", "psnr_db", "macs_g"))
    assert params.keys() == {first, *names}
    assert all(params[name] <= MOST for name in names)
    assert psnr.keys() == {*names}, "the first is not compared with itself"
    assert len(set(psnr.values())) == 3
    assert all(macs[name] < macs[first] for name in names)
    assert figures(report, "unet_speedup").keys() == {*names}
    assert {each.name for each in (explored / "models").iterdir()} == {*names}
    same, own = (load_file(each / WEIGHTS) for each in (explored / "models/b-b-b-b, no mid/unet", base / "model/unet"))
    assert same.keys() == {key for key in own if not key.startswith("mid_block")}
    assert all(torch.equal(same[key], own[key]) for key in same)
    assert report.images is not None
    assert report.images.prompts == PROMPTS
    assert list(report.images.folders) == [first, *names]
    assert all((explored / folder / "000001.png").is_file() for folder in report.images.folders.values())


def test_what_is_drawn_in_memory_is_what_the_written_model_draws(
    explored: Path, explore: dict[str, Any], tmp_path: Path
) -> None:
    report = read(explored)
    psnr = figures(report, "psnr_db")
    name = max(psnr, key=lambda each: psnr[each])
    settings = {key: explore[key] for key in ("prompts", "steps", "limit", "device", "dtype", "bootstrap")}
    models = [{"name": "one", "model": str(explored / "models" / name)}]
    run = done(tmp_path, {"verb": "eval", "models": models, **settings, "metrics": ["psnr"]})
    for index in range(2):
        mine, theirs = (folder / f"{index:06}.png" for folder in (run / "samples/one", explored / "samples" / name))
        assert mine.read_bytes() == theirs.read_bytes()


def test_the_errors_of_parts_say_who_is_drawn(
    explored: Path, donors: dict[str, str], explore: dict[str, Any], tmp_path: Path
) -> None:
    """Alone in the place of the first donor's; what is foretold of others is their sum, and stands beside what they
    really err and how near they draw."""
    whole = read(explored)
    alone = {each.of: each.value for each in whole.records if each.metric == "output_error" and each.of}
    assert alone.keys() == {*(f"part/level {level} of base" for level in range(4)), "part/no mid"}
    foretold, real = figures(whole, "predicted_error"), figures(whole, "output_error")
    assert foretold.keys() == {each for each in whole.setups if each != "original"}
    assert foretold["b-b-b-b, no mid"] == pytest.approx(sum(alone.values()), rel=1e-6)
    assert all(value > 0 and value != pytest.approx(foretold[name], rel=1e-3) for name, value in real.items())
    assert whole.facts["sums of parts"].startswith("rank correlation over 3 that were drawn")
    assert "not drawn" not in whole.facts
    told = assemble(tmp_path, donors=donors, explore={**explore, "draw": 1})
    assert told.code == 0, told.err
    report = read(tmp_path / "run")
    (best,) = (name for name in report.setups if name != "original")
    assert foretold[best] == min(foretold.values())
    assert report.facts["not drawn"].keys() == foretold.keys() - {best}
    assert {each.name for each in (tmp_path / "run/models").iterdir()} == {best}
    assert {each.setup for each in report.records} == {"original", best}
    assert figures(report, "output_error")[best] == real[best]


def test_an_error_that_is_no_number_is_refused(tiny_pipeline: Path, explore: dict[str, Any], tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny_pipeline, tmp_path / "broken"))
    state = weights(broken / "unet")
    state["down_blocks.0.resnets.0.conv1.bias"] = torch.full_like(state["down_blocks.0.resnets.0.conv1.bias"], 1e30)
    save_file(state, broken / "unet" / WEIGHTS, metadata={"format": "pt"})
    listed = [{"levels": ["broken", "whole", "whole", "whole"], "mid": "whole"}]
    named = {"whole": str(tiny_pipeline), "broken": str(broken)}
    told = assemble(tmp_path / "w", donors=named, explore={**explore, "combinations": listed, "budget": {}})
    assert told.code == 1
    assert "b-w-w-w, mid w: the UNet answers what is no number; try `dtype: float32`" in told.text


def test_explore_goes_on_where_it_stopped(
    donors: dict[str, str], explore: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [{"name": "mine", "levels": SIDES, "mid": "original"}, {"levels": ["base"] * 4, "mid": "base"}]
    asked = {**explore, "combinations": listed, "budget": {}}
    drawn: list[str] = []
    timed: list[str] = []
    draw, calls = comparing.draw, exploring.unet_calls

    def stumble(*given: Any, what: str, **more: Any) -> Any:
        drawn.append(what.removeprefix("drawing with "))
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return draw(*given, what=what, **more)

    monkeypatch.setattr(comparing, "draw", stumble)
    monkeypatch.setattr(exploring, "unet_calls", lambda *given: timed.append("once") or calls(*given))
    assert assemble(tmp_path, donors=donors, explore=asked).code == 130
    assert not (tmp_path / "run").exists()
    told = assemble(tmp_path, donors=donors, explore=asked)
    assert told.code == 0, told.err
    assert drawn == ["original", "mine", "mine", "b-b-b-b, mid b"]
    assert timed == ["once"]
    assert list(read(tmp_path / "run").setups) == ["original", "mine", "b-b-b-b, mid b"]


def test_the_same_weights_are_built_once(tiny_pipeline: Path, explore: dict[str, Any], tmp_path: Path) -> None:
    """A pruning that was not trained shares its weights with its model; and equal choices are one."""
    gone = ["down.0.1", "up.3.1"]
    pruned = done(tmp_path / "p", {"verb": "prune", "model": str(tiny_pipeline), "remove": gone})
    listed = [{"levels": [a, "o", "o", "o"], "mid": mid} for a in ("o", "p") for mid in ("o", "p")]
    listed += [{"name": "again", "levels": ["p", "o", "o", "o"], "mid": "o"}]
    named = {"o": str(tiny_pipeline), "p": str(pruned)}
    told = assemble(tmp_path / "w", donors=named, explore={**explore, "combinations": listed, "budget": {}})
    assert told.code == 0, told.err
    assert "Built once only: o-o-o-o, mid o (is o), again (is p-o-o-o, mid o)" in told.text
    assert {each.name for each in (tmp_path / "w/run/models").iterdir()} == {"p-o-o-o, mid o"}
    assert list(read(tmp_path / "w/run").setups) == ["o", "p-o-o-o, mid o"]


def test_latency_is_a_budget_too(donors: dict[str, str], explore: dict[str, Any], tmp_path: Path) -> None:
    asked = {"combinations": [{"levels": ["base"] * 4, "mid": None}], "budget": {"latency_ratio": 1e-6}}
    told = assemble(tmp_path, donors=donors, explore={**explore, **asked})
    assert told.code == 0, told.err
    report = read(tmp_path / "run")
    assert report.facts["above the budget"] == {"b-b-b-b, no mid": "latency_ratio is above 1e-06"}
    assert list(report.setups) == ["original"]
    assert not (tmp_path / "run/models").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"combinations": [{"levels": SIDES, "mid": "none"}], "budget": {"macs_g": 1e-9}}, "explore.budget: all 1 "),
        ({"combinations": [{"levels": ["base"] * 5, "mid": "base"}]}, "explore.combinations[0].levels[4]: donor base"),
        ({"combinations": [{"levels": ["base"] * 4, "mid": "x"}]}, "explore.combinations[0].mid: no donor is called"),
        ({"combinations": [{"levels": ["base"] * 4}]}, "explore.combinations[0].mid: must be given"),
        ({"budget": None}, "explore.budget: must be given for 'all'"),
        ({"prompts": "nowhere.txt"}, "nowhere.txt: no such file"),
    ],
)
def test_explorations_that_cannot_be(
    change: dict[str, Any], message: str, donors: dict[str, str], explore: dict[str, Any], tmp_path: Path
) -> None:
    told = assemble(tmp_path, donors=donors, explore={**explore, **change})
    assert told.code == 2
    assert message in told.text
    assert {each.name for each in tmp_path.iterdir()} == {"recipe.yaml"}


def test_explore_needs_a_pipeline_to_draw_with(tmp_path: Path, explore: dict[str, Any]) -> None:
    tiny.unet(tiny.SHAPES["sd15"]).save_pretrained(tmp_path / "unet")
    told = assemble(tmp_path / "work", donors={"bare": str(tmp_path / "unet")}, explore=explore)
    assert told.code == 2
    assert "donors.bare: is a bare UNet; explore draws pictures, so the first donor is a whole pipeline" in told.text
