"""`asdm pack`: a folder of pictures becomes shards that training reads, whatever form its captions have."""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
from pathlib import Path

import pytest
import webdataset

from asdm_cli.cli import main
from asdm_cli.data.shards import Faults, find_shards, read_samples
from tests.data import tars


def put(file: Path, data: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    return file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six usable pictures with captions in all three forms, names with dots, folders, a capital suffix."""
    folder = tmp_path / "photos"
    put(folder / "a.png", tars.picture(0))
    put(folder / "a.txt", "beside\n")
    put(folder / "b.v1.2.JPG", tars.picture(1, kind="JPEG"))
    rows = [{"file_name": "b.v1.2.JPG", "text": "from jsonl"}, {"file_name": "a.png", "text": "not this"}]
    put(folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    put(folder / "sub" / "c.webp", tars.picture(2, kind="WEBP"))
    put(folder / "sub" / "deep.er" / "d.jpeg", tars.picture(3, kind="JPEG"))
    text = io.StringIO()
    csv.writer(text).writerows([["file_name", "caption"], ["c.webp", "from, csv"], ["deep.er/d.jpeg", "Füchse"]])
    put(folder / "sub" / "captions.csv", text.getvalue())
    put(folder / "more" / "e.png", tars.picture(4))
    put(folder / "more" / "metadata.csv", "file_name,text\ne.png,from metadata.csv\n")
    put(folder / "z.png", tars.picture(5))
    put(folder / "z.txt", "last")
    put(folder / "notes.md", "no picture")
    put(folder / ".hidden" / "x.png", b"x")
    return folder


CAPTIONS = ["beside", "from jsonl", "from metadata.csv", "from, csv", "Füchse", "last"]


def pack(folder: Path, out: Path, *options: str) -> int:
    return main(["pack", str(folder), "--out", str(out), *options])


def captions(out: Path) -> list[str]:
    faults = Faults()
    found = [sample.caption for shard in find_shards([f"{out}/*.tar"]) for sample in read_samples(shard, faults)]
    assert not faults.total()
    return found


def test_all_forms_of_captions(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert pack(photos, out, "--shard-size", "4") == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert "6 samples in 2 shards" in said.err
    assert sorted(path.name for path in out.iterdir()) == [".asdm", "00000.tar", "00001.tar", "pack.json"]
    assert captions(out) == CAPTIONS
    assert json.loads((out / "pack.json").read_text()) == {"samples": [4, 2], "faults": {}, "left_out": []}


def test_pictures_keep_their_bytes_and_say_where_they_are_from(photos: Path, tmp_path: Path) -> None:
    assert pack(photos, tmp_path / "out") == 0
    seen = 0
    for sample in webdataset.WebDataset(str(tmp_path / "out" / "00000.tar"), shardshuffle=False):
        name = json.loads(sample["json"])["file_name"]
        assert sample[name.rpartition(".")[2].lower()] == (photos / name).read_bytes()
        seen += 1
    assert seen == 6


FAULTY = {
    "no caption": ("q.png", tars.picture(9), None),
    "empty caption": ("q.png", tars.picture(9), b" "),
    "unreadable caption": ("q.png", tars.picture(9), b"\xff\xff"),
    "unreadable image": ("q.png", b"no picture", b"q"),
    "other picture format": ("q.tiff", b"x", None),
}


@pytest.mark.parametrize("kind", FAULTY)
def test_what_cannot_be_used(kind: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, data, caption = FAULTY[kind]
    name = f"[red]{name}"  # no markup, though rich would take it for some
    put(photos / name, data)
    if caption is not None:
        put(photos / "[red]q.txt", caption)
    out = tmp_path / "out"
    assert pack(photos, out, "--strict") == 2
    assert f"{name}: {kind}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photos"], "nothing is left"
    assert pack(photos, out) == 0
    said = capsys.readouterr().err
    assert f"{name}: {kind}" in said
    assert f"{kind}: 1" in said
    assert captions(out) == CAPTIONS
    record = json.loads((out / "pack.json").read_text())
    assert record["faults"] == {kind: 1}
    assert record["left_out"][0].startswith(f"{name}: {kind}")


def test_bad_rows_are_told_by_their_lines_and_the_others_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    for number in range(6):
        put(folder / f"{number}.png", tars.picture(number))
    rows = [
        '{"file_name": "0.png", "text": "one\u2028caption"}',
        "{",
        "[" * 99_999,
        '{"file_name": "1.png", "text": "\\ud800"}',
        '{"file_name": "2.png", "text": "two"}',
    ]
    put(folder / "metadata.jsonl", "\r\n".join(rows).encode() + b'\n{"file_name": "3.png", "text": "\xff"}')
    table = ["file_name,text", '4.png,"of two', 'lines"', "", f"5.png,{'x' * 200_000}", "gone.png,y"]
    put(folder / "captions.csv", "\n".join(table))
    assert pack(folder, tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert [int(number) for number in re.findall(r"metadata.jsonl:(\d+): unreadable row", said)] == [2, 3, 4, 6]
    assert re.findall(r"captions.csv:(\d+): unreadable row", said) == ["5"]
    assert captions(tmp_path / "out") == ["one\u2028caption", "two", "of two\nlines"]


def test_folders_that_are_not_entered_are_told(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "elsewhere" / "x.png", tars.picture(9))
    (photos / "album").symlink_to(tmp_path / "elsewhere")
    (photos / "lost.png").symlink_to(tmp_path / "nowhere.png")
    assert pack(photos, tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert "album: linked folder" in said
    assert "lost.png: unreadable image" in said
    assert captions(tmp_path / "out") == CAPTIONS


def test_nothing_to_pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    put(tmp_path / "bare" / "a.png", tars.picture(0))
    for folder, what in (("gone", "no such directory"), ("empty", "no picture"), ("bare", "no picture can be used")):
        assert pack(tmp_path / folder, tmp_path / "out") == 2
        assert what in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_existing_directory_is_kept(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack(photos, photos, "--overwrite") == 2, "never the pictures themselves"
    assert (photos / "a.png").is_file()
    out = tmp_path / "out"
    assert pack(photos, out, "--shard-size", "1") == 0
    assert pack(photos, out) == 2
    assert len(list(out.iterdir())) == 8
    assert pack(photos, out, "--overwrite") == 0
    assert len(list(out.iterdir())) == 3
    put(out / "home-2026.tar", "mine")
    assert pack(photos, out, "--overwrite") == 2
    assert "home-2026.tar, which is not from asdm" in capsys.readouterr().err.replace("\n", " ")
    assert (out / "home-2026.tar").is_file()


def test_the_same_folder_is_the_same_shards(photos: Path, tmp_path: Path) -> None:
    runs = {"a": [], "b": [], "c": ["--shuffle"], "d": ["--shuffle"], "e": ["--shuffle", "--seed", "1"]}
    for name, options in runs.items():
        assert pack(photos, tmp_path / name, *options) == 0
    made = {name: (tmp_path / name / "00000.tar").read_bytes() for name in runs}
    assert made["a"] == made["b"]
    assert made["c"] == made["d"]
    assert len(set(made.values())) == 3
    assert sorted(captions(tmp_path / "c")) == sorted(CAPTIONS)
    with tarfile.open(tmp_path / "a" / "00000.tar") as archive:
        assert {(member.mtime, member.uname, member.gname) for member in archive} == {(0, "", "")}
