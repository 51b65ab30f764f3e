"""`asdm run`: the stages are what their recipes make alone, each is run once, and what was done is never lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from asdm_cli.errors import ModelError, RunError
from asdm_cli.recipe.load import load
from asdm_cli.recipe.verbs import RunRecipe
from asdm_cli.records import Images
from asdm_cli.report.run_directory import read
from asdm_cli.verbs import SlowPlan
from asdm_cli.verbs.process import run_stage
from asdm_cli.verbs.run import _brought, _bundled, stages
from asdm_cli.verbs.run import plan as planned
from tests import tiny
from tests.apart import shared
from tests.typed import Said, asdm

Recipe = dict[str, Any]


@pytest.fixture
def recipe(tiny_pipeline: Path, tmp_path: Path) -> Recipe:
    """Two prunings of one model, and an assembly of one with the other."""
    return {
        "verb": "run",
        "inputs": {"model": str(tiny_pipeline), "set": "base"},
        "stages": {
            "pruned": {"verb": "prune", "model": "$model", "remove": "$set"},
            "mid": {"verb": "prune", "model": "$model", "remove": "mid"},
            "both": {
                "verb": "assemble",
                "donors": {"original": "$model", "base": "$pruned"},
                "levels": ["base", "base", "original", "original"],
                "mid": "original",
            },
        },
        "out": str(tmp_path / "whole"),
    }


def here(name: str, words: Sequence[str]) -> None:
    if asdm(*words[3:]).code:
        raise ModelError(f"stage '{name}': see above")


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages run here, which is faster; but for tests that are about processes."""
    if "apart" not in request.fixturenames:
        monkeypatch.setattr("asdm_cli.verbs.run.run_stage", here)


@pytest.fixture
def apart() -> None:
    """Stages have processes of their own."""


def run(folder: Path, recipe: Recipe, *options: object) -> Said:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False, width=1000))
    return asdm("run", file, *options)


def kept(folder: Path) -> list[str]:
    """Names of finished stages, without their digests."""
    return sorted(path.name[:-9] for path in (folder / "stages").iterdir() if not path.name.startswith("."))


def states(out: Path) -> dict[str, str]:
    return {row["stage"]: row["state"] for row in read(out).facts["Stages"]}


def test_a_stage_is_what_its_recipe_makes_alone(recipe: Recipe, tiny_pipeline: Path, tmp_path: Path) -> None:
    said = run(tmp_path, recipe)
    assert (said.code, said.out.strip()) == (0, str(tmp_path / "whole")), said.err
    whole = tmp_path / "whole"
    assert asdm("prune", whole / "recipes" / "pruned.yaml", "--out", tmp_path / "alone").code == 0
    weights = Path("model/unet/diffusion_pytorch_model.safetensors")
    assert (whole / "stages/pruned" / weights).read_bytes() == (tmp_path / "alone" / weights).read_bytes()
    given = {"verb": "assemble", "donors": {"original": str(tiny_pipeline), "base": str(tmp_path / "alone")}}
    by_hand = recipe["stages"]["both"] | given | {"out": str(tmp_path / "by-hand")}
    (tmp_path / "by-hand.yaml").write_text(yaml.safe_dump(by_hand))
    assert asdm("assemble", tmp_path / "by-hand.yaml").code == 0
    assert (whole / "stages/both" / weights).read_bytes() == (tmp_path / "by-hand" / weights).read_bytes()


def test_a_finished_stage_is_not_run_again(recipe: Recipe, tmp_path: Path) -> None:
    assert run(tmp_path, recipe).code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").iterdir()}
    assert states(tmp_path / "whole") == dict.fromkeys(recipe["stages"], "ran")
    assert run(tmp_path, recipe).code == 2, "a run that is there is not replaced unasked"
    assert run(tmp_path, recipe, "--overwrite").code == 0
    assert len(before) == 3
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").iterdir()}
    assert states(tmp_path / "whole") == dict.fromkeys(recipe["stages"], "finished before")


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"set": "small"}, ["both", "pruned"]),
        ({"model": "copy"}, ["both", "mid", "pruned"]),
        ({}, []),
    ],
    ids=["an input", "the model", "nothing"],
)
def test_what_depends_on_a_change_is_run_again(
    recipe: Recipe, change: dict[str, str], again: list[str], tmp_path: Path
) -> None:
    if "model" in change:
        change = {"model": str(tiny.pipeline(tmp_path / "copy"))}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    homes = {stage.name: stage.home for stage in stages(load(file))}  # type: ignore[arg-type]
    file.write_text(yaml.safe_dump({**recipe, "inputs": {**recipe["inputs"], **change}}, sort_keys=False))
    changed = {stage.name: stage.home for stage in stages(load(file))}  # type: ignore[arg-type]
    assert sorted(name for name in homes if homes[name] != changed[name]) == again


