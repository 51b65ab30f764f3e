"""Directories appear whole or not at all, share no file with their source, and replace nobody's but our own."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asdm_cli.errors import ModelError, RunError
from asdm_cli.models import lock, write
from asdm_cli.models.lock import only_writer
from asdm_cli.models.source import find
from asdm_cli.models.write import (
    MARK,
    assemble_directory,
    atomic_directory,
    make_partial,
    partial_path,
    refuse_existing,
)
from tests.apart import shared


def _files(folder: Path) -> dict[str, Path]:
    return {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_unchanged_components_are_copies(tiny_pipeline: Path, tmp_path: Path) -> None:
    assemble_directory(find(str(tiny_pipeline)), tmp_path / "new", replaced={"unet"})
    new, old = _files(tmp_path / "new"), _files(tiny_pipeline)
    assert new.keys() == {name for name in old if not name.startswith("unet/")}
    assert len(new) >= 12
    assert all(file.read_bytes() == old[name].read_bytes() for name, file in new.items())
    assert not shared(tmp_path / "new", tiny_pipeline)


def test_nothing_that_is_done_to_a_copy_reaches_a_source_that_is_a_snapshot(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    """As the hub's cache has them: read-only blobs, and links to them."""
    source, blobs = tmp_path / "hub/snapshots/1", tmp_path / "hub/blobs"
    blobs.mkdir(parents=True)
    for number, (name, file) in enumerate(sorted(_files(tiny_pipeline).items())):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blobs / str(number))
        (blobs / str(number)).chmod(0o444)
        (source / name).symlink_to(blobs / str(number))
    before = {name: file.read_bytes() for name, file in _files(source).items()}
    assemble_directory(find(str(source)), tmp_path / "new", replaced=set())
    for file in _files(tmp_path / "new").values():
        assert not file.is_symlink()
        file.write_bytes(b"changed")
        file.chmod(0o600)
    assert {name: file.read_bytes() for name, file in _files(source).items()} == before
    assert {file.stat().st_mode & 0o777 for file in blobs.iterdir()} == {0o444}


@pytest.mark.parametrize("clones", [True, False])
def test_a_file_system_that_clones_files_is_asked_to(
    clones: bool, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def ioctl(target: Any, request: int, source: int) -> int:
        asked.append(request)
        if not clones:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        target.write(os.pread(source, 1 << 30, 0))
        return 0

    monkeypatch.setattr(write.fcntl, "ioctl", ioctl)
    monkeypatch.setattr(write, "copy_range", _never if clones else write.copy_range)
    assemble_directory(find(str(tiny_pipeline)), tmp_path / "new", replaced={"unet"})
    new, old = _files(tmp_path / "new"), _files(tiny_pipeline)
    assert all(file.read_bytes() == old[name].read_bytes() for name, file in new.items())
    assert asked == [0x40049409] * len(asked)
    assert len(asked) >= 12


def _never(*_: object) -> None:
    raise AssertionError("it was cloned")


@pytest.mark.parametrize("links", [True, False])
def test_on_request_weights_and_no_other_files_are_links(
    links: bool, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", _no_links)
    assemble_directory(find(str(tiny_pipeline)), tmp_path / "new", {"unet"}, link=True)
    found = shared(tmp_path / "new", tiny_pipeline)
    assert found == ({name for name in _files(tmp_path / "new") if name.endswith(".safetensors")} if links else set())
    assert _files(tmp_path / "new").keys() == {name for name in _files(tiny_pipeline) if not name.startswith("unet/")}


def _no_links(*_: object) -> None:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def test_only_what_makes_a_model_goes_along(tiny_pipeline: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_pipeline, tmp_path / "source"))
    left_behind = ["README.md", "secret.txt", "vae/pytorch_model.bin", "vae/notes.md", "other/model.safetensors"]
    for name in left_behind:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("x")
    assemble_directory(find(str(source)), tmp_path / "new", replaced=set())
    assert _files(source).keys() - _files(tmp_path / "new").keys() == set(left_behind)


def test_links_inside_the_model_become_files(tiny_pipeline: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_pipeline, tmp_path / "source"))
    config = source / "vae" / "config.json"
    os.rename(config, source / "blob")
    config.symlink_to("../blob")
    assemble_directory(find(str(source)), tmp_path / "new", replaced=set())
    assert not (tmp_path / "new/vae/config.json").is_symlink()
    assert (tmp_path / "new/vae/config.json").read_bytes() == (source / "blob").read_bytes()


def test_a_link_that_leaves_is_not_followed(tiny_pipeline: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_pipeline, tmp_path / "source"))
    (tmp_path / "private.json").write_text("{}")
    (source / "vae" / "extra.json").symlink_to(tmp_path / "private.json")
    with pytest.raises(ModelError, match=r"extra\.json: is a link that leaves"):
        assemble_directory(find(str(source)), tmp_path / "new", replaced=set())


