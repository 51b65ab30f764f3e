"""The task of distillation in the loop: what must not move, what is drawn, and what makes no difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asdm_cli.data.samples import Batch, Samples
from asdm_cli.training import student as trainee
from asdm_cli.training.distillation import Distillation, FeatureRecorder, LossTerm
from asdm_cli.training.loop import LOG, read_log
from asdm_cli.training.sampling_order import Noise, Part
from tests import tiny
from tests.training.students import PLAIN, distillation, fresh, memory, pair, pruned, scheduler, trained


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


class Seen(Distillation):
    """Remembers which rows were read."""

    def read(self, rows: Tensor, noise: Noise) -> Any:
        self.__dict__.setdefault("seen", []).append(rows.tolist())
        return super().read(rows, noise)


def test_a_model_learns_nothing_from_itself(tmp_path: Path) -> None:
    teacher = fresh(tiny.shape("sd15"))
    student = fresh(tiny.shape("sd15"))
    before = state(student)
    task = distillation({"s": student}, teacher, weights=(0, 1, 1))
    trained(tmp_path, task, {"s": student}, replace(PLAIN, steps=5, batch=5, options={"weight_decay": 0.0}))
    lines = read_log(tmp_path / LOG)
    assert [(line["output"], line["features"]) for line in lines] == [(0.0, 0.0)]
    assert lines[0]["task"] > 0
    assert not changed(before, state(student))


def test_what_is_frozen_keeps_every_bit(tmp_path: Path) -> None:
    teacher, student = pair("base")
    frozen = {name for name, _ in student.named_parameters() if name.startswith(("down_blocks.2", "mid", "conv_in"))}
    for name, weight in student.named_parameters():
        weight.requires_grad_(name not in frozen)
    before = state(student)
    plan = replace(PLAIN, options={"weight_decay": 0.1}, ema_decay=0.9)
    training = trained(tmp_path, distillation({"s": student}, teacher), {"s": student}, plan)
    assert changed(before, state(student)) == before.keys() - frozen
    with training.students[0].ema_weights() as module:
        assert changed(before, state(module)) == before.keys() - frozen


def test_the_teacher_learns_nothing(tmp_path: Path) -> None:
    teacher, student = pair("small")
    before = state(teacher)
    trained(tmp_path, distillation({"s": student}, teacher), {"s": student})
    assert not changed(before, state(teacher))
    assert not teacher.training
    assert all(weight.grad is None for weight in teacher.parameters())


def test_the_running_mean_is_its_recurrence(tmp_path: Path) -> None:
    teacher, student = pair("tiny")
    mean = [weight.detach().clone() for weight in student.parameters()]
    seen: list[list[Tensor]] = []
    task = distillation({"s": student}, teacher)
    plan = replace(PLAIN, steps=6, ema_decay=0.3, ema_after=2)
    original = trainee.StudentTrainer.ema_step

    def remember(self: trainee.StudentTrainer) -> None:
        seen.append([weight.detach().clone() for weight in self.module.parameters()])
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainee.StudentTrainer, "ema_step", remember)
        training = trained(tmp_path, task, {"s": student}, plan)
    assert len(seen) == 6
    for step, weights in enumerate(seen, 1):
        age = max(0, step - plan.ema_after - 1)
        decay = min(0.3, (1 + age) / (10 + age)) if age else 0.0
        mean = [decay * old + (1 - decay) * new for old, new in zip(mean, weights, strict=True)]
    now = state(student)
    with training.students[0].ema_weights() as module:
        assert not module.training
        for wanted, found in zip(mean, module.parameters(), strict=True):
            assert torch.allclose(wanted, found, rtol=1e-5, atol=1e-7)
    assert student.training
    assert not changed(now, state(student)), "looking at it changes nothing"


@pytest.mark.parametrize("added", [None, 8])
def test_text_dropout_replaces_the_drawn_rows(added: int | None) -> None:
    samples = memory(12, added=added)
    task = Distillation(samples, scheduler(), [LossTerm("task")], text_dropout=0.4)
    wanted = torch.arange(12)
    batch = task.read(wanted, Noise(3, 5, Part(12)))
    draws = torch.Generator().manual_seed(3 * 1_000_003 + 5)
    torch.randint(0, 1000, (12,), generator=draws)
    dropped = torch.rand(12, generator=draws) < 0.4
    assert 0 < dropped.sum() < 12
    for row in range(12):
        source = samples.empty if dropped[row] else samples.condition
        at = 0 if dropped[row] else row
        assert torch.equal(batch.text[row], source.text[at])
        if added:
            assert torch.equal(batch.added["text_embeds"][row], source.added["text_embeds"][at])
    if added:
        assert torch.equal(batch.added["time_ids"], samples.condition.added["time_ids"])
    none = replace_dropout(task, 0.0).read(wanted, Noise(3, 5, Part(12)))
    assert torch.equal(none.text, samples.condition.text)
    assert torch.equal(none.noisy, batch.noisy), "noise and timesteps do not depend on the share"
    everything = replace_dropout(task, 1.0).read(wanted, Noise(3, 5, Part(12)))
    assert torch.equal(everything.text, samples.empty.text.expand(12, -1, -1))


def replace_dropout(task: Distillation, share: float) -> Distillation:
    return Distillation(task.samples, task.scheduler, task.terms, share)


def test_half_of_the_pictures_are_mirrored() -> None:
    asked: list[Tensor | None] = []

    class Asked:
        def __init__(self, samples: Samples):
            self.samples, self.size, self.empty = samples, samples.size, samples.empty

        def read(self, rows: Tensor, flipped: Tensor | None = None) -> Batch:
            asked.append(flipped)
            return self.samples.read(rows, flipped)

    samples = memory(200)
    task = Distillation(Asked(samples), scheduler(), [LossTerm("task")], flip=True)
    batch = task.read(torch.arange(200), Noise(0, 0, Part(200)))
    flipped = asked[0]
    assert flipped is not None
    assert 70 < flipped.sum() < 130
    assert samples.mirrored is not None
    latents = torch.where(flipped[:, None, None, None], samples.mirrored, samples.latents)
    alpha = batch.alpha.view(-1, 1, 1, 1)
    assert torch.allclose(batch.noisy, alpha.sqrt() * latents + (1 - alpha).sqrt() * batch.target, atol=1e-6)
    Distillation(Asked(samples), scheduler(), [LossTerm("task")]).read(torch.arange(2), Noise(0, 0, Part(2)))
    assert asked[1] is None


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
        student.zero_grad()
        counts.clear()
        batch = task.prepare(task.read(torch.arange(4), Noise(0, 0, Part(4))))
        terms = task.losses("s", student, batch, 0)
        torch.stack([term[1] for term in terms.values()]).sum().backward()
        found.append(({k: v[1].item() for k, v in terms.items()}, [p.grad.clone() for p in student.parameters()]))
        assert max(counts.values()) == 1 + on, "layers were computed again"
    assert found[0][0] == found[1][0]
    for plain, checkpointed in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(plain, checkpointed, rtol=1e-4, atol=1e-7)


def test_features_are_recorded_only_while_asked_for() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    features = FeatureRecorder(model, ["1", "0"])
    x = torch.randn(3, 2)
    model(x)
    with features.recorded() as outputs:
        y = model(x)
    assert torch.equal(outputs["1"], y)
    assert torch.equal(outputs["0"], model[0](x))
    model(x)
    assert len(outputs) == 2


def test_students_of_one_run_are_those_trained_alone(tmp_path: Path) -> None:
    teacher = fresh(tiny.shape("sd15"))
    kinds = ("base", "small", "tiny")
    plan = replace(PLAIN, ema_decay=0.5, schedule="cosine", warmup=1)
    together = {kind: pruned(teacher, kind) for kind in kinds}
    trained(tmp_path / "all", distillation(together, teacher, text_dropout=0.3), together, plan)
    for kind in kinds:
        alone = {kind: pruned(teacher, kind)}
        before = state(alone[kind])
        trained(tmp_path / kind, distillation(alone, teacher, text_dropout=0.3), alone, plan)
        assert len(changed(before, state(alone[kind]))) > 100
        assert not changed(state(together[kind]), state(alone[kind]))
        lines = [line for line in read_log(tmp_path / "all" / LOG) if line["student"] == kind]
        assert lines == read_log(tmp_path / kind / LOG)


def test_the_teacher_answers_once_for_all_students(tmp_path: Path) -> None:
    teacher = fresh(tiny.shape("sd15"))
    calls: list[int] = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    students = {kind: pruned(teacher, kind) for kind in ("base", "tiny")}
    trained(tmp_path, distillation(students, teacher), students, replace(PLAIN, steps=3))
    assert len(calls) == 3


def curve(folder: Path) -> list[dict[str, float]]:
    """Losses of every step."""
    keys = ("loss", "task", "output", "features", "gradient_norm")
    return [{key: line[key] for key in keys} for line in read_log(folder / LOG)]


def test_accumulated_parts_are_the_whole_batch(tmp_path: Path) -> None:
    curves, seen, weights = [], [], []
    for accumulate in (1, 4):
        teacher, student = pair("base")
        task = distillation({"s": student}, teacher, memory(20), text_dropout=0.3)
        task.__class__ = Seen
        plan = replace(PLAIN, steps=5, batch=8, accumulate=accumulate, save_every=1)
        folder = tmp_path / str(accumulate)
        trained(folder, task, {"s": student}, plan)
        curves.append(curve(folder))
        seen.append([row for part in task.seen for row in part])
        weights.append(torch.cat([weight.detach().flatten() for weight in student.parameters()]))
    assert len(curves[0]) == 5
    assert seen[1] == seen[0]
    for a, b in zip(*curves, strict=True):
        assert b == pytest.approx(a, rel=2e-4)
    assert torch.allclose(*weights, atol=2e-4)
    assert sorted(seen[0][:20]) == list(range(20))


def test_the_log_has_means_of_the_terms(tmp_path: Path) -> None:
    """A line per ten steps is the mean of what ten lines would say."""
    found = []
    for every in (1, 100):
        teacher, student = pair("tiny")
        plan = replace(PLAIN, steps=10, save_every=every)
        trained(tmp_path / str(every), distillation({"s": student}, teacher), {"s": student}, plan)
        found.append(curve(tmp_path / str(every)))
    fine, coarse = found
    assert (len(fine), len(coarse)) == (10, 1)
    for key, value in coarse[0].items():
        assert value == pytest.approx(sum(line[key] for line in fine) / 10, rel=1e-5)
    for line in fine:
        assert line["loss"] == pytest.approx(line["task"] + line["output"] + line["features"], rel=1e-5)


def test_held_out_losses_are_of_the_written_weights_and_the_same_noise(tmp_path: Path) -> None:
    teacher, student = pair("base")
    task = distillation({"s": student}, teacher)
    task.held_out = memory(40)
    training = trained(tmp_path, task, {"s": student}, replace(PLAIN, ema_decay=0.5, validate_every=2))
    lines = [line for line in read_log(tmp_path / LOG) if "validation" in line]
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[0]["validation"].keys() == {"task", "output"}
    assert lines[1]["validation"]["output"] < lines[0]["validation"]["output"]
    with training.students[0].ema_weights() as module, torch.no_grad():
        again = task.validate("s", module, 0)
        assert again == lines[1]["validation"]
        noise = Noise(0, 0, Part(40))
        timesteps, eps = noise.integers(1000), noise.normal(4, 8, 8)
        noisy = task.scheduler.add_noise(task.held_out.latents, eps, timesteps)
        text = task.held_out.condition.text
        error = module(noisy, timesteps, text).sample - eps
        assert again["task"] == pytest.approx(error.square().mean().item(), rel=1e-5)


def test_features_live_through_dynamo() -> None:
    """Inductor itself computes wrong gradients on a CPU (torch 2.13), so the recipe refuses it there; hooks and losses
    are held to the graphs that any compiler is given. Of two levels: every kind of block, compiled in seconds."""
    config = tiny.shape(
        "sd15",
        block_out_channels=[8, 16],
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        layers_per_block=1,
    )
    found = []
    for compile_ in (False, True):
        teacher, student = fresh(config, 1), fresh(config)
        task = distillation({"s": student}, teacher)
        batch = task.prepare(task.read(torch.arange(4), Noise(0, 0, Part(4))))
        module = torch.compile(student, backend="aot_eager") if compile_ else student
        terms = task.losses("s", module, batch, 0)
        sum(term[1] for term in terms.values()).backward()
        grads = [weight.grad for weight in student.parameters()]
        found.append(({name: term[1].item() for name, term in terms.items()}, grads))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert len(found[0][1]) > 100
    for plain, compiled in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-6)
