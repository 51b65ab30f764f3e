"""Models in memory: pipelines, UNets and CLIPs from checked directories, on a device, in a dtype."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from diffusers import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

from asdm_cli.errors import ModelError, reason
from asdm_cli.experts.unet import ExpertUNet, build
from asdm_cli.models.adapters import fuse
from asdm_cli.models.directory import (
    CONFIG,
    UNET,
    ModelDirectory,
    check_clip,
    check_drawing,
    check_parts,
    check_unet,
    find,
    read_with,
)
from asdm_cli.models.metadata import checked_patches, member, one_unet, schedule_of, unet_components
from asdm_cli.models.schedulers import SCHEDULER, own_scheduler, unlike_noise
from asdm_cli.patches.base import Load, patch_of, put_on
from asdm_cli.patches.unet_schedule import ScheduleHandle, check_free, check_rules, switch
from asdm_cli.recipe.patches import CachePlan, PatchSpec, Switching
from asdm_cli.unet.blocks import EXPERTS
from asdm_cli.unet.weights import TRANSFORMERS_STEM, find_weights, inside, read_mapping

Module = TypeVar("Module", bound=torch.nn.Module)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNUSED = ("safety_checker", "feature_extractor", "watermarker")
"""For safety checkers, image prompts and marks; old models name classes of them that libraries have no more."""
UNSEEN = {"requires_safety_checker": False, "add_watermarker": False}
DTYPE = {"diffusers": "torch_dtype", "transformers": "dtype"}
"""What the number format is called; before 0.39 diffusers knows the old word only."""
SAFELY = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
CPU = torch.device("cpu")


def device_and_dtype(device: str = "auto", dtype: str = "auto") -> tuple[torch.device, torch.dtype]:
    """`auto` is the accelerator that torch finds (CUDA, MPS, ...) in float16, else the CPU in float32."""
    found = torch.accelerator.current_accelerator(check_available=True)
    name = (found.type if found else "cpu") if device == "auto" else device
    try:
        place = torch.device(name)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"device {device!r} cannot be used here ({reason(error)}); use `cpu` or `auto`") from None
    if dtype == "auto":
        return place, torch.float32 if place.type == "cpu" else torch.float16
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown; use one of auto, {', '.join(DTYPES)}")
    return place, DTYPES[dtype]


def pipeline_class(directory: ModelDirectory) -> type[DiffusionPipeline]:
    """The one that the index names, which has been checked to be one of PIPELINES."""
    kind: type[DiffusionPipeline] = getattr(diffusers, directory.index["_class_name"])
    return kind


def own_settings(directory: ModelDirectory) -> dict[str, Any]:
    """What the pipeline draws with where nobody says anything, as its class has it."""
    asked = inspect.signature(pipeline_class(directory).__call__).parameters
    steps, guidance = (asked[name].default for name in ("num_inference_steps", "guidance_scale"))
    return {"sampler": "own", "steps": steps, "guidance": guidance}


def load_pipeline(
    directory: ModelDirectory,
    device: torch.device,
    dtype: torch.dtype,
    with_patches: bool = True,
    with_unet: bool = True,
) -> DiffusionPipeline:
    """The whole pipeline, ready to draw; without safety checker, watermark and progress bar.

    What the model carries (several UNets that take turns, plans) is in force, unless `with_patches` is false.
    Without its UNet it only encodes, in memory of its own, and the largest part is not read.
    """
    check_drawing(directory)
    check_parts(directory)
    specs = checked_patches(directory) if with_unet else ()
    kind, parts = pipeline_class(directory), dict[str, Any]()
    if not with_unet:
        parts[UNET] = None
    parts |= dict.fromkeys([*directory.left_out, *(name for name in UNUSED if name in kind._optional_components)])
    for name in directory.classes:
        if name not in parts:
            part = load_unet(directory, CPU, dtype) if name == UNET else _load_part(directory, name, dtype)
            parts[name] = part if with_unet or not isinstance(part, torch.nn.Module) else in_own_memory(part)
    # not from_pretrained, which asks libraries for every class that the index names, old and unused ones too
    told = (
        {name: None if isinstance(value, list) else value for name, value in directory.index.items()} | UNSEEN | parts
    )
    known = inspect.signature(kind.__init__).parameters
    pipe = read_with(
        directory.path, lambda: kind(**{name: value for name, value in told.items() if name in known}).to(device)
    )
    pipe.set_progress_bar_config(disable=True)
    if with_patches and specs:
        put_on(pipe, [patch_of(spec) for spec in specs], unet_loader(directory, specs, pipe))
    return pipe


def _load_part(directory: ModelDirectory, name: str, dtype: torch.dtype) -> Any:
    """One component, so that trouble with it has its name."""
    folder, (library, kind) = directory.component(name), directory.kind(name).split(".")
    kind = kind.replace("FeatureExtractor", "ImageProcessor")  # as transformers calls them since 5
    known: Any = getattr({"diffusers": diffusers, "transformers": transformers}[library], kind)
    weights = {DTYPE[library]: dtype, **_variant(directory, name)} if (folder / CONFIG).is_file() else {}
    part = read_with(folder, lambda: known.from_pretrained(folder, **SAFELY, **weights))
    if weights:
        if directory.adapters:
            fuse(part, directory, name)
        _require_finite(part, folder)
    return part


def _variant(directory: ModelDirectory, name: str) -> dict[str, str | None]:
    """What libraries must be told of the names of a component's files."""
    return {"variant": directory.weight_files(name).variant or None}


