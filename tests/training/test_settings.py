"""What the loop is told, from a recipe."""

from __future__ import annotations

from typing import Any

import pytest

from asdm_cli.errors import ModelError
from asdm_cli.recipe.verbs import DistillRecipe
from asdm_cli.training.plan import SHARDED, ErrorCollector, training_config
from asdm_cli.training.student import TrainingConfig


def planned(**optimizer: Any) -> TrainingConfig | None:
    settings = {
        "verb": "distill",
        "teacher": "pocket",
        "students": [{"name": "s", "model": "m"}],
        "steps": 3,
        "out": "o",
    }
    faults = ErrorCollector()
    plan = training_config(DistillRecipe.model_validate({**settings, "optimizer": optimizer}), faults)
    faults.raise_all()
    assert plan
    return plan


def test_optimizers_that_can_take_one_fused_pass() -> None:
    assert planned().options == {"weight_decay": 0.01, "fused": True}
    assert planned(options={"fused": False}).options == {"fused": False}
    assert planned(name="RMSprop", options={}).options == {}


@pytest.mark.parametrize("name", SHARDED)
def test_shared_out_weights_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ModelError, match=f"device: the launcher switched {name} on"):
        planned()


def test_compiling_for_a_cpu_is_refused() -> None:
    settings = {"verb": "distill", "teacher": "p", "students": [{"name": "s", "model": "m"}], "steps": 3, "out": "o"}
    faults = ErrorCollector()
    training_config(DistillRecipe.model_validate({**settings, "compile": True, "device": "cpu"}), faults)
    assert [fault for fault in faults.told if fault.startswith("compile: ")] == faults.told
    assert len(faults.told) == 1
