"""No key of a switch's recipe is for show: changing it changes the plan, or what comes out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from asdm_cli.compare import run as comparing
from asdm_cli.errors import AsdmError
from asdm_cli.patches.base import Stats
from asdm_cli.profiling.macs import Count, Counts
from asdm_cli.recipe.verbs import SwitchRecipe
from asdm_cli.report.run_directory import Run, to_json
from asdm_cli.sampling import generate
from asdm_cli.verbs import switch
from tests.carrying import every
from tests.turns import pruned
from tests.verbs.test_distill_keys import leaves

PLANS = "unets.plan"
"""Its own keys are every plan's, which tests of plans look at."""
PLAN = "plan"
"""Seen before anything runs: in the plan, or as its refusal."""
KEYS: dict[str, tuple[str, Any]] = {
    "unets.model": (PLAN, "SMALL"),
    PLANS: (PLAN, every(2)),
    "by": (PLAN, "step"),
    "parts[].unet": (PLAN, "large"),
    "parts[].until": (PLAN, 300),
    "sweep[].name": (PLAN, "another"),
    "sweep[].by": (PLAN, "step"),
    "sweep[].series": ("series", "mine"),
    "sweep[].parts[].unet": (PLAN, "small"),
    "sweep[].parts[].until": (PLAN, 250),
    "ratios.unets": (PLAN, ["small", "large"]),
    "ratios.shares": (PLAN, [0.25]),
    "search.budgets": (PLAN, [0.7]),
    "search.prompts": ("pictures", 1),
    "search.nulls": ("error", False),
    "prompts": (PLAN, "nowhere.txt"),
    "limit": (PLAN, 1),
    "features": (PLAN, "clip"),
    "sampler": (PLAN, "heun"),
    "steps": (PLAN, 3),
    "size": (PLAN, 64),
    "repeats": (PLAN, 2),
    "fewer_steps": (PLAN, [3]),
    "metrics": ("figures", ["psnr", "ssim"]),
    "device": ("error", "cuda:7"),
    "dtype": ("pictures", "bfloat16"),
    "guidance": ("pictures", 1.0),
    "seed": ("pictures", 1),
    "batch": ("batches", 1),
    "per_prompt": ("pictures", 2),
    "bootstrap": ("figures", 5),
    "confidence": ("figures", 0.5),
    "grid": ("grid", 1),
    "converged": ("pictures", 5),
    "warmups": ("rounds", 2),
    "offload": ("model", True),
    "measure": (PLAN, False),
}
"""Key -> what changes with it, and a value."""
DRAWN_FROM = {"inputs", "strength", "image_guidance"}
ADAPTERS = {"adapters[].path", "adapters[].scale", "adapters[].of"}
ELSEWHERE = {"verb", "out", "clip", "probe", *DRAWN_FROM, *ADAPTERS}
"""The command itself, and the place that test_switch.py looks at; what test_inherit.py, test_inputs.py and
test_adapters.py look at."""


def test_the_table_has_every_key() -> None:
    keys = {PLANS if key.startswith(PLANS) else key for key in leaves(SwitchRecipe)}
    assert keys == KEYS.keys() | ELSEWHERE
    assert len(keys) > 30


