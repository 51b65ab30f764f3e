"""Prompt lists: every fault names the file, the sample and the way out."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from asdm_cli.errors import ModelError
from asdm_cli.measure.prompts import read_prompts, real_pictures
from tests.drawings import caption, drawing, png, sample, shard


def test_shard_gives_prompts_splits_and_real_pictures(tmp_path: Path) -> None:
    read = read_prompts(str(shard(tmp_path / "a.tar", 7)), limit=4)
    assert read.prompts == tuple(caption(index) for index in range(4))
    assert read.splits == ("novel-label", "novel-style", "novel-style", "novel-label")
    assert read.real == 7, "the real set is the whole shard"
    pictures = list(real_pictures(read.path))
    assert [each.tobytes() for each in pictures] == [drawing(index).tobytes() for index in range(7)]


def test_packed_shard_reads_alike_and_has_its_own_digest(tmp_path: Path) -> None:
    plain = shard(tmp_path / "a.tar", 3)
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    one, other = read_prompts(str(plain)), read_prompts(str(packed))
    assert (one.prompts, one.real) == (other.prompts, other.real)
    assert one.digest != other.digest
    assert str(tmp_path) not in one.title
    assert one.title.startswith("a.tar (sha256 ")


def test_text_file_gives_a_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("a fox\n\n  an owl  \n", encoding="utf-8")
    read = read_prompts(str(file))
    assert (read.prompts, read.splits, read.real) == (("a fox", "an owl"), ("", ""), 0)


TORN = png(drawing(2))[:-30]
FAULTS = {
    "no caption file": ({2: {"txt": None}}, "sample '0002' has no .txt"),
    "no picture": ({2: {"png": None}}, "sample '0002' has no .png"),
    "empty caption": ({2: {"txt": b" \n"}}, "caption of sample '0002' is empty"),
    "torn picture": ({2: {"png": TORN}}, "picture of sample '0002' is damaged"),
    "no PNG at all": ({2: {"png": b"hello"}}, "picture of sample '0002' is damaged"),
    "broken json": ({2: {"json": b"{"}}, "the .json of sample '0002' cannot be read"),
}


@pytest.mark.parametrize(("spoilt", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_faults_of_a_sample(tmp_path: Path, spoilt: dict[int, dict[str, bytes | None]], message: str) -> None:
    file = shard(tmp_path / "bad.tar", 4, spoilt)
    with pytest.raises(ModelError, match=message) as error:
        read_prompts(str(file))
    assert str(error.value).startswith(str(file))


def test_json_that_says_no_split_is_no_fault(tmp_path: Path) -> None:
    read = read_prompts(str(shard(tmp_path / "a.tar", 3, {0: {"json": None}, 1: {"json": b"[1]"}, 2: {"json": b"{}"}})))
    assert read.splits == ("", "", "")


def test_faults_of_a_file(tmp_path: Path) -> None:
    torn = tmp_path / "torn.tar"
    torn.write_bytes(shard(tmp_path / "a.tar", 4).read_bytes()[: 512 * 3 + 100])
    junk = tmp_path / "junk.tar.gz"
    junk.write_bytes(b"\x1f\x8b" + b"x" * 100)
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("\n")
    binary.write_bytes(sample(0)["png"])
    expected = {
        torn: "is no whole tar file",
        junk: "is no whole tar file",
        empty: "holds no prompt",
        binary: "is no text in UTF-8",
        tmp_path / "none.txt": "no such file",
    }
    for file, message in expected.items():
        with pytest.raises(ModelError, match=message):
            read_prompts(str(file))
