"""Stable Diffusion's families as stock diffusers directories without weights: 1.x, 2.x, XL. No torch, no network.

A single file says nothing of these: how noise is scheduled, how wide the text is read, what words are.
"""

from __future__ import annotations

import gzip
import json
from importlib import resources
from pathlib import Path
from typing import Any

from asdm_cli.unet.blocks import preset

HERE = resources.files("asdm_cli") / "models" / "families"
START, END = "<|startoftext|>", "<|endoftext|>"


def configs(family: str) -> dict[str, dict[str, Any]]:
    """A family's configuration files, by their places in a pipeline directory: `sd15`, `sd21` (768 px, v-prediction) or
    `sdxl`, text to image. Its UNet is the preset of the same name."""
    held: dict[str, dict[str, Any]] = json.loads((HERE / f"{family}.json").read_text(encoding="utf-8"))
    return {**held, "unet/config.json": preset(family)}


def write_tokenizer(folder: Path) -> None:
    """CLIP's words, as its tokenizer reads them: vocab.json and merges.txt. What it pads with says its config."""
    merges = gzip.decompress((HERE / "merges.txt.gz").read_bytes())
    (folder / "merges.txt").write_bytes(merges)
    pairs = merges.decode().splitlines()[1:]
    letters = _letters()
    words = [*letters, *(f"{each}</w>" for each in letters), *("".join(pair.split()) for pair in pairs), START, END]
    numbers = {word: number for number, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(numbers, ensure_ascii=False) + "\n", encoding="utf-8")


def _letters() -> list[str]:
    """A printable character for each byte: those of Latin-1 that are printable first, then the others, moved up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(0x100 + place) for place in range(len(others))]
