"""Prompt lists: every fault names the file, the sample and the way out."""

from __future__ import annotations

import gzip
from functools import partial
from pathlib import Path

import numpy
import pytest
from PIL import Image

from asdm_cli.data.images import read_rgb, square
from asdm_cli.data.shards import Faults, decoded, find_shards
from asdm_cli.errors import ModelError
from asdm_cli.sampling import prompts
from asdm_cli.sampling.image_set import real_set
from asdm_cli.sampling.prompts import read_captions, read_prompts, real_images
from tests.data import tars
from tests.drawings import caption, drawing, png, sample, shard


def test_shard_gives_prompts_splits_and_real_images(tmp_path: Path) -> None:
    read = read_prompts(str(shard(tmp_path / "a.tar", 7)), limit=4)
    assert read.prompts == tuple(caption(index) for index in range(4))
    assert [about["split"] for about in read.about] == ["novel-label", "novel-style", "novel-style", "novel-label"]
    assert read.real == 7, "the real set is the whole shard"
    pictures = list(real_images(read.shards))
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
    file.write_bytes("\ufeffa fox\r\n\n  an owl  \nbeside\u2028a \x0ctree\n".encode())
    read = read_prompts(str(file))
    assert read.prompts == ("a fox", "an owl", "beside\u2028a \x0ctree")
    assert (read.about, read.real) == (({}, {}, {}), 0)


TORN = png(drawing(2))[:-30]
FAULTS = {
    "no caption file": ({2: {"txt": None}}, "0002: no caption"),
    "no picture": ({2: {"png": None}}, "0002: no image"),
    "empty caption": ({2: {"txt": b" \n"}}, "0002: empty caption"),
    "torn picture": ({2: {"png": TORN}}, "0002: corrupt image"),
    "no PNG at all": ({2: {"png": b"hello"}}, "0002: corrupt image"),
    "a program's picture": ({2: {"png": b"%!PS-Adobe-3.0 EPSF-3.0\n"}}, "0002: corrupt image"),
    "huge": ({2: {"png": tars.claiming(14_000, 14_000)}}, "0002: corrupt image"),
    "broken json": ({2: {"json": b"{"}}, "0002: unreadable .json"),
}


@pytest.mark.parametrize(("spoilt", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_faults_of_a_sample(tmp_path: Path, spoilt: dict[int, dict[str, bytes | None]], message: str) -> None:
    file = shard(tmp_path / "bad.tar", 4, spoilt)
    with pytest.raises(ModelError, match=message) as error:
        read_prompts(str(file))
    assert str(error.value).startswith(str(file))


def test_all_faults_at_once(tmp_path: Path) -> None:
    file = shard(tmp_path / "bad.tar", 5, {1: {"png": TORN}, 3: {"txt": b""}})
    with pytest.raises(ModelError, match="empty caption: 1, corrupt image: 1") as error:
        read_prompts(str(file))
    assert [line.split(": ")[1] for line in str(error.value).splitlines()[:2]] == ["0003", "0001"]


def test_captions_alone_are_taken_whatever_their_pictures_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = shard(tmp_path / "bad.tar", 5, {1: {"png": TORN}, 3: {"txt": b""}})
    assert read_captions(str(file)).prompts == tuple(caption(index) for index in (0, 1, 2, 4))
    assert "bad.tar: faults were skipped, empty caption: 1" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ModelError, match="empty caption: 1"):
        read_captions(str(file), skip=False)
    command = f"pipe:echo >> {tmp_path}/asked; cat {file}"
    assert read_captions(command, allow_pipes=True).prompts == read_captions(str(file)).prompts
    assert (tmp_path / "asked").read_text() == "\n", "once"
    with pytest.raises(ModelError, match="allow commands where you start the run"):
        read_captions(command)
    with pytest.raises(ModelError, match="prompts are of no command; write what it gives into a file"):
        read_prompts(command)


def test_pictures_of_prompts_are_looked_at_once_though_a_plan_and_its_run_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[bytes] = []
    monkeypatch.setattr(prompts, "read_rgb", lambda data: (looked.append(data), read_rgb(data))[1])
    file = str(shard(tmp_path / "a.tar", 3))
    assert read_prompts(file, limit=2).prompts == read_prompts(file).prompts[:2]
    assert len(looked) == 3
    shard(tmp_path / "a.tar", 4)
    assert len(read_prompts(file).prompts) == 4


def test_what_pack_writes_is_read_as_training_reads_it(tmp_path: Path) -> None:
    """JPEGs, transparent and turned pictures, several shards by one pattern."""
    turned = Image.Exif()
    turned[0x0112] = 6
    clear, side = Image.new("RGBA", (8, 8), (9, 9, 9, 0)), Image.new("RGB", (8, 16), "red")
    members = [
        [("0.jpg", tars.picture(0, kind="JPEG")), ("0.txt", "\ufeffa\u2028fox".encode())],
        [("1.png", tars.saved(clear)), ("1.txt", b"an owl")],
        [("2.webp", tars.saved(side, "WEBP", exif=turned)), ("2.txt", b"a cat")],
    ]
    files = [tars.write(tmp_path / f"{number:05}.tar", each) for number, each in enumerate(members)]
    read = read_prompts(f"{tmp_path}/*.tar")
    assert read.prompts == ("a\u2028fox", "an owl", "a cat")
    assert (read.real, read.name) == (3, "00000.tar and 2 more")
    assert read.digest not in {read_prompts(str(file)).digest for file in files}
    learnt = [
        pixels
        for part in find_shards([f"{tmp_path}/*.tar"])
        for chunk in decoded(part, Faults(), 2, partial(square, resolution=8))
        for _, pixels in chunk
    ]
    (measured,) = real_set(read, 8, tmp_path / "real").batches()
    assert (measured.permute(0, 2, 3, 1).numpy() == numpy.stack(learnt)).all()
    assert (learnt[1] == 255).all()


def test_faults_of_a_file(tmp_path: Path) -> None:
    torn = tmp_path / "torn.tar"
    torn.write_bytes(shard(tmp_path / "a.tar", 4).read_bytes()[: 512 * 3 + 100])
    junk = tmp_path / "junk.tar.gz"
    junk.write_bytes(b"\x1f\x8b" + b"x" * 100)
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("\n")
    binary.write_bytes(sample(0)["png"])
    table = tmp_path / "captions.jsonl"
    table.write_text('{"caption": "a fox"}\n')
    expected = {
        torn: "truncated shard",
        junk: "truncated shard",
        empty: "holds no prompt",
        binary: "is no text in UTF-8",
        tmp_path / "none.txt": "no such file",
        table: "is a table, and a text file of `prompts` has one on each line",
    }
    for file, message in expected.items():
        with pytest.raises(ModelError, match=message):
            read_prompts(str(file))
