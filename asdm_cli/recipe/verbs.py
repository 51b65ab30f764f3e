"""One recipe class per verb, and the only list of verbs. Every key here changes what its verb does: a test holds us
to it.

A key that several recipes share is a type with its description; what a recipe alone has is described below its key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from asdm_cli.recipe import MOST
from asdm_cli.recipe.messages import did_you_mean, got
from asdm_cli.recipe.patches import (
    COUNTS_NOTHING,
    NULLS,
    AnyPatch,
    Axis,
    By,
    Cached,
    CountedMode,
    InheritPlan,
    Order,
    PatchSpec,
    Segment,
    Switching,
    misordered,
    reserved,
    unknown_unets,
)
from asdm_cli.recipe.schema import (
    ADDRESSED,
    READ,
    Above,
    Distinct,
    DistinctlyNamed,
    Folder,
    Fraction,
    Guidance,
    Inner,
    Integer,
    Misfit,
    Misplaced,
    Name,
    Patterns,
    Positive,
    Seed,
    Share,
    Side,
    Strict,
    Text,
    Whole,
)

POCKET = "pocket"
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Sampler = Literal["own", "ddim", "pndm", "euler", "heun", "dpm++2m", "unipc"]
Metric = Literal[
    "kid",
    "fd",
    "is",
    "clip_score",
    "clip_retrieval",
    "label_accuracy",
    "style_accuracy",
    "label_agreement",
    "psnr",
    "ssim",
    "perceptual",
    "fd_original",
]
Metrics = Annotated[list[Metric], Field(min_length=1), Distinct]
VERB = Field(description="The command that this recipe is for.")
Model = Annotated[
    Text,
    READ,
    Field(description="A model or run directory, `ORG/NAME` of the hub, a `.safetensors` file, or `pocket`."),
]
Called = Annotated[Name, Field(description="What tables and plots call it, and its folder.")]
Shards = Text | Annotated[list[Text], Field(min_length=1)]


class Recipe(Strict):
    """What every recipe says."""

    verb: str
    """Stands here to be the first key of a recipe that is written back."""
    out: Folder
    """The run directory to write."""

    MODULE: ClassVar[str] = ""
    """The file below `verbs/` of all that a verb's recipes ask for, where it is not of the verb's own name."""
    EXAMPLE: ClassVar[str]
    """As small as it is useful: what the reference shows."""

    @property
    def module(self) -> str:
        """The file below `verbs/` that does it."""
        return self.MODULE or self.verb

    def written(self) -> list[str] | None:
        """Where in the run directory models lie; None where only the run itself finds out."""
        return [""]


class Adapter(Strict):
    """A LoRA, fused into a model's weights in memory."""

    path: Annotated[Text, READ]
    """Its `.safetensors` file, as kohya's trainer, diffusers or peft write it."""
    scale: Annotated[float, Field(ge=-100, le=100)] = 1.0
    """How much of it; 1 is as it was trained."""
    of: Text | None = None
    """The model that it was trained on, by its name in asdm.json, where a pruned model and its original both fit."""


class Adapted(Strict):
    adapters: list[Adapter] = []
    """LoRAs in the weights of the UNets and text encoders; of a pruned model, also those of its original."""


class OnDevice(Strict):
    device: Text = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, `mps` (untested), ..."""
    dtype: Dtype = "auto"
    """Number format of the weights; `auto` is float16 on a GPU and float32 on a CPU."""


class Sampling(Strict):
    sampler: Sampler = "own"
    """`own` is the one that each model came with."""
    steps: Positive = 25
    """UNet steps per picture."""
    guidance: Guidance = 3.0
    """Classifier-free guidance; 1 is none and halves the work. A command without a recipe takes what the model was
    measured with, or its pipeline's own."""
    inputs: Annotated[Text | None, READ] = None
    """What to draw from, for pipelines that take a picture (image to image, inpainting, editing, depth, upscaling):
    webdataset shards or a folder of (picture, caption), and NAME.mask.png beside NAME.png where a mask is needed, white
    where to paint. The captions are the prompts."""
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the steps that are made, from the picture on, by pipelines that know it; theirs if left out."""
    image_guidance: Guidance | None = None
    """How near InstructPix2Pix keeps to the picture; its own if left out."""

    @property
    def drawn_with(self) -> dict[str, Any]:
        """What is said of how to draw; the rest is each pipeline's own."""
        words = ("sampler", "steps", "guidance", "strength", "image_guidance")
        return {word: getattr(self, word) for word in words if getattr(self, word) is not None}


class Prompted(Sampling):
    prompts: Annotated[Text, READ] = POCKET
    """Webdataset shards of (picture, caption), by path or glob; a text file with a prompt a line; or `pocket`: 128
    held-out captions and 128 trained ones in turn (`pocket-held-out`: the held-out ones alone)."""
    limit: Positive | None = None
    """Use the first so many prompts only."""
    seed: Seed = 0
    """Prompt i is drawn with a seed made of this and i, whatever the batch or process."""

    @model_validator(mode="after")
    def _prompted_once(self) -> Self:
        if self.inputs is not None and self.prompts != POCKET:
            raise Misplaced([(("prompts",), "does not go with 'inputs', whose captions are the prompts")])
        return self


class Pictures(Prompted, OnDevice):
    """What pictures depend on, and how they are looked at: the same for every verb that draws to compare."""

    size: Side | None = None
    """Height and width in pixels; the model's own if left out."""
    per_prompt: Positive = 1
    """Draw each prompt so many times, every time with another seed."""
    metrics: Metrics = ["kid", "clip_score"]
    """What to measure; psnr, ssim, perceptual and fd_original compare with the first's pictures, or the `reference`'s;
    label_accuracy and style_accuracy ask a probe whether a picture shows what its sample's .json names, label_agreement
    whether it shows what the first's picture of the same seed does."""
    features: Literal["efficientnet_lite0", "clip", "inception"] = "efficientnet_lite0"
    """The network behind kid, fd and is. Only `inception` may be called FID."""
    clip: Annotated[Text, READ] = "own"
    """The CLIP behind clip_score and clip_retrieval: `own` (the first model's), or a directory."""
    probe: Annotated[Text, READ] = "own"
    """The probe behind label_accuracy, style_accuracy and label_agreement: `own` (the first model's), or a directory of
    one."""
    batch: Positive = 16
    """Pictures of a UNet call on a GPU, where it changes their last bits; on a CPU calls side by side, which changes
    none."""
    bootstrap: Positive = 1000
    """Resamples behind each confidence interval."""
    confidence: Fraction = 0.95
    """Width of the confidence intervals."""
    grid: Positive = 8
    """How many prompts the report's picture grid shows."""


