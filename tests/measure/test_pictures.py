"""Picture files that survive interruptions, and prompt lists that are refused before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from asdm_cli.errors import ModelError, RunError
from asdm_cli.measure.drawing import Share, claim, fitted, keep_real
from asdm_cli.measure.pictures import PictureSet, read, to_picture
from asdm_cli.measure.prompts import read_prompts, real_pictures
from tests.measure.shard import Sample, png, sample, write_shard

COLOURS = [(10 * i, 255 - 10 * i, 7) for i in range(5)]


def coloured(size: int = 8) -> list[Image.Image]:
    return [Image.new("RGB", (size, size), colour) for colour in COLOURS]


@pytest.fixture
def full(tmp_path: Path) -> PictureSet:
    target = PictureSet(tmp_path / "set", len(COLOURS))
    for index, picture in enumerate(coloured()):
        target.save(index, picture)
    return target


def cut(file: Path) -> None:
    """The header stays whole, so that opening alone does not notice."""
    file.write_bytes(file.read_bytes()[:-20])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[data.index(b"IDAT") + 6] ^= 0xFF
    file.write_bytes(data)


def test_save_and_read_are_inverse(full: PictureSet) -> None:
    assert [path.name for path in sorted(full.folder.iterdir())] == [f"{i:06}.png" for i in range(5)]
    (batch, rest) = full.batches(3)
    assert (batch.shape, batch.dtype, rest.shape) == ((3, 3, 8, 8), torch.uint8, (2, 3, 8, 8))
    assert [tuple(picture[:, 0, 0].tolist()) for picture in torch.cat([batch, rest])] == COLOURS
    assert to_picture(read(full.path(2))).tobytes() == coloured()[2].tobytes()


@pytest.mark.parametrize("damage", [Path.unlink, cut, empty, flip])
def test_only_what_is_damaged_is_missing(full: PictureSet, damage: Callable[[Path], None]) -> None:
    assert full.missing(range(5)) == []
    damage(full.path(3))
    assert full.missing(range(5)) == [3]
    assert full.missing([0, 1]) == []
    with pytest.raises(RunError, match=r"000003\.png: cannot be read .* run the same command again"):
        list(full.batches())


def test_resuming_redoes_the_damaged_one_alone(full: PictureSet) -> None:
    digest = full.digest()
    before = {index: full.path(index).stat().st_mtime_ns for index in range(5)}
    cut(full.path(3))
    assert full.digest() != digest
    keep_real(coloured(), full, size=8)
    after = {index: full.path(index).stat().st_mtime_ns for index in range(5)}
    assert full.digest() == digest
    assert [index for index in range(5) if after[index] != before[index]] == [3]


def test_a_full_set_is_not_read_again(full: PictureSet) -> None:
    keep_real((pytest.fail("was read") for _ in range(1)), full, size=8)


def test_pictures_of_another_origin_go_away(full: PictureSet) -> None:
    claim(full, {"steps": 2})
    assert full.missing(range(5)) == list(range(5)), "nobody said where these came from"
    full.save(0, coloured()[0])
    claim(full, {"steps": 2})
    assert full.missing(range(5)) == [1, 2, 3, 4]
    claim(full, {"steps": 3})
    assert full.missing(range(5)) == list(range(5))


def test_real_pictures_are_cut_to_a_square_and_never_stretched() -> None:
    wide = Image.new("RGB", (40, 10), "blue")
    wide.paste("red", (15, 0, 25, 10))
    assert fitted(wide, 8).getcolors() == [(64, (255, 0, 0))]
    square = coloured(8)[0]
    assert fitted(square, 8) is square


@pytest.mark.parametrize(("processes", "batch"), [(1, 4), (2, 4), (3, 6), (4, 1)])
def test_shares_are_whole_calls_and_cover_all(processes: int, batch: int) -> None:
    shares = [Share(rank, processes).of(range(50), batch) for rank in range(processes)]
    assert sorted(index for share in shares for index in share) == list(range(50))
    owners = [{index // 4 for index in share} for share in shares]
    assert sum(map(len, owners)) == 13, "a UNet call of four pictures has one owner"


def test_prompts_of_a_text_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  a dog  \r\nein Frosch, grün\n", encoding="utf-8")
    found = read_prompts(str(file))
    assert found.prompts == ("a cat", "a dog", "ein Frosch, grün")
    assert (found.splits, found.real) == (("", "", ""), 0)
    assert read_prompts(str(file), limit=2).prompts == ("a cat", "a dog")
    assert found.title == f"prompts.txt (sha256 {found.digest[:12]})"


def test_prompts_of_a_shard(tmp_path: Path) -> None:
    samples = {"000": sample("a cat\n", COLOURS[0], "seen"), "001": sample("a dog", COLOURS[1])}
    shard = write_shard(tmp_path / "some.tar", samples)
    found = read_prompts(str(shard), limit=1)
    assert (found.prompts, found.splits, found.real) == (("a cat",), ("seen",), 2)
    assert read_prompts(str(shard)).splits == ("seen", "")
    assert [picture.getpixel((0, 0)) for picture in real_pictures(shard)] == COLOURS[:2]


def spoilt(**changes: bytes | None) -> Sample:
    return {part: data for part, data in {**sample("a dog", COLOURS[1]), **changes}.items() if data is not None}


FLIPPED = bytearray(png(COLOURS[1]))
FLIPPED[FLIPPED.index(b"IDAT") + 6] ^= 0xFF
FAULTS = {
    "empty caption": (spoilt(txt=b" \n"), "caption of sample 'two' is empty"),
    "no caption": (spoilt(txt=None), r"sample 'two' has no \.txt"),
    "no picture": (spoilt(png=None), r"sample 'two' has no \.png"),
    "flipped bit": (spoilt(png=bytes(FLIPPED)), "picture of sample 'two' is damaged"),
    "no PNG at all": (spoilt(png=b"text"), "picture of sample 'two' is damaged"),
    "cut PNG": (spoilt(png=png(COLOURS[1])[:-20]), "picture of sample 'two' is damaged"),
    "broken JSON": (spoilt(json=b"{"), r"\.json of sample 'two' cannot be read"),
}


@pytest.mark.parametrize(("second", "message"), FAULTS.values(), ids=FAULTS)
def test_faults_of_a_shard_name_the_sample(tmp_path: Path, second: Sample, message: str) -> None:
    shard = write_shard(tmp_path / "bad.tar", {"one": sample("a cat", COLOURS[0]), "two": second})
    with pytest.raises(ModelError, match=f"bad.tar: .*{message}"):
        read_prompts(str(shard))


def test_a_shard_that_is_cut_short(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "cut.tar", {f"{i}": sample("a cat", COLOURS[0]) for i in range(3)})
    shard.write_bytes(shard.read_bytes()[:1700])
    with pytest.raises(ModelError, match=r"cut\.tar: "):
        read_prompts(str(shard))


@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_a_list_without_prompts(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "none.txt"
    file.write_bytes(data)
    with pytest.raises(ModelError, match=r"none\.txt: holds no prompt"):
        read_prompts(str(file))


def test_files_that_are_no_list(tmp_path: Path) -> None:
    file = tmp_path / "picture.txt"
    file.write_bytes(png(COLOURS[0]))
    with pytest.raises(ModelError, match="is no text in UTF-8"):
        read_prompts(str(file))
    with pytest.raises(ModelError, match="no such file"):
        read_prompts(str(tmp_path / "absent.txt"))
    named_so = file.rename(tmp_path / "picture.tar.gz")
    with pytest.raises(ModelError, match="is no whole tar file"):
        read_prompts(str(named_so))
