"""`asdm distill` from the command line: what it writes, how it goes on, and everything it refuses before it starts."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from asdm_cli.console import console
from asdm_cli.methods import prune
from asdm_cli.models.source import find
from asdm_cli.models.write import partial_path
from asdm_cli.recipe.verbs import PruneRecipe
from asdm_cli.report.render_json import from_json
from asdm_cli.report.run_directory import Run, is_run
from asdm_cli.training import checkpoints
from asdm_cli.training.distillation import Distillation
from asdm_cli.training.log import read
from asdm_cli.unet.checkpoint import WEIGHTS
from tests import stock, tiny
from tests.apart import shared
from tests.data import tars
from tests.typed import Said, asdm

STEPS = 6
TABLES = ("Where it ended", "Where the time went", "Students", "Losses", "Features compared")
CURVES = ("Total loss", "Task loss", "Output loss", "Feature loss", "Learning rate", "Gradient norm")
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


@pytest.fixture(scope="module")
def base(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pruned(tiny_pipeline, tmp_path_factory.mktemp("models") / "base", "base")


@pytest.fixture(scope="module")
def small(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pruned(tiny_pipeline, tmp_path_factory.mktemp("models") / "small", "small")


def pruned(source: Path, run: Path, remove: str) -> Path:
    run.mkdir()
    prune.run(prune.plan(PruneRecipe(verb="prune", model=str(source), remove=remove, out="unused")), Run(run))
    return run


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
def recipe(tiny_pipeline: Path, base: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A short distillation; data is encoded once for all tests."""
    return {
        "verb": "distill",
        "teacher": str(tiny_pipeline),
        "students": [{"name": "base", "model": str(base)}],
        "data": {"train": str(shards / "train-{0,1}.tar"), "cache_folder": str(tmp_path_factory.mktemp("cache"))},
        "steps": STEPS,
        "batch": 4,
        "precision": "float32",
        "optimizer": {"lr": 1e-3},
        "checkpoint": 2,
        "device": "cpu",
    }


def looking(recipe: dict[str, Any], shards: Path) -> dict[str, Any]:
    """With held-out losses and two pictures at every look."""
    look = {"every": 4, "prompts": ["a fox", "an owl"], "steps": 2}
    return {**recipe, "data": {**recipe["data"], "held_out": str(shards / "held.tar")}, "validation": look}


@pytest.fixture(scope="module")
def said(recipe: dict[str, Any], shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    folder = tmp_path_factory.mktemp("distill")
    return folder / "run", distill(folder, looking(recipe, shards))


@pytest.fixture(scope="module")
def run(said: tuple[Path, Said]) -> Path:
    path, told = said
    assert told.code == 0, told.err
    return path


def report(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text())


def part(run: Path, title: str) -> dict[str, Any]:
    return next(each for each in report(run)["parts"] if each["title"] == title)


def test_stdout_is_the_path_and_the_directory_is_whole(said: tuple[Path, Said], run: Path) -> None:
    assert said[1].out == f"{run}\n"
    assert "Features compared" in said[1].err
    assert "faults were skipped" in said[1].text
    assert {each.name for each in run.iterdir()} == {
        ".asdm", "model", "recipe.yaml", "report.json", "report.html", "log.jsonl", "pictures"
    }  # fmt: skip
    assert not partial_path(run).exists()


def test_plain_diffusers_loads_the_student(run: Path, base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run / "model/unet", tmp_path / "unet"))
    arguments = stock.ask(json.loads((folder / "config.json").read_text()), folder)
    (output,) = stock.answers([folder], tmp_path)
    directory = find(str(run))
    assert directory.is_pipeline
    before = tiny.UNet2DConditionModel.from_pretrained(base / "model/unet").eval()
    with torch.no_grad():
        was = before(**arguments).sample
    assert torch.isfinite(output).all()
    assert not torch.allclose(output, was)
    ours, theirs = (load_file(each / UNET) for each in (run, base))
    assert ours.keys() == theirs.keys()
    assert sum(not torch.equal(ours[key], theirs[key]) for key in ours) > 100


def test_the_rest_of_the_pipeline_is_as_the_students(run: Path, base: Path, tiny_pipeline: Path) -> None:
    for file in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "model_index.json"):
        assert (run / "model" / file).read_bytes() == (base / "model" / file).read_bytes()
    assert not shared(run, base, tiny_pipeline)


