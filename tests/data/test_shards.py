"""Every fault that a shard can have is counted by its kind, and the samples around it are used."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import fsspec
import numpy
import pytest
from PIL import Image

from asdm_cli.data.images import UnreadableError, read_rgb, square
from asdm_cli.data.shards import Faults, find_shards, squares
from asdm_cli.errors import RunError
from tests.data import tars

GOOD = tars.samples(0, 1, 2)


def read(path: Path, faults: Faults) -> list[str]:
    (shard,) = find_shards([str(path)])
    return [sample.caption for chunk in squares(shard, 32, faults, batch=2) for sample, _ in chunk]


def with_sample(*members: tars.Member) -> list[tars.Member]:
    """Three good samples and this one in between."""
    return [*GOOD[:2], *members, *GOOD[2:]]


WRONG: dict[str, tuple[list[tars.Member], str]] = {
    "no picture at all": ([("x.png", b"no picture"), ("x.txt", b"x")], "corrupt image"),
    "a cut picture": ([("x.png", tars.picture(9)[:400]), ("x.txt", b"x")], "corrupt image"),
    "an empty picture": ([("x.png", b""), ("x.txt", b"x")], "corrupt image"),
    "half a character": ([("x.png", tars.picture(9)), ("x.json", b'{"caption": "\\ud800"}')], "unreadable caption"),
    "a picture of 134 megapixels": (
        [("x.png", tars.claiming(1 << 14, (1 << 13) + 1)), ("x.txt", b"x")],
        "corrupt image",
    ),
    "a program's picture": ([("x.png", b"%!PS-Adobe-3.0 EPSF-3.0\n"), ("x.txt", b"x")], "corrupt image"),
    "an empty caption": ([("x.png", tars.picture(9)), ("x.txt", b" \n")], "empty caption"),
    "bytes for a caption": ([("x.png", tars.picture(9)), ("x.txt", b"\xff\xfe\xfd")], "unreadable caption"),
    "a caption without a picture": ([("x.txt", b"x")], "no image"),
    "a picture without a caption": ([("x.png", tars.picture(9))], "no caption"),
    "about without a caption": ([("x.png", tars.picture(9)), ("x.json", b'{"a": 1}')], "no caption"),
    "about that is no JSON": ([("x.png", tars.picture(9)), ("x.json", b"{")], "unreadable caption"),
    "about that is deep": ([("x.png", tars.picture(9)), ("x.json", b"[" * 99999)], "unreadable caption"),
    "an absolute name": ([("/tmp/x.png", tars.picture(9)), ("/tmp/x.txt", b"x")], "unsafe name"),
    "a name that climbs": ([("a/../../x.png", tars.picture(9)), ("a/../../x.txt", b"x")], "unsafe name"),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_wrong_sample(case: str, tmp_path: Path) -> None:
    members, kind = WRONG[case]
    path = tars.write(tmp_path / "in" / "a.tar", with_sample(*members))
    before, faults = sorted(tmp_path.rglob("*")), Faults()
    assert read(path, faults) == ["picture 0", "picture 1", "picture 2"]
    assert dict(faults.counts) == {kind: 1}
    assert faults.examples[0].startswith(f"{path}: ")
    assert sorted(tmp_path.rglob("*")) == before, "nothing was written"


def test_a_name_twice(tmp_path: Path) -> None:
    path = tars.write(tmp_path / "a.tar", [*GOOD, *tars.sample(3), ("0003.txt", b"another")])
    faults = Faults()
    assert read(path, faults) == [f"picture {number}" for number in range(4)]
    assert dict(faults.counts) == {"duplicate name": 1}


def test_an_oversized_member_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asdm_cli.data.shards.LARGEST", 5000)
    path, faults = tars.write(tmp_path / "a.tar", with_sample(("x.png", bytes(5001)), ("x.txt", b"x"))), Faults()
    assert len(read(path, faults)) == 3
    assert dict(faults.counts) == {"oversized member": 1, "no image": 1}


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    about = tarfile.TarInfo(name)
    about.size, about.type = size, kind
    return about.tobuf(tarfile.GNU_FORMAT)


CLAIMS = {
    "a picture": _header("x.png", 1 << 40),
    "another file": _header("x.mp4", 1 << 40),
    "a long name": _header("././@LongLink", 1 << 40, tarfile.GNUTYPE_LONGNAME),
    "an extended header": _header("x", 1 << 40, tarfile.XHDTYPE),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("claim", CLAIMS)
def test_a_member_of_a_terabyte_that_is_not_there(claim: str, packed: bool, tmp_path: Path) -> None:
    """Neither waited for nor kept; what stands before it is used."""
    with tarfile.open(fileobj=io.BytesIO(tars.tar_bytes(GOOD))) as archive:
        archive.getmembers()
        whole = tars.tar_bytes(GOOD)[: archive.offset] + CLAIMS[claim] + bytes(10240)
    path, faults = tmp_path / ("a.tar.gz" if packed else "a.tar"), Faults()
    path.write_bytes(gzip.compress(whole) if packed else whole)
    assert read(path, faults) == ["picture 0", "picture 1", "picture 2"]
    assert faults.counts["truncated shard"] == 1


def test_links_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(tars.picture(5))
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for kind, name in ((tarfile.SYMTYPE, "x"), (tarfile.LNKTYPE, "y")):
            link = tarfile.TarInfo(f"{name}.png")
            link.type, link.linkname = kind, str(secret)
            archive.addfile(link)
            caption = tarfile.TarInfo(f"{name}.txt")
            caption.size = 1
            archive.addfile(caption, io.BytesIO(b"x"))
    faults = Faults()
    assert read(path, faults) == []
    assert dict(faults.counts) == {"no image": 2}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_cut_shard_is_used_up_to_the_cut(mode: str, tmp_path: Path) -> None:
    whole = tars.tar_bytes(tars.samples(*range(40)), mode)
    path = tmp_path / {"w": "a.tar", "w:gz": "a.tar.gz", "w:xz": "a.tar.xz"}[mode]
    path.write_bytes(whole[: len(whole) // 2])
    faults = Faults()
    captions = read(path, faults)
    assert 15 <= len(captions) <= 25
    assert captions == [f"picture {number}" for number in range(len(captions))]
    assert dict(faults.counts) == {"truncated shard": 1}


def test_every_place_of_a_cut_is_noticed(tmp_path: Path) -> None:
    """In a picture, in a header, between two members: tarfile by itself takes the latter two for the end."""
    whole = tars.tar_bytes(GOOD)
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        starts = [member.offset for member in archive.getmembers()]
        end = archive.offset
    cuts = [place for start in starts[1:] for place in (start, start + 100, start + 512)]
    cuts += [end]
    assert len(cuts) == 16
    for cut in cuts:
        path, faults = tmp_path / "a.tar", Faults()
        path.write_bytes(whole[:cut])
        used = read(path, faults)
        assert dict(faults.counts) == {"truncated shard": 1}, cut
        assert len(used) == sum(start <= cut for start in [*starts[2::2], end]), cut


def test_a_page_instead_of_a_shard(tmp_path: Path) -> None:
    path, faults = tmp_path / "a.tar", Faults()
    path.write_bytes(b"<html>404 Not Found</html>" * 100)
    assert read(path, faults) == []
    assert dict(faults.counts) == {"truncated shard": 1}


def test_a_shard_that_went_away_fails_the_run(tmp_path: Path) -> None:
    path = tars.write(tmp_path / "a.tar", GOOD)
    (shard,) = find_shards([str(path)])
    path.unlink()
    with pytest.raises(RunError, match="run again"):
        list(squares(shard, 32, Faults(), 2))


def test_a_store_that_breaks_off_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an error of its own kind, which is neither an OSError nor a bug; half a shard is not taken for a whole."""
    store, faults = fsspec.filesystem("memory"), Faults()
    store.pipe("/broken/a.tar", tars.tar_bytes(GOOD))
    try:
        (shard,) = find_shards(["memory://broken/a.tar"])
        assert sum(len(each) for each in squares(shard, 32, faults, 2)) == len(GOOD) // 2
        tars.break_off(monkeypatch)
        with pytest.raises(RunError, match=r"a.tar by memory .*PayloadError: 25600 of 51200.* run again"):
            list(squares(shard, 32, faults, 2))
        assert not faults.counts
    finally:
        store.rm("/broken", recursive=True)


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp"])
def test_formats(suffix: str, tmp_path: Path) -> None:
    path, faults = tars.write(tmp_path / "a.tar", tars.sample(4, suffix)), Faults()
    assert read(path, faults) == ["picture 4"]
    assert not faults.total()


