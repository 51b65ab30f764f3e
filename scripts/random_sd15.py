"""Write a UNet of Stable Diffusion 1.5's real size with random float32 weights (3.4 GB): what costs are measured on.

python scripts/random_sd15.py FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from math import prod
from pathlib import Path

from asdm_cli.unet.blocks import preset
from asdm_cli.unet.shapes import tensor_shapes
from asdm_cli.unet.weights import WEIGHTS

SIZE = 4
"""Bytes of a float32."""
BLOCK = os.urandom(1 << 22)
"""Repeated for all weights: noise enough for a measurement of copying."""


def write(folder: Path) -> Path:
    """One UNet directory: config.json and a safetensors file, written without holding the weights in memory."""
    config = preset("sd15")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(tensor_shapes(config).items()):
        begin, end = end, end + SIZE * prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    noise = _small_floats(BLOCK)
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, end, len(noise)):
            file.write(noise[: end - start])
        file.flush()
        os.fsync(file.fileno())
    return folder / WEIGHTS


def _small_floats(noise: bytes) -> bytes:
    """The same bytes as little-endian float32 of 2^-11 to 2^-9 in size and either sign."""
    words = bytearray(noise)
    words[3::4] = bytes(0x3A | byte & 0x80 for byte in words[3::4])
    return bytes(words)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(write(Path(sys.argv[1])))
