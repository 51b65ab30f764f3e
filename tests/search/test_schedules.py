"""The search from calibration to rules, on tiny UNets: what is chosen keeps its budget, and is gone on with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from asdm_cli.compare.setup import Session, Setup
from asdm_cli.models.directory import find
from asdm_cli.patches.unet_schedule import alone, served_by
from asdm_cli.recipe.patches import read_switching
from asdm_cli.recipe.verbs import Search
from asdm_cli.sampling.prompts import PromptList, read_prompts
from asdm_cli.search import schedules
from asdm_cli.search.calibration import Calibration
from asdm_cli.search.dynamic_programme import FARTHEST, GAPS
from asdm_cli.search.schedules import Chosen, Drawn, records, search
from tests.compare.setups import CPU, PLACE, whole
from tests.turns import patches

ASKED = Search(budgets=[0.9, 0.5], prompts=2)
FIXED = {"small last": read_switching({"by": "step", "parts": [{"unet": "large", "until": 2}, {"unet": "s"}]}, "test")}
ONE: Any = SimpleNamespace(is_main_process=True, process_index=0, num_processes=1, wait_for_everyone=lambda: None)
SECONDS = {"large": [1.0] * 4, "s": [0.4] * 4}


@pytest.fixture(scope="module")
def first(tiny_pipeline: Path, tiny_small: Path) -> Setup:
    """As the first UNet draws, in a schedule of both."""
    both = patches(unets=["large", "s"], parts=[{"unet": "large"}])
    return replace(whole(tiny_pipeline, "large"), patches=tuple(both), unets={"s": find(str(tiny_small))})


@pytest.fixture
def prompts(tmp_path: Path) -> PromptList:
    (tmp_path / "prompts.txt").write_text("a fox\ntwo owls\n")
    return read_prompts(str(tmp_path / "prompts.txt"))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Calibrations, whose times are made up: those of tiny UNets are chance."""
    seen: list[int] = []
    real = schedules.calibrate

    def calibrate(*given: Any) -> Calibration:
        seen.append(1)
        return replace(real(*given), seconds=SECONDS)

    monkeypatch.setattr(schedules, "calibrate", calibrate)
    return seen


def test_what_is_chosen_keeps_its_budget_and_is_the_best_that_was_drawn(
    first: Setup, prompts: PromptList, tmp_path: Path, timed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(CPU, torch.float32)
    given = session, ASKED, first, FIXED, prompts, PLACE, tmp_path, ONE
    calibration, chosen = search(*given)
    assert list(calibration.errors) == ["large", "s"]
    assert [each.budget for each in chosen] == ASKED.budgets
    assert all(each.best.share <= each.budget and each.tried > 1 for each in chosen)
    wide, narrow = chosen
    assert wide.best.psnr >= narrow.best.psnr, "whatever keeps to the narrow budget keeps to the wide one"
    assert wide.fixed
    assert wide.fixed.how == "small last"
    assert wide.best.psnr >= wide.fixed.psnr
    assert wide.fixed.share == pytest.approx((2 + 2 * 0.4) / 4)
    assert narrow.fixed is None
    with session.stage(first) as (pipe, _):
        pipe.scheduler.set_timesteps(first.steps)
        for each in chosen:
            assert served_by(each.rules, pipe.scheduler) == each.best.schedule
    told = list(records(calibration, chosen))
    assert {each.of for each in told if each.metric == "time_share"} >= {"calibrated/s", "budget/0.9", "budget/0.5"}
    (share,) = [each.value for each in told if (each.metric, each.of) == ("time_share", "calibrated/s")]
    assert share == pytest.approx(0.4)

    monkeypatch.setattr("asdm_cli.compare.run.draw", lambda *_, **__: pytest.fail("there is nothing to draw"))
    assert search(*given) == (calibration, chosen)
    assert timed == [1], "what was found out is kept"
    with pytest.raises(pytest.fail.Exception):
        search(*given[:5], replace(PLACE, seed=5), *given[6:])
    assert timed == [1, 1]


def test_records_by_hand() -> None:
    nulls: Any = [[[None, 0.5, 0.25]] * (GAPS + 1) for _ in range(FARTHEST)]
    seconds = {"large": [0.002] * 3, "s": [0.001] * 3}
    found = Calibration([3.0, 2.0, 1.0], {"large": [0.0] * 3, "s": [1.0, 2.0, 6.0]}, seconds, nulls)
    best = Drawn(("large",) * 3, "errors", False, 0.75, 40.0)
    told = list(records(found, [Chosen(0.75, best, replace(best, psnr=30.0), 3, alone("large"))]))
    figures = {(each.setup, each.metric, each.of, each.at): each.value for each in told}
    assert len(figures) == len(told)
    assert figures["large", "early_error", "calibrated/s", None] == 1.5
    assert figures["large", "late_error", "calibrated/s", None] == 6.0
    assert figures["large", "unet_ms", "calibrated/s", None] == pytest.approx(1.0)
    curves = {(of, at): value for (_, metric, of, at), value in figures.items() if metric == "call_error"}
    assert {key: value for key, value in curves.items() if key[0] == "UNet/s"} == {
        ("UNet/s", call): error for call, error in enumerate([1.0, 2.0, 6.0])
    }
    assert {key[1] for key in curves if key[0] == "UNet/reuse"} == {1, 2}, "not before there was a prediction"
    assert figures["searched 0.75", "psnr_db", "budget/0.75", None] == 40.0
    assert figures["searched 0.75", "best_fixed_db", "budget/0.75", None] == 30.0
    assert figures["searched 0.75", "schedules_tried", "budget/0.75", None] == 3
