"""`asdm inherit` from the command line: what it writes, what others make of that, faults, going on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import asdm_cli
from asdm_cli.compare import pareto
from asdm_cli.compare import run as comparing
from asdm_cli.compare.run import Times
from asdm_cli.compare.setup import Setup
from asdm_cli.errors import ModelError
from asdm_cli.models.directory import find
from asdm_cli.models.metadata import measured_with, patches_of
from asdm_cli.patches.cache_plan import resolve
from asdm_cli.recipe.patches import FeatureCacheSpec
from asdm_cli.recipe.verbs import InheritRecipe
from asdm_cli.records import Record, Report
from asdm_cli.report.run_directory import Run, read
from asdm_cli.report.tables import parts
from asdm_cli.verbs import inherit
from tests.apart import shared
from tests.carrying import every
from tests.expanding import figures, picture, pixels
from tests.expanding import run as ran
from tests.forking import plain
from tests.turns import switching
from tests.typed import Said, asdm
from tests.verbs.conftest import Drawing

PLAN = every(2, "up.1", order=1)
LEVELS = {"levels": {"last": {"nodes": "up.1"}, "cross": {"nodes": "*.cross"}}, "intervals": [2, 3]}
PROMPTS = ["a fox", "an owl"]
ALONE = "output alone, 2 calls of 4"
PLAIN_DRAWS = """
import sys
import torch
from diffusers import StableDiffusionPipeline

for number, folder in enumerate(sys.argv[1:3]):
    pipe = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, safety_checker=None)
    noise = torch.Generator().manual_seed(0)
    drawn = pipe("a fox", num_inference_steps=4, generator=noise, output_type="np").images
    torch.save(torch.tensor(drawn), f"{sys.argv[3]}/{number}.pt")
