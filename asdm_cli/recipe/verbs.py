"""One recipe class per verb. Every key here changes what its verb does; a test holds us to it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from asdm_cli.recipe.plans import Carry, Coordinate, InheritPlan, Order
from asdm_cli.recipe.schedules import CountedMode
from asdm_cli.recipe.schema import (
    Distinct,
    DistinctlyNamed,
    Fraction,
    Misplaced,
    Name,
    Out,
    Patterns,
    Positive,
    Strict,
    Text,
)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Sampler = Literal["own", "ddim", "pndm", "euler", "heun", "dpm++2m", "unipc"]


class PruneRecipe(Strict):
    """Remove blocks or layers from a UNet."""

    verb: Literal["prune"]
    """The command that this recipe is for."""
    model: Text
    """A model directory, a run directory, or `pocket`."""
    remove: Patterns
    """A named set (base, small, tiny), an address pattern, or a list of them."""
    out: Out
    """The run directory to write."""


class Contestant(Strict):
    """One model of a comparison. Exactly one of `model` and `random`."""

    name: Name
    """What tables and plots call it."""
    model: Text | None = None
    """A model directory, a run directory, or `pocket`."""
    random: Text | None = None
    """`sd15`, `sd21`, `sdxl` or a UNet config file: that shape with random weights."""
    remove: Patterns | None = None
    """With `random`: remove these addresses first."""
    plan: InheritPlan | None = None
    """A plan to draw by; left out, the one that the model carries, if it does."""
    steps: Positive | None = None
    """UNet steps of this contestant's images, where it differs from the others'."""

    @model_validator(mode="after")
    def _one_source(self) -> Contestant:
        if self.model is None and self.random is None:
            raise ValueError("needs one of 'model' and 'random'")
        if self.model is not None and self.random is not None:
            raise Misplaced([(("random",), "either 'model' or 'random', not both")])
        if self.model is not None and self.remove is not None:
            raise Misplaced([(("remove",), "goes with 'random' only; prune the model first: asdm prune")])
        return self


class BenchRecipe(Strict):
    """What models really cost, measured side by side."""

    verb: Literal["bench"]
    """The command that this recipe is for."""
    models: Annotated[list[Contestant], Field(min_length=1), DistinctlyNamed]
    """The first is what the others are compared with."""
    device: Text = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, ..."""
    dtype: Dtype = "auto"
    """Number format of the weights; `auto` is float16 on a GPU and float32 on a CPU."""
    batches: Annotated[list[Positive], Field(min_length=1), Distinct] = [1, 4]
    """Images per UNet call at which throughput is measured."""
    repeats: Positive = 10
    """Timed rounds; every round runs every contestant once, in turn."""
    warmups: Positive = 2
    """Rounds before the timed ones, not counted."""
    images: bool = True
    """Also time whole images (contestants with a whole pipeline only)."""
    steps: Positive = 25
    """UNet steps of a whole image."""
    guidance: Annotated[float, Field(ge=1)] = 3.0
    """Classifier-free guidance of a whole image; 1 is none and halves the work."""
    sampler: Sampler = "own"
    """`own` is the one that each model came with."""
    size: Positive | None = None
    """Height and width of the image in pixels; the model's own if left out."""
    out: Out
    """The run directory to write."""


class EvalContestant(Strict):
    """One model of an evaluation."""

    name: Name
    """What tables and plots call it."""
    model: Text
    """A model directory, a run directory, or `pocket`."""
    steps: Positive | None = None
    """UNet steps of this contestant, where it differs from the others'."""
    guidance: Annotated[float, Field(ge=1)] | None = None
    """Guidance scale of this contestant, where it differs from the others'."""


Metric = Literal["kid", "fd", "is", "clip_score", "clip_retrieval", "psnr", "ssim", "perceptual"]


class Drawing(Strict):
    """What pictures depend on, and how they are looked at: the same for every verb that draws to compare."""

    verb: str
    """Stands here to be the first key of a recipe that is written back."""
    prompts: Text = "pocket"
    """A webdataset shard of (png, txt), a text file with a prompt a line, or `pocket`: its validation shard."""
    limit: Positive | None = None
    """Use the first so many prompts only."""
    metrics: Annotated[list[Metric], Field(min_length=1), Distinct] = ["kid", "clip_score"]
    """What to measure; psnr, ssim and perceptual compare with the pictures of the first, or the `reference`."""
    features: Literal["efficientnet_lite0", "clip", "inception"] = "efficientnet_lite0"
    """The network behind kid, fd and is. Only `inception` may be called FID."""
    device: Text = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, ..."""
    dtype: Dtype = "auto"
    """Number format of the weights; `auto` is float16 on a GPU and float32 on a CPU."""
    sampler: Sampler = "own"
    """`own` is the one that each model came with."""
    steps: Positive = 25
    """UNet steps per picture."""
    guidance: Annotated[float, Field(ge=1)] = 3.0
    """Classifier-free guidance; 1 is none and halves the work."""
    size: Positive | None = None
    """Height and width in pixels; the model's own if left out."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Prompt i is drawn with a seed made of this and i, whatever the batch or process."""
    batch: Positive = 16
    """Pictures drawn at a time; changes speed and memory, not the pictures."""
    bootstrap: Positive = 1000
    """Resamples behind each confidence interval."""
    confidence: Fraction = 0.95
    """Width of the confidence intervals."""
    grid: Positive = 8
    """How many prompts the report's picture grid shows."""
    out: Out
    """The run directory to write."""


