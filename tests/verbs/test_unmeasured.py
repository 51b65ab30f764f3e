"""A plan that nobody measures: what is known of it without torch, against diffusers and the verb that measures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest

from asdm_cli.errors import ModelError
from asdm_cli.models.directory import find
from asdm_cli.models.metadata import patches_of, write_patched
from asdm_cli.recipe.patches import Segment, UNetScheduleSpec
from asdm_cli.recipe.verbs import InheritRecipe
from asdm_cli.verbs import unmeasured
from tests.carrying import carrying, every
from tests.typed import asdm

PNDM = {"skip_prk_steps": True}
NO_TORCH = (
    "import sys; from asdm_cli.cli import main; print(main(sys.argv[1:]), {'torch', 'diffusers'} & {*sys.modules})"
)


@pytest.mark.parametrize("kind", [*unmeasured.CALLS, "PNDMScheduler"])
def test_calls_of_a_sampler_are_those_of_diffusers(kind: str) -> None:
    for steps in (2, 3, 4, 10, 25, 50, 999):
        scheduler = getattr(diffusers, kind).from_config(PNDM if kind == "PNDMScheduler" else {})
        scheduler.set_timesteps(steps)
        counted = unmeasured.CALLS.get(kind, lambda count: count + 1)(steps)
        assert counted == len(scheduler.timesteps), steps


def test_neither_planning_nor_writing_takes_torch(tiny_pipeline: Path, tmp_path: Path) -> None:
    words = ["inherit", str(tiny_pipeline), "--out", str(tmp_path / "run")]
    for more in (["--dry-run"], []):
        done = subprocess.run(
            [sys.executable, "-c", NO_TORCH, *words, *more], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "0 set()", done.stderr
    assert (tmp_path / "run/model/asdm.json").is_file()
    card = (tmp_path / "run/model/README.md").read_text()
    assert "inherits level.0 (output, linear); computed: every 2nd" in card
    assert 'asdm_cli.load("PATH")' in card, "stock diffusers would draw at full cost"


def test_what_does_not_fit_is_told(tiny_pipeline: Path, tmp_path: Path) -> None:
    plan = {"rules": [*every(2, "up.3")["rules"], *every(3, "up.3.1")["rules"]]}
    said = asdm("inherit", tiny_pipeline, "--set", f"plan={json.dumps(plan)}", "--out", tmp_path / "run")
    assert said.code == 2
    assert "plan.rules[1].nodes: every node it names belongs to an earlier rule" in said.text
    said = asdm("inherit", tiny_pipeline, "--steps", 1001, "--out", tmp_path / "run")
    assert said.code == 2
    assert "steps: 1001 are more than the 1000" in said.text
    assert list(tmp_path.iterdir()) == []


def _asked(model: Path, **more: Any) -> InheritRecipe:
    recipe = {"verb": "inherit", "model": str(model), "plan": every(2), "measure": False, "out": "unused"}
    return InheritRecipe.model_validate({**recipe, **more})


def test_an_older_plan_gives_way_and_a_schedule_of_unets_stays(tiny_pipeline: Path, tmp_path: Path) -> None:
    found = unmeasured.plan(_asked(carrying(tiny_pipeline, tmp_path / "carried", every(3))))
    assert [spec.told() for spec in found.written] == [["inherits up.3 (output, reuse); computed: every 2nd"]]
    parts = [Segment(unet="one", until=500), Segment(unet="other")]
    spec = UNetScheduleSpec(unets=["one", "other"], by="timestep", parts=parts)
    first = find(str(tiny_pipeline))
    write_patched(first, {"other": first}, [spec], tmp_path / "switched", "switch")
    found = unmeasured.plan(_asked(tmp_path / "switched"))
    assert found.written[:-1] == patches_of(find(str(tmp_path / "switched")))
    assert found.report().records == [], "calls of one UNet say little where several take turns"
    with pytest.raises(ModelError, match=r"plan: UNet 'other': rules\[0\]\.nodes: nowhere"):
        unmeasured.plan(_asked(tmp_path / "switched", plan=every(2, "nowhere")))