def test_a_directory_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "one"
    with atomic_directory(target) as partial:
        (partial / "file").write_text("whole")
        assert not target.exists()
        assert partial.parent == target.parent
    assert (target / "file").read_text() == "whole"
    assert _names(target.parent) == ["one"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_of_a_failure(tmp_path: Path, failure: type[BaseException]) -> None:
    def fail() -> None:
        with atomic_directory(tmp_path / "one") as partial:
            (partial / "file").write_text("half")
            raise failure

    with pytest.raises(failure):
        fail()
    assert _names(tmp_path) == []


def write_one(target: Path, name: str, overwrite: bool = False) -> None:
    with atomic_directory(target, overwrite) as partial:
        (partial / name).write_text(name)


def test_an_existing_directory_is_safe_until_it_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "one"
    write_one(target, "old")
    with pytest.raises(ModelError, match="exists already"):
        write_one(target, "new")
    with pytest.raises(RuntimeError), atomic_directory(target, overwrite=True):
        raise RuntimeError
    assert _names(target) == [MARK, "old"]
    write_one(target, "new", overwrite=True)
    assert _names(target) == [MARK, "new"]
    assert _names(tmp_path) == ["one"]


def test_the_old_directory_comes_back_when_the_swap_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, rename = tmp_path / "one", os.rename
    write_one(target, "old")

    def fail_once(source: Path, to: Path) -> None:
        if Path(source) == partial_path(target):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, to)

    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(RunError, match="cannot be put in place"):
        write_one(target, "new", overwrite=True)
    assert _names(target) == [MARK, "old"]


def test_what_a_crashed_run_left_is_cleared(tmp_path: Path) -> None:
    (make_partial(tmp_path / "one") / "stale").write_text("")
    write_one(tmp_path / "one", "new")
    assert _names(tmp_path / "one") == [MARK, "new"]


def test_what_came_to_the_place_while_it_was_written_is_kept(tmp_path: Path) -> None:
    def write_while_somebody_comes(overwrite: bool) -> None:
        with atomic_directory(tmp_path / "one", overwrite):
            (tmp_path / "one").mkdir()
            (tmp_path / "one" / "mine").write_text("mine")

    for overwrite in (False, True):
        with pytest.raises(ModelError, match="one: "):
            write_while_somebody_comes(overwrite)
        assert _tree(tmp_path) == {"one/mine": b"mine"}
        shutil.rmtree(tmp_path / "one")


STRANGERS: dict[str, Callable[[Path], object]] = {
    "a file": lambda place: place.write_text("mine"),
    "a folder": lambda place: (place.mkdir(), (place / "mine").write_text("mine")),
    "a link to a file": lambda place: place.symlink_to("precious"),
    "a link to a folder": lambda place: place.symlink_to("home"),
    "a link to nothing": lambda place: place.symlink_to("gone"),
    "a pipe": os.mkfifo,
    "a folder with a damaged mark": lambda place: (place.mkdir(), (place / MARK).write_text('{"written_by": "asdm"}')),
    "a folder with our mark as a link": lambda place: (place.mkdir(), (place / MARK).symlink_to(Path("../ours", MARK))),
}


@pytest.mark.parametrize("kind", STRANGERS)
@pytest.mark.parametrize("suffix", ["lock", "partial", "old"])
def test_what_has_a_name_beside_the_target_and_is_not_ours_is_refused_in_words(
    suffix: str, kind: str, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("years of work")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis").write_text("years of work")
    write_one(tmp_path / "ours", "file")
    STRANGERS[kind](tmp_path / f".one.{suffix}")
    before = _tree(tmp_path)
    with pytest.raises(ModelError, match=rf"\.one\.{suffix}: is not from asdm, .*; rename it, or choose another place"):
        write_one(tmp_path / "one", "new", overwrite=True)
    assert _tree(tmp_path) == before


def test_an_empty_lock_is_used_and_left(tmp_path: Path) -> None:
    """A crash of the machine leaves such ones; so may a user."""
    (tmp_path / ".one.lock").touch()
    with pytest.raises(RunError, match="is writing it"), only_writer(tmp_path / "one"), only_writer(tmp_path / "one"):
        pass
    write_one(tmp_path / "one", "new")
    assert _tree(tmp_path).keys() == {".one.lock", f"one/{MARK}", "one/new"}
    assert (tmp_path / ".one.lock").read_bytes() == b""


def test_a_lock_that_a_killed_run_left_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / ".one.lock").write_bytes(lock.MARK + b"123")
    write_one(tmp_path / "one", "new")
    assert _names(tmp_path) == ["one"]


def _tree(folder: Path) -> dict[str, object]:
    """Everything below, links and pipes as such."""
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


@pytest.mark.parametrize("added", ["mine.txt", "deep/er/mine.txt", "a link"])
def test_overwrite_replaces_no_file_that_was_added(added: str, tmp_path: Path) -> None:
    write_one(tmp_path / "one", "old")
    mine = tmp_path / "one" / added
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.symlink_to(tmp_path) if added == "a link" else mine.write_text("mine")
    with pytest.raises(ModelError, match=rf"one: holds {added}, which is not from asdm"):
        write_one(tmp_path / "one", "new", overwrite=True)
    assert mine.exists()
    mine.unlink()
    write_one(tmp_path / "one", "new", overwrite=True)


def test_files_and_links_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name, fault in {"file": "is a file", "link": "is a link"}.items():
        with pytest.raises(ModelError, match=fault):
            refuse_existing(tmp_path / name, overwrite=True)