class Drawing(Pictures, Recipe):
    """The recipe of a verb that does nothing but draw and compare."""


class Comparing(Drawing):
    """The recipe of a verb that compares ways to draw: fewer steps, the first thing to beat, always take part."""

    fewer_steps: Annotated[list[Positive], Distinct] | None = None
    """Steps at which the plain model draws too, the first thing to beat; about 0.8, 0.65, 0.5, 0.35 and 0.2 of
    `steps` if left out."""
    converged: Positive | None = None
    """Also compare with what DPM++ 2M draws in so many steps: near the solution that every sampler is after."""
    limit: Positive = 16
    """Use the first so many prompts only."""
    metrics: Metrics = ["psnr", "ssim"]
    """psnr, ssim and perceptual compare with the plain model's pictures; kid, clip_score, ... as in `asdm eval`."""
    steps: Positive = 50
    """UNet steps per picture."""
    repeats: Positive = 5
    """Timed rounds; every round draws one image with everybody, in turn."""
    warmups: Positive = 1
    """Rounds before the timed ones, not counted."""
    measure: bool = True
    """Draw, judge and time. `false` only writes the model, in seconds."""

    def unmeasured(self, *others: str) -> Iterator[Misfit]:
        """What a recipe has for nothing where nothing is measured."""
        for key in (*others, "inputs") if not self.measure else ():
            if getattr(self, key):
                yield (key,), "is only there to be measured, and 'measure' is false"


def _free_series(taken: tuple[str, ...]) -> AfterValidator:
    """Refuses the name of a line that the plots draw themselves."""

    def check(series: str) -> str:
        if series in taken:
            raise ValueError(f"'{series}' is drawn by what it is named after; choose another name")
        return series

    return AfterValidator(check)


# prune ----------------------------------------------------------------------------------------------------------------


class Most(Strict):
    """What is left costs at most so much; one of these."""

    macs: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Multiply-accumulates of a UNet call, as a share of the whole UNet's."""
    params: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Parameters, as a share of the whole UNet's."""
    time: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Time of a UNet call on this machine, as a share of the whole UNet's."""
    layers: Positive | None = None
    """So many layers go (resnets, each with its transformer)."""

    def misfits(self) -> Iterator[Misfit]:
        given = self.model_dump(exclude_none=True)
        if len(given) != 1:
            keys = f"exactly one of macs, params, time, layers; {len(given)} are given"
            yield (), f"needs {keys}"


class Importance(Prompted, OnDevice):
    """What matters least to this very model, found by measuring every unit that a stock config can do without."""

    budget: Most
    """What is left costs at most so much."""
    by: Literal["output", "feature", "label_accuracy"] = "output"
    """What a unit matters by: the squared error of the UNet's output without it; the mean one of its blocks' outputs;
    or the share of pictures that show what they should, lost (each unit then draws all prompts)."""
    steps: Positive = 10
    """UNet steps of the drawings that noisy latents are taken from."""
    limit: Positive = 4
    """Use the first so many prompts; the next ones make the latents that the chosen set is checked on."""
    calls: Positive = 3
    """UNet calls of each drawing that are measured on, from the first to the last."""
    size: Side | None = None
    """Height and width in pixels; the model's own if left out."""
    cache_folder: Folder = "runs/cache"
    """Where what was measured is kept, and found again for another budget."""


class PruneRecipe(Recipe):
    """Remove blocks, layers or transformers' depth from a UNet: by name, or what matters least under a budget."""

    verb: Annotated[Literal["prune"], VERB]
    model: Model
    remove: Annotated[Text | Annotated[list[Text], Field(min_length=1)] | Importance, ADDRESSED]
    """A named set (base, small, tiny; of SDXL ssd-1b, vega, koala-1b, koala-700m), an address pattern, or a list of
    them; or a `budget`, and what to leave out for it is measured."""

    EXAMPLE = """\
verb: prune
model: pocket
remove: [mid, down.0.1, up.3.1]
out: runs/pruned
"""


# distill --------------------------------------------------------------------------------------------------------------


def _rising(points: list[list[float]], most: float = math.inf) -> list[list[float]]:
    faults: list[Misfit] = []
    for index, point in enumerate(points):
        if len(point) != 2 or min(point) < 0:
            faults.append(((index,), "must be two numbers, both from 0"))
        elif index and len(points[index - 1]) == 2 and point[0] <= points[index - 1][0]:
            faults.append(((index, 0), "must be more than that of the point before"))
        if len(point) == 2 and point[1] > most:
            faults.append(((index, 1), f"must be at most {most:g}, got {point[1]:g}"))
    if faults:
        raise Misplaced(faults)
    return points


class _Loss(Strict):
    kind: str
    """Stands here to be the first key of a row that is written back."""
    weight: (
        Annotated[float, Field(ge=0)] | Annotated[list[list[float]], Field(min_length=1), AfterValidator(_rising)]
    ) = 1.0
    """A number, or [step, weight] points: linear between them, constant before the first and after the last."""


class _Predicting(_Loss):
    snr_gamma: Above | None = None
    """Min-SNR weighting of timesteps with this gamma; left out, all weigh the same."""


class TaskLoss(_Predicting):
    """How well the student tells the noise (or v) in a noisy latent."""

    kind: Literal["task"]
    """Against the noise that was added, no teacher needed."""


class OutputLoss(_Predicting):
    """How near the student's output is to the teacher's."""

    kind: Literal["output"]
    """Between the two UNets' predictions."""


class FeatureLoss(_Loss):
    """How near the student's inner features are to the teacher's."""

    kind: Literal["features"]
    """Between the outputs of nodes that answer to each other, summed over them."""
    at: Patterns = ["down.?", "up.?"]
    """Addresses of the student; every down and up block if left out, as BK-SDM."""
    normalise: Literal["none", "teacher"] = "none"
    """`teacher` divides each node's loss by the mean square of the teacher's feature there, of the samples at hand: how
    many parts and processes share out a batch changes what is learnt."""


Loss = Annotated[TaskLoss | OutputLoss | FeatureLoss, Field(discriminator="kind")]


