"""Shards are found by every kind of name, and what is wrong with the names is told at once."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import fsspec
import pytest

from asdm_cli.data.shards import Faults, Shard, find_shards, read_samples
from asdm_cli.errors import ModelError, RunError
from tests.data import tars


def names(shards: list[Shard]) -> list[str]:
    return [Path(shard.url).name for shard in shards]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(12):
        tars.write(tmp_path / f"{number:03}.tar", tars.samples(number))
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("003.tar", ["003.tar"]),
        ("00*.tar", [f"{number:03}.tar" for number in range(10)]),
        ("{009..011}.tar", ["009.tar", "010.tar", "011.tar"]),
        ("{011,000}.tar", ["011.tar", "000.tar"]),
        ("0{00..01}*.tar", ["000.tar", "001.tar"]),
    ],
)
def test_paths_globs_and_braces(folder: Path, pattern: str, found: list[str]) -> None:
    assert names(find_shards([f"{folder}/{pattern}"])) == found


def test_sources_keep_their_order(folder: Path) -> None:
    assert names(find_shards([f"{folder}/005.tar", f"{folder}/{{001..002}}.tar"])) == ["005.tar", "001.tar", "002.tar"]


def test_names_with_braces_and_brackets_are_taken_as_they_are(tmp_path: Path) -> None:
    for name in ("a{b}.tar", "a[1].tar"):
        tars.write(tmp_path / name, tars.samples(0))
        assert names(find_shards([f"{tmp_path}/{name}"])) == [name]


def test_a_file_url_is_a_path(folder: Path) -> None:
    (shard,) = find_shards([f"file://{folder}/003.tar"])
    assert (shard.kind, shard.identity) == ("local", find_shards([f"{folder}/003.tar"])[0].identity)


def test_pocket() -> None:
    (shard,) = find_shards(["pocket"])
    assert (shard.url.endswith("train.tar.gz"), shard.seekable) == (True, False)
    faults = Faults()
    assert sum(1 for _ in read_samples(shard, faults)) == 594
    assert not faults.total()


def test_identity_follows_size_and_time(folder: Path) -> None:
    source = [f"{folder}/000.tar"]
    before = find_shards(source)[0].identity
    assert find_shards(source)[0].identity == before
    os.utime(folder / "000.tar", ns=(1, 1))
    touched = find_shards(source)[0].identity
    (folder / "000.tar").write_bytes((folder / "000.tar").read_bytes() + bytes(512))
    os.utime(folder / "000.tar", ns=(1, 1))
    assert len({before, touched, find_shards(source)[0].identity}) == 3


def test_every_wrong_name_is_told_at_once(folder: Path) -> None:
    (folder / "empty.tar").touch()
    wrong = {
        f"{folder}/no.tar": "no such file",
        f"{folder}/x*.tar": "no file has such a name",
        str(folder): "is a directory",
        f"{folder}/empty.tar": "is empty",
        f"{folder}/{{0..": "braces cannot be read",
        "nosuch://bucket/a.tar": "by nosuch",
        "memory://nothing/a.tar": "no such object",
        "memory://nothing/*.tar": "no object has such a name",
        "pipe:cat a.tar": "runs a command in a shell",
    }
    with pytest.raises(ModelError) as caught:
        find_shards([*wrong, f"{folder}/001.tar", f"{folder}/00[1].tar"])
    lines = str(caught.value).splitlines()
    assert len(lines) == len(wrong) + 1
    for what in (*wrong.values(), "is named twice"):
        assert sum(what in line for line in lines) == 1, what


def test_many_faults_are_counted() -> None:
    with pytest.raises(ModelError) as caught:
        find_shards(["no{000..099}.tar"])
    assert str(caught.value).endswith("... and 80 more")


def test_nothing_named() -> None:
    with pytest.raises(ModelError, match="no shard is named"):
        find_shards([])


def test_a_store_without_its_package_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ModelError, match=r"not installed .*s3fs"):
        find_shards(["s3://bucket/a.tar"])


def test_passwords_in_urls_are_not_told() -> None:
    shard = Shard("https://host/a.tar?token=secret", "remote", 1, "")
    assert (shard.name.split(" (")[0], shard.seekable) == ("a.tar by https", True)


def test_a_record_s_digest_is_no_source() -> None:
    for url in ("https://host/{0..9}.tar", "pipe:cat a.tar"):
        with pytest.raises(ModelError, match="stands in a record for what is not written down"):
            find_shards([Shard(url, "remote", 1, "").name], allow_pipes=True)


def test_objects_of_a_store() -> None:
    store = fsspec.filesystem("memory")
    for number in range(3):
        store.pipe(f"/bucket/{number}.tar", tars.tar_bytes(tars.samples(number)))
    try:
        for source in ("memory://bucket/*.tar", "memory://bucket/{0..2}.tar"):
            shards = find_shards([source])
            assert [shard.kind for shard in shards] == ["remote"] * 3
            assert [s.caption for shard in shards for s in read_samples(shard, Faults())] == [
                f"picture {n}" for n in range(3)
            ]
        assert shards[0].identity == find_shards(["memory://bucket/0.tar"])[0].identity
        store.pipe("/bucket/0.tar", tars.tar_bytes(tars.samples(7)))
        assert shards[0].identity != find_shards(["memory://bucket/0.tar"])[0].identity
    finally:
        store.rm("/bucket", recursive=True)


def test_a_pipe_runs_only_where_allowed(folder: Path) -> None:
    witness = folder / "ran"
    source = f"pipe:touch {shlex.quote(str(witness))}; cat {shlex.quote(str(folder / '000.tar'))}"
    with pytest.raises(ModelError, match="shell"):
        find_shards([source])
    assert not witness.exists()
    (shard,) = find_shards([source], allow_pipes=True)
    assert not witness.exists(), "looking runs nothing"
    assert [sample.caption for sample in read_samples(shard, Faults())] == ["picture 0"]
    assert witness.exists()


def test_a_command_that_fails_fails_the_run(folder: Path) -> None:
    (shard,) = find_shards([f"pipe:cat {shlex.quote(str(folder / '000.tar'))}; exit 3"], allow_pipes=True)
    with pytest.raises(RunError, match=r"cannot be read \(exit 3\)") as caught:
        list(read_samples(shard, Faults()))
    assert "000.tar" not in str(caught.value), "nor what else the command says"
