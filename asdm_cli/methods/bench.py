"""`bench`: what models really cost, measured side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from asdm_cli.errors import ModelError
from asdm_cli.measure import bench, bench_report
from asdm_cli.measure.contestants import Entrant, Protocol, bodies
from asdm_cli.measure.memory import HOW
from asdm_cli.methods.carried import nodes, parameters
from asdm_cli.methods.condconv import expansion_of
from asdm_cli.models.checked import check_drawing
from asdm_cli.models.load import PIPELINES, device_and_dtype
from asdm_cli.models.parts import check_parts
from asdm_cli.models.schedulers import SCHEDULER, unet_calls
from asdm_cli.models.source import ModelDirectory, find
from asdm_cli.models.switched import checked_switch
from asdm_cli.recipe.redact import without_place
from asdm_cli.recipe.verbs import BenchRecipe, Contestant
from asdm_cli.report.document import Cell, Column, Interval, Report, Table
from asdm_cli.report.run_directory import Run
from asdm_cli.unet import cost
from asdm_cli.unet.blocks import Config
from asdm_cli.unet.checkpoint import read_headers
from asdm_cli.unet.presets import PRESETS, preset
from asdm_cli.unet.surgery import remove
from asdm_cli.unet.weight_files import read_mapping

RESUMABLE = False
SD_FACTOR = 8
"""Pixels per latent in every Stable Diffusion so far; what a UNet without its VAE is taken to have."""
SD_TOKENS = 77
MAKER_STEP = 8
"""diffusers' pipelines draw only multiples of this many pixels, whatever the VAE's factor."""
COLUMNS = [
    Column("name", "contestant"),
    Column("source", "source"),
    Column("unet_params_m", "UNet parameters (M)", "lower"),
    Column("unet_macs_g", "UNet call MACs (G)", "lower"),
    Column("unet_macs_without_attention_g", "without attention matmuls (G)", "lower"),
    Column("latent", "latent"),
    Column("weights_mb", "weights in memory (MB)", "lower", 1),
    Column("timed", "timed"),
]


@dataclass(frozen=True)
class Plan:
    entrants: tuple[Entrant, ...]
    protocol: Protocol
    weights: dict[str, int]
    """Bytes that each contestant's weights will take."""
    notes: tuple[str, ...]

    def report(self) -> Report:
        protocol = self.protocol
        weights = sum(self.weights[one.name] for one in bodies(self.entrants).values())
        summary = (
            f"{len(self.entrants)} contestants on {protocol.device}, {_short(protocol.dtype)}: "
            f"{protocol.warmups} rounds to warm up and {protocol.repeats} to time, "
            f"with {_list(sorted({1, *protocol.batches}))} images at once. "
            f"Weights take {weights / 1e9:.2f} GB together."
        )
        rows = [_row(entrant, self.weights[entrant.name]) for entrant in self.entrants]
        return Report("bench", "Plan", " ".join([summary, *self.notes]), [Table("Contestants", COLUMNS, rows)])


def plan(recipe: BenchRecipe) -> Plan:
    """Build every UNet without storage and read every header; ModelError for what cannot be compared or held."""
    device, dtype = device_and_dtype(recipe.device, recipe.dtype)
    if device.type not in HOW:
        raise ModelError(f"device {recipe.device!r}: costs are measured on {' and '.join(HOW)} only; name one of them")
    entrants = tuple(_entrant(contestant, recipe) for contestant in recipe.models)
    _check_images_alike(entrants)
    weights = {entrant.name: _parameters(entrant, device) * dtype.itemsize for entrant in entrants}
    _check_memory({entrant.name: weights[entrant.name] for entrant in bodies(entrants).values()}, device)
    protocol = Protocol(
        device,
        dtype,
        tuple(recipe.batches),
        recipe.repeats,
        recipe.warmups,
        recipe.guidance,
        recipe.sampler,
        recipe.size,
    )
    return Plan(entrants, protocol, weights, tuple(_notes(entrants, device, dtype)))


