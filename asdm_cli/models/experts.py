"""Writing UNets whose convolutions become banks of experts, or plain ones again: the rest stays as it lies on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from asdm_cli.experts.start import Start, bank, router
from asdm_cli.models.write import write_config
from asdm_cli.unet.blocks import Config
from asdm_cli.unet.checkpoint import Entry, copy_tensors
from asdm_cli.unet.expansion import Expansion
from asdm_cli.unet.settings import time_width

INDEX_FILE = "diffusion_pytorch_model.safetensors.index.json"
SHARD = "diffusion_pytorch_model-{:05}-of-00002.safetensors"


def first_experts(
    expansion: Expansion, own: Mapping[str, Entry], donor: Mapping[str, Entry], start: Start, seed: int
) -> dict[str, Tensor]:
    """Banks and routers by tensor name, in the number format of the kernel that each begins as."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name in sorted(expansion.siblings):
        for part in ("weight", "bias"):
            key = f"{name}.{part}"
            if key not in own:
                continue
            kernels = [_tensor(own, key), *inherited(expansion, own, donor, name, part, start)]
            tensors[key] = bank(kernels, expansion.spec, start, generator)
        channels, width = own[f"{name}.weight"].shape[1], time_width(expansion.config)
        started = router(expansion.spec, start, channels, width, generator)
        tensors |= {f"{name}.router.{key}": tensor for key, tensor in started.items()}
    return tensors


def inherited(
    expansion: Expansion, own: Mapping[str, Entry], donor: Mapping[str, Entry], name: str, part: str, start: Start
) -> list[Tensor]:
    """Of a convolution's siblings in the donor, those of its shape, in its number format."""
    key = f"{name}.{part}"
    shape = own[f"{name}.weight"].shape
    fitting = [each for each in expansion.siblings[name] if donor and donor[f"{each}.weight"].shape == shape]
    wanted = fitting[: expansion.spec.experts - 1] if start.kind == "inherited" else []
    dtype = _tensor(own, key).dtype
    return [_tensor(donor, f"{each}.{part}").to(dtype) for each in wanted]


def write_changed(config: Config, kept: Mapping[str, Entry], changed: Mapping[str, Tensor], folder: Path) -> None:
    """A UNet in two files: tensors copied byte for byte from where they lie, and new ones."""
    write_config(config, folder)
    files = [folder / SHARD.format(number) for number in (1, 2)]
    copy_tensors(kept, files[0])
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, files[1], {"format": "pt"})
    places = dict.fromkeys(kept, files[0].name) | dict.fromkeys(changed, files[1].name)
    size = sum(entry.size for entry in kept.values()) + sum(tensor.nbytes for tensor in changed.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _tensor(entries: Mapping[str, Entry], name: str) -> Tensor:
    with safe_open(entries[name].file, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor
