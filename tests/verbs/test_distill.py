"""`asdm distill` from the command line: what it writes, how it goes on, and everything it refuses before it starts."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from asdm_cli.console import console
from asdm_cli.models.directory import find
from asdm_cli.models.write import partial_path
from asdm_cli.recipe.verbs import DistillRecipe
from asdm_cli.records import Report
from asdm_cli.report.run_directory import Run, is_run, read
from asdm_cli.sampling.generate import processes
from asdm_cli.training.distillation import Distillation
from asdm_cli.training.loop import latest_checkpoint, read_log
from asdm_cli.unet.weights import WEIGHTS
from asdm_cli.verbs import distill as distilling
from tests import expanding, stock, tiny
from tests.apart import shared
from tests.data import tars
from tests.typed import Said, asdm

STEPS = 6
LEARNED = {"loss", "task", "output", "features", "task_held_out", "output_held_out"}
PHASES = {"data", "teacher", "students forward", "students backward", "optimizer", "running mean"}
ALL = ["down.?", "mid", "up.?", "conv_in", "conv_out", "conv_norm_out", "time_embedding"]
UNET = Path("model/unet") / WEIGHTS


@pytest.fixture(autouse=True)
def _loud_again() -> Iterator[None]:
    yield
    console.quiet = False


def distill(folder: Path, recipe: dict[str, Any], *options: object) -> Said:
    """The verb on this recipe, which it writes to `folder`; a run goes to `folder / "run"`."""
    folder.mkdir(exist_ok=True)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({**recipe, "out": str(folder / "run")}, sort_keys=False, width=1000))
    return asdm("distill", file, *options)


def done(folder: Path, recipe: dict[str, Any], *options: object) -> Path:
    told = distill(folder, recipe, *options)
    assert told.code == 0, told.err
    return folder / "run"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train-{0,1}.tar` with 5 samples each, the last one damaged; `held.tar` with 3."""
    folder = tmp_path_factory.mktemp("shards")
    tars.write(folder / "train-0.tar", tars.samples(*range(5)))
    broken = [("0099.png", b"no picture"), ("0099.txt", b"a hole")]
    tars.write(folder / "train-1.tar", [*tars.samples(*range(5, 9)), *broken])
    tars.write(folder / "held.tar", tars.samples(20, 21, 22))
    return folder


@pytest.fixture(scope="module")
def recipe(
    shallow_pipeline: Path, shallow_base: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """A short distillation; data is encoded once for all tests."""
    return {
        "verb": "distill",
        "teacher": str(shallow_pipeline),
        "students": [{"name": "base", "model": str(shallow_base)}],
        "data": {"train": str(shards / "train-{0,1}.tar"), "cache_folder": str(tmp_path_factory.mktemp("cache"))},
        "steps": STEPS,
        "batch": 4,
        "precision": "float32",
        "optimizer": {"lr": 1e-3},
        "checkpoint": 2,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def looking(recipe: dict[str, Any], shards: Path) -> dict[str, Any]:
    """With held-out losses and two pictures at every look."""
    look = {"every": 4, "prompts": ["a fox", "an owl"], "steps": 2}
    return {**recipe, "data": {**recipe["data"], "held_out": str(shards / "held.tar")}, "validation": look}


@pytest.fixture(scope="module")
def said(looking: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    folder = tmp_path_factory.mktemp("distill")
    return folder / "run", distill(folder, looking)


@pytest.fixture(scope="module")
def run(said: tuple[Path, Said]) -> Path:
    path, told = said
    assert told.code == 0, told.err
    return path


def history(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "model/asdm.json").read_text())["history"]


def pictures(home: Path, report: Report) -> list[str]:
    """What they are of; all of them are there."""
    assert report.images
    count = len(report.images.prompts)
    for folder in report.images.folders.values():
        assert len(list((home / folder).glob("*.png"))) == count == 2, folder
    return list(report.images.folders)


def same_unet(ours: Path, theirs: Path) -> bool:
    return (ours / UNET).read_bytes() == (theirs / UNET).read_bytes()


def at_a_read(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], object]) -> list[int]:
    """`act` with the number of every read of samples; they are also listed."""
    reads, calls = Distillation.read, list[int]()

    def read(self: Distillation, rows: torch.Tensor, noise: Any) -> Any:
        calls.append(len(calls) + 1)
        act(calls[-1])
        return reads(self, rows, noise)

    monkeypatch.setattr(Distillation, "read", read)
    return calls


def stop_at(number: int) -> Callable[[int], object]:
    return lambda call: os.kill(os.getpid(), signal.SIGTERM) if call == number else None