class EvalRecipe(Drawing):
    """What models' pictures are worth."""

    verb: Literal["eval"]
    """The command that this recipe is for."""
    models: Annotated[list[EvalContestant], Field(min_length=1), DistinctlyNamed]
    """Who takes part; order is the order of the tables."""
    clip: Text = "own"
    """The CLIP behind clip_score: `own` (the first model's), or a directory."""
    reference: Text | None = None
    """The contestant that psnr, ssim and perceptual compare with; the first if left out."""

    @field_validator("reference")
    @classmethod
    def _reference_takes_part(cls, reference: str | None, info: ValidationInfo) -> str | None:
        """Gate 2. Silent where `models` itself is wrong: that is told at its own place."""
        names = [model.name for model in info.data.get("models", [])]
        if reference is not None and names and reference not in names:
            raise ValueError(f"no contestant is called '{reference}'; there are {', '.join(names)}")
        return reference


class Candidate(Strict):
    """One plan of a sweep."""

    name: Name
    """What tables and plots call it."""
    plan: InheritPlan
    """Rules, or a preset."""
    steps: Positive | None = None
    """UNet steps, where they differ from the others'."""
    series: Text = "asdm"
    """Plans of one series are joined by a line in the plots; `asdm` is the series that the others are compared with."""

    @field_validator("series")
    @classmethod
    def _free(cls, series: str) -> str:
        if series in ("plain", "fewer steps", "DeepCache"):
            raise ValueError(f"'{series}' is drawn by what it is named after; choose another name")
        return series


class DeepCachePackage(Strict):
    """The DeepCache package itself (extra `peers`), as its users set it up: every combination of these."""

    intervals: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1), Distinct]
    """Its cache_interval."""
    branches: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), Distinct] = [0]
    """Its cache_branch_id."""


class Level(Strict):
    """Nodes of a product, as in a rule."""

    nodes: Patterns
    """Addresses, named sets, or a list."""
    carry: Carry = "output"
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
    coordinate: Coordinate = "step"
    """What a forecast counts in."""


class InheritRecipe(Drawing):
    """No training: compute less at some steps and inherit features from earlier ones."""

    verb: Literal["inherit"]
    """The command that this recipe is for."""
    model: Text
    """A model directory, a run directory, or `pocket`."""
    plan: InheritPlan | None = None
    """The plan that the written model carries; left out, a sweep only compares."""
    sweep: Annotated[list[Candidate], DistinctlyNamed] = []
    """Plans to compare on the same prompts and seeds, for the front of speed and fidelity."""
    product: Product | None = None
    """More of a sweep: combinations of nodes, modes and intervals."""
    deepcache: DeepCachePackage | None = None
    """Let the DeepCache package draw too, for comparison."""
    fewer_steps: Annotated[list[Positive], Distinct] | None = None
    """Steps at which the plain model draws too, the first thing to beat; about 0.8, 0.65, 0.5, 0.35 and 0.2 of
    `steps` if left out."""
    converged: Positive | None = None
    """Also compare with what DPM++ 2M draws in so many steps: near the solution that every sampler is after."""
    limit: Positive = 16
    """Use the first so many prompts only."""
    metrics: Annotated[list[Metric], Field(min_length=1), Distinct] = ["psnr", "ssim"]
    """psnr, ssim and perceptual compare with the plain model's pictures; kid, clip_score, ... as in `asdm eval`."""
    steps: Positive = 50
    """UNet steps per picture."""
    repeats: Positive = 5
    """Timed rounds; every round draws one image with everybody, in turn."""
    warmups: Positive = 1
    """Rounds before the timed ones, not counted."""

    @model_validator(mode="after")
    def _something_to_do(self) -> InheritRecipe:
        if self.plan is None and not self.sweep and self.product is None:
            raise Misplaced([(("plan",), "must be given, or 'sweep' or 'product'")])
        return self


VERBS: dict[str, type[Strict]] = {
    "prune": PruneRecipe,
    "inherit": InheritRecipe,
    "bench": BenchRecipe,
    "eval": EvalRecipe,
}
