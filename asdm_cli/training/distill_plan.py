"""What `asdm distill` would do, found out from the recipe, configs and file headers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from asdm_cli.data.encoder import check_resolution
from asdm_cli.data.sources import Shard, find_shards
from asdm_cli.errors import ModelError
from asdm_cli.models.checked import check_drawing, check_unet
from asdm_cli.models.donors import unlike_pipelines
from asdm_cli.models.parts import check_parts
from asdm_cli.models.provenance import taken
from asdm_cli.models.schedulers import planned_scheduler, training_scheduler
from asdm_cli.models.source import ModelDirectory, find
from asdm_cli.models.switched import one_unet
from asdm_cli.recipe.verbs import DistillRecipe, FeatureLoss, Student
from asdm_cli.training.distillation import Row
from asdm_cli.training.freezing import frozen_keys
from asdm_cli.training.gate import Faults
from asdm_cli.training.plan import Plan
from asdm_cli.training.settings import training_plan
from asdm_cli.unet.anatomy import Anatomy
from asdm_cli.unet.blocks import Config
from asdm_cli.unet.checkpoint import Checkpoint
from asdm_cli.unet.cost import latent_size
from asdm_cli.unet.settings import unlike_inputs
from asdm_cli.unet.taps import Tap, taps

NONE = "none"


@dataclass(frozen=True)
class Learner:
    """A student before it is loaded. `frozen` are names of its tensors."""

    name: str
    directory: ModelDirectory
    checkpoint: Checkpoint
    frozen: frozenset[str]

    @property
    def config(self) -> Config:
        return self.directory.config("unet")

    @cached_property
    def anatomy(self) -> Anatomy:
        return Anatomy.of(self.config)

    @property
    def parameters(self) -> int:
        return sum(prod(entry.shape) for entry in self.checkpoint.tensors.values())

    @property
    def learning(self) -> int:
        """Parameters that are not frozen."""
        return self.parameters - sum(prod(self.checkpoint.tensors[key].shape) for key in self.frozen)


@dataclass(frozen=True)
class DistillPlan:
    recipe: DistillRecipe
    teacher: ModelDirectory | None
    host: ModelDirectory
    """Whose VAE, text encoder and scheduler everybody works with."""
    learners: tuple[Learner, ...]
    rows: tuple[Row, ...]
    train: tuple[Shard, ...]
    held_out: tuple[Shard, ...]
    resolution: int
    training: Plan


def make_plan(recipe: DistillRecipe, allow_pipes: bool = False) -> DistillPlan:
    """Raises ModelError with all that does not fit, each fault with its key."""
    faults = Faults()
    teacher = faults.catch("teacher", lambda: None if recipe.teacher == NONE else one_unet(find(recipe.teacher)))
    learners = [each for index in range(len(recipe.students)) if (each := _learner(recipe, index, faults))]
    found = [directory for directory in (teacher, *(each.directory for each in learners)) if directory]
    host = next((directory for directory in found if directory.is_pipeline), None)
    if host is None and not faults.told:
        faults.add("teacher", "neither it nor a student is a whole pipeline; one must bring VAE and text encoder")
    if teacher:
        faults.catch("teacher", lambda: check_unet(teacher))
    if lead := teacher or host:
        _check_alike(lead, learners, faults)
    told = {"teacher": teacher} if teacher else {}
    told |= {f"student {each.name}": each.directory for each in learners}
    for unlike in faults.catch("students", lambda: unlike_pipelines(told)) or []:
        faults.add("students", unlike)
    rows = _rows(recipe, teacher, learners, faults)
    if host:
        faults.catch("teacher", lambda: check_drawing(host, training=True))
        faults.catch("teacher", lambda: training_scheduler(host))
        faults.catch("teacher", lambda: check_parts(host))
        faults.catch("teacher", lambda: _check_prediction(host))
        if recipe.validation.prompts:
            faults.catch("validation", lambda: planned_scheduler(host, "own", recipe.validation.steps))
    train = faults.catch("data.train", lambda: find_shards(_listed(recipe.data.train), allow_pipes)) or []
    held = recipe.data.held_out
    held_out = faults.catch("data.held_out", lambda: find_shards(_listed(held), allow_pipes) if held else []) or []
    resolution = recipe.data.resolution or (host and _own_resolution(host)) or 0
    if host and resolution:
        faults.catch("data.resolution", lambda: check_resolution(host, resolution))
    training = training_plan(recipe, faults)
    faults.raise_all()
    assert host, "no fault, so there is a host"
    assert training, "no fault, so there is a plan"
    return DistillPlan(
        recipe, teacher, host, tuple(learners), tuple(rows), tuple(train), tuple(held_out), resolution, training
    )


def _learner(recipe: DistillRecipe, index: int, faults: Faults) -> Learner | None:
    student: Student = recipe.students[index]
    with faults.catching(f"students[{index}].model"):
        directory = one_unet(find(student.model))
        checkpoint = check_unet(directory)
        frozen: frozenset[str] = frozenset()
        learner = Learner(student.name, directory, checkpoint, frozen)
        with faults.catching(f"students[{index}].freeze"):
            if student.freeze is not None:
                frozen = frozen_keys(learner.anatomy, checkpoint.tensors, student.freeze, taken(directory))
            if len(frozen) == len(checkpoint.tensors):
                raise ModelError("all of it is frozen; leave something to learn")
        return Learner(student.name, directory, checkpoint, frozen)
    return None  # type: ignore[unreachable]


def _check_alike(lead: ModelDirectory, learners: list[Learner], faults: Faults) -> None:
    """`lead` is the teacher, or whose VAE and text encoder all of them see the data through."""
    for index, learner in enumerate(learners):
        for unlike in unlike_inputs({lead.name: lead.config("unet"), f"student {learner.name}": learner.config}):
            faults.add(f"students[{index}].model", unlike)


def _check_prediction(host: ModelDirectory) -> None:
    kind = host.config("scheduler").get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise ModelError(f"{host.name}: predicts {kind!r}; only noise (epsilon) and v_prediction are trained")


def _rows(recipe: DistillRecipe, teacher: ModelDirectory | None, learners: list[Learner], faults: Faults) -> list[Row]:
    anatomy = faults.catch("teacher", lambda: Anatomy.of(teacher.config("unet"))) if teacher else None
    rows = []
    for index, loss in enumerate(recipe.losses):
        if isinstance(loss, FeatureLoss):
            found = _taps(loss, index, anatomy, learners, faults) if anatomy else {}
            rows.append(Row("features", loss.weight, normalise=loss.normalise == "teacher", taps=found))
        else:
            rows.append(Row(loss.kind, loss.weight, loss.snr_gamma))
    return rows


def _taps(
    loss: FeatureLoss, index: int, teacher: Anatomy, learners: list[Learner], faults: Faults
) -> dict[str, list[Tap]]:
    found = {}
    for learner in learners:
        with faults.catching(f"losses[{index}].at: student {learner.name!r}"):
            found[learner.name] = taps(learner.anatomy, teacher, loss.at)
    return found


def _own_resolution(host: ModelDirectory) -> int:
    levels = len(host.config("vae").get("block_out_channels", (0,) * 4))
    return latent_size(host.config("unet"))[0] * 2 ** (levels - 1)


def _listed(sources: str | list[str]) -> list[str]:
    return [sources] if isinstance(sources, str) else sources
