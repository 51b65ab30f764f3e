"""The verb prune, from recipe to a model that plain diffusers draws with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from asdm_cli.compare import setup as setups
from asdm_cli.errors import AsdmError, ModelError
from asdm_cli.models.directory import find
from asdm_cli.recipe.verbs import PruneRecipe
from asdm_cli.records import Report
from asdm_cli.report.metrics import METRICS
from asdm_cli.report.run_directory import Run, run_directory
from asdm_cli.report.tables import main
from asdm_cli.search import importance
from asdm_cli.search.importance import Left
from asdm_cli.unet.blocks import read_blocks
from asdm_cli.unet.removals import Removals, Unit
from asdm_cli.unet.surgery import apply, remove
from asdm_cli.unet.weights import WEIGHTS
from asdm_cli.verbs import prune
from asdm_cli.verbs.importance import Search
from tests import drawings, families, tiny
from tests.apart import shared
from tests.carrying import carrying, every
from tests.expanding import figures
from tests.forking import ours, plain, together
from tests.typed import asdm

DRAW = """
import sys, torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1])
picture = pipe("a fox", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
assert not any(name.startswith("asdm") for name in sys.modules)
print(picture.size, sum(p.numel() for p in pipe.unet.parameters()))
"""


def _plan(model: Path, remove: Any = "base") -> prune.Plan | Search:
    return prune.plan(PruneRecipe(verb="prune", model=str(model), remove=remove, out="unused"))


def _pruned(model: Path, target: Path, remove: Any = "base") -> Path:
    target.mkdir(parents=True)
    prune.run(_plan(model, remove), Run(target))
    return target / "model"


def test_stock_diffusers_draws_with_the_pruned_pipeline(tiny_pipeline: Path, tmp_path: Path) -> None:
    model = _pruned(tiny_pipeline, tmp_path / "run")
    told = plain(DRAW, model, cwd=tmp_path)
    assert told.code == 0, told.err[-2000:]
    assert told.out.split()[-1] == "368468"


def test_unet_is_that_of_the_surgery_and_the_rest_is_copied(tiny_pipeline: Path, tmp_path: Path) -> None:
    model = _pruned(tiny_pipeline, tmp_path / "run", "tiny")
    config, tensors = apply(tiny.SHAPES["sd15"], load_file(tiny_pipeline / "unet" / WEIGHTS), "tiny")
    written = load_file(model / "unet" / WEIGHTS)
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)
    stored = json.loads((model / "unet" / "config.json").read_text())
    assert {key: stored[key] for key in config} == config
    same = [file for file in tiny_pipeline.rglob("*") if file.is_file() and file.parent.name != "unet"]
    assert all((model / file.relative_to(tiny_pipeline)).read_bytes() == file.read_bytes() for file in same)
    assert not shared(model, tiny_pipeline)


def test_by_link_weights_are_shared_and_nothing_else_and_that_is_said(tiny_pipeline: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"verb: prune\nmodel: {tiny_pipeline}\nremove: mid\nout: {tmp_path / 'run'}\n")
    plain, linked = asdm("prune", recipe, "--dry-run"), asdm("prune", recipe, "--dry-run", "--link")
    assert "hard links" not in plain.text
    assert "hard links to the source's files" in linked.text
    done = asdm("prune", recipe, "--link")
    assert (done.code, done.text.count("hard links to the source's files")) == (0, 1), (
        "the plan says it, and the report not again"
    )
    assert "hard links to the source's files" in (tmp_path / "run/report.html").read_text().replace("&#39;", "'")
    weights = {f"{name}/{file}.safetensors" for name, file in (("vae", WEIGHTS[:-12]), ("text_encoder", "model"))}
    assert shared(tmp_path / "run/model", tiny_pipeline) == weights | {"clip/model.safetensors"}


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (f"vae/{WEIGHTS}", "no weights"),
        (f"unet/{WEIGHTS}", "cannot be read any more"),
    ],
)
def test_a_file_that_vanished_is_said_in_words(lost: str, said: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    plan = _plan(model, "mid")
    (model / lost).unlink()
    with (
        pytest.raises(AsdmError, match=rf"{Path(lost).parent}.*: {said}"),
        run_directory(tmp_path / "run", False, False, "") as run,
    ):
        prune.run(plan, run)


def test_a_model_that_changed_while_it_was_read_makes_no_other(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"verb: prune\nmodel: {model}\nremove: mid\nout: {tmp_path / 'run'}\n")
    run = prune.run

    def changing(*them: Any) -> Report:
        with (model / "unet" / WEIGHTS).open("r+b") as weights:
            weights.seek(-4, os.SEEK_END)
            weights.write(b"else")
        return run(*them)

    with monkeypatch.context() as patch:
        patch.setattr(prune, "run", changing)
        said = asdm("prune", recipe)
    assert (said.code, said.out) == (1, "")
    assert f"{model}: was changed while this ran; put it back, or give the same command again" in said.text
    assert not (tmp_path / "run").exists()
    assert asdm("prune", recipe).code == 0


def test_provenance_names_no_place_and_adds_up(tiny_pipeline: Path, tmp_path: Path) -> None:
    first = _pruned(tiny_pipeline, tmp_path / "first", ["down.0.*.attn", "up.3.*.attn"])
    second = _pruned(tmp_path / "first", tmp_path / "second", "small")
    text = (second / "asdm.json").read_text()
    assert str(tmp_path) not in text
    history = json.loads(text)["history"]
    assert history[:1] == json.loads((first / "asdm.json").read_text())["history"]
    assert [(step["verb"], step["source"]) for step in history] == [("prune", "tiny"), ("prune", "first")]
    assert history[0]["removed"] == ["down.0.*.attn", "up.3.*.attn"]
    assert all(len(step["source_unet_header_sha256"]) == 64 for step in history)


def test_pruning_in_two_steps_is_pruning_at_once(tiny_pipeline: Path, tmp_path: Path) -> None:
    _pruned(tiny_pipeline, tmp_path / "base", "base")
    twice = _pruned(tmp_path / "base", tmp_path / "then", "small")
    once = _pruned(tiny_pipeline, tmp_path / "small", "small")
    assert (twice / "unet" / WEIGHTS).read_bytes() == (once / "unet" / WEIGHTS).read_bytes()
    assert (twice / "unet/config.json").read_bytes() == (once / "unet/config.json").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_bare_sharded_unet_keeps_its_number_format(tmp_path: Path, dtype: torch.dtype) -> None:
    tiny.unet(tiny.SHAPES["sdxl"]).to(dtype).save_pretrained(tmp_path / "unet", max_shard_size="200KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 2
    model = _pruned(tmp_path / "unet", tmp_path / "run")
    assert {file.name for file in model.iterdir()} == {"config.json", "asdm.json", WEIGHTS}
    assert {tensor.dtype for tensor in load_file(model / WEIGHTS).values()} == {dtype}
    assert not find(str(tmp_path / "run")).is_pipeline


def test_report_adds_up(tiny_pipeline: Path) -> None:
    report = _plan(tiny_pipeline, "tiny").report()
    before, after = report.setups
    params = figures(report, "params_m")
    assert (params[before], params[after]) == pytest.approx((0.546588, 0.206676))
    for metric in ("params_m", "macs_g"):
        for name, whole in figures(report, metric).items():
            blocks = [each.value for each in report.records if (each.setup, each.metric) == (name, metric) and each.of]
            assert len(blocks) == {before: 10, after: 7}[name]
            assert sum(blocks) == pytest.approx(whole)
    assert figures(report, "macs_g")[after] < figures(report, "macs_g")[before]
    renamed = {f"up.{level}": f"up.{level - 1}" for level in (1, 2, 3)}
    assert report.facts["blocks"] == dict.fromkeys(("down.3", "mid", "up.0"), "removed") | renamed


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"conv_in.weight": None}, "weights lack conv_in.weight"),
        ({"down_blocks.0.resnets.0.conv1.weight": torch.zeros(8, 8)}, "has the shape [8, 8]"),
        ({"extra.weight": torch.zeros(1)}, "extra.weight has no place"),
        ({"down_blocks.0.resnets.7.conv1.weight": torch.zeros(1)}, "resnets.7.conv1.weight has no place"),
    ],
)
def test_weights_that_are_not_the_configs_are_refused_before_anything_is_written(
    tiny_pipeline: Path, tmp_path: Path, change: dict[str, torch.Tensor | None], fault: str
) -> None:
    folder = Path(shutil.copytree(tiny_pipeline / "unet", tmp_path / "unet"))
    tensors = {**load_file(folder / WEIGHTS), **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / WEIGHTS)
    with pytest.raises(ModelError) as caught:
        _plan(folder)
    assert fault in str(caught.value)
    assert str(folder) in str(caught.value)


def test_what_cannot_be_removed_is_refused_at_the_plan(tiny_pipeline: Path) -> None:
    with pytest.raises(ModelError, match=r"down\.0 1; an up block has one layer more than the down block of its level"):
        _plan(tiny_pipeline, "down.0.0")


# by importance --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.pipeline("sdxl", tmp_path_factory.mktemp("xl") / "model")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all these tests keep what they measure."""
    return tmp_path_factory.mktemp("kept")


def _least(kept: Path, **more: Any) -> dict[str, Any]:
    prompts = kept / "prompts.txt"
    prompts.write_text("a fox\na red apple\n")
    return {"prompts": str(prompts), "steps": 2, "limit": 1, "calls": 2, "cache_folder": str(kept), **more}


def _chosen(model: Path, target: Path, asked: dict[str, Any]) -> Report:
    target.mkdir()
    return prune.run(_plan(model, asked), Run(target))


BOUNDS = [
    ("tiny_pipeline", {"macs": 0.7}, "output"),
    ("tiny_pipeline", {"params": 0.215}, "feature"),  # the least: a level goes, and transformers of the one before
    ("xl", {"macs": 0.6}, "output"),
]


@pytest.mark.parametrize(("model", "budget", "by"), BOUNDS)
def test_what_matters_least_goes_until_the_rest_is_within_the_budget(
    model: str, budget: dict[str, float], by: str, kept: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source: Path = request.getfixturevalue(model)
    report = _chosen(source, tmp_path / "run", _least(kept, budget=budget, by=by))
    (kind, share), (first, result, *named) = *budget.items(), report.setups
    figures = {(each.setup, each.metric): each.value for each in report.records if not each.of}
    key = {"macs": "macs_g", "params": "params_m"}[kind]
    assert figures[result, key] <= share * figures[first, key]
    config = json.loads((source / "unet" / "config.json").read_text())
    removed = report.facts["removed"].split(", ")
    unet, loaded = UNet2DConditionModel.from_pretrained(tmp_path / "run" / "model" / "unet", output_loading_info=True)
    assert not loaded["missing_keys"]
    assert sum(weight.numel() for weight in unet.parameters()) == round(figures[result, "params_m"] * 1e6)
    assert remove(config, removed).config["layers_per_block"] == unet.config["layers_per_block"]
    alone = [each.value for each in report.records if each.metric == "error_alone"]
    assert alone == sorted(alone)
    assert len(alone) > 30
    assert {*named} >= {"base instead", "small instead"}
    error = {"output": "output_error", "feature": "feature_error"}[by]
    others = {each.setup for each in report.records if (each.metric, each.of) == (error, "latents/others")}
    assert others == {result, *named}
    for each in (result, *named):
        assert 0 < figures[each, error] < float("inf")
        assert figures[each, key] < figures[first, key]
    table = main(report)
    assert table is not None
    assert [row[0].text for row in table.rows] == [first, result, *named], "side by side on the first screen"
    assert METRICS[error].title in [column.title for column in table.columns]
    (picture,) = report.timelines
    assert [*picture.rows] == [block.address for block in read_blocks(config)]
    assert "x" in "".join(picture.rows.values())


def test_what_was_measured_is_kept_for_other_budgets(
    shallow_pipeline: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _least(kept, seed=7)
    first = _chosen(shallow_pipeline, tmp_path / "first", {**asked, "budget": {"layers": 2}})
    assert first.facts["removed"]

    def layers(report: Report) -> float:
        return sum(each.value for each in report.records if each.metric == "layers" and each.setup == "pruned")

    before = sum(each.value for each in first.records if each.metric == "layers" and each.setup != "pruned")
    assert layers(first) <= before - 2

    def measured(removals: Removals, units: Sequence[Unit]) -> Left:
        assert len(units) > 1, "it is known"
        return without(removals, units)

    without = Left.without
    monkeypatch.setattr(Left, "without", measured)
    timed = _chosen(shallow_pipeline, tmp_path / "timed", {**asked, "budget": {"time": 0.8}})
    assert timed.facts["removed"]
    for change in ({"seed": 8}, {"limit": asked["limit"] + 1}):
        with pytest.raises(AssertionError, match="it is known"):
            _chosen(shallow_pipeline, tmp_path / next(iter(change)), {**asked, **change, "budget": {"layers": 2}})


def test_an_interruption_loses_no_unit_that_was_measured(
    tiny_pipeline: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, done = _least(kept, seed=9, budget={"layers": 4}), list[str]()

    def measured(removals: Removals, units: Sequence[Unit]) -> Left:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(removals.name(units))
        return without(removals, units)

    without = Left.without
    monkeypatch.setattr(Left, "without", measured)
    with pytest.raises(KeyboardInterrupt):
        _chosen(tiny_pipeline, tmp_path / "first", asked)
    first = [done.pop() for _ in range(5)]
    with pytest.raises(KeyboardInterrupt):
        _chosen(tiny_pipeline, tmp_path / "second", asked)
    assert len({*first, *done}) == 10


def test_the_error_alone_is_that_of_the_removal(tiny_pipeline: Path, kept: Path, tmp_path: Path) -> None:
    """Against the model that removing the unit by its name writes, on a call heard by hand."""
    report = _chosen(tiny_pipeline, tmp_path / "run", _least(kept, budget={"macs": 0.9}))
    alone = {each.of.partition("/")[2]: each.value for each in report.records if each.metric == "error_alone"}
    session = setups.Session(torch.device("cpu"), torch.float32)
    setup = setups.drawing("tiny", find(str(tiny_pipeline)), steps=2, guidance=3.0)
    latents = importance.listen(session, setup, ["a fox"], setup.sampling(None), 2)
    assert len(latents.calls) == 2
    for unit in ("mid", "down.0.1, up.3.1", "up.2.*.attn", "up.1.0.attn.*"):
        unet = UNet2DConditionModel.from_pretrained(_pruned(tiny_pipeline, tmp_path / unit, unit.split(", ")) / "unet")
        errors = []
        for (args, named), whole in zip(latents.calls, latents.outputs, strict=True):
            with torch.no_grad():
                mine = unet(*args, **named)[0]
            errors.append(float((mine - whole).square().mean() / whole.square().mean()))
        assert sum(errors) / 2 == pytest.approx(alone[unit], rel=1e-4)


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        (
            {"budget": {"macs": 0.01}},
            r"remove\.budget\.macs: the least that a stock config can leave is 0\.\d+; raise it",
        ),
        ({"budget": {"macs": 0.5}, "by": "label_accuracy"}, r"remove\.by: label_accuracy .*; choose `output` or"),
    ],
)
def test_a_budget_that_nothing_meets_is_refused_before_anything_is_drawn(
    asked: dict[str, Any], fault: str, tiny_pipeline: Path, kept: Path
) -> None:
    with pytest.raises(ModelError, match=fault):
        _plan(tiny_pipeline, _least(kept, **asked))


def test_more_layers_than_can_go_are_told_with_how_many_can(tiny_pipeline: Path, kept: Path) -> None:
    with pytest.raises(ModelError, match=r"remove.budget.layers: (\d+) of \d+ can go at most; lower it") as told:
        _plan(tiny_pipeline, _least(kept, budget={"layers": 999}))
    most = int(str(told.value).split()[1])
    assert _plan(tiny_pipeline, _least(kept, budget={"layers": most}))
    with pytest.raises(ModelError, match="can go at most"):
        _plan(tiny_pipeline, _least(kept, budget={"layers": most + 1}))


WRITING = """
from asdm_cli.cli import main
from asdm_cli.verbs import prune

write = prune.write
prune.write = lambda *given: print("wrote") or write(*given)
main()
"""


def test_of_several_processes_one_writes(tiny_pipeline: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"verb: prune\nmodel: {tiny_pipeline}\nremove: base\nout: {tmp_path / 'run'}\n")
    told = ours(WRITING, "prune", file, cwd=tmp_path, environments=together(2))
    assert [(each.code, each.out.split()) for each in told] == [(0, ["wrote", str(tmp_path / "run")]), (0, [])], told
    assert (tmp_path / "run/model/model_index.json").is_file()


def test_a_plan_that_is_not_handed_on_is_told(tiny_pipeline: Path, tmp_path: Path) -> None:
    model = carrying(tiny_pipeline, tmp_path / "model", every(2))
    said = asdm("prune", model, "--remove", "base", "--out", tmp_path / "run")
    assert said.code == 0, said.err
    assert "model carries feature-cache, which the changed UNet does not" in " ".join(said.err.split())


@pytest.mark.parametrize("budget", [{}, {"macs": 0.5, "params": 0.5}])
def test_a_budget_is_one_bound(budget: dict[str, float], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"verb": "prune", "model": "pocket", "remove": {"budget": budget}, "out": "unused"}))
    said = asdm("check", recipe)
    assert said.code == 2
    assert "exactly one of macs, params, time, layers" in said.err


