"""`asdm show`: what it prints about a model agrees with the model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel

from asdm_cli.cli import main
from asdm_cli.records import Record, Report
from asdm_cli.report.run_directory import to_json
from asdm_cli.unet.addresses import Anatomy


def shown(source: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["show", str(source)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def tree(text: str) -> dict[str, int]:
    """Address -> parameters, from the lines of the tree."""
    lines = re.findall(r"(unet|outside|mid\S*|down\.\S+|up\.\S+) .*?([\d,]+)$", text, re.MULTILINE)
    return {address: int(count.replace(",", "")) for address, count in lines}


def test_every_address_with_its_parameters(tiny_pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = tree(shown(tiny_pipeline, capsys))
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline / "unet")
    anatomy = Anatomy.of(dict(unet.config))
    assert set(counts) == {*anatomy.addresses, "unet", "outside"}
    assert counts["unet"] == unet.num_parameters()
    assert counts["mid"] == sum(weight.numel() for weight in unet.mid_block.parameters())
    assert counts["down.0.sampler"] == sum(w.numel() for w in unet.down_blocks[0].downsamplers.parameters())
    blocks = [node.address for node in anatomy.nodes if node.parent is None]
    assert counts["outside"] + sum(counts[block] for block in blocks) == counts["unet"]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"verb": 1}'])
def test_a_report_of_something_else_is_told(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text(content)
    assert main(["show", str(tmp_path)]) == 2
    assert "report.json" in capsys.readouterr().err


def a_run(folder: Path, verb: str, key: str, figures: dict[str, float]) -> Path:
    records = [Record(name, key, figure) for name, figure in figures.items()]
    folder.mkdir()
    report = Report(verb, {name: {"model": name} for name in figures}, records)
    (folder / "report.json").write_text(json.dumps(to_json(report)))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    bench = a_run(tmp_path / "bench", "bench", "image_ms", {"whole": 40.0, "base": 30.0})
    evaluation = a_run(tmp_path / "eval", "eval", "kid", {"whole": 0.1, "base": 0.3})
    return [str(bench), str(evaluation)]


def test_a_run_is_shown_with_where_its_page_is(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", runs[1]]) == 0
    said = capsys.readouterr().out
    assert "base: pictures ruined (KID 0.1000 → 0.3000)" in said
    assert "report.html" not in said, "a kept record has none"
    (Path(runs[1]) / "report.html").write_text("")
    assert main(["show", runs[1]]) == 0
    assert f"{runs[1]}/report.html" in capsys.readouterr().out


def test_runs_on_one_page_with_speed_against_quality(runs: list[str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["show", *runs, "--out", str(page)]) == 0
    text = page.read_text()
    assert text.count("<table") == 1 + 1, "and the figures of the plot"
    assert "KID and speed" in text


def test_runs_for_other_programs(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    for shape in ("csv", "markdown", "latex"):
        assert main(["show", *runs, "--format", shape]) == 0
        said[shape] = capsys.readouterr().out.splitlines()
    assert said["csv"][1:] == [
        f"{name},{key},{figure},,,,,,,1,,,"
        for key, figures in {"image_ms": (40.0, 30.0), "kid": (0.1, 0.3)}.items()
        for name, figure in zip(("whole", "base"), figures, strict=True)
    ]
    assert said["markdown"][2] == "| whole | 40 | **0.1000** |"
    assert said["latex"][0] == r"\begin{tabular}{lrr}"
    assert main(["show", *runs, "--format", "pdf"]) == 2


def test_a_page_that_exists_is_kept(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    assert main(["show", *runs, "--out", str(page)]) == 2
    assert page.read_text() == "mine"
    assert "--overwrite" in capsys.readouterr().err
    assert main(["show", *runs, "--out", str(page), "--overwrite"]) == 2
    assert page.read_text() == "mine", "--overwrite is for pages of ours"
    (tmp_path / "link.html").symlink_to(page)
    assert main(["show", *runs, "--out", str(tmp_path / "link.html"), "--overwrite"]) == 2
    page.unlink()
    for options in ([], ["--overwrite"]):
        assert main(["show", *runs, "--out", str(page), *options]) == 0
    assert page.read_text() != "mine"


def test_a_page_is_what_its_name_says(
    runs: list[str], tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, begins in {"page.MD": b"<!-- ", "page.html": b"<!DOCTYPE html>", "page.pdf": b"%PDF"}.items():
        for again in ([], ["--overwrite"]):
            assert main(["show", *runs, "--out", str(tmp_path / name), *again]) == 0
            assert (tmp_path / name).read_bytes().startswith(begins)
    capsys.readouterr()
    assert main(["show", *runs, "--out", str(tmp_path / "page.txt")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "end it in .html for a page, .md for Markdown, .pdf for the plots" in said
    assert main(["show", runs[0], "--out", str(tmp_path / "none.pdf")]) == 2
    assert "nothing to plot" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "none.pdf").exists()
    assert main(["show", str(tiny_pipeline), "--format", "csv"]) == 2
    assert "is no run directory" in " ".join(capsys.readouterr().err.split())


def test_one_run_under_two_names_is_one(runs: list[str], tmp_path: Path) -> None:
    assert main(["show", runs[1], f"{runs[1]}/", "--out", str(tmp_path / "page.html")]) == 0


def test_csv_is_csv_alone_beside_a_page(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", runs[1], "--format", "csv"]) == 0
    alone = capsys.readouterr().out
    assert main(["show", runs[1], "--format", "csv", "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == alone
