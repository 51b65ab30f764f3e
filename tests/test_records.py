"""Unlike cards are told apart by name and value."""

from __future__ import annotations

from asdm_cli.records import Card, common, differences


def test_cards_that_are_alike_differ_in_nothing() -> None:
    cards: dict[str, Card] = {"a": {"steps": 25, "size": 64}, "b": {"steps": 25, "size": 64}}
    assert differences(cards) == ""
    assert common(cards) == {"steps": 25, "size": 64}


def test_every_difference_is_named_with_both_values() -> None:
    cards: dict[str, Card] = {"a": {"steps": 25, "size": 64, "batch": 4}, "b": {"steps": 10, "size": 64}}
    told = differences(cards)
    assert "batch (a: 4, b: None); steps (a: 25, b: 10)" in told
    assert "size" not in told
    assert common(cards) == {"size": 64}
