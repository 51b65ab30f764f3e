"""The layers under a patch that leaves out rows at some calls and whole calls at others, beside UNets in turn and a
cache: whatever the order, each layer sees what the one around it hands on, and what is counted is what is computed.
The patch is one file, `half_rows.py`; that every verb, report and directory carries it shows nobody else knows it."""

from __future__ import annotations

import csv
import io
import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import asdm_cli
from asdm_cli.compare.setup import networks
from asdm_cli.models.directory import find
from asdm_cli.models.metadata import patches_of, write_patched
from asdm_cli.patches.base import Layer, Stats, Trajectory, applied, live_on, patch_of
from asdm_cli.patches.feature_cache import FeatureCache, caches_on
from asdm_cli.profiling.macs import Counts, count
from asdm_cli.recipe.patches import read_plan
from asdm_cli.report import run_directory
from asdm_cli.unet import flops
from tests import tiny
from tests.carrying import every
from tests.expanding import done, figures, run
from tests.patches.half_rows import GROUPS, HalfRowsSpec
from tests.patches.parts import small
from tests.patches.pipes import draw, shallow
from tests.turns import copied, pruned, read_patches
from tests.typed import asdm

STEPS = 8
HALF: dict[str, Any] = {"kind": "half-rows", "half": [3, 6], "skip": [2, 5]}
CACHE: dict[str, Any] = {"kind": "feature-cache", **every(2, "up.1")}
TURNS: dict[str, Any] = {
    "kind": "unet-schedule",
    "unets": ["a", "b"],
    "by": "step",
    "parts": [{"unet": "a", "until": 2}, {"unet": "b"}],
}
"""Of the six calls that are left of eight."""
ROWS = (2, 2, 1, 2, 1, 2)
"""Of each of them."""
FULL, REUSED = frozenset[int](), frozenset({0})
Patched = tuple[Tensor, Stats]


def drawn(pipe: Any, *patches: dict[str, Any], steps: int = STEPS, **settings: Any) -> Patched:
    other = small(shallow=True)
    specs = [patch_of(spec) for spec in read_patches(list(patches), "test")]
    with applied(pipe, specs, lambda _: other) as told:
        return draw(pipe, steps, **settings), told()


def counted(*patches: dict[str, Any]) -> Counts:
    pipe, other = shallow(), small(shallow=True)
    specs = [patch_of(spec) for spec in read_patches(list(patches), "test")]
    with applied(pipe, specs, lambda _: other):
        made = partial(pipe, "a red fox", height=32, width=32, num_inference_steps=STEPS, output_type="np")
        return count("a", networks(pipe), made)


def test_rows_and_calls_that_are_left_out_by_hand() -> None:
    """A plain loop around the UNet, which computes everything and takes what it needs."""
    pipe, outputs = shallow(), []

    def by_hand(_: Any, __: Any, output: Any) -> Any:
        call, (value,) = len(outputs), output
        if call in HALF["skip"]:
            value = outputs[-1]
        elif call in HALF["half"]:
            value = torch.cat([value.chunk(2)[1]] * 2)
        outputs.append(value)
        return (value,)

    hook = pipe.unet.register_forward_hook(by_hand)
    expected = draw(pipe, STEPS)
    hook.remove()
    picture, stats = drawn(pipe, HALF)
    assert len(outputs) == STEPS
    assert torch.allclose(picture, expected, atol=1e-5), "other numbers of rows round otherwise"
    assert not torch.allclose(picture, draw(pipe, STEPS), atol=1e-3)
    assert stats.figures == {"halved_calls": 2}