class Student(Strict):
    """One UNet that learns."""

    name: Called
    model: Annotated[Text, READ]
    """A model directory or a run directory: where it starts from."""
    freeze: Text | Annotated[list[Text], Field(min_length=1)] | None = None
    """What does not learn: addresses, modules outside the blocks (`conv_in`, `time_embedding`, ...), or
    `from DONOR`: all that `asdm assemble` took from there."""


class Generate(Strict):
    """Pictures that the teacher draws to be learnt from: once, into the cache's folder; gone on with if interrupted."""

    prompts: Annotated[Text, READ]
    """A text file with a prompt a line, or shards, of which only the captions are taken, as `train` names them."""
    per_prompt: Positive = 1
    """Draw each prompt so many times, every time with another seed."""
    steps: Positive = 25
    """UNet steps per picture."""
    sampler: Sampler = "own"
    """`own` is the model's."""
    guidance: Guidance = 3.0
    """Classifier-free guidance, 7.5 for most models but the bundled one; 1 is none."""
    seed: Seed = 0
    """Picture i is drawn with a seed made of this and i."""
    dtype: Dtype = "auto"
    """Number format to draw in; `auto` is float16 on GPUs."""


class Data(Strict):
    """What is learnt from: webdataset shards of (image, caption), pictures that the teacher draws, or both."""

    train: Annotated[Shards | None, READ] = None
    """Paths, globs, {000..009} ranges, URLs, or `pocket`: 594 drawings that ship with the package
    (`pocket-held-out`: 128 others). Left out, `pocket` where nothing is drawn."""
    generate: Generate | None = None
    """What the teacher draws."""
    held_out: Annotated[Shards | None, READ] = None
    """Shards for the losses on what is not learnt from."""
    resolution: Side | None = None
    """Height and width in pixels, after a centre crop; the model's own if left out."""
    flip: bool = False
    """Mirror half of the pictures."""
    cache: Literal["latents", "none"] = "latents"
    """`latents` encodes pictures and captions once and keeps the result; `none` encodes them at every step."""
    cache_folder: Folder = "runs/cache"
    """Where encoded samples are kept, below a folder named after all that made them."""
    faults: Literal["skip", "stop"] = "skip"
    """What becomes of damaged pictures, empty captions and broken shards: left out and counted, or an error."""


class RandomConditioning(Strict):
    """Other captions for noisy latents: what the teacher makes of a picture under a caption that is not its own is
    learnt too (Random Conditioning, Kim et al. 2025). Such pairs have no part in task losses."""

    probability: Share | Annotated[list[list[float]], Field(min_length=1), AfterValidator(partial(_rising, most=1.0))]
    """That a sample gets another caption: a number, or [timestep, probability] points, as for the weight of a loss."""
    captions: Annotated[Text | None, READ] = None
    """Where other captions come from: a text file with a caption a line, or shards as `train` names them; if left out,
    what is learnt from."""


class Optimizer(Strict):
    """How weights follow the gradient."""

    name: Text = "AdamW"
    """A class of torch.optim, or `package.module:Class` of an installed package."""
    lr: Above = 5e-5
    """Learning rate after the warm-up."""
    options: dict[Text, float | Integer | bool | list[float]] = {"weight_decay": 0.01}
    """Further arguments of the class, by their own names."""
    schedule: Literal["constant", "linear", "cosine", "polynomial"] = "constant"
    """What becomes of the learning rate after the warm-up; all but `constant` end near 0 at the last step."""
    warmup: Whole = 0
    """Steps in which the learning rate rises from 0."""

    def misfits(self) -> Iterator[Misfit]:
        if "lr" in self.options:
            yield ("options", "lr"), "stands beside 'options', as `lr`; write it there"


class Ema(Strict):
    """The running mean of the weights, which is what the written model gets."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Its memory: 0.9999 looks back some 10,000 steps. The first steps look back less: (1 + step) / (10 + step)."""
    after: Whole = 0
    """Steps before it begins; until then it is the weights."""


class Validation(Strict):
    """A look at the students while they learn."""

    every: Positive = 500
    """Steps between two looks; there is one more at the end."""
    prompts: Annotated[list[Text], Field(max_length=64), Distinct] = []
    """What to draw each time, with the same noise; none draws nothing."""
    steps: Positive = 25
    """UNet steps per picture."""
    guidance: Guidance = 3.0
    """Classifier-free guidance; 1 is none."""


class DistillRecipe(Recipe):
    """Train UNets against the original: task, output and feature losses."""

    verb: Annotated[Literal["distill"], VERB]
    teacher: Annotated[Text, READ]
    """A model directory, a run directory, `pocket`, or `none`: then students learn from the task loss alone."""
    students: Annotated[list[Student], Field(min_length=1), DistinctlyNamed]
    """Who learns, from the same samples and the same teacher forwards."""
    data: Data = Data()
    """What is learnt from."""
    losses: Annotated[list[Loss], Field(min_length=1)] = [
        TaskLoss(kind="task"),
        OutputLoss(kind="output"),
        FeatureLoss(kind="features"),
    ]
    """Rows of a weighted sum; left out, the three of BK-SDM with weight 1 each."""
    steps: Positive
    """Optimizer steps."""
    batch: Positive = 64
    """Samples per step, over all processes and accumulated parts."""
    accumulate: Positive = 1
    """Parts that a process's samples of a step are computed in, one after the other; more take less memory."""
    text_dropout: Share = 0.1
    """Share of captions replaced by the empty one, which guidance needs."""
    random_conditioning: RandomConditioning | None = None
    """Also learn from pictures under captions of others."""
    optimizer: Optimizer = Optimizer()
    """How weights follow the gradient."""
    clip: Above | Literal["none"] = 1.0
    """Longest gradient; longer ones are shortened to it. `none`: never."""
    ema: Ema | Literal["none"] = Ema()
    """The running mean of the weights. `none`: the model gets the weights of the last step."""
    precision: Dtype = "auto"
    """Number format of forward and backward passes; weights learn in float32. `auto` is bfloat16 where that is fast."""
    device: Text = "auto"
    """`auto` (a GPU if there is one), `cpu` or `cuda`."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, a third more work."""
    compile: bool = False
    """torch.compile teacher and students; on a GPU only, because compiled for a CPU they would get wrong gradients."""
    seed: Seed = 0
    """Order of samples, noise, timesteps and dropped captions come from this and the step alone."""
    checkpoint: Positive = 500
    """Steps between two checkpoints."""
    keep: Positive = 2
    """Checkpoints kept."""
    validation: Validation = Validation()
    """A look at the students while they learn."""
    trackers: Annotated[list[Literal["tensorboard", "wandb", "aim", "comet_ml", "mlflow"]], Distinct] = []
    """Also report to these, through accelerate."""

    EXAMPLE = """\
verb: distill
teacher: pocket
students:
  - {name: base, model: runs/prune-pocket-base}
  - {name: sides, model: runs/assemble-pocket-1122, freeze: from original}
data: {train: pocket, held_out: pocket-held-out}
losses:
  - {kind: task, snr_gamma: 5.0}
  - {kind: output, weight: [[0, 0.5], [1000, 1.0]]}
  - {kind: features, at: ["up.?"], normalise: teacher}
steps: 2000
optimizer: {lr: 1.0e-3, schedule: cosine, warmup: 50}
out: runs/distilled
"""

    def subjects(self) -> list[str]:
        return [student.model for student in self.students]

    def written(self) -> list[str]:
        """One alone is the run's own model; each of several has a folder."""
        return [""] if len(self.students) == 1 else [f"students/{student.name}" for student in self.students]

    def misfits(self) -> Iterator[Misfit]:
        given = "losses" in self.model_fields_set
        for index, row in enumerate(self.losses if self.teacher == "none" and given else ()):
            if row.kind != "task":
                what = f"'{row.kind}' compares with a teacher, and there is none; leave it out"
                yield ("losses", index, "kind"), what
        if self.teacher == "none" and not given:
            yield ("teacher",), "without a teacher, `losses` must be given: [{kind: task}]"
        if self.teacher == "none" and self.data.generate:
            yield ("data", "generate"), "is drawn by the teacher, and there is none"
        if self.random_conditioning and all(row.kind == "task" for row in self.losses):
            what = "is learnt from a teacher alone; add a row `output` or `features` to `losses`"
            yield ("random_conditioning",), what
        if self.optimizer.warmup >= self.steps:
            what = f"{self.optimizer.warmup} steps of warm-up are not fewer than the {self.steps} of all"
            yield ("optimizer", "warmup"), what
        if self.batch % self.accumulate:
            yield ("accumulate",), f"{self.batch} samples cannot be divided into {self.accumulate} parts"


