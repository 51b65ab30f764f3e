"""Models with expert convolutions, as `asdm condconv-expand` writes them, and what they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import asdm_cli
from asdm_cli.models.directory import find
from asdm_cli.models.load import load_unet
from asdm_cli.records import Report
from asdm_cli.unet.blocks import specs
from asdm_cli.unet.flops import inputs
from asdm_cli.unet.weights import WEIGHTS
from tests.typed import Said, asdm

CPU = torch.device("cpu")


def run(folder: Path, recipe: dict[str, Any], *options: object) -> Said:
    """A verb on this recipe, whose run goes to `folder / "run"`, whatever is there."""
    folder.mkdir(exist_ok=True)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({"out": str(folder / "run"), **recipe}, sort_keys=False, width=1000))
    return asdm(recipe["verb"], file, "--overwrite", *options)


def done(folder: Path, recipe: dict[str, Any]) -> Path:
    """The run directory of a verb that succeeds."""
    said = run(folder, recipe)
    assert said.code == 0, said.err
    return folder / "run"


def learned(source: Path, folder: Path) -> Path:
    """The run directory of its base, with weights of its own, as after some distillation."""
    run = done(folder, {"verb": "prune", "model": str(source), "remove": "base"})
    file, draws = run / "model/unet" / WEIGHTS, torch.Generator().manual_seed(0)
    moved = {name: each + torch.randn(each.shape, generator=draws) / 100 for name, each in load_file(file).items()}
    save_file(moved, file)
    return run


def expand(folder: Path, model: Path, **what: Any) -> Said:
    return run(folder, {"verb": "condconv-expand", "model": str(model), "expand": what})


def stirred(model: Path, share: float = 0.5) -> Path:
    """The same, with experts that differ, by this share of a kernel's own spread: banks are written anew."""
    draws = torch.Generator().manual_seed(11)
    banks = {f"{name}.{part}" for name in specs(find(str(model)).config("unet")) for part in ("weight", "bias")}
    for file in sorted((model / "unet").glob("*.safetensors")):
        tensors = load_file(file)
        for name in sorted(banks & tensors.keys()):
            noise = torch.randn(tensors[name].shape, generator=draws)
            tensors[name] += share * tensors[name].std() * noise
        save_file(tensors, file, {"format": "pt"})
    return model


def unet(model: Path, dtype: torch.dtype = torch.float32) -> Any:
    return on_its_own(load_unet(find(str(model)), CPU, dtype))


def on_its_own(unet: Any) -> Any:
    """With memory of its own: where a tensor lies in a file shows in the last bit of a product."""
    for parameter in unet.parameters():
        parameter.data = parameter.data.clone()
    return unet


@torch.no_grad()
def answer(of: Any, rows: int = 2) -> Tensor:
    """A UNet's answer to what is always the same question."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        asked = inputs(dict(of.config), rows, 8, 5, "cpu", of.dtype)
    sample: Tensor = of(**{**asked, "timestep": 300}).sample
    return sample


def picture(pipe: Any, steps: int = 3) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    return torch.tensor(pipe("a fox", num_inference_steps=steps, generator=noise, output_type="np").images)


def pixels(file: Path) -> bytes:
    with Image.open(file) as held:
        return held.tobytes()


def drawn(model: Path) -> Tensor:
    pipe: Any = asdm_cli.load(str(model), "cpu")
    on_its_own(pipe.unet)
    return picture(pipe)


def figures(report: Report, metric: str, of: str = "") -> dict[str, float]:
    """Set-up -> its figure."""
    return {each.setup: each.value for each in report.records if (each.metric, each.of) == (metric, of)}
