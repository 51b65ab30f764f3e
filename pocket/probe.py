"""Stage `probe`: linear probes on EfficientNet-Lite0's view of drawings: for labels of the trained ones, for styles of
all that are known, because a style must be told from what is drawn in it.

Fitted on copies that are mirrored, scaled, shifted and a little blurred, so that it is fair to what an autoencoder
draws. The weight decay is the one that serves drawings best that were left out of a first fit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from asdm_cli.metrics.features import FeatureNetwork, Features, feature_network
from asdm_cli.metrics.probe import CONFIG, WEIGHTS, Target, read_probe
from asdm_cli.training.loop import Noise, Part
from pocket.art import SETS
from pocket.drawings import Pairs, labels, moved, to_unit

NETWORK = "efficientnet_lite0"
COPIES = {"label": 7, "style": 1}
DECAYS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
LEFT_OUT = 5
"""Every so many drawings (for styles: labels) one is left out to choose the weight decay."""


def look(images: Tensor, network: FeatureNetwork, title: str) -> Features:
    """Features of uint8 images [n, 3, h, w]; on a CPU few at a time, as their activations leave the caches else."""
    batches = images.split(4 if network.device.type == "cpu" else 256)
    return network.features(track(batches, title, transient=True))


def copies(images: Tensor, count: int) -> Iterator[Tensor]:
    """uint8 [n, 3, h, w], 1 + count times: as they are, then moved and a little blurred."""
    noise = Noise(0, 0, Part(len(images)), images.device)
    yield images
    for _ in range(count):
        sharp = moved(to_unit(images), noise)
        blurred = F.avg_pool2d(F.pad(sharp, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        softness = noise.uniform()[:, None, None, None]
        yield as_bytes(sharp + softness * (blurred - sharp))


def looked_at(target: str, images: Tensor, network: FeatureNetwork, kept: Path) -> Features:
    """Features of the images and their copies; each copy's are kept in a file, as they cost minutes on a CPU."""
    kept.mkdir(parents=True, exist_ok=True)
    found, of = [], sha256(images.cpu().numpy().tobytes()).hexdigest()[:12]
    for file in kept.glob(f"{target}-*"):
        if not file.name.startswith(f"{target}-{of}-"):
            file.unlink()  # of other images
    for number, copy in enumerate(copies(images, COPIES[target])):
        file = kept / f"{target}-{of}-{number}.safetensors"
        if not file.exists():
            features = look(copy, network, f"features for {target}, {number + 1} of {COPIES[target] + 1}")
            assert features.stages is not None, "this network has them"
            save_file({"pooled": features.pooled, "stages": features.stages}, file.with_suffix(".partial"))
            file.with_suffix(".partial").rename(file)
        found.append(load_file(file))
    return Features(**{name: torch.cat([each[name] for each in found]) for name in found[0]})


def fit(inputs: Tensor, classes: Tensor, count: int, decay: float) -> tuple[Tensor, Tensor]:
    """Weight [count, d] and bias [count] of a logistic regression on standardised inputs [n, d], for plain ones."""
    mean, std = inputs.mean(0), inputs.std(0).clamp(min=1e-6)
    scaled = (inputs - mean) / std
    weight = torch.zeros(count, inputs.shape[1], device=inputs.device, requires_grad=True)
    bias = torch.zeros(count, device=inputs.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(scaled @ weight.T + bias, classes) + decay * weight.square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    plain = weight.detach() / std
    return plain, bias.detach() - plain @ mean


def fit_probe(train: Pairs, wide: Pairs, folder: Path, kept: Path, device: torch.device) -> None:
    """Write the probe's two files into `folder`; features on the way are kept in `kept`.

    The power of labels' inputs was tried: .875 of held-out drawings instead of .852.
    """
    network = feature_network(NETWORK, None, device)
    known = sorted({about["label"] for about in wide.about})
    seen = {
        "label": (train, torch.arange(len(train))),
        "style": (wide, torch.tensor([known.index(about["label"]) for about in wide.about])),
    }
    targets = {
        "label": Target(classes=labels(), inputs=["pooled"], power=0.5),
        "style": Target(classes=[art.style for art in SETS], inputs=["stages"]),
    }
    tensors: dict[str, Tensor] = {}
    for target, (pairs, groups) in seen.items():
        features = looked_at(target, pairs.images.to(device), network, kept)
        names = targets[target].classes
        truth = torch.tensor([names.index(about[target]) for about in pairs.about]).repeat(1 + COPIES[target])
        left_out = (groups % LEFT_OUT == 0).repeat(1 + COPIES[target])
        inputs = targets[target].view(features)
        right = {decay: _right(inputs, truth, left_out, decay) for decay in DECAYS}
        decay = max(right, key=lambda each: right[each])
        print(f"{target}: weight decay {decay}, {right[decay]:.3f} of left-out drawings right", flush=True)
        weight, bias = fit(inputs, truth, len(names), decay)
        tensors |= {f"{target}.weight": weight.half().contiguous(), f"{target}.bias": bias}
    folder.mkdir(parents=True, exist_ok=True)
    config = {"network": NETWORK, "targets": {name: vars(target) for name, target in targets.items()}}
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    save_file(tensors, folder / WEIGHTS)


def _right(inputs: Tensor, truth: Tensor, left_out: Tensor, decay: float) -> float:
    """Share of the left-out drawings that a fit on the others names."""
    weight, bias = fit(inputs[~left_out], truth[~left_out], int(truth.max()) + 1, decay)
    return float(((inputs[left_out] @ weight.T + bias).argmax(1) == truth[left_out]).float().mean())


@torch.no_grad()
def accuracies(folder: Path, pairs: Pairs, vae: AutoencoderKL) -> dict[str, float]:
    """How often the probe sees what drawings show, in them and in what an autoencoder makes of them."""
    probe, device = read_probe(folder), vae.device
    network = feature_network(probe.network, None, device)
    images = pairs.images.to(device)
    decoded = vae.decode(vae.encode(to_unit(images)).latent_dist.mean).sample
    figures = {}
    for ending, each in (("", images), ("_through_vae", as_bytes(decoded))):
        features = look(each, network, "features")
        for target in probe.targets:
            ranks = probe.ranks(target, features, [about[target] for about in pairs.about])
            figures[f"{target}_accuracy{ending}"] = float((ranks < 1).float().mean())
    return figures


def as_bytes(images: Tensor) -> Tensor:
    """-1..1 -> uint8"""
    return (images + 1).mul(127.5).round().clamp(0, 255).byte()
