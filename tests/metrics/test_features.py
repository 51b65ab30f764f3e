"""Feature networks tell good pictures from bad ones, and look at each set once."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from transformers import CLIPImageProcessorPil

from asdm_cli.metrics import distances
from asdm_cli.metrics.features import (
    FeatureNetwork,
    Features,
    cached_features,
    feature_network,
    image_embeddings,
)
from asdm_cli.models.directory import find
from asdm_cli.models.load import Clip, load_clip
from tests.drawings import drawing, picture_set

CPU = torch.device("cpu")
needs_efficientnet = pytest.mark.skipif(
    find_spec("efficientnet_lite_pytorch") is None, reason="the extra `features` is not installed"
)


@pytest.fixture(scope="module")
def clip(tiny_pipeline: Path) -> Clip:
    return load_clip(find(str(tiny_pipeline)))


def stack(pictures: list[Image.Image], folder: Path) -> Tensor:
    return next(picture_set(folder, pictures).batches(64))


@needs_efficientnet
def test_efficientnet_kid_orders_clean_blurred_and_noisy(tmp_path: Path) -> None:
    network = feature_network("efficientnet_lite0", None, CPU)
    real, clean = [drawing(index) for index in range(24)], [drawing(index) for index in range(100, 124)]
    blurred = [each.filter(ImageFilter.GaussianBlur(1.5)) for each in clean]
    sets = {"real": real, "clean": clean, "blurred": blurred}
    pooled = {name: network.features(picture_set(tmp_path / name, each).batches(8)) for name, each in sets.items()}
    assert pooled["real"].pooled.shape == (24, 1280)
    assert pooled["real"].logits is not None
    assert pooled["real"].logits.shape == (24, 1000)
    ones = torch.ones(1, 24, dtype=torch.float64)
    kid = {name: float(distances.kid(each.pooled, pooled["real"].pooled, ones, ones)) for name, each in pooled.items()}
    assert abs(kid["clean"]) < 0.1 * kid["blurred"]
    assert kid["blurred"] > 0.02


def test_a_set_is_looked_at_again_only_when_images_network_or_cache_are_others(tmp_path: Path) -> None:
    seen: list[int] = []

    def look(images: Tensor) -> Features:
        seen.extend([1] * len(images))
        return Features(images.float().mean((2, 3)), None)

    def looked_at(title: str, expected: int) -> Features:
        seen.clear()
        found = cached_features(FeatureNetwork(title, "none", CPU, look), images, cache)
        assert len(seen) == expected
        return found

    images, cache = picture_set(tmp_path / "set", [drawing(index) for index in range(9)]), tmp_path / "cache"
    first = looked_at("one", 9)
    assert torch.equal(first.pooled, looked_at("one", 0).pooled)
    assert (first.pooled.shape, first.logits) == ((9, 3), None)
    looked_at("another", 9)
    images.save(2, drawing(77))
    changed = looked_at("one", 9)
    assert not torch.equal(changed.pooled, first.pooled)
    files = list(cache.iterdir())
    assert len(files) == 3
    for file in files:
        file.write_bytes(file.read_bytes()[:-5])
    assert torch.equal(looked_at("one", 9).pooled, changed.pooled)


def test_clip_sees_what_its_own_processor_makes(clip: Clip, tiny_pipeline: Path, tmp_path: Path) -> None:
    pictures = [drawing(index) for index in range(4)]
    processor = CLIPImageProcessorPil.from_pretrained(tiny_pipeline / "clip")
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = clip.model.get_image_features(pixel_values=pixels).pooler_output
        ours = image_embeddings(clip, stack(pictures, tmp_path))
    assert torch.allclose(ours, expected, atol=1e-5)
    features = feature_network("clip", clip, CPU).features([stack(pictures, tmp_path)])
    assert torch.allclose(features.pooled, expected, atol=1e-5)
    assert features.logits is None
