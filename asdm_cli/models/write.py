"""How directories are written: whole or not at all, apart from their sources and anybody's files. No torch.

`NAME` grows as `.NAME.partial` beside its place, where an older one waits as `.NAME.old` while the new one takes its
name; who holds `.NAME.lock` alone may write. What has one of these names and is not ours is refused, never touched.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import BaseFileLock, FileLock, Timeout

from asdm_cli.errors import AsdmError, ModelError, RunError
from asdm_cli.models.directory import CONFIG, INDEX, OURS, TEXTS, UNET, ModelDirectory
from asdm_cli.unet.blocks import EXPERT_CLASS, EXPERTS, STOCK, Config
from asdm_cli.unet.weights import INDEX_OF_SHARDS, copy_range, inside, read_mapping

WEIGHT_FILE = ".safetensors"
PLACE = "_name_or_path"
"""What diffusers and transformers call the directory that a model was read from."""
MARK = ".asdm"
"""In every directory that is written here, from its first moment: it proves that the directory is ours, and names all
that was written into it."""
LOCK = "asdm.lock"
"""The only file in the folder `.NAME.lock`."""


class BusyError(RunError):
    """Another process is writing there, which may end."""


# --- what a model directory is made of ---


def assemble_directory(source: ModelDirectory, target: Path, link: bool = False, unet: Config | None = None) -> Path:
    """Write the model anew: an interrupted run may have left a part of it. Files are its own, but for weights with
    `link`. Of another `unet` its config alone is written, in the place of the source's; the folder that its weights
    belong in is returned."""
    shutil.rmtree(target, ignore_errors=True)
    parts = _carried(source, whole=unet is None)
    folder = target / UNET if source.is_pipeline else target
    folder.mkdir(parents=True)
    for name, files in parts.items():
        carry_component(files, target / name if source.is_pipeline else target, link)
    changed: dict[str, object] = {name: [None, None] for name in source.left_out}
    if unet is not None:
        text = json.dumps(_without_place(unet), indent=2, sort_keys=True)
        (folder / CONFIG).write_text(f"{text}\n", encoding="utf-8")
        changed[UNET] = [OURS, EXPERT_CLASS] if unet.get(EXPERTS) else ["diffusers", STOCK]
    if source.is_pipeline:
        _write_index(source, target, changed)
    return folder


def component_files(source: ModelDirectory, component: str) -> dict[Path, str]:
    """The files that make up a component, and what they are called where it is written: of weights those that count,
    under the names that every library looks for."""
    folder = source.component(component)
    files = {
        file: file.name
        for file in sorted(folder.iterdir())
        if file.suffix in TEXTS and not INDEX_OF_SHARDS.search(file.name) and inside(source.path, file).is_file()
    }
    if not (folder / CONFIG).is_file():
        return files
    weights = source.weight_files(component)
    found = [*weights.files, *([weights.index] if weights.index else [])]
    return files | {file: weights.plain_name(file.name) for file in found}


def carry_component(files: Mapping[Path, str], folder: Path, link: bool = False) -> None:
    """Put them there under these names, by which the index of shards names them too."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {file.name: name for file, name in files.items()}
    for file, name in files.items():
        carry(file, folder / name, link)
        if INDEX_OF_SHARDS.search(name) and file.name != name:
            held = read_mapping(folder / name)
            held["weight_map"] = {tensor: names[shard] for tensor, shard in held["weight_map"].items()}
            (folder / name).write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")


def carry_configs(source: ModelDirectory, target: Path, only: set[str] | None, without: Iterable[str]) -> None:
    """All that makes up the components, or `only` these, but their weights; a pipeline's index says that it has none of
    those `without` which it goes."""
    gone = {*without} & source.components.keys()
    for name in (only or source.components.keys()) - gone:
        texts = {file: called for file, called in component_files(source, name).items() if file.suffix in TEXTS}
        texts = {file: called for file, called in texts.items() if not INDEX_OF_SHARDS.search(called)}
        carry_component(texts, target / name if source.is_pipeline or only else target)
    if source.is_pipeline and only is None:
        changed = {name: [None, None] for name in (*source.left_out, *gone) if name in source.classes}
        _write_index(source, target, changed)