# assemble -------------------------------------------------------------------------------------------------------------

NONE = "none"
"""In the place of a donor: no mid block."""
BLOCK = re.compile(r"mid|(down|up)\.\d")
LAYER = re.compile(r"mid\.\d+(\.attn\.\S+)?|(down|up)\.\d+\.(\d+(\.attn\.\S+)?|sampler)")


def _said(mid: Any) -> Any:
    """`mid: null` says that there is none; a `mid` that is left out says nothing."""
    return NONE if mid is None else mid


Mid = Annotated[Text, BeforeValidator(_said, json_schema_input_type=Text | None)]


class Budget(Strict):
    """Upper bounds of what a combination may cost."""

    parameters_m: Above | None = None
    """Millions of parameters of the UNet."""
    macs_g: Above | None = None
    """Billions of multiply-accumulates of one UNet call on one picture, attention's matmuls included."""
    latency_ratio: Above | None = None
    """Time of a UNet call as a share of the first donor's, measured side by side."""


class Combination(Strict):
    """A UNet of whole levels."""

    name: Name | None = None
    """What tables and plots call it, and its folder; made of the donors' first letters if left out."""
    levels: Annotated[list[Text], Field(min_length=1)]
    """The donor of each level, from fine to coarse."""
    mid: Mid
    """The donor of the mid block, or `none`."""


class Explore(Pictures):
    """Many combinations side by side: what they cost, and how near their pictures are to the first donor's."""

    combinations: Literal["all"] | Annotated[list[Combination], Field(min_length=1), DistinctlyNamed]
    """A list, or `all`: every donor for every level and for the mid block, and no mid block."""
    budget: Budget | None = None
    """Combinations above one of its bounds are left out; `all` needs one."""
    draw: Positive | None = None
    """Draw, and write, so many alone: those whose parts err least, each alone in the place of the first donor's."""
    limit: Positive = 16
    """Use the first so many prompts only."""
    metrics: Metrics = ["psnr", "ssim"]
    """The first one ranks. psnr, ssim and perceptual compare with the first donor's pictures; kid, clip_score, ... as
    in `asdm eval`."""
    repeats: Positive = 10
    """Timed rounds; every round makes one UNet call with everybody, in turn."""
    warmups: Positive = 2
    """Rounds before the timed ones, not counted."""

    def misfits(self) -> Iterator[Misfit]:
        if self.combinations == "all" and not (self.budget and self.budget.model_dump(exclude_none=True)):
            yield ("budget",), "must be given for 'all': parameters_m, macs_g or latency_ratio"


