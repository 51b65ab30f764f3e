"""Figures of pairs: known differences, symmetry, order."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageFilter

from asdm_cli.metrics.distances import PSNR_CEILING, compare, psnr, ssim
from tests.drawings import drawing, picture_set

CPU = torch.device("cpu")
needs_efficientnet = pytest.mark.skipif(
    find_spec("efficientnet_lite_pytorch") is None, reason="the extra `features` is not installed"
)


def test_psnr_of_sets_is_in_decibels_of_their_pixels(tmp_path: Path) -> None:
    grey = [Image.new("RGB", (16, 16), (level,) * 3) for level in (100, 151)]
    one, other = picture_set(tmp_path / "a", grey), picture_set(tmp_path / "b", grey[:1] * 2)
    found = compare("psnr", one, other, CPU)
    assert found.tolist() == pytest.approx([PSNR_CEILING, 13.979], abs=1e-2)  # 51 of 255 is a fifth: 20 log10 5


def test_psnr_and_ssim_per_image() -> None:
    reference = torch.randint(0, 128, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    images = reference + torch.tensor([0, 51, 5])[:, None, None, None]
    assert psnr(images, reference).tolist() == pytest.approx([100, 13.979, 34.151], abs=1e-3)
    similar = ssim(images, reference)
    assert similar[0] == pytest.approx(1)
    assert 1 > similar[2] > similar[1] > 0


@needs_efficientnet
def test_perceptual_distance_grows_with_the_change(tmp_path: Path) -> None:
    clean = [drawing(index) for index in range(3)]
    reference, found = picture_set(tmp_path / "clean", clean), {}
    for radius in (0, 0.5, 2):
        changed = picture_set(tmp_path / str(radius), [each.filter(ImageFilter.GaussianBlur(radius)) for each in clean])
        found[radius] = compare("perceptual", changed, reference, CPU)
        assert torch.allclose(found[radius], compare("perceptual", reference, changed, CPU), atol=1e-5), "symmetric"
    assert found[0].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert ((found[0] < found[0.5]) & (found[0.5] < found[2]) & (found[2] < 4)).all()
