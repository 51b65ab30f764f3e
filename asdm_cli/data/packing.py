"""A folder of pictures with captions -> webdataset shards; the pictures' bytes as they are."""

from __future__ import annotations

import csv
import io
import json
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import webdataset

from asdm_cli.console import track
from asdm_cli.data.faults import Faults
from asdm_cli.data.images import UnreadableError, file_bytes, read_rgb
from asdm_cli.data.shards import PICTURES
from asdm_cli.data.texts import as_text, lines
from asdm_cli.errors import ModelError

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
    for path in _files(folder, left_out):
        relative = path.relative_to(folder)
        suffix = path.suffix[1:].lower()
        if suffix in PICTURES:
            found.append(relative)
        elif suffix in OTHER_PICTURES:
            left_out.add("other picture format", relative, f"only {', '.join(PICTURES)}")
    left_out.all.sort()
    return sorted(found, key=lambda path: path.as_posix())


def _files(folder: Path, left_out: _LeftOut) -> Iterator[Path]:
    """All that are not hidden. Folders that are not entered are told: nobody would miss their pictures."""

    def closed(error: OSError) -> None:
        left_out.add("unreadable folder", Path(error.filename).relative_to(folder), error.strerror)

    for place, folders, files in os.walk(folder, onerror=closed):
        here = Path(place)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if (here / name).is_symlink():
                left_out.add("linked folder", (here / name).relative_to(folder), "links are not followed; pack it too")
        yield from (here / name for name in files if not name.startswith("."))


def _samples(folder: Path, pictures: Sequence[Path], left_out: _LeftOut) -> Iterator[dict[str, Any]]:
    tables = _tables(folder, left_out)
    for extra in sorted(set(tables) - set(pictures)):
        left_out.add("no such picture", extra, "named by a table of captions")
    number = 0
    for path in track(pictures, "packing"):
        caption, data = _caption(folder, path, tables, left_out), _picture(folder, path, left_out)
        if caption is None or data is None:
            continue
        about = json.dumps({"file_name": path.as_posix()}).encode()
        suffix = path.suffix[1:].lower()
        yield {"__key__": f"{number:08}", suffix: data, "txt": caption.encode(), "json": about}
        number += 1


def _picture(folder: Path, path: Path, left_out: _LeftOut) -> bytes | None:
    """Its bytes, if they can be read."""
    try:
        data = file_bytes(folder / path)
        read_rgb(data)
        return data
    except UnreadableError as error:
        left_out.add("unreadable image", path, error)
    return None


def _caption(folder: Path, path: Path, tables: dict[Path, str], left_out: _LeftOut) -> str | None:
    """The text file beside the picture, else what a table says."""
    beside = (folder / path).with_suffix(".txt")
    try:
        caption = as_text(beside.read_bytes()) if beside.is_file() else tables.get(path)
    except (UnicodeDecodeError, OSError) as error:
        left_out.add("unreadable caption", path, error)
        return None
    if caption and caption.strip():
        return caption.strip()
    left_out.add("no caption" if caption is None else "empty caption", path)
    return None


def _tables(folder: Path, left_out: _LeftOut) -> dict[Path, str]:
    """Captions by relative path, from every table in the folder and below; a picture's first one counts."""
    captions: dict[Path, str] = {}
    for table in sorted(path for name in TABLES for path in folder.rglob(name) if path.is_file()):
        base, read = table.parent.relative_to(folder), _jsonl if table.suffix == ".jsonl" else _csv
        for line, row in read(table.read_bytes().decode("utf-8-sig", "surrogateescape")):
            name, caption = _columns(row)
            if name is None or caption is None:
                what = row if isinstance(row, Exception) else "no file_name and text, or no UTF-8"
                left_out.add("unreadable row", f"{table.relative_to(folder)}:{line}", what)
            else:
                captions.setdefault(base / name, caption)
    return captions


def _columns(row: Any) -> tuple[str | None, str | None]:
    if not isinstance(row, dict):
        return None, None
    caption = next((row[name] for name in CAPTION_COLUMNS if _is_text(row.get(name))), None)
    name = row.get("file_name")
    return (name if _is_text(name) and name else None), caption


def _is_text(value: Any) -> bool:
    """Half a character is none: what stood for bytes that are no UTF-8, or what JSON can spell."""
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


def _jsonl(text: str) -> Iterator[tuple[int, Any]]:
    """(line, row), or the line's fault in the row's place."""
    for number, line in enumerate(lines(text), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, error


def _csv(text: str) -> Iterator[tuple[int, Any]]:
    """The same; a row's line is its first."""
    rows, titles = csv.reader(io.StringIO(text, newline="")), list[str]()
    while True:
        begin = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield begin, error
            continue
        if row is None:
            return
        if not titles:
            titles = row
        elif row:
            yield begin, dict(zip(titles, row, strict=False))


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
