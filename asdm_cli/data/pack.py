"""A folder of images with captions -> webdataset shards; the images' bytes as they are."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import webdataset

from asdm_cli.console import track
from asdm_cli.data.images import UnreadableError, file_bytes, read_rgb
from asdm_cli.data.shards import IMAGES, MASK, Faults, as_text, lines
from asdm_cli.errors import ModelError

TABLES = ("metadata.jsonl", "metadata.csv", "captions.csv")
CAPTION_COLUMNS = ("text", "caption")
OTHER_IMAGES = ("bmp", "gif", "tif", "tiff", "avif", "heic", "jxl")
RECORD = "pack.json"


class _LeftOut(Faults):
    """All that is not packed, one by one."""

    KEPT = sys.maxsize


def pack(folder: Path, target: Path, shard_size: int, seed: int | None, strict: bool) -> tuple[list[int], Faults]:
    """Write `00000.tar`, ... and `pack.json` into the existing `target`, by path or, with a seed, shuffled.

    Gives the samples of each shard, and what was left out. Raises ModelError where nothing can be packed and, if
    `strict`, where anything cannot.
    """
    faults = _LeftOut()
    images = images_in(folder, faults)
    if seed is not None:
        order = [*images.items()]
        random.Random(seed).shuffle(order)
        images = dict(order)
    counts: list[int] = []

    def close(_: str) -> None:
        writer.tarstream.stream.close()
        counts.append(writer.count)

    writer = webdataset.ShardWriter(
        f"{target}/".replace("%", "%%") + "%05d.tar",
        shard_size,
        math.inf,
        opener=lambda name: Path(name).open("wb"),  # noqa: SIM115 - `close` is called when it is full
        post=close,
        verbose=0,
        mtime=0,
        user="",
        group="",
    )
    with writer:
        for sample in track(samples(folder, images, faults), "packing", len(images)):
            writer.write(sample)
    if strict and faults.total():
        raise ModelError(
            f"{faults.listed()}\nnothing was written ({faults.summary()}); mend it, or pack without --strict"
        )
    if not sum(counts):
        raise ModelError(f"{faults.listed()}\n{folder}: no picture can be used ({faults.summary()})")
    record = {"samples": counts, "faults": dict(faults.counts), "left_out": faults.examples}
    (target / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return counts, faults


def images_in(folder: Path, faults: Faults) -> dict[Path, Path | None]:
    """Relative paths in the order of their names, each with that of its mask (`NAME.mask.png` by `NAME.png`). Hidden
    ones are left alone; folders that are not entered are told: nobody would miss their images. Raises ModelError where
    there is none."""
    found: list[Path] = []
    refused: list[OSError] = []
    for place, folders, files in os.walk(folder, onerror=refused.append):
        here = Path(place).relative_to(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if (folder / here / name).is_symlink():
                faults.add("linked folder", here / name, "links are not followed; pack it too")
        for path in (here / name for name in sorted(files) if not name.startswith(".")):
            suffix = path.suffix[1:].lower()
            if suffix in IMAGES:
                found.append(path)
            elif suffix in OTHER_IMAGES:
                faults.add("other picture format", path, f"only {', '.join(IMAGES)}")
    for error in refused:
        faults.add("unreadable folder", Path(error.filename).relative_to(folder), error.strerror)
    beside = {path.with_suffix("") for path in found}
    masks = {path.with_suffix(""): path for path in found if path.with_suffix("").suffix == f".{MASK}"}
    masks = {name.with_suffix(""): path for name, path in masks.items() if name.with_suffix("") in beside}
    images = sorted({*found} - {*masks.values()}, key=lambda path: path.as_posix())
    if not images:
        raise ModelError(f"{folder}: holds no picture ({', '.join(IMAGES)})")
    return {path: masks.get(path.with_suffix("")) for path in images}


def samples(folder: Path, images: Mapping[Path, Path | None], faults: Faults) -> Iterator[dict[str, Any]]:
    """As webdataset writes them."""
    captions, number = _captions(folder, faults), 0
    for extra in sorted(set(captions) - set(images)):
        faults.add("no such picture", extra, "named by a table of captions")
    for path, mask in images.items():
        try:
            data, beside = file_bytes(folder / path), (folder / path).with_suffix(".txt")
            masks = {f"{MASK}{mask.suffix.lower()}": file_bytes(folder / mask)} if mask else {}
            for each in (data, *masks.values()):
                read_rgb(each)
            caption = as_text(beside.read_bytes()) if beside.is_file() else captions.get(path)
        except UnreadableError as error:
            faults.add("unreadable image", path, error)
            continue
        except (UnicodeDecodeError, OSError) as error:
            faults.add("unreadable caption", path, error)
            continue
        if not caption or not caption.strip():
            faults.add("no caption" if caption is None else "empty caption", path)
            continue
        about = json.dumps({"file_name": path.as_posix()}).encode()
        text = caption.strip().encode()
        yield {"__key__": f"{number:08}", path.suffix[1:].lower(): data, **masks, "txt": text, "json": about}
        number += 1


def _captions(folder: Path, faults: Faults) -> dict[Path, str]:
    """By relative path, from every table in the folder and below; an image's first one counts."""
    captions: dict[Path, str] = {}
    for table in sorted(path for name in TABLES for path in folder.rglob(name) if path.is_file()):
        base, rows = table.parent.relative_to(folder), _jsonl if table.suffix == ".jsonl" else _csv
        for line, row in rows(table.read_bytes().decode("utf-8-sig", "surrogateescape")):
            columns = row if isinstance(row, dict) else {}
            name = columns.get("file_name")
            caption = next((columns[key] for key in CAPTION_COLUMNS if _is_text(columns.get(key))), None)
            if name and _is_text(name) and caption is not None:
                captions.setdefault(base / name, caption)
            else:
                what = row if isinstance(row, Exception) else "no file_name and text, or no UTF-8"
                faults.add("unreadable row", f"{table.relative_to(folder)}:{line}", what)
    return captions


def _is_text(value: Any) -> bool:
    """Half a character is none: what stood for bytes that are no UTF-8, or what JSON can spell."""
    try:
        return isinstance(value, str) and value.encode() is not None
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
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield begin, error
            continue
        if titles and row:
            yield begin, dict(zip(titles, row, strict=False))
        titles = titles or row
