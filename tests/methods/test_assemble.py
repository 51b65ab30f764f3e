"""`asdm assemble` from the command line: the model it writes, what it remembers, faults, and explorations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from asdm_cli.console import console
from asdm_cli.measure import drawing, explore_run
from asdm_cli.methods import prune
from asdm_cli.models.provenance import taken
from asdm_cli.models.source import find
from asdm_cli.recipe.verbs import PruneRecipe
from asdm_cli.report.run_directory import Run
from asdm_cli.unet.checkpoint import WEIGHTS
from asdm_cli.unet.surgery import apply
from tests import tiny
from tests.apart import shared
from tests.forking import plain
from tests.typed import Said, asdm

PROMPTS = ["a fox", "an owl"]
SIDES = ["base", "base", "original", "original"]
OPEN = [None, *SIDES[1:]]
"""Level 0 is left to blocks."""
DRAW = """
import sys, torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1])
picture = pipe("a fox", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
assert not any(name.startswith("asdm") for name in sys.modules)
print(picture.size, pipe.unet.config.layers_per_block)
"""


@pytest.fixture(autouse=True)
def _loud_again() -> Iterator[None]:
    yield
    console.quiet = False


def assemble(folder: Path, *options: object, **recipe: Any) -> Said:
    """The verb on this recipe, which it writes to `folder`; a run goes to `folder / "run"`."""
    folder.mkdir(exist_ok=True)
    file = folder / "recipe.yaml"
    data = {"verb": "assemble", **recipe, "out": str(folder / "run")}
    file.write_text(yaml.safe_dump(data, sort_keys=False, width=1000))
    return asdm("assemble", file, *options)


@pytest.fixture(scope="module")
def base(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline without base's layers, and with weights of its own, as after some distillation."""
    run = tmp_path_factory.mktemp("base")
    recipe = PruneRecipe(verb="prune", model=str(tiny_pipeline), remove="base", out="unused")
    prune.run(prune.plan(recipe), Run(run))
    file = run / "model/unet" / WEIGHTS
    torch.manual_seed(0)
    save_file({name: value + torch.randn_like(value) / 100 for name, value in load_file(file).items()}, file)
    return run


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
    assert "What of the result comes from it" in told.err
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
    assert step["donors"]["original"].keys() == {"source", "unet_header_sha256"}
    assert step["donors"]["base"]["history"][0]["verb"] == "prune"
    assert str(base.parent) not in (run / "model/asdm.json").read_text()
    assert taken(find(str(base))) == {}
    assert assemble(tmp_path / "again", donors={"new": str(run)}, levels=["new"] * 4, mid=None).code == 0
    assert list(taken(find(str(tmp_path / "again/run")))) == ["new"], "the newest assembly's donors count"


def test_after_a_pruning_addresses_are_no_longer_those_that_were_taken(run: Path, tmp_path: Path) -> None:
    recipe = PruneRecipe(verb="prune", model=str(run), remove="mid", out="unused")
    prune.run(prune.plan(recipe), Run(tmp_path))
    assert taken(find(str(tmp_path))) == {}


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
    assert {file.name for file in model.iterdir()} == {"config.json", "asdm.json", WEIGHTS}
    assert {tensor.dtype for tensor in weights(model).values()} == {torch.float16}
    assert taken(find(str(model)))["one"] == ["down.1", "mid", "up.1", "add_embedding", "time_embedding"]


FAULTS = [
    ({"levels": ["base", "basse", "original", "original"]}, "recipe.yaml:7:3: levels[1]: no donor is called 'basse'"),
    ({"mid": "orginal"}, "mid: no donor is called 'orginal' (did you mean 'original'?)"),
    ({"levels": ["base"] * 5}, "levels[4]: donor base has no level 4; its levels are 0..3"),
    ({"blocks": {"up.3": "base"}}, "blocks.up.3: levels[0] gives it already"),
    ({"levels": OPEN}, "levels[0]: nothing gives down.0; a UNet of 4 levels has it"),
    ({"levels": OPEN, "blocks": {"down.0": "base", "up.3": ["base/up.3.9"]}}, "blocks.up.3[0]: donor base: up.3.9"),
    ({"levels": OPEN, "blocks": {"down.0": "base", "up.3": ["base/up.9"]}}, "must be donor/layer, as in"),
    ({"explore": {"combinations": "all"}}, "explore.budget: must be given for 'all'"),
    ({"ends": "nobody"}, "ends: no donor is called 'nobody'"),
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


EXPLORE = {"limit": 2, "steps": 2, "repeats": 2, "warmups": 1, "bootstrap": 20, "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def explore(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    budget = {"parameters_m": 0.37}
    return {**EXPLORE, "prompts": str(prompts), "combinations": "all", "budget": budget}


@pytest.fixture(scope="module")
def explored(donors: dict[str, str], explore: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explore")
    told = assemble(folder, donors=donors, explore=explore)
    assert told.code == 0, told.err
    return folder / "run"


def parts(run: Path) -> dict[str, Any]:
    return {part["title"]: part for part in json.loads((run / "report.json").read_text())["parts"]}


def test_explore_ranks_what_the_budget_lets_pass(explored: Path) -> None:
    first, *rows = parts(explored)["Ranking"]["rows"]
    out = parts(explored)["Above the budget"]["rows"]
    assert first["name"] == "original"
    assert "psnr_db" not in first, "it is not compared with itself"
    assert len(rows) + len(out) == 2**4 * 3 - 1, "all but the original itself"
    assert len(rows) >= 5
    assert len(out) >= 5
    assert all(row["params_m"] <= 0.37 for row in rows)
    assert all(row["params_m"] > 0.37 and "parameters_m is above 0.37" in row["why"] for row in out)
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    scores = [row["psnr_db"]["value"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > len(rows) / 2
    assert all(row["psnr_db"]["low"] <= row["psnr_db"]["value"] <= row["psnr_db"]["high"] for row in rows)
    assert rows[0]["front"] == "yes", "the best one is on the front"
    assert all(row["latency_ratio"]["value"] > 0 and row["macs_g"] < first["macs_g"] for row in rows)


def test_explore_writes_a_model_of_each(explored: Path, base: Path) -> None:
    names = {row["name"] for row in parts(explored)["Ranking"]["rows"][1:]}
    assert {each.name for each in (explored / "models").iterdir()} == names
    assert {each.name for each in (explored / "pictures").iterdir()} == {*names, "original"}
    same, own = (weights(each) for each in (explored / "models/b-b-b-b, mid b/unet", base / "model/unet"))
    assert same.keys() == own.keys()
    assert all(torch.equal(same[key], own[key]) for key in own)
    grid = parts(explored)["The same prompts and seeds"]
    assert grid["rows"] == PROMPTS
    assert grid["columns"][0] == "original"
    assert all((explored / cell).is_file() for row in grid["pictures"] for cell in row)


def test_what_is_drawn_in_memory_is_what_the_written_model_draws(
    explored: Path, explore: dict[str, Any], tmp_path: Path
) -> None:
    name = parts(explored)["Ranking"]["rows"][1]["name"]
    settings = {key: explore[key] for key in ("prompts", "steps", "limit", "device", "dtype", "bootstrap")}
    recipe = {"verb": "eval", "models": [{"name": "one", "model": str(explored / "models" / name)}]}
    file = tmp_path / "eval.yaml"
    file.write_text(yaml.safe_dump({**recipe, **settings, "metrics": ["psnr"], "out": str(tmp_path / "eval")}))
    assert asdm("eval", file).code == 0
    pairs = [[folder / f"{index:06}.png" for folder in (tmp_path / "eval/pictures/one", explored / "pictures" / name)]
             for index in range(2)]  # fmt: skip
    assert all(mine.read_bytes() == theirs.read_bytes() for mine, theirs in pairs)


def test_explore_goes_on_where_it_stopped(
    donors: dict[str, str], explore: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [{"name": "mine", "levels": SIDES, "mid": "original"}, {"levels": ["base"] * 4, "mid": "base"}]
    recipe = {"donors": donors, "explore": {**explore, "combinations": listed, "budget": {}}}
    drawn: list[str] = []
    timed: list[str] = []
    draw, turns = drawing.draw, explore_run.take_turns

    def stumble(name: str, *rest: Any) -> Any:
        drawn.append(name)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return draw(name, *rest)

    monkeypatch.setattr(explore_run, "draw", stumble)
    monkeypatch.setattr(explore_run, "take_turns", lambda works, **rest: timed.append("once") or turns(works, **rest))
    assemble(tmp_path, **recipe)
    assert not (tmp_path / "run").exists()
    assert assemble(tmp_path, **recipe).code == 0
    assert drawn == ["original", "mine", "mine", "b-b-b-b, mid b"]
    assert timed == ["once"]
    assert {row["name"] for row in parts(tmp_path / "run")["Ranking"]["rows"]} == {"original", "mine", "b-b-b-b, mid b"}


def test_the_same_weights_are_built_once(tiny_pipeline: Path, explore: dict[str, Any], tmp_path: Path) -> None:
    """A pruning that was not trained shares its weights with its model; and equal choices are one."""
    recipe = PruneRecipe(verb="prune", model=str(tiny_pipeline), remove=["down.0.1", "up.3.1"], out="unused")
    (tmp_path / "p").mkdir()
    prune.run(prune.plan(recipe), Run(tmp_path / "p"))
    listed = [{"levels": [a, "o", "o", "o"], "mid": mid} for a in ("o", "p") for mid in ("o", "p")]
    listed += [{"name": "again", "levels": ["p", "o", "o", "o"], "mid": "o"}]
    named = {"o": str(tiny_pipeline), "p": str(tmp_path / "p")}
    told = assemble(tmp_path / "w", donors=named, explore={**explore, "combinations": listed, "budget": {}})
    assert told.code == 0, told.err
    assert "Built once only: o-o-o-o, mid o (is o), again (is p-o-o-o, mid o)" in " ".join(told.err.split())
    assert {each.name for each in (tmp_path / "w/run/models").iterdir()} == {"p-o-o-o, mid o"}


def test_latency_is_a_budget_too(donors: dict[str, str], explore: dict[str, Any], tmp_path: Path) -> None:
    listed = [{"levels": ["base"] * 4, "mid": "base"}]
    budget = {"latency_ratio": 1e-6}
    told = assemble(tmp_path, donors=donors, explore={**explore, "combinations": listed, "budget": budget})
    assert told.code == 0, told.err
    (row,) = parts(tmp_path / "run")["Above the budget"]["rows"]
    assert row["why"] == "latency_ratio is above 1e-06"
    assert row["latency_ratio"]["value"] > 0
    assert not (tmp_path / "run/models").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"combinations": [{"levels": SIDES, "mid": None}], "budget": {"macs_g": 1e-9}}, "explore.budget: all 1 "),
        ({"combinations": [{"levels": ["base"] * 5, "mid": "base"}]}, "explore.combinations[0].levels[4]: donor base"),
        ({"combinations": [{"levels": ["base"] * 4, "mid": "x"}]}, "explore.combinations[0].mid: no donor is called"),
    ],
)
def test_explorations_that_cannot_be(
    change: dict[str, Any], message: str, donors: dict[str, str], explore: dict[str, Any], tmp_path: Path
) -> None:
    told = assemble(tmp_path, donors=donors, explore={**explore, **change})
    assert told.code == 2
    assert message in told.err
    assert {each.name for each in tmp_path.iterdir()} == {"recipe.yaml"}


def test_explore_needs_a_pipeline_to_draw_with(tmp_path: Path, explore: dict[str, Any]) -> None:
    tiny.unet(tiny.SHAPES["sd15"]).save_pretrained(tmp_path / "unet")
    told = assemble(tmp_path / "work", donors={"bare": str(tmp_path / "unet")}, explore=explore)
    assert told.code == 2
    assert "donors.bare: is a bare UNet; explore draws pictures, so the first donor is a whole pipeline" in told.err
