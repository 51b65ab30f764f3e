"""LoRA files as different programs write them, and what they should make of a model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from asdm_cli.models.directory import find
from asdm_cli.models.single_file import clip_name, unet_names

ATTENTION = r"attn\d\.to_|self_attn\.|\.proj_(in|out)\.|\.ff\.net|mlp\.fc"
"""What most LoRAs change."""
ALL = r"(?!.*embeddings?\.).*\.(?!.*norm)[^.]*\.weight|conv_(in|out)\.weight"
"""And convolutions, as LyCORIS does."""
RANK, ALPHA = 3, 2.0
Low = dict[tuple[str, str], tuple[Tensor, Tensor]]
"""Component and weight -> down and up."""


@dataclass(frozen=True)
class Lora:
    file: Path
    low: Low = field(repr=False)
    factor: float

    def changed(self, component: str, name: str, weight: Tensor, scale: float = 1.0) -> Tensor:
        """By hand."""
        key = component, name if component == "unet" else clip_name(name)
        if key not in self.low:
            return weight
        down, up = (each.flatten(1) for each in self.low[key])
        return weight + scale * self.factor * (up @ down).reshape(weight.shape)


def weights(model: Path, component: str) -> dict[str, Tensor]:
    return {name: each for file in find(str(model)).weights(component) for name, each in load_file(file).items()}


def low_ranks(model: Path, which: str = ATTENTION, seed: int = 0) -> Low:
    """Of all weights of UNet and text encoders that a pattern names."""
    draws, directory = torch.Generator().manual_seed(seed), find(str(model))
    found: Low = {}
    for component in ("unet", "text_encoder", "text_encoder_2"):
        for name, weight in weights(model, component).items() if component in directory.components else ():
            if weight.dim() > 1 and re.search(which, name):
                up = weight.shape[0], RANK, *(1 for _ in weight.shape[2:])
                down = torch.randn(RANK, *weight.shape[1:], generator=draws) / 10
                known = name if component == "unet" else clip_name(name)
                found[component, known] = down, torch.randn(up, generator=draws) / 10
    return found


def _kohya(prefixes: Mapping[str, str]) -> Callable[[str, str, Any], str]:
    return lambda component, module, _: prefixes[component] + module.replace(".", "_")


def _sgm(component: str, module: str, config: Any) -> str:
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    original = unet_names(config)(f"{module}.weight") if component == "unet" else f"{module}.weight"
    assert original is not None
    return prefixes[component] + original.removesuffix(".weight").replace(".", "_")


def _processors(component: str, module: str, _: Any) -> str:
    """As diffusers called attention before it had peft: of text encoders, too."""
    module = re.sub(r"(attn\d)\.(to_[a-z]+)(\.0)?$", r"\1.processor.\2", module)
    module = re.sub(r"self_attn\.(q|k|v|out)_proj", r"self_attn.to_\1", module)
    return f"{component}.{module}"


SD, XL = (
    {"unet": "lora_unet_", "text_encoder": first, "text_encoder_2": "lora_te2_"} for first in ("lora_te_", "lora_te1_")
)
STYLES: dict[str, tuple[Callable[[str, str, Any], str], str, str]] = {
    "kohya": (_kohya(SD), ".lora_down.weight", ".lora_up.weight"),
    "kohya-xl": (_kohya(XL), ".lora_down.weight", ".lora_up.weight"),
    "sgm": (_sgm, ".lora_down.weight", ".lora_up.weight"),
    "peft": (lambda component, module, _: f"{component}.{module}", ".lora_A.weight", ".lora_B.weight"),
    "transformers 5": (
        lambda component, module, _: f"{component}.{module}".replace("text_model.", ""),
        *(".lora_A.weight", ".lora_B.weight"),
    ),
    "processors": (_processors, "_lora.down.weight", "_lora.up.weight"),
    "dotted": (lambda component, module, _: f"{component}.{module}", ".lora.down.weight", ".lora.up.weight"),
}


def written(file: Path, model: Path, style: str = "kohya", low: Low | None = None, alpha: bool = True) -> Lora:
    """A LoRA of this model."""
    low = low_ranks(model) if low is None else low
    say, down, up = STYLES[style]
    config, tensors = find(str(model)).config("unet"), dict[str, Tensor]()
    kohya = down == ".lora_down.weight"
    for (component, name), halves in low.items():
        module = say(component, name.removesuffix(".weight"), config)
        for end, half in zip((down, up), halves, strict=True):
            tensors[module + (end if component == "unet" else end.replace(".lora.", ".lora_linear_layer."))] = (
                half.clone()
            )
        tensors |= {f"{module}.alpha": torch.tensor(ALPHA)} if alpha and kohya else {}
    settings: dict[str, Any] = {}
    for part in {component for component, _ in low}:
        own = [name.removesuffix(".weight").removeprefix("text_model.") for component, name in low if component == part]
        settings |= {f"{part}.r": RANK, f"{part}.lora_alpha": ALPHA, f"{part}.target_modules": own}
    held = {"lora_adapter_metadata": json.dumps(settings)} if alpha and style == "peft" else {}
    save_file(tensors, file, {"format": "pt", **held})
    return Lora(file, low, ALPHA / RANK if alpha and (kohya or style == "peft") else 1.0)
