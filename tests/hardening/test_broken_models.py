"""Models with one damaged file, given to every verb: refused before anything slow, by the file's name, and nothing is
left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from tests.hardening.damages import CONFIG, FOR_ALL, FOR_PICTURES, INDEX, UNET, Damage
from tests.hardening.uses import RECIPES, tried

DRAWING = ("inherit", "switch, first", "bench", "eval")
NEEDS_BUILDING = {
    "weights": ("a tensor's name changed", "tensors in each other's place", "no tensors"),
    "config": ("no keys", "blocks no list", "text width nothing", "text width other", "no input channels",
               "input channels in words", "groups that do not divide", "unknown activation", "unknown time embedding"),
    "index": ("no UNet", "unknown pipeline"),
}  # fmt: skip
"""What `asdm show`, which takes no time, does not find out."""
ANY_PIPELINE = {"index: unknown pipeline", "index: no class"}
"""Verbs that draw nothing do not mind."""
WHILE_LOADING = ("other latents", "betas", "timesteps", "words: ")
"""What only the libraries that build a component find out: told when it is loaded, before anything is drawn."""


Meet = Callable[[str, str, Damage], str]


@pytest.fixture
def meet(tiny_pipeline: Path, tmp_path: Path) -> Meet:
    """What is wrong with how a damage of a copy of a good model is met by a verb."""
    copies = count()

    def fault(use: str, what: str, damage: Damage) -> str:
        bad = damage.do(tiny_pipeline, tmp_path / f"bad{next(copies)}")
        said = tried(use, bad, tiny_pipeline, tmp_path)
        left = sorted(path.name for path in tmp_path.iterdir() if "run" in path.name)
        if said.code == 2 and str((bad / damage.file).parent) in said.text and not left and not said.out:
            return ""
        return f"{what}, {use}: exit code {said.code}, left {left}: {said.text[-300:]}"

    return fault


def test_the_good_model_is_accepted(tiny_pipeline: Path, tmp_path: Path) -> None:
    for use in (*RECIPES, "show"):
        said = tried(use, tiny_pipeline, tiny_pipeline, tmp_path)
        assert said.code == 0, (use, said.err)


@pytest.mark.parametrize("half", [0, 1])
def test_every_damage_of_the_unet_is_met_by_verbs_in_turn(half: int, meet: Meet) -> None:
    uses, faults, tried = [*RECIPES, "generate"], [], Counter[str]()
    for number, (what, damage) in enumerate(FOR_ALL.items()):
        turn = uses[(number * 2 + half + number // len(uses)) % len(uses)]
        if what in ANY_PIPELINE:
            turn = "eval"
        tried[turn] += 1
        faults.append(meet(turn, what, damage))
    assert not any(faults), "\n".join(filter(None, faults))
    assert tried.total() == len(FOR_ALL) >= 95
    assert set(tried) == set(uses)


def test_every_damage_of_the_rest_is_met_by_verbs_that_draw(meet: Meet) -> None:
    faults, tried = [], Counter[str]()
    for number, (what, damage) in enumerate(FOR_PICTURES.items()):
        late = any(word in what for word in WHILE_LOADING)
        use = "generate" if late else DRAWING[number % len(DRAWING)]
        if what == "words: gone":
            continue  # the same words stand in vocab.json
        tried[use] += 1
        faults.append(meet(use, what, damage))
    assert not any(faults), "\n".join(filter(None, faults))
    assert tried.total() == len(FOR_PICTURES) - 1 >= 80
    assert set(tried) == {*DRAWING, "generate"}


def test_show_meets_what_is_no_model(meet: Meet) -> None:
    unseen = {f"{part}: {name}" for part, names in NEEDS_BUILDING.items() for name in names}
    seen = {what: damage for what, damage in FOR_ALL.items() if what not in unseen}
    faults = [meet("show", what, damage) for what, damage in seen.items()]
    assert not any(faults), "\n".join(filter(None, faults))
    assert len(seen) >= 80


def test_the_tables_hold_what_they_say() -> None:
    assert {damage.file for damage in FOR_ALL.values()} == {UNET, CONFIG, INDEX}
    assert all(f"{part}: {name}" in FOR_ALL for part, names in NEEDS_BUILDING.items() for name in names)
    assert FOR_ALL.keys() >= ANY_PIPELINE
