"""How long a verb would take: what is counted, the call that is timed, and the words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from asdm_cli.compare.costs import Rounds, work
from asdm_cli.compare.run import Measures, compare
from asdm_cli.profiling import expected as module
from asdm_cli.profiling.expected import CALLS, QUICK, Work, duration, expected, hollow_unet
from asdm_cli.recipe.verbs import OnDevice
from asdm_cli.sampling.generate import processes
from asdm_cli.unet.blocks import preset
from asdm_cli.unet.flops import inputs, macs
from asdm_cli.unet.shapes import tensor_shapes
from tests import tiny
from tests.compare.setups import CPU, PLACE, value, whole

CONFIG = tiny.shape("sd15")
WORK = Work(0, CONFIG, (8, 8), tiny.TOKENS, "cpu", "float32")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (0.01234, "0.012 s"), (8.26, "8.3 s"), (119, "120 s"), (121, "2 min"), (754, "13 min"),
     (7190, "120 min"), (7300, "2 h"), (100_000, "28 h"), (180_000, "2.1 days"), (5e6, "58 days"), (1e9, "12000 days")],
)  # fmt: skip
def test_words_of_two_digits(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_told_by_the_multiply_accumulates_of_a_timed_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def stopwatch(_: torch.device) -> Callable[[Callable[[], Any]], float]:
        return lambda call: calls.append(call()) or 0.5

    monkeypatch.setattr(module, "stopwatch", stopwatch)
    eight = macs(CONFIG, 8, (8, 8), tiny.TOKENS).total
    text = expected(replace(WORK, macs=eight * 240))
    assert text == "about 2 min on this machine for UNet calls (one of one picture takes 0.062 s)"
    assert len(calls) == 1 + CALLS


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_large_call_is_told_from_a_small_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the real size the smallest latents are called, or what is quick; here nothing is called at all."""
    called: list[tuple[int, ...]] = []
    monkeypatch.setattr(module, "hollow_unet", lambda *_: lambda **given: called.append(tuple(given["sample"].shape)))
    config = preset(name)
    expected(replace(WORK, config=config, macs=1e15, latent=(64, 96), tokens=77))
    batch, _, high, wide = called[-1]
    assert batch == 1
    assert (high * 96, high % 8) == (wide * 64, 0)
    assert macs(config, 1, (high, wide)).total <= max(QUICK, macs(config, 1, (8, 12)).total)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_hollow_unet_is_called_like_one_with_weights(name: str) -> None:
    config = tiny.shape(name)
    unet = hollow_unet(config, CPU, torch.float32)
    held = unet.state_dict()
    assert {key: tuple(each.shape) for key, each in held.items()} == tensor_shapes(config)
    assert len({each.untyped_storage().data_ptr() for each in held.values()}) == 1
    with torch.inference_mode():
        drawn = unet(**inputs(config, 2, (8, 8), 16, CPU, torch.float32), return_dict=False)[0]
    assert torch.isfinite(drawn).all()


def test_what_is_counted_is_what_is_computed(tiny_pipeline: Path, tmp_path: Path) -> None:
    setups = [whole(tiny_pipeline, "one", steps=3), whole(tiny_pipeline, "two", steps=2, sampler="heun", guidance=1.0)]
    rounds = Rounds(2, 1, (1, 4), 32)
    planned = work(setups, 5, rounds, 32, OnDevice(device="cpu"))
    report = compare(setups, Measures(rounds=None), PLACE, tmp_path, processes())
    assert report is not None
    image = sum(value(report.records, name, "image_macs_g") for name in ("one", "two"))
    assert planned.macs / 1e9 == pytest.approx(image * (5 + 1 + 3 * 5))
    assert (planned.latent, planned.tokens, planned.config) == ((8, 8), tiny.TOKENS, setups[0].config)
