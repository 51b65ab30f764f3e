"""Number formats of weights, and what a change of format loses. torch is imported where something is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path

from asdm_cli.errors import ModelError
from asdm_cli.unet.weights import Piece, write_tensors

FORMATS = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}
"""Name -> what safetensors calls it, and its bytes."""
FLOATS = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
FLOATS |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
SHOWN = 3
"""Tensors that a message names."""
Lost = dict[str, int]


@contextmanager
def written_as(dtype: str | None) -> Iterator[Lost]:
    """Counts, by tensor, what has no value in this format; ModelError at the end if anything has none."""
    lost: Lost = {}
    yield lost
    if not lost:
        return
    named = [f"{name} ({count:,})" for name, count in sorted(lost.items(), key=lambda item: -item[1])]
    more = f" and {len(named) - SHOWN} other tensors" if len(named) > SHOWN else ""
    raise ModelError(
        f"{sum(lost.values()):,} values are no finite numbers in {dtype}: {', '.join(named[:SHOWN])}{more}; nothing is "
        "written. Say --dtype bfloat16, which reaches as far as float32, or leave the format as it is"
    )


def write(tensors: Mapping[str, Piece], target: Path, dtype: str | None, lost: Lost) -> None:
    """A weights file of these; their floating-point numbers in the format `dtype`, if one is given."""
    write_tensors({name: _as(dtype, name, each, lost) for name, each in tensors.items()}, target)


def size(tensors: Mapping[str, Piece], dtype: str | None) -> int:
    """Bytes that they will take."""
    return sum(_as(dtype, "", each, {}).size for each in tensors.values())


def told(tensors: Mapping[str, Piece], dtype: str | None) -> str:
    """The formats that they will be in, in words."""
    return ", ".join(sorted({FLOATS.get(each, each) for each in _held(tensors, dtype)}))


def _held(tensors: Mapping[str, Piece], dtype: str | None) -> set[str]:
    return {_as(dtype, "", each, {}).dtype for each in tensors.values() if each.shape != (0,)}


def _as(dtype: str | None, name: str, held: Piece, lost: Lost) -> Piece:
    if dtype is None or held.dtype not in FLOATS or held.dtype == FORMATS[dtype][0]:
        return held
    new, width = FORMATS[dtype]
    change = partial(_convert, held=held, dtype=dtype, name=name, lost=lost)
    return replace(held, dtype=new, size=prod(held.shape) * width, change=change)


def _convert(raw: bytes, held: Piece, dtype: str, name: str, lost: Lost) -> bytes:
    import torch

    raw = held.change(raw) if held.change else raw
    if not raw:
        return raw
    old = torch.frombuffer(bytearray(raw), dtype=getattr(torch, FLOATS[held.dtype]))
    new = old.to(getattr(torch, dtype))
    if bad := int((~torch.isfinite(new)).sum()):
        lost[name] = bad
    return new.view(torch.uint8).numpy().tobytes()
