"""Threads that encode side by side: how far a tokenizer pads and cuts is a state of its own, which they would change
under each other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

import asdm_cli
from asdm_cli.sampling import generate
from asdm_cli.sampling.generate import SamplingSettings, draw

AGAIN = 10
PROMPTS = [f"{number} " + "a fox " * (number % 7) for number in range(96)]
"""Some are cut, some are padded."""


class Encoding(StableDiffusionPipeline):
    """Draws what a prompt is encoded to, and encodes it many times."""

    @torch.no_grad()
    def __call__(self, prompt: list[str], **_: Any) -> Any:
        seen = [self.encode_prompt(prompt, "cpu", 1, True)[0] for _ in range(AGAIN)]
        whole = torch.sigmoid(torch.cat(seen, 1))  # a square of numbers between 0 and 1 for each prompt
        return SimpleNamespace(images=whole[:, None].expand(-1, 3, -1, -1))


@pytest.fixture(scope="module")
def pipe(tiny_pipeline: Path) -> Any:
    made: Any = asdm_cli.load(str(tiny_pipeline), "cpu")
    made.__class__ = Encoding
    return made


def drawn(pipe: Any, threads: int) -> dict[int, bytes]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        settings = SamplingSettings(1, 3.0, None, 0, batch=16)
        return {index: each.tobytes() for index, each in draw(pipe, PROMPTS, range(len(PROMPTS)), settings)}
    finally:
        torch.set_num_threads(before)


def test_threads_have_the_bits_of_one_alone(pipe: Any) -> None:
    alone = drawn(pipe, 1)
    assert len(set(alone.values())) > 60, "prompts that are cut alike are alike"
    assert drawn(pipe, 4) == alone


def test_with_one_tokenizer_for_all_they_would_not(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above sees something."""
    alone = drawn(pipe, 1)
    monkeypatch.setattr(generate, "_tokenizers", lambda _: {})
    for _ in range(20):
        try:
            same = drawn(pipe, 4) == alone
        except Exception:
            same = False
        if not same:
            return
    pytest.fail("a shared tokenizer was not noticed")
