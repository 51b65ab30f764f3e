"""The recipe of `asdm bench`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from asdm_cli.recipe.plans import InheritPlan
from asdm_cli.recipe.schema import (
    READ,
    Distinct,
    DistinctlyNamed,
    Guidance,
    Misplaced,
    Name,
    Out,
    Patterns,
    Positive,
    Side,
    Strict,
    Text,
)
from asdm_cli.recipe.verbs.condconv import Expand
from asdm_cli.recipe.verbs.drawing import Dtype, Sampler


class Contestant(Strict):
    """One model of a comparison. Exactly one of `model` and `random`."""

    name: Name
    """What tables and plots call it."""
    model: Annotated[Text | None, READ] = None
    """A model directory, a run directory, or `pocket`."""
    random: Annotated[Text | None, READ] = None
    """`sd15`, `sd21`, `sdxl` or a UNet config file: that shape with random weights."""
    remove: Patterns | None = None
    """With `random`: remove these addresses first."""
    expand: Expand | None = None
    """With `random`: make convolutions banks of experts, as `asdm condconv-expand` does; `donor` is a shape here."""
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
        first = {"remove": "prune the model first: asdm prune", "expand": "expand it first: asdm condconv-expand"}
        wrong = [key for key in first if self.model is not None and getattr(self, key) is not None]
        if wrong:
            raise Misplaced([((key,), f"goes with 'random' only; {first[key]}") for key in wrong])
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
    guidance: Guidance = 3.0
    """Classifier-free guidance of a whole image; 1 is none and halves the work."""
    sampler: Sampler = "own"
    """`own` is the one that each model came with."""
    size: Side | None = None
    """Height and width of the image in pixels; the model's own if left out."""
    out: Out
    """The run directory to write."""
