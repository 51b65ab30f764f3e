"""How long `make tables compression` takes at full scale, table by table, before it is begun.

    make tables compression SCALE=smoke
    python -m scripts.hours

Work is counted on the models of the smoke runs, whose UNets have the shapes of the real ones: what UNet calls of each
stage compute, three calls of each student for a training step. A stage that tables share counts for the first one. The
speed is that of the kept record of `make demo`: eight latents in one call of the bundled UNet on two cores.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from asdm_cli.recipe.load import dump, load
from asdm_cli.recipe.verbs import VERBS, RunRecipe
from asdm_cli.verbs import SlowPlan, verb_of
from asdm_cli.verbs.run import Stage, stages
from scripts.results import ROOT, Figures, joined

TABLES = [*(f"table{number}" for number in range(1, 6)), "compression"]
LATENTS = 8
TRAINS = "distill"


def typed(table: str, *settings: str) -> list[str]:
    """The words after `asdm` that make would run for a table."""
    done = subprocess.run(["make", "-n", table, *settings], cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if "/asdm run " in line]
    return shlex.split(line)[1:]


def planned(table: str, scale: str) -> list[Stage]:
    words = typed(table, f"SCALE={scale}")
    settings = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    settings += [f"out={words[words.index('--out') + 1]}"] if "--out" in words else []
    recipe = load(ROOT / words[1], "run", settings)
    assert isinstance(recipe, RunRecipe)
    return stages(recipe)


def work(table: str) -> Iterator[tuple[Stage, float]]:
    """Each stage at full scale, and the multiply-accumulates of its UNet calls."""
    full, smoke = planned(table, "full"), planned(table, "smoke")
    for stage in full:
        text = dump(stage.recipe)
        for real, small in zip(full, smoke, strict=True):
            text = text.replace(str(real.home), str(small.home))
        recipe = VERBS[stage.recipe.verb].model_validate(yaml.safe_load(text))
        plan = verb_of(recipe).plan(recipe)
        found = plan.work() if isinstance(plan, SlowPlan) else None
        yield stage, found.macs if found else 0.0


def speed() -> float:
    """Multiply-accumulates a second, as measured for the record of `make demo`."""
    demo = Figures(joined("demo"))
    call, macs = demo.record("pocket", "unet_ms", f"batch/{LATENTS}"), demo.record("pocket", "macs_g")
    assert call is not None, "make demo measures it"
    assert macs is not None, "make demo counts it"
    return LATENTS * macs.value * 1e9 / (call.value / 1e3)


def main() -> None:
    if missing := [stage.home for table in TABLES for stage in planned(table, "smoke") if not stage.finished]:
        sys.exit(f"{missing[0]}: is not there; type make tables compression SCALE=smoke first")
    seen, fast, rows = set[Path](), speed(), list[tuple[str, float, float]]()
    for table in TABLES:
        spent = {True: 0.0, False: 0.0}
        for stage, macs in work(table):
            spent[stage.recipe.verb == TRAINS] += macs / fast / 3600 if stage.home not in seen else 0.0
            seen.add(stage.home)
        rows.append((table, spent[True], spent[False]))
    rows.append(("all", *(sum(row[place] for row in rows) for place in (1, 2))))
    told = [(table, *(f"{hours:.1f} h" for hours in (a, b, a + b))) for table, a, b in rows]
    lines = [("table", "training", "drawing and timing", "together"), ("---", "---:", "---:", "---:"), *told]
    sys.stdout.write("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")


if __name__ == "__main__":
    main()
