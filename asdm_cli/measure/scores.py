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
from asdm_cli.measure.probe import TOP, Probe, wilson
from asdm_cli.models.load import Clip
from asdm_cli.report.document import Column, Interval

Figures = dict[str, Interval]
FRECHET_RESAMPLES = 100
"""An eigenvalue problem each, so `bootstrap` is cut to this for FD."""
RECALLS = (1, 5)
TARGETS = {"label_accuracy": "label", "style_accuracy": "style"}
"""Metrics that ask a probe, and what they ask it for."""
PAIRED = {"psnr": "psnr_db", "ssim": "ssim", "perceptual": "perceptual"}
"""Metrics that compare with the reference's picture of the same prompt, and the key of their figure."""


@dataclass(frozen=True)
class Judge:
    """What pictures are held against. `network`, `clip`, `real` and `probe` (with the network that it looks through)
    are None where no wanted metric needs them. `prompts` may be the first `distinct` ones several times over.

    The same resamples serve every set of pictures, so that differences between sets carry less noise.
    """

    wanted: tuple[str, ...]
    prompts: tuple[str, ...]
    about: tuple[dict[str, str], ...]
    distinct: int
    network: FeatureNetwork | None
    clip: Clip | None
    probe: Probe | None
    probe_network: FeatureNetwork | None
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
        figures = self.captions(self.real.first(self.distinct))
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
        """How each picture of the first prompts fits its own: CLIP score and how often the own caption is found among
        all, and what a probe sees; also of each split alone, as `key/split`."""
        values = self._clip_values(pictures) | self._probe_values(pictures)
        splits = [facts.get("split", "") for facts in self.about[: pictures.count]]
        figures: Figures = {}
        for split in ["", *self.split_names]:
            inside = torch.tensor([not split or own == split for own in splits])
            ending = f"/{split}" if split else ""
            figures |= {key + ending: self._share_or_mean(each[inside]) for key, each in values.items()}
        return figures

    def _share_or_mean(self, values: Tensor) -> Interval:
        """Of what is right or wrong, Wilson's interval; of numbers, a bootstrap's."""
        if values.dtype == torch.bool:
            return wilson(int(values.sum()), len(values), self.confidence)
        return self._interval(metrics.mean(values, self._weights(len(values))))

    def _clip_values(self, pictures: PictureSet) -> dict[str, Tensor]:
        if self.clip is None or not {"clip_score", "clip_retrieval"} & set(self.wanted):
            return {}
        scores, better = metrics.own_caption(picture_embeddings(self.clip, pictures), self._caption_embeddings)
        values = {"clip_score": scores} if "clip_score" in self.wanted else {}
        if "clip_retrieval" in self.wanted:
            values |= {f"recall_at_{k}": (better < k).double() for k in RECALLS}
        return values

    def _probe_values(self, pictures: PictureSet) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        for metric in (metric for metric in TARGETS if metric in self.wanted):
            assert self.probe is not None, "the plan of an evaluation sees to it"
            assert self.probe_network is not None, "the plan of an evaluation sees to it"
            target = TARGETS[metric]
            truth = [facts[target] for facts in self.about[: pictures.count]]
            ranks = self.probe.ranks(target, cached_features(self.probe_network, pictures, self.cache), truth)
            values |= {
                metric if k == 1 else f"{metric}_top_{k}": ranks < k for k in TOP if k < len(self.probe.classes[target])
            }
        return values

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
        names = sorted({facts.get("split", "") for facts in self.about})
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
        "label_accuracy": [
            Column("label_accuracy", "label accuracy", "higher", 3),
            Column("label_accuracy_top_5", "label, top 5", "higher", 3),
        ],
        "style_accuracy": [Column("style_accuracy", "style accuracy", "higher", 3)],
        "psnr": [Column("psnr_db", "PSNR, dB", "higher", 2)],
        "ssim": [Column("ssim", "SSIM", "higher", 4)],
        "perceptual": [Column("perceptual", "perceptual (EfficientNet-Lite0)", "lower", 4)],
    }
    return [column for metric, each in of.items() if metric in wanted for column in each]