class AssembleRecipe(Recipe):
    """Put a UNet together from levels, blocks or layers of several."""

    verb: Annotated[Literal["assemble"], VERB]
    donors: Annotated[dict[Name, Text], Field(min_length=1), READ]
    """Name -> model directory, run directory or `pocket`. The first also gives what is not the UNet."""
    levels: Annotated[list[Text | None], Field(min_length=1)] | None = None
    """The donor of each level (its down and its up block), from fine to coarse; null leaves a level to `blocks`."""
    mid: Annotated[Text | None, BeforeValidator(_said), Field(validate_default=False)] = None
    """The donor of the mid block, or `none` for a UNet without."""
    blocks: dict[Text, Text | Annotated[list[Text], Field(min_length=1)]] = {}
    """Block of the result -> donor, or a list of `donor/layer`, a resampler last: `[base/up.3.0, original/up.3.2]`.
    `original/up.0.1.attn.[0-5]` is that layer with these blocks of its transformer's depth."""
    ends: Text | None = None
    """The donor of conv_in, conv_norm_out and conv_out; that of level 0 if left out."""
    embeddings: Text | None = None
    """The donor of time_embedding and its like; that of the mid block if left out, or of the deepest level."""
    explore: Explore | None = None
    """Instead of `levels`, `mid` and `blocks`: many combinations, ranked."""

    EXAMPLE = """\
verb: assemble
donors: {original: pocket, base: runs/prune-pocket-base}
levels: [base, base, original, original]
mid: original
out: runs/assembled
"""

    def written(self) -> list[str] | None:
        return None if self.explore else [""]

    @property
    def depth(self) -> int:
        """How many levels the result has."""
        indices = [int(name.split(".")[1]) for name in self.blocks if name != "mid"]
        return max([len(self.levels or []), *(index + 1 for index in indices)])

    def misfits(self) -> Iterator[Misfit]:
        strangers = [*self._strangers()]
        yield from strangers
        if self.explore:
            for key in ("levels", "mid", "blocks"):
                if getattr(self, key):
                    yield (key,), "does not go with 'explore', which names its own combinations"
        elif not strangers:
            yield from self._uncovered()

    def _strangers(self) -> Iterator[Misfit]:
        """Names of no donor, and places that hold none."""
        known = list(self.donors)
        if NONE in known:
            yield ("donors", NONE), f"'{NONE}' stands for no donor; choose another name"
        named: dict[Inner, str | None] = {(key,): getattr(self, key) for key in ("mid", "ends", "embeddings")}
        named |= {("levels", index): name for index, name in enumerate(self.levels or [])}
        listed = self.explore.combinations if self.explore and self.explore.combinations != "all" else []
        for index, each in enumerate(listed):
            here = ("explore", "combinations", index)
            named[(*here, "mid")] = each.mid
            named |= {(*here, "levels", level): name for level, name in enumerate(each.levels)}
        for block, source in self.blocks.items():
            if not BLOCK.fullmatch(block):
                yield ("blocks", block), "is no block; blocks are down.0, down.1, ..., mid, up.0, up.1, ..."
            if isinstance(source, str):
                named["blocks", block] = source
            for index, text in enumerate(source if isinstance(source, list) else ()):
                donor, slash, address = text.partition("/")
                if slash and LAYER.fullmatch(address):
                    named["blocks", block, index] = donor
                else:
                    what = f"must be donor/layer, as in {known[0]}/up.0.1 or {known[0]}/up.0.sampler, got '{text}'"
                    yield ("blocks", block, index), what
        for way, name in named.items():
            if name not in (None, *known) and not (way[-1] == "mid" and name == NONE and way[0] != "blocks"):
                hint = did_you_mean(name, known)
                yield way, f"no donor is called {got(name)}{hint}; there are {', '.join(known)}"

    def _uncovered(self) -> Iterator[Misfit]:
        """Blocks that nothing gives, and blocks that are given twice."""
        if self.levels is None and not self.blocks:
            yield ("levels",), "must be given, or 'blocks' or 'explore'"
            return
        last, levels = self.depth - 1, self.levels or []
        for level in range(self.depth):
            by_level = level < len(levels) and levels[level] is not None
            for block in (f"down.{level}", f"up.{last - level}"):
                if by_level and block in self.blocks:
                    what = f"levels[{level}] gives it already; null there would leave it to 'blocks'"
                    yield ("blocks", block), what
                if not by_level and block not in self.blocks:
                    at: Inner = ("levels", level) if level < len(levels) else ("blocks" if self.blocks else "levels",)
                    yield at, f"nothing gives {block}; a UNet of {self.depth} levels has it"
        if self.mid is not None and "mid" in self.blocks:
            yield ("blocks", "mid"), "'mid' gives it already"
        if self.mid is None and "mid" not in self.blocks:
            yield ("mid",), f"must be given: a donor, or {NONE}"


# condconv-expand ------------------------------------------------------------------------------------------------------

COMPRESSED = "compressed"


class Expand(Strict):
    """Which convolutions become banks of experts."""

    experts: Annotated[int, Field(ge=2, le=64)] = 4
    """Kernels per convolution. Each serves an equal stretch of the timesteps, so a call costs what it did, whatever
    their number. All begin as copies of the kernel: the model draws what it drew before."""
    at: Patterns = COMPRESSED
    """Addresses; of what they name, the 3x3 convolutions of the resnets. `compressed`: the blocks that have fewer
    layers than the donor's."""
    donor: Annotated[Text | None, READ] = None
    """The model that was compressed: tells which blocks are."""

    def misfits(self) -> Iterator[Misfit]:
        if self.donor is None and self.at == COMPRESSED:
            yield ("donor",), "must be given, or 'at': which blocks are compressed is seen beside a donor"
        if self.donor is not None and self.at != COMPRESSED:
            yield ("donor",), f"tells which blocks are {COMPRESSED}, and 'at' names others; give one of the two"


class Fold(Prompted):
    """A model with experts becomes a plain one again: each kernel the mean of its experts. What that costs is seen on
    pictures, where the model draws and its experts are not equal."""

    limit: Positive = 16
    """Use the first so many prompts only."""


class CondConvRecipe(OnDevice, Recipe):
    """Expert convolutions (ME-CondConv): more capacity at the same speed. One of `expand` and `fold`.

    `device` and `dtype` are of the pictures that are drawn to see what folding costs.
    """

    verb: Annotated[Literal["condconv-expand"], VERB]
    MODULE = "expand"
    model: Model
    expand: Expand | None = None
    """Make convolutions banks of experts."""
    fold: Fold | None = None
    """Make a model with experts a plain one, which stock diffusers loads."""

    EXAMPLE = """\
verb: condconv-expand
model: runs/distilled
expand: {experts: 4, donor: pocket}
out: runs/expanded
"""

    def misfits(self) -> Iterator[Misfit]:
        if self.expand is None and self.fold is None:
            yield ("expand",), "must be given, or 'fold'"
        if self.expand is not None and self.fold is not None:
            yield ("fold",), "either 'expand' or 'fold', not both"


# inherit --------------------------------------------------------------------------------------------------------------


def _beside_plans(patches: list[PatchSpec]) -> list[PatchSpec]:
    """Refuses those for which there is a key, or a verb."""
    ways = {"feature-cache": "is what 'plan' says", "unet-schedule": "is what `asdm switch` writes"}
    kinds = [(index, spec.kind) for index, spec in enumerate(patches) if spec.kind in ways]
    if kinds:
        raise Misplaced(((index, "kind"), f"{kind} {ways[kind]}") for index, kind in kinds)
    return patches


BesidePlans = Annotated[list[AnyPatch], AfterValidator(_beside_plans)]


class Candidate(Strict):
    """One plan of a sweep."""

    name: Called
    plan: InheritPlan | None = None
    """Rules, or a preset."""
    patches: BesidePlans = []
    """What else changes how it draws, by `kind`."""
    steps: Positive | None = None
    """UNet steps, where they differ from the others'."""
    series: Annotated[Text, _free_series(("plain", "fewer steps", "output alone", "DeepCache"))] = "asdm"
    """Plans of one series are joined by a line in the plots; `asdm` is the series that the others are compared with."""

    def misfits(self) -> Iterator[Misfit]:
        if self.plan is None and not self.patches:
            yield ("plan",), "must be given, or 'patches'"