def test_the_directory_is_whole_and_stdout_is_its_path(
    said: tuple[Path, Said], run: Path, shallow_base: Path, shallow_pipeline: Path
) -> None:
    told = said[1]
    assert told.out == f"{run}\n"
    assert "features, weight 1.0, base down.0=down.0" in told.text
    assert "faults were skipped" in told.text
    names = {".asdm", "model", "recipe.yaml", "report.json", "report.html", "log.jsonl", "pictures"}
    assert {each.name for each in run.iterdir()} == names
    assert not partial_path(run).exists()
    for file in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "model_index.json"):
        assert (run / "model" / file).read_bytes() == (shallow_base / "model" / file).read_bytes()
    assert not shared(run, shallow_base, shallow_pipeline)


def test_plain_diffusers_loads_the_student(run: Path, shallow_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run / "model/unet", tmp_path / "unet"))
    arguments = stock.ask(json.loads((folder / "config.json").read_text()), folder)
    (output,) = stock.answers([folder], tmp_path)
    assert find(str(run)).is_pipeline
    before = tiny.UNet2DConditionModel.from_pretrained(shallow_base / "model/unet").eval()
    with torch.no_grad():
        was = before(**arguments).sample
    assert torch.isfinite(output).all()
    assert not torch.allclose(output, was)
    ours, theirs = (load_file(each / UNET) for each in (run, shallow_base))
    assert ours.keys() == theirs.keys()
    assert sum(not torch.equal(ours[key], theirs[key]) for key in ours) > 100