def test_the_history_tells_who_taught_it(run: Path) -> None:
    text = (run / "model/asdm.json").read_text()
    first, last = json.loads(text)["history"]
    assert (first["verb"], last["verb"], last["source"], last["teacher"]) == ("prune", "distill", "base", "tiny")
    assert (last["steps"], last["batch"], last["samples"], last["frozen_tensors"]) == (STEPS, 4, 9, 0)


def test_the_card_says_teacher_data_losses_and_steps(run: Path) -> None:
    card = (run / "model/README.md").read_text()
    assert card.startswith("# base\n")
    for words in (
        "distilled from tiny",
        "train-0.tar",
        "| task | 1 | alike |",
        "| features | 1 |",
        f"| steps | {STEPS} |",
    ):
        assert words in card, words
    assert "| task, held out |" in card
    assert "down.0 | down.0" in card


def test_the_report_has_curves_times_and_pictures(run: Path) -> None:
    found = report(run)
    assert from_json(found).verb == "distill"
    titles = [each["title"] for each in found["parts"]]
    assert {*TABLES, *CURVES, "base while it learned"} <= set(titles)
    points = part(run, "Task loss")["lines"]["base"]
    assert [step for step, _ in points] == [2, 4, 6]
    grid = part(run, "base while it learned")
    assert len(grid["pictures"]) == 2
    assert all((run / picture).is_file() for row in grid["pictures"] for picture in row)
    (row,) = part(run, "Where it ended")["rows"]
    assert {"loss_task", "loss_output", "loss_features", "held_out_task", "held_out_output"} <= row.keys()
    phases = {each["phase"] for each in part(run, "Where the time went")["rows"]}
    assert {"data", "teacher", "students forward", "students backward", "optimizer", "running mean"} <= phases
    page = (run / "report.html").read_text()
    assert "<svg" in page
    assert "base while it learned" in page


