"""The weighted formulas against torchmetrics, scipy and pairs counted one by one."""

from __future__ import annotations

import warnings

import numpy
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from asdm_cli.metrics import distances


class Ready(nn.Module):
    """A feature network whose images are features already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def features(n: int, width: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) + shift


def ones(n: int) -> Tensor:
    return torch.ones(1, n, dtype=torch.float64)


def pair(n: int, m: int, width: int) -> tuple[Tensor, Tensor]:
    return features(n, width, 0, 0.3), features(m, width, 1)


def repeated(things: Tensor, counts: Tensor) -> Tensor:
    return things.repeat_interleave(counts.long(), dim=0)


def test_kid_is_torchmetrics() -> None:
    mine, real = pair(40, 40, 16)
    theirs = KernelInceptionDistance(Ready(16), subsets=1, subset_size=40)
    theirs.update(mine, real=False)
    theirs.update(real, real=True)
    found = distances.kid(mine, real, ones(40), ones(40))
    assert found.shape == (1,)
    assert float(found) == pytest.approx(float(theirs.compute()[0]), rel=1e-4)


def test_kid_of_weights_counts_pairs_of_different_images_only(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, real = pair(9, 6, 4)
    counts, real_counts = torch.tensor([2.0, 0, 1, 3, 0, 1, 1, 1, 0]), torch.tensor([1.0, 2, 0, 0, 2, 1])
    ours = distances.kid(mine, real, counts[None].double(), real_counts[None].double())

    def kernel(a: Tensor, b: Tensor) -> float:
        return float((a.double() @ b.double() / 4 + 1) ** 3)

    def within(things: Tensor, counts: Tensor) -> float:
        chosen = repeated(torch.arange(len(things)), counts).tolist()
        kernels = [kernel(things[i], things[j]) for i in chosen for j in chosen if i != j]
        assert kernels
        return float(numpy.mean(kernels))

    cross = [kernel(a, b) for a in repeated(mine, counts) for b in repeated(real, real_counts)]
    expected = within(mine, counts) + within(real, real_counts) - 2 * float(numpy.mean(cross))
    assert float(ours) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(distances, "BLOCK", 4)
    blocks = distances.kid(mine, real, counts[None].double(), real_counts[None].double())
    assert float(blocks) == pytest.approx(expected, rel=1e-9)


def test_pictures_of_one_prompt_are_no_pair_for_kid() -> None:
    """Drawn twice all alike, prompts say what they said: in the figure, and in every resample."""
    mine, real = pair(20, 30, 8)
    drawn, others = distances.resamples(20, 50, 0), distances.resamples(30, 50, 1)
    once = distances.kid(mine, real, drawn, others)
    kept = distances.within(real, others)
    thrice = distances.kid(mine.repeat(3, 1), real, drawn.repeat(1, 3), others, times=3, real_within=kept)
    assert torch.allclose(once, thrice, rtol=1e-9)
    assert float(distances.kid(mine.repeat(3, 1), real, drawn.repeat(1, 3), others)[0]) > float(once[0]) + 0.01
    assert bool(distances.within(mine[:3], ones(3), times=3).isnan().all()), "of one prompt there is no pair"


@pytest.mark.parametrize(("n", "m", "width"), [(30, 25, 8), (12, 15, 40), (60, 10, 20)])
def test_frechet_is_scipys_and_torchmetrics(n: int, m: int, width: int) -> None:
    mine, real = pair(n, m, width)
    ours = float(distances.frechet(mine, real, ones(n), ones(m)))
    theirs = FrechetInceptionDistance(Ready(width))
    theirs.update(mine, real=False)
    theirs.update(real, real=True)
    covariances = [numpy.cov(each.double().numpy(), rowvar=False) for each in (mine, real)]
    shift = float((mine.double().mean(0) - real.double().mean(0)).square().sum())
    root = sqrtm(covariances[0] @ covariances[1]).real.trace()
    assert ours == pytest.approx(shift + covariances[0].trace() + covariances[1].trace() - 2 * root, rel=1e-3)
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-3)


def test_frechet_of_weights_is_that_of_repeated_features() -> None:
    mine, real = pair(20, 15, 6)
    counts = torch.tensor([0.0, 2, 1, 1, 1] * 4)
    weighted = distances.frechet(mine, real, torch.stack([counts, torch.ones(20)]).double(), ones(15).expand(2, -1))
    plain = distances.frechet(repeated(mine, counts), real, ones(20), ones(15))
    assert float(weighted[0]) == pytest.approx(float(plain))
    assert float(weighted[1]) == pytest.approx(float(distances.frechet(mine, real, ones(20), ones(15))))
    assert float(distances.frechet(real, real, ones(15), ones(15))) == pytest.approx(0, abs=1e-6)


def test_inception_score_is_torchmetrics() -> None:
    logits = features(50, 10, 0) * 3
    theirs = InceptionScore(Ready(10), splits=1)
    theirs.update(logits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics takes the deviation of its one split
        expected = float(theirs.compute()[0])
    assert float(distances.inception_score(logits, ones(50))) == pytest.approx(expected, rel=1e-5)


def test_retrieval_on_a_hand_made_matrix() -> None:
    captions = torch.eye(3)
    images = torch.tensor([[3.0, 1, 0], [2, 1, 0], [0.5, 0.4, 0.3]])
    scores, better = distances.own_caption(images, captions)
    assert better.tolist() == [0, 1, 2]
    assert scores.tolist() == pytest.approx([100 * 3 / 10**0.5, 100 / 5**0.5, 100 * 0.3 / 0.5**0.5])


def test_how_often_a_caption_is_drawn_changes_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    captions, images = features(6, 8, 0), features(18, 8, 1)
    monkeypatch.setattr(distances, "BLOCK", 4)
    scores, better = distances.own_caption(images, captions)
    each = [distances.own_caption(block, captions) for block in images.split(6)]
    assert torch.equal(scores, torch.cat([one for one, _ in each]))
    assert torch.equal(better, torch.cat([other for _, other in each]))


def test_a_resample_of_one_picture_alone_has_no_distance() -> None:
    weights = torch.tensor([[1.0, 1, 1], [3, 0, 0]], dtype=torch.float64)
    found = distances.kid(features(3, 8, 0), features(3, 8, 1), weights, torch.ones(2, 3, dtype=torch.float64))
    assert found.isnan().tolist() == [False, True]


def test_a_caption_that_stands_twice_does_not_beat_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = features(6, 8, 0)
    captions[4] = captions[1]
    images = captions + 0.01 * features(6, 8, 1)
    monkeypatch.setattr(distances, "BLOCK", 4)
    assert distances.own_caption(images, captions)[1].tolist() == [0] * 6