@pytest.fixture(scope="module")
def home(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("keys")
    for name, remove in (("small", "base"), ("SMALL", "small")):
        pruned(tiny_pipeline, home / name, remove)
    (home / "prompts.txt").write_text("\n".join(["a fox", "an owl", "a cup", "a tree"]))
    return home


@pytest.fixture(scope="module")
def base(home: Path, tiny_pipeline: Path) -> dict[str, Any]:
    """Nothing but what is needed."""
    return {
        "verb": "switch",
        "unets": {"large": {"model": str(tiny_pipeline)}, "small": {"model": str(home / "small")}},
        "parts": [{"unet": "small", "until": 500}, {"unet": "large"}],
        "prompts": str(home / "prompts.txt"),
        "limit": 2,
        "metrics": ["psnr"],
        "steps": 4,
        "fewer_steps": [],
        "repeats": 1,
        "bootstrap": 20,
        "device": "cpu",
        "dtype": "float32",
        "out": "unused",
    }


MORE: dict[str, dict[str, Any]] = {
    "sweep": {"sweep": [{"name": "mine", "parts": [{"unet": "large", "until": 400}, {"unet": "small"}]}]},
    "ratios": {"ratios": {"unets": ["large", "small"], "shares": [0.5]}},
    "search": {"search": {"budgets": [0.3], "prompts": 2}},  # nothing keeps to it without skipping calls
    "features": {"metrics": ["psnr", "is"]},
}
"""What a key of these stands in, or needs to matter; the first word of the key."""


def usual(base: dict[str, Any], key: str) -> dict[str, Any]:
    return deepcopy({**base, **MORE.get(key.split(".")[0].removesuffix("[]"), {})})


def with_key(base: dict[str, Any], home: Path, key: str, value: Any) -> dict[str, Any]:
    recipe = usual(base, key)
    *way, last = key.split(".")
    node: Any = recipe
    for word in way:
        node = node[word.removesuffix("[]")]
        node = node[0] if word.endswith("[]") else node.get("small", node)
    value = str(home / value) if value == "SMALL" else value
    assert node.get(last) != value
    node[last] = value
    return recipe


def planned(recipe: dict[str, Any]) -> Any:
    """The plan's report, or why there is none."""
    try:
        return to_json(switch.plan(SwitchRecipe.model_validate(recipe)).report())
    except AsdmError as error:
        return str(error)


@pytest.fixture(scope="module", autouse=True)
def _with_an_extra() -> Iterator[None]:
    """A network of features that may not be here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asdm_cli.metrics.suite.require", lambda _network: None)
        yield


COUNTED = Counts(4, 8, {"unet": Count(2, 1)}), Stats(("large",) * 4)


def outcome(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a run leaves, and what it was seen to do. Nothing is counted and timed, which takes most of its time."""
    seen: dict[str, list[Any]] = {"batches": [], "rounds": []}
    folder.mkdir()
    layout = generate.layout

    def timed(_session: Any, setups: Any, rounds: Any, *_: Any) -> comparing.Times:
        seen["rounds"].append((rounds.warmups, rounds.repeats))
        return {setup.name: {"image": [1.0], "unet": [1.0]} for setup in setups}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "layout", lambda *given: (seen["batches"].append(given[2]), layout(*given))[1])
        patch.setattr(comparing, "_count", lambda *_: COUNTED)
        patch.setattr(comparing, "image_times", timed)
        patch.setattr(switch.shutil, "rmtree", lambda *_, **__: None)  # what was drawn for a search is looked at
        try:
            report = switch.run(switch.plan(SwitchRecipe.model_validate(recipe)), Run(folder))
        except AsdmError as error:
            return {"error": str(error)}
    assert report.images is not None
    return {
        "error": None,
        "figures": [vars(each) for each in report.records if each.protocol == comparing.QUALITY],
        "pictures": {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.rglob("*.png"))
        },
        **seen,
        "grid": len(report.images.prompts),
        "model": json.loads((folder / "model/asdm.json").read_text())["patches"],
        "series": {facts["series"] for facts in report.setups.values()},
    }


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Any]:
    """The plan, or the outcome, of what is needed for a key as it usually is."""

    @cache
    def look(text: str, plan: bool) -> Any:
        recipe = json.loads(text)
        return planned(recipe) if plan else outcome(recipe, tmp_path_factory.mktemp("usual") / "run")

    return look


@pytest.mark.parametrize("key", KEYS)
def test_every_key_changes_something(
    key: str, base: dict[str, Any], home: Path, seen: Callable[[str, bool], Any], tmp_path: Path
) -> None:
    what, value = KEYS[key]
    before, changed = seen(json.dumps(usual(base, key)), what == PLAN), with_key(base, home, key, value)
    assert isinstance(before, dict), before
    if what == PLAN:
        assert planned(changed) != before
    else:
        assert before["error"] is None
        assert outcome(changed, tmp_path / "run")[what] != before[what]


def test_a_run_is_its_recipe(base: dict[str, Any], seen: Callable[[str, bool], Any], tmp_path: Path) -> None:
    """What differs above is the key's doing."""
    recipe = usual(base, "sweep")
    assert outcome(recipe, tmp_path / "run") == seen(json.dumps(recipe), False)