def run(plan: Plan, run: Run) -> Report:  # noqa: ARG001 - every verb's signature; a benchmark leaves a report only
    return bench_report.report(bench.measure(plan.entrants, plan.protocol))


def _entrant(contestant: Contestant, recipe: BenchRecipe) -> Entrant:
    directory = find(contestant.model) if contestant.model else None
    config = directory.config("unet") if directory else _shape_of(contestant)
    factor, tokens = _surroundings(directory)
    latent = _latent(contestant.name, config, recipe.size, factor)
    steps = contestant.steps or recipe.steps
    draws = recipe.images and directory is not None and directory.is_pipeline
    scheduled = directory is not None and (draws or SCHEDULER in directory.components)
    switch = checked_switch(directory) if directory else None
    if directory and draws:
        check_parts(directory)
    if directory is not None:
        _check_drawable(directory, contestant.name, recipe, draws)
    if switch and not draws:
        raise ModelError(
            f"contestant {contestant.name!r}: of several UNets that take turns only images are timed; leave out "
            "`images: false`, or name the models of its UNets"
        )
    return Entrant(
        name=contestant.name,
        source=_source(contestant),
        directory=directory,
        config=config,
        parameters=parameters(config, directory, switch),
        macs=cost.macs(config, size=latent[1:], tokens=tokens),
        latent=latent,
        tokens=tokens,
        steps=steps,
        draws=draws,
        nodes=nodes(contestant, config, directory, switch),
        switch=switch,
        calls=unet_calls(directory, recipe.sampler, steps) if directory and scheduled else steps,
    )


def _shape_of(contestant: Contestant) -> Config:
    """Of random weights: a shape, less what is removed, with experts."""
    config = random_config(contestant.random or "", contestant.remove)
    if contestant.expand is None:
        return config
    try:
        donor = random_config(contestant.expand.donor, None) if contestant.expand.donor else None
        return expansion_of(contestant.expand, config, donor).config
    except ModelError as error:
        raise ModelError(f"contestant {contestant.name!r}: {error}") from None


def random_config(shape: str, removed: str | Sequence[str] | None) -> Config:
    """A preset's or a file's config, less what is removed from it."""
    if shape not in PRESETS and not Path(shape).is_file():
        raise ModelError(f"random {shape!r}: neither a preset ({', '.join(PRESETS)}) nor a UNet config file; name one")
    config = preset(shape) if shape in PRESETS else read_mapping(Path(shape))
    return remove(config, removed).config if removed else config


def _source(contestant: Contestant) -> str:
    if contestant.model:
        return without_place(contestant.model)
    removed = [contestant.remove] if isinstance(contestant.remove, str) else contestant.remove or []
    random = f"random {without_place(contestant.random or '')}"
    shape = " without ".join([random, *([", ".join(removed)] if removed else [])])
    return f"{shape}, {contestant.expand.experts} experts by {contestant.expand.router}" if contestant.expand else shape


def _surroundings(directory: ModelDirectory | None) -> tuple[int, int]:
    """Pixels per latent, and text tokens, of the pipeline around the UNet; those of SD where there is none."""
    if directory is None or not directory.is_pipeline:
        return SD_FACTOR, SD_TOKENS
    if "vae" not in directory.components:
        return SD_FACTOR, directory.tokens
    stages = len(directory.config("vae").get("block_out_channels", ()))
    return 2 ** (stages - 1), directory.tokens