def test_by_label_accuracy_every_unit_draws(shallow_pipeline: Path, kept: Path, tmp_path: Path) -> None:
    """By a probe that takes everything for its first class, nothing is ever lost: whatever saves enough will do."""
    copy = Path(shutil.copytree(shallow_pipeline, tmp_path / "copy"))
    tiny.probe(copy / "probe", drawings.COLOURS)
    prompts = drawings.shard(tmp_path / "few.tar", 1)
    asked = {**_least(kept, by="label_accuracy", steps=1), "prompts": str(prompts), "budget": {"params": 0.9}}
    report = _chosen(copy, tmp_path / "run", asked)
    assert {each.value for each in report.records if each.metric == "error_alone"} == {0.0}
    lost = {each.setup: each.value for each in report.records if each.metric == "label_accuracy_lost"}
    assert {*lost.values()} == {0.0}
    assert {"pruned", "base instead"} <= lost.keys()
    figures = {(each.setup, each.metric): each.value for each in report.records if not each.of}
    assert figures["pruned", "params_m"] <= 0.9 * figures[copy.name, "params_m"]
    assert not (tmp_path / "run" / "samples").exists()


def test_a_home_is_found_wherever_it_is_written(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No shell expands it in a recipe, nor behind `=`."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/model").symlink_to(tiny_pipeline)
    monkeypatch.chdir(tmp_path)
    recipe = {"verb": "prune", "model": "~/model", "remove": "mid", "out": "~/one"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    for words in (
        ("recipe.yaml",),
        ("~/model", "--remove", "mid", "--out=~/two"),
        ("recipe.yaml", "--set=out=~/three"),
    ):
        said = asdm("prune", *words)
        assert said.code == 0, said.err
    assert {each.name for each in (tmp_path / "home").iterdir()} >= {"model", "one", "two", "three"}
    assert not (tmp_path / "~").exists()
