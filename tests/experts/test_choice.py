"""The fastest way is measured once, and written down for every later process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from asdm_cli.experts import choice
from asdm_cli.experts.mixing import STRATEGIES


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ASDM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choice, "_known", {})
    return tmp_path / "cache" / choice.FILE


def tensors(device: str = "cpu", rows: int = 2) -> tuple[Any, ...]:
    x, bank = torch.randn(rows, 3, 8, 8, device=device), torch.randn(6, 3, 3, 3, device=device)
    return x, torch.softmax(torch.randn(rows, 3, device=device), 1), bank, None, True, {"stride": 1, "padding": 1}


def test_is_measured_once_and_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = choice.choose(*tensors())
    assert chosen in STRATEGIES
    held = json.loads(place.read_text())
    assert list(held.values()) == [chosen]
    monkeypatch.setattr(choice, "_fastest", lambda *_: pytest.fail("measured again"))
    assert choice.choose(*tensors()) == chosen
    monkeypatch.setattr(choice, "_known", {})  # as in another process
    assert choice.choose(*tensors()) == chosen


def test_what_is_written_decides(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choice.choose(*tensors())
    (key,) = json.loads(place.read_text())
    for name in STRATEGIES:
        place.write_text(json.dumps({key: name}))
        monkeypatch.setattr(choice, "_known", {})
        assert choice.choose(*tensors()) == name


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"'])
def test_a_damaged_file_is_replaced(place: Path, text: str) -> None:
    place.parent.mkdir(parents=True)
    place.write_text(text)
    assert choice.choose(*tensors()) in STRATEGIES
    assert len(json.loads(place.read_text())) == 1


def test_an_unknown_word_is_not_followed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choice.choose(*tensors())
    (key,) = json.loads(place.read_text())
    place.write_text(json.dumps({key: "fastest of all"}))
    monkeypatch.setattr(choice, "_known", {})
    assert choice.choose(*tensors()) == choice.UNMEASURED["cpu"]


def test_without_a_place_to_write_nothing_is_measured(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes could choose differently."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ASDM_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(choice, "_fastest", lambda *_: pytest.fail("measured"))
    assert choice.choose(*tensors()) == "loop"
    assert not place.exists()


def test_nothing_is_measured_without_storage_or_while_counting(place: Path) -> None:
    assert choice.choose(*tensors("meta")) == "grouped"
    with FlopCounterMode(display=False):
        assert choice.choose(*tensors()) == "loop"
    assert not place.exists()


def test_learning_and_drawing_are_measured_apart(place: Path) -> None:
    x, routing, bank, *rest = tensors()
    choice.choose(x, routing, bank, *rest)
    choice.choose(x, routing, bank.requires_grad_(), *rest)
    choice.choose(*tensors(rows=3))
    assert len(json.loads(place.read_text())) == 3
