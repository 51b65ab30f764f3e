"""What a UNet costs on paper: parameters, and multiply-accumulates counted on the meta device (no memory, no time)."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.modeling_utils import no_init_weights
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from asdm_cli.errors import ModelError, reason
from asdm_cli.experts.unet import build
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import Config
from asdm_cli.unet.shapes import input_shapes

Count = TypeVar("Count", bound=Callable[..., Any])

ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
    torch.ops.aten._scaled_dot_product_efficient_attention,
    torch.ops.aten._scaled_dot_product_cudnn_attention,
    torch.ops.aten.bmm,
    torch.ops.aten.baddbmm,
}
"""What attention's two matmuls may be called, fused or spelled out; nothing else in a UNet goes by these names."""
OUTSIDE = "outside"
"""The part of a UNet that stands in no block: conv_in, time embedding, conv_out and their like."""
REMEMBERED = 256
"""Configs whose counts are kept: a run asks for those of one shape again and again, and each takes half a second."""


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass. `plain` leaves out the two matmuls of every attention (QK^T and AV),
    as the published counts do; `blocks` and `plain_blocks` split both by block address."""

    total: int
    plain: int
    blocks: dict[str, int]
    plain_blocks: dict[str, int]


def meta_unet(config: Config) -> UNet2DConditionModel:
    """A UNet of this shape without storage; ModelError where diffusers refuses the config."""
    try:
        with no_init_weights(), torch.device("meta"):
            return build(config)
    except Exception as error:  # a setting can be wrong in any way
        raise ModelError(f"UNet config: diffusers cannot build it ({reason(error)})") from None


def countable(config: Config) -> UNet2DConditionModel:
    """Such a UNet whose norms hand on what they get: they multiply no matrices, and would take half of the time that
    counting takes."""
    unet = meta_unet(config).eval()
    for module in unet.modules():
        if isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
            module.forward = _same
    return unet


def _same(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


def _remembered(count: Count) -> Count:
    """Counted once for all configs that say the same, whoever reads them from where (diffusers' notes on that, which
    change no cost, are left out)."""
    kept = lru_cache(REMEMBERED)(lambda text, *args, **kwargs: count(json.loads(text), *args, **kwargs))

    @wraps(count)
    def asked(config: Config, *args: Any, **kwargs: Any) -> Any:
        said = {key: value for key, value in config.items() if not key.startswith("_")}
        return copy(kept(json.dumps(said, sort_keys=True), *args, **kwargs))

    return cast(Count, asked)


@_remembered
def built_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, as diffusers makes them."""
    return {name: tuple(tensor.shape) for name, tensor in meta_unet(config).state_dict().items()}


@_remembered
def parameters(config: Config) -> dict[str, int]:
    """Parameters of every block address in forward order, and of what stands outside the blocks."""
    anatomy = Anatomy.of(config)
    counts = {block.address: 0 for block in anatomy.blocks} | {OUTSIDE: 0}
    for name, tensor in meta_unet(config).named_parameters():
        address = anatomy.address_of_key(name)
        counts[anatomy.block(address).address if address else OUTSIDE] += tensor.numel()
    return counts


@_remembered
def macs(config: Config, batch: int = 1, size: int | tuple[int, int] | None = None, tokens: int = 77) -> Macs:
    """Cost of one forward pass: `size` is height and width of the latent (default: the config's own). As when
    pipelines draw, all rows have one timestep. ModelError where nobody knows what such a UNet is called with."""
    unet = countable(config)
    try:
        return macs_of(unet, {**inputs(config, batch, size, tokens), "timestep": 500})
    except Exception as error:  # settings may contradict each other in any way
        raise ModelError(
            f"UNet config: a UNet of it cannot be called ({reason(error)}); fetch the config again"
        ) from None


def macs_of(unet: torch.nn.Module, arguments: dict[str, Any]) -> Macs:
    """Cost of one call of a live UNet, on whatever device it is."""
    anatomy = Anatomy.of(dict(unet.config))
    counter = FlopCounterMode(display=False)
    # fused kernels are not counted on every device; spelled out, attention costs the same everywhere
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        unet(**arguments)
    counted, name = counter.get_flop_counts(), type(unet).__name__
    parts = {
        block.address: counted.get(f"{name}.{anatomy.node(block.address).modules[0]}", {}) for block in anatomy.blocks
    }
    totals, by_block = [], []
    for without in (set(), ATTENTION):
        # the counter counts a multiplication and an addition as two
        whole, *each = (
            sum(count for operator, count in flops.items() if operator not in without) // 2
            for flops in (counted.get("Global", {}), *parts.values())
        )
        totals.append(whole)
        by_block.append({**dict(zip(parts, each, strict=True)), OUTSIDE: whole - sum(each)})
    return Macs(*totals, *by_block)


def rows(config: Config, guidance: float, parts: int = 2) -> int:
    """Latents in a UNet call of one picture: with guidance as many as that has parts, for the text and for none, unless
    the UNet was distilled to be told of the guidance."""
    return parts if guidance > 1 and config.get("time_cond_proj_dim") is None else 1


def inputs(
    config: Config,
    batch: int = 1,
    size: int | tuple[int, int] | None = None,
    tokens: int = 77,
    device: torch.device | str = "meta",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """All arguments that a call of this UNet takes, of the shapes that `config` asks for; random where there is
    storage."""

    def made(name: str, shape: Any) -> Any:
        if isinstance(shape, dict):
            return {key: made(key, each) for key, each in shape.items()}
        if isinstance(shape, list):
            return [made(name, each) for each in shape]
        if name == "timestep":
            return torch.full(shape, 500, device=device)
        tensor = torch.randn(shape, device=device, dtype=dtype)
        number = name == "class_labels" and len(shape) == 1
        return tensor.to(torch.int64).zero_() if number else tensor.zero_() if name == "time_ids" else tensor

    arguments: dict[str, Any] = made("", input_shapes(config, batch, size, tokens))
    return arguments


@_remembered
def module_macs(config: Config, size: int | tuple[int, int] | None = None, tokens: int = 77) -> dict[str, int]:
    """Multiply-accumulates of one call on one latent, attention's matmuls included: of every module that has some, by
    its name, and '' for the whole."""
    unet, counter = countable(config), FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        unet(**{**inputs(config, 1, size, tokens), "timestep": 500})
    counted = {name.partition(".")[2]: sum(each.values()) // 2 for name, each in counter.get_flop_counts().items()}
    return {**counted, "": sum(counter.get_flop_counts()["Global"].values()) // 2}
