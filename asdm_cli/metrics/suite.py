"""Every figure of one set of images, with its interval, as records: METRICS says what each metric computes and needs.

A new metric is an entry there, its word in the recipes' list, and a title in reports where its key is not enough.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from asdm_cli.errors import ModelError
from asdm_cli.metrics import distances
from asdm_cli.metrics.distances import compare, interval, resamples, wilson
from asdm_cli.metrics.features import (
    EXTRAS,
    FeatureNetwork,
    Features,
    cached_features,
    feature_network,
    require,
    text_embeddings,
)
from asdm_cli.metrics.probe import TOP, Probe, read_probe
from asdm_cli.models.directory import POCKET, ModelDirectory, check_clip, find
from asdm_cli.models.load import Clip, load_clip
from asdm_cli.models.metadata import claim, stamps_of
from asdm_cli.recipe.schema import local
from asdm_cli.recipe.verbs import Pictures
from asdm_cli.records import Card, Interval, Record
from asdm_cli.sampling.image_set import ImageSet
from asdm_cli.sampling.prompts import PromptList

FRECHET_RESAMPLES = 100
"""An eigenvalue problem each, so `bootstrap` is cut to this for FD."""
RECALLS = (1, 5)


@dataclass(frozen=True)
class Metric:
    """`compute` gives, by the figure's key, one value per image ([n]; of bool: whether it is right), or of a metric of
    the `whole` set its value in every resample [1 + resamples], which may be biased: `centred`.

    `needs`: "real" images, the set-up of "reference", a "clip", "features", those of a network that knows "classes", a
    network by its name. `asks`: what a probe is asked for; with "reference", what it sees there is the answer, and the
    prompts need not name one.
    """

    compute: Callable[[MetricSuite, ImageSet], dict[str, Tensor]]
    needs: Collection[str] = ()
    asks: str = ""
    whole: bool = False
    centred: bool = False


@dataclass(frozen=True)
class MetricSettings:
    """What is measured, as gate 3 found that it can be; `clip` and `probe` are None where no metric needs them."""

    metrics: tuple[str, ...]
    features: str
    clip: Path | None
    probe: Probe | None
    bootstrap: int
    confidence: float
    seed: int


def needed(metrics: Iterable[str]) -> set[str]:
    return {need for metric in metrics for need in METRICS[metric].needs}


def against_real(metrics: Iterable[str]) -> bool:
    """Whether real images say something that these metrics measure."""
    found = (METRICS[metric] for metric in metrics)
    return any({"real", "clip"} & {*each.needs} or (each.asks and "reference" not in each.needs) for each in found)


@dataclass
class MetricSuite:
    """What images are held against. Networks are loaded when a metric first looks through them.

    Others are compared with the images `reference` of the set-up `against`; `real` is None where there are no real
    images. The same resamples serve every set of images, so that differences between sets carry less noise.
    """

    settings: MetricSettings
    prompts: PromptList
    against: str
    reference: ImageSet
    real: ImageSet | None
    folder: Path
    """Where features are kept for reuse."""
    device: torch.device
    _networks: dict[str, FeatureNetwork] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.settings.clip:  # features are kept by what their images are; whose they are is said here
            claim(self.cache, {"clip": stamps_of(self.settings.clip, self.settings.clip.rglob("*"))})

    @property
    def cache(self) -> Path:
        return self.folder / "features"

    def measure(self, setup: str, images: ImageSet, paired: bool = True) -> list[Record]:
        """All wanted figures of images of the prompts, in the prompts' order; of those that compare with the reference,
        none for the reference itself or for what is not `paired` with it."""
        records: list[Record] = []
        paired = paired and images.folder != self.reference.folder
        for key, metric in self._wanted(paired):
            if metric.whole and images.count <= self.times(images.count):  # of one prompt there is no distribution
                continue
            values = metric.compute(self, images)
            if metric.whole:
                found = interval(values[key], self.settings.confidence, metric.centred)
                records.append(Record(setup, key, *found, n=images.count, against=self._against(metric)))
            else:
                records += self._averages(setup, metric, values)
                records += self._change(setup, key, metric, values[key]) if paired and key in CHANGES else []
        return records

    def measure_real(self, setup: str) -> list[Record]:
        """The real images themselves: KID between two halves of them, and how they fit their captions."""
        assert self.real is not None, "only asked for where there are real images"
        records: list[Record] = []
        if "kid" in self.settings.metrics and self.real.count >= 4:
            order = torch.randperm(self.real.count, generator=torch.Generator().manual_seed(self.settings.seed))
            one, other = (self.look(self.real).pooled[order[half::2]] for half in (0, 1))
            kid = distances.kid(one, other, self.weights(len(one)), self.weights(len(other), 1))
            records.append(Record(setup, "kid", *interval(kid, self.settings.confidence), n=self.real.count))
        for _, metric in self._wanted(paired=False):
            if not metric.whole:
                records += self._averages(setup, metric, metric.compute(self, self.real.first(self.prompts.distinct)))
        return records

    def protocol(self) -> Card:
        """How the figures are made from the images."""
        settings = self.settings
        few = f"(FD {FRECHET_RESAMPLES} at most), seed {settings.seed}"
        times = self.times(len(self.prompts.prompts))
        what = "pictures" if times == 1 else f"prompts, each with its {times} pictures,"
        card: Card = {"bootstrap": f"{settings.bootstrap} resamples of {what} {few}"}
        if "features" in needed(settings.metrics):
            network = self.network(settings.features)
            card |= {"feature_network": network.title, "feature_resize": network.resize}
        if settings.clip:
            name = f"{settings.clip.parent.name}/{settings.clip.name}"
            card |= {"clip": name, "clip_resize": self.network("clip").resize}
        if probe := settings.probe:
            card["probe"] = f"{probe.folder.parent.name}/{probe.folder.name} on {probe.network}"
        return card

    def look(self, images: ImageSet, network: str = "") -> Features:
        """Through the feature network that the recipe names, or through another one."""
        return self._looked(network or self.settings.features, images)

    @cached_property
    def _looked(self) -> Callable[[str, ImageSet], Features]:
        """What several metrics look at in turn is read once; a few sets at a time, for they may be large."""
        return lru_cache(4)(lambda network, images: cached_features(self.network(network), images, self.cache))

    def network(self, name: str) -> FeatureNetwork:
        if name not in self._networks:
            clip = self.clip if name == "clip" else None
            self._networks[name] = feature_network(name, clip, self.device)
        return self._networks[name]

    @cached_property
    def clip(self) -> Clip:
        assert self.settings.clip is not None, "gate 3 has found one for every metric that needs it"
        return load_clip(self.settings.clip, self.device)

    @cached_property
    def captions(self) -> Tensor:
        """The prompts, embedded by the CLIP; each once, however often it is drawn."""
        return text_embeddings(self.clip, list(self.prompts.prompts[: self.prompts.distinct]))

    def beside_real(self, images: ImageSet) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features of these and of all real images, and the weights of both."""
        assert self.real is not None, "gate 3 has seen to it"
        mine, real = self.look(images).pooled, self.look(self.real).pooled
        return mine, real, self.weights(len(mine), times=self.times(len(mine))), self.weights(len(real), 1)

    @cached_property
    def real_within(self) -> Tensor:
        """The part of KID that is the real images' alone."""
        assert self.real is not None, "gate 3 has seen to it"
        return distances.within(self.look(self.real).pooled, self.weights(self.real.count, 1))

    def times(self, pictures: int) -> int:
        """How many of each prompt these are."""
        return max(1, pictures // self.prompts.distinct)

    def weights(self, n: int, stream: int = 0, times: int = 1) -> Tensor:
        """Resamples; of prompts, where these are `times` pictures of each, which are alike and come and go as one."""
        drawn = resamples(n // times, self.settings.bootstrap, self.settings.seed + stream)
        return drawn.repeat(1, times)

    def _wanted(self, paired: bool) -> list[tuple[str, Metric]]:
        wanted = [(metric, METRICS[metric]) for metric in self.settings.metrics]
        return [(key, metric) for key, metric in wanted if paired or "reference" not in metric.needs]

    def _averages(self, setup: str, metric: Metric, values: dict[str, Tensor]) -> list[Record]:
        """Over all images; and over those of each part of the data, where they are held against their own captions."""
        against = self._against(metric)
        parts = [facts.get("split", "") for facts in self.prompts.about]
        records = []
        for part in [None, *(sorted(set(parts)) if len(set(parts)) > 1 and not against else [])]:
            inside = torch.tensor([part is None or own == part for own in parts])
            of = "" if part is None else f"split/{part}"
            for key, each in values.items():
                own, times = each[inside[: len(each)]], self.times(len(each))
                records.append(Record(setup, key, *self._average(own, times), of=of, n=len(own), against=against))
        return records

    def _change(self, setup: str, key: str, metric: Metric, values: Tensor) -> list[Record]:
        """From the reference's pictures of the same prompts and seeds on: that of two sets says less."""
        change = values.double() - metric.compute(self, self.reference)[key].double()
        found = self._average(change, self.times(len(change)))
        return [Record(setup, CHANGES[key], *found, n=len(change), against=self.against)]

    def _against(self, metric: Metric) -> str:
        return self.against if "reference" in metric.needs else ""

    def _average(self, values: Tensor, times: int) -> Interval:
        """Of what is right or wrong, Wilson's interval; of numbers, a bootstrap's, where there is more than one."""
        if values.dtype == torch.bool:
            effect = distances.design_effect(values, times)
            return wilson(int(values.sum()), len(values), self.settings.confidence, effect)
        if len(values) == times:
            return Interval(float(values.double().mean()), None, None, "")
        return interval(distances.mean(values, self.weights(len(values), times=times)), self.settings.confidence)


def _kid(suite: MetricSuite, images: ImageSet) -> dict[str, Tensor]:
    times = suite.times(images.count)
    return {"kid": distances.kid(*suite.beside_real(images), times=times, real_within=suite.real_within)}


def _fd(suite: MetricSuite, images: ImageSet) -> dict[str, Tensor]:
    mine, real, weights, real_weights = suite.beside_real(images)
    few = slice(1 + FRECHET_RESAMPLES)
    return {"fd": distances.frechet(mine, real, weights[few], real_weights[few])}


def _fd_original(suite: MetricSuite, images: ImageSet) -> dict[str, Tensor]:
    """A resample has pictures and the reference's pictures of the same prompts: equal ones have no distance in any."""
    mine, original = suite.look(images).pooled, suite.look(suite.reference).pooled
    weights = suite.weights(len(mine), times=suite.times(len(mine)))[: 1 + FRECHET_RESAMPLES]
    return {"fd_original": distances.frechet(mine, original, weights, weights)}


def _is(suite: MetricSuite, images: ImageSet) -> dict[str, Tensor]:
    logits = suite.look(images).logits
    assert logits is not None, "gate 3 refuses networks without classes"
    return {"is": distances.inception_score(logits, suite.weights(len(logits), times=suite.times(len(logits))))}


def _clip_score(suite: MetricSuite, images: ImageSet) -> dict[str, Tensor]:
    return {"clip_score": distances.own_caption(suite.look(images, "clip").pooled, suite.captions)[0]}


def _retrieval(suite: MetricSuite, images: ImageSet) -> dict[str, Tensor]:
    """How often the own caption is found among those of all prompts."""
    _, better = distances.own_caption(suite.look(images, "clip").pooled, suite.captions)
    return {f"recall_at_{k}": better < k for k in RECALLS}


def _accuracy(target: str, suite: MetricSuite, images: ImageSet) -> dict[str, Tensor]:
    """Whether a probe sees what the prompt's sample names."""
    probe = suite.settings.probe
    assert probe is not None, "gate 3 has found one for every metric that needs it"
    truth = [facts[target] for facts in suite.prompts.about[: images.count]]
    ranks = probe.ranks(target, suite.look(images, probe.network), truth)
    few = [k for k in TOP if k < len(probe.targets[target].classes)]
    return {f"{target}_accuracy" + (f"_top_{k}" if k > 1 else ""): ranks < k for k in few}


def _agreement(target: str, suite: MetricSuite, images: ImageSet) -> dict[str, Tensor]:
    """Whether a probe sees in it what it sees in the reference's picture of the same prompt and seed."""
    probe = suite.settings.probe
    assert probe is not None, "gate 3 has found one for every metric that needs it"
    seen = [probe.logits(target, suite.look(each, probe.network)).argmax(1) for each in (images, suite.reference)]
    return {f"{target}_agreement": seen[0] == seen[1]}


def _paired(metric: str, suite: MetricSuite, images: ImageSet) -> dict[str, Tensor]:
    return {KEYS.get(metric, metric): compare(metric, images, suite.reference, suite.device)}


METRICS = {
    "kid": Metric(_kid, {"features", "real"}, whole=True),
    "fd": Metric(_fd, {"features", "real"}, whole=True, centred=True),
    "is": Metric(_is, {"features", "classes"}, whole=True, centred=True),
    "clip_score": Metric(_clip_score, {"clip"}),
    "clip_retrieval": Metric(_retrieval, {"clip"}),
    "label_accuracy": Metric(partial(_accuracy, "label"), asks="label"),
    "style_accuracy": Metric(partial(_accuracy, "style"), asks="style"),
    "label_agreement": Metric(partial(_agreement, "label"), {"reference"}, asks="label"),
    "psnr": Metric(partial(_paired, "psnr"), {"reference"}),
    "ssim": Metric(partial(_paired, "ssim"), {"reference"}),
    "perceptual": Metric(partial(_paired, "perceptual"), {"reference", "efficientnet_lite0"}),
    "fd_original": Metric(_fd_original, {"features", "reference"}, whole=True, centred=True),
}
"""By the word in a recipe."""
KEYS = {"psnr": "psnr_db", "clip_retrieval": "recall_at_1"}
"""Metric -> the figure that it is known by, where that has another name."""
CHANGES = {key: f"{key}_change" for key in ("label_accuracy", "style_accuracy")}
"""Metric of single images -> the figure that compares them with the reference's."""


def check(recipe: Pictures, prompts: PromptList, own: ModelDirectory) -> MetricSettings:
    """Gate 3, from files and configs only: what a recipe's `metrics`, `features`, `clip`, `probe`, `bootstrap`,
    `confidence` and `seed` ask for, `own` being in this model. ModelError for what is missing, with the way out."""
    needs = needed(recipe.metrics)
    if "real" in needs and not prompts.real:
        asked = " and ".join(sorted(metric for metric in recipe.metrics if "real" in METRICS[metric].needs))
        way = "give shards of (picture, caption) as `prompts`, or leave them out"
        if prompts.given:
            way = "what is drawn from is no picture of what is drawn: measure psnr, ssim or perceptual"
        raise ModelError(f"metrics: {asked} compare with real pictures, and {prompts.name} has none; {way}")
    if "features" in needs and prompts.distinct < 2:
        asked = ", ".join(sorted(metric for metric in recipe.metrics if "features" in METRICS[metric].needs))
        raise ModelError(f"metrics: {asked} need pictures of two prompts or more; raise `limit`")
    if "classes" in needs and recipe.features == "clip":
        raise ModelError("metrics: is needs a network that knows classes; use features: efficientnet_lite0")
    for network in sorted({recipe.features if need == "features" else need for need in needs & {"features", *EXTRAS}}):
        require(network)
    clip = None
    if "clip" in needs or ("features" in needs and recipe.features == "clip"):
        clip = _folder("clip", recipe.clip, own)
        check_clip(clip)
    return MetricSettings(
        tuple(recipe.metrics),
        recipe.features,
        clip,
        _probe(recipe, prompts, own),
        recipe.bootstrap,
        recipe.confidence,
        recipe.seed,
    )


def _folder(kind: str, source: str, own: ModelDirectory) -> Path:
    """Of this model, of the bundled one, or of a directory: a CLIP's or a probe's, or one that has it inside."""
    if source == "own" and kind not in own.components:
        what = "CLIP" if kind == "clip" else kind
        raise ModelError(f"{own.path}: has no folder {kind}/; give a {what}'s directory as `{kind}`")
    if source in ("own", POCKET):
        return (own if source == "own" else find(POCKET)).component(kind)
    inner = local(source) / kind
    return inner if inner.is_dir() else inner.parent


def _probe(recipe: Pictures, prompts: PromptList, own: ModelDirectory) -> Probe | None:
    """The probe that the wanted metrics ask, if it knows what the prompts' samples name."""
    targets = [METRICS[metric].asks for metric in recipe.metrics if METRICS[metric].asks]
    if not targets:
        return None
    folder = _folder("probe", recipe.probe, own)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: has no config.json; give a probe's directory as `probe`, or leave it out")
    probe = read_probe(folder)
    require(probe.network)
    for target in targets:
        if target not in probe.targets:
            raise ModelError(
                f"{probe.folder}: knows no {target}, only {', '.join(probe.targets)}; leave the metric out"
            )
        if all("reference" in METRICS[metric].needs for metric in recipe.metrics if METRICS[metric].asks == target):
            continue
        named = {facts.get(target) for facts in prompts.about}
        if strange := sorted(str(name) for name in named - set(probe.targets[target].classes) if name is not None):
            raise ModelError(f"{prompts.name}: {target} {strange[0]!r} is no class of the probe {probe.folder}")
        if None in named:
            raise ModelError(
                f"metrics: {target}_accuracy needs prompts that name their {target}, and some of {prompts.name} do "
                f'not; give a shard whose samples have a .json with "{target}"'
            )
    return probe
