"""What every plot needs: round ticks, a linear and a logarithmic scale, and how wide a text is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

FONT_PX = 13
LETTER_PX = 0.56 * FONT_PX
"""Mean width of a letter. The page's font is the reader's, so this is an estimate on the wide side."""
STEPS = (1, 2, 2.5, 5, 10)
LEADING = (1, 2, 5)
FEWEST = 3
"""A logarithmic axis with fewer figures than these has those of a linear one."""
PLAIN = (1e-7, 1e9)
"""Figures outside are written with an exponent, so that ticks stay narrow."""
PLAIN_DECADES = range(-4, 7)


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
        return [Tick(self(figure), text.replace("-", "−")) for figure, text in self._round(count)]

    def _round(self, count: int) -> list[tuple[float, str]]:
        step = round_step((self.high - self.low) / count)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        figures = [index * step for index in range(first, last + 1)]
        largest, power = max(abs(self.low), abs(self.high)), math.floor(math.log10(step) + 1e-9)
        more = step / 10.0**power % 1 > 1e-9  # a step of 2.5 needs one digit more than one of 2
        if step >= PLAIN[0] and largest <= PLAIN[1]:
            digits = max(0, -power + more)
            return [(figure, f"{figure:,.{digits}f}") for figure in figures]
        digits = max(0, math.floor(math.log10(largest)) - power) + more
        return [(figure, _exponential(figure, digits)) for figure in figures]


class LogScale(Scale):
    """Equal factors are equal distances. All figures are above 0."""

    def __call__(self, figure: float) -> float:
        ends = math.log10(self.low), math.log10(self.high)
        return Scale(*ends, self.start, self.end)(math.log10(figure))

    def _round(self, count: int) -> list[tuple[float, str]]:
        """1, 2 and 5 in every decade if these are not more than `count`, else powers of ten at one distance."""
        found = self._powers(LEADING, 1)
        if len(found) < FEWEST:
            return super()._round(min(5, count))
        every = 0
        while len(found) > max(2, count):
            every += 1
            found = self._powers((1,), every)
        return found

    def _powers(self, leading: tuple[int, ...], every: int) -> list[tuple[float, str]]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        plain = decades[0] in PLAIN_DECADES and decades[-1] in PLAIN_DECADES
        figures = {float(f"{digit}e{power}"): power for power in decades if power % every == 0 for digit in leading}
        return [
            (figure, f"{figure:,.{max(0, -power)}f}" if plain else _exponential(figure, 0))
            for figure, power in figures.items()
            if self.low <= figure <= self.high
        ]


def around(figures: Iterable[float], start: float, end: float, share: float = 0.08) -> Scale:
    """A scale with a share of air on both sides of the figures; from 0 where that costs a quarter of it at most."""
    known = [figure for figure in figures if math.isfinite(figure)] or [0.0, 1.0]
    low, high = min(known), max(known)
    air = share * (high - low) if high > low else 0.1 * abs(high) or 1.0
    if 0 <= 4 * low <= high:
        return Scale(0.0, high + air, start, end)
    return Scale(low - air, high + air, start, end)


def around_log(figures: Iterable[float], start: float, end: float) -> LogScale:
    """A logarithmic scale with air on both sides of the figures, which are above 0."""
    powers = [math.log10(figure) for figure in figures] or [-1.0, 0.0]
    air = 0.08 * (max(powers) - min(powers)) or 0.1
    return LogScale(10 ** (min(powers) - air), 10 ** (max(powers) + air), start, end)


def round_step(rough: float) -> float:
    """The smallest of 1, 2, 2.5, 5 x 10^k that is at least `rough` (> 0)."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in STEPS if step * power >= rough * (1 - 1e-9))


def _exponential(figure: float, digits: int) -> str:
    mantissa, power = f"{figure:.{digits}e}".split("e")
    return f"{mantissa}e{int(power)}" if figure else "0"


def text_width(text: str) -> float:
    return len(text) * LETTER_PX


def cut(name: str, width: float) -> str:
    """The name, or as much of it as fits."""
    if text_width(name) <= width + 1:
        return name
    letters = int(width / LETTER_PX)
    return name[: max(1, letters - 1)] + "…"
