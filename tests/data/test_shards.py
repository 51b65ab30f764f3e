"""Every fault that a shard can have is counted by its kind, and the samples around it are used."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from functools import partial
from pathlib import Path

import numpy
import pytest
from PIL import Image

from asdm_cli.data.images import UnreadableError, read_rgb, square
from asdm_cli.data.shards import Faults, decoded, find_shards
from tests.data import tars

GOOD = tars.samples(0, 1, 2)
NAMES = ["picture 0", "picture 1", "picture 2"]


def read(path: Path, data: list[tars.Member] | bytes) -> tuple[list[str], dict[str, int]]:
    """The captions of what can be used of such a shard, and the faults by kind, each of which names the shard."""
    path.write_bytes(data if isinstance(data, bytes) else tars.tar_bytes(data))
    faults = Faults()
    (shard,) = find_shards([str(path)])
    captions = [
        sample.caption for chunk in decoded(shard, faults, 2, partial(square, resolution=32)) for sample, _ in chunk
    ]
    assert all(example.startswith(f"{path}: ") for example in faults.examples)
    return captions, dict(faults.counts)


def x(data: bytes, caption: bytes | None = b"x", name: str = "x", suffix: str = "txt") -> list[tars.Member]:
    return [(f"{name}.png", data), *([] if caption is None else [(f"{name}.{suffix}", caption)])]


PICTURE = tars.picture(9)
WRONG: dict[str, tuple[list[tars.Member], str]] = {
    "no picture at all": (x(b"no picture"), "corrupt image"),
    "a cut picture": (x(PICTURE[:400]), "corrupt image"),
    "an empty picture": (x(b""), "corrupt image"),
    "a picture of 134 megapixels": (x(tars.claiming(1 << 14, (1 << 13) + 1)), "corrupt image"),
    "a program's picture": (x(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "corrupt image"),
    "an empty caption": (x(PICTURE, b" \n"), "empty caption"),
    "bytes for a caption": (x(PICTURE, b"\xff\xfe\xfd"), "unreadable caption"),
    "a caption without a picture": ([("x.txt", b"x")], "no image"),
    "a picture without a caption": (x(PICTURE, None), "no caption"),
    "about without a caption": (x(PICTURE, b'{"a": 1}', suffix="json"), "no caption"),
    "about that is no JSON": (x(PICTURE, b"{", suffix="json"), "unreadable caption"),
    "about that is deep": (x(PICTURE, b"[" * 99999, suffix="json"), "unreadable caption"),
    "half a character": (x(PICTURE, b'{"caption": "\\ud800"}', suffix="json"), "unreadable caption"),
    "an absolute name": (x(PICTURE, name="/tmp/x"), "unsafe name"),
    "a name that climbs": (x(PICTURE, name="a/../../x"), "unsafe name"),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_wrong_sample_between_good_ones(case: str, tmp_path: Path) -> None:
    members, kind = WRONG[case]
    path = tmp_path / "in" / "a.tar"
    path.parent.mkdir()
    assert read(path, [*GOOD[:2], *members, *GOOD[2:]]) == (NAMES, {kind: 1})
    assert list(tmp_path.rglob("*")) == [path.parent, path], "nothing was written"


def test_a_name_that_is_no_text_is_spelled_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as archive:
        for name, data in (("café.png", PICTURE), ("café.txt", b"x")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    (shard,) = find_shards([str(tmp_path / "a.tar")])
    ((sample, _),) = next(decoded(shard, Faults(), 2, partial(square, resolution=32)))
    assert sample.key == "caf\\xe9"


def test_a_name_twice_and_a_member_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = [*GOOD, ("0002.txt", b"another")]
    assert read(tmp_path / "a.tar", twice) == (NAMES, {"duplicate name": 1})
    monkeypatch.setattr("asdm_cli.data.shards.LARGEST", 5000)
    found = read(tmp_path / "a.tar", [*GOOD[:2], *x(bytes(5001)), *GOOD[2:]])
    assert found == (NAMES, {"oversized member": 1, "no image": 1})


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE, link: Path | str = "") -> bytes:
    about = tarfile.TarInfo(name)
    about.size, about.type, about.linkname = size, kind, str(link)
    return about.tobuf(tarfile.GNU_FORMAT)


def ended(members: list[tars.Member]) -> tuple[bytes, int, list[int]]:
    """The archive, where its end mark begins, and where its members do."""
    whole = tars.tar_bytes(members)
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        starts = [member.offset for member in archive.getmembers()]
        return whole, archive.offset, starts


CLAIMS = {
    "a picture": header("x.png", 1 << 40),
    "another file": header("x.mp4", 1 << 40),
    "a long name": header("././@LongLink", 1 << 40, tarfile.GNUTYPE_LONGNAME),
    "an extended header": header("x", 1 << 40, tarfile.XHDTYPE),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("claim", CLAIMS)
def test_a_member_of_a_terabyte_that_is_not_there(claim: str, packed: bool, tmp_path: Path) -> None:
    """Neither waited for nor kept; what stands before it is used."""
    good, end, _ = ended(GOOD)
    whole = good[:end] + CLAIMS[claim] + bytes(10240)
    captions, counts = read(tmp_path / ("a.tar.gz" if packed else "a.tar"), gzip.compress(whole) if packed else whole)
    assert (captions, counts["truncated shard"]) == (NAMES, 1)


def test_links_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(tars.picture(5))
    archive = b"".join(
        header(f"{name}.png", 0, kind, secret) + header(f"{name}.txt", 1) + b"x".ljust(512, b"\0")
        for name, kind in (("x", tarfile.SYMTYPE), ("y", tarfile.LNKTYPE))
    )
    assert read(tmp_path / "a.tar", archive + bytes(1024)) == ([], {"no image": 2})


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_cut_shard_is_used_up_to_the_cut(mode: str, tmp_path: Path) -> None:
    whole = tars.tar_bytes(tars.samples(*range(40)), mode)
    captions, counts = read(tmp_path / f"a.tar{mode[1:].replace(':', '.')}", whole[: len(whole) // 2])
    assert 15 <= len(captions) <= 25
    assert captions == [f"picture {number}" for number in range(len(captions))]
    assert counts == {"truncated shard": 1}


def test_every_place_of_a_cut_is_noticed(tmp_path: Path) -> None:
    """In a picture, in a header, between two members: tarfile by itself takes the latter two for the end."""
    whole, end, starts = ended(GOOD)
    cuts = [end, *(place for start in starts[1:] for place in (start, start + 100, start + 512))]
    assert len(cuts) == 16
    for cut in cuts:
        used, counts = read(tmp_path / "a.tar", whole[:cut])
        assert counts == {"truncated shard": 1}, cut
        assert len(used) == sum(start <= cut for start in [*starts[2::2], end]), cut
    assert read(tmp_path / "a.tar", b"<html>404 Not Found</html>" * 100) == ([], {"truncated shard": 1})


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp"])
def test_formats(suffix: str, tmp_path: Path) -> None:
    assert read(tmp_path / "a.tar", tars.sample(4, suffix)) == (["picture 4"], {})


def test_other_members_are_left_alone_and_the_caption_of_the_json_is_second_choice(tmp_path: Path) -> None:
    extra = [("x.npy", b"1"), ("__meta__/a.txt", b"1"), ("README", b"1"), ("d/._0000.png", b"1"), (".x.txt", b"1")]
    about = json.dumps({"caption": "from json"}).encode()
    members = [*extra, *x(PICTURE, about, suffix="json"), *tars.sample(2), ("0002.json", about)]
    assert read(tmp_path / "a.tar", members) == (["from json", "picture 2"], {})


def test_crop_is_central_and_resampled() -> None:
    wide = numpy.zeros((32, 64, 3), numpy.uint8)
    wide[:, 16:48] = 200
    assert (square(tars.saved(Image.fromarray(wide)), 32) == 200).all()
    assert square(tars.picture(1, (100, 70)), 32).shape == (32, 32, 3)
    same = tars.picture(2)
    assert (square(same, 32) == numpy.asarray(Image.open(io.BytesIO(same)))).all(), "its own size: untouched"


def test_pictures_of_all_modes_become_rgb_on_white_and_upright(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = tars.saved
    assert read_rgb(saved(Image.new("L", (4, 4), 7))).getpixel((0, 0)) == (7, 7, 7)
    assert read_rgb(saved(Image.new("RGBA", (4, 4), (9, 9, 9, 0)))).getpixel((0, 0)) == (255, 255, 255)
    assert read_rgb(saved(Image.new("P", (4, 4)), transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    turned = Image.Exif()
    turned[0x0112] = 6
    assert read_rgb(saved(Image.new("RGB", (4, 8)), exif=turned)).size == (8, 4)
    with pytest.raises(UnreadableError, match="more than 8 bits"):
        read_rgb(saved(Image.new("I;16", (4, 4))))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableError, match="DecompressionBomb"):
        read_rgb(tars.picture(1))


def test_a_shard_is_told_by_its_contents(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9_001
    found = set[str]()
    for name, change in {"a": None, "b": None, "first": 0, "last": len(content) - 1}.items():
        file = tmp_path / f"{name}.tar"
        file.write_bytes(content if change is None else content[:change] + b"!" + content[change + 1 :])
        os.utime(file, ns=(0, len(found)))
        (shard,) = find_shards([str(file)])
        found.add(shard.contents())
    assert len(found) == 3