@pytest.mark.parametrize("others", [(), (CACHE,), (TURNS,), (TURNS, CACHE)])
def test_where_it_changes_nothing_it_changes_no_bit(others: Sequence[dict[str, Any]]) -> None:
    pipe = shallow()
    plain = draw(pipe, STEPS)
    for settings in ({}, {"guidance_scale": 1.0}):
        expected, stats = drawn(pipe, *others, **settings)
        picture, same = drawn(pipe, *others, {"kind": "half-rows"}, **settings)
        assert torch.equal(picture, expected)
        assert (same.served, same.reused) == (stats.served, stats.reused)
    unguided = drawn(pipe, *others, {"kind": "half-rows", "half": [*range(STEPS)]}, guidance_scale=1.0)
    assert torch.equal(unguided[0], expected), "without guidance there is no half to leave out"
    assert torch.equal(draw(pipe, STEPS), plain)
    assert not [each for each in pipe.unet.modules() if hasattr(each, "_diffusers_hook")]
    assert type(pipe) is StableDiffusionPipeline


def test_the_order_of_the_list_means_nothing_and_key_steps_count_what_each_layer_sees() -> None:
    seen: list[Patched] = [drawn(shallow(), *order) for order in permutations([HALF, TURNS, CACHE])]
    assert len(seen) == 6
    for picture, stats in seen:
        assert torch.equal(picture, seen[0][0])
        assert stats.served == (*"aabbbb",), "of calls that are made"
        # b begins with half the rows, so its second call, a reused one by the plan, has a half that it never saw
        assert stats.reused == {"a": [FULL, REUSED], "b": [FULL, FULL, FULL, REUSED]}
        assert stats.figures == {"halved_calls": 2}
        assert stats.cache_bytes
    for fewer in ([HALF, TURNS], [HALF, CACHE], [TURNS, CACHE]):
        assert not torch.equal(drawn(shallow(), *fewer)[0], seen[0][0]), "each of them does something"


def test_what_is_counted_is_what_is_computed() -> None:
    call = flops.macs(tiny.shape("sd15", **tiny.SHALLOW["sd15"]), tokens=tiny.TOKENS).total
    plain, halved = counted(), counted(HALF)
    assert (plain.calls, plain.rows, plain.components["unet"].total) == (STEPS, 2 * STEPS, 2 * STEPS * call)
    assert (halved.calls, halved.rows) == (len(ROWS), sum(ROWS))
    assert halved.components["unet"].total == sum(ROWS) * call
    cached = counted(CACHE, HALF)
    assert (cached.calls, cached.rows) == (len(ROWS), sum(ROWS)), "a reused call is a call"
    assert 4 < cached.components["unet"].total / call < 4.1, "rows 2, 1, 1 in full, and little for the others"
    turns = counted(TURNS, HALF)
    other = flops.macs(dict(small(shallow=True).config), tokens=tiny.TOKENS).total
    assert (turns.calls, turns.rows) == (len(ROWS), sum(ROWS))
    assert turns.components["unet"].total == sum(ROWS[:2]) * call + sum(ROWS[2:]) * other
    nulls = {**TURNS, "unets": ["a"], "parts": [{"unet": "a", "until": 3}, {"unet": "reuse"}]}
    assert (counted(nulls, HALF).calls, counted(nulls).calls) == (3, 3)


LAST = {"rules": [{"nodes": "up.1", "schedule": {"mode": "explicit", "steps": [0, 2]}}]}


def test_a_group_of_rows_keeps_its_memory_over_calls_at_which_it_is_missing() -> None:
    """What the UNet's output is made of is reused at call 3: of the half that was there at call 2, and of the other one
    at call 0."""
    unet, seen = shallow().unet, []
    cache = FeatureCache(unet, read_plan(LAST))
    rows = [GROUPS, GROUPS, GROUPS[1:], GROUPS, GROUPS[:1]]
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad(), cache.generation(Trajectory(len(rows), rows=tuple(rows))):
        for groups in rows:
            latents = torch.randn(len(groups), 4, 8, 8, generator=noise)
            seen.append(unet(latents, 500, torch.ones(len(groups), 16, 16), return_dict=False)[0])
    assert cache.stats().reused["unet"] == [FULL, REUSED, FULL, REUSED, REUSED]
    close = partial(torch.allclose, atol=1e-6, rtol=0)  # other numbers of rows round otherwise
    assert close(seen[1], seen[0])
    assert not close(seen[2], seen[0][1:], atol=1e-2)
    assert close(seen[3], torch.cat([seen[0][:1], seen[2]]))
    assert close(seen[4], seen[0][:1])
    cache.remove()