def test_other_members_are_left_alone(tmp_path: Path) -> None:
    extra = [("x.npy", b"1"), ("__meta__/a.txt", b"1"), ("README", b"1"), ("d/._0000.png", b"1"), (".x.txt", b"1")]
    path, faults = tars.write(tmp_path / "a.tar", [*extra, *GOOD]), Faults()
    assert len(read(path, faults)) == 3
    assert not faults.total()


def test_the_caption_of_the_json_is_second_choice(tmp_path: Path) -> None:
    about = json.dumps({"caption": "from json"}).encode()
    members = [("a.png", tars.picture(1)), ("a.json", about), *tars.sample(2), ("0002.json", about)]
    assert read(tars.write(tmp_path / "a.tar", members), Faults()) == ["from json", "picture 2"]


def test_crop_is_central_and_resampled() -> None:
    wide = numpy.zeros((32, 64, 3), numpy.uint8)
    wide[:, 16:48] = 200
    out = io.BytesIO()
    Image.fromarray(wide).save(out, "PNG")
    assert (square(out.getvalue(), 32) == 200).all()
    assert square(tars.picture(1, (100, 70)), 32).shape == (32, 32, 3)
    same = tars.picture(2)
    assert (square(same, 32) == numpy.asarray(Image.open(io.BytesIO(same)))).all(), "its own size: untouched"


def test_pictures_of_all_modes_become_rgb_on_white_and_upright() -> None:
    saved = tars.saved
    assert read_rgb(saved(Image.new("L", (4, 4), 7))).getpixel((0, 0)) == (7, 7, 7)
    assert read_rgb(saved(Image.new("RGBA", (4, 4), (9, 9, 9, 0)))).getpixel((0, 0)) == (255, 255, 255)
    assert read_rgb(saved(Image.new("P", (4, 4)), transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    turned = Image.Exif()
    turned[0x0112] = 6
    assert read_rgb(saved(Image.new("RGB", (4, 8)), exif=turned)).size == (8, 4)
    with pytest.raises(UnreadableError, match="more than 8 bits"):
        read_rgb(saved(Image.new("I;16", (4, 4))))


def test_a_picture_that_unpacks_to_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableError, match="DecompressionBomb"):
        read_rgb(tars.picture(1))
