"""What every plot needs: round ticks, a linear scale, and how wide a text is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

FONT_PX = 13
LETTER_PX = 0.56 * FONT_PX
"""Mean width of a letter. The page's font is the reader's, so this is an estimate on the wide side."""
STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Scale:
    """Maps figures from `low` (drawn at `start` px) to `high` (at `end` px)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, figure: float) -> float:
        share = (figure - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, count: int) -> list[Tick]:
        """About `count` round figures that lie on the axis."""
        step = round_step((self.high - self.low) / count)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        digits += step * 10**digits % 1 > 1e-9  # a step of 2.5 needs one digit more than one of 2
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        figures = [index * step for index in range(first, last + 1)]
        return [Tick(self(figure), f"{figure:,.{digits}f}".replace("-", "−")) for figure in figures]


def around(figures: Iterable[float], start: float, end: float) -> Scale:
    """A scale with air on both sides of the figures; from 0 where that costs less than half of the axis."""
    known = [figure for figure in figures if math.isfinite(figure)] or [0.0, 1.0]
    low, high = min(known), max(known)
    air = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    if 0 <= low <= 0.5 * high:
        return Scale(0.0, high + air, start, end)
    return Scale(low - air, high + air, start, end)


def round_step(rough: float) -> float:
    """The smallest of 1, 2, 2.5, 5 x 10^k that is at least `rough` (> 0)."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in STEPS if step * power >= rough * (1 - 1e-9))


def text_width(text: str) -> float:
    return len(text) * LETTER_PX


def cut(name: str, width: float) -> str:
    """The name, or as much of it as fits."""
    if text_width(name) <= width + 1:
        return name
    letters = int(width / LETTER_PX)
    return name[: max(1, letters - 1)] + "…"
