"""Metrics against other implementations of the same formulas, and against figures worked out by hand."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance, poly_kernel

from asdm_cli.measure import metrics
from asdm_cli.measure.bootstrap import interval, resamples


def features(n: int, width: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) + shift


def ones(n: int) -> Tensor:
    return torch.ones(1, n, dtype=torch.float64)


def scipy_frechet(a: Tensor, b: Tensor) -> float:
    """FID's formula as it is published."""
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(0), numpy.cov(x, rowvar=False)) for x in (a.numpy(), b.numpy()))
    return float(((mean_a - mean_b) ** 2).sum() + numpy.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real))


def test_kid_is_torchmetrics_kid() -> None:
    mine, real = features(40, 12, 0), features(40, 12, 1, shift=0.3)
    theirs = KernelInceptionDistance(feature=nn.Identity(), subsets=1, subset_size=40)
    theirs.update(real, real=True)
    theirs.update(mine, real=False)
    assert float(metrics.kid(mine, real, ones(40), ones(40))) == pytest.approx(float(theirs.compute()[0]), rel=1e-4)


def test_kid_of_one_distribution_is_about_zero_and_grows_with_distance() -> None:
    mine = features(200, 12, 0)
    same, near, far = (
        float(metrics.kid(mine, features(150, 12, 1, shift), ones(200), ones(150))) for shift in (0.0, 0.3, 0.6)
    )
    assert abs(same) < near / 5
    assert 0 < near < far


def test_kid_counts_no_picture_as_its_own_pair() -> None:
    """Weights against a sum over pairs of different pictures, and blocks that do not divide the rows."""
    mine, real = features(5, 4, 0).double(), features(4, 4, 1).double()
    u, v = torch.tensor([2.0, 0, 1, 1, 1]).double(), torch.tensor([3.0, 0, 0, 1]).double()

    def within(x: Tensor, w: Tensor) -> Tensor:
        pairs = w[:, None] * w * (1 - torch.eye(len(w)))
        return (pairs * poly_kernel(x, x)).sum() / pairs.sum()

    cross = (u[:, None] * v * poly_kernel(mine, real)).sum() / (u.sum() * v.sum())
    expected = float(within(mine, u) + within(real, v) - 2 * cross)
    assert float(metrics.kid(mine, real, u[None], v[None])) == pytest.approx(expected, rel=1e-9)


def test_kid_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, real = features(11, 6, 0), features(7, 6, 1)
    weights = resamples(11, 3, 0), resamples(7, 3, 1)
    at_once = metrics.kid(mine, real, *weights)
    monkeypatch.setattr(metrics, "BLOCK", 4)
    torch.testing.assert_close(metrics.kid(mine, real, *weights), at_once)
    assert at_once.shape == (4,)


@pytest.mark.parametrize(("n", "m", "width"), [(60, 50, 8), (60, 12, 20), (9, 10, 20)])
def test_frechet_is_the_published_formula(n: int, m: int, width: int) -> None:
    """More pictures than features, fewer, and both."""
    mine, real = features(n, width, 0).double(), features(m, width, 1, shift=0.5).double()
    distance = float(metrics.frechet(mine, real, ones(n), ones(m)))
    assert distance == pytest.approx(scipy_frechet(mine, real), rel=1e-5)


def test_frechet_of_a_set_to_itself_is_zero() -> None:
    mine = features(30, 6, 0)
    assert float(metrics.frechet(mine, mine, ones(30), ones(30))) == pytest.approx(0, abs=1e-9)


def test_frechet_weights_are_repetitions() -> None:
    mine, real = features(12, 5, 0), features(10, 5, 1)
    counts = resamples(12, 1, 0)[1:]
    repeated = mine.repeat_interleave(counts[0].long(), dim=0)
    assert len({*counts[0].tolist()}) > 1
    torch.testing.assert_close(
        metrics.frechet(mine, real, counts, ones(10)), metrics.frechet(repeated, real, ones(12), ones(10))
    )


