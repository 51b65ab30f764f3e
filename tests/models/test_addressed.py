"""Addresses that a UNet does not have are told at their place in the recipe, by any verb, and without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from asdm_cli.errors import RecipeError
from asdm_cli.models.addressed import unknown_addresses
from asdm_cli.recipe.load import load

LATE = "schedule: {mode: late, interval: 2}"
PLAN = f"{{rules: [{{nodes: [encoder, deepcache.1, X], {LATE}}}]}}"
STUDENTS = "[{name: a, model: pocket, freeze: conv_in}]"
PLACES = {
    "verb: prune\nmodel: pocket\nremove: X": "3:9: remove",
    "verb: prune\nmodel: pocket\nremove: [mid, X]": "3:15: remove[1]",
    f"verb: distill\nteacher: pocket\nstudents: {STUDENTS}\nsteps: 1\nlosses:\n- {{kind: features, at: X}}": (
        "6:24: losses[0].at"
    ),
    "verb: condconv-expand\nmodel: pocket\nexpand: {at: X}": "3:14: expand.at",
    "verb: condconv-expand\nmodel: pocket\nexpand: {at: [up.3, X]}": "3:21: expand.at[1]",
    f"verb: inherit\nmodel: pocket\nplan: {PLAN}": "3:47: plan.rules[0].nodes[2]",
    f"verb: inherit\nmodel: pocket\nsweep:\n- {{name: a, plan: {PLAN}}}": "4:59: sweep[0].plan.rules[0].nodes[2]",
    "verb: inherit\nmodel: pocket\nproduct: {levels: {a: {nodes: X}}}": "3:31: product.levels.a.nodes",
    f"verb: switch\nunets: {{a: {{model: pocket, plan: {PLAN}}}}}\nparts: [{{unet: a}}]": (
        "2:74: unets.a.plan.rules[0].nodes[2]"
    ),
    "verb: bench\nmodels:\n- {name: a, random: sd15, remove: X}": "3:35: models[0].remove",
    f"verb: eval\nmodels:\n- {{name: a, model: pocket, plan: {PLAN}}}": "3:74: models[0].plan.rules[0].nodes[2]",
    "verb: run\ninputs: {of: pocket}\nstages:\n  a: {verb: prune, model: $of, remove: X}": "4:40: stages.a.remove",
}
WRONG, RIGHT = "down.7.1", "mid"
NOT_KNOWN = {
    "a model that is not there": "verb: prune\nmodel: nosuch\nremove: down.7.1",
    "what is left of a shape": f"verb: bench\nmodels:\n- {{name: a, random: sd15, remove: tiny, plan: {PLAN}}}",
    "a stage's": "verb: run\nstages:\n  pocket: {verb: prune, model: pocket, remove: mid}\n"
    "  b: {verb: prune, model: $pocket, remove: down.7.1}",
}


def load_with(text: str, path: Path) -> None:
    path.write_text(f"{text}\nout: x\n")
    load(path, look=unknown_addresses)


@pytest.mark.parametrize("text", PLACES)
def test_an_unknown_address_is_told_at_its_place(text: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    with pytest.raises(RecipeError) as caught:
        load_with(text.replace("X", WRONG), file)
    assert str(caught.value).startswith(f"{file}:{PLACES[text]}: {WRONG}: this UNet has no such address")
    assert len(caught.value.faults) == 1
    load_with(text.replace("X", RIGHT), file)


def test_a_model_without_a_unet_is_left_to_its_verb(tmp_path: Path) -> None:
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior/model_index.json").write_text('{"_class_name": "KandinskyV22PriorPipeline"}')
    load_with(f"verb: prune\nmodel: {tmp_path}/prior\nremove: mid", tmp_path / "r.yaml")


@pytest.mark.parametrize("why", NOT_KNOWN)
def test_what_only_the_verb_can_know_is_left_to_it(why: str, tmp_path: Path) -> None:
    load_with(NOT_KNOWN[why].replace("X", "up.0.0.attn"), tmp_path / "r.yaml")


@pytest.mark.parametrize("command", ["check", "prune", "inherit"])
def test_it_takes_no_torch(command: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    verb = "prune" if command == "check" else command
    named = "remove: bsae" if verb == "prune" else f"plan: {{rules: [{{nodes: bsae, {LATE}}}]}}"
    file.write_text(f"verb: {verb}\nmodel: pocket\n{named}\nout: {tmp_path}/out\n")
    code = "import sys; from asdm_cli.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    words = [sys.executable, "-c", code, command, str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"
    assert "bsae: this UNet has no such address (did you mean 'base'?)" in done.stderr
