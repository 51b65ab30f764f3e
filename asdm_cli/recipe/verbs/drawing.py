"""What verbs that draw pictures to compare them have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from asdm_cli.recipe.schema import READ, Distinct, Fraction, Guidance, Out, Positive, Seed, Side, Strict, Text

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Sampler = Literal["own", "ddim", "pndm", "euler", "heun", "dpm++2m", "unipc"]
Metric = Literal[
    "kid", "fd", "is", "clip_score", "clip_retrieval", "label_accuracy", "style_accuracy", "psnr", "ssim", "perceptual"
]


class Verb(Strict):
    """The key that every recipe starts with."""

    verb: str
    """Stands here to be the first key of a recipe that is written back."""


class Pictures(Strict):
    """What pictures depend on, and how they are looked at: the same for every verb that draws to compare."""

    prompts: Annotated[Text, READ] = "pocket"
    """Webdataset shards of (picture, caption), by path or glob; a text file with a prompt a line; or `pocket`: 128
    held-out captions and 128 trained ones in turn (`pocket-held-out`: the held-out ones alone)."""
    limit: Positive | None = None
    """Use the first so many prompts only."""
    per_prompt: Positive = 1
    """Draw each prompt so many times, every time with another seed."""
    metrics: Annotated[list[Metric], Field(min_length=1), Distinct] = ["kid", "clip_score"]
    """What to measure; psnr, ssim and perceptual compare with the pictures of the first, or the `reference`;
    label_accuracy and style_accuracy ask a probe whether a picture shows what its sample's .json names."""
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
    guidance: Guidance = 3.0
    """Classifier-free guidance; 1 is none and halves the work."""
    size: Side | None = None
    """Height and width in pixels; the model's own if left out."""
    seed: Seed = 0
    """Prompt i is drawn with a seed made of this and i, whatever the batch or process."""
    batch: Positive = 16
    """Pictures drawn at a time; changes speed and memory, not the pictures."""
    bootstrap: Positive = 1000
    """Resamples behind each confidence interval."""
    confidence: Fraction = 0.95
    """Width of the confidence intervals."""
    grid: Positive = 8
    """How many prompts the report's picture grid shows."""


class Drawing(Pictures, Verb):
    """The recipe of a verb that does nothing but draw and compare."""

    out: Out
    """The run directory to write."""
