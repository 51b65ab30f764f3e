"""What is foretold of combinations: sums of what their parts err alone, and how well an order is met."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from asdm_cli.errors import ModelError
from asdm_cli.recipe.verbs import NONE, Combination
from asdm_cli.search.combinations import Foretold, agreement, foretell

WHOLE = Combination(levels=["a", "a", "a"], mid="a")
ERR = {"level 0 of b": 0.5, "level 1 of b": 0.25, "level 2 of b": 0.125, "level 1 of c": 2.0, "no mid": 0.0625}


def of(levels: str, mid: str = "a") -> Combination:
    return Combination(levels=list(levels), mid=mid)


class Additive:
    """Errors that add up, and who was measured; what is `unfit` alone is no UNet, nor is what has not all of them."""

    def __init__(self, start: float = 0.0, unfit: tuple[str, ...] = ()):
        self.start, self.unfit, self.asked = start, unfit, list[str]()

    def parts(self, one: Combination) -> list[str]:
        own = [f"level {at} of {donor}" for at, donor in enumerate(one.levels) if donor != "a"]
        return [*own, *(["no mid"] if one.mid == NONE else [])]

    def __call__(self, one: Combination) -> float:
        own = self.parts(one)
        if self.unfit and len({*own} & {*self.unfit}) not in (0, len(self.unfit)):
            raise ModelError("no UNet")
        self.asked.append("+".join(own))
        return self.start + sum(ERR[part] for part in own)


WANTED = {"two": of("bba"), "three": of("bab", NONE), "mixed": of("bca"), "one": of("baa")}


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_errors_that_add_up_are_foretold(start: float) -> None:
    """Each part is measured once; what stands in every combination (`ends` of another donor) counts once."""
    errs = Additive(start)
    found = foretell(WHOLE, WANTED, errs)
    assert found.errors == {name: errs(one) for name, one in WANTED.items()}
    parts = {part for one in WANTED.values() for part in errs.parts(one)}
    assert found.parts == {part: start + ERR[part] for part in parts}
    assert sorted(errs.asked[: len(parts) + 1]) == sorted(["", *parts])


def test_what_fits_only_together_is_measured_whole() -> None:
    errs = Additive(unfit=("level 2 of b", "no mid"))
    found = foretell(WHOLE, {"both": of("bab", NONE), "other": of("bba")}, errs)
    assert found.errors == {"both": 0.6875, "other": 0.75}
    assert errs.asked.count("level 0 of b+level 2 of b+no mid") == 1
    assert found.parts.keys() == {"level 0 of b", "level 1 of b"}
    with pytest.raises(ModelError, match="no UNet"):
        foretell(WHOLE, {"half": of("aab")}, errs)


def test_another_number_of_levels_is_one_part() -> None:
    short = {"short": of("bb"), "shorter": of("b")}
    found = foretell(WHOLE, short, lambda one: float(len(one.levels)) - 3 * (one == WHOLE))
    assert found.errors == {"short": 2.0, "shorter": 1.0}


def test_the_best_come_in_the_order_in_which_they_were_given() -> None:
    found = Foretold({}, {"a": 3.0, "b": 1.0, "c": 2.0, "d": 0.5})
    assert found.best(["a", "b", "c"], 2) == ["b", "c"]
    assert found.best(["a", "b", "c"], None) == ["a", "b", "c"]
    assert found.best(["a"], 2) == ["a"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=12))
def test_agreement_is_spearmans(pairs: list[tuple[int, int]]) -> None:
    one, other = ([float(each) for each in every] for every in zip(*pairs, strict=True))
    found = agreement(one, other)
    if min(len({*one}), len({*other})) == 1:
        assert found is None
        return
    assert found == pytest.approx(spearmanr(one, other).statistic, abs=1e-4)
    assert agreement(one, other, "higher") == pytest.approx(-found)
    assert agreement(one[:2], other[:2]) is None