def _write_index(source: ModelDirectory, target: Path, changed: Mapping[str, object]) -> None:
    """Byte for byte, where it stays what it was."""
    index = {**source.index, **changed}
    if index == source.index:
        carry(inside(source.path, source.path / INDEX), target / INDEX)
    else:
        (target / INDEX).write_text(json.dumps(_without_place(index), indent=2) + "\n", encoding="utf-8")


def carried_size(source: ModelDirectory, whole: bool = False) -> int:
    """Bytes of the files that `assemble_directory` takes over, beside another UNet or as a `whole`."""
    return sum(file.stat().st_size for files in _carried(source, whole).values() for file in files)


def takes(new: int, same: int) -> str:
    """In words, for a plan: so many bytes of models will be written, of which so many stay as they are."""
    whole, own = (f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB" for size in (new + same, same))
    return f"Writes {whole}, {own} of it as in the source."


def _carried(source: ModelDirectory, whole: bool) -> dict[str, dict[Path, str]]:
    return {name: component_files(source, name) for name in source.components if whole or name != UNET}


def carry(source: Path, target: Path, link: bool = False) -> None:
    """The same file anew, so that no change of one is one of the other; with `link`, weights are hard links where the
    file system has them. A configuration that says where on some machine a model lay is written without that."""
    if source.suffix == ".json" and f'"{PLACE}"' in (text := source.read_text(encoding="utf-8", errors="replace")):
        try:
            placeless = json.loads(text, object_hook=_without_place)
        except ValueError as error:
            raise ModelError(f"{source}: is no JSON ({error}); fetch it again") from None
        target.write_text(json.dumps(placeless, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    if link and source.suffix == WEIGHT_FILE:
        with suppress(OSError):  # another disk, or a file system without links
            os.link(source.resolve(), target)
            return
    with source.open("rb") as old, target.open("xb") as new:
        copy_range(old, new, 0, os.fstat(old.fileno()).st_size)  # shares the blocks where the file system can


def _without_place(held: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in held.items() if key != PLACE}


# --- what stands in the way ---


def partial_path(target: Path) -> Path:
    """Where `target` grows until it is whole: a hidden sibling, so that the rename stays on one file system."""
    return target.parent / f".{target.name}.partial"


def old_path(target: Path) -> Path:
    """Where an older `target` waits while the new one takes its name."""
    return target.parent / f".{target.name}.old"


def refuse_existing(target: Path, overwrite: bool) -> None:
    """ModelError if `target` stands in the way; call it before anything slow."""
    if target.is_symlink():
        raise ModelError(f"{target}: is a link; give the directory itself as the place to write to")
    if target.exists() and not target.is_dir():
        raise ModelError(f"{target}: is a file; choose another place to write to")
    if strangers := _entries(target) - (_listed(target) or set()):
        raise ModelError(
            f"{target}: holds {min(strangers)}, which is not from asdm, and --overwrite replaces only what asdm wrote; "
            "move that away, or choose another place"
        )
    if target.exists() and not overwrite:
        raise ModelError(f"{target}: exists already; choose another place, or say --overwrite to replace it")


def refuse_sources(target: Path, sources: Iterable[Path]) -> None:
    """ModelError if one of them lies where writing `target` removes what was there before."""
    for source in sources:
        for place in (target, partial_path(target), old_path(target)):
            if source.resolve().is_relative_to(place.resolve()):
                where = f"{source}, which is read, lies in {place}"
                raise ModelError(f"{target}: {where}; choose another place to write to")


def _refuse_foreign(place: Path) -> None:
    """ModelError for anything but a directory that has our mark, or holds nothing but perhaps a lock of ours."""
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        ours = False
    else:
        unmarked = not place.exists() or all(each.name == LOCK and not each.is_symlink() for each in place.iterdir())
        ours = unmarked or _listed(place) is not None
    if not ours:
        raise ModelError(
            f"{place}: is not from asdm, which would need that name while it writes; rename it, or choose another place"
        )


def mark(folder: Path) -> None:
    """Say that `folder` is ours with all that lies in it now."""
    names = sorted(_entries(folder))
    (folder / MARK).write_text(json.dumps({"written_by": "asdm", "files": names}, indent=0) + "\n", encoding="utf-8")


def _entries(folder: Path) -> set[str]:
    """Everything in it but directories, by its path from there; links are not followed."""
    found = set()
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if Path(root, name).is_symlink()]
        found |= {os.path.relpath(Path(root, name), folder) for name in (*files, *links)}
    return found - {MARK}


def _listed(folder: Path) -> set[str] | None:
    """What the mark of a directory lists; None where there is no mark of ours."""
    file = folder / MARK
    if folder.is_symlink() or file.is_symlink() or not file.is_file():
        return None
    try:
        held = read_mapping(file)
    except ModelError:
        return None
    files = held.get("files")
    return {str(name) for name in files} if held.get("written_by") == "asdm" and isinstance(files, list) else None


# --- whole or not at all ---


@contextmanager
def only_writer(target: Path) -> Iterator[None]:
    """Hold the lock in the folder `.NAME.lock` beside `target` while the body runs; BusyError if another process holds
    it, ModelError for anything of that name that is not ours.

    The kernel lets go of the lock when its holder dies, however it dies, so what a killed run left stops nobody.
    """
    folder = target.parent / f".{target.name}.lock"
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        _acquire(lock, folder, target)
        (folder / LOCK).write_text(str(os.getpid()))
        yield
    finally:
        if lock.is_locked:
            shutil.rmtree(folder, ignore_errors=True)
            lock.release()
        else:
            with suppress(OSError):
                folder.rmdir()


def _acquire(lock: BaseFileLock, folder: Path, target: Path) -> None:
    for attempt in count():
        try:
            _refuse_foreign(folder)
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            return
        except FileNotFoundError:  # its holder took the folder away just now
            if attempt >= 9:
                raise RunError(f"{target}: no folder can be made there; choose another place") from None
        except FileExistsError:
            raise RunError(f"{folder.parent}: is a file; choose another place than {target}") from None
        except Timeout:
            writer = ""
            with suppress(OSError):
                writer = (folder / LOCK).read_text()
            raise BusyError(
                f"{target}: process {writer or '(starting)'} is writing it at this moment; "
                "wait until it is done, or choose another place"
            ) from None


def clear_the_way(target: Path, overwrite: bool) -> None:
    """After a crash between the two renames of `publish`, the older directory gets its name again. Then ModelError if
    anything stands in the way: at `target`, or under the two names beside it."""
    _put_back(target)
    refuse_existing(target, overwrite)
    for place in (partial_path(target), old_path(target)):
        _refuse_foreign(place)


def make_partial(target: Path) -> Path:
    """An empty directory for `target` to grow in, marked as ours for whatever happens."""
    partial = partial_path(target)
    _remove(partial)
    partial.mkdir(parents=True)
    mark(partial)
    sync(partial / MARK)
    sync(partial)
    return partial


def publish(target: Path, overwrite: bool) -> None:
    """Make what grew for `target` durable, then give it that name; an older `target` goes last."""
    partial, old = partial_path(target), old_path(target)
    mark(partial)
    for folder, _, files in os.walk(partial):
        for name in (*files, "."):
            sync(Path(folder, name))
    refuse_existing(target, overwrite)  # it may have come there meanwhile
    _remove(old)
    if target.exists():
        os.rename(target, old)
    try:
        os.rename(partial, target)
    except BaseException as error:
        _put_back(target)
        if not isinstance(error, OSError):
            raise
        raise RunError(f"{target}: cannot be put in place ({error.strerror})") from None
    try:
        with suppress(OSError):  # it is in its place, whole
            sync(target.parent)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _put_back(target: Path) -> None:
    if not target.exists() and _listed(old_path(target)) is not None:
        os.rename(old_path(target), target)


def _remove(place: Path) -> None:
    _refuse_foreign(place)
    shutil.rmtree(place, ignore_errors=True)


@contextmanager
def atomic_directory(target: Path, overwrite: bool = False, keep: str = "") -> Iterator[Path]:
    """Yield an empty sibling of `target`; on success it becomes `target` durably, on failure it goes away; but it
    stays for the next call where it has files to `keep`, which a pattern names.

    Raises ModelError if something stands in the way, RunError if the disk does or if another process writes there.
    """
    with explained(target), only_writer(target):
        clear_the_way(target, overwrite)
        partial = partial_path(target)
        try:
            if not (keep and any(partial.glob(keep))):
                make_partial(target)
            yield partial
            publish(target, overwrite)
        except BaseException:
            if not (keep and any(partial.glob(keep))):
                shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """The same for a single file, which replaces an older one: yields the path to write to."""
    with explained(target), only_writer(target):
        folder = partial_path(target)
        _refuse_foreign(folder)
        try:
            make_partial(target)
            yield folder / target.name
            sync(folder / target.name)
            os.replace(folder / target.name, target)
            sync(target.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def whole_file(target: Path, shared: bool = False) -> Iterator[Path]:
    """The same inside a folder that is ours, or that is `shared` with others who may write the same file now: yields
    the path to write to."""
    partial = partial_path(target)
    if shared:
        partial = partial.with_name(f"{partial.name}-{uuid4().hex[:8]}")
    try:
        yield partial
        sync(partial)
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(target.parent)


def write_json(target: Path, value: Any, shared: bool = False) -> None:
    with whole_file(target, shared) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until a file or a directory's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- trouble with a place to write to, in words ---

_GONE = "is not there any more; put it back, and give the same command again"
_NO_LOCKS = "the file system has no locks; choose a place on a local disk"
TROUBLE = {
    errno.ENOENT: _GONE,
    errno.ESTALE: _GONE,
    errno.ENOSPC: "the disk is full; make room, or choose a place on another disk",
    errno.EDQUOT: "your share of the disk is used up; make room, or choose a place on another disk",
    errno.EACCES: "no permission to write there; choose another place",
    errno.EPERM: "writing there is not permitted; choose another place",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EIO: "the disk reports an error; look after it, or choose a place on another disk",
    errno.ENOTDIR: "a part of this path is a file; choose another place",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOLCK: _NO_LOCKS,
    errno.ENOTSUP: _NO_LOCKS,
}
"""What the operating system calls it, and the way out."""


def way_out(number: int | None, place: object) -> str:
    """Of trouble at a place; '' where none is known."""
    if number == errno.EACCES and place and os.path.isfile(str(place)) and not os.access(str(place), os.R_OK):  # noqa: PTH113
        return "may not be read; allow it, or give a copy"
    return TROUBLE.get(number or 0, "")


@contextmanager
def explained(target: Path) -> Iterator[None]:
    """Such trouble while the body writes to `target` becomes a RunError that says what to do."""
    try:
        yield
    except AsdmError:
        raise
    except Exception as error:
        in_words = re.search(r"\(os error (\d+)\)", str(error))  # all that libraries written in Rust tell
        number = error.errno if isinstance(error, OSError) else int(in_words[1]) if in_words else None
        if number is None or number not in TROUBLE:
            raise
        places = [getattr(error, name, None) for name in ("filename2", "filename")]
        place = next(filter(None, reversed(places) if number == errno.ENOENT else places), target)
        raise RunError(f"{place}: {way_out(number, place)} ({os.strerror(number)})") from error
