"""Models in memory: pipelines, UNets and CLIPs from checked directories, on a device, in a dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

from asdm_cli.errors import ModelError
from asdm_cli.inheritance.course import Nodes
from asdm_cli.inheritance.pipelines import attach
from asdm_cli.models.checked import check_drawing
from asdm_cli.models.parts import check_clip, check_parts, read_with
from asdm_cli.models.schedulers import SCHEDULER, own_scheduler, unlike_noise
from asdm_cli.models.source import CONFIGS, ModelDirectory, find
from asdm_cli.models.switched import UNET, checked_switch, member, one_unet, run_time_plans
from asdm_cli.recipe.patches import Idle, Rules, Switching
from asdm_cli.switching import pipelines as switching
from asdm_cli.switching.fit import check_rules
from asdm_cli.unet.checkpoint import open_checkpoint, require
from asdm_cli.unet.cost import shapes
from asdm_cli.unet.expert_config import EXPERTS
from asdm_cli.unet.expert_unet import ExpertUNet, build
from asdm_cli.unet.weight_files import inside, read_mapping

Module = TypeVar("Module", bound=torch.nn.Module)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNUSED = {"feature_extractor": None}
"""What is for safety checkers and picture prompts; old models name a class of it that transformers has no more."""
PIPELINES: dict[str, tuple[type[DiffusionPipeline], dict[str, Any]]] = {
    "StableDiffusionPipeline": (
        StableDiffusionPipeline,
        {**UNUSED, "safety_checker": None, "requires_safety_checker": False},
    ),
    "StableDiffusionXLPipeline": (StableDiffusionXLPipeline, {**UNUSED, "add_watermarker": False}),
}
SAFELY = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}


def device_and_dtype(device: str = "auto", dtype: str = "auto") -> tuple[torch.device, torch.dtype]:
    """`auto` is CUDA in float16 where there is one, else the CPU in float32."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        place = torch.device(name)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {device!r} cannot be used here ({reason}); use `cpu` or `auto`") from None
    if dtype == "auto":
        return place, torch.float16 if place.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown; use one of auto, {', '.join(DTYPES)}")
    return place, DTYPES[dtype]


def load_pipeline(
    directory: ModelDirectory, device: torch.device, dtype: torch.dtype, with_plan: bool = True, with_unet: bool = True
) -> DiffusionPipeline:
    """The whole pipeline, ready to draw; without safety checker, watermark and progress bar.

    Several UNets take turns; what a model inherits from step to step is in force, unless `with_plan` is false.
    Without its UNet it only encodes, in memory of its own, and the largest part is not read.
    """
    check_drawing(directory)
    check_parts(directory)
    held = checked_switch(directory) if with_unet else None
    plans = run_time_plans(directory, held) if with_plan and with_unet else {}
    pipeline, switches = PIPELINES[directory.index["_class_name"]]
    switches = {**switches, **dict.fromkeys(directory.left_out)}
    if not with_unet:
        switches = {**switches, "unet": None}
    elif directory.config("unet").get(EXPERTS):
        switches = {**switches, "unet": load_unet(directory, torch.device("cpu"), dtype)}
    try:
        pipe = read_with(
            directory.path,
            lambda: pipeline.from_pretrained(directory.path, dtype=dtype, **SAFELY, **switches).to(device),
        )
    except ModelError as error:
        raise _located(directory, error) from error
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            _require_finite(part if with_unet else in_own_memory(part), directory.component(name))
    pipe.set_progress_bar_config(disable=True)
    if held is not None:
        others = {name: member(directory, held, name) for name in held.unets[1:]}
        take_turns(pipe, {held.unets[0]: pipe.unet, **others}, held.rules, plans, held.idle)
    elif plans:
        attach(pipe, plans[UNET])
    return pipe


def take_turns(
    pipe: Any,
    unets: Mapping[str, str | ModelDirectory | UNet2DConditionModel],
    rules: Switching,
    plans: Mapping[str, Rules | Nodes],
    idle: Idle,
) -> switching.Handle:
    """Switch between UNets, those read first that are models' directories or sources: on the pipeline's device, or
    on the CPU where idle ones live there. Raises ModelError with all that does not fit."""
    switching.check_free(pipe)
    check_rules(unets, rules)
    device, dtype = torch.device("cpu") if idle == "cpu" else pipe.unet.device, pipe.unet.dtype
    found = {name: find(source) if isinstance(source, str) else source for name, source in unets.items()}
    whole = [name for name, each in found.items() if isinstance(each, ModelDirectory) and SCHEDULER in each.components]
    unlike = unlike_noise({"the pipeline": pipe.scheduler, **{name: own_scheduler(found[name]) for name in whole}})
    if unlike:
        raise ModelError(f"unets: {unlike[0]}")

    def read(name: str, source: Any) -> Any:
        place = pipe.unet.device if name == next(iter(unets)) else device
        return load_unet(one_unet(source), place, dtype) if isinstance(source, ModelDirectory) else source

    return switching.attach(pipe, {name: read(name, source) for name, source in found.items()}, rules, plans, idle)


def load_unet(directory: ModelDirectory, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet alone, in evaluation mode; every tensor that its config promises comes from the files."""
    folder = directory.component("unet")
    directory.weights("unet")
    kind = UNet2DConditionModel
    if directory.config("unet").get(EXPERTS):
        require(open_checkpoint(folder, directory.path), shapes(directory.config("unet")), folder)
        kind = ExpertUNet
    unet, found = read_with(
        folder,
        lambda: kind.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        ),
    )
    if found["missing_keys"]:
        raise ModelError(f"{folder}: lacks the tensor {sorted(found['missing_keys'])[0]}; fetch the weights again")
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
    """A CLIP and what its pictures must look like: `size` in pixels, per-channel `mean` and `std` of [0, 1] RGB."""

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
    model = read_with(folder, lambda: CLIPModel.from_pretrained(folder, **SAFELY))
    _require_finite(model, folder)
    tokenizer = read_with(words, lambda: CLIPTokenizer.from_pretrained(words, **SAFELY))
    return Clip(
        model.to(device).eval(),
        tokenizer,
        model.config.vision_config.image_size,
        tuple(settings["image_mean"]),
        tuple(settings["image_std"]),
    )


def _require_finite(module: torch.nn.Module, folder: Path) -> None:
    """ModelError for weights that are no numbers: what is drawn with them is black, and black pictures have scores."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(
                f"{folder}: {name} holds values that are no finite numbers in {dtype}; fetch or train the model again, "
                "or load it in another dtype"
            )


def _located(directory: ModelDirectory, error: ModelError) -> ModelError:
    """The same of the first component without weights that cannot be loaded by itself, if there is one: pipelines
    rarely say which."""
    for name, folder in directory.components.items():
        library, kind = (directory.index.get(name) or ("", ""))[:2]
        known: Any = getattr({"diffusers": diffusers, "transformers": transformers}.get(str(library)), str(kind), None)
        if known is None or (folder / CONFIGS[0]).is_file():  # of weights the headers were looked at before
            continue
        try:
            read_with(folder, partial(known.from_pretrained, folder, **SAFELY))
        except ModelError as found:
            return found
    return error
