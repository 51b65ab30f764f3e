"""How a model's experts are used: every router's weights, call by call, while pictures are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL.Image import Image
from torch import Tensor, nn

from asdm_cli.console import track
from asdm_cli.experts.layer import ExpertConv2d
from asdm_cli.measure.generate import prompt_seed
from asdm_cli.switching.unet import SwitchedUNet
from asdm_cli.unet.expert_unet import expert_layers


@dataclass(frozen=True)
class Routing:
    """Convolution (module name, in forward order) -> weights [prompts, UNet calls, rows of a picture, experts].

    With guidance a picture has two rows: the empty prompt's and its own.
    """

    weights: dict[str, Tensor]
    prompts: tuple[str, ...]

    def mean(self, name: str) -> Tensor:
        """[experts], over everything that was seen."""
        return self.weights[name].mean((0, 1, 2))

    def by_call(self, name: str) -> Tensor:
        """[UNet calls, experts]."""
        return self.weights[name].mean((0, 2))

    def by_prompt(self, name: str) -> Tensor:
        """[prompts, experts], of the rows that see the prompt."""
        return self.weights[name][:, :, -1].mean(1)

    def spread(self, name: str) -> dict[str, float]:
        """Standard deviations of the weights over calls, over prompts and between a picture's rows; and how many
        experts there are in effect: exp of the mean weights' entropy."""
        seen = self.weights[name]
        mean = self.mean(name) / self.mean(name).sum()
        return {
            "over_calls": float(self.by_call(name).std(0, correction=0).mean()),
            "over_prompts": float(self.by_prompt(name).std(0, correction=0).mean()),
            "between_rows": float(seen.std(2, correction=0).mean()),
            "effective": float(torch.special.entr(mean).sum().exp()),
        }


def has_experts(pipe: Any) -> bool:
    return isinstance(pipe.unet, nn.Module) and bool(_layers(pipe.unet))


def _layers(unet: nn.Module) -> dict[str, ExpertConv2d]:
    """By module name; where several UNets take turns, after the first name of each."""
    if not isinstance(unet, SwitchedUNet):
        return expert_layers(unet)
    names = {member: name for name, member in reversed(unet.unets.items())}
    return {
        f"{name}: {layer}": module
        for member, name in reversed(names.items())
        for layer, module in expert_layers(member).items()
    }


def observe(
    pipe: DiffusionPipeline, prompts: Sequence[str], steps: int, guidance: float, size: int | None, seed: int
) -> tuple[Routing, list[Image]]:
    """Draw each prompt alone, with the noise that every verb gives it, and look on."""
    draw: Callable[..., Any] = pipe
    whole: Any = pipe
    seen: dict[str, list[Tensor]] = {name: [] for name in _layers(whole.unet)}
    pictures = []
    for index, prompt in enumerate(track(prompts, "watching the experts", len(prompts))):
        with watched(whole.unet) as calls:
            noise = torch.Generator("cpu").manual_seed(prompt_seed(seed, index))
            settings = {"num_inference_steps": steps, "guidance_scale": guidance, "height": size, "width": size}
            pictures.append(draw(prompt, generator=noise, **settings).images[0])
        for name, each in calls.items():
            seen[name] += [torch.stack(each)] if each else []  # a switched UNet may never be called
    return Routing({name: torch.stack(each) for name, each in seen.items() if each}, tuple(prompts)), pictures


@contextmanager
def watched(unet: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Convolution -> the weights [rows, experts] of each UNet call; kernels that were kept are mixed again."""
    layers = _layers(unet)
    calls: dict[str, list[Tensor]] = {name: [] for name in layers}
    hooks = [layer.router.register_forward_hook(_noting(calls[name])) for name, layer in layers.items()]
    hooks.append(unet.register_forward_pre_hook(lambda *_: _forget(layers.values())))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _noting(calls: list[Tensor]) -> Callable[[nn.Module, Any, Tensor], None]:
    def note(_module: nn.Module, _inputs: Any, weights: Tensor) -> None:
        calls.append(weights.detach().float().cpu())

    return note


def _forget(layers: Any) -> None:
    each: ExpertConv2d
    for each in layers:
        each.kept.clear()
