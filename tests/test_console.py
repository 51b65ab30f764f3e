"""What a log is told of work that takes long."""

from __future__ import annotations

from itertools import count, pairwise

import pytest

from asdm_cli import console


def test_a_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    seconds = count(0, 6)  # of every item
    monkeypatch.setattr(console, "note", told.append)
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(seconds)))
    with console.bar("drawing", 100) as advance:
        for _ in range(100):
            advance()
    assert told[0] == "drawing: 5 of 100, about 11 min left"
    done = [int(line.removeprefix("drawing: ").split(" ", 1)[0]) for line in told]
    assert done == sorted(done)
    assert 3 <= len(told) <= 7
    gaps = [later - earlier for earlier, later in pairwise(done)]
    assert gaps == sorted(gaps), "more and more rarely"


def test_texts_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("runs/a:cat:b/report", "a [bold]b[/] [1]"):
        console.note(text)
        assert capsys.readouterr().err == f"{text}\n"


def test_figures_and_totals_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(console, "note", told.append)
    monkeypatch.setattr(console, "SOON", 0.0)
    with console.bar("packing", None) as advance:
        advance(3, "2 skipped")
    assert told == ["packing: 3 (2 skipped)"]
