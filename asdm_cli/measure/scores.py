"""Every figure of one set of pictures, with its interval: which metric needs what, and nothing is computed twice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from asdm_cli.measure import metrics
from asdm_cli.measure.bootstrap import interval, resamples
from asdm_cli.measure.clip import picture_embeddings, text_embeddings
from asdm_cli.measure.features import FeatureNetwork, Features, cached_features
from asdm_cli.measure.paired import compare, comparison
from asdm_cli.measure.pictures import PictureSet
from asdm_cli.models.load import Clip
from asdm_cli.report.document import Column, Interval

Figures = dict[str, Interval]
FRECHET_RESAMPLES = 100
"""An eigenvalue problem each, so `bootstrap` is cut to this for FD."""
RECALLS = (1, 5)
PAIRED = {"psnr": "psnr_db", "ssim": "ssim", "perceptual": "perceptual"}
"""Metrics that compare with the reference's picture of the same prompt, and the key of their figure."""


@dataclass(frozen=True)
class Judge:
    """What pictures are held against. `network`, `clip` and `real` are None where no wanted metric needs them.

    The same resamples serve every set of pictures, so that differences between sets carry less noise.
    """

    wanted: tuple[str, ...]
    prompts: tuple[str, ...]
    splits: tuple[str, ...]
    network: FeatureNetwork | None
    clip: Clip | None
    real: PictureSet | None
    reference: PictureSet
    cache: Path
    device: torch.device
    bootstrap: int
    confidence: float
    seed: int

    def figures(self, pictures: PictureSet) -> Figures:
        """All wanted figures of pictures of the prompts, in the prompts' order."""
        return self.distribution(pictures) | self.captions(pictures) | self.paired(pictures)

    def real_figures(self) -> Figures:
        """The real pictures themselves: KID between the even and the odd ones, and how they fit their captions."""
        assert self.real is not None, "only asked for where there are real pictures"
        figures = self.captions(self.real.first(len(self.prompts)))
        if "kid" in self.wanted and self.real.count >= 4:
            even, odd = (self._features(self.real).pooled[half::2] for half in (0, 1))
            weights, other_weights = self._weights(len(even)), self._weights(len(odd), 1)
            figures["kid"] = self._interval(metrics.kid(even, odd, weights, other_weights))
        return figures

    def distribution(self, pictures: PictureSet) -> Figures:
        """KID and FD against all real pictures, IS; none of them looks at the prompts."""
        figures: Figures = {}
        weights = self._weights(pictures.count)
        if "is" in self.wanted:
            logits = self._features(pictures).logits
            assert logits is not None, "IS is refused at gate 3 for networks without classes"
            figures["is"] = self._interval(metrics.inception_score(logits, weights), centred=True)
        if self.real is None:
            return figures
        real_weights = self._weights(self.real.count, 1)
        if "kid" in self.wanted:
            mine, real = self._features(pictures).pooled, self._features(self.real).pooled
            figures["kid"] = self._interval(metrics.kid(mine, real, weights, real_weights))
        if "fd" in self.wanted:
            mine, real = self._features(pictures).pooled, self._features(self.real).pooled
            few = slice(1 + FRECHET_RESAMPLES)
            distances = metrics.frechet(mine, real, weights[few], real_weights[few])
            figures["fd"] = self._interval(distances, centred=True)
        return figures

    def captions(self, pictures: PictureSet) -> Figures:
        """CLIP score, and how often the own caption is found among all; also of each split alone, as `key/split`."""
        if self.clip is None or not {"clip_score", "clip_retrieval"} & set(self.wanted):
            return {}
        scores, better = metrics.own_caption(picture_embeddings(self.clip, pictures), self._caption_embeddings)
        values = {"clip_score": scores} if "clip_score" in self.wanted else {}
        if "clip_retrieval" in self.wanted:
            values |= {f"recall_at_{k}": (better < k).double() for k in RECALLS}
        figures = {key: self._interval(metrics.mean(each, self._weights(len(each)))) for key, each in values.items()}
        for split in self.split_names:
            inside = torch.tensor([own == split for own in self.splits])
            weights = self._weights(int(inside.sum()))
            figures |= {
                f"{key}/{split}": self._interval(metrics.mean(each[inside], weights)) for key, each in values.items()
            }
        return figures

    def paired(self, pictures: PictureSet) -> Figures:
        """PSNR, SSIM and perceptual distance to the reference's pictures; none of the reference itself."""
        if pictures.folder == self.reference.folder:
            return {}
        figures = {}
        for metric, key in PAIRED.items():
            if metric not in self.wanted:
                continue
            each = compare(comparison(metric, self.device), pictures, self.reference, self.device)
            figures[key] = self._interval(metrics.mean(each, self._weights(len(each))))
        return figures

    @property
    def split_names(self) -> list[str]:
        """The data's parts, if there are at least two to tell apart."""
        names = sorted(set(self.splits))
        return names if len(names) > 1 else []

    @cached_property
    def _caption_embeddings(self) -> Tensor:
        assert self.clip is not None, "only asked for where a metric uses the CLIP"
        return text_embeddings(self.clip, list(self.prompts))

    def _features(self, pictures: PictureSet) -> Features:
        assert self.network is not None, "only asked for where a metric uses the feature network"
        return cached_features(self.network, pictures, self.cache)

    def _weights(self, n: int, stream: int = 0) -> Tensor:
        return resamples(n, self.bootstrap, self.seed + stream)

    def _interval(self, figures: Tensor, centred: bool = False) -> Interval:
        return interval(figures, self.confidence, centred)


def columns(wanted: tuple[str, ...], network: FeatureNetwork | None) -> list[Column]:
    """The table columns of the wanted metrics, in a fixed order."""
    features = network.title if network else ""
    frechet = network.frechet_title if network else ""
    of = {
        "kid": [Column("kid", f"KID ({features})", "lower", 4)],
        "fd": [Column("fd", frechet, "lower", 1)],
        "is": [Column("is", f"IS ({features})", "higher", 2)],
        "clip_score": [Column("clip_score", "CLIP score", "higher", 2)],
        "clip_retrieval": [Column(f"recall_at_{k}", f"R@{k}", "higher", 3) for k in RECALLS],
        "psnr": [Column("psnr_db", "PSNR, dB", "higher", 2)],
        "ssim": [Column("ssim", "SSIM", "higher", 4)],
        "perceptual": [Column("perceptual", "perceptual (EfficientNet-Lite0)", "lower", 4)],
    }
    return [column for metric, each in of.items() if metric in wanted for column in each]