class DeepCachePackage(Strict):
    """The DeepCache package itself (extra `peers`), as its users set it up: every combination of these."""

    intervals: Annotated[list[Annotated[int, Field(ge=2, le=MOST)]], Field(min_length=1), Distinct]
    """Its cache_interval."""
    branches: Annotated[list[Whole], Field(min_length=1), Distinct] = [0]
    """Its cache_branch_id."""


class Level(Strict):
    """Nodes of a product, as in a rule."""

    nodes: Patterns
    """Addresses, named sets, or a list."""
    cache: Cached = "output"
    """What is handed on: a node's output, or the branch that it adds to its input."""


class Product(Strict):
    """Every combination of level, mode and interval: a table of the three."""

    levels: Annotated[dict[Name, Level], Field(min_length=1)]
    """Name -> nodes; usually one of blocks, one of layers and one of units."""
    modes: Annotated[list[CountedMode], Field(min_length=1), Distinct] = ["uniform"]
    """Modes of a schedule that know an interval."""
    intervals: Annotated[list[Positive], Field(min_length=1), Distinct] = [2, 3, 5]
    """Mean distances between key steps."""
    order: Order = 0
    """0 hands on the last value; 1 and 2 forecast it."""
    axis: Axis = "step"
    """What a forecast counts in."""

    def misfits(self) -> Iterator[Misfit]:
        if self.axis != "step" and not self.order:
            yield ("axis",), COUNTS_NOTHING


class Front(Strict):
    """A second look at what is fastest for its fidelity."""

    limit: Positive
    """Use the first so many prompts."""
    per_prompt: Positive = 1
    """Draw each prompt so many times, every time with another seed."""
    metrics: Metrics = ["psnr", "kid"]
    """What to measure of them."""


TARGET = re.compile(r"([0-9]*\.?[0-9]+)(x|dB)")


def _of_text(value: Any) -> Any:
    """`2x` and `35dB`, as they are typed."""
    if isinstance(value, str) and (typed := TARGET.fullmatch(value)):
        return {"speedup" if typed[2] == "x" else "psnr_db": float(typed[1])}
    if isinstance(value, str):
        raise ValueError("write 2x for twice as fast, or 35dB for pictures that are so near")
    return value


class Target(Strict):
    """What the written model has to reach; one of the three."""

    speedup: Annotated[float, Field(gt=1, le=100)] | None = None
    """So many times as fast, an image; `2x` in short."""
    psnr_db: Annotated[float, Field(gt=0, lt=100)] | None = None
    """Pictures as near to the plain ones, on average; `35dB` in short."""
    perceptual: Annotated[float, Field(gt=0, lt=1)] | None = None
    """A perceptual distance of at most so much, on average."""

    def misfits(self) -> Iterator[Misfit]:
        if sum(each is not None for each in (self.speedup, self.psnr_db, self.perceptual)) != 1:
            yield (), "must be one of speedup, psnr_db and perceptual; or in short, such as 2x or 35dB"

    @property
    def metric(self) -> str:
        """What says how near pictures are."""
        return "psnr" if self.perceptual is None else "perceptual"

    @property
    def words(self) -> str:
        if self.speedup is not None:
            return f"{self.speedup:g} times as fast"
        if self.psnr_db is not None:
            return f"{self.psnr_db:g} dB"
        return f"a perceptual distance of {self.perceptual:g}"


class InheritRecipe(Adapted, Comparing):
    """No training: compute less at some steps and inherit features from earlier ones."""

    verb: Annotated[Literal["inherit"], VERB]
    model: Model
    plan: InheritPlan | None = None
    """The plan that the written model carries; without it and `patches`, a sweep only compares."""
    patches: BesidePlans = []
    """What else the written model carries, by `kind`; with a plan or alone."""
    sweep: Annotated[list[Candidate], DistinctlyNamed] = []
    """Plans to compare on the same prompts and seeds, for the front of speed and fidelity."""
    product: Product | None = None
    """More of a sweep: combinations of nodes, modes and intervals."""
    deepcache: DeepCachePackage | None = None
    """Let the DeepCache package draw too, for comparison."""
    front: Front | None = None
    """Draw more pictures with the front alone: of each series what is fastest for the first of the `metrics`."""
    target: Annotated[Target, BeforeValidator(_of_text, json_schema_input_type=Text | Target)] | None = None
    """Find the plan instead, or fewer steps where no plan is better: the nearest pictures at a speed-up, or the fastest
    so near. It is measured beside fewer steps at its speed, and a straight line through the output at its key steps."""
    minutes: Annotated[float, Field(gt=0, le=MOST)] | None = None
    """After so many minutes (10 if left out) the search for a target begins with nothing new."""
    calibration: Positive | None = None
    """For `target`, `mode: calibrated` and `extrapolate: fitted`: prompts that the plain model draws to work them out
    (8 if left out), those that follow the first `limit` and with seeds of their own, or the last ones where there are
    not as many."""

    EXAMPLE = """\
verb: inherit
model: pocket
plan:
  rules:
    - {nodes: up.3, schedule: {mode: early, interval: 3}, order: 1}
sweep:
  - {name: deepcache, plan: {preset: deepcache, interval: 3}}
sampler: ddim
out: runs/inherited
"""

    @property
    def module(self) -> str:
        return super().module if self.measure else "unmeasured"

    def written(self) -> list[str]:
        return [""] if self.plan or self.patches or self.target else []

    def misfits(self) -> Iterator[Misfit]:
        yield from self.unmeasured("sweep", "product", "deepcache", "front", "target")
        if self.plan and self.target:
            yield ("target",), "finds the plan: leave 'plan' out, or this"
        if self.patches and self.target:
            yield ("target",), "finds a plan alone: leave 'patches' out, or this"
        if self.target and self.target.speedup is None and self.target.metric not in self.metrics:
            yield ("metrics",), f"must have '{self.target.metric}' among them: the target is told by it"
        if self.minutes is not None and not self.target:
            yield ("minutes",), "goes with 'target'"
        plans = [plan.resolved() for plan in (self.plan, *(each.plan for each in self.sweep)) if plan]
        if self.calibration is not None and not (self.target or any(plan.uncalibrated for plan in plans)):
            yield ("calibration",), "goes with 'target', or plans that leave something to a calibration"
        if self.plan and self.plan.resolved().uncalibrated and not self.measure:
            yield ("plan",), "has to be calibrated, and 'measure' is false"
        if not (self.plan or self.patches or self.sweep or self.product or self.target):
            yield ("plan",), "must be given, or 'target', 'patches', 'sweep' or 'product'"


