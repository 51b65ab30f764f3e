"""Directories appear whole or not at all, and share what did not change with their source."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from asdm_cli.errors import ModelError, RunError
from asdm_cli.models.source import find
from asdm_cli.models.write import assemble_directory, atomic_directory, partial_path, refuse_existing


def _files(folder: Path) -> dict[str, Path]:
    return {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def _no_links(*_: object) -> None:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def test_unchanged_components_are_hard_links(tiny_pipeline: Path, tmp_path: Path) -> None:
    assemble_directory(find(str(tiny_pipeline)), tmp_path / "new", replaced={"unet"})
    new, old = _files(tmp_path / "new"), _files(tiny_pipeline)
    assert new.keys() == {name for name in old if not name.startswith("unet/")}
    assert len(new) >= 12
    assert all(file.samefile(old[name]) for name, file in new.items())


def test_without_links_they_are_copies(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", _no_links)
    assemble_directory(find(str(tiny_pipeline)), tmp_path / "new", replaced={"unet"})
    new, old = _files(tmp_path / "new"), _files(tiny_pipeline)
    assert len(new) >= 12
    assert all(file.read_bytes() == old[name].read_bytes() for name, file in new.items())
    assert not any(file.samefile(old[name]) for name, file in new.items())


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
    assert (tmp_path / "new/vae/config.json").samefile(source / "blob")


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


def test_an_existing_directory_is_safe_until_it_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "one"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(ModelError, match="exists already"), atomic_directory(target):
        pass
    with pytest.raises(RuntimeError), atomic_directory(target, overwrite=True):
        raise RuntimeError
    assert _names(target) == ["old"]
    with atomic_directory(target, overwrite=True) as partial:
        (partial / "new").write_text("new")
    assert _names(target) == ["new"]
    assert _names(tmp_path) == ["one"]


def test_the_old_directory_comes_back_when_the_swap_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, rename = tmp_path / "one", os.rename
    target.mkdir()
    (target / "old").write_text("old")

    def fail_once(source: Path, to: Path) -> None:
        if Path(source) == partial_path(target):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, to)

    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(RunError, match="cannot be put in place"), atomic_directory(target, overwrite=True):
        pass
    assert _names(target) == ["old"]


def test_what_a_crashed_run_left_is_cleared(tmp_path: Path) -> None:
    partial_path(tmp_path / "one").mkdir()
    (partial_path(tmp_path / "one") / "stale").write_text("")
    with atomic_directory(tmp_path / "one"):
        pass
    assert _names(tmp_path / "one") == []


def test_files_and_links_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name, fault in {"file": "is a file", "link": "is a link"}.items():
        with pytest.raises(ModelError, match=fault):
            refuse_existing(tmp_path / name, overwrite=True)
