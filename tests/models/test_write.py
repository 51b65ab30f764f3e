"""Directories appear whole or not at all, share no file with their source, and replace nobody's but our own."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from asdm_cli.errors import ModelError, RunError
from asdm_cli.models.directory import find
from asdm_cli.models.write import (
    LOCK,
    MARK,
    TROUBLE,
    BusyError,
    assemble_directory,
    atomic_directory,
    atomic_file,
    carry,
    explained,
    make_partial,
    only_writer,
    partial_path,
    whole_file,
)
from asdm_cli.unet.blocks import Config
from tests.apart import shared


def tree(folder: Path) -> dict[str, object]:
    """Everything below, links and pipes as such."""
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def assembled(source: Path, target: Path, link: bool = False, unet: Config | None = None) -> dict[str, object]:
    assemble_directory(find(str(source)), target, link, unet)
    return tree(target)


# --- the files of a model ---


@pytest.mark.parametrize("links", [False, True])
@pytest.mark.parametrize("link", [False, True])
def test_what_is_not_replaced_is_the_same_and_shares_nothing_but_weights_on_request(
    link: bool, links: bool, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", Mock(side_effect=OSError(errno.EXDEV, "Invalid cross-device link")))
    new = assembled(tiny_pipeline, tmp_path / "new", link, {"layers_per_block": 1})
    assert new.pop("unet/config.json") == b'{\n  "layers_per_block": 1\n}\n'
    assert new == {name: data for name, data in tree(tiny_pipeline).items() if not name.startswith("unet/")}
    assert len(new) >= 12
    weights = {name for name in new if name.endswith(".safetensors")}
    assert shared(tmp_path / "new", tiny_pipeline) == (weights if link and links else set())


def test_nothing_that_is_done_to_a_copy_reaches_a_source_that_is_a_snapshot(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    """As the hub's cache has them: read-only blobs, and links to them."""
    source, blobs = tmp_path / "hub/snapshots/1", tmp_path / "hub/blobs"
    blobs.mkdir(parents=True)
    before = tree(tiny_pipeline)
    for number, name in enumerate(before):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tiny_pipeline / name, blobs / str(number))
        (blobs / str(number)).chmod(0o444)
        (source / name).symlink_to(blobs / str(number))
    for name in assembled(source, tmp_path / "new"):
        file = tmp_path / "new" / name
        assert not file.is_symlink()
        file.write_bytes(b"changed")
        file.chmod(0o600)
    assert {name: (source / name).read_bytes() for name in before} == before
    assert {file.stat().st_mode & 0o777 for file in blobs.iterdir()} == {0o444}