# switch ---------------------------------------------------------------------------------------------------------------

LINES = ("plain", "fewer steps", "one UNet", "compressed first", "original first", "searched")
"""Series that the plots draw themselves."""


class OneUNet(Strict):
    """One of the UNets."""

    model: Model
    plan: InheritPlan | None = None
    """What it inherits from call to call while it serves; left out, the plan that the model carries, if it does."""


class OtherSchedule(Switching):
    """One schedule of a sweep."""

    name: Called
    series: Annotated[Text, _free_series(LINES)] = "by hand"
    """Schedules of one series are joined by a line in the plots."""


class Ratios(Strict):
    """Fixed schedules in two parts: the first of these UNets with each other one, in both orders."""

    unets: Annotated[list[Name], Field(min_length=2), Distinct]
    """Names from `unets` of the recipe."""
    shares: Annotated[list[Share], Field(min_length=1), Distinct] = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """Of the calls, what the other UNet serves: at the beginning, and in another schedule at the end. 0 and 1 are
    one UNet alone."""


class Search(Strict):
    """Find the best schedule under a budget: calibrate, search, and draw with what was found to make sure."""

    budgets: Annotated[list[Fraction], Field(min_length=1), Distinct] = [0.9, 0.75, 0.6]
    """Shares of the first UNet's time in a generation. Without `parts`, the schedule of the first budget is written."""
    prompts: Positive = 8
    """To calibrate and to make sure on, with seeds of their own: those that follow the first `limit`, so that others
    are measured, or the last ones where there are not as many."""
    nulls: bool = True
    """Whether a call may be skipped: the last predictions again (`reuse`), or the line through them (`extrapolate`)."""


class SwitchRecipe(Adapted, Comparing):
    """Several UNets in one generation, and who serves which part of it."""

    verb: Annotated[Literal["switch"], VERB]
    unets: Annotated[dict[Name, OneUNet], Field(min_length=1)]
    """Name -> UNet. The first also gives VAE, text encoder and scheduler; it is the one that the others are compared
    with, and that stock diffusers draws with."""
    by: By = "timestep"
    """What `until` of the parts is: the timestep (falling, from about 1000), the log of the signal-to-noise ratio
    (rising), the fraction of the steps that are done (0 to 1), or the number of UNet calls that are done."""
    parts: Annotated[list[Segment], Field(min_length=1)] | None = None
    """Who serves what, from the beginning in pure noise: the schedule that the written model carries. Left out, it
    is that of a `search`; without one, schedules are only compared."""
    offload: bool = False
    """UNets that serve no call wait in the CPU's memory until it is their turn."""
    sweep: Annotated[list[OtherSchedule], DistinctlyNamed] = []
    """Schedules to compare on the same prompts and seeds."""
    ratios: Ratios | None = None
    """More of them: the generation in two parts."""
    search: Search | None = None
    """Find schedules."""

    EXAMPLE = """\
verb: switch
unets:
  original: {model: pocket}
  base: {model: runs/distilled}
parts: [{unet: base, until: 700}, {unet: original}]
out: runs/switched
"""

    def written(self) -> list[str]:
        return [""] if self.parts or self.search else []

    @property
    def rules(self) -> Switching | None:
        """The recipe's own schedule."""
        return None if self.parts is None else Switching(by=self.by, parts=self.parts)

    def misfits(self) -> Iterator[Misfit]:
        known = list(self.unets)
        yield from self.unmeasured("sweep", "ratios", "search")
        yield from ((("unets", name), reserved(name)) for name in known if name in NULLS)
        if self.parts is not None:
            yield from misordered(self.by, self.parts)
            yield from unknown_unets(self.parts, known)
        elif self.by != "timestep":
            yield ("by",), "goes with 'parts', of which there are none; add them, or leave it out"
        for index, each in enumerate(self.sweep):
            yield from unknown_unets(each.parts, known, ("sweep", index, "parts"))
        for index, name in enumerate(self.ratios.unets if self.ratios else []):
            if name not in known:
                yield ("ratios", "unets", index), f"no UNet is called {got(name)}{did_you_mean(name, known)}"
        if self.search is not None and len(known) == 1 and not self.search.nulls:
            yield ("search", "nulls"), "must be true where there is one UNet only: else nothing is to choose"
        if self.parts is None and not self.sweep and self.ratios is None and self.search is None:
            yield ("parts",), "must be given, or 'sweep', 'ratios' or 'search'"


# bench ----------------------------------------------------------------------------------------------------------------


class Contestant(Adapted, Strict):
    """One set-up of a comparison: a model, what is in force on it, and how it draws. One of `model` and `random`."""

    name: Called
    model: Annotated[Text | None, READ] = None
    """A model or run directory, `ORG/NAME` of the hub, a `.safetensors` file, or `pocket`."""
    random: Annotated[Text | None, READ] = None
    """`sd15`, `sd21`, `sdxl` or a UNet config file: that shape with random weights."""
    remove: Patterns | None = None
    """With `random`: remove these addresses first."""
    expand: Expand | None = None
    """With `random`: make convolutions banks of experts, as `asdm condconv-expand` does; `donor` is a shape here."""
    plan: InheritPlan | None = None
    """A plan to draw by; left out, the one that the model carries, if it does."""
    unets: Annotated[dict[Name, Text], READ] = {}
    """With `parts`: models whose UNets take turns with the model's own, which goes by the contestant's `name`."""
    by: By = "timestep"
    """With `parts`: what their `until` is, as in `asdm switch`."""
    parts: Annotated[list[Segment], Field(min_length=1)] | None = None
    """Who serves what, as in `asdm switch`."""
    offload: bool = False
    """With `parts`: UNets that serve no call wait in the CPU's memory until it is their turn."""
    patches: list[AnyPatch] = []
    """What else changes how it draws, by `kind`."""
    sampler: Sampler | None = None
    """Its sampler, where it differs from the others'."""
    steps: Positive | None = None
    """UNet steps of this contestant's images, where they differ from the others'."""
    guidance: Guidance | None = None
    """Its guidance scale, where it differs from the others'."""
    series: Text | None = None
    """Contestants of one series are joined by a line in the plots."""

    def misfits(self) -> Iterator[Misfit]:
        if self.model is None and self.random is None:
            yield (), "needs one of 'model' and 'random'"
        if self.model is not None and self.random is not None:
            yield ("random",), "either 'model' or 'random', not both"
            return
        if self.model is None and self.adapters:
            yield ("adapters",), "goes with 'model' only"
        first = {"remove": "prune the model first: asdm prune", "expand": "expand it first: asdm condconv-expand"}
        for key in first:
            if self.model is not None and getattr(self, key) is not None:
                yield (key,), f"goes with 'random' only; {first[key]}"
        if self.parts is None:
            alone = {"by": self.by != "timestep", "offload": self.offload, "unets": bool(self.unets)}
            yield from (((key,), "goes with 'parts' only: who serves what?") for key, given in alone.items() if given)
        else:
            yield from misordered(self.by, self.parts)
            yield from unknown_unets(self.parts, [self.name, *self.unets])
            if self.model is None:
                yield ("parts",), "goes with 'model' only"