def test_what_was_done_before_a_failure_is_kept(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(name: str, words: Sequence[str]) -> None:
        here(name, words) if name != "cost" else run_stage(name, [sys.executable, "-c", "raise SystemExit(2)"])

    monkeypatch.setattr("asdm_cli.verbs.run.run_stage", failing)
    cost = {"verb": "bench", "models": [{"name": "a", "model": "$both"}]}
    said = run(tmp_path, {**recipe, "stages": {**recipe["stages"], "cost": cost}})
    assert said.code == 2
    assert "stage 'cost'" in said.text
    assert "the same command goes on from there" in said.text
    assert not (tmp_path / "whole").exists()
    assert kept(tmp_path) == ["both", "mid", "pruned"]


def test_the_report_is_the_records_of_all_stages(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a fox\na red apple\n")
    models = [{"name": "first", "model": "$model"}, {"name": "joined", "model": "$both", "steps": 3}]
    drawn = {"prompts": str(tmp_path / "prompts.txt"), "metrics": ["psnr"], "steps": 2, "device": "cpu"}
    stages = {**recipe["stages"], "worth": {"verb": "eval", "models": models, **drawn}}
    told = {"title": "All", "lead": ["worth"], "beside": ["bk-sdm"], "seeds": {"both": ["first", "joined"]}}
    said = run(tmp_path, {**recipe, "stages": stages, **told})
    assert said.code == 0, said.err
    whole = read(tmp_path / "whole")
    assert [*whole.setups][:3] == ["first", "both", "joined"], "what all are compared with stays in front"
    assert whole.setups["both"]["seeds"] == ["first", "joined"]
    assert (whole.verb, whole.facts["title"]) == ("run", "All")
    assert any(each.metric == "psnr_db" and each.setup == "joined" and each.value > 0 for each in whole.records)
    assert [name for name in whole.facts if name.startswith("Published: BK-SDM")]
    assert whole.images is not None
    images = [
        tmp_path / "whole" / folder / f"{place:06}.png" for folder in whole.images.folders.values() for place in (0, 1)
    ]
    assert len(images) == 4
    assert all(image.is_file() and not image.is_symlink() for image in images)
    assert not shared(tmp_path / "whole/images", tmp_path / "whole/stages/worth")
    assert (tmp_path / "whole/report.html").read_text().count("data:image") >= 4


@pytest.mark.usefixtures("apart")
def test_stages_have_processes_of_their_own(recipe: Recipe, tmp_path: Path) -> None:
    said = run(tmp_path, {**recipe, "stages": {"pruned": recipe["stages"]["pruned"]}})
    assert said.code == 0, said.err
    assert (tmp_path / "whole/stages/pruned/model/unet/config.json").is_file()
    assert states(tmp_path / "whole") == {"pruned": "ran"}


def test_a_dry_run_says_what_would_run_and_writes_nothing(recipe: Recipe, tmp_path: Path) -> None:
    said = run(tmp_path, recipe, "--dry-run")
    assert said.code == 0, said.err
    assert "3 stages, 0 of them finished before" in said.text
    assert re.search(r"pruned: \d+ % fewer parameters", said.text)
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml"}


def test_a_dry_run_tells_the_time_of_all_that_draws(tiny_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a fox\nan owl\n")
    worth = {"verb": "eval", "models": [{"name": "m", "model": "$model"}], "prompts": str(tmp_path / "prompts.txt")}
    worth |= {"limit": 2, "device": "cpu", "metrics": ["psnr"], "steps": 4}
    few = {"verb": "run", "inputs": {"model": str(tiny_pipeline)}, "out": str(tmp_path / "whole")}
    few["stages"] = {
        "few": {**worth, "steps": 2},
        "many": worth,
        "made": {"verb": "prune", "model": "$model", "remove": "mid"},
    }
    assert "It would take " in run(tmp_path, few, "--dry-run").text
    whole = planned(RunRecipe.model_validate(few))
    each = [work.macs for one in whole.ready.values() if isinstance(one, SlowPlan) and (work := one.work())]
    found = whole.work()
    assert found
    assert (len(each), found.macs) == (2, sum(each))
    assert each[1] > 1.5 * each[0] > 0


def test_everything_that_can_be_known_early_is_told_at_once(recipe: Recipe, tmp_path: Path) -> None:
    learn = {
        "verb": "distill",
        "teacher": "$model",
        "students": [{"name": "s", "model": "$pruned"}],
        "data": {"train": str(tmp_path / "gone.tar")},
        "steps": 2,
        "optimizer": {"name": "AdamWW"},
    }
    worth = {"verb": "eval", "models": [{"name": "s", "model": "$learn"}], "prompts": str(tmp_path / "none.txt")}
    recipe["stages"] |= {"learn": learn, "worth": worth}
    recipe["stages"]["mid"]["remove"] = "down.9"
    said = run(tmp_path, recipe)
    assert said.code == 2
    for words in ("stage 'mid': ", "stage 'learn': ", "gone.tar", "AdamWW", "stage 'worth': ", "none.txt"):
        assert words in said.text, (words, said.err)
    assert not (tmp_path / "stages").exists(), "before anything slow"


@pytest.mark.parametrize(
    ("how", "raised"),
    [("sys.exit(2)", ModelError), ("sys.exit(1)", RunError), ("sys.exit(130)", KeyboardInterrupt), ("", None)],
)
def test_how_a_stage_ends_is_passed_on(how: str, raised: type[BaseException] | None) -> None:
    words = [sys.executable, "-c", f"import sys; {how}"]
    if raised is None:
        run_stage("x", words)
        return
    with pytest.raises(raised):
        run_stage("x", words)


def test_a_stage_ends_with_the_run_that_started_it(tmp_path: Path) -> None:
    """Killed, it can tell nobody; the stage notices, also behind a launcher, and is interrupted."""
    stage = (
        "import sys, time, pathlib; from asdm_cli.verbs.process import end_with_starter; end_with_starter()\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "try: time.sleep(60)\n"
        "except KeyboardInterrupt: pathlib.Path(sys.argv[2]).touch()\n"
    )
    began, ended = tmp_path / "began", tmp_path / "ended"
    launched = [sys.executable, "-c", stage, str(began), str(ended)]
    words = ["sh", "-c", '"$@"; true', "launcher", *launched]
    whole = f"from asdm_cli.verbs.process import run_stage; run_stage('s', {words!r})"
    run = subprocess.Popen([sys.executable, "-c", whole])
    assert until(began.exists)
    run.kill()
    run.wait()
    assert until(ended.exists)


def until(there: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not there() and time.monotonic() < deadline:
        time.sleep(0.05)
    return there()


def test_what_stops_us_stops_the_stage() -> None:
    """SIGTERM reaches the child too; nothing stays behind, and our handlers are what they were."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stop = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        run_stage("x", [sys.executable, "-c", stop])
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_images_are_those_of_the_stage_as_it_is_now(tmp_path: Path) -> None:
    """An interrupted run may have brought others, from a stage that was made anew since."""
    (tmp_path / "stage").mkdir()
    images = Images(["fox", "apple"], {"a": str(tmp_path / "stage")})
    for content in ("before", "now"):
        (tmp_path / "stage/000000.png").write_text(content)
        brought = _brought(images, tmp_path / "run")
    assert (tmp_path / "run" / brought.folders["a"] / "000000.png").read_text() == "now"


def test_a_password_reaches_the_stage_and_nothing_that_stays(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, written = list[str](), list[str]()

    def seeing(name: str, words: Sequence[str]) -> None:
        if name == "learn":
            seen.append(Path(words[4]).read_text())
            written.extend(path.read_text() for path in tmp_path.rglob("*.yaml") if path.parent != tmp_path)
        else:
            here(name, words)

    monkeypatch.setattr("asdm_cli.verbs.run.run_stage", seeing)
    learn = {"verb": "distill", "teacher": "$model", "students": [{"name": "s", "model": "$pruned"}], "steps": 2}
    data = {"train": "pipe:curl https://user:hunter2@host/a.tar"}
    whole = {**recipe, "stages": {"pruned": recipe["stages"]["pruned"], "learn": {**learn, "data": data}}}
    said = run(tmp_path, whole, "--allow-pipes")
    assert len(seen) == 1, said.err
    assert "hunter2" in seen[0]
    assert any("train: a command (sha256 " in text for text in written)
    assert not any("hunter2" in text for text in written)


def test_it_is_started_alone(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = run(tmp_path, recipe)
    assert said.code == 2
    assert "--launch" in said.text


def test_how_a_single_file_is_read_is_a_part_of_what_a_stage_is(tmp_path: Path) -> None:
    file, recipe = tmp_path / "m.safetensors", tmp_path / "recipe.yaml"
    file.write_text("")
    stage = {"verb": "prune", "model": str(file), "remove": "mid"}
    recipe.write_text(yaml.safe_dump({"verb": "run", "stages": {"a": stage}, "out": str(tmp_path / "run")}))
    homes = []
    for beside in ("", "m.yaml", "config/scheduler/scheduler_config.json"):
        (tmp_path / beside).parent.mkdir(parents=True, exist_ok=True)
        if beside:
            (tmp_path / beside).write_text("{}")
        homes += [each.home for each in stages(load(recipe))]  # type: ignore[arg-type]
    assert len(set(homes)) == 3


def test_another_checkout_has_the_same_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is bundled is known by its contents, whenever it was written, and whatever pages lie beside it."""

    def digest() -> str:
        return _bundled.__wrapped__()  # what is kept of it is the real one

    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    files = [tmp_path / "pocket" / "weights" / name for name in ("model.safetensors", "README.md")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("one")
    before = digest()
    os.utime(files[0], (1, 1))
    files[1].write_text("another")
    assert digest() == before
    files[0].write_text("another")
    assert digest() != before
