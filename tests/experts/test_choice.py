"""The fastest way is measured once, and written down for every later process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from asdm_cli.experts import choice
from asdm_cli.experts.mixing import STRATEGIES
from tests.forking import ours


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


PROCESS = """
import torch
from asdm_cli.experts import choice
from tests.experts.test_choice import tensors

torch.set_num_threads(1)
choice._fastest = lambda *_: print("measured") or "grouped"
print(choice.choose(*tensors()))
"""


def test_another_process_follows(place: Path) -> None:
    """What the first one measured; and what it did not find there it measures and writes."""
    choice.choose(*tensors())
    (key,) = json.loads(place.read_text())
    place.write_text(json.dumps({key: "separate"}))
    assert _told() == ["separate"]
    place.write_text(json.dumps({"another key": "separate"}))
    assert _told() == ["measured", "grouped"]
    assert json.loads(place.read_text()) == {"another key": "separate", key: "grouped"}


def _told() -> list[str]:
    (told,) = ours(PROCESS, cwd=Path.cwd(), environments=[{"ASDM_CACHE": os.environ["ASDM_CACHE"]}])
    assert told.code == 0, told.err[-2000:]
    return told.out.split()


def test_a_disk_that_fails_keeps_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured cannot be told to others: the fixed rule, and nothing half written."""
    monkeypatch.setattr(choice, "_fastest", lambda *_: "separate")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert choice.choose(*tensors()) == "loop"
    assert not place.exists()


def test_settings_formats_and_threads_are_measured_apart(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever makes one way faster than another has a line of its own."""
    monkeypatch.setattr(choice, "_fastest", lambda *_: "loop")
    x, routing, bank, bias, anchored, how = tensors()
    last = bank.to(memory_format=torch.channels_last)
    cases = [
        (x, routing, bank, bias, anchored, how),
        (x, routing, bank, bias, anchored, {**how, "stride": 2}),
        (x.bfloat16(), routing, bank.bfloat16(), bias, anchored, how),
        (x, routing, last, bias, anchored, how),
        (x[..., :4], routing, bank, bias, anchored, how),
        (x, routing[:, :2], bank, bias, anchored, how),
    ]
    for case in cases:
        choice.choose(*case)
    with torch.autocast("cpu", torch.bfloat16):
        choice.choose(*cases[0])
    torch.set_num_threads(2)
    try:
        choice.choose(*cases[0])
    finally:
        torch.set_num_threads(1)
    assert len(json.loads(place.read_text())) == len(cases) + 2


def test_nothing_is_measured_while_compiling(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert choice.choose(*tensors()) == "loop"
    assert not place.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"'])
def test_a_damaged_file_is_replaced(place: Path, text: str) -> None:
    place.parent.mkdir(parents=True)
    place.write_text(text)
    chosen = choice.choose(*tensors())
    assert chosen in STRATEGIES
    assert chosen in json.loads(place.read_text()).values()


@pytest.mark.parametrize(
    ("written", "followed"), [("fastest of all", "loop"), (["grouped"], "separate"), (1, "separate")]
)
def test_an_unknown_word_is_not_followed(
    place: Path, monkeypatch: pytest.MonkeyPatch, written: Any, followed: str
) -> None:
    """A later version's may stand there; what is no word is measured again."""
    monkeypatch.setattr(choice, "_fastest", lambda *_: "separate")
    choice.choose(*tensors())
    (key,) = json.loads(place.read_text())
    place.write_text(json.dumps({key: written}))
    monkeypatch.setattr(choice, "_known", {})
    assert choice.choose(*tensors()) == followed


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