def unet_loader(directory: ModelDirectory, specs: Sequence[PatchSpec], pipe: Any) -> Load:
    """Reads one of a model's UNets by its name: for the pipeline's device, or for the CPU where idle ones live."""
    components, schedule = unet_components(specs), schedule_of(specs)
    device = torch.device("cpu") if schedule is not None and schedule.offload else pipe.device
    dtype = pipe.unet.dtype
    return lambda name: load_unet(member(directory, name, components[name]), device, dtype)


def switch_unets(
    pipe: Any,
    unets: Mapping[str, str | ModelDirectory | UNet2DConditionModel],
    rules: Switching,
    plans: Mapping[str, CachePlan],
    offload: bool,
) -> ScheduleHandle:
    """Switch between UNets, those read first that are models' directories or sources: on the pipeline's device, or
    on the CPU where idle ones live there. Raises ModelError with all that does not fit."""
    check_free(pipe)
    check_rules(unets, rules)
    found: dict[str, Any] = {name: find(each) if isinstance(each, str) else each for name, each in unets.items()}
    directories = {name: each for name, each in found.items() if isinstance(each, ModelDirectory)}
    whole = {name: own_scheduler(each) for name, each in directories.items() if SCHEDULER in each.components}
    if unlike := unlike_noise({"the pipeline": pipe.scheduler, **whole}):
        raise ModelError(f"unets: {unlike[0]}")
    for name, directory in directories.items():
        waits = offload and name != next(iter(unets))
        found[name] = load_unet(one_unet(directory), CPU if waits else pipe.unet.device, pipe.unet.dtype)
    return switch(pipe, found, rules, plans, offload)


def load_unet(directory: ModelDirectory, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet alone, in evaluation mode; every tensor that its config promises comes from the files."""
    check_unet(directory)
    folder = directory.component(UNET)
    kind = ExpertUNet if directory.config(UNET).get(EXPERTS) else UNet2DConditionModel
    unet = read_with(
        folder,
        lambda: kind.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, **_variant(directory, UNET)
        ),
    )
    if directory.adapters:
        fuse(unet, directory, UNET)
    _require_finite(unet, folder)
    return unet.to(device).eval()


def in_own_memory(module: Module) -> Module:
    """The same, its weights copied out of their files, which libraries map into memory: whoever writes to such a file
    later changes nothing, and who cuts it short kills nobody."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone() if tensor.device.type == "cpu" else tensor.data
    return module


def random_unet(
    config: dict[str, Any], device: torch.device, dtype: torch.dtype, seed: int = 0
) -> UNet2DConditionModel:
    """A UNet of this shape with random weights, built where it will run; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        unet = build(config)
    return torch.nn.Module.to(unet, dtype).eval()  # diffusers' own warns of nothing


@dataclass(frozen=True)
class Clip:
    """A CLIP and what its images must look like: `size` in pixels, per-channel `mean` and `std` of [0, 1] RGB."""

    model: CLIPModel
    tokenizer: CLIPTokenizer
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def load_clip(directory: ModelDirectory | Path, device: torch.device | str = "cpu") -> Clip:
    """The CLIP of a model directory (its folder `clip/`), or of a transformers CLIP directory, in float32.

    A model directory's CLIP shares the pipeline's tokenizer when it has none of its own.
    """
    folder = directory.component("clip") if isinstance(directory, ModelDirectory) else directory
    check_clip(folder)
    settings = read_mapping(inside(folder, folder / "preprocessor_config.json"))
    words = folder if (folder / "tokenizer_config.json").is_file() else folder.parent / "tokenizer"
    variant = find_weights(folder, stem=TRANSFORMERS_STEM).variant or None
    model = read_with(folder, lambda: CLIPModel.from_pretrained(folder, dtype=torch.float32, variant=variant, **SAFELY))
    _require_finite(model, folder)
    tokenizer = read_with(words, lambda: CLIPTokenizer.from_pretrained(words, **SAFELY))
    size = model.config.vision_config.image_size
    return Clip(model.to(device).eval(), tokenizer, size, tuple(settings["image_mean"]), tuple(settings["image_std"]))


def _require_finite(module: torch.nn.Module, folder: Path) -> None:
    """ModelError for weights that are no numbers: what is drawn with them is black, and black images have scores."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(
                f"{folder}: {name} holds values that are no finite numbers in {dtype}; fetch or train the model again, "
                "or load it in another dtype"
            )


def cut_captions(pipe: Any, captions: Iterable[str]) -> tuple[int, int]:
    """How many have more tokens than its text encoder takes in, and how many tokens those are."""
    tokenizer = getattr(pipe, "tokenizer", None) or getattr(pipe, "tokenizer_2", None)
    if tokenizer is None:
        return 0, 0
    most: int = tokenizer.model_max_length
    long = [caption for caption in captions if len(caption.encode()) > most - 2]  # a token has a byte or more
    return sum(len(tokenizer(each, truncation=True, max_length=most + 1).input_ids) > most for each in long), most