def _latent(name: str, config: Config, size: int | None, factor: int) -> tuple[int, int, int]:
    if size is not None and size % factor:
        raise ModelError(f"contestant {name!r}: size {size} is no multiple of its {factor} pixels per latent; round it")
    height, width = cost.latent_size(config) if size is None else (size // factor, size // factor)
    return config.get("in_channels", 4), height, width


def _check_drawable(directory: ModelDirectory, name: str, recipe: BenchRecipe, draws: bool) -> None:
    if not draws:
        return
    kind = directory.index.get("_class_name")
    if kind not in PIPELINES:
        way = "use one of those, or measure UNet calls only (images: false)"
        raise ModelError(f"contestant {name!r}: is a {kind}; images are timed with {' or '.join(PIPELINES)}; {way}")
    check_drawing(directory)
    if recipe.size is not None and recipe.size % MAKER_STEP:
        raise ModelError(f"contestant {name!r}: draws multiples of {MAKER_STEP} pixels only; round size {recipe.size}")


def _check_images_alike(entrants: Sequence[Entrant]) -> None:
    """Times of whole images are compared, so they must be images of one size."""
    drawing = [entrant for entrant in entrants if entrant.draws]
    for other in drawing[1:]:
        first = drawing[0]
        if other.latent != first.latent:
            raise ModelError(
                f"{first.name!r} draws latents of {_shape(first)} and {other.name!r} of {_shape(other)}: times of "
                "unlike images say nothing; give one `size` for all, or measure UNet calls only (images: false)"
            )


def _parameters(entrant: Entrant, device: torch.device) -> int:
    """Of everything that will be on the device: the pipeline where it draws, else the UNet."""
    unet = sum(entrant.parameters.values())
    if entrant.switch and entrant.switch.idle == "cpu" and device.type != "cpu":
        unet = max(entrant.parameters.values())
    if not entrant.draws or entrant.directory is None:
        return unet
    networks = [
        name
        for name in entrant.directory.components
        if name in entrant.directory.index and (entrant.directory.component(name) / "config.json").is_file()
    ]
    return unet + sum(_held(entrant.directory, name) for name in networks if name not in ("unet", "safety_checker"))


def _held(directory: ModelDirectory, component: str) -> int:
    tensors = read_headers(directory.weights(component)).tensors.values()
    return sum(torch.Size(tensor.shape).numel() for tensor in tensors)


def _check_memory(weights: dict[str, int], device: torch.device) -> None:
    """All contestants stay loaded while they take turns."""
    needed = sum(weights.values())
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed <= free:
        return
    each = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in weights.items())
    raise ModelError(
        f"the contestants' weights take {needed / 1e9:.2f} GB together ({each}) and {free / 1e9:.2f} GB are free on "
        f"{device}: use a smaller dtype, or several runs with the first contestant in each"
    )


def _notes(entrants: Sequence[Entrant], device: torch.device, dtype: torch.dtype) -> list[str]:
    notes = []
    emulated = dtype == torch.bfloat16 and not torch.cpu._is_avx512_bf16_supported()
    if device.type == "cpu" and emulated:
        notes.append(
            "This CPU computes no bfloat16 of its own (no AVX512-BF16): calls can be a hundred times slower than in "
            "float32, and their times tell nothing about other machines."
        )
    if len({entrant.latent for entrant in entrants}) > 1:
        notes.append("Contestants differ in latent shape: their UNet calls do unlike work.")
    if any(entrant.draws for entrant in entrants) and not all(entrant.draws for entrant in entrants):
        bare = [entrant.name for entrant in entrants if not entrant.draws]
        notes.append(f"UNet calls only, because there is no pipeline around the UNet: {', '.join(bare)}.")
    return notes


def _row(entrant: Entrant, weights: int) -> dict[str, Cell | Interval]:
    calls = f"UNet calls, images of {entrant.steps} steps" if entrant.draws else "UNet calls"
    if entrant.switch:
        calls = f"images of {entrant.steps} steps; {', '.join(entrant.switch.unets)} take turns"
    if entrant.nodes:
        calls += f", a plan for {entrant.calls} calls"
    return {
        "name": entrant.name,
        "source": entrant.source,
        "unet_params_m": sum(entrant.parameters.values()) / 1e6,
        "unet_macs_g": None if entrant.switch else entrant.macs.total / 1e9,
        "unet_macs_without_attention_g": None if entrant.switch else entrant.macs.plain / 1e9,
        "latent": _shape(entrant),
        "weights_mb": weights / 1e6,
        "timed": calls,
    }


def _shape(entrant: Entrant) -> str:
    return "×".join(map(str, entrant.latent))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
