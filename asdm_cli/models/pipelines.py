"""The pipelines that are drawn with: what each is given besides a prompt, and what it feeds its UNet. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ALWAYS = {"sample", "timestep", "encoder_hidden_states", "added_cond_kwargs", "cross_attention_kwargs"}
"""What every UNet is fed, or does without."""
CALLED = {"image": "image", "mask": "mask_image", "strength": "strength", "image_guidance": "image_guidance_scale"}
"""What pipelines take besides a prompt, by our words -> the argument of their calls."""
XL = frozenset({"text_embeds", "time_ids"})


@dataclass(frozen=True)
class Kind:
    """`takes`: words of CALLED. `feeds`: what its UNet must take in besides `ALWAYS`; `may`: what it may take in, too.

    `channels`: what the UNet may take in, as (so many latents, so many planes beside them). `needs`: components that
    others do without. `guidance` and `steps` are diffusers' defaults, that of steps where it says something of the
    model.
    """

    takes: tuple[str, ...] = ()
    feeds: frozenset[str] = frozenset()
    may: frozenset[str] = frozenset({"timestep_cond"})
    channels: tuple[tuple[int, int], ...] = ((1, 0),)
    needs: tuple[str, ...] = ()
    guidance: float = 7.5
    steps: int | None = None
    enlarges: bool = False
    """Draws so many times larger than the picture that it is given as its VAE is larger than its latents."""
    own_sampler: bool = False
    """Asks its scheduler for what others do not know."""

    @property
    def given(self) -> tuple[str, ...]:
        """What a picture is made from, of `image` and `mask`."""
        return tuple(word for word in self.takes if word in ("image", "mask"))


EDIT, MASKED, AGAIN = ("image", "image_guidance"), ("image", "mask", "strength"), ("image", "strength")
PAINTED, NOTHING = ((1, 0), (2, 1)), frozenset[str]()
PIPELINES: Mapping[str, Kind] = {
    "StableDiffusionPipeline": Kind(),
    "StableDiffusionXLPipeline": Kind(feeds=XL, guidance=5.0),
    "StableDiffusionImg2ImgPipeline": Kind(AGAIN),
    "StableDiffusionXLImg2ImgPipeline": Kind(AGAIN, XL, guidance=5.0),
    "StableDiffusionInpaintPipeline": Kind(MASKED, channels=PAINTED),
    "StableDiffusionXLInpaintPipeline": Kind(MASKED, XL, channels=PAINTED),
    "StableDiffusionInstructPix2PixPipeline": Kind(EDIT, may=NOTHING, channels=((2, 0),)),
    "StableDiffusionXLInstructPix2PixPipeline": Kind(EDIT, XL, NOTHING, ((2, 0),), guidance=5.0),
    "StableDiffusionDepth2ImgPipeline": Kind(AGAIN, may=NOTHING, channels=((1, 1),), needs=("feature_extractor",)),
    "StableDiffusionUpscalePipeline": Kind(
        ("image",), frozenset({"class_labels"}), NOTHING, ((1, 3),), guidance=9.0, enlarges=True
    ),
    "LatentConsistencyModelPipeline": Kind(
        feeds=frozenset({"timestep_cond"}), may=NOTHING, guidance=8.5, steps=4, own_sampler=True
    ),
}
"""By the class that model_index.json names; a test holds them to diffusers' own."""
TRAINED = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
"""Those whose UNets are trained."""