class BenchRecipe(Sampling, OnDevice, Recipe):
    """What models really cost, measured side by side."""

    verb: Annotated[Literal["bench"], VERB]
    MODULE = "compare"
    models: Annotated[list[Contestant], Field(min_length=1), DistinctlyNamed]
    """The first is what the others are compared with."""
    batches: Annotated[list[Positive], Field(min_length=1), Distinct] = [1, 4]
    """Images per UNet call at which throughput is measured."""
    repeats: Positive = 10
    """Timed rounds; every round runs every contestant once, in turn."""
    warmups: Positive = 2
    """Rounds before the timed ones, not counted."""
    images: bool = True
    """Also time whole images (contestants with a whole pipeline only)."""
    size: Side | None = None
    """Height and width of the image in pixels; the model's own if left out."""

    EXAMPLE = """\
verb: bench
models:
  - {name: original, model: pocket}
  - {name: every 2nd call, model: pocket, plan: {preset: deepcache, interval: 2}}
  - {name: distilled, model: runs/distilled}
out: runs/cost
"""

    def written(self) -> list[str]:
        return []

    def misfits(self) -> Iterator[Misfit]:
        if self.inputs is not None and not self.images:
            yield ("inputs",), "is only there to draw from, and 'images' is false"


# eval -----------------------------------------------------------------------------------------------------------------


class EvalRecipe(Drawing):
    """What models' pictures are worth."""

    verb: Annotated[Literal["eval"], VERB]
    MODULE = "compare"
    models: Annotated[list[Contestant], Field(min_length=1), DistinctlyNamed]
    """Who takes part; order is the order of the tables."""
    fewer_steps: Annotated[list[Positive], Distinct] = []
    """Steps at which the first one draws too: what a user would do instead."""
    repeats: Whole = 0
    """Timed rounds, each of one image with everybody, in turn; 0 times nothing."""
    warmups: Positive = 1
    """Rounds before the timed ones, not counted."""
    reference: Text | None = None
    """The contestant that psnr, ssim, perceptual and fd_original compare with; the first if left out."""

    EXAMPLE = """\
verb: eval
models:
  - {name: original, model: pocket}
  - {name: base, model: runs/distilled, steps: 20}
limit: 128
metrics: [kid, clip_score, psnr]
out: runs/worth
"""

    def written(self) -> list[str]:
        return []

    def misfits(self) -> Iterator[Misfit]:
        names = [model.name for model in self.models]
        if self.reference is not None and self.reference not in names:
            yield ("reference",), f"no contestant is called {got(self.reference)}; there are {', '.join(names)}"
        if not self.repeats and self.warmups != type(self).model_fields["warmups"].default:
            yield ("warmups",), "are of timed rounds, and 'repeats' is 0: leave it out, or give 'repeats'"
        for index, model in enumerate(self.models):
            if model.random is not None:
                yield ("models", index, "random"), "what random weights draw is worth nothing; asdm bench takes them"


# run ------------------------------------------------------------------------------------------------------------------

Word = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]


class RunRecipe(Recipe):
    """Several recipes in a row, each made from what earlier ones wrote."""

    verb: Annotated[Literal["run"], VERB]
    title: Text | None = None
    """What the report is called."""
    inputs: dict[Word, str | int | float | bool | list[str | int | float] | None] = {}
    """Name -> value, which stages use as `$name`: what is likely to be changed, said once."""
    stages: Annotated[dict[Word, dict[Text, Any]], Field(min_length=1)]
    """Name -> the recipe of a verb, without `out`. `$name` stands for an input, or for the directory that an earlier
    stage wrote, as in `model: $prune` or `model: $distill/students/base`. `$$` begins a text with a $."""
    lead: Annotated[list[Word], Distinct] = []
    """Stages whose set-ups and images open the report."""
    beside: Annotated[list[Literal["bk-sdm", "deepcache"]], Distinct] = []
    """Published figures to set beside those that were measured."""
    seeds: dict[Name, Annotated[list[Name], Field(min_length=2, max_length=5), Distinct]] = {}
    """Name -> contestants of `bench` and `eval` stages that are one thing trained with several seeds: their mean stands
    in the report, with an interval over prompts and seeds."""
    kept: Folder | None = None
    """Where stages are kept, each under its name and a digest of all that it is made from; `stages` beside `out` if
    left out. Runs that name one place share their stages."""

    EXAMPLE = """\
verb: run
inputs: {model: pocket}
stages:
  base: {verb: prune, model: $model, remove: base}
  taught:
    verb: distill
    teacher: $model
    students: [{name: base, model: $base}]
    steps: 400
  worth:
    verb: eval
    models: [{name: original, model: $model}, {name: base, model: $taught}]
out: runs/path
"""

    @property
    def contestants(self) -> list[dict[str, Any]]:
        """Of all stages that compare models: their rows, as far as they have names."""
        models = [stage.get("models") for stage in self.stages.values()]
        rows = [row for each in models if isinstance(each, list) for row in each if isinstance(row, dict)]
        return [row for row in rows if isinstance(row.get("name"), str)]


RECIPES: tuple[type[Recipe], ...] = (
    PruneRecipe,
    DistillRecipe,
    AssembleRecipe,
    CondConvRecipe,
    InheritRecipe,
    SwitchRecipe,
    BenchRecipe,
    EvalRecipe,
    RunRecipe,
)
VERBS = {get_args(recipe.model_fields["verb"].annotation)[0]: recipe for recipe in RECIPES}