def test_inception_score_is_the_number_of_classes_told_apart() -> None:
    sure, unsure = 100 * torch.eye(4), torch.zeros(4, 4)
    assert float(metrics.inception_score(sure, ones(4))) == pytest.approx(4)
    assert float(metrics.inception_score(unsure, ones(4))) == pytest.approx(1)
    only_two = torch.tensor([[2.0, 2, 0, 0]], dtype=torch.float64)
    assert float(metrics.inception_score(sure, only_two)) == pytest.approx(2)


def test_retrieval_by_hand() -> None:
    captions = torch.eye(3)
    shown = torch.tensor([[2.0, 0, 0], [0.8, 0.6, 0], [0.6, 0.64, 0.48]])
    scores, better = metrics.own_caption(shown, captions)
    torch.testing.assert_close(scores, torch.tensor([100.0, 60.0, 48.0]))
    assert better.tolist() == [0, 1, 2]


def test_retrieval_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, captions = features(10, 6, 0), features(10, 6, 1)
    at_once = metrics.own_caption(shown, captions)
    assert at_once[1].sum() > 0
    monkeypatch.setattr(metrics, "BLOCK", 3)
    for blocked, whole in zip(metrics.own_caption(shown, captions), at_once, strict=True):
        torch.testing.assert_close(blocked, whole)


def test_a_caption_that_stands_twice_does_not_beat_itself() -> None:
    own = features(1, 64, 0)
    _, better = metrics.own_caption(own.repeat(2, 1), torch.cat([own, own * 1.7]))
    assert better.tolist() == [0, 0]


def test_psnr_by_hand() -> None:
    black = torch.zeros(3, 3, 16, 16)
    other = torch.stack([torch.full((3, 16, 16), level) for level in (0.0, 0.1, 1.0)])
    torch.testing.assert_close(metrics.psnr(other, black), torch.tensor([metrics.PSNR_CEILING, 20.0, 0.0]))


def test_ssim_by_hand() -> None:
    """Even pictures have no structure to lose: what is left is the brightness term, with K1 = 0.01."""
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    bright, dark = torch.full((1, 3, 16, 16), 0.8), torch.full((1, 3, 16, 16), 0.4)
    expected = (2 * 0.8 * 0.4 + 0.01**2) / (0.8**2 + 0.4**2 + 0.01**2)
    each = metrics.ssim(torch.cat([noise, bright]), torch.cat([noise, dark]))
    torch.testing.assert_close(each, torch.tensor([1.0, expected]), atol=1e-4, rtol=0)


def test_ssim_of_one_picture_has_one_figure() -> None:
    one = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert metrics.ssim(one, 1 - one).shape == (1,)


def test_resamples_are_the_figure_itself_and_seeded_draws() -> None:
    drawn = resamples(7, 20, seed=3)
    assert drawn.shape == (21, 7)
    assert drawn[0].tolist() == [1] * 7
    assert drawn.sum(1).tolist() == [7] * 21
    assert len(drawn[1:].unique(dim=0)) > 15
    assert torch.equal(drawn, resamples(7, 20, seed=3))
    assert not torch.equal(drawn, resamples(7, 20, seed=4))


def test_interval_of_a_mean_is_the_textbook_one() -> None:
    values = features(400, 1, 0).flatten()
    found = interval(metrics.mean(values, resamples(400, 2000, 0)), 0.95)
    half = 1.96 * float(values.std()) / math.sqrt(400)
    assert found.value == pytest.approx(float(values.mean()))
    assert found.low == pytest.approx(found.value - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.1 * half)
    assert found.kind == "95 % bootstrap"


def test_interval_quantiles_and_centring_by_hand() -> None:
    figures = torch.cat([torch.tensor([1.0]), torch.linspace(0, 100, 101)])
    plain, centred = interval(figures, 0.9), interval(figures, 0.9, centred=True)
    assert (plain.value, plain.low, plain.high) == pytest.approx((1, 5, 95))
    assert (centred.value, centred.low, centred.high) == pytest.approx((1, -44, 46))
    assert centred.kind == "90 % bootstrap, centred"
