"""Shards for tests, written member by member, so that anything can be wrong with them."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from PIL import Image

Member = tuple[str, bytes]


def picture(seed: int, size: tuple[int, int] = (32, 32), kind: str = "PNG") -> bytes:
    pixels = numpy.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), numpy.uint8)
    return saved(Image.fromarray(pixels), kind)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A PNG whose header says this size; there are pixels of one."""
    raw = saved(Image.new("L", (1, 1)))
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + raw[24:29]
    return raw[:12] + header + zlib.crc32(header).to_bytes(4, "big") + raw[33:]


def sample(number: int, suffix: str = "png") -> list[Member]:
    kind = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}[suffix]
    return [(f"{number:04}.{suffix}", picture(number, kind=kind)), (f"{number:04}.txt", f"picture {number}".encode())]


def samples(*numbers: int) -> list[Member]:
    return [member for number in numbers for member in sample(number)]


def tar_bytes(members: Sequence[Member], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return out.getvalue()


def write(path: Path, members: Sequence[Member], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members, mode))
    return path


class PayloadError(Exception):
    """As aiohttp has one: what stores break off with is often no OSError."""


def break_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every read from fsspec's store in memory fails."""

    def read(*_: object, **__: object) -> bytes:
        raise PayloadError("25600 of 51200 bytes")

    monkeypatch.setattr(MemoryFile, "read", read)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", read)
