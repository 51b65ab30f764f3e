"""Which drawings are held out for validation, decided by hashes: the same on every machine.

Two kinds, told apart in every figure:
  novel-label  every drawing of the label is held out
  novel-style  the label is known from other styles; only this style's drawing of it is held out
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

from asdm_cli.pocket.art import SAME_DRAWING, Drawing

NOVEL_LABEL, NOVEL_STYLE = "novel-label", "novel-style"
NOVEL_LABEL_SHARE = 0.015
NOVEL_STYLE_SHARE = 0.22
MIN_STYLES = 3


def split(drawings: Iterable[Drawing]) -> dict[str, list[Drawing]]:
    """{'train': …, 'novel-style': …, 'novel-label': …}; order kept, one drawing per (label, style)."""
    by_label: dict[str, dict[str, Drawing]] = defaultdict(dict)
    for drawing in drawings:
        by_label[drawing.label].setdefault(drawing.style, drawing)
    sides: dict[str, list[Drawing]] = {"train": [], NOVEL_STYLE: [], NOVEL_LABEL: []}
    for label, by_style in by_label.items():
        if _chance("label", label) < NOVEL_LABEL_SHARE:
            sides[NOVEL_LABEL] += by_style.values()
            continue
        held = _held_styles(label, set(by_style))
        for style, drawing in by_style.items():
            sides[NOVEL_STYLE if style in held else "train"].append(drawing)
    return sides


def _held_styles(label: str, styles: set[str]) -> set[str]:
    if len(styles) < MIN_STYLES or _chance("style", label) >= NOVEL_STYLE_SHARE:
        return set()
    first = min(styles, key=lambda style: _chance(label, style))
    together = next((twins for twins in SAME_DRAWING if first in twins), {first})
    held = together & styles
    return held if held < styles else set()


def _chance(*words: str) -> float:
    """A number in [0, 1) that only depends on the words."""
    digest = hashlib.md5("|".join(words).encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
