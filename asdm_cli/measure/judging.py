"""The judge that an evaluation plan asks for, with the networks and real pictures that its metrics need."""

from __future__ import annotations

from pathlib import Path

from asdm_cli.data.images import CROP
from asdm_cli.measure.cards import Card
from asdm_cli.measure.drawing import keep_real
from asdm_cli.measure.eval_plan import EvalPlan
from asdm_cli.measure.features import FeatureNetwork, feature_network
from asdm_cli.measure.pictures import PictureSet
from asdm_cli.measure.prompts import real_pictures
from asdm_cli.measure.scores import Judge
from asdm_cli.models.load import Clip, device_and_dtype, load_clip
from asdm_cli.models.metadata import claim, stamps_of


def real_origin(plan: EvalPlan) -> Card:
    return {"prompts": plan.prompts.title, "size": plan.size, "pictures": CROP}


def real_set(plan: EvalPlan, folder: Path) -> PictureSet:
    """All real pictures of the shard, at the size that is drawn, in `folder`."""
    real = PictureSet(folder / "real", plan.prompts.real)
    claim(real.folder, real_origin(plan))
    keep_real(real_pictures(plan.prompts.shards), real, plan.size)
    return real


def judge_of(plan: EvalPlan, folder: Path, reference: PictureSet, real: PictureSet | None) -> Judge:
    """Loads what the wanted metrics look through, and nothing else. What it finds out lies in `folder`, for reuse."""
    recipe = plan.recipe
    device, _ = device_and_dtype(recipe.device, "float32")
    clip: Clip | None = load_clip(plan.clip, device) if plan.clip else None
    network: FeatureNetwork | None = feature_network(recipe.features, clip, device) if plan.has_network else None
    by_probe = network if plan.probe and plan.probe.network == recipe.features else None
    if plan.probe and by_probe is None:
        by_probe = feature_network(plan.probe.network, None, device)
    if plan.clip:  # features are kept by what their pictures are; whose they are is said here
        claim(folder / "features", {"clip": stamps_of(plan.clip, plan.clip.rglob("*"))})
    return Judge(
        tuple(recipe.metrics),
        plan.prompts.prompts,
        plan.prompts.about,
        plan.prompts.distinct,
        network,
        clip,
        plan.probe,
        by_probe,
        real,
        reference,
        folder / "features",
        device,
        recipe.bootstrap,
        recipe.confidence,
        recipe.seed,
    )