def test_history_card_report_and_log_tell_how_it_was_made(run: Path, shallow_base: Path) -> None:
    first, last = history(run)
    assert (first["verb"], last["verb"], last["source"], last["teacher"]) == (
        "prune",
        "distill",
        shallow_base.name,
        "shallow",
    )
    assert (last["steps"], last["batch"], last["samples"], last["frozen_tensors"]) == (STEPS, 4, 9, 0)
    card = (run / "model/README.md").read_text()
    losses = ("task, weight 1.0;", "features, weight 1.0, base down.0=down.0", "| task_held_out, at the end |")
    for words in ("\n# base\n", "distilled from shallow", "train-0.tar", f"| steps | {STEPS} |", *losses):
        assert words in card, words
    report = read(run)
    ends = {each.metric for each in report.records if each.at is None and not each.of}
    steps = {each.metric: [] for each in report.records if each.at is not None}
    for each in report.records:
        assert (each.protocol, each.setup) == ("training", "base")
        if each.at is not None:
            steps[each.metric].append(each.at)
    assert (report.verb, set(report.setups), ends) == ("distill", {"base"}, LEARNED)
    assert steps.keys() == LEARNED | {"lr", "gradient_norm"}
    assert (steps["task"], steps["task_held_out"]) == ([2, 4, 6], [4, 6])
    assert {each.of.removeprefix("phase/") for each in report.records if each.metric == "step_ms"} >= PHASES
    assert pictures(run, report) == ["teacher", "step 4", "step 6"]
    assert "<svg" in (run / "report.html").read_text()
    lines = read_log(run / "log.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    assert [line["step"] for line in lines if "validation" in line] == [4, 6]


def test_a_teacher_in_another_format_draws_as_it_teaches(looking: dict[str, Any], tmp_path: Path) -> None:
    """As on a GPU, where the pipeline around it is not in that format."""
    plan, state = distilling.plan(DistillRecipe(**looking, out=str(tmp_path))), processes("cpu")
    task, modules = distilling.make_task(plan, plan.cache().open(state), state, tmp_path)
    assert task.teacher is not None
    task.teacher.to(torch.bfloat16)
    task.precise = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    task.on_validation("base", modules["base"], 2)
    for look in ("00000002", "teacher"):
        assert {each.name for each in (tmp_path / "pictures" / look).iterdir()} == {"000000.png", "000001.png"}
    assert "forward" not in vars(task.teacher)


def test_several_students_become_run_directories(
    looking: dict[str, Any], shallow_pipeline: Path, shallow_base: Path, run: Path, tmp_path: Path
) -> None:
    small = expanding.done(tmp_path / "small", {"verb": "prune", "model": str(shallow_pipeline), "remove": "small"})
    two = [{"name": "base", "model": str(shallow_base)}, {"name": "small", "model": str(small)}]
    home = done(tmp_path / "both", {**looking, "students": two})
    assert not (home / "model").exists()
    for name in ("base", "small"):
        own = home / "students" / name
        assert is_run(own)
        assert find(str(own)).path == own / "model"
        report = read(own)
        assert set(report.setups) == {each.setup for each in report.records} == {name}
        assert pictures(own, report) == ["teacher", "step 4", "step 6"]
    report = read(home)
    assert set(report.setups) == {"base", "small"} <= {each.setup for each in report.records}
    assert len(pictures(home, report)) == 5
    assert same_unet(run, home / "students/base"), "company changes nothing"


def test_without_a_teacher_the_task_is_learnt(recipe: dict[str, Any], tmp_path: Path) -> None:
    changes = {"teacher": "none", "losses": [{"kind": "task", "snr_gamma": 5.0}], "steps": 2, "ema": "none"}
    made = done(tmp_path, {**recipe, **changes})
    assert (history(made)[-1]["teacher"], set(read(made).setups)) == (None, {"base"})
    assert "trained on the task loss alone" in (made / "model/README.md").read_text()


def test_a_dry_run_tells_and_writes_nothing(recipe: dict[str, Any], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    told = distill(tmp_path / "dry", {**recipe, "data": {**recipe["data"], "cache_folder": str(cache)}}, "--dry-run")
    assert (told.code, told.out) == (0, "")
    for words in ("down.0", "up.1", "base, from shallow", "to be made"):
        assert words in told.text, words
    assert not cache.exists()
    assert [each.name for each in (tmp_path / "dry").iterdir()] == ["recipe.yaml"]


def test_an_interrupted_run_goes_on_with_the_same_command(
    looking: dict[str, Any], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle, then killed while reports are written, which must not cost the training."""
    calls, partial = at_a_read(monkeypatch, stop_at(3)), partial_path(tmp_path / "run")
    told = distill(tmp_path, looking)
    assert (told.code, told.out) == (1, "")
    assert "stopped by signal SIGTERM after step 3; the same command goes on there" in told.err
    assert "step-00000003" in told.err
    assert "keeps what was done so far" in told.err
    assert latest_checkpoint(partial / "training")["step"] == 3
    with monkeypatch.context() as patch:
        patch.setattr(Run, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert distill(tmp_path, looking).code == 130
    assert latest_checkpoint(partial / "training")["step"] == STEPS
    told = distill(tmp_path, looking)
    assert told.code == 0, told.err
    assert "going on from what an interrupted run" in told.text
    assert len(calls) == STEPS, "no step was done twice"
    assert same_unet(tmp_path / "run", run)


CHANGED = {
    "the teacher's UNet": "teacher/unet/diffusion_pytorch_model.safetensors",
    "the teacher's text encoder": "teacher/text_encoder/model.safetensors",
    "the student's UNet": "student/model/unet/diffusion_pytorch_model.safetensors",
    "the data": "train.tar",
}


def test_it_goes_on_only_with_what_it_began_with(
    recipe: dict[str, Any], shallow_pipeline: Path, shallow_base: Path, shards: Path, tmp_path: Path
) -> None:
    shutil.copytree(shallow_pipeline, tmp_path / "teacher")
    shutil.copytree(shallow_base, tmp_path / "student")
    shutil.copyfile(shards / "train-0.tar", tmp_path / "train.tar")
    mine = {
        **recipe,
        "teacher": str(tmp_path / "teacher"),
        "students": [{"name": "s", "model": str(tmp_path / "student")}],
        "data": {"train": str(tmp_path / "train.tar"), "cache_folder": str(tmp_path / "cache")},
        "steps": 2,
    }
    with pytest.MonkeyPatch.context() as patch:
        at_a_read(patch, stop_at(1))
        assert distill(tmp_path, mine).code == 1
    for kind, name in CHANGED.items():
        file = tmp_path / name
        content = file.read_bytes()
        file.write_bytes(content[:-1] + b"!")
        told = distill(tmp_path, mine)
        assert (told.code, told.out) == (2, ""), kind
        assert "was begun with other files than there are now (changed since: " in told.text
        assert str(next(each for each in (file, *file.parents) if str(each) in told.text)) in told.text
        assert latest_checkpoint(partial_path(tmp_path / "run") / "training")["step"] == 1, "nothing is lost"
        file.write_bytes(content)
        os.utime(file, ns=(0, 0))  # as after another download
    told = distill(tmp_path, {**mine, "steps": 3, "batch": 2})
    assert (told.code, told.out) == (2, "")
    assert "keeps what an interrupted run of another recipe did (steps, batch differ)" in told.text
    assert latest_checkpoint(partial_path(tmp_path / "run") / "training")["step"] == 1
    told = distill(tmp_path, mine)
    assert told.code == 0, told.err
    assert "going on from" in told.text


def test_another_recipe_starts_afresh_where_that_is_asked_for(recipe: dict[str, Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        at_a_read(patch, stop_at(1))
        assert distill(tmp_path, {**recipe, "steps": 2}).code == 1
    told = distill(tmp_path, {**recipe, "steps": 1}, "--overwrite")
    assert told.code == 0, told.err
    assert "another recipe; starting afresh" in told.text


def test_weights_that_are_overwritten_meanwhile_change_nothing_and_are_told(
    recipe: dict[str, Any], run: Path, shallow_pipeline: Path, shallow_base: Path, tmp_path: Path
) -> None:
    teacher = Path(shutil.copytree(shallow_pipeline, tmp_path / "teacher"))
    student = Path(shutil.copytree(shallow_base / "model", tmp_path / "student"))
    files = [teacher / "unet" / WEIGHTS, student / "unet" / WEIGHTS]
    kept = [(file, file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)) for file in files]
    mine = {**recipe, "teacher": str(teacher), "students": [{"name": "base", "model": str(student)}]}

    def overwrite(_: int) -> None:
        for file in files:  # in place: other numbers, the same header and size
            with file.open("r+b") as opened:
                opened.seek(file.stat().st_size // 2)
                opened.write(b"\0" * (file.stat().st_size // 2))

    with pytest.MonkeyPatch.context() as patch:
        at_a_read(patch, overwrite)
        told = distill(tmp_path, mine)
    assert (told.code, told.out) == (1, "")
    assert f"{teacher}, {student}: was changed while this ran" in told.text
    for file, content, times in kept:
        file.write_bytes(content)
        os.utime(file, ns=times)
    assert same_unet(done(tmp_path, mine), run)


def test_stored_number_formats_are_kept(recipe: dict[str, Any], shallow_base: Path, tmp_path: Path) -> None:
    students, wanted = [], {}
    for name, dtype in (("half", torch.float16), ("brain", torch.bfloat16)):
        model = Path(shutil.copytree(shallow_base / "model", tmp_path / name))
        tensors = load_file(model / "unet" / WEIGHTS)
        (model / "unet" / WEIGHTS).unlink()
        mixed = {key: value.to(dtype) if value.ndim > 1 else value for key, value in tensors.items()}
        save_file(mixed, model / "unet" / WEIGHTS)
        students.append({"name": name, "model": str(model)})
        wanted[name] = {key: each.dtype for key, each in mixed.items()}
    made = done(tmp_path / "made", {**recipe, "students": students, "steps": 1}, "--link") / "students"
    for name, dtypes in wanted.items():
        assert f"vae/{WEIGHTS}" in shared(made / name / "model", tmp_path / name)
        assert {key: each.dtype for key, each in load_file(made / name / UNET).items()} == dtypes


def test_a_donors_share_stays_as_it_is(
    recipe: dict[str, Any], tiny_pipeline: Path, tiny_base: Path, tmp_path: Path
) -> None:
    donors = {"original": str(tiny_pipeline), "base": str(tiny_base)}
    levels = ["base", "base", "original", "original"]
    assembly = {"verb": "assemble", "donors": donors, "levels": levels, "mid": "original"}
    joined = expanding.done(tmp_path / "joined", assembly)
    student = {"name": "s", "model": str(joined), "freeze": "from original"}
    made = done(tmp_path / "made", {**recipe, "teacher": str(tiny_pipeline), "students": [student], "steps": 2})
    before, after = (load_file(each / UNET) for each in (joined, made))
    same = {name for name in before if torch.equal(before[name], after[name])}
    deep = ("down_blocks.2.", "down_blocks.3.", "mid_block.", "up_blocks.0.", "up_blocks.1.")
    assert {name for name in before if name.startswith(deep)} <= same
    assert len(before) - len(same) > 100
    assert history(made)[-1]["frozen_tensors"] == len(same)


def test_resolution_and_prediction_are_the_models_own(
    recipe: dict[str, Any], shallow_pipeline: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(shallow_pipeline, tmp_path / "odd"))
    other = "teacher: odd: predicts 'sample'; only noise (epsilon) and v_prediction are trained"
    for file, change, code, words in (
        ("unet/config.json", {"sample_size": [8, 8]}, 0, "at 32 pixels"),
        ("unet/config.json", {"sample_size": None}, 0, "at 256 pixels"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, 2, other),
    ):
        (model / file).write_text(json.dumps({**json.loads((model / file).read_text()), **change}))
        told = distill(tmp_path / "run", {**recipe, "teacher": str(model)}, "--dry-run")
        assert (told.code, words in told.text) == (code, True), told.err


def test_every_fault_of_the_plan_is_told_at_once(
    recipe: dict[str, Any], tiny_pipeline: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    wide, base = tmp_path / "wide", str(tiny_base)
    tiny.unet(tiny.shape("sd15", block_out_channels=[8, 8, 32, 32], cross_attention_dim=12)).save_pretrained(wide)
    faulty = {
        "teacher": str(tiny_pipeline),
        "students": [
            {"name": "a", "model": base, "freeze": ["from nobody"]},
            {"name": "b", "model": str(wide)},
            {"name": "c", "model": str(tmp_path / "gone")},
            {"name": "d", "model": base, "freeze": ALL},
        ],
        "data": {"train": [f"{tmp_path}/none.tar", "pipe:cat x.tar"], "held_out": "pipe:cat y.tar", "resolution": 30},
        "optimizer": {"name": "AdamWW", "warmup": 5},
        "precision": "float16",
        "device": "cuda:1",
        "trackers": ["comet_ml"],
    }
    monkeypatch.setattr("asdm_cli.training.plan.get_available_trackers", lambda: [])
    told = distill(tmp_path, {**recipe, **faulty})
    assert (told.code, told.out) == (2, "")
    for words in (
        "students[0].freeze: 'from nobody': the student has nothing from 'nobody'",
        "students[1].model: cross_attention_dim must be the same in all UNets, which see the same inputs: tiny has 16,",
        f"students[2].model: {tmp_path / 'gone'}: no such directory",
        "students[3].freeze: all of it is frozen",
        "losses[2].at: student 'b': down.1: is 8 channels wide",
        f"data.train: {tmp_path / 'none.tar'}",
        "): runs a command in a shell",
        "data.held_out: a command (sha256 ",
        "data.resolution: resolution 30: this VAE needs a multiple of 4",
        "optimizer: 'AdamWW' is not there",
        "precision: float16 trains on a GPU only",
        "device: 'cuda:1': training runs on",
        "batch: 4 samples cannot be divided over 3 process(es)",
        "trackers: not installed; pip install comet_ml",
    ):
        assert words in told.text, (words, told.err)
    assert "precision: precision" not in told.err
    assert not partial_path(tmp_path / "run").exists()


def test_somebody_must_bring_the_rest_of_a_pipeline(
    recipe: dict[str, Any], shallow_pipeline: Path, shallow_base: Path, tmp_path: Path
) -> None:
    bare = {"teacher": f"{shallow_pipeline}/unet", "students": [{"name": "s", "model": f"{shallow_base}/model/unet"}]}
    told = distill(tmp_path, {**recipe, **bare}, "--dry-run")
    assert told.code == 2
    assert "neither it nor a student is a whole pipeline" in told.text
    made = done(tmp_path, {**recipe, **bare, "teacher": str(shallow_pipeline), "steps": 1})
    assert {each.name for each in (made / "model").iterdir()} == {"config.json", WEIGHTS, "asdm.json", "README.md"}


def test_data_is_piped_or_faulty_only_where_that_is_allowed(
    recipe: dict[str, Any], shards: Path, tmp_path: Path
) -> None:
    piped = {**recipe, "data": {"train": f"pipe:cat {shards / 'train-0.tar'}", "cache_folder": str(tmp_path / "cache")}}
    assert distill(tmp_path, piped).code == 2
    assert done(tmp_path, {**piped, "steps": 1}, "--allow-pipes")
    told = distill(tmp_path / "strict", {**recipe, "data": {**recipe["data"], "faults": "stop"}})
    assert told.code == 2
    assert "the data has faults" in told.text


def test_features_alone_are_learnt_by_one_process(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {**recipe, "losses": [{"kind": "features", "at": "down.?"}], "steps": 2}
    assert done(tmp_path, alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = distill(tmp_path / "two", alone, "--dry-run")
    assert told.code == 2
    assert "losses: features alone give the last weights no gradient" in told.text


@pytest.mark.parametrize(
    ("freeze", "learns"), [(["down.0", "conv_in"], True), (["down.0", "conv_in", "time_embedding"], False)]
)
def test_features_that_nothing_reaches_are_not_learnt(
    recipe: dict[str, Any], tmp_path: Path, freeze: list[str], learns: bool
) -> None:
    alone = {**recipe, "losses": [{"kind": "features", "at": ["down.0"]}]}
    told = distill(tmp_path, {**alone, "students": [{**recipe["students"][0], "freeze": freeze}]}, "--dry-run")
    assert (told.code == 0) == learns, told.text
    assert ("losses: all that learns of student 'base' comes after what is compared" in told.text) != learns
