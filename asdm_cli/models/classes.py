"""The classes that a component may be of: what pipelines around an SD UNet are made of, and nothing else. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from asdm_cli.errors import ModelError
from asdm_cli.unet.weights import DIFFUSERS_STEM, TRANSFORMERS_STEM, inside, read_mapping

_TEXT = ("transformers.CLIPTextModel", "transformers.CLIPTextModelWithProjection")
_WORDS = ("transformers.CLIPTokenizer", "transformers.CLIPTokenizerFast")
_SEEN = ("transformers.CLIPVisionModelWithProjection",)
_PIXELS = (
    *("transformers.CLIPImageProcessor", "transformers.CLIPImageProcessorFast", "transformers.CLIPImageProcessorPil"),
    *("transformers.CLIPFeatureExtractor", "transformers.DPTImageProcessor", "transformers.DPTImageProcessorPil"),
    "transformers.DPTFeatureExtractor",
)
_NOISE = tuple(
    f"diffusers.{name}Scheduler"
    for name in (
        *("DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "UniPCMultistep", "UnCLIP"),
        *("DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSDE", "DPMSolverSinglestep", "SASolver"),
        *("EDMDPMSolverMultistep", "EDMEuler", "EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete", "IPNDM"),
        *("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM"),
        *("LMSDiscrete", "PNDM", "RePaint", "TCD"),
    )
)
KNOWN: Mapping[str, tuple[str, ...]] = {
    "unet": ("diffusers.UNet2DConditionModel", "asdm_cli.ExpertUNet"),
    "vae": ("diffusers.AutoencoderKL", "diffusers.AsymmetricAutoencoderKL", "diffusers.AutoencoderTiny"),
    "movq": ("diffusers.VQModel",),
    **dict.fromkeys(("text_encoder", "text_encoder_2", "prior_text_encoder"), _TEXT),
    **dict.fromkeys(("tokenizer", "tokenizer_2", "prior_tokenizer"), _WORDS),
    **dict.fromkeys(("image_encoder", "prior_image_encoder"), _SEEN),
    **dict.fromkeys(("feature_extractor", "prior_image_processor"), _PIXELS),
    **dict.fromkeys(("scheduler", "low_res_scheduler", "inverse_scheduler", "image_noising_scheduler"), _NOISE),
    "prior_scheduler": _NOISE,
    **dict.fromkeys(("prior", "prior_prior"), ("diffusers.PriorTransformer",)),
    "safety_checker": ("stable_diffusion.StableDiffusionSafetyChecker",),
    "image_normalizer": ("stable_diffusion.StableUnCLIPImageNormalizer",),
    "image_project": ("stable_diffusion.CLIPImageProjection",),
    "depth_estimator": ("transformers.DPTForDepthEstimation",),
    "processor": ("transformers.CLIPProcessor",),
    "controlnet": ("diffusers.ControlNetModel", "diffusers.ControlNetUnionModel"),
    "adapter": ("diffusers.T2IAdapter",),
    "motion_adapter": ("diffusers.MotionAdapter",),
    "clip": ("transformers.CLIPModel",),
}
"""Component -> library and class. The last one stands beside an index, not in it."""


def check_class(name: str, kind: str, index: Path) -> None:
    """ModelError for a class that this component cannot be of, whatever library has it."""
    if kind not in KNOWN.get(name, ()):
        known = ", ".join(KNOWN.get(name, ())) or "no component of this name is known"
        raise ModelError(
            f"{index}: {name} is a {kind}, and only what Stable Diffusion is made of is loaded (here: {known}); "
            f"give the folder unet/ by itself to work on the UNet"
        )


def stem(kind: str) -> str:
    """What the library of this class calls its weights: it reads no file of another name."""
    theirs = kind.startswith("transformers.") or kind in KNOWN["safety_checker"]
    return TRANSFORMERS_STEM if theirs else DIFFUSERS_STEM


def refuse_code(folder: Path, root: Path) -> None:
    """ModelError for a folder that brings code, or what makes libraries fetch other weights than those beside it."""
    if code := sorted(folder.glob("*.py")):
        raise ModelError(
            f"{code[0]}: is code, and code from a model directory is never run; if the model works without this file, "
            "take it away"
        )
    for file in sorted(folder.glob("*config.json")):
        if file.is_file() and "auto_map" in read_mapping(inside(root, file)):
            raise ModelError(
                f"{file}: `auto_map` names code, and code from a model directory is never run; save the model anew "
                "from a class of the library itself"
            )
        if file.name == "adapter_config.json":
            raise ModelError(f"{file}: is of an adapter beside the weights; merge it into them and save the model anew")
