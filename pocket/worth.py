"""What the blocks of the bundled UNet are worth, and whether its pictures are copies: two tables of the card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from asdm_cli.metrics.features import feature_network
from asdm_cli.metrics.probe import read_probe
from pocket.drawings import Pairs, to_unit
from pocket.probe import NETWORK, look

TIMES = (900, 500, 100)


def blocks(unet: nn.Module) -> dict[str, nn.Module]:
    """Address -> module, in the order of a call."""
    down = {f"down.{i}": block for i, block in enumerate(unet.get_submodule("down_blocks").children())}
    up = {f"up.{i}": block for i, block in enumerate(unet.get_submodule("up_blocks").children())}
    return down | {"mid": unet.get_submodule("mid_block")} | up


@contextmanager
def zeroed(module: nn.Module) -> Iterator[None]:
    """All that the module hands on, skips included, is zero."""

    def zero(_module: nn.Module, _inputs: object, output: Any) -> Any:
        return tree_map(lambda part: torch.zeros_like(part) if isinstance(part, Tensor) else part, output)

    hook = module.register_forward_hook(zero)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def output_errors(pipe: StableDiffusionPipeline, pairs: Pairs, count: int = 32) -> dict[str, list[float]]:
    """Block -> relative square error of the UNet's output without it, at each of TIMES."""
    latents = pipe.vae.encode(to_unit(pairs.images[:count])).latent_dist.mean * pipe.vae.config["scaling_factor"]
    text, _ = pipe.encode_prompt(pairs.captions[:count], "cpu", 1, do_classifier_free_guidance=False)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    errors: dict[str, list[float]] = {name: [] for name in blocks(pipe.unet)}
    for time in TIMES:
        noisy = pipe.scheduler.add_noise(latents, noise, torch.tensor([time]))
        whole = pipe.unet(noisy, time, text).sample
        for name, block in blocks(pipe.unet).items():
            with zeroed(block):
                without = pipe.unet(noisy, time, text).sample
            errors[name].append(float((without - whole).square().sum() / whole.square().sum()))
    return errors


@torch.no_grad()
def label_accuracies(
    pipe: StableDiffusionPipeline, pairs: Pairs, guidance: float, count: int = 128
) -> dict[str, float]:
    """Block -> label accuracy of the first captions' pictures, drawn without it; `whole` is the UNet as it is."""
    pipe.set_progress_bar_config(disable=True)
    probe = read_probe(Path(pipe.name_or_path) / "probe")
    network = feature_network(NETWORK, None, torch.device("cpu"))
    truth = [about["label"] for about in pairs.about[:count]]

    def accuracy() -> float:
        drawn = []
        for start in range(0, count, 16):
            batch = pairs.captions[start : min(start + 16, count)]
            noise = [torch.Generator().manual_seed(start + i) for i in range(len(batch))]
            images = pipe(
                batch, num_inference_steps=25, guidance_scale=guidance, generator=noise, output_type="pt"
            ).images
            drawn.append((images * 255).round().byte())
        features = look(torch.cat(drawn), network, "features")
        return float((probe.ranks("label", features, truth) < 1).float().mean())

    found = {"whole": accuracy()}
    for name, block in blocks(pipe.unet).items():
        with zeroed(block):
            found[name] = accuracy()
    return found


def nearest(images: Tensor, drawings: Tensor) -> Tensor:
    """Distance of each image's pooled features to the nearest drawing's, as a share of the drawings' typical distance
    from one another [n]. uint8 [n, 3, h, w] and [m, 3, h, w]."""
    network = feature_network(NETWORK, None, torch.device("cpu"))
    mine, theirs = (look(each, network, "features").pooled for each in (images, drawings))
    typical = torch.cdist(theirs, theirs).flatten().median()
    return torch.cdist(mine, theirs).min(1).values / typical
