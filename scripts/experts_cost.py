"""What four experts add to a UNet call, and what ways that were not kept would add: Base and all of these in turn.

    python scripts/experts_cost.py                     # of the bundled model's size; 1, 2, 8 rows, and 32 that learn
    python scripts/experts_cost.py sd15 5 1 2 experts  # of SD 1.5's in bfloat16; 5 rounds, 1 and 2 rows, experts alone

Weights are random. Figures are seconds of one processor, in which other work on the machine hardly shows; the second
`base` says how far they can be trusted. All that was tried has one router for each resnet, which both of its
convolutions share, and looks at the mean of its input's channels: `mixed`, a kernel for each row (CondConv);
`low-rank`, the convolution and four experts of rank 2 beside it, weighed for each row; `codes`, the expert of the
largest weight, which rows may share.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

from asdm_cli.experts.convert import expand
from asdm_cli.experts.layer import ExpertConv2d, Share
from asdm_cli.experts.unet import expert_layers
from asdm_cli.models.directory import find
from asdm_cli.models.load import random_unet
from asdm_cli.profiling.latency import quartiles, time_interleaved
from asdm_cli.unet.blocks import Spec, preset
from asdm_cli.unet.flops import inputs
from asdm_cli.unet.surgery import remove

EXPERTS, RANK = 4, 2
DTYPES = {"pocket": torch.float32, "sd15": torch.bfloat16}
STEPS = 25
ROWS, LEARNING = (1, 2, 8, 32), 32
"""The last of them learn: forwards and backwards, each row at its own timestep."""


class Tried(nn.Module):  # type: ignore[misc]
    """A convolution in one of `WAYS`; `weights` [B, experts] is a list of what its resnet's router said last."""

    def __init__(self, bank: ExpertConv2d, way: str, weights: list[Tensor]):
        super().__init__()
        self.bank, self.way, self.weights = bank, way, weights
        like = bank.weight
        shape = (EXPERTS * RANK, bank.in_channels, *bank.kernel_size)
        self.down = nn.Parameter(torch.randn(shape, dtype=like.dtype, device=like.device) / 100)
        self.up = nn.Parameter(torch.randn(bank.out_channels, EXPERTS * RANK, dtype=like.dtype, device=like.device))

    def forward(self, x: Tensor) -> Tensor:
        return WAYS[self.way](self, x, self.weights[-1])


def convolve(bank: ExpertConv2d, x: Tensor, expert: int) -> Tensor:
    kernels, biases = bank.kernels((expert,))
    return functional.conv2d(x, kernels[0], biases[0], **bank.settings)


def mixed(conv: Tried, x: Tensor, weights: Tensor) -> Tensor:
    bank, rows = conv.bank, len(x)
    kernels = (weights @ bank.weight.unflatten(0, (EXPERTS, -1)).flatten(1)).view(rows, -1, *bank.weight.shape[1:])
    biases = weights @ bank.bias.unflatten(0, (EXPERTS, -1))
    parts = zip(x.split(1), kernels, biases, strict=True)
    return torch.cat([functional.conv2d(*part, **bank.settings) for part in parts])


def low_rank(conv: Tried, x: Tensor, weights: Tensor) -> Tensor:
    y = convolve(conv.bank, x, 0)
    down = functional.conv2d(x, conv.down, **conv.bank.settings).flatten(2)
    y.flatten(2).baddbmm_(conv.up * weights.repeat_interleave(RANK, 1)[:, None], down)
    return y


def codes(conv: Tried, x: Tensor, weights: Tensor) -> Tensor:
    chosen = weights.argmax(1).tolist()
    if len(set(chosen)) == 1:
        return convolve(conv.bank, x, chosen[0])
    share = Share.of(chosen, x.device)
    parts = [convolve(conv.bank, x[each], expert) for expert, each in zip(share.experts, share.rows, strict=True)]
    return torch.cat(parts)[share.order]


WAYS: dict[str, Callable[[Tried, Tensor, Tensor], Tensor]] = {"mixed": mixed, "low-rank": low_rank, "codes": codes}


def tried(experts: UNet2DConditionModel, way: str) -> UNet2DConditionModel:
    """The UNet with its convolutions in another way; tensors are shared."""
    unet = copy.deepcopy(experts, {id(each): each for each in experts.parameters()})
    routers: dict[str, list[Tensor]] = {}
    for name, bank in expert_layers(unet).items():
        resnet, _, last = name.rpartition(".")
        module = unet.get_submodule(resnet)
        if resnet not in routers:
            routers[resnet] = []
            linear = nn.Linear(bank.in_channels, EXPERTS, dtype=bank.weight.dtype, device=bank.weight.device)
            module.register_forward_pre_hook(_routing(linear, routers[resnet]))
        setattr(module, last, Tried(bank, way, routers[resnet]))
    return unet


def _routing(linear: nn.Linear, told: list[Tensor]) -> Callable[[nn.Module, Any], None]:
    def route(_: nn.Module, given: Any) -> None:
        told[:] = [torch.softmax(linear(given[0].mean((2, 3))), 1)]

    return route


def main(shape: str = "pocket", rounds: str = "40", *which: str) -> None:
    donor = find("pocket").config("unet") if shape == "pocket" else preset(shape)
    base, device, dtype = remove(donor, "base").config, torch.device("cpu"), DTYPES[shape]
    torch.set_num_threads(1)
    experts = random_unet(expand(base, Spec(EXPERTS), None, donor).config, device, dtype)
    wanted = [word for word in which if not word.isdigit()] or ["experts", *WAYS]
    plain = random_unet(base, device, dtype)
    unets = {"base": plain} | {way: experts if way == "experts" else tried(experts, way) for way in wanted}
    unets["base again"] = plain
    kernels = (
        sum(each.weight.numel() * each.weight.element_size() for each in expert_layers(experts).values()) / EXPERTS
    )
    held = {"base": kernels, "experts": EXPERTS * kernels, f"mixed ahead, for {STEPS} steps": STEPS * kernels}
    print(f"{shape}, kernels:", ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in held.items()))
    rows = [int(word) for word in which if word.isdigit()] or ROWS
    for count in rows:
        arguments = inputs(base, count, device=device, dtype=dtype)
        learning = count == LEARNING
        call, timestep = (_learn, torch.linspace(0, 999, count)) if learning else (_call, 500)
        calls = {name: partial(call, unet, {**arguments, "timestep": timestep}) for name, unet in unets.items()}
        times = time_interleaved(calls, warmups=1, rounds=int(rounds), seconds=_processor, doing="timed")
        for name, taken in times.items():
            ratio = quartiles([mine / plain for mine, plain in zip(taken, times["base"], strict=True)])
            told = f"{1e3 * quartiles(taken).value:,.1f} ms, {ratio.value:.3f} ({ratio.low:.3f}-{ratio.high:.3f})"
            print(f"{shape}, {count} rows{' that learn' * learning}, {name}: {told} of base's", flush=True)


def _processor(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@torch.inference_mode()
def _call(unet: UNet2DConditionModel, arguments: dict[str, Any]) -> None:
    unet(**arguments)


def _learn(unet: UNet2DConditionModel, arguments: dict[str, Any]) -> None:
    unet.zero_grad()
    unet(**arguments).sample.square().mean().backward()


if __name__ == "__main__":
    main(*sys.argv[1:])
