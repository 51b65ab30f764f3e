"""Protocol cards: how figures were made, and in what two of them differ."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from asdm_cli.report.document import Cell

Card = dict[str, Cell | list[str]]
PACKAGES = ("asdm-cli", "torch", "diffusers", "transformers", "torchmetrics")


def versions() -> list[str]:
    """`name version` of the packages that figures depend on."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # run from a checkout that was not installed
            found.append(f"{package} (not installed)")
    return found


def common(cards: Mapping[str, Card]) -> Card:
    """What all cards say alike."""
    first, *others = cards.values()
    return {key: value for key, value in first.items() if all(card.get(key) == value for card in others)}


def differences(cards: Mapping[str, Card]) -> str:
    """One sentence that names every key in which the cards differ, with each one's value; '' if none does."""
    alike = common(cards)
    keys = sorted({key for card in cards.values() for key in card} - set(alike))
    each = [f"{key} ({', '.join(f'{name}: {card.get(key)}' for name, card in cards.items())})" for key in keys]
    return f"Not made alike: the contestants differ in {'; '.join(each)}." if each else ""
