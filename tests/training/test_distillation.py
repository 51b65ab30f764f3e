"""The task of distillation in the loop: what must not move, what is drawn, and what makes no difference."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asdm_cli.experts.convert import expand
from asdm_cli.experts.unet import build, expert_layers
from asdm_cli.recipe.verbs import Ema
from asdm_cli.training.distillation import Distillation, FeatureRecorder, LossTerm, OtherCaptions
from asdm_cli.training.loop import LOG, Noise, Part, read_log
from asdm_cli.training.student import StudentTrainer
from asdm_cli.unet.blocks import Spec
from tests import tiny
from tests.training.students import (
    PLAIN,
    Seen,
    distillation,
    first_batch,
    fresh,
    like,
    memory,
    pair,
    pruned,
    quick,
    scheduler,
    trained,
)

KINDS = ("base", "small", "tiny")


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    after = module.state_dict()
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_model_learns_nothing_from_itself(tmp_path: Path) -> None:
    (_, teacher), (_, student) = quick(), quick()
    before = state(student)
    task = distillation({"s": student}, teacher, weights=(0, 1, 1))
    trained(tmp_path, task, {"s": student}, like(PLAIN, steps=5, batch=5, options={"weight_decay": 0.0}))
    (line,) = read_log(tmp_path / LOG)
    assert (line["output"], line["features"]) == (0.0, 0.0)
    assert line["task"] > 0
    assert not changed(before, student)


def test_teachers_and_what_is_frozen_keep_every_bit(tmp_path: Path) -> None:
    teacher, student = quick()
    frozen = {name for name, _ in student.named_parameters() if name.startswith(("down_blocks.1", "mid", "conv_in"))}
    for name, weight in student.named_parameters():
        weight.requires_grad_(name not in frozen)
    before, taught = state(student), state(teacher)
    config = like(PLAIN, options={"weight_decay": 0.1}, ema=0.9)
    training = trained(tmp_path, distillation({"s": student}, teacher), {"s": student}, config)
    assert changed(before, student) == before.keys() - frozen
    with training.students[0].ema_weights() as module:
        assert changed(before, module) == before.keys() - frozen
    assert not changed(taught, teacher)
    assert not teacher.training
    assert all(weight.grad is None for weight in teacher.parameters())


def test_the_running_mean_is_its_recurrence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = quick()
    mean = [weight.detach().clone() for weight in student.parameters()]
    seen: list[list[Tensor]] = []
    config = like(PLAIN, steps=6, ema=Ema(decay=0.3, after=2))
    original = StudentTrainer.ema_step

    def ema_step(self: StudentTrainer) -> None:
        seen.append([weight.detach().clone() for weight in self.module.parameters()])
        original(self)

    monkeypatch.setattr(StudentTrainer, "ema_step", ema_step)
    training = trained(tmp_path, distillation({"s": student}, teacher), {"s": student}, config)
    assert len(seen) == 6
    for step, weights in enumerate(seen, 1):
        age = max(0, step - config.ema.after - 1)
        decay = min(0.3, (1 + age) / (10 + age)) if age else 0.0
        mean = [decay * old + (1 - decay) * new for old, new in zip(mean, weights, strict=True)]
    now = state(student)
    with training.students[0].ema_weights() as module:
        assert not module.training
        for wanted, found in zip(mean, module.parameters(), strict=True):
            assert torch.allclose(wanted, found, rtol=1e-5, atol=1e-7)
    assert student.training
    assert not changed(now, student), "looking at it changes nothing"


@pytest.mark.parametrize("added", [None, 8])
def test_text_dropout_replaces_the_drawn_rows(added: int | None) -> None:
    samples = memory(12, added=added)
    draws = torch.Generator().manual_seed(3 * 1_000_003 + 5)
    torch.randint(0, 1000, (12,), generator=draws)
    uniform, noisy = torch.rand(12, generator=draws), []
    for share in (0.0, 0.4, 1.0):
        task = Distillation(samples, scheduler(), [LossTerm("task")], share)
        batch = task.read(torch.arange(12), Noise(3, 5, Part(12)))
        dropped = uniform < share
        assert dropped.sum() == {0.0: 0, 1.0: 12}.get(share, dropped.sum())
        text = torch.where(dropped[:, None, None], samples.empty.text, samples.condition.text)
        assert torch.equal(batch.text, text)
        for name, value in batch.added.items():
            empty = samples.empty.added[name] if name == "text_embeds" else samples.condition.added[name]
            assert torch.equal(value, torch.where(dropped[:, None], empty, samples.condition.added[name])), name
        noisy.append(batch.noisy)
    assert all(torch.equal(each, noisy[0]) for each in noisy), "noise and timesteps do not depend on the share"


@pytest.mark.parametrize("added", [None, 8])
def test_a_caption_is_anothers_as_often_as_its_timestep_says(added: int | None) -> None:
    """Never below timestep 300, always above 700; noise, dropped captions and sizes are what they are without."""
    samples, other = memory(400, added=added), memory(3, added=added)
    other.condition.text[:] = torch.arange(1.0, 4.0)[:, None, None]
    rows, terms = torch.arange(400), [LossTerm("output")]
    plain = Distillation(samples, scheduler(), terms, 0.2).read(rows, Noise(3, 5, Part(400)))
    others = OtherCaptions([[300, 0.0], [700, 1.0]], other)
    mixed = Distillation(samples, scheduler(), terms, 0.2, others=others).read(rows, Noise(3, 5, Part(400)))
    dropped = (plain.text == samples.empty.text).all((1, 2))
    theirs = (mixed.text == mixed.text[:, :1, :1]).all((1, 2))
    times = plain.timesteps
    assert not theirs[times <= 300].any()
    assert torch.equal(theirs[times >= 700], ~dropped[times >= 700])
    middle = theirs[(times > 400) & (times < 600) & ~dropped].float().mean()
    assert 0.3 < middle < 0.7
    assert set(mixed.text[theirs][:, 0, 0].tolist()) == {1.0, 2.0, 3.0}, "each of them"
    assert torch.equal(mixed.text[~theirs], plain.text[~theirs])
    assert torch.equal(mixed.own, (~theirs).float())
    assert plain.own.all()
    for name in ("noisy", "timesteps", "target", "alpha"):
        assert torch.equal(getattr(mixed, name), getattr(plain, name)), name
    if added:
        chosen = mixed.text[theirs][:, 0, 0].long() - 1
        assert torch.equal(mixed.added["text_embeds"][theirs], other.condition.added["text_embeds"][chosen])
        assert torch.equal(mixed.added["text_embeds"][~theirs], plain.added["text_embeds"][~theirs])


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_the_task_is_learnt_under_own_captions_alone(gamma: float | None) -> None:
    """And the teacher's answer under others', which it gives to what the student sees."""
    teacher, student = quick()
    samples = memory()
    terms = [LossTerm("task", snr_gamma=gamma), LossTerm("output")]

    def losses(probability: float) -> tuple[Any, dict[str, float]]:
        task = distillation({"s": student}, teacher, samples, terms=terms, others=OtherCaptions(probability, samples))
        batch = first_batch(task, torch.arange(12))
        return batch, {name: float(value.detach()) for name, (_, value) in task.losses("s", student, batch, 0).items()}

    never, half, always = (losses(probability) for probability in (0.0, 0.5, 1.0))
    assert always[1]["task"] == 0.0 < never[1]["task"]
    batch, found = half
    assert 0 < batch.own.sum() < 12
    with torch.no_grad():
        own, theirs = (
            unet(batch.noisy, batch.timesteps, batch.text, return_dict=False)[0] for unet in (student, teacher)
        )
    torch.testing.assert_close(batch.teacher_output, theirs)
    error = (own - batch.target).square().mean((1, 2, 3))
    if gamma:
        error = error * (gamma * (1 - batch.alpha) / batch.alpha).clamp(max=1)
    assert found["task"] == pytest.approx(float(error[batch.own > 0].sum()) / 12, rel=1e-5)
    assert found["output"] == pytest.approx(float((own - theirs).square().mean()), rel=1e-5)


def test_the_teacher_answers_in_the_number_format_that_is_asked_for() -> None:
    teacher, student = quick()
    task = distillation({"s": student}, teacher, precise=partial(torch.autocast, "cpu", torch.bfloat16))
    batch = first_batch(task)
    assert batch.teacher_output.dtype == torch.bfloat16
    assert batch.noisy.dtype == torch.float32


def test_a_step_reads_nothing_from_its_device() -> None:
    """The meta device has nothing to be read. Rows of experts have a timestep each."""
    teacher, _ = quick()
    student = build(expand(dict(teacher.config), Spec(3), ["mid"], None).config).train().to("meta")
    task = distillation({"s": student}, teacher.to("meta"), device=torch.device("meta"))
    batch = first_batch(task)
    assert batch.timesteps.is_meta
    assert len(batch.host.unique()) > 1
    sum(weight * value for weight, value in task.losses("s", student, batch, 0).values()).backward()
    assert expert_layers(student)
    assert all(each.weight.grad is not None for each in expert_layers(student).values())


def test_half_of_the_pictures_are_mirrored() -> None:
    samples = memory(200)
    for flip in (False, True):
        task = Distillation(samples, scheduler(), [LossTerm("task")], flip=flip)
        batch = task.read(torch.arange(200), Noise(0, 0, Part(200)))
        alpha = batch.alpha.view(-1, 1, 1, 1)
        latents = (batch.noisy - (1 - alpha).sqrt() * batch.target) / alpha.sqrt()
        distance = [(latents - each).abs().flatten(1).amax(1) for each in (samples.latents, samples.mirrored)]
        turned = distance[1] < distance[0]
        assert torch.minimum(*distance).median() < 1e-4
        assert 70 < turned.sum() < 130 if flip else not turned.any()


@pytest.mark.parametrize(("shape", "added"), [("sd15", None), ("sdxl", 8)])
def test_gradient_checkpointing_changes_no_loss_and_no_gradient(shape: str, added: int | None) -> None:
    teacher, student = pair("base", shape)
    student.train()
    task = distillation({"s": student}, teacher, memory(4, added=added))
    counts: dict[str, int] = {}
    for name, module in student.named_modules():
        if name.endswith(("resnets.0", "ff")):
            module.register_forward_pre_hook(lambda *_, name=name: counts.update({name: counts.get(name, 0) + 1}))
    found = []
    for on in (False, True):
        if on:
            student.enable_gradient_checkpointing()
        counts.clear()
        found.append(losses_and_gradients(task, student))
        assert max(counts.values()) == 1 + on, "layers were computed again"
    assert found[0][0] == found[1][0]
    for plain, checkpointed in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(plain, checkpointed, rtol=1e-4, atol=1e-7)


def losses_and_gradients(task: Distillation, student: Any, module: Any = None) -> tuple[dict[str, float], list[Tensor]]:
    student.zero_grad()
    terms = task.losses("s", student if module is None else module, first_batch(task), 0)
    torch.stack([value for _, value in terms.values()]).sum().backward()
    return {name: value.item() for name, (_, value) in terms.items()}, [w.grad.clone() for w in student.parameters()]


def test_features_live_through_dynamo() -> None:
    """Inductor itself computes wrong gradients on a CPU (torch 2.13), so the recipe refuses it there; hooks and losses
    are held to the graphs that any compiler is given."""
    found = []
    for compiled in (False, True):
        teacher, student = quick()
        task = distillation({"s": student}, teacher)
        module = torch.compile(student, backend="aot_eager") if compiled else None
        found.append(losses_and_gradients(task, student, module))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert len(found[0][1]) > 100
    for plain, compiled in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-6)


def test_features_are_recorded_only_while_asked_for() -> None:
    model, x = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), torch.randn(3, 2)
    recorder = FeatureRecorder(model, ["1", "0"])
    model(x)
    with recorder.recorded() as outputs:
        y = model(x)
    model(2 * x)
    assert outputs.keys() == {"0", "1"}
    assert torch.equal(outputs["1"], y)
    assert torch.equal(outputs["0"], model[0](x))


def test_students_of_one_run_are_those_trained_alone(tmp_path: Path) -> None:
    teacher, calls = fresh(tiny.shape("sd15")), []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    config = like(PLAIN, ema=0.5, schedule="cosine", warmup=1)
    together = {kind: pruned(teacher, kind) for kind in KINDS}
    trained(tmp_path / "all", distillation(together, teacher, text_dropout=0.3), together, config)
    assert len(calls) == config.steps, "the teacher answers once for all students"
    for kind in KINDS:
        alone = {kind: pruned(teacher, kind)}
        before = state(alone[kind])
        trained(tmp_path / kind, distillation(alone, teacher, text_dropout=0.3), alone, config)
        assert len(changed(before, alone[kind])) > 100
        assert not changed(state(together[kind]), alone[kind])
        lines = [line for line in read_log(tmp_path / "all" / LOG) if line["student"] == kind]
        assert lines == read_log(tmp_path / kind / LOG)


def test_accumulated_parts_are_the_whole_batch_and_lines_are_means(tmp_path: Path) -> None:
    """Of four runs: a line per step, a line for all steps, and a step in four parts."""
    curves, seen, weights = [], [], []
    for number, (accumulate, every) in enumerate([(1, 1), (1, 100), (4, 1)]):
        teacher, student = quick()
        task = distillation({"s": student}, teacher, memory(20), Seen, text_dropout=0.3)
        config = like(PLAIN, steps=5, batch=8, accumulate=accumulate, checkpoint=every)
        trained(tmp_path / str(number), task, {"s": student}, config)
        keys = ("loss", "task", "output", "features", "gradient_norm")
        curves.append([{key: line[key] for key in keys} for line in read_log(tmp_path / str(number) / LOG)])
        seen.append([row for part in task.seen for row in part])
        weights.append(torch.cat([weight.detach().flatten() for weight in student.parameters()]))
    assert seen[0] == seen[1] == seen[2]
    assert sorted(seen[0][:20]) == list(range(20))
    fine, coarse, parts = curves
    assert (len(fine), len(coarse)) == (5, 1)
    for one, other in zip(fine, parts, strict=True):
        assert other == pytest.approx(one, rel=2e-4)
        assert one["loss"] == pytest.approx(one["task"] + one["output"] + one["features"], rel=1e-5)
    assert coarse[0] == pytest.approx({key: sum(line[key] for line in fine) / 5 for key in fine[0]}, rel=1e-5)
    assert torch.equal(weights[0], weights[1])
    assert torch.allclose(weights[0], weights[2], atol=2e-4)


def test_of_many_held_out_samples_those_are_taken_that_lie_evenly_among_them() -> None:
    teacher, student = quick()
    task, asked = distillation({"s": student}, teacher), list[Tensor]()
    many = SimpleNamespace(size=1000, read=lambda rows: (asked.append(rows), memory(len(rows)).read(rows * 0))[1])
    task.held_out = many  # type: ignore[assignment]
    with torch.no_grad():
        task.validate("s", student, 0)
    (rows,) = asked
    assert (len(rows), int(rows[0]), int(rows[-1])) == (256, 0, 999)
    assert set(rows.diff().tolist()) <= {3, 4, 5}


def test_held_out_losses_are_of_the_written_weights_and_the_same_noise(tmp_path: Path) -> None:
    teacher, student = quick()
    task = distillation({"s": student}, teacher)
    task.held_out = held_out = memory(40)
    training = trained(tmp_path, task, {"s": student}, like(PLAIN, ema=0.5, every=2))
    first, last = [line for line in read_log(tmp_path / LOG) if "validation" in line]
    assert (first["step"], last["step"]) == (2, 4)
    assert first["validation"].keys() == {"task", "output"}
    assert last["validation"]["output"] < first["validation"]["output"]
    noise = Noise(0, 0, Part(40))
    timesteps, eps = noise.integers(1000), noise.normal(4, 8, 8)
    with training.students[0].ema_weights() as module, torch.no_grad():
        assert task.validate("s", module, 0) == last["validation"]
        noisy = task.scheduler.add_noise(held_out.latents, eps, timesteps)
        error = module(noisy, timesteps, held_out.condition.text).sample - eps
    assert last["validation"]["task"] == pytest.approx(error.square().mean().item(), rel=1e-5)
