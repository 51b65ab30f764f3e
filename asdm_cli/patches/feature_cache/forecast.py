"""What stands for a value at a call that leaves it out: numbers by which the values of the last key steps, and the
latents at hand, are multiplied. Plain numbers, no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from asdm_cli.recipe.patches import INTERLEAVED, ORDERS, CacheRule, Chebyshev, Fit


class Weights(NamedTuple):
    """Of the known values, newest first; none: the newest itself, not a copy. `latent`: of the UNet's input."""

    values: tuple[float, ...] = ()
    latent: float = 0.0


NEWEST = Weights()


class Forecast(ABC):
    """`depth`: how many values it looks at. `order`: its error grows like the distance to the power of order + 1."""

    depth: int
    order: int

    @abstractmethod
    def weights(self, known: Sequence[float], place: float, call: int) -> Weights:
        """At `place`, from values at the places `known`, newest first, no two alike, one at least."""

    def correction(self, known: Sequence[float], call: int) -> Weights:  # noqa: ARG002 - of fitted ones
        """At a key step, whose own value is the newest: what is handed on in its place."""
        return NEWEST


class Polynomial(Forecast):
    """Lagrange's: exact for polynomials of its order, however far apart the key steps are. Before enough is known, of a
    lower order."""

    def __init__(self, order: int):
        self.order, self.depth = order, order + 1

    def weights(self, known: Sequence[float], place: float, call: int) -> Weights:  # noqa: ARG002 - some count calls
        known = known[: self.depth]
        if len(known) < 2:
            return NEWEST
        found = []
        for one in known:
            weight = 1.0
            for other in known:
                weight *= (place - other) / (one - other) if other != one else 1.0
            found.append(weight)
        return Weights(tuple(found))


class Interleaved(Forecast):
    """At every other call since the last key step that value and its last change again, however long that took, at the
    rest the value alone (as described in ZEUS, arXiv 2604.01552)."""

    order, depth = 1, 2

    def weights(self, known: Sequence[float], place: float, call: int) -> Weights:  # noqa: ARG002
        odd = round(abs(place - known[0])) % 2 == 1
        return Weights((2.0, -1.0)) if odd and len(known) > 1 else NEWEST


class ChebyshevRidge(Forecast):
    """Least squares with a penalty, in Chebyshev polynomials of the place between the run's ends, all values alike (as
    described in Spectrum, arXiv 2603.01623)."""

    order = 1

    def __init__(self, asked: Chebyshev, places: Sequence[float]):
        self.degree, self.ridge, self.depth = asked.degree, asked.ridge, asked.values
        self.low, self.high = min(places), max(places)

    def weights(self, known: Sequence[float], place: float, call: int) -> Weights:  # noqa: ARG002
        known = known[: self.depth]
        if len(known) < 2:
            return NEWEST
        basis = np.polynomial.chebyshev.chebvander(self._scaled([*known, place]), self.degree)
        past, here = basis[:-1], basis[-1]
        normal = past.T @ past + self.ridge * np.eye(self.degree + 1)
        return Weights(tuple(float(each) for each in np.linalg.lstsq(normal, past.T, rcond=None)[0].T @ here))

    def _scaled(self, places: Sequence[float]) -> np.ndarray:
        return 2 * (np.array(places) - self.low) / ((self.high - self.low) or 1.0) - 1


class Fitted(Forecast):
    """What a calibration found for each call. Where other values are known than were known there, a straight line, and
    key steps as they are."""

    order = 1

    def __init__(self, fit: Fit):
        self.fit = fit
        self.depth = max(2, *(len(each) - 1 for each in fit.weights))

    def weights(self, known: Sequence[float], place: float, call: int) -> Weights:
        return self._fitted(known, call, call - 1) or LINE.weights(known, place, call)

    def correction(self, known: Sequence[float], call: int) -> Weights:
        return self._fitted(known, call, call) or NEWEST

    def _fitted(self, known: Sequence[float], call: int, last: int) -> Weights | None:
        """None where there are no weights for this call, or not of the values that are known."""
        if not self.fit.weights[call]:
            return None
        latent, *values = self.fit.weights[call]
        seen = [float(key) for key in reversed(self.fit.keys) if key <= last][: len(values)]
        return Weights(tuple(values), latent) if list(known[: len(values)]) == seen else None


LINE = Polynomial(1)


def forecast_of(rule: CacheRule, places: Sequence[float], measuring: bool = False) -> Forecast:
    """`places`: of all calls on the rule's axis. `measuring`: only what it costs counts, which no number changes."""
    if isinstance(rule.extrapolate, Chebyshev):
        return ChebyshevRidge(rule.extrapolate, places)
    if rule.fit is not None and not measuring:
        return Fitted(rule.fit)
    if rule.extrapolate == INTERLEAVED:
        return Interleaved()
    return Polynomial(ORDERS.get(rule.extrapolate or "", rule.order or 0))
