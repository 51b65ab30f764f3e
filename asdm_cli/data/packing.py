"""A folder of pictures with captions -> webdataset shards; the pictures' bytes as they are."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import webdataset

from asdm_cli.data.faults import Faults
from asdm_cli.data.images import UnreadableError, read_rgb
from asdm_cli.data.shards import PICTURES
from asdm_cli.errors import ModelError
from asdm_cli.progress import track

TABLES = ("metadata.jsonl", "metadata.csv", "captions.csv")
CAPTION_COLUMNS = ("text", "caption")
OTHER_PICTURES = ("bmp", "gif", "tif", "tiff", "avif", "heic", "jxl")
RECORD = "pack.json"


@dataclass(frozen=True)
class Packed:
    samples: int
    shards: int
    faults: Faults


def pack(folder: Path, target: Path, shard_size: int, seed: int | None, strict: bool) -> Packed:
    """Write `00000.tar`, ... and `pack.json` into the existing `target`, by path or, with a seed, shuffled.

    Raises ModelError where nothing can be packed and, if `strict`, where anything cannot.
    """
    faults, left_out = Faults(), _LeftOut()
    pictures = _pictures(folder, left_out)
    if not pictures:
        raise ModelError(f"{folder}: holds no picture ({', '.join(PICTURES)})")
    if seed is not None:
        random.Random(seed).shuffle(pictures)
    samples = _samples(folder, pictures, left_out)
    counts = [_write(target / f"{number:05}.tar", chunk) for number, chunk in enumerate(_chunks(samples, shard_size))]
    for kind, where, what in left_out.all:
        faults.add(kind, where, what)
    if strict and faults.total():
        raise ModelError(
            f"{faults.listed()}\nnothing was written ({faults.summary()}); mend it, or pack without --strict"
        )
    if not counts:
        raise ModelError(f"{faults.listed()}\n{folder}: no picture can be used ({faults.summary()})")
    record = {"samples": counts, "faults": dict(faults.counts), "left_out": [": ".join(each) for each in left_out.all]}
    (target / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return Packed(sum(counts), len(counts), faults)


class _LeftOut:
    """Everything that is not packed: kind, file, why."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str, str]] = []

    def add(self, kind: str, where: object, what: object = "") -> None:
        self.all.append((kind, str(where), str(what)))


def _pictures(folder: Path, left_out: _LeftOut) -> list[Path]:
    """Relative paths in the order of their names, hidden ones left alone."""
    found = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        suffix = path.suffix[1:].lower()
        if any(part.startswith(".") for part in relative.parts) or not path.is_file():
            continue
        if suffix in PICTURES:
            found.append(relative)
        elif suffix in OTHER_PICTURES:
            left_out.add("other picture format", relative, f"only {', '.join(PICTURES)}")
    left_out.all.sort()
    return sorted(found, key=lambda path: path.as_posix())


def _samples(folder: Path, pictures: Sequence[Path], left_out: _LeftOut) -> Iterator[dict[str, Any]]:
    tables = _tables(folder, left_out)
    for extra in sorted(set(tables) - set(pictures)):
        left_out.add("no such picture", extra, "named by a table of captions")
    number = 0
    for path in track(pictures, "packing"):
        data = (folder / path).read_bytes()
        caption = _caption(folder, path, tables, left_out)
        if caption is None or not _is_readable(data, path, left_out):
            continue
        about = json.dumps({"file_name": path.as_posix()}).encode()
        suffix = path.suffix[1:].lower()
        yield {"__key__": f"{number:08}", suffix: data, "txt": caption.encode(), "json": about}
        number += 1


def _is_readable(data: bytes, path: Path, left_out: _LeftOut) -> bool:
    try:
        read_rgb(data)
    except UnreadableError as error:
        left_out.add("unreadable image", path, error)
        return False
    return True


def _caption(folder: Path, path: Path, tables: dict[Path, str], left_out: _LeftOut) -> str | None:
    """The text file beside the picture, else what a table says."""
    beside = (folder / path).with_suffix(".txt")
    try:
        caption = beside.read_text(encoding="utf-8-sig") if beside.is_file() else tables.get(path)
    except UnicodeDecodeError as error:
        left_out.add("unreadable caption", path, error)
        return None
    if caption and caption.strip():
        return caption.strip()
    left_out.add("no caption" if caption is None else "empty caption", path)
    return None


def _tables(folder: Path, left_out: _LeftOut) -> dict[Path, str]:
    """Captions by relative path, from every table in the folder and below; a picture's first one counts."""
    captions: dict[Path, str] = {}
    for table in sorted(path for name in TABLES for path in folder.rglob(name)):
        base = table.parent.relative_to(folder)
        read = _jsonl if table.suffix == ".jsonl" else _csv
        try:
            for line, row in read(table):
                name, caption = _columns(row)
                if name is None or caption is None:
                    left_out.add("unreadable row", f"{table.relative_to(folder)}:{line}", "no file_name and text")
                else:
                    captions.setdefault(base / name, caption)
        except (ValueError, csv.Error, RecursionError) as error:
            raise ModelError(f"{table}: cannot be read ({error}); it needs file_name and text or caption") from None
    return captions


def _columns(row: Any) -> tuple[str | None, str | None]:
    if not isinstance(row, dict):
        return None, None
    caption = next((row[name] for name in CAPTION_COLUMNS if isinstance(row.get(name), str)), None)
    name = row.get("file_name")
    return (name if isinstance(name, str) and name else None), caption


def _jsonl(table: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(table.read_text(encoding="utf-8-sig").splitlines(), 1):
        if line.strip():
            yield number, json.loads(line)


def _csv(table: Path) -> Iterator[tuple[int, Any]]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        for row in rows:
            yield rows.line_num, row


def _chunks(samples: Iterable[dict[str, Any]], size: int) -> Iterator[Iterator[dict[str, Any]]]:
    """Runs of up to `size`, none empty; each is to be used up before the next is asked for."""
    left = iter(samples)
    for first in left:
        yield _first_of(first, left, size)


def _first_of(first: Any, left: Iterator[Any], size: int) -> Iterator[Any]:
    yield first
    for _ in range(size - 1):
        following = next(left, None)
        if following is None:
            return
        yield following


def _write(target: Path, samples: Iterable[dict[str, Any]]) -> int:
    count = 0
    with target.open("wb") as file, webdataset.TarWriter(file, mtime=0, user="", group="") as tar:
        for sample in samples:
            tar.write(sample)
            count += 1
    return count