def test_a_null_model_knows_each_group_of_rows() -> None:
    """`reuse` at the last two of six calls, of which the first has both halves, and what is before it only one."""
    nulls = {**TURNS, "parts": [{"unet": "a", "until": 5}, {"unet": "reuse"}]}
    picture, stats = drawn(shallow(), HALF, nulls)
    assert stats.served == ("a", "a", "a", "a", "a", "reuse")
    assert picture.isfinite().all()
    early = {**HALF, "half": [0, 1], "skip": []}
    _, stats = drawn(shallow(), early, {**nulls, "parts": [{"unet": "a", "until": 2}, {"unet": "reuse"}]}, steps=4)
    assert stats.served == ("a", "a", "a", "reuse"), "the half that nobody predicted yet is"


@pytest.mark.parametrize("others", [(CACHE,), (TURNS, CACHE)])
def test_it_is_put_around_what_comes_later_and_taken_off_in_any_order(others: Sequence[dict[str, Any]]) -> None:
    """As when a loaded model carries it and somebody puts a plan on: a hook of an outer layer stays around."""
    pipe, plan = shallow(), {key: CACHE[key] for key in ("rules",)}
    before, turns = draw(pipe, STEPS), [each for each in others if each["kind"] == "unet-schedule"]
    together, _ = drawn(shallow(), HALF, *others)
    halved, _ = drawn(shallow(), HALF, *turns)
    other = small(shallow=True)
    with ExitStack() as stack:
        for spec in read_patches([*turns, HALF], "test"):
            stack.enter_context(patch_of(spec).apply(pipe, lambda _: other))
        handle = asdm_cli.inherit(pipe, plan)
        assert live_on(pipe.unet)[0].layer == Layer.GUIDANCE
        assert torch.equal(draw(pipe, STEPS), together)
        handle.remove()
        assert torch.equal(draw(pipe, STEPS), halved), "and nobody passes it over when what was inside is gone"
        handle = asdm_cli.inherit(pipe, plan)
        live_on(pipe.unet)[0].remove()
        assert torch.equal(draw(pipe, STEPS), drawn(shallow(), *others)[0])
        handle.remove()
    assert torch.equal(draw(pipe, STEPS), before)


