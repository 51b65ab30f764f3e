"""What was measured and is kept: every page says what its records do, and records tell of no machine's folders."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

from asdm_cli.report import page
from asdm_cli.report.markdown import digest, render
from asdm_cli.report.run_directory import from_json, read, to_json
from scripts import results
from scripts.gpu import distill as gpu_distill
from scripts.gpu import page as gpu_page
from scripts.gpu.results import Results
from tests.pages import ROOT
from tests.report import made
from tests.typed import asdm

KEPT = sorted(file.parent for file in results.RESULTS.glob("*/*/report.json"))
PAGES = [*sorted(results.RESULTS.glob("*.md")), *dict.fromkeys(ROOT / block.page for block in results.BLOCKS)]


@cache
def said() -> dict[Path, str]:
    return results.pages()


def test_every_page_of_figures_is_looked_at() -> None:
    assert {*PAGES} == said().keys()


@pytest.mark.parametrize("file", dict.fromkeys(PAGES), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_page_says_what_its_records_do(file: Path) -> None:
    assert file.read_text() == said()[file], "make results"


def test_other_figures_would_be_other_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    report = results.joined("demo")
    for each in report.records:
        object.__setattr__(each, "value", each.value * 1.5 + 1)
    monkeypatch.setattr(results, "joined", lambda _result: report)
    assert all(text != said()[file] for file, text in results.pages().items())


def test_no_figure_of_the_readme_is_typed() -> None:
    """Tables with measured figures stand between the comments alone."""
    text = re.sub(r"(?s)<!-- figures: .*?<!-- end of figures -->", "", (ROOT / "README.md").read_text())
    assert len(text) < len((ROOT / "README.md").read_text())
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows, "the verbs stand in a table"
    assert not [row for row in rows if re.search(r"\d \(\d|\d dB|\d %|\d ms", row)]


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_a_kept_record_is_a_run_of_no_machine(folder: Path) -> None:
    report = read(folder)
    assert report.records
    assert report.images is None
    assert {"device", "versions", "date"} <= {key for card in report.protocols.values() for key in card}
    for file in ("recipe.yaml", "report.json"):
        assert not results.PLACE.search((folder / file).read_text())
    said = asdm("show", folder, "--format", "csv")
    assert said.out.count("\n") == 1 + len(report.records)


def test_the_page_of_a_machine_with_a_gpu_is_written_from_what_came_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_page, "PAGE", tmp_path / "gpu.md")
    told = Results(tmp_path / "tests.json")
    told.put("tests", {"counts": {"PASSED": 3, "FAILED": 1}, "failed": ["tests/gpu/test_plans.py::one"]})
    told.put("outcome", {"exit": 1})
    text = gpu_page.write([tmp_path]).read_text()
    assert told.found["machine"]["date"][:10] in text
    assert "3 passed, 1 failed" in text
    assert "tests/gpu/test_plans.py::one" in text
    assert Results(tmp_path / "tests.json").found == told.found
    told.put("machine", {**told.found["machine"], "device": "another card"})
    assert Results(tmp_path / "tests.json").found.keys() == {"machine"}, "its figures are not this machine's"


def test_trainings_that_do_not_fit_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(gpu_page, "PAGE", tmp_path / "gpu.md")
    monkeypatch.setattr(gpu_distill, "training", full)
    told = Results(tmp_path / "distill.json")
    for batch in (8, 4):
        gpu_distill.one_batch(told, gpu_distill.Size(True), batch, ["floor", "plain"], math.inf, tmp_path)
    text = gpu_page.write([tmp_path]).read_text()
    assert "batch 8, floor, plain in turn: does not fit." in text
    assert "batch 4, floor, plain in turn: does not fit." in text


def test_a_run_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    run = made.draw(tmp_path / "run")
    (run / "report.json").write_text(json.dumps(to_json(made.compared())))
    (run / "recipe.yaml").write_text(f"verb: eval\nout: {tmp_path}/run\nsteps: 4\n")
    before = digest(run)
    results.keep("table", [run])
    folder = tmp_path / "results" / "table" / "run"
    assert {file.name for file in folder.iterdir()} == {"recipe.yaml", "report.json"}
    assert (folder / "recipe.yaml").read_text() == "verb: eval\nout: runs/run\nsteps: 4\n"
    assert digest(folder) == before, "wherever it was run"
    (run / "recipe.yaml").write_text(f"verb: eval\nout: {tmp_path}/run\nmodel: {tmp_path}/mine\n")
    assert digest(run) != before
    with pytest.raises(SystemExit, match=r"/mine, which is nowhere else; run the recipe with relative paths"):
        results.keep("table", [run])


def test_a_sheet_has_a_row_for_each_set_up(tmp_path: Path) -> None:
    run = made.draw(tmp_path / "run")
    (run / "report.json").write_text(json.dumps(to_json(made.compared())))
    held = made.compared().images
    assert held
    names = [*held.folders][:2]
    drawn = results.sheet(run, names)
    first = Image.open(run / held.folders[names[1]] / "000000.png")
    width, height = first.size
    assert drawn.size == (width * len(held.prompts), height * 2)
    assert drawn.crop((0, height, width, 2 * height)).tobytes() == first.convert("RGB").tobytes()


def test_a_page_has_every_table_and_only_data() -> None:
    report = from_json(to_json(made.compared()))
    text = render(report, {"runs/x": "0123abcd"})
    assert "runs/x `0123abcd`" in text
    entries = list(page.entries(report))
    assert len(entries) >= 10
    headings = re.findall(r"(?m)^## (.+)$", text)
    assert len(headings) == len(entries) + len(report.protocols) + bool(report.notes)
    assert "<img" not in text, "what a report says is no markup"
    assert "<script" not in text
    columns = [line.count(" | ") for line in text.splitlines() if line.startswith("| ---")]
    assert len(columns) == len(headings) - bool(report.notes)
