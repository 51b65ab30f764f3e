"""The recipe of `asdm condconv-expand`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from asdm_cli.recipe.schema import READ, Guidance, Inner, Misplaced, Out, Patterns, Positive, Seed, Strict, Text
from asdm_cli.recipe.verbs.drawing import Dtype, Sampler, Verb

COMPRESSED = "compressed"
Amount = Annotated[float, Field(gt=0, lt=1)]


class Expand(Strict):
    """Which convolutions become banks of experts, and how they begin."""

    experts: Annotated[int, Field(ge=2, le=64)] = 4
    """Kernels per convolution. Every example gets one mixture of them, so speed hardly depends on their number."""
    at: Patterns = COMPRESSED
    """Addresses; of what they name, the 3x3 convolutions of the resnets. `compressed`: the blocks that have fewer
    layers than the donor's."""
    donor: Annotated[Text | None, READ] = None
    """The model that was compressed: tells which blocks are, and gives the kernels that are inherited."""
    router: Literal["features", "time", "both"] = "time"
    """What chooses the mixture: the mean of each channel of the convolution's input, the time embedding, or both.
    `time` mixes once per step for a whole batch."""
    weights: Literal["softmax", "normalised-sigmoid", "sigmoid"] = "softmax"
    """How the router's answers become weights; those of `sigmoid` (CondConv's own) need not sum to one."""
    start: Literal["copies", "noise", "inherited"] = "copies"
    """Experts begin as copies of the kernel, as copies with noise, or as the kernel and those that pruning removed
    from the donor. Whichever it is, the model draws what it drew before."""
    noise: Amount | None = None
    """With `start: noise`: its standard deviation, as a share of the kernel's own; 0.05 if left out."""
    share: Amount | None = None
    """With `start: inherited`: what the removed kernels weigh together at first; 0.000001 if left out. Larger
    shares learn faster and no longer begin with the same pictures."""
    seed: Seed = 0
    """Of noise and of routers that begin at random."""

    @model_validator(mode="after")
    def _fits_together(self) -> Expand:
        faults: list[tuple[Inner, str]] = []
        if self.noise is not None and self.start != "noise":
            faults.append((("noise",), f"goes with 'start: noise', and 'start' is {self.start}"))
        if self.share is not None and self.start != "inherited":
            faults.append((("share",), f"goes with 'start: inherited', and 'start' is {self.start}"))
        if self.donor is None and self.start == "inherited":
            faults.append((("donor",), "must be given with 'start: inherited': whose kernels?"))
        if self.donor is None and self.at == COMPRESSED:
            faults.append((("donor",), "must be given, or 'at': which blocks are compressed is seen beside a donor"))
        if self.weights == "sigmoid" and self.start == "copies":
            what = "equal copies under 'sigmoid' would all learn the same for ever; use noise or inherited"
            faults.append((("start",), what))
        if faults:
            raise Misplaced(faults)
        return self


class Fold(Strict):
    """How a model with experts becomes a plain one again."""

    routing: Literal["constant", "mean"] = "mean"
    """`constant`: refuse, unless every router gives the same weights whatever it sees, so that nothing changes.
    `mean`: freeze each router at its mean weights over the calls of some pictures."""
    prompts: Annotated[Text, READ] = "pocket"
    """What those pictures are drawn from: webdataset shards of (picture, caption), a text file, or `pocket`."""
    limit: Positive = 16
    """Use the first so many prompts only."""
    steps: Positive = 25
    """UNet steps per picture."""
    guidance: Guidance = 3.0
    """Classifier-free guidance; 1 is none."""
    sampler: Sampler = "own"
    """`own` is the one that the model came with."""
    seed: Seed = 0
    """Of the pictures' noise."""


class CondConvRecipe(Verb):
    """Expert convolutions (ME-CondConv): more capacity at nearly the same speed. One of `expand` and `fold`."""

    verb: Literal["condconv-expand"]
    """The command that this recipe is for."""
    model: Annotated[Text, READ]
    """A model directory, a run directory, or `pocket`."""
    expand: Expand | None = None
    """Make convolutions banks of experts."""
    fold: Fold | None = None
    """Make a model with experts a plain one, which stock diffusers loads."""
    device: Text = "auto"
    """Where pictures are drawn to see what routers do: `auto` (a GPU if there is one), `cpu`, `cuda`, ..."""
    dtype: Dtype = "auto"
    """Number format while they are drawn; `auto` is float16 on a GPU and float32 on a CPU."""
    out: Out
    """The run directory to write."""

    @model_validator(mode="after")
    def _one_way(self) -> CondConvRecipe:
        if self.expand is None and self.fold is None:
            raise Misplaced([(("expand",), "must be given, or 'fold'")])
        if self.expand is not None and self.fold is not None:
            raise Misplaced([(("fold",), "either 'expand' or 'fold', not both")])
        return self
