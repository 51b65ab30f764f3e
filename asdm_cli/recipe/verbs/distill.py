"""The recipe of `asdm distill`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from asdm_cli.recipe.schema import (
    READ,
    Distinct,
    DistinctlyNamed,
    Guidance,
    Integer,
    Misplaced,
    Name,
    Out,
    Patterns,
    Positive,
    Seed,
    Side,
    Strict,
    Text,
    Whole,
)
from asdm_cli.recipe.verbs.drawing import Dtype

Share = Annotated[float, Field(ge=0, le=1)]
Above = Annotated[float, Field(gt=0)]


def _rising(points: list[list[float]]) -> list[list[float]]:
    faults: list[tuple[tuple[str | int, ...], str]] = []
    for index, point in enumerate(points):
        if len(point) != 2 or min(point) < 0:
            faults.append(((index,), "must be [step, weight], both from 0"))
        elif index and len(points[index - 1]) == 2 and point[0] <= points[index - 1][0]:
            faults.append(((index, 0), "steps must rise"))
    if faults:
        raise Misplaced(faults)
    return points


Weight = Annotated[float, Field(ge=0)] | Annotated[list[list[float]], Field(min_length=1), AfterValidator(_rising)]
"""A number, or [step, weight] points: linear between them, constant before the first and after the last."""


class TaskLoss(Strict):
    """How well the student tells the noise (or v) in a noisy latent."""

    kind: Literal["task"]
    """Against the noise that was added, no teacher needed."""
    weight: Weight = 1.0
    """A number, or [step, weight] points with straight lines between them."""
    snr_gamma: Above | None = None
    """Min-SNR weighting of timesteps with this gamma; left out, all weigh the same."""


class OutputLoss(Strict):
    """How near the student's output is to the teacher's."""

    kind: Literal["output"]
    """Between the two UNets' predictions."""
    weight: Weight = 1.0
    """A number, or [step, weight] points with straight lines between them."""
    snr_gamma: Above | None = None
    """Min-SNR weighting of timesteps with this gamma; left out, all weigh the same."""


class FeatureLoss(Strict):
    """How near the student's inner features are to the teacher's."""

    kind: Literal["features"]
    """Between the outputs of nodes that answer to each other, summed over them."""
    weight: Weight = 1.0
    """A number, or [step, weight] points with straight lines between them."""
    at: Patterns = ["down.?", "up.?"]
    """Addresses of the student; every down and up block if left out, as BK-SDM."""
    normalise: Literal["none", "teacher"] = "none"
    """`teacher` divides each node's loss by the mean square of the teacher's feature there."""


Loss = Annotated[TaskLoss | OutputLoss | FeatureLoss, Field(discriminator="kind")]


class Student(Strict):
    """One UNet that learns."""

    name: Name
    """What tables, plots and folders call it."""
    model: Annotated[Text, READ]
    """A model directory or a run directory: where it starts from."""
    freeze: Patterns | None = None
    """What does not learn: addresses, modules outside the blocks (`conv_in`, `time_embedding`, ...), or
    `from DONOR`: all that `asdm assemble` took from there."""


class Data(Strict):
    """What is learnt from: webdataset shards of (image, caption)."""

    train: Annotated[Text | Annotated[list[Text], Field(min_length=1)], READ] = "pocket"
    """Paths, globs, {000..009} ranges, URLs, or `pocket`: 594 drawings that ship with the package
    (`pocket-held-out`: 128 others)."""
    held_out: Annotated[Text | Annotated[list[Text], Field(min_length=1)] | None, READ] = None
    """Shards for the losses on what is not learnt from."""
    resolution: Side | None = None
    """Height and width in pixels, after a centre crop; the model's own if left out."""
    flip: bool = False
    """Mirror half of the pictures."""
    cache: Literal["latents", "none"] = "latents"
    """`latents` encodes pictures and captions once and keeps the result; `none` encodes them at every step."""
    cache_folder: Text = "runs/cache"
    """Where encoded samples are kept, below a folder named after all that made them."""
    faults: Literal["skip", "stop"] = "skip"
    """What becomes of damaged pictures, empty captions and broken shards: left out and counted, or an error."""


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


class DistillRecipe(Strict):
    """Train UNets against the original: task, output and feature losses."""

    verb: Literal["distill"]
    """The command that this recipe is for."""
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
    out: Out
    """The run directory to write."""

    @model_validator(mode="after")
    def _fits_together(self) -> DistillRecipe:
        """Gate 2: what needs a teacher, a warm-up that ends, and a batch that divides."""
        faults: list[tuple[tuple[str | int, ...], str]] = []
        if self.teacher == "none":
            faults += [
                (("losses", index, "kind"), f"'{row.kind}' compares with a teacher, and there is none; leave it out")
                for index, row in enumerate(self.losses)
                if row.kind != "task" and "losses" in self.model_fields_set
            ]
            if "losses" not in self.model_fields_set:
                faults.append((("teacher",), "without a teacher, `losses` must be given: [{kind: task}]"))
        if self.optimizer.warmup >= self.steps:
            what = f"{self.optimizer.warmup} steps of warm-up are not fewer than the {self.steps} of all"
            faults.append((("optimizer", "warmup"), what))
        if self.batch % self.accumulate:
            faults.append((("accumulate",), f"{self.batch} samples cannot be divided into {self.accumulate} parts"))
        if faults:
            raise Misplaced(faults)
        return self
