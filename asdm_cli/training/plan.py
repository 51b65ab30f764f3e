"""What `asdm distill` would do, found out from the recipe, configs and file headers; all that does not fit, at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.tracking import get_available_trackers

from asdm_cli.data.cache import LatentCache, TextCache, refuse_streams
from asdm_cli.data.encoder import check_resolution
from asdm_cli.data.shards import Shard, find_shards
from asdm_cli.errors import ModelError, reason
from asdm_cli.models.directory import ModelDirectory, check_drawing, check_parts, check_unet, find
from asdm_cli.models.metadata import one_unet, taken
from asdm_cli.models.schedulers import planned_scheduler, training_scheduler, unlike_pipelines
from asdm_cli.models.write import carried_size, takes
from asdm_cli.profiling.expected import Work
from asdm_cli.recipe.verbs import POCKET, Data, DistillRecipe, FeatureLoss, Student
from asdm_cli.records import Record, Report
from asdm_cli.sampling.prompts import PromptList, read_captions
from asdm_cli.training.distillation import FeatureRecorder, LossTerm
from asdm_cli.training.generated import GeneratedData
from asdm_cli.training.student import mixed_precision, optimizer_of, schedule_of
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import unlike_inputs
from asdm_cli.unet.feature_pairs import FeaturePair, feature_pairs
from asdm_cli.unet.flops import inputs, macs, meta_unet, parameters
from asdm_cli.unet.shapes import latent_size
from asdm_cli.unet.weights import Checkpoint

FROM = "from "
WORDS = {"bf16": "bfloat16", "fp16": "float16"}
"""What accelerate calls number formats -> what recipes do."""
SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
"""What accelerate can share out weights by, as it calls them in the environment."""


class ErrorCollector:
    """What is wrong, each fault with its key, so that all of it is told at once."""

    def __init__(self) -> None:
        self.told: list[str] = []

    @contextmanager
    def at(self, key: str) -> Iterator[None]:
        """A ModelError ends the block, not more."""
        try:
            yield
        except ModelError as error:
            self.told.append(f"{key}: {error}")

    def raise_all(self) -> None:
        if self.told:
            raise ModelError("\n".join(dict.fromkeys(self.told)))


@dataclass(frozen=True)
class StudentModel:
    """A student before it is loaded. `frozen` are names of its tensors."""

    name: str
    directory: ModelDirectory
    checkpoint: Checkpoint
    frozen: frozenset[str]

    @property
    def parameters(self) -> int:
        return sum(prod(entry.shape) for entry in self.checkpoint.tensors.values())

    def __str__(self) -> str:
        learn = self.parameters - sum(prod(self.checkpoint.tensors[key].shape) for key in self.frozen)
        places = ", ".join(sorted({key.split(".")[0] for key in self.frozen}))
        frozen = f" ({len(self.frozen)} tensors of {places} are frozen)" if places else ""
        all_of_it = f"{self.parameters / 1e6:.2f} M parameters"
        return f"{self.name}: from {self.directory.name}, {all_of_it}, {learn / 1e6:.2f} M learn{frozen}"


@dataclass(frozen=True)
class DistillPlan:
    """`host` is the pipeline whose VAE, text encoder and scheduler everybody works with."""

    recipe: DistillRecipe
    teacher: ModelDirectory | None
    host: ModelDirectory
    students: Sequence[StudentModel]
    terms: Sequence[LossTerm]
    resolution: int
    train: Sequence[Shard]
    held_out: Sequence[Shard]
    generated: GeneratedData | None
    captions: Sequence[str]

    def learnt_from(self) -> list[Shard]:
        """Those that there are, and those that are drawn."""
        return [*self.train, *(self.generated.shards() if self.generated else ())]

    def cache(self, held_out: bool = False) -> LatentCache:
        """Where samples are encoded once; those held out always, since they are few and read again and again."""
        data, shards = self.recipe.data, self.held_out if held_out else self.learnt_from()
        flip, latents = data.flip and not held_out, data.cache == "latents" or held_out
        return LatentCache(self.host, self.resolution, Path(data.cache_folder), shards, flip, latents, data.faults)

    def text_cache(self) -> TextCache | None:
        """Where captions without pictures are encoded once; None where there are none."""
        if not self.captions:
            return None
        return TextCache(self.host, self.resolution, Path(self.recipe.data.cache_folder), self.captions)

    def report(self) -> Report:
        """The dry run: who learns what, and what would be made."""
        names, teacher = ", ".join(each.name for each in self.students), self.teacher.name if self.teacher else "nobody"
        steps = f"{self.recipe.steps:,} steps of {self.recipe.batch} samples at {self.resolution} pixels"
        carried = sum(carried_size(student.directory) for student in self.students)
        size = takes(sum(student.checkpoint.size for student in self.students), carried)
        facts: dict[str, object] = {"learn": f"{names}, from {teacher}", "for": steps, "data": str(self.cache())}
        facts |= {"drawn": str(self.generated)} if self.generated else {}
        facts |= {"other captions": str(self.text_cache())} if self.captions else {}
        facts["written"] = size
        facts |= {"students": [str(student) for student in self.students], "losses": [str(term) for term in self.terms]}
        models = {student.name: (student.directory, student.parameters) for student in self.students}
        if self.teacher and "teacher" not in models:
            models = {"teacher": (self.teacher, sum(parameters(self.teacher.config("unet")).values())), **models}
        setups = {name: {"model": model.source} for name, (model, _) in models.items()}
        counts = [Record(name, "params_m", count / 1e6) for name, (_, count) in models.items()]
        return Report("distill", setups, counts, facts=facts)

    def work(self) -> Work:
        """A step calls the teacher, and counts as three calls of each student: one forward, and twice that backward.
        Before the first, the teacher draws."""
        recipe, side, tokens = self.recipe, self.resolution // _factor(self.host), self.host.tokens
        calls = [(each.directory.config("unet"), 4 if recipe.gradient_checkpointing else 3) for each in self.students]
        calls += [(self.teacher.config("unet"), 1)] if self.teacher else []
        sample = sum(count * macs(config, 1, (side, side), tokens).total for config, count in calls)
        drawn = self.generated.calls() * macs(calls[-1][0], 1, (side, side), tokens).total if self.generated else 0
        dtype = WORDS.get(mixed_precision(recipe.precision, recipe.device), "float32")
        config, _ = calls[0]
        return Work(recipe.steps * recipe.batch * sample + drawn, config, (side, side), tokens, recipe.device, dtype)


def make_plan(recipe: DistillRecipe, allow_pipes: bool = False) -> DistillPlan:
    """Raises ModelError with all that does not fit, each fault with its key."""
    errors, teacher = ErrorCollector(), None
    with errors.at("teacher"):
        if recipe.teacher != "none":
            teacher = one_unet(find(recipe.teacher))
            check_unet(teacher)
    students: list[StudentModel] = []
    for index, student in enumerate(recipe.students):
        with errors.at(f"students[{index}].model"):
            students.append(_student(student, index, errors))
    models = ({"teacher": teacher} if teacher else {}) | {f"student {each.name}": each.directory for each in students}
    host = next((model for model in models.values() if model.is_pipeline), None)
    if host is None and not errors.told:
        errors.told.append("teacher: neither it nor a student is a whole pipeline; one must bring VAE and text encoder")
    if lead := teacher or host:
        for index, each in enumerate(students):
            with errors.at(f"students[{index}].model"):
                inputs = {lead.name: lead.config("unet"), f"student {each.name}": each.directory.config("unet")}
                errors.told += [f"students[{index}].model: {unlike}" for unlike in unlike_inputs(inputs)]
    with errors.at("students"):
        errors.told += [f"students: {unlike}" for unlike in unlike_pipelines(models)]
    terms = _loss_terms(recipe, teacher, students, errors)
    resolution = _check_host(recipe, host, errors) if host else 0
    train, held_out, prompts, captions = check_settings(recipe, errors, allow_pipes)
    errors.raise_all()
    assert host, "no fault, so there is a host"
    generated = None
    if (how := recipe.data.generate) and prompts:
        assert teacher, "the recipe let drawing pass that needs a teacher"
        root = Path(recipe.data.cache_folder)
        generated = GeneratedData(how, prompts, teacher, host, resolution, root, recipe.device)
    return DistillPlan(recipe, teacher, host, students, terms, resolution, train, held_out, generated, captions)


def _check_host(recipe: DistillRecipe, host: ModelDirectory, errors: ErrorCollector) -> int:
    """Whether it trains, encodes and draws as the recipe says; the resolution."""
    for check in (partial(check_drawing, training=True), check_parts, training_scheduler, _check_prediction):
        with errors.at("teacher"):
            check(host)
    with errors.at("validation"):
        if recipe.validation.prompts:
            planned_scheduler(host, "own", recipe.validation.steps)
    with errors.at("data.generate"):
        if how := recipe.data.generate:
            planned_scheduler(host, how.sampler, how.steps)
    resolution = recipe.data.resolution or 0
    with errors.at("data.resolution"):
        resolution = resolution or latent_size(host.config("unet"))[0] * _factor(host)
        check_resolution(host, resolution)
    return resolution


def _factor(host: ModelDirectory) -> int:
    """Pixels per latent."""
    return 2 ** (len(host.config("vae").get("block_out_channels", (0,) * 4)) - 1)


def _student(student: Student, index: int, errors: ErrorCollector) -> StudentModel:
    directory = one_unet(find(student.model))
    checkpoint, frozen = check_unet(directory), frozenset[str]()
    with errors.at(f"students[{index}].freeze"):
        if student.freeze is not None:
            anatomy = Anatomy.of(directory.config("unet"))
            frozen = frozen_keys(anatomy, checkpoint.tensors, student.freeze, taken(directory))
        if len(frozen) == len(checkpoint.tensors):
            raise ModelError("all of it is frozen; leave something to learn")
    return StudentModel(student.name, directory, checkpoint, frozen)


def _loss_terms(
    recipe: DistillRecipe, teacher: ModelDirectory | None, students: Sequence[StudentModel], errors: ErrorCollector
) -> list[LossTerm]:
    terms = []
    for index, loss in enumerate(recipe.losses):
        if not isinstance(loss, FeatureLoss):
            terms.append(LossTerm(loss.kind, loss.weight, loss.snr_gamma))
            continue
        pairs: dict[str, list[FeaturePair]] = {}
        for student in students:
            with errors.at(f"losses[{index}].at: student {student.name!r}"):
                if teacher:
                    ours, theirs = (Anatomy.of(model.config("unet")) for model in (student.directory, teacher))
                    pairs[student.name] = feature_pairs(ours, theirs, loss.at)
        terms.append(LossTerm("features", loss.weight, None, loss.normalise == "teacher", pairs))
    if terms and all(term.kind == "features" for term in terms) and not errors.told:  # others see the whole UNet
        errors.told += [
            f"losses: all that learns of student {student.name!r} comes after what is compared; freeze less, compare "
            "later nodes, or add a loss `output`"
            for student in students
            if student.frozen
            and not _reached(student, [pair for term in terms for pair in term.feature_pairs[student.name]])
        ]
    return terms


def _reached(student: StudentModel, pairs: Sequence[FeaturePair]) -> bool:
    """Whether what is compared depends on anything that learns."""
    config = student.directory.config("unet")
    unet = meta_unet(config)
    for key, weight in unet.named_parameters():
        weight.requires_grad_(key not in student.frozen)
    with FeatureRecorder(unet, [name for pair in pairs for name in pair.student_modules]).recorded() as features:
        unet(**inputs(config))
    return any(feature.requires_grad for feature in features.values())


def _check_prediction(host: ModelDirectory) -> None:
    kind = host.config("scheduler").get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise ModelError(f"{host.name}: predicts {kind!r}; only noise (epsilon) and v_prediction are trained")


def frozen_keys(
    anatomy: Anatomy, keys: Iterable[str], patterns: str | Sequence[str], donors: Mapping[str, Sequence[str]]
) -> frozenset[str]:
    """The tensors that patterns name: addresses, modules outside the blocks, or `from DONOR`.

    `donors` says what an assembled model has of each donor, in the same words. Raises ModelError for a pattern
    that names nothing.
    """
    words: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        donor = pattern.removeprefix(FROM).strip()
        if donor != pattern and donor not in donors:
            known = f"its donors are {', '.join(donors)}" if donors else "it was not made by asdm assemble"
            raise ModelError(f"{pattern!r}: the student has nothing from {donor!r}; {known}")
        words += [pattern] if donor == pattern else donors[donor]
    places = {key: anatomy.owners(key) for key in keys}
    outside = {key.split(".")[0] for key, place in places.items() if not place}
    try:
        named = anatomy.match([word for word in words if word not in outside])
    except ModelError as error:
        raise ModelError(f"{error}; outside the blocks are {', '.join(sorted(outside))}") from None
    inside = frozenset().union(*(anatomy.inside(address) for address in named))
    return frozenset(key for key, place in places.items() if place & inside or key.split(".")[0] in words)


def _captions(source: str, data: Data, allow_pipes: bool, per_prompt: int = 1) -> PromptList:
    """`pocket` are those that it was trained with here, where elsewhere it is what models are judged by."""
    source = find_shards([POCKET])[0].url if source == POCKET else source
    return read_captions(source, per_prompt, data.faults == "skip", allow_pipes)


class Sources(NamedTuple):
    """Shards to learn from and those held out, what is to be drawn, and captions without pictures."""

    train: Sequence[Shard] = ()
    held_out: Sequence[Shard] = ()
    prompts: PromptList | None = None
    captions: Sequence[str] = ()


def check_settings(recipe: DistillRecipe, errors: ErrorCollector, allow_pipes: bool = False) -> Sources:
    """What can be known before there is any model: whether the loop can go like this, and what there is to learn from.
    Incomplete where there are errors."""
    data, other = recipe.data, recipe.random_conditioning
    processes, gpu = int(os.environ.get("WORLD_SIZE", "1")), torch.cuda.is_available()
    shards: dict[str, Sequence[Shard]] = {"train": (), "held_out": ()}
    for key in shards:
        with errors.at(f"data.{key}"):
            if sources := getattr(data, key) or (POCKET if key == "train" and not data.generate else None):
                shards[key] = find_shards([sources] if isinstance(sources, str) else sources, allow_pipes)
    learnt = {shard.identity for shard in shards["train"]}
    with errors.at("data.held_out"):
        if both := [shard.name for shard in shards["held_out"] if shard.identity in learnt]:
            more = f" (and {len(both) - 1} more)" if both[1:] else ""
            raise ModelError(f"{both[0]}: is learnt from, as data.train names it{more}; hold out what is not")
    with errors.at("data.cache"):
        if data.cache == "none":
            refuse_streams(shards["train"])
    prompts, captions = None, None
    with errors.at("data.generate.prompts"):
        made = data.generate
        prompts = _captions(made.prompts, data, allow_pipes, made.per_prompt) if made else None
    with errors.at("random_conditioning.captions"):
        captions = _captions(other.captions, data, allow_pipes) if other and other.captions else None
    with errors.at("optimizer"):
        captured = gpu and recipe.device != "cpu" and recipe.optimizer.options.get("capturable")
        where = "cuda" if captured else "cpu"  # which refuses that
        weights = [torch.nn.Parameter(torch.zeros(shape, device=where)) for shape in ((2,), (2, 2), (2, 2, 3, 3))]
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        try:  # some take these options and then want matrices alone, a closure or sparse gradients
            schedule_of(recipe.optimizer, tried := optimizer_of(recipe.optimizer, weights), recipe.steps)
            tried.step()
        except ModelError:
            raise
        except Exception as error:  # a class may be anybody's
            raise ModelError(f"{recipe.optimizer.name} does not take the options ({reason(error)})") from None
    with errors.at("precision"):
        mixed_precision(recipe.precision, recipe.device)
    parts = f"{processes} process(es) with {recipe.accumulate} part(s) each"
    shared_out = [name for name in SHARDED if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true")]
    missing = " ".join(sorted({*recipe.trackers} - {str(tracker) for tracker in get_available_trackers()}))
    wrong: dict[str, object] = {
        f"device: {recipe.device!r}: training runs on auto, cpu or cuda; which GPUs is the launcher's affair": (
            recipe.device not in ("auto", "cpu", "cuda")
        ),
        "device: there is no GPU here; use auto or cpu": recipe.device == "cuda" and not gpu,
        f"device: the launcher switched {' '.join(shared_out)} on, which shares out weights; use plain processes": (
            shared_out
        ),
        f"batch: {recipe.batch} samples cannot be divided over {parts}; choose a multiple": (
            recipe.batch % (recipe.accumulate * processes)
        ),
        "losses: features alone give the last weights no gradient, and several processes wait for each; add a task or "
        "output row, or use one process": processes > 1 and all(loss.kind == "features" for loss in recipe.losses),
        # Measured on small UNets, with and without our hooks: a quarter of the gradient is missing, without a word.
        "compile: compiled for a CPU, UNets get wrong gradients (torch 2.13, inductor); leave it out here": (
            recipe.compile and (recipe.device == "cpu" or not gpu)
        ),
        f"trackers: not installed; pip install {missing}": missing,
    }
    errors.told += [words for words, is_so in wrong.items() if is_so]
    return Sources(**shards, prompts=prompts, captions=captions.prompts if captions else ())