def test_the_log_lies_beside_the_report(run: Path) -> None:
    lines = read(run / "log.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    assert [line["step"] for line in lines if "validation" in line] == [4, 6]


def test_several_students_become_run_directories(
    recipe: dict[str, Any], base: Path, small: Path, shards: Path, run: Path, tmp_path: Path
) -> None:
    two = [{"name": "base", "model": str(base)}, {"name": "small", "model": str(small)}]
    told = distill(tmp_path, {**looking(recipe, shards), "students": two})
    assert told.code == 0, told.err
    home = tmp_path / "run"
    assert not (home / "model").exists()
    for name in ("base", "small"):
        own = home / "students" / name
        assert is_run(own)
        assert find(str(own)).path == own / "model"
        assert from_json(report(own)).title == f"Distilling {name}"
        (row,) = part(own, "Where it ended")["rows"]
        assert row["name"] == name
        pictures = [each for line in part(own, f"{name} while it learned")["pictures"] for each in line]
        assert len(pictures) == 4
        assert all((own / picture).is_file() for picture in pictures), pictures
    assert {row["name"] for row in part(home, "Where it ended")["rows"]} == {"base", "small"}
    alone, together = load_file(run / UNET), load_file(home / "students/base" / UNET)
    assert all(torch.equal(value, together[key]) for key, value in alone.items()), "company changes nothing"


def test_without_a_teacher_the_task_is_learnt(recipe: dict[str, Any], tmp_path: Path) -> None:
    changes = {"teacher": "none", "losses": [{"kind": "task", "snr_gamma": 5.0}], "steps": 2, "ema": "none"}
    told = distill(tmp_path, {**recipe, **changes})
    assert told.code == 0, told.err
    history = json.loads((tmp_path / "run/model/asdm.json").read_text())["history"]
    assert history[-1]["teacher"] is None
    assert "trained on the task loss alone" in (tmp_path / "run/model/README.md").read_text()


def test_a_dry_run_tells_and_writes_nothing(recipe: dict[str, Any], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    told = distill(tmp_path / "dry", {**recipe, "data": {**recipe["data"], "cache_folder": str(cache)}}, "--dry-run")
    assert (told.code, told.out) == (0, "")
    for words in ("down.0", "up.3", "base learn from tiny", "to be made"):
        assert words in told.err, words
    assert not cache.exists()
    assert [each.name for each in (tmp_path / "dry").iterdir()] == ["recipe.yaml"]


def test_an_interrupted_run_goes_on_with_the_same_command(
    recipe: dict[str, Any], shards: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Distillation.read
    calls: list[int] = []

    def stop_at_the_fourth(self: Distillation, rows: torch.Tensor, noise: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return reads(self, rows, noise)

    monkeypatch.setattr(Distillation, "read", stop_at_the_fourth)
    told = distill(tmp_path, looking(recipe, shards))
    assert (told.code, told.out) == (1, "")
    assert "stopped by signal SIGTERM after step 3; the same command goes on there" in told.err
    assert "step-00000003" in told.err
    assert "keeps what was done so far" in told.err
    left = partial_path(tmp_path / "run")
    assert checkpoints.latest(left / "training")["step"] == 3
    told = distill(tmp_path, looking(recipe, shards))
    assert told.code == 0, told.err
    assert "going on from what an interrupted run" in told.text
    assert len(calls) == STEPS, "no step was done twice"
    assert (tmp_path / "run" / UNET).read_bytes() == (run / UNET).read_bytes()


def stopped(recipe: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distillation that leaves a checkpoint behind."""
    reads = Distillation.read

    def stop(self: Distillation, rows: torch.Tensor, noise: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return reads(self, rows, noise)

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "read", stop)
        assert distill(folder, recipe).code == 1


def overwrite(file: Path) -> None:
    """In place: other numbers, the same header and size."""
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(b"\0" * (file.stat().st_size // 2))


CHANGED = {
    "the teacher's UNet": "teacher/unet/diffusion_pytorch_model.safetensors",
    "the teacher's text encoder": "teacher/text_encoder/model.safetensors",
    "the student's UNet": "student/model/unet/diffusion_pytorch_model.safetensors",
    "the data": "train.tar",
}


@pytest.mark.parametrize("kind", CHANGED)
def test_it_goes_on_only_with_what_it_began_with(
    kind: str,
    recipe: dict[str, Any],
    tiny_pipeline: Path,
    base: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(tiny_pipeline, tmp_path / "teacher")
    shutil.copytree(base, tmp_path / "student")
    shutil.copyfile(shards / "train-0.tar", tmp_path / "train.tar")
    mine = {
        **recipe,
        "teacher": str(tmp_path / "teacher"),
        "students": [{"name": "s", "model": str(tmp_path / "student")}],
        "data": {"train": str(tmp_path / "train.tar"), "cache_folder": str(tmp_path / "cache")},
        "steps": 2,
    }
    stopped(mine, tmp_path, monkeypatch)
    file = tmp_path / CHANGED[kind]
    before, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    file.write_bytes(before)  # as good as another one: who reads gigabytes to find out?
    told = distill(tmp_path, mine)
    assert (told.code, told.out) == (2, "")
    assert "was begun with other files than there are now (changed since: " in told.text
    assert str(next(each for each in (file, *file.parents) if str(each) in told.text)) in told.text
    assert checkpoints.latest(partial_path(tmp_path / "run") / "training")["step"] == 1, "nothing is lost"
    os.utime(file, ns=times)
    told = distill(tmp_path, mine)
    assert told.code == 0, told.err
    assert "going on from" in told.text


def test_weights_that_are_overwritten_meanwhile_change_nothing_and_are_told(
    recipe: dict[str, Any],
    run: Path,
    tiny_pipeline: Path,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = Path(shutil.copytree(tiny_pipeline, tmp_path / "teacher"))
    student = Path(shutil.copytree(base / "model", tmp_path / "student"))
    files = [teacher / "unet" / WEIGHTS, student / "unet" / WEIGHTS]
    kept = [(file, file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)) for file in files]
    mine = {**recipe, "teacher": str(teacher), "students": [{"name": "base", "model": str(student)}]}
    reads = Distillation.read

    def overwriting(self: Distillation, rows: torch.Tensor, noise: Any) -> Any:
        for file in files:
            overwrite(file)
        return reads(self, rows, noise)

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "read", overwriting)
        told = distill(tmp_path, mine)
    assert (told.code, told.out) == (1, "")
    assert f"{teacher}, {student}: was changed while this ran" in told.text
    for file, content, times in kept:
        file.write_bytes(content)
        os.utime(file, ns=times)
    assert distill(tmp_path, mine).code == 0
    assert (tmp_path / "run" / UNET).read_bytes() == (run / UNET).read_bytes()


def test_what_was_trained_is_kept_until_the_run_is_published(
    recipe: dict[str, Any], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill while reports are written or files are synced must not cost the training."""
    with monkeypatch.context() as patch:
        patch.setattr(Run, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert distill(tmp_path, recipe).code == 130
    calls: list[int] = []
    reads = Distillation.read
    monkeypatch.setattr(Distillation, "read", lambda *them: (calls.append(1), reads(*them))[1])
    assert distill(tmp_path, recipe).code == 0
    assert not calls
    assert (tmp_path / "run" / UNET).read_bytes() == (run / UNET).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_stored_number_formats_are_kept(recipe: dict[str, Any], base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    model = Path(shutil.copytree(base / "model", tmp_path / "student"))
    tensors = load_file(model / "unet" / WEIGHTS)
    mixed = {name: value.to(dtype) if value.ndim > 1 else value for name, value in tensors.items()}
    (model / "unet" / WEIGHTS).unlink()
    save_file(mixed, model / "unet" / WEIGHTS)
    told = distill(tmp_path, {**recipe, "students": [{"name": "s", "model": str(model)}], "steps": 1}, "--link")
    assert told.code == 0, told.err
    assert f"vae/{WEIGHTS}" in shared(tmp_path / "run/model", model)
    written = load_file(tmp_path / "run" / UNET)
    assert {name: value.dtype for name, value in written.items()} == {
        name: value.dtype for name, value in mixed.items()
    }


def test_a_donors_share_stays_as_it_is(recipe: dict[str, Any], tiny_pipeline: Path, base: Path, tmp_path: Path) -> None:
    file = tmp_path / "assemble.yaml"
    donors = {"original": str(tiny_pipeline), "base": str(base)}
    data = {"verb": "assemble", "donors": donors, "levels": ["base", "base", "original", "original"],
            "mid": "original", "out": str(tmp_path / "1122")}  # fmt: skip
    file.write_text(yaml.safe_dump(data))
    assert asdm("assemble", file).code == 0
    student = {"name": "s", "model": str(tmp_path / "1122"), "freeze": "from original"}
    told = distill(tmp_path, {**recipe, "students": [student], "steps": 2})
    assert told.code == 0, told.err
    before, after = (load_file(each / UNET) for each in (tmp_path / "1122", tmp_path / "run"))
    same = {name for name in before if torch.equal(before[name], after[name])}
    deep = ("down_blocks.2.", "down_blocks.3.", "mid_block.", "up_blocks.0.", "up_blocks.1.")
    assert {name for name in before if name.startswith(deep)} <= same
    assert len(before) - len(same) > 100
    last = json.loads((tmp_path / "run/model/asdm.json").read_text())["history"][-1]
    assert last["frozen_tensors"] == len(same)


@pytest.mark.parametrize("size", [[8, 8], None])
def test_the_resolution_is_the_models_own_in_every_form(
    size: Any, recipe: dict[str, Any], tiny_pipeline: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    config = model / "unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": size}))
    told = distill(tmp_path / "run", {**recipe, "teacher": str(model)}, "--dry-run")
    assert told.code == 0, told.err
    assert f"at {32 if size else 256} pixels" in told.text


def test_every_fault_of_the_plan_is_told_at_once(
    recipe: dict[str, Any], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    wide = tmp_path / "wide"
    tiny.unet(tiny.shape("sd15", block_out_channels=[8, 8, 32, 32], cross_attention_dim=12)).save_pretrained(wide)
    faulty = {
        "students": [
            {"name": "a", "model": str(base), "freeze": ["from nobody"]},
            {"name": "b", "model": str(wide)},
            {"name": "c", "model": str(tmp_path / "gone")},
            {"name": "d", "model": str(base), "freeze": ALL},
        ],
        "data": {
            "train": [str(tmp_path / "none.tar"), "pipe:cat x.tar"],
            "held_out": "pipe:cat y.tar",
            "resolution": 30,
        },
        "optimizer": {"name": "AdamWW", "warmup": 5},
        "precision": "float16",
        "device": "cuda:1",
        "trackers": ["comet_ml"],
    }
    monkeypatch.setattr("asdm_cli.training.settings.get_available_trackers", lambda: [])
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
        "optimizer.name: 'AdamWW' is not there",
        "precision: float16 trains on a GPU only",
        "device: 'cuda:1': training runs on",
        "batch: 4 samples cannot be divided over 3 process(es)",
        "trackers: comet_ml: not installed; pip install comet_ml",
    ):
        assert words in told.text, (words, told.err)
    assert "precision: precision" not in told.err
    assert not partial_path(tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("optimizer", "fault"),
    [
        ({"options": {"weight_dekay": 0.1}}, "optimizer.options: AdamW does not take them"),
        ({"name": "LBFGS", "options": {}}, "optimizer.options: LBFGS"),
        ({"name": "SparseAdam", "options": {}}, "optimizer.options: SparseAdam"),
        ({"name": "Optimizer", "options": {}}, "optimizer.options: Optimizer"),
        ({"name": "json:loads"}, "optimizer.name: 'json:loads' is no torch optimizer"),
        ({"name": "no.such.package:Adam"}, "optimizer.name: 'no.such.package:Adam' is not there"),
        ({"name": ".there:Adam"}, "optimizer.name: '.there:Adam' is not there"),
    ],
)
def test_optimizers_that_cannot_be_used_are_refused(
    recipe: dict[str, Any], tmp_path: Path, optimizer: dict[str, Any], fault: str
) -> None:
    told = distill(tmp_path, {**recipe, "optimizer": optimizer}, "--dry-run")
    assert told.code == 2
    assert fault in told.text, told.err


def test_only_noise_and_v_are_trained(recipe: dict[str, Any], tiny_pipeline: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_pipeline, tmp_path / "odd"))
    config = json.loads((model / "scheduler/scheduler_config.json").read_text())
    (model / "scheduler/scheduler_config.json").write_text(json.dumps({**config, "prediction_type": "sample"}))
    told = distill(tmp_path, {**recipe, "teacher": str(model)}, "--dry-run")
    assert told.code == 2
    assert "teacher: odd: predicts 'sample'; only noise (epsilon) and v_prediction are trained" in told.text


def test_somebody_must_bring_the_rest_of_a_pipeline(
    recipe: dict[str, Any], tiny_pipeline: Path, base: Path, tmp_path: Path
) -> None:
    bare = {"teacher": str(tiny_pipeline / "unet"), "students": [{"name": "s", "model": str(base / "model/unet")}]}
    told = distill(tmp_path, {**recipe, **bare}, "--dry-run")
    assert told.code == 2
    assert "neither it nor a student is a whole pipeline" in told.text
    half = {**bare, "teacher": str(tiny_pipeline), "steps": 1}
    assert distill(tmp_path, {**recipe, **half}).code == 0
    assert {each.name for each in (tmp_path / "run/model").iterdir()} == {
        "config.json",
        WEIGHTS,
        "asdm.json",
        "README.md",
    }


def test_pipes_run_only_where_they_are_allowed(recipe: dict[str, Any], shards: Path, tmp_path: Path) -> None:
    piped = {**recipe, "data": {"train": f"pipe:cat {shards / 'train-0.tar'}", "cache_folder": str(tmp_path / "cache")}}
    assert distill(tmp_path, piped).code == 2
    told = distill(tmp_path, {**piped, "steps": 1}, "--allow-pipes")
    assert told.code == 0, told.err


def test_data_may_be_faultless_by_demand(recipe: dict[str, Any], tmp_path: Path) -> None:
    told = distill(tmp_path, {**recipe, "data": {**recipe["data"], "faults": "stop"}})
    assert told.code == 2
    assert "the data has faults" in told.text


def test_features_alone_are_learnt_by_one_process(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {**recipe, "losses": [{"kind": "features", "at": "down.?"}], "steps": 2}
    told = distill(tmp_path, alone)
    assert told.code == 0, told.err
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = distill(tmp_path / "two", alone, "--dry-run")
    assert told.code == 2
    assert "losses: features alone give the last weights no gradient" in told.text
