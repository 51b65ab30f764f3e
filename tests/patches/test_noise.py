"""Where calls lie in noise: by hand from the trained betas, for the part of a schedule that a pipeline runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler

from asdm_cli import inherit
from asdm_cli.errors import ModelError
from asdm_cli.models.schedulers import SAMPLERS
from asdm_cli.patches import base
from asdm_cli.patches.noise import coordinates
from tests import tiny
from tests.patches.conftest import Get
from tests.patches.pipes import draw

PLAN = {"rules": [{"nodes": "deepcache.1", "order": 2, "schedule": {"mode": "uniform", "interval": 2}}]}


def signal(time: float) -> float:
    """alpha^2 at a trained timestep: Stable Diffusion's betas are squares of even steps."""
    kept = 1.0
    for step in range(int(time) + 1):
        root = math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * step / 999
        kept *= 1 - root * root
    return kept


def log_snr(time: float) -> float:
    return math.log(signal(time) / (1 - signal(time)))


def planned(axis: str) -> dict[str, Any]:
    return {"rules": [{**PLAN["rules"][0], "axis": axis}]}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """What pipelines ask for, generation by generation."""
    found: list[list[float]] = []

    def watched(*asked: Any) -> list[float]:
        found.append(coordinates(*asked))
        return found[-1]

    monkeypatch.setattr(base, "coordinates", watched)
    return found


@pytest.mark.parametrize(
    ("kind", "sampler", "times"),
    [
        ("text", "ddim", [751, 501, 251, 1]),
        ("text", "pndm", [751, 501, 501, 251, 1]),
        ("image", "ddim", [501, 251, 1]),
        ("image", "pndm", [501, 501, 251, 1]),
        ("xl", "ddim", [751, 501]),
    ],
)
def test_log_snr_by_hand(kind: str, sampler: str, times: list[int], get: Get, seen: list[list[float]]) -> None:
    pipe = get(kind, sampler)
    settings: dict[str, Any] = {"xl": {"denoising_end": 0.7}, "image": {"strength": 0.8}}.get(kind, {})
    with inherit(pipe, planned("log-snr")) as handle:
        draw(pipe, 4, **settings)
        assert len(handle.stats().reused["unet"]) == len(times)
    (found,) = seen
    assert found == pytest.approx([log_snr(time) for time in times], rel=1e-3)


@pytest.mark.parametrize("axis", ["log-snr", "angle"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_all_samplers_know_their_noise(sampler: str, axis: str, get: Get, seen: list[list[float]]) -> None:
    pipe = get("text", sampler)
    pictures = []
    for plan in (PLAN, planned(axis)):
        with inherit(pipe, plan):
            pictures.append(draw(pipe, 5))
    assert pictures[1].isfinite().all()
    assert not torch.equal(*pictures), "the axis matters"
    (places,) = seen
    falling = sorted(places, reverse=axis == "angle")
    assert places == falling
    assert len(set(places)) >= 5


def test_a_schedule_that_ends_in_pure_noise_has_no_infinite_distance() -> None:
    scheduler = DDIMScheduler.from_config(tiny._scheduler().config, rescale_betas_zero_snr=True)
    scheduler.set_timesteps(4, device="cpu")
    assert float(scheduler.alphas_cumprod[-1]) == 0
    places = coordinates(scheduler, "log-snr", 1, 999.0) + coordinates(scheduler, "angle", 1, 999.0)
    assert all(math.isfinite(place) for place in places)


def test_where_nobody_knows_the_noise_it_is_said(get: Get) -> None:
    pipe = get()
    with inherit(pipe, planned("log-snr")) as handle:
        arguments = (torch.ones(1, 4, 8, 8), 5, torch.ones(1, 16, 16))
        told = pytest.raises(ModelError, match="only a pipeline's scheduler knows it; use `step`")
        with told, handle.cache.generation(3):
            pipe.unet(*arguments)
        assert handle.cache.thread.generation is None
    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(3)
    with pytest.raises(ModelError, match="EDMEulerScheduler has no alphas_cumprod; use `step`"):
        coordinates(scheduler, "log-snr", 3, 1.0)
