"""The bundled model, and what verbs make of it, draw in plain diffusers without a word about number formats."""

from __future__ import annotations

from pathlib import Path

from asdm_cli.models.directory import find
from tests.expanding import done
from tests.forking import plain

DRAW = """
import sys
from diffusers import StableDiffusionPipeline

for folder in sys.argv[1:]:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert len({part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)}) == 1, folder
    (image,) = pipe("fox, noto style", num_inference_steps=1).images
    print(image.size)
assert not any(name.startswith("asdm") for name in sys.modules)
"""


def test_plain_diffusers_draws_with_it(tmp_path: Path) -> None:
    pruned = done(tmp_path / "base", {"verb": "prune", "model": "pocket", "remove": "base"})
    told = plain(DRAW, find("pocket").path, pruned / "model", cwd=tmp_path)
    assert told.code == 0, told.err[-2000:]
    assert told.out.split("\n")[:2] == ["(64, 64)"] * 2
