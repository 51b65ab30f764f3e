"""Stage `probe`: linear probes on EfficientNet-Lite0's view of drawings: for labels of the trained ones, for styles of
all that are known, because a style must be told from what is drawn in it.

Fitted on copies that are mirrored, scaled, shifted and a little blurred, so that it is fair to what an autoencoder
draws. The weight decay is the one that serves drawings best that were left out of a first fit.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor

from asdm_cli.measure.features import FeatureNetwork, Features, feature_network
from asdm_cli.measure.probe import CONFIG, WEIGHTS, read_probe, view
from pocket.art import SETS
from pocket.drawings import Pairs, labels, moved, to_unit
from pocket.loop import Draws

NETWORK = "efficientnet_lite0"
COPIES = 7
INPUTS = {"label": ["pooled"], "style": ["pooled", "stages"]}
DECAYS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
LEFT_OUT = 5
"""Every so many drawings (for styles: labels) one is left out to choose the weight decay."""


def look(images: Tensor, network: FeatureNetwork, title: str) -> Features:
    """Features of uint8 images [n, 3, h, w]; on a CPU few at a time, as their activations leave the caches else."""
    batches = images.split(4 if network.device.type == "cpu" else 256)
    return network.features(track(batches, title, transient=True))


def copies(images: Tensor, count: int, seed: int = 0) -> Tensor:
    """uint8 [(1 + count) * n, 3, h, w]: as they are, then moved and a little blurred."""
    source = torch.Generator(images.device).manual_seed(seed)
    noise = Draws(source, len(images), slice(None))
    made = [images]
    for _ in range(count):
        sharp = moved(to_unit(images), noise)
        blurred = F.avg_pool2d(F.pad(sharp, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        softness = noise.uniform()[:, None, None, None]
        made.append((sharp + softness * (blurred - sharp) + 1).mul(127.5).round().clamp(0, 255).byte())
    return torch.cat(made)


def fit(inputs: Tensor, classes: Tensor, count: int, decay: float) -> tuple[Tensor, Tensor]:
    """Weight [count, d] and bias [count] of a logistic regression on standardised inputs [n, d], for plain ones."""
    mean, std = inputs.mean(0), inputs.std(0).clamp(min=1e-6)
    scaled = (inputs - mean) / std
    weight = torch.zeros(count, inputs.shape[1], device=inputs.device, requires_grad=True)
    bias = torch.zeros(count, device=inputs.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(scaled @ weight.T + bias, classes) + decay * weight.square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    plain = weight.detach() / std
    return plain, bias.detach() - plain @ mean


def fit_probe(train: Pairs, wide: Pairs, folder: Path, device: torch.device) -> None:
    """Write the probe's two files into `folder`."""
    network = feature_network(NETWORK, None, device)
    known = sorted({about["label"] for about in wide.about})
    seen = {
        "label": (train, COPIES, torch.arange(len(train))),
        "style": (wide, 0, torch.tensor([known.index(about["label"]) for about in wide.about])),
    }
    classes = {"label": labels(), "style": [art.style for art in SETS]}
    tensors: dict[str, Tensor] = {}
    for target, (pairs, count, groups) in seen.items():
        features = look(copies(pairs.images.to(device), count), network, f"features for {target}")
        truth = torch.tensor([classes[target].index(about[target]) for about in pairs.about]).repeat(1 + count)
        left_out = (groups % LEFT_OUT == 0).repeat(1 + count)
        inputs = view(features, INPUTS[target])
        right = {decay: _right(inputs, truth, left_out, decay) for decay in DECAYS}
        decay = max(right, key=lambda each: right[each])
        print(f"{target}: weight decay {decay}, {right[decay]:.3f} of left-out drawings right", flush=True)
        weight, bias = fit(inputs, truth, len(classes[target]), decay)
        tensors |= {f"{target}.weight": weight.half().contiguous(), f"{target}.bias": bias}
    folder.mkdir(parents=True, exist_ok=True)
    targets = {target: {"classes": names, "inputs": INPUTS[target]} for target, names in classes.items()}
    (folder / CONFIG).write_text(json.dumps({"network": NETWORK, "targets": targets}, indent=1) + "\n")
    save_file(tensors, folder / WEIGHTS)


def _right(inputs: Tensor, truth: Tensor, left_out: Tensor, decay: float) -> float:
    """Share of the left-out drawings that a fit on the others names."""
    weight, bias = fit(inputs[~left_out], truth[~left_out], int(truth.max()) + 1, decay)
    return float(((inputs[left_out] @ weight.T + bias).argmax(1) == truth[left_out]).float().mean())


def accuracy(folder: Path, pairs: Pairs, images: Tensor, device: torch.device) -> dict[str, float]:
    """How often the probe sees in `images` (uint8, of `pairs`) what they show."""
    probe = read_probe(folder)
    features = look(images, feature_network(probe.network, None, device), "features")
    ranks = {
        target: probe.ranks(target, features, [about[target] for about in pairs.about]) for target in probe.classes
    }
    return {f"{target}_accuracy": float((each < 1).float().mean()) for target, each in ranks.items()}
