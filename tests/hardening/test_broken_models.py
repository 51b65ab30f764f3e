"""Models with one damaged file, given to every verb: refused before anything slow, by the file's name, and nothing is
left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hardening.damages import CONFIG, FOR_ALL, FOR_PICTURES, INDEX, UNET, Damage
from tests.typed import Said, asdm

FEW = {"steps": 2, "limit": 2, "device": "cpu"}
PLAN = {"rules": [{"nodes": "up.3", "schedule": {"mode": "uniform", "interval": 2}}]}
PARTS = {"by": "timestep", "parts": [{"unet": "b", "until": 400}, {"unet": "a"}]}
STUDENT = {"verb": "distill", "steps": 1, "device": "cpu"}
RECIPES: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "prune": lambda bad, _: {"verb": "prune", "model": bad, "remove": "base"},
    "teacher": lambda bad, good: {**STUDENT, "teacher": bad, "students": [{"name": "s", "model": good}]},
    "student": lambda bad, good: {**STUDENT, "teacher": good, "students": [{"name": "s", "model": bad}]},
    "donor": lambda bad, good: {
        "verb": "assemble", "donors": {"a": good, "b": bad}, "levels": ["a", "a", "a", "b"], "mid": "a"
    },
    "expand": lambda bad, _: {"verb": "condconv-expand", "model": bad, "expand": {"experts": 2, "at": "mid"}},
    "inherit": lambda bad, _: {"verb": "inherit", "model": bad, "plan": PLAN, **FEW},
    "switch, first": lambda bad, good: {
        "verb": "switch", "unets": {"a": {"model": bad}, "b": {"model": good}}, **PARTS, **FEW
    },
    "switch, second": lambda bad, good: {
        "verb": "switch", "unets": {"a": {"model": good}, "b": {"model": bad}}, **PARTS, **FEW
    },
    "bench": lambda bad, _: {"verb": "bench", "models": [{"name": "a", "model": bad}], "steps": 2, "device": "cpu"},
    "eval": lambda bad, _: {"verb": "eval", "models": [{"name": "a", "model": bad}], "metrics": ["clip_score"], **FEW},
}  # fmt: skip
"""How a verb uses a model -> its recipe."""
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


class Bench:
    """Runs verbs on damaged copies of a good model."""

    def __init__(self, good: Path, folder: Path):
        self.good, self.folder, self.count = good, folder, 0

    def broken(self, damage: Damage) -> Path:
        self.count += 1
        return damage.do(self.good, self.folder / f"bad{self.count}")

    def tried(self, use: str, bad: Path) -> Said:
        if use == "show":
            return asdm("show", bad)
        if use == "generate":
            return asdm("generate", bad, "x", "--out", self.folder / "out", "--steps", 1, "-q", "--device", "cpu")
        recipe = {**RECIPES[use](str(bad), str(self.good)), "out": str(self.folder / "out")}
        file = self.folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe, sort_keys=False, width=1000))
        return asdm(recipe["verb"], file, "--dry-run", "-q")

    def fault(self, use: str, what: str, damage: Damage) -> str:
        """What is wrong with how this damage is met."""
        bad = self.broken(damage)
        said = self.tried(use, bad)
        left = sorted(path.name for path in self.folder.iterdir() if "out" in path.name)
        named = str((bad / damage.file).parent) in said.text
        if said.code == 2 and named and not left and not said.out:
            return ""
        return f"{what}, {use}: exit code {said.code}, left {left}: {said.text[-300:]}"


@pytest.fixture
def bench(tiny_pipeline: Path, tmp_path: Path) -> Bench:
    return Bench(tiny_pipeline, tmp_path)


def _seen_by_show(what: str) -> bool:
    part, _, name = what.partition(": ")
    return name not in NEEDS_BUILDING[part]


def test_the_good_model_is_accepted(bench: Bench) -> None:
    for use in (*RECIPES, "show"):
        said = bench.tried(use, bench.good)
        assert said.code == 0, (use, said.err)


@pytest.mark.parametrize("half", [0, 1])
def test_every_damage_of_the_unet_is_met_by_verbs_in_turn(half: int, bench: Bench) -> None:
    uses, faults, tried = [*RECIPES, "generate"], [], Counter[str]()
    for number, (what, damage) in enumerate(FOR_ALL.items()):
        turn = uses[(number * 2 + half + number // len(uses)) % len(uses)]
        if what in ANY_PIPELINE:
            turn = "eval"
        tried[turn] += 1
        faults.append(bench.fault(turn, what, damage))
    assert not any(faults), "\n".join(filter(None, faults))
    assert tried.total() == len(FOR_ALL) >= 95
    assert set(tried) == set(uses)


def test_every_damage_of_the_rest_is_met_by_verbs_that_draw(bench: Bench) -> None:
    faults, tried = [], Counter[str]()
    for number, (what, damage) in enumerate(FOR_PICTURES.items()):
        late = any(word in what for word in WHILE_LOADING)
        use = "generate" if late else DRAWING[number % len(DRAWING)]
        if what == "words: gone":
            continue  # the same words stand in vocab.json
        tried[use] += 1
        faults.append(bench.fault(use, what, damage))
    assert not any(faults), "\n".join(filter(None, faults))
    assert tried.total() == len(FOR_PICTURES) - 1 >= 80
    assert set(tried) == {*DRAWING, "generate"}


def test_show_meets_what_is_no_model(bench: Bench) -> None:
    seen = {what: damage for what, damage in FOR_ALL.items() if _seen_by_show(what)}
    faults = [bench.fault("show", what, damage) for what, damage in seen.items()]
    assert not any(faults), "\n".join(filter(None, faults))
    assert len(seen) >= 80


def test_the_tables_hold_what_they_say() -> None:
    assert {damage.file for damage in FOR_ALL.values()} == {UNET, CONFIG, INDEX}
    assert all(f"{part}: {name}" in FOR_ALL for part, names in NEEDS_BUILDING.items() for name in names)
    assert FOR_ALL.keys() >= ANY_PIPELINE