def test_only_what_makes_a_model_goes_along_and_links_become_files(tiny_pipeline: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_pipeline, tmp_path / "source"))
    whole = tree(source)
    for name in ("README.md", "secret.txt", "vae/pytorch_model.bin", "vae/notes.md", "other/model.safetensors"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("x")
    os.rename(source / "vae/config.json", source / "blob")
    (source / "vae/config.json").symlink_to("../blob")
    assert assembled(source, tmp_path / "new") == whole
    (tmp_path / "private.json").write_text("{}")
    (source / "vae" / "extra.json").symlink_to(tmp_path / "private.json")
    with pytest.raises(ModelError, match=r"extra\.json: is a link that leaves"):
        assembled(source, tmp_path / "newer")


# --- whole or not at all ---


def write_one(target: Path, name: str, overwrite: bool = False) -> None:
    with atomic_directory(target, overwrite) as partial:
        assert partial.parent == target.parent
        (partial / name).write_text(name)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def fail(way: Callable[[], object], failure: type[BaseException]) -> None:
    with way() as partial:  # type: ignore[attr-defined]
        (partial / "file" if partial.is_dir() else partial).write_text("half")
        raise failure


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_directory_is_whole_or_not_there_and_safe_until_it_is_replaced(
    failure: type[BaseException], tmp_path: Path
) -> None:
    target = tmp_path / "runs" / "one"
    with pytest.raises(failure):
        fail(lambda: atomic_directory(target), failure)
    assert names(target.parent) == []
    (make_partial(target) / "stale").write_text("")  # as a crashed run leaves it
    write_one(target, "old")
    with pytest.raises(ModelError, match="exists already"):
        write_one(target, "new")
    with pytest.raises(failure):
        fail(lambda: atomic_directory(target, overwrite=True), failure)
    assert names(target) == [MARK, "old"]
    write_one(target, "new", overwrite=True)
    assert (names(target), names(target.parent)) == ([MARK, "new"], ["one"])


def test_whole_files(tmp_path: Path) -> None:
    """In anybody's folder, and in one of ours."""
    for way in (atomic_file, whole_file):
        file = tmp_path / f"{way.__name__}.json"
        for text in ("old", "new"):
            with way(file) as partial:
                partial.write_text(text)
                assert not file.exists() or file.read_text() == "old"
            assert file.read_text() == text
        with pytest.raises(RuntimeError):
            fail(lambda way=way, file=file: way(file), RuntimeError)  # type: ignore[misc]
        assert file.read_text() == "new"
    assert names(tmp_path) == ["atomic_file.json", "whole_file.json"]


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
    assert names(target) == [MARK, "old"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_came_to_the_place_while_it_was_written_is_kept(overwrite: bool, tmp_path: Path) -> None:
    def write_while_somebody_comes() -> None:
        with atomic_directory(tmp_path / "one", overwrite):
            (tmp_path / "one").mkdir()
            (tmp_path / "one" / "mine").write_text("mine")

    with pytest.raises(ModelError, match="one: "):
        write_while_somebody_comes()
    assert tree(tmp_path) == {"one/mine": b"mine"}


def test_a_lock_that_a_killed_run_left_stops_nobody_and_one_that_is_held_does(tmp_path: Path) -> None:
    for left in ([], [LOCK]):
        (tmp_path / ".one.lock").mkdir()
        for name in left:
            (tmp_path / ".one.lock" / name).touch()
        write_one(tmp_path / "one", "new", overwrite=True)
        assert names(tmp_path) == ["one"]
    with only_writer(tmp_path / "one"), pytest.raises(BusyError, match=f"one: process {os.getpid()} is writing it"):
        write_one(tmp_path / "one", "newer", overwrite=True)
    assert tree(tmp_path).keys() == {f"one/{MARK}", "one/new"}


# --- what stands in the way ---

STRANGERS: dict[str, Callable[[Path], object]] = {
    "a file": lambda place: place.write_text("mine"),
    "a folder": lambda place: (place.mkdir(), (place / "mine").write_text("mine")),
    "a link to a file": lambda place: place.symlink_to("precious"),
    "a link to a folder": lambda place: place.symlink_to("home"),
    "a link to nothing": lambda place: place.symlink_to("gone"),
    "a pipe": os.mkfifo,
    "a folder with a damaged mark": lambda place: (place.mkdir(), (place / MARK).write_text('{"written_by": "asdm"}')),
    "a folder with our mark as a link": lambda place: (place.mkdir(), (place / MARK).symlink_to(Path("../ours", MARK))),
    "a folder with our lock as a link": lambda place: (place.mkdir(), (place / LOCK).symlink_to("../precious")),
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
    before = tree(tmp_path)
    with pytest.raises(ModelError, match=rf"\.one\.{suffix}: is not from asdm, .*; rename it, or choose another place"):
        write_one(tmp_path / "one", "new", overwrite=True)
    if suffix != "old":
        with pytest.raises(ModelError, match="is not from asdm"), atomic_file(tmp_path / "one"):
            pass
    assert tree(tmp_path) == before


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


# --- trouble with a disk ---


@pytest.mark.parametrize("number", TROUBLE)
def test_every_trouble_names_a_place_and_a_way_out(number: int) -> None:
    errors = {"runs/x": OSError(number, "what the system says"), "runs/x/part": OSError(number, "so", "runs/x/part")}
    for place, error in errors.items():
        with pytest.raises(RunError, match=rf"^{place}: .*[;,] .*") as caught, explained(Path("runs/x")):
            raise error
        assert TROUBLE[number] in str(caught.value)


def test_a_file_that_may_not_be_read_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "vocab.json"
    file.write_text("{}")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(RunError, match=r"vocab\.json: may not be read; allow it"), explained(tmp_path / "run"):
        raise OSError(errno.EACCES, "so", str(file))


def test_a_broken_file_beside_a_model_is_named(tmp_path: Path) -> None:
    file = tmp_path / "extra.json"
    file.write_text('{"_name_or_path": "x", ')
    with pytest.raises(ModelError, match=r"extra\.json: is no JSON"):
        carry(file, tmp_path / "copy.json")


@pytest.mark.parametrize(
    "error", [ModelError("m: no"), ValueError("(os error 0)"), OSError(errno.EBADF, "x"), KeyError()]
)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explained(Path("x")):
        raise error
    assert caught.value is error