assert not any(name.startswith("asdm") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def settings(shallow_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A quick recipe but for its plans."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    quick = {"fewer_steps": [2], "steps": 4, "repeats": 1, "warmups": 1, "bootstrap": 20, "metrics": ["psnr"]}
    model = {"model": str(shallow_pipeline), "prompts": str(prompts), "device": "cpu", "dtype": "float32"}
    return {"verb": "inherit", **quick, **model, "out": "runs/x"}


@pytest.fixture
def recipe(settings: dict[str, Any]) -> Callable[..., InheritRecipe]:
    return lambda **changes: InheritRecipe.model_validate({**settings, **changes})


@pytest.fixture(scope="module")
def said(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """The run directory of a plan, and what the command said."""
    folder = tmp_path_factory.mktemp("inherit")
    return folder / "run", ran(folder, {**settings, "plan": PLAN, "out": str(folder / "run")})


@pytest.fixture(scope="module")
def run(said: tuple[Path, Said]) -> Path:
    assert said[1].code == 0, said[1].err
    return said[0]


def test_stdout_is_the_path_and_the_rest_is_told_to_people(
    said: tuple[Path, Said], run: Path, shallow_pipeline: Path
) -> None:
    assert (said[1].code, said[1].out) == (0, f"{run}\n")
    assert "the plan" in said[1].err
    assert {each.name for each in run.iterdir()} >= {"model", "report.json", "report.html", "recipe.yaml", "samples"}
    assert not shared(run, shallow_pipeline)


def test_the_plan_is_compared_with_fewer_steps(run: Path) -> None:
    report = read(run)
    steps = {"plain": 4, "2 steps": 2, "the plan": 4, ALONE: 4}
    assert {name: facts["steps"] for name, facts in report.setups.items()} == steps
    series = [report.setups[name].get("series") for name in ("plain", "2 steps", ALONE)]
    assert series == ["plain", pareto.FEWER, pareto.ALONE]
    share = figures(report, "macs_share")
    assert (share["plain"], share["2 steps"]) == (1, pytest.approx(0.5))
    assert 0 < share[inherit.PLAN] < 1
    assert figures(report, "calls") == {**steps, ALONE: 2}, "of the UNet itself"
    assert figures(report, "full_calls") == {"the plan": 2, ALONE: 2}
    assert share[ALONE] == pytest.approx(0.5), "nothing of the UNet"
    assert figures(report, "cache_mb")[inherit.PLAN] > 0
    psnr = figures(report, "psnr_db")
    assert psnr.keys() == {"2 steps", "the plan", ALONE}, "the plain model is not compared with itself"
    assert 0 < psnr["2 steps"] < psnr[inherit.PLAN] < 100
    assert figures(report, "image_ms").keys() == set(report.setups)
    assert figures(report, "image_speedup").keys() == {"2 steps", "the plan", ALONE}
    assert {each.against for each in report.records if each.metric in ("psnr_db", "image_speedup")} == {"plain"}
    (timeline,) = report.timelines
    assert timeline.rows == {"time … up.1.2.resnet": "cdcd", "up.1.2.attn": "cici", "conv_out": "cccc"}
    assert report.protocols["quality"]["pictures"] == 2


def test_plain_diffusers_draws_the_plain_models_pictures(run: Path, shallow_pipeline: Path, tmp_path: Path) -> None:
    told = plain(PLAIN_DRAWS, run / "model", shallow_pipeline, tmp_path, cwd=tmp_path)
    assert told.code == 0, told.err[-2000:]
    mine, theirs = (torch.load(tmp_path / f"{number}.pt") for number in range(2))
    assert torch.equal(mine, theirs)
    assert not torch.equal(mine, picture(asdm_cli.load(str(run), "cpu"), 4))


def test_generate_draws_by_the_plan(run: Path, shallow_pipeline: Path, tmp_path: Path) -> None:
    for name, model in ((inherit.PLAN, run), ("plain", shallow_pipeline)):
        out = tmp_path / name
        assert (
            asdm("generate", model, *PROMPTS, "--steps", 4, "--guidance", 3, "--device", "cpu", "--out", out).code == 0
        )
    for index in range(2):
        drawn = [pixels(tmp_path / name / f"{index:03}.png") for name in (inherit.PLAN, "plain")]
        assert drawn == [pixels(run / "samples" / name / f"{index:06}.png") for name in (inherit.PLAN, "plain")]
        assert drawn[0] != drawn[1]


@pytest.mark.parametrize("words", [[], ["--plan", "deepcache"]], ids=["by default", "by name"])
def test_a_model_alone_gets_a_plan_unmeasured(words: list[str], shallow_pipeline: Path, tmp_path: Path) -> None:
    """It draws what the same plan draws on a pipeline, and the report has no figure that nobody measured."""
    said = asdm("inherit", shallow_pipeline, *words, "--out", tmp_path / "run")
    assert said.code == 0, said.err
    named = ["--plan", *(words[1:] or ["last-block"])]
    assert f"`asdm inherit {shallow_pipeline} {' '.join(named)} --measure` draws" in said.text
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["guidance"] == 7.5, "its pipeline's, not pocket's"
    report = read(tmp_path / "run")
    assert {each.metric for each in report.records} == {"calls", "full_calls"}
    full = 25 if not words else 17
    assert f"the plan: {full} of 50 UNet calls computed in full, not measured on this model" in said.text
    assert {each.name for each in (tmp_path / "run").iterdir()} == {
        *(".asdm", "model", "recipe.yaml", "report.json", "report.html")
    }
    pipe = asdm_cli.load(str(shallow_pipeline), "cpu")
    with asdm_cli.inherit(pipe, words[1] if words else "last-block"):
        wanted = picture(pipe)
    assert torch.equal(picture(asdm_cli.load(str(tmp_path / "run"), "cpu")), wanted)
    assert not torch.equal(picture(asdm_cli.load(str(shallow_pipeline), "cpu")), wanted)


def test_what_is_only_there_to_be_measured_is_refused_where_nothing_is(shallow_pipeline: Path) -> None:
    sweep = '[{"name": "a", "plan": "deepcache"}]'
    said = asdm(
        *("inherit", shallow_pipeline, "--prompts", "no.txt", "--device", "bogus"),
        *("--dtype", "float16", "--limit", "3"),
        *("--set", f"sweep={sweep}", "--set", "deepcache={intervals: [2]}", "--set", "metrics=[kid]"),
    )
    assert said.code == 2
    for key in ("sweep", "deepcache", "prompts", "device", "dtype", "limit", "metrics"):
        assert f"{key}: is only there to be measured, and 'measure' is false" in said.text


GUIDANCE = {"kind": "guidance-schedule", "by": "step", "start": 1, "until": 3}


@pytest.mark.parametrize("plan", [PLAN, None], ids=["with a plan", "alone"])
def test_a_guidance_schedule_is_written_and_compared(
    plan: dict[str, Any] | None, settings: dict[str, Any], tmp_path: Path
) -> None:
    sweep = [{"name": "early", "patches": [{**GUIDANCE, "start": 0}]}, {"name": "cached", "plan": PLAN}]
    asked = {"plan": plan, "patches": [GUIDANCE], "sweep": sweep if plan else [], "out": str(tmp_path / "run")}
    said = ran(tmp_path, {**settings, **asked})
    assert said.code == 0, said.err
    report = read(tmp_path / "run")
    carried = patches_of(find(str(tmp_path / "run")))
    assert [spec.kind for spec in carried] == ["guidance-schedule", *["feature-cache"] * (plan is not None)]
    assert carried[0].written() == GUIDANCE
    rows = {"plain": 8, "2 steps": 4, inherit.PLAN: 6, **({"early": 7, "cached": 8} if plan else {})}
    drawn, guided = figures(report, "latents"), figures(report, "guided_calls")
    alone = {name: each for name, each in drawn.items() if name not in rows}
    assert drawn == {**rows, **alone}
    assert guided == {inherit.PLAN: 2, **({"early": 3} if plan else {}), **dict.fromkeys(set(alone) & set(guided), 2)}
    # lines through the output, of the cached one and of the plan: rows 1, 2 (as half of them come late), 2
    assert sorted(alone.values()) == ([4, 5] if plan else [])
    share = figures(report, "macs_share")
    assert share[inherit.PLAN] < 6 / 8 if plan else share[inherit.PLAN] == pytest.approx(6 / 8)
    pipe = asdm_cli.load(str(tmp_path / "run"), "cpu")
    mine = picture(pipe, 4)
    asdm_cli.remove(pipe)
    assert not torch.equal(mine, picture(pipe, 4))


def test_a_guidance_schedule_is_written_unmeasured(shallow_pipeline: Path, tmp_path: Path) -> None:
    recipe = {"verb": "inherit", "model": str(shallow_pipeline), "patches": [GUIDANCE], "measure": False}
    said = ran(tmp_path, recipe)
    assert said.code == 0, said.err
    assert "guidance from step 1 until step 3 only" in said.text
    assert [spec.kind for spec in patches_of(find(str(tmp_path / "run")))] == ["guidance-schedule"]


def test_patches_that_do_not_fit_are_told_at_their_places(recipe: Callable[..., InheritRecipe]) -> None:
    package = {"kind": "deepcache-package", "interval": 2, "steps": 4}
    told = faults(recipe(patches=[GUIDANCE, GUIDANCE], sweep=[{"name": "x", "plan": PLAN, "patches": [package]}]))
    assert told == [
        "patches: guidance is changed twice; leave one of the two out",
        "sweep[0].plan: the DeepCache package is a cache of its own; leave it or the plan out",
    ]


def test_dry_run_shows_rules_and_calls_and_writes_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    plan = {"preset": "deepcache", "branch": 1, "interval": 2}
    told = ran(tmp_path, {**settings, "plan": plan, "out": str(tmp_path / "run")}, "--dry-run")
    assert (told.code, told.out) == (0, "")
    assert all(words in told.text for words in ("inherits deepcache.1 ", "every 2nd", "What each UNet call computes"))
    assert [each.name for each in tmp_path.iterdir()] == ["recipe.yaml"]


# Gate 3


def faults(recipe: InheritRecipe) -> list[str]:
    with pytest.raises(ModelError) as caught:
        inherit.plan(recipe)
    return str(caught.value).splitlines()


def test_plans_that_do_not_fit_are_told_all_at_once(recipe: Callable[..., InheritRecipe]) -> None:
    twice = {"rules": [*every(2, "up.1")["rules"], *every(3, "up.1.1")["rules"]]}
    sweep = [
        {"name": "good", "plan": every(2, "up.1")},
        {"name": "no such place", "plan": every(2, ["up.1", "up.9"])},
        {"name": "owns nothing", "plan": twice},
        {"name": "plain", "plan": every(2, "up.1")},
        {"name": "2 steps", "plan": every(3, "up.1")},
    ]
    levels = {"fine": {"nodes": "up.1"}, "deep": {"nodes": "deepcache.99"}}
    product = {"levels": levels, "intervals": [2, 3], "modes": ["uniform", "late"]}
    told = faults(recipe(plan=every(2, "nowhere"), sweep=sweep, product=product))
    starts = [
        "name '2 steps' is taken by another way to draw",
        "name 'plain' is taken by another way to draw",
        "plan.rules[0].nodes: ",
        "sweep[1].plan.rules[0].nodes: ",
        "sweep[2].plan.rules[1].nodes: every node it names belongs to an earlier rule",
        "product.levels.deep.rules[0].nodes: deepcache.99: this UNet has the branches 0 to 5",
    ]
    assert len(told) == len(starts), told
    assert all(line.startswith(start) for line, start in zip(told, starts, strict=True)), told
    assert "up.9" in told[3]


# Going on


def drawn(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): pixels(file) for file in sorted((folder / "samples").rglob("*.png"))}


@pytest.mark.parametrize(
    "keys",
    [
        {"verb": "inherit", "model": "pocket", "plan": "last-block", "metrics": ["label_accuracy", "clip_score"]},
        {
            "verb": "switch",
            "unets": {"one": {"model": "pocket"}, "two": {"model": "pocket"}},
            "parts": [{"unet": "one"}],
            "metrics": ["label_accuracy", "clip_score"],
        },
        {
            "verb": "assemble",
            "donors": {"one": "pocket", "two": "pocket"},
            "explore": {
                "combinations": [{"levels": ["one", "two", "two", "two"], "mid": "none"}],
                "metrics": ["label_accuracy", "clip_score"],
            },
        },
    ],
    ids=lambda keys: keys["verb"],
)
def test_verbs_that_compare_ask_probes_and_clips_as_eval_does(keys: dict[str, Any], tmp_path: Path) -> None:
    said = ran(tmp_path, {**keys, "out": str(tmp_path / "run")}, "--dry-run")
    assert said.code == 0, said.err
    (tmp_path / "empty").mkdir()
    where = keys.get("explore", keys)
    where["probe"] = str(tmp_path / "empty")
    said = ran(tmp_path, {**keys, "out": str(tmp_path / "run")}, "--dry-run")
    assert said.code == 2, "one that is given is read"
    assert "give a probe's directory as `probe`" in said.err


def test_an_interrupted_run_goes_on_and_ends_with_the_same_pictures(
    settings: dict[str, Any], run: Path, tmp_path: Path, drawing: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({**settings, "plan": PLAN, "out": str(tmp_path / "run")}))
    drawing.before = 4
    assert asdm("inherit", file).code == 130
    assert len(drawn(tmp_path / ".run.partial")) == 3
    with monkeypatch.context() as broken:
        broken.setattr(comparing, "image_times", None)
        assert asdm("inherit", file).code == 1
    assert not (tmp_path / "run").exists()
    assert sorted(drawing.indices[4:]) == [0, 0, 1, 1, 1], "only what was missing"
    drawing.indices.clear()
    with monkeypatch.context() as broken:
        broken.setattr(comparing, "MetricSuite", None)
        assert asdm("inherit", file).code == 1
    monkeypatch.setattr(comparing, "image_times", None)
    assert asdm("inherit", file).code == 0, "after an end behind the timing, which is not done again"
    assert drawing.indices == []
    assert drawn(tmp_path / "run") == drawn(run)
    assert (tmp_path / "run/model/asdm.json").read_text() == (run / "model/asdm.json").read_text()


def test_every_way_to_draw_in_one_report(recipe: Callable[..., InheritRecipe], tmp_path: Path) -> None:
    pytest.importorskip("DeepCache")
    asked = recipe(
        sweep=[{"name": "order 0", "plan": every(2, "up.1"), "series": "ablation"}],
        product={**LEVELS, "intervals": [2]},
        deepcache={"intervals": [2]},
        converged=6,
        sampler="ddim",
    )
    report: Report = inherit.run(inherit.plan(asked), Run(tmp_path))
    assert {facts["series"] for facts in report.setups.values()} >= {"asdm", "DeepCache", "fewer steps", "ablation"}
    near = figures(report, "psnr_converged_db")
    assert near.keys() == set(report.setups), "the plain model is compared with the solution too"
    share = figures(report, "macs_share")
    assert share["DeepCache 0, every 2"] < 1
    assert share["order 0"] == pytest.approx(share["last, uniform 2"])
    assert not (tmp_path / "model").exists(), "a sweep only compares"


def test_the_front_is_looked_at_again_with_more_pictures(recipe: Callable[..., InheritRecipe], tmp_path: Path) -> None:
    front = {"limit": 2, "per_prompt": 2, "metrics": ["psnr", "ssim"]}
    asked = recipe(sweep=[{"name": "order 0", "plan": every(2, "up.1")}], limit=1, metrics=["psnr"], front=front)
    with pytest.MonkeyPatch.context() as patch:
        count, counted = comparing._count, list[str]()
        patch.setattr(
            comparing, "_count", lambda session, one, place: (counted.append(one.name), count(session, one, place))[1]
        )
        report: Report = inherit.run(inherit.plan(asked), Run(tmp_path))
    assert sorted(counted) == sorted(report.setups), "once, with the first pictures"
    names = inherit.on_front(report, "psnr_db")
    assert {*names} < {*report.setups}
    again = [each for each in report.records if each.of == "front/4 pictures"]
    assert {(each.setup, each.metric) for each in again} == {
        (name, key) for name in names for key in ("psnr_db", "ssim")
    }
    assert {(each.n, each.protocol, each.against) for each in again} == {(4, "front", "plain")}
    assert report.protocols["front"]["pictures"] == 4
    assert {each.n for each in report.records if each.metric == "psnr_db" and not each.of} == {1}
    assert "More pictures of the front" in parts(report)


def test_the_front_of_each_series() -> None:
    """Faster or nearer than all that is in its series; of pictures, the less far the better where that is measured."""
    shots = {"a": (2.0, 40.0), "b": (1.5, 39.0), "c": (1.2, 50.0), "d": (3.0, 10.0)}
    for key, sign in (("psnr_db", 1), ("perceptual", -1)):
        records = [Record(name, "image_speedup", speed) for name, (speed, _) in shots.items()]
        records += [Record(name, key, sign * value) for name, (_, value) in shots.items()]
        setups = {name: {"series": "fewer steps" if name == "b" else "asdm"} for name in shots}
        assert sorted(inherit.on_front(Report("inherit", setups, records), key)) == ["a", "b", "c", "d"]
        setups["b"]["series"] = "asdm"
        assert sorted(inherit.on_front(Report("inherit", setups, records), key)) == ["a", "c", "d"]


# Calibrated -----------------------------------------------------------------------------------------------------------

RULE = {"nodes": "out", "schedule": {"mode": "calibrated", "calls": 2}, "extrapolate": "fitted"}


def test_a_calibrated_plan_is_worked_out_measured_and_written(settings: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    asked = {"plan": {"rules": [RULE]}, "fewer_steps": [], "calibration": 2, "limit": 1, "out": str(out)}
    said = ran(tmp_path, {**settings, **asked})
    assert said.code == 0, said.err
    report = read(out)
    assert figures(report, "full_calls") == {"the plan": 2, ALONE: 2}, "a line beside the fit"
    assert not (out / "calibration").exists()
    pipe = asdm_cli.load(str(out / "model"), "cpu", "float32")
    assert pipe("a fox", num_inference_steps=4, output_type="np").images.shape[0] == 1
    with pytest.raises(ModelError, match="were fitted for 4 UNet calls"):
        pipe("a fox", num_inference_steps=5)


def test_two_rules_are_worked_out_also_where_one_reads_nothing_of_the_other_yet(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    rules = [{**RULE, "nodes": nodes} for nodes in ("up.0", "up.1", "mid")]
    asked = {**settings, "fewer_steps": [], "calibration": 2, "limit": 1, "out": str(tmp_path / "run")}
    said = ran(tmp_path, {**asked, "plan": {"rules": rules}})
    assert (said.code, "plan.rules[2]: two rules at most are left to a calibration" in said.text) == (2, True), said.err
    assert ran(tmp_path, {**asked, "plan": {"rules": rules[:2]}}).code == 0
    one = tmp_path / "one.txt"
    one.write_text("a fox")
    said = ran(tmp_path, {**asked, "plan": {"rules": rules[:1]}, "prompts": str(one), "out": str(tmp_path / "none")})
    assert "calibration: a calibration fits to some prompts and tries on others, and here is 1" in said.text


@pytest.mark.parametrize("nodes", ["out", "up.1"])
def test_a_calibrated_plan_may_leave_nothing_out(nodes: str, settings: dict[str, Any], tmp_path: Path) -> None:
    rule = {**RULE, "nodes": nodes, "schedule": {"mode": "calibrated", "calls": 4}}
    asked = {"plan": {"rules": [rule]}, "fewer_steps": [], "calibration": 2, "limit": 1, "out": str(tmp_path / "run")}
    assert ran(tmp_path, {**settings, **asked}).code == 0
    assert figures(read(tmp_path / "run"), "psnr_db") == {"the plan": 100.0}


def test_a_target_is_for_one_unet_that_computes_every_call(
    recipe: Callable[..., InheritRecipe], shallow_pipeline: Path, tmp_path: Path
) -> None:
    guidance = {"kind": "guidance-schedule", "start": 700}
    guided = ran(
        tmp_path,
        {
            "verb": "inherit",
            "model": str(shallow_pipeline),
            "patches": [guidance],
            "measure": False,
            "out": str(tmp_path / "guided"),
        },
    )
    assert guided.code == 0, guided.err
    for model in (tmp_path / "guided", switching(shallow_pipeline, shallow_pipeline, tmp_path / "turns")):
        with pytest.raises(ModelError, match="target: a plan is looked for where one UNet computes every call"):
            inherit.plan(recipe(model=str(model), target="2x"))


def test_a_target_needs_calls_to_leave_out(recipe: Callable[..., InheritRecipe]) -> None:
    with pytest.raises(ModelError, match="target: 2 UNet calls are too few to leave any out; raise `steps`"):
        inherit.plan(recipe(target="2x", steps=2))
    assert inherit.plan(recipe(target="2x", steps=3))


def test_a_sweep_does_not_take_the_plan_s_name(recipe: Callable[..., InheritRecipe]) -> None:
    with pytest.raises(ModelError, match=r"sweep\[1\].name: 'the plan' is the recipe's own plan; choose another"):
        inherit.plan(recipe(sweep=[{"name": name, "plan": PLAN} for name in ("one", "the plan")]))
    with pytest.raises(ModelError, match=r"sweep\[0\].name: '2 steps' is what the search calls fewer steps"):
        inherit.plan(recipe(target="2x", fewer_steps=None, sweep=[{"name": "2 steps", "steps": 2, "plan": PLAN}]))


@pytest.mark.parametrize(("limit", "both"), [(2, 0), (3, 1), (4, 2)])
def test_prompts_that_are_calibrated_on_and_measured_on_are_told(
    limit: int, both: int, recipe: Callable[..., InheritRecipe], tmp_path: Path
) -> None:
    (tmp_path / "four.txt").write_text("a fox\nan owl\na red fox\na red owl\n")
    asked = {"prompts": str(tmp_path / "four.txt"), "limit": limit, "calibration": 2}
    told = inherit.plan(recipe(**asked, plan={"rules": [RULE]})).notes
    begins = f"{both} of the {limit} prompts that are measured on are what was calibrated on, too"
    assert [begins in note and f"Give {4 + both} prompts" in note for note in told] == [True] * bool(both)


def test_what_must_be_calibrated_is_not_taken_for_a_plan(settings: dict[str, Any], tmp_path: Path) -> None:
    said = ran(tmp_path, {**settings, "plan": {"rules": [RULE]}, "measure": False, "out": str(tmp_path / "x")})
    assert said.code == 2
    assert "plan: has to be calibrated" in said.err


def test_what_is_drawn_to_find_a_plan_counts_into_how_long_it_takes(
    recipe: Callable[..., InheritRecipe], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\nan owl\na hat\na car")
    few = {"fewer_steps": None, "steps": 16, "prompts": str(prompts), "limit": 1}

    def macs(**changes: Any) -> float:
        return inherit.plan(recipe(**few, **changes)).work().macs

    named, calibrated = macs(plan={"rules": [every(2, "up.1")["rules"][0]]}), macs(plan={"rules": [RULE]})
    assert named < calibrated
    assert macs(target="2x") < macs(target="30dB")
    assert macs(target="2x", calibration=2) < macs(target="2x", calibration=3)


def priced(step: float, full: float) -> Callable[..., Any]:
    """Times of images that take so many seconds a step, and a UNet call in full."""

    def times(_: Any, setups: list[Setup], *__: Any) -> Times:
        found: Times = {}
        for setup in setups:
            calls = setup.calls
            steps = resolve(setup.cache, setup.config).steps(calls) if setup.cache else None
            unet = full * sum(not (steps and steps.reused(call)) for call in range(calls))
            found[setup.name] = {"image": [0.1 + calls * step + unet], "unet": [unet]}
        return found

    return times


@pytest.mark.parametrize(
    ("target", "step", "metric", "words"),
    [
        ("1.2x", 0.0, "image_speedup", "1.2 times as fast: "),
        ("25dB", 0.0, "psnr_db", "25 dB: "),
        ("2x", 1.0, "image_speedup", "2 times as fast: "),
        ({"perceptual": 0.9}, 1.0, "perceptual", "a perceptual distance of 0.9: "),
    ],
)
def test_a_target_is_searched_measured_and_written(
    target: Any,
    step: float,
    metric: str,
    words: str,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a step itself costs more than its UNet call, fewer steps are what is found."""
    out = tmp_path / "run"
    changed = {key: value for key, value in settings.items() if key != "fewer_steps"}
    changed["metrics"] = ["psnr", "perceptual"]
    monkeypatch.setattr("asdm_cli.search.target.image_times", priced(step, 0.01))
    said = ran(tmp_path, {**changed, "steps": 6, "target": target, "calibration": 2, "limit": 1, "out": str(out)})
    assert said.code == 0, said.err
    report = read(out)
    assert report.facts["target"].startswith(words)
    assert report.notes[0] == f"Target: {report.facts['target']}."
    (written,) = [name for name, facts in report.setups.items() if "written" in facts]
    assert written in figures(report, metric)
    held = {row["figure"]: row for row in report.facts["predicted and measured"] if row["set-up"] == written}
    assert list(held) == ["image speed-up", "perceptual distance" if metric == "perceptual" else "PSNR"]
    assert all(math.isfinite(row[word]) for row in held.values() for word in ("predicted", "measured"))
    assert held["image speed-up"]["measured"] == figures(report, "image_speedup")[written]
    timed = [row for row in report.facts["tried"] if row["timed speed-up"] is not None]
    assert timed
    assert all(row["timed speed-up"] == pytest.approx(row["predicted speed-up"], rel=0.1) for row in timed)
    if metric != "image_speedup":
        column = "measured PSNR dB" if metric == "psnr_db" else "measured perceptual distance"
        told = [row[column] for row in report.facts["tried"] if row[column] is not None]
        assert round(figures(report, metric)[written], 2 if metric == "psnr_db" else 4) in told, "of the same pictures"
    patches, steps = patches_of(find(str(out / "model"))), report.setups[written]["steps"]
    assert measured_with(find(str(out / "model")))["steps"] == steps
    if step:
        assert written == f"{steps} steps"
        assert patches == ()
        assert report.notes[1].startswith(f"Use {steps} steps: no plan was better.")
        drawn = asdm("generate", out / "model", "a fox", "--out", tmp_path / "drawn")
        assert f"steps {steps}" in drawn.err
    else:
        assert written == inherit.PLAN
        (patch,) = patches
        assert isinstance(patch, FeatureCacheSpec)
        assert patch.rules[0].fit is not None