FAULTS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "two caches": ([CACHE, CACHE], "'unet' has two plans; leave one out"),
    "a cache of all and one of one": (
        [TURNS, CACHE, {**CACHE, "unet": "b"}],
        "'b' has two plans; leave one out",
    ),
    "the package and a plan": (
        [CACHE, {"kind": "deepcache-package", "interval": 2, "steps": 4}],
        "the DeepCache package is a cache of its own; leave it or the plan out",
    ),
    "the package and turns": (
        [TURNS, {"kind": "deepcache-package", "interval": 2, "steps": 4}],
        "the DeepCache package works on one UNet, and this model has several; leave it out",
    ),
    "the package and this": (
        [HALF, {"kind": "deepcache-package", "interval": 2, "steps": 4}],
        "a peer's cache sees neither calls nor rows that are left out; leave one out",
    ),
    "turns twice": ([TURNS, TURNS], "UNets take turns twice; give one unet-schedule"),
    "a plan for nobody": ([{**CACHE, "unet": "b"}], "no UNet is called 'b'; there are unet"),
    "its own": ([{**HALF, "skip": [0]}], "nothing was predicted before call 0; do not skip it"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_conflicts_are_told_before_anything_slow(
    name: str, shallow_pipeline: Path, shallow_small: Path, tmp_path: Path
) -> None:
    """In a recipe, and in the model that carries them."""
    patches, told = FAULTS[name]
    model: dict[str, Any] = {"name": "x", "model": str(shallow_pipeline), "patches": patches}
    if TURNS in patches:
        own = {**TURNS, "unets": ["x", "b"], "parts": [{"unet": "x", "until": 3}, {"unet": "b"}]}
        model |= {"unets": {"b": str(shallow_small)}, "parts": own["parts"], "by": "step"}
        model["patches"] = [own if each is TURNS else each for each in patches]
        if patches.count(TURNS) < 2:
            model["patches"].remove(own)
    said = run(tmp_path / "bench", {"verb": "bench", "models": [model], "steps": 4}, "--dry-run")
    assert said.code == 2
    assert told in said.text
    unets = {"b": find(str(shallow_small))} if TURNS in patches else {}
    write_patched(find(str(shallow_pipeline)), unets, read_patches(patches, "test"), tmp_path / "model", "test")
    said = asdm("generate", tmp_path / "model", "a", "--out", tmp_path / "drawn")
    assert said.code == 2
    assert "asdm.json: patches: " in said.text
    assert told in said.text
    assert not (tmp_path / "drawn").exists()


@pytest.fixture(scope="module")
def shallow_small(shallow_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model directory of the shallow pipeline without the layers of Small. Read-only by agreement."""
    return pruned(shallow_pipeline, tmp_path_factory.mktemp("small") / "run")


# Every verb, report and directory ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def carrying(shallow_pipeline: Path, shallow_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that carries it, beside a switch and a cache of one of the UNets. Read-only by agreement."""
    folder = tmp_path_factory.mktemp("carrying") / "model"
    patches = read_patches([{**CACHE, "unet": "a"}, HALF, TURNS], "test")
    write_patched(find(str(shallow_pipeline)), {"b": find(str(shallow_small))}, patches, folder, "test")
    return folder


TOLD = 'half-rows: {"half":[3,6],"skip":[2,5]}'


def test_a_directory_carries_it_and_show_tells_it(carrying: Path, tmp_path: Path) -> None:
    assert HalfRowsSpec(half=[3, 6], skip=[2, 5]) in patches_of(find(str(carrying)))
    said = asdm("show", carrying)
    assert TOLD in said.out.splitlines()
    assert "served by a until step 2, then b" in said.out
    moved = copied(carrying, tmp_path / "moved")
    file = moved / "asdm.json"
    file.write_text(file.read_text().replace("half-rows", "half-rowz"))
    said = asdm("show", moved)
    assert (said.code, "(did you mean 'half-rows'?)" in said.text) == (2, True)


def test_generate_and_load_draw_by_it(carrying: Path, shallow_pipeline: Path, tmp_path: Path) -> None:
    pipe: Any = asdm_cli.load(str(carrying), "cpu")
    draw(pipe, STEPS)
    told: list[Stats] = [live.stats() for live in live_on(pipe.unet)]
    assert [sorted(each.figures) for each in told] == [["halved_calls"], []]
    assert told[1].served == (*"aabbbb",)
    assert caches_on(pipe).keys() == {"a"}
    asdm_cli.remove(pipe)
    assert live_on(pipe.unet) == [pipe.unet], "the UNets keep their places"
    assert not caches_on(pipe)
    pictures = {}
    for name, model in (("with", carrying), ("without", shallow_pipeline)):
        out = tmp_path / name
        said = asdm("generate", model, "a fox", "--steps", STEPS, "--out", out)
        assert said.code == 0, said.err
        assert ("half-rows is in force" in said.text) is (name == "with")
        pictures[name] = (out / "000.png").read_bytes()
    assert pictures["with"] != pictures["without"]


SMALL: dict[str, Any] = {"steps": STEPS, "repeats": 1, "warmups": 1, "device": "cpu"}


def test_a_script_that_ends_with_it_in_force_says_nothing(carrying: Path) -> None:
    """An interpreter that ends takes modules away before what is in force can be taken off."""
    code = "import sys, asdm_cli, tests.patches.half_rows; pipe = asdm_cli.load(sys.argv[1], 'cpu')"
    script = [sys.executable, "-c", code, str(carrying)]
    said = subprocess.run(script, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert "Traceback" not in said.stderr


def test_bench_measures_it(
    carrying: Path, shallow_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asdm_cli.compare.costs.in_fresh_process", lambda _, work, *given: work(*given))
    spec = HalfRowsSpec(half=[1])
    assert pickle.loads(pickle.dumps(spec)) == spec, "as it would come into a fresh process"
    models = [
        {"name": "plain", "model": str(shallow_pipeline)},
        {"name": "half", "model": str(shallow_pipeline), "patches": [HALF, CACHE]},
        {"name": "carried", "model": str(carrying)},
    ]
    report = run_directory.read(done(tmp_path, {"verb": "bench", "models": models, **SMALL}))
    assert figures(report, "calls") == {"plain": 8, "half": 6, "carried": 6}
    assert figures(report, "latents") == {"plain": 16, "half": 10, "carried": 10}
    assert figures(report, "full_calls") == {"half": 3, "carried": 5}
    assert figures(report, "halved_calls") == {"half": 2, "carried": 2}
    shares = figures(report, "macs_share")
    assert 0 < shares["half"] < 10 / 16
    assert set(figures(report, "image_ms")) == {"plain", "half", "carried"}
    assert TOLD in report.setups["half"]["patches"]
    said = asdm("show", tmp_path / "run", "--format", "csv")
    rows = list(csv.reader(io.StringIO(said.out)))
    assert ["half", "halved_calls"] in [row[:2] for row in rows]


def test_eval_judges_it_and_goes_on(carrying: Path, shallow_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a fox\ntwo owls\n")
    recipe = {
        "verb": "eval",
        "models": [
            {"name": "plain", "model": str(shallow_pipeline)},
            {"name": "half", "model": str(carrying), "patches": [{**HALF, "half": [], "skip": [7]}]},
            {"name": "carried", "model": str(carrying)},
        ],
        "prompts": str(tmp_path / "prompts.txt"),
        "metrics": ["psnr"],
        **SMALL,
    }
    report = run_directory.read(done(tmp_path, recipe))
    psnr = figures(report, "psnr_db")
    assert set(psnr) >= {"half", "carried"}
    assert all(5 < psnr[name] < 99 for name in ("half", "carried"))
    assert figures(report, "calls") == {"plain": 8, "half": 7, "carried": 6}, "a recipe's takes the place of its kind"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "halved" in page


def test_what_inherit_and_switch_write_carries_it_on(
    shallow_pipeline: Path, shallow_small: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    write_patched(find(str(shallow_pipeline)), {}, read_patches([HALF], "test"), model, "test")
    (tmp_path / "prompts.txt").write_text("a fox\n")
    common = {"prompts": str(tmp_path / "prompts.txt"), "metrics": ["psnr"], "fewer_steps": [4], **SMALL}
    inherit = {"verb": "inherit", "model": str(model), "plan": every(2, "up.1"), **common, "fewer_steps": []}
    inherited = done(tmp_path / "inherit", inherit)
    assert [spec.kind for spec in patches_of(find(str(inherited)))] == ["half-rows", "feature-cache"]
    assert figures(run_directory.read(inherited), "full_calls")["the plan"] == 3
    both = {"a": {"model": str(inherited)}, "b": {"model": str(shallow_small)}}
    switch = {"verb": "switch", "unets": both, "by": "step", "parts": TURNS["parts"], **common}
    switched = done(tmp_path / "switch", switch)
    kinds = [spec.kind for spec in patches_of(find(str(switched)))]
    assert sorted(kinds) == ["feature-cache", "half-rows", "unet-schedule"]
    assert set(figures(run_directory.read(switched), "halved_calls").values()) == {1, 2}, "of 4 steps and of 8"
    said = run(tmp_path / "late", {**switch, "unets": {"b": both["b"], "a": both["a"]}}, "--dry-run")
    assert said.code == 2
    assert "unets.a: carries half-rows, which is of a whole pipeline: that of the first of the UNets" in said.text
