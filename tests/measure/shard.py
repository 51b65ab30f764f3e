"""Made-up webdataset shards."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

Sample = Mapping[str, bytes]
"""Bytes by extension."""


def write_shard(path: Path, samples: Mapping[str, Sample]) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, sample in samples.items():
            for extension, data in sample.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def sample(caption: str, colour: tuple[int, int, int], split: str = "", size: int = 32) -> Sample:
    parts = {"png": png(colour, size), "txt": caption.encode()}
    return parts | {"json": json.dumps({"split": split}).encode()} if split else parts


def png(colour: tuple[int, int, int], size: int = 32) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return file.getvalue()
