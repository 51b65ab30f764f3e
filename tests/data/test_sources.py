"""Shards are found by every kind of name, and what is wrong with the names is told at once."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from asdm_cli.data.shards import Faults, Shard, find_shards, read_samples
from asdm_cli.errors import ModelError, RunError
from asdm_cli.recipe.schema import places
from tests.data import tars


def names(*sources: str) -> list[str]:
    return [Path(shard.url).name for shard in find_shards(sources)]


def captions(*shards: Shard) -> list[str]:
    return [sample.caption for shard in shards for sample in read_samples(shard, Faults())]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(12):
        tars.write(tmp_path / f"{number:03}.tar", tars.samples(number))
    for name in ("a{b}.tar", "a[1].tar"):
        tars.write(tmp_path / name, tars.samples(0))
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["003.tar"], ["003.tar"]),
        (["00*.tar"], [f"{number:03}.tar" for number in range(10)]),
        (["{011,000}.tar"], ["011.tar", "000.tar"]),
        (["0{00..01}*.tar"], ["000.tar", "001.tar"]),
        (["005.tar", "{001..002}.tar"], ["005.tar", "001.tar", "002.tar"]),
        (["a{b}.tar"], ["a{b}.tar"]),
        (["a[1].tar"], ["a[1].tar"]),
        (["**/d.tar"], ["d.tar"]),
    ],
)
def test_paths_globs_and_braces_in_their_order(
    folder: Path, patterns: list[str], found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For those who look whether a file has changed, too."""
    (folder / "deep/er").mkdir(parents=True)
    tars.write(folder / "deep/er/d.tar", tars.samples(0))
    monkeypatch.setenv("HOME", str(folder))
    for root in (folder, "~", f"file://{folder}"):
        sources = [f"{root}/{pattern}" for pattern in patterns]
        if root != f"file://{folder}" or not set("*[{") & set("".join(patterns)):  # fsspec knows patterns of its own
            assert names(*sources) == found
        assert [place.name for source in sources for place in places(source)] == found


def test_what_is_no_path_is_nowhere_and_raises_nothing() -> None:
    for text in ("pipe:" + "curl -H secret " * 40, "s3://bucket/{0..3}.tar", "~nobody-of-this-name/a.tar"):
        assert places(text) == []


def test_identity_follows_size_and_time(folder: Path) -> None:
    def identity(url: str = f"{folder}/000.tar") -> str:
        return find_shards([url])[0].identity

    before = identity()
    assert identity() == before == identity(f"file://{folder}/000.tar")
    os.utime(folder / "000.tar", ns=(1, 1))
    touched = identity()
    (folder / "000.tar").write_bytes((folder / "000.tar").read_bytes() + bytes(512))
    os.utime(folder / "000.tar", ns=(1, 1))
    assert len({before, touched, identity()}) == 3


def test_pocket() -> None:
    (shard,) = find_shards(["pocket"])
    assert (shard.url.endswith("train.tar.gz"), shard.seekable) == (True, False)
    faults = Faults()
    assert sum(1 for _ in read_samples(shard, faults)) == 594
    assert not faults.total()


def test_every_wrong_name_is_told_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    (folder / "empty.tar").touch()
    wrong = {
        f"{folder}/no.tar": "no such file",
        f"{folder}/x*.tar": "no file has such a name",
        str(folder): "is a directory",
        f"{folder}/empty.tar": "is empty",
        f"{folder}/{{0..": "braces cannot be read",
        "nosuch://bucket/a.tar": "by nosuch",
        "s3://bucket/a.tar": "not installed (Install s3fs",
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
    for sources, what in ((["no{000..099}.tar"], r"\.\.\. and 80 more$"), ([], "no shard is named")):
        with pytest.raises(ModelError, match=what):
            find_shards(sources)


def test_addresses_and_commands_are_told_by_their_digests_which_are_no_sources() -> None:
    for url, shown in (("https://host/a.tar?token=secret", "a.tar by https"), ("pipe:cat a.tar", "a command")):
        shard = Shard(url, "remote", 1, "")
        assert (shard.name.split(" (")[0], shard.file, shard.seekable) == (shown, shard.name, True)
        with pytest.raises(ModelError, match="stands in a record for what is not written down"):
            find_shards([shard.name], allow_pipes=True)


@pytest.fixture
def store() -> Iterator[Any]:
    store = fsspec.filesystem("memory")
    for number in range(3):
        store.pipe(f"/bucket/{number}.tar", tars.tar_bytes(tars.samples(number)))
    yield store
    store.rm("/bucket", recursive=True)


def test_objects_of_a_store(store: Any) -> None:
    for source in ("memory://bucket/*.tar", "memory://bucket/{0..2}.tar"):
        shards = find_shards([source])
        assert [shard.kind for shard in shards] == ["remote"] * 3
        assert captions(*shards) == [f"picture {number}" for number in range(3)]
    assert shards[0].identity == find_shards(["memory://bucket/0.tar"])[0].identity
    store.pipe("/bucket/0.tar", tars.tar_bytes(tars.samples(7)))
    assert shards[0].identity != find_shards(["memory://bucket/0.tar"])[0].identity


@pytest.mark.usefixtures("store")
def test_a_store_that_breaks_off_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an error of its own kind, which is neither an OSError nor a bug; half a shard is not taken for a whole."""
    (shard,) = find_shards(["memory://bucket/0.tar"])
    tars.break_off(monkeypatch)
    faults = Faults()
    with pytest.raises(RunError, match=r"0.tar by memory .*PayloadError: 25600 of 51200.* run again"):
        list(read_samples(shard, faults))
    assert not faults.counts


def test_a_shard_that_went_away_fails_the_run(folder: Path) -> None:
    (shard,) = find_shards([f"{folder}/000.tar"])
    (folder / "000.tar").unlink()
    with pytest.raises(RunError, match="run again"):
        captions(shard)


def test_a_pipe_runs_only_where_allowed_and_only_when_it_is_read(folder: Path) -> None:
    witness, tar = folder / "ran", shlex.quote(str(folder / "000.tar"))
    source = f"pipe:touch {shlex.quote(str(witness))}; cat {tar}"
    with pytest.raises(ModelError, match="shell"):
        find_shards([source])
    (shard,) = find_shards([source], allow_pipes=True)
    assert not witness.exists()
    assert captions(shard) == ["picture 0"]
    assert witness.exists()
    (shard,) = find_shards([f"pipe:cat {tar}; exit 3"], allow_pipes=True)
    with pytest.raises(RunError, match=r"cannot be read \(exit 3\)") as caught:
        captions(shard)
    assert "000.tar" not in str(caught.value), "nor what else the command says"
