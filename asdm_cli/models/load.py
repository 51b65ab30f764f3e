"""Models in memory: pipelines, UNets and CLIPs from checked directories, on a device, in a dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

from asdm_cli.errors import AsdmError, ModelError
from asdm_cli.inheritance.course import Nodes
from asdm_cli.inheritance.pipelines import attach
from asdm_cli.models.source import ModelDirectory, find
from asdm_cli.models.switched import UNET, checked_switch, member, one_unet, run_time_plans
from asdm_cli.recipe.plans import Rules
from asdm_cli.recipe.switching import Idle, Switching
from asdm_cli.switching import pipelines as switching
from asdm_cli.switching.fit import check_rules
from asdm_cli.unet.checkpoint import open_checkpoint, require
from asdm_cli.unet.cost import shapes
from asdm_cli.unet.expert_config import EXPERTS
from asdm_cli.unet.expert_unet import ExpertUNet, build
from asdm_cli.unet.weight_files import inside, read_mapping

Loaded = TypeVar("Loaded")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PIPELINES: dict[str, tuple[type[DiffusionPipeline], dict[str, Any]]] = {
    "StableDiffusionPipeline": (StableDiffusionPipeline, {"safety_checker": None, "requires_safety_checker": False}),
    "StableDiffusionXLPipeline": (StableDiffusionXLPipeline, {"add_watermarker": False}),
}
SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "euler": (EulerDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "dpm++2m": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": (UniPCMultistepScheduler, {}),
}


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
    Without its UNet it only encodes, and the largest part is not read.
    """
    kind = directory.index.get("_class_name")
    if not directory.is_pipeline or kind not in PIPELINES:
        what = f"a {kind}" if directory.is_pipeline else "a bare UNet"
        raise ModelError(f"{directory.path}: is {what}; whole pictures need a {' or '.join(PIPELINES)} directory")
    held = checked_switch(directory) if with_unet else None
    plans = run_time_plans(directory, held) if with_plan and with_unet else {}
    pipeline, switches = PIPELINES[kind]
    if not with_unet:
        switches = {**switches, "unet": None}
    elif directory.config("unet").get(EXPERTS):
        switches = {**switches, "unet": load_unet(directory, torch.device("cpu"), dtype)}
    try:
        pipe = _read(
            directory.path,
            lambda: pipeline.from_pretrained(
                directory.path, dtype=dtype, use_safetensors=True, local_files_only=True, **switches
            ).to(device),
        )
    except ModelError as error:
        raise _located(directory, error) from error
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

    def read(name: str, source: Any) -> Any:
        place = pipe.unet.device if name == next(iter(unets)) else device
        directory = find(source) if isinstance(source, str) else source
        return load_unet(one_unet(directory), place, dtype) if isinstance(directory, ModelDirectory) else source

    return switching.attach(pipe, {name: read(name, source) for name, source in unets.items()}, rules, plans, idle)


def load_unet(directory: ModelDirectory, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet alone, in evaluation mode; every tensor that its config promises comes from the files."""
    folder = directory.component("unet")
    directory.weights("unet")
    kind = UNet2DConditionModel
    if directory.config("unet").get(EXPERTS):
        require(open_checkpoint(folder, directory.path), shapes(directory.config("unet")), folder)
        kind = ExpertUNet
    unet, found = _read(
        folder,
        lambda: kind.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        ),
    )
    if found["missing_keys"]:
        raise ModelError(f"{folder}: lacks the tensor {sorted(found['missing_keys'])[0]}; fetch the weights again")
    return unet.to(device).eval()


def random_unet(
    config: dict[str, Any], device: torch.device, dtype: torch.dtype, seed: int = 0
) -> UNet2DConditionModel:
    """A UNet of this shape with random weights, built where it will run; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        unet = build(config)
    return torch.nn.Module.to(unet, dtype).eval()  # diffusers' own warns of nothing


def set_sampler(pipe: DiffusionPipeline, name: str) -> None:
    """Give `pipe` another scheduler, made from the settings of its own (betas, prediction type, spacing)."""
    pipe.scheduler = _sampler(pipe.scheduler, name)


def _sampler(own: Any, name: str) -> Any:
    if name == "own":
        return own
    if name not in SAMPLERS:
        raise ModelError(f"sampler {name!r} is unknown; use one of own, {', '.join(SAMPLERS)}")
    scheduler, settings = SAMPLERS[name]
    return scheduler.from_config(own.config, **settings)


def unet_calls(directory: ModelDirectory, sampler: str, steps: int) -> int:
    """UNet calls of one picture, from the scheduler's config alone: some samplers make more than `steps`."""
    return len(planned_scheduler(directory, sampler, steps).timesteps)


def planned_scheduler(directory: ModelDirectory, sampler: str, steps: int) -> Any:
    """The scheduler that would draw, from its config alone, with its timesteps set: the UNet calls of one picture.

    Raises ModelError for more steps than it knows timesteps.
    """
    kind: Any = getattr(diffusers, str(directory.index["scheduler"][1]), None)
    file = directory.component("scheduler") / "scheduler_config.json"
    scheduler = _read(file, lambda: _sampler(kind.from_config(directory.config("scheduler")), sampler))
    trained = scheduler.config.num_train_timesteps
    known = getattr(scheduler, "alphas_cumprod", None)
    if known is not None and len(known) != trained:
        raise ModelError(f"{file}: has {len(known)} betas for {trained} timesteps; fetch or write the file again")
    if steps > trained:
        raise ModelError(f"steps: {steps} are more than the {trained} that {file} knows; ask for {trained} or fewer")
    try:
        scheduler.set_timesteps(steps)
    except Exception as error:  # each scheduler has its own ways to fail
        raise ModelError(
            f"{file}: cannot make {steps} steps ({_first_line(error)}); mend it or ask for others"
        ) from error
    return scheduler


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
    settings = read_mapping(inside(folder, folder / "preprocessor_config.json"))
    words = folder if (folder / "tokenizer_config.json").is_file() else folder.parent / "tokenizer"
    model = _read(folder, lambda: CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True))
    tokenizer = _read(words, lambda: CLIPTokenizer.from_pretrained(words, local_files_only=True))
    return Clip(
        model.to(device).eval(),
        tokenizer,
        model.config.vision_config.image_size,
        tuple(settings["image_mean"]),
        tuple(settings["image_std"]),
    )


def _read(folder: Path, load: Callable[[], Loaded]) -> Loaded:
    """What `load` returns, without the libraries' own bars; their many ways to say that files do not fit become one
    ModelError."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        return load()
    except (torch.OutOfMemoryError, MemoryError, AsdmError):
        raise
    except Exception as error:
        raise ModelError(
            f"{folder}: cannot be loaded ({_first_line(error)}); fetch or write the model again"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _located(directory: ModelDirectory, error: ModelError) -> ModelError:
    """The same of the first component that cannot be loaded by itself, if there is one: pipelines rarely say which."""
    for name, folder in directory.components.items():
        library, kind = (directory.index.get(name) or ("", ""))[:2]
        known: Any = getattr({"diffusers": diffusers, "transformers": transformers}.get(str(library)), str(kind), None)
        if known is None or name == UNET:
            continue
        try:
            _read(folder, partial(known.from_pretrained, folder, local_files_only=True))
        except ModelError as found:
            return found
    return error
