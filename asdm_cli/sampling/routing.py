"""How a model's experts are used: every router's weights, call by call, while pictures are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from asdm_cli.console import track
from asdm_cli.experts.layer import ExpertConv2d
from asdm_cli.experts.unet import expert_layers
from asdm_cli.patches.guidance import GROUPS, HALVES, PROMPT
from asdm_cli.records import Record
from asdm_cli.sampling.generate import SamplingSettings, arguments, prompt_seed
from asdm_cli.sampling.prompts import Given


@dataclass(frozen=True)
class Routing:
    """Convolution (module name, in forward order) -> weights [prompts, UNet calls, rows of a picture, experts].

    With guidance a picture has several rows: as a rule the empty prompt's and its own, which is row `own`.
    """

    weights: dict[str, Tensor]
    prompts: tuple[str, ...]
    own: int = -1

    def mean(self, name: str) -> Tensor:
        """[experts], over everything that was seen."""
        return self.weights[name].mean((0, 1, 2))

    def by_call(self, name: str) -> Tensor:
        """[UNet calls, experts]."""
        return self.weights[name].mean((0, 2))

    def by_prompt(self, name: str) -> Tensor:
        """[prompts, experts], of the rows that see the prompt."""
        return self.weights[name][:, :, self.own].mean(1)

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

    def records(self, setup: str) -> Iterator[Record]:
        """Means and spreads of every router, and the weights by call of the one that varies most over calls."""
        spreads = {name: self.spread(name) for name in self.weights}
        for name, spread in spreads.items():
            for metric, value in {"effective_experts": spread.pop("effective"), **spread}.items():
                yield Record(setup, metric, value, of=f"router/{name}", n=len(self.prompts))
        for name in sorted(spreads, key=lambda name: spreads[name]["over_calls"])[-1:]:
            for call, weights in enumerate(self.by_call(name).tolist()):
                for expert, weight in enumerate(weights, 1):
                    yield Record(setup, "routing_weight", weight, of=f"{name}/expert {expert}", at=call)


def layers_of(unet: nn.Module) -> dict[str, ExpertConv2d]:
    """By module name; where several UNets take turns, after the first name of each."""
    unets = getattr(unet, "unets", None)
    if unets is None:
        return expert_layers(unet)
    names = {member: name for name, member in reversed(unets.items())}
    return {
        f"{name}: {layer}": module
        for member, name in reversed(names.items())
        for layer, module in expert_layers(member).items()
    }


def observe(
    pipe: Any, prompts: Sequence[str], settings: SamplingSettings, given: Sequence[Given] = ()
) -> tuple[Routing, list[Image]]:
    """Draw each prompt alone, with the noise that every verb gives it, and look on."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers_of(pipe.unet)}
    images = []
    for index, prompt in enumerate(track(prompts, "watching the experts", len(prompts))):
        with watched(pipe.unet) as calls:
            drawn = pipe(
                **arguments(pipe, [prompt], settings, given[index : index + 1]),
                generator=torch.Generator("cpu").manual_seed(prompt_seed(settings.seed, index)),
            )
            images.append(drawn.images[0])
        for name, each in calls.items():
            seen[name] += [torch.stack(each)] if each else []  # a UNet that takes turns may never be called
    own = 0 if GROUPS.get(type(pipe).__name__, HALVES)[:1] == (PROMPT,) else -1
    return Routing({name: torch.stack(each) for name, each in seen.items() if each}, tuple(prompts), own), images


@contextmanager
def watched(unet: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Convolution -> the weights [rows, experts] of each UNet call."""
    calls: dict[str, list[Tensor]] = {name: [] for name in layers_of(unet)}
    with ExitStack() as hooks:
        for name, layer in layers_of(unet).items():
            hooks.callback(layer.router.register_forward_hook(_noting(calls[name])).remove)
        yield calls


def _noting(calls: list[Tensor]) -> Callable[[nn.Module, Any, Tensor], None]:
    return lambda _module, _inputs, weights: calls.append(weights.detach().float().cpu())
