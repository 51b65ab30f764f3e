"""How a model directory is written: whole or not at all, with unchanged files as hard links. No torch."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from asdm_cli.errors import ModelError, RunError
from asdm_cli.models.disk import explained
from asdm_cli.models.lock import only_writer
from asdm_cli.models.source import INDEX, OURS, ModelDirectory
from asdm_cli.unet.blocks import Config
from asdm_cli.unet.checkpoint import WEIGHTS, Entry, copy_tensors
from asdm_cli.unet.expert_config import CLASS, EXPERTS, STOCK
from asdm_cli.unet.weight_files import inside

KEPT = {".json", ".txt", ".model", ".safetensors"}
"""File types that make up a component; code, pickles and read-me files are left behind."""
PLACE = "_name_or_path"
"""What diffusers and transformers call the directory that a model was read from."""
NO_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS}
"""Ways in which a file system says that this hard link is not to be had."""


def assemble_directory(source: ModelDirectory, target: Path, replaced: set[str]) -> None:
    """Put every component of `source` except the `replaced` ones under `target`, linked where possible."""
    target.mkdir(parents=True, exist_ok=True)
    if source.is_pipeline:
        link_or_copy(inside(source.path, source.path / INDEX), target / INDEX)
        _change_index(target / INDEX, {name: [None, None] for name in source.left_out})
    for name, folder in source.components.items():
        if name not in replaced:
            _link_component(source.path, folder, target / name)


def write_unet(config: Config, tensors: Mapping[str, Entry], folder: Path) -> None:
    """A UNet's config, and its weights byte for byte from where they lie."""
    write_config(config, folder)
    copy_tensors(tensors, folder / WEIGHTS)


def write_config(config: Config, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    kept = _without_place(config)
    (folder / "config.json").write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if folder.name == "unet" and (folder.parent / INDEX).is_file():
        kind = [OURS, CLASS] if config.get(EXPERTS) else ["diffusers", STOCK]
        _change_index(folder.parent / INDEX, {"unet": kind})


def _change_index(file: Path, entries: Mapping[str, object]) -> None:
    """Say in a pipeline's index what classes these components are. The file may be a link to the source's: it is
    written anew."""
    index = json.loads(file.read_text(encoding="utf-8"))
    changed = {**index, **entries}
    if changed == index:
        return
    file.unlink()
    file.write_text(json.dumps(changed, indent=2) + "\n", encoding="utf-8")


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link to the file behind `source`, or a copy where links do not reach. A configuration that says where on
    some machine a model lay is written without that."""
    if source.suffix == ".json" and f'"{PLACE}"' in (text := source.read_text(encoding="utf-8", errors="replace")):
        placeless = json.loads(text, object_hook=_without_place)
        target.write_text(json.dumps(placeless, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        shutil.copyfile(source, target)


def _without_place(held: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in held.items() if key != PLACE}


def _link_component(root: Path, folder: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(folder.iterdir()):
        if entry.suffix in KEPT and inside(root, entry).is_file():
            link_or_copy(entry, target / entry.name)


def refuse_existing(target: Path, overwrite: bool) -> None:
    """ModelError if `target` stands in the way; call it before anything slow."""
    if target.is_symlink():
        raise ModelError(f"{target}: is a link; give the directory itself as the place to write to")
    if target.exists() and not target.is_dir():
        raise ModelError(f"{target}: is a file; choose another place to write to")
    if target.exists() and not overwrite:
        raise ModelError(f"{target}: exists already; choose another place, or say --overwrite to replace it")


def partial_path(target: Path) -> Path:
    """Where `target` grows until it is whole: a hidden sibling, so that the rename stays on one file system."""
    return target.parent / f".{target.name}.partial"


def old_path(target: Path) -> Path:
    """Where an older `target` waits while the new one takes its name."""
    return target.parent / f".{target.name}.old"


def put_back(target: Path) -> None:
    """After a crash between the two renames of `publish`: the older directory gets its name again."""
    if old_path(target).is_dir() and not target.exists():
        os.rename(old_path(target), target)


@contextmanager
def atomic_directory(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty sibling of `target`; on success it becomes `target` durably, on failure it goes away.

    Raises ModelError if something stands in the way, RunError if the disk does or if another process writes there.
    """
    with explained(target), only_writer(target):
        put_back(target)
        refuse_existing(target, overwrite)
        partial = partial_path(target)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            publish(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """The same for a single file, which replaces an older one: yields the path to write to."""
    with explained(target), only_writer(target):
        partial = partial_path(target)
        try:
            yield partial
            sync(partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def publish(partial: Path, target: Path) -> None:
    """Make what is in `partial` durable, then give it `target`'s name; an older `target` goes last."""
    _sync_tree(partial)
    old = old_path(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    try:
        os.rename(partial, target)
    except BaseException as error:
        put_back(target)
        if not isinstance(error, OSError):
            raise
        raise RunError(f"{target}: cannot be put in place ({error.strerror})") from None
    try:
        with suppress(OSError):  # it is in its place, whole
            sync(target.parent)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file or a directory's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(root: Path) -> None:
    for folder, _, files in os.walk(root):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
