"""What was measured stays: docs/results/NAME/RUN/ has a run's recipe and report, without pictures; docs/results/NAME.md
is the page of a result's runs, and pages of the project show some of its figures between two comments.

    python -m scripts.results                    all pages and blocks anew, from what is kept
    python -m scripts.results keep NAME RUN ...  take over runs in the place of what was kept, then the same; of some
                                                 results a sheet of pictures is kept too
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

import yaml
from PIL import Image

from asdm_cli.records import Record, Report
from asdm_cli.report import markdown
from asdm_cli.report.join import join
from asdm_cli.report.metrics import shown, spread
from asdm_cli.report.run_directory import RECIPE, REPORT, read, to_json
from asdm_cli.report.tables import whole
from asdm_cli.report.words import unbroken

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PLACE = re.compile(r"""(?<=[\s"'])/[^\s"'/]+/[^\s"']*""")
"""An absolute path: a record tells of no machine's folders."""
WIDTH = 128
"""Of lines of prose."""
END = "<!-- end of figures -->"


@dataclass(frozen=True)
class Figures:
    """Of a kept result, as pages tell them, and the inputs of the recipe that it is of, or all that it says."""

    report: Report
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, result: str) -> Figures:
        first = next(iter(kept(result).values()))
        recipe = yaml.safe_load((first / RECIPE).read_text(encoding="utf-8"))
        return cls(joined(result), recipe.get("inputs", recipe))

    def record(self, setup: str, metric: str, of: str = "") -> Record | None:
        """Of the first set-up also what nobody measures, beside itself."""
        if not of:
            return whole(self.report).get(metric, {}).get(setup)
        return next(
            (each for each in self.report.records if (each.setup, each.metric, each.of) == (setup, metric, of)), None
        )

    def told(self, setup: str, metric: str, of: str = "") -> str:
        found = self.record(setup, metric, of)
        spreads = f" ({spread(found)})" if found and spread(found) else ""
        return shown(found) + spreads if found else ""

    def card(self, key: str) -> str:
        """The first card that says it."""
        return next(str(card[key]) for card in self.report.protocols.values() if key in card)


@dataclass(frozen=True)
class Block:
    """A table on a `page` between the comments of its `name`, of a kept `result`. Figures of a column are (metric,
    part), several in one cell. `rows` says what the set-ups are called there."""

    page: str
    name: str
    result: str
    first: str
    columns: Mapping[str, Sequence[tuple[str, str]]]
    rows: Mapping[str, str]
    words: Callable[[Figures], str] = lambda _: ""

    def text(self) -> str:
        figures = Figures.of(self.result)
        head = [self.first, *self.columns]
        body = [
            [
                title,
                *(
                    ", ".join(filter(None, (figures.told(setup, *each) for each in cell)))
                    for cell in self.columns.values()
                ),
            ]
            for setup, title in self.rows.items()
        ]
        return _markdown(head, body, self.words(figures))


@dataclass(frozen=True)
class Levels:
    """Speed-up and PSNR of table 5's plans with even key steps, a column for each interval, between the comments of its
    `name`. `rows` says whose set-ups stand in a row, in the order of `intervals`."""

    page: str
    name: str
    first: str
    intervals: Mapping[str, int]
    rows: Mapping[str, Sequence[str]]
    result: str = "table5"

    def text(self) -> str:
        figures = Figures.of(self.result)
        head = [self.first, *self.intervals]
        body = [[title, *(self._cell(figures, setup) for setup in setups)] for title, setups in self.rows.items()]
        return _markdown(head, body, self._words(figures))

    @staticmethod
    def _cell(figures: Figures, setup: str) -> str:
        nearness = figures.record(setup, "psnr_db")
        return f"{figures.told(setup, 'image_speedup')}, {shown(nearness)} dB" if nearness else "–"

    def _words(self, figures: Figures) -> str:
        given = figures.inputs
        device = figures.card("device").removeprefix("cpu: ")
        return f"""`{_typed(figures, self.result)}` on one core ({device}) of a busy machine,
            {figures.card("date")[:10]}: {given["limit"]} captions, DDIM, guidance {given["guidance"]:g}; speed-ups are
            medians of {figures.card("rounds")} rounds, with intervals of 95 %. [All figures](results/table5.md)."""


@dataclass(frozen=True)
class Samplers:
    """PSNR and speed-up of several ways to compute one call of `every`, a row for each kept run, which is called
    SAMPLER-STEPS; between the comments of its `name`. `columns` has the names of set-ups, with the numbers in them."""

    page: str
    name: str
    every: int
    columns: Mapping[str, str]
    result: str = "inherit-samplers"

    def text(self) -> str:
        body, figures = list[list[str]](), Figures.of(self.result)
        for run, folder in sorted(kept(self.result).items(), key=lambda each: int(each[0].rpartition("-")[2])):
            mine, (sampler, _, steps) = Figures(read(folder)), run.rpartition("-")
            numbers = {"steps": steps, "calls": round(int(steps) / self.every), "every": self.every}
            cells = [_near_and_fast(mine, setup.format(**numbers)) for setup in self.columns.values()]
            body.append([f"{steps} steps, {SAMPLERS[sampler]}", *cells])
        words = f"""`asdm run recipes/inherit-pocket-samplers.yaml` on one core
            ({figures.card("device").removeprefix("cpu: ")}) of a busy machine, {figures.card("date")[:10]}:
            {figures.inputs["limit"]} captions, guidance {figures.inputs["guidance"]:g}, {figures.card("rounds")}
            rounds; 95 % intervals of PSNR; those of speed-ups are wide ([all figures](results/{self.result}.md))."""
        return _markdown([f"PSNR, speed-up: every {ORDINALS[self.every]} call", *self.columns], body, words)


SAMPLERS = {"ddim": "DDIM", "euler": "Euler", "dpm2m": "DPM++ 2M", "unipc": "UniPC"}
ORDINALS = {2: "2nd", 3: "3rd"}


def _near_and_fast(figures: Figures, setup: str) -> str:
    near, fast = (figures.record(setup, metric) for metric in ("psnr_db", "image_speedup"))
    return f"{figures.told(setup, 'psnr_db')} dB, {fast.value:.1f}×" if near and fast else "–"


@dataclass(frozen=True)
class Targets:
    """What became of each of `make targets`' targets, a column for each of its `lists` of prompts, between the comments
    of its `name`; below, how many were met and how well they were foretold."""

    page: str
    name: str
    lists: Mapping[str, str]
    targets: Sequence[str]
    result: str = "targets"

    def text(self) -> str:
        figures = Figures.of(self.result)
        facts = figures.report.facts
        told = {
            (key, target): str(facts.get(f"{key}-{target}: target", ""))
            for key in self.lists
            for target in self.targets
        }
        body = [[_asked(target), *(_became(told[key, target]) for key in self.lists)] for target in self.targets]
        words = f"{_tally([*told.values()])} {_foretold(facts)} {self._words(figures)}"
        return _markdown(["asked for", *self.lists.values()], body, words)

    @staticmethod
    def _words(figures: Figures) -> str:
        given = figures.inputs
        return f"""`make targets` on one core ({figures.card("device").removeprefix("cpu: ")}) of a busy machine,
            {figures.card("date")[:10]}: {given["limit"]} captions each, {given["steps"]} steps, guidance
            {given["guidance"]:g}, {figures.card("rounds")} rounds. [All figures](results/targets.md)."""


@dataclass(frozen=True)
class Sweep:
    """What searches for targets came to, each by its set-up, beside the best of a `sweep` over what they choose among:
    the nearest that computes no more, or of those as near (dB) the least; between the comments of its `name`."""

    page: str
    name: str
    searched: Mapping[str, tuple[str, float | None]]
    result: str = "targets"
    sweep: str = "exhaustive"

    def text(self) -> str:
        found, tried = Figures.of(self.result), Figures.of(self.sweep)
        costs, near = (whole(tried.report)[key] for key in ("image_macs_g", "psnr_db"))
        rows = []
        for asked, (setup, least) in self.searched.items():
            mine = [found.record(setup, key) for key in ("image_macs_g", "psnr_db")]
            if not mine[0] or not mine[1]:
                continue
            if least is None:
                best = max((near[each].value, each) for each in near if costs[each].value <= 1.005 * mine[0].value)[1]
            else:
                best = min((costs[each].value, each) for each in near if near[each].value >= least)[1]
            rows.append([asked, _paid(*mine), f"{_paid(costs[best], near[best])}: {best}"])
        return _markdown(["asked for", "what was found", f"the best of {len(near)}"], rows, self._words(tried))

    @staticmethod
    def _words(figures: Figures) -> str:
        return f"""UNet, GMACs of an image, and PSNR: `asdm inherit recipes/tables/exhaustive.yaml`,
            {figures.card("date")[:10]}, {figures.inputs["limit"]} captions. Its speed-ups are of a machine that was too
            busy to time so many, and are not used. [All figures](results/exhaustive.md)."""


def _paid(cost: Record | None, near: Record | None) -> str:
    return f"{shown(cost)}, {shown(near)} dB" if cost and near else "–"


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]], words: str) -> str:
    rows = [head, ["---"] * len(head), *body]
    told = fill(unbroken(" ".join(words.split())), WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), *(["", told] if told else [])])


def _asked(target: str) -> str:
    """As a stage's name says it: `1-5x`, `35db`."""
    return target.replace("-", ".").replace("x", "×").replace("db", " dB")


def _became(told: str) -> str:
    """Of "2 times as fast: met, measured 2.03 (1.97 to 2.08)" what comes behind the target."""
    return told.partition(": ")[2].replace(", measured", ":") or "–"


def _tally(told: Sequence[str]) -> str:
    there = [each for each in told if each]
    counted = Counter(each.partition(": ")[2].partition(",")[0] for each in there)
    kinds = ", ".join(f"{counted[kind]} {kind}" for kind in ("met", "not told apart", "missed") if counted[kind])
    return f"Of {len(there)} targets {kinds}."


def _foretold(facts: Mapping[str, Any]) -> str:
    """How far the search's own figures were from those measured on other prompts."""
    rows = [each for key, rows in facts.items() if key.endswith(": predicted and measured") for each in rows]
    speeds = [each["measured"] / each["predicted"] for each in rows if "speed" in each["figure"]]
    nearness = [each["measured"] - each["predicted"] for each in rows if "PSNR" in each["figure"]]
    if not speeds or not nearness:
        return ""
    fast, near = (
        sum(abs(each) <= most for each in of) for of, most in (([x - 1 for x in speeds], 0.05), (nearness, 1.5))
    )
    return f"""Measured over foretold: speed-up {median(speeds):.2f} in the median ({min(speeds):.2f} to
        {max(speeds):.2f}; within 5 % in {fast} of {len(speeds)}); PSNR {median(nearness):+.1f} dB
        ({min(nearness):+.1f} to {max(nearness):+.1f}; within 1.5 dB in {near} of {len(nearness)})."""


def _typed(figures: Figures, table: str) -> str:
    whole = yaml.safe_load((ROOT / "recipes" / "tables" / f"{table}.yaml").read_text(encoding="utf-8"))["inputs"]
    return f"make {table}" + ("" if figures.inputs["limit"] == whole["limit"] else " SCALE=short")


def _table(figures: Figures, table: str) -> str:
    """What was typed, where, and what of: the first sentence below a table."""
    given = figures.inputs
    more = f""", what goes on from them for {given["again_steps"]:,} more""" if "again_steps" in given else ""
    learnt = f"""{given["train_steps"]:,} steps of {given["batch"]} drawings{more}"""
    pictures = given["limit"] * given["per_prompt"]
    alone = given["per_prompt"] > 1 and "resamples of pictures" in figures.card("bootstrap")
    narrow = ", which take pictures of one caption for independent: too narrow" if alone else ""
    return f"""`{_typed(figures, table)}` on {figures.card("cpu_cores")} CPU cores, {figures.card("date")[:10]}:
        students learnt for {learnt}; {pictures} pictures of {given["limit"]} captions, half of them held out,
        {figures.card("resolution")} pixels, {given["steps"]} steps, guidance {given["guidance"]:g}; 95 %
        intervals{narrow}; a probe names the thing"""


def _front(figures: Figures) -> str:
    return f"""{_table(figures, "table1")}; "longer" is {figures.inputs["long_steps"]:,} steps; PSNR to the original's
        pictures ([all figures](docs/results/table1.md)). The machine was busy: speed-ups are loose. **Try fewer steps
        first.**"""


def _assembly(figures: Figures) -> str:
    return f"""{_table(figures, "table2")}. Seeds are those of Base's first step on. The machine was busy: speed-ups are
        loose. [All figures](results/table2.md)."""


def _whole_table(table: str, figures: Figures) -> str:
    return (
        f"""{_table(figures, table)}. The machine was busy: speed-ups are loose. [All figures](results/{table}.md)."""
    )


def _students(figures: Figures) -> str:
    given = figures.inputs
    return f"""{_table(figures, "table1")}, as in the original's picture of the same caption and seed where it says so;
        "shorter" is {given["short_steps"]:,} steps, "longer" {given["long_steps"]:,}. The three trainings of Base, and
        the interval over them: [run](run.md#the-tables). [All figures](results/table1.md)."""


def _bench(figures: Figures) -> str:
    times = [figures.record(name, "image_ms") for name in ("pocket", "base")]
    before, after = (each.value if each else 0.0 for each in times)
    return f"""
        `asdm bench recipes/bench-pocket.yaml` on {figures.card("cpu_cores")} CPU cores
        ({figures.card("device").removeprefix("cpu: ")}), {figures.card("dtype")}, batch 1, medians of
        {figures.card("rounds")} interleaved rounds ([all](results/demo.md)). A speed-up is the **median of paired
        ratios**: in every round both draw right after each other, one ratio a round. It is not the quotient of the two
        medians beside it ({before:.0f} / {after:.0f} = {before / after:.2f}): those may be of different rounds, and a
        round in which the machine was slow moves them, but not the ratio of two that were slowed alike. In brackets:
        quartiles of times, and the 95 % interval of a speed-up (bootstrap)."""


def _costs(figures: Figures) -> str:
    return f"""Stages of `make costs` on one core ({figures.card("device").removeprefix("cpu: ")}) of a busy machine,
        {figures.card("dtype")}, one latent a call, random weights; medians of {figures.card("rounds")} rounds
        ([all](results/costs.md)). The bound is what the multiply-adds that are left out would save if all else were
        free."""


GENERATION = "generation/UNet calls"
OF_SD15 = [
    *("deepcache 0 every 3rd", "deepcache 1 every 2nd", "up.3 early 3, order 1", "encoder", "base mask every 2nd"),
    *("transformers every 3rd", "output every 2nd, order 1"),
]
WORTH = {
    "parameters, M": [("params_m", "")],
    "UNet call, GMACs": [("macs_g", "")],
    "image speed-up": [("image_speedup", "")],
    "label accuracy": [("label_accuracy", "")],
    "label as the original's": [("label_agreement", "")],
    "KID, less is better": [("kid", "")],
    "PSNR, dB": [("psnr_db", "")],
}
TURNS = {"GMACs of an image": [("image_macs_g", "")], **{title: WORTH[title] for title in [*WORTH][2:]}}
PLANS = {"image speed-up": [("image_speedup", "")], "PSNR to the plain pictures, dB": [("psnr_db", "")]}
CALLS = {"calls in full": [("full_calls", "")], **PLANS}
PEERS = {
    "line, every 2nd": "a straight line through the output, every 2nd",
    "line, every 3rd": "the same, every 3rd",
    "line, every 4th": "the same, every 4th",
    "zeus": "`zeus`, as described",
    "zeus, first 6%": "`zeus`, the first 6 % in full",
    "zeus, first 12%": "`zeus`, the first 12 % in full",
    "sada": "`sada`, as described",
    "sada, at most 1 left out": "`sada`, at most one in a row left out",
    "spectrum, tuned": "`spectrum`, windows of two, penalty 0.01",
    "DeepCache 1, every 2": "DeepCache, the package, branch 1, every 2nd",
    "DeepCache 2, every 2": "DeepCache, the package, branch 2, every 2nd",
    "DeepCache 2, every 3": "the same, every 3rd",
}
"""How others leave out calls, at their best: `recipes/inherit-pocket-peers.yaml`."""


def _plans(*calls: int) -> dict[str, str]:
    """Of so many calls in full each: fewer steps, and what was calibrated."""
    told = ((f"{n} steps", f"{n} plain steps", f"ours {n}", f"calibrated and fitted, {n} calls in full") for n in calls)
    return {key: title for each in told for key, title in (each[:2], each[2:])}


def _beside_peers(*calls: int, without: Sequence[str]) -> dict[str, str]:
    return {**_plans(*calls), **{name: title for name, title in PEERS.items() if name not in without}}


def _inherit(figures: Figures) -> str:
    given = figures.inputs
    name = Path(given["out"]).name
    return f"""`asdm inherit recipes/{name}.yaml`, {figures.card("date")[:10]}: {given["limit"]} captions,
        {given["calibration"]} others to calibrate on, guidance {given["guidance"]:g}; {figures.card("rounds")} rounds
        of images in turn on one core of a busy machine ({figures.card("device").removeprefix("cpu: ")}); 95 %
        intervals. [All figures](results/{name.replace("-pocket", "")}.md)."""


GUIDED = {
    "image speed-up": [("image_speedup", "")],
    "UNet, MACs": [("macs_share", "")],
    "label accuracy": [("label_accuracy", "")],
    "its change": [("label_accuracy_change", "")],
    "KID": [("kid", "")],
    "PSNR, dB": [("psnr_db", "")],
}


def _guided(figures: Figures) -> str:
    given = figures.inputs
    return f"""`asdm run recipes/inherit-pocket-guidance.yaml` on one core of a busy machine
        ({figures.card("device").removeprefix("cpu: ")}), {figures.card("date")[:10]}: {given["per_prompt"]} pictures of
        each of {given["limit"]} captions; {figures.card("rounds")} rounds of images; 95 % intervals."""


LEVELS = {
    "the last up block, `up.3`": "block (up.3)",
    "all but the two outermost, `deepcache.1`": "block (branch 1)",
    "layers that Base lacks, residual": "layer (base mask)",
    "transformers, residual": "unit (transformers)",
    "resnets, residual": "unit (resnets)",
}


def _levels(name: str, first: str, calls: Sequence[str], plain: Sequence[str], behind: Mapping[str, str]) -> Levels:
    """`behind` says how values are handed on, and what stands behind the names of such set-ups."""
    every = {"every 2nd call": 2, "every 3rd": 3, "every 5th": 5}
    rows = {
        f"{title}: {how}": [f"{key}, uniform {n}{suffix}" for n in every.values()]
        for how, suffix in behind.items()
        for title, key in LEVELS.items()
    }
    rows["the output alone: a line"] = [f"output alone, {each}" for each in calls]
    rows["DeepCache, the package, branch 0"] = [f"DeepCache 0, every {n}{behind['a line']}" for n in every.values()]
    rows["plain, " + ", ".join(each.partition(" ")[0] for each in plain) + " steps"] = plain
    return Levels("docs/inherit.md", name, first, every, rows)


BLOCKS = (
    Block(
        "README.md",
        "front",
        "table1",
        "`pocket`",
        {
            "parameters, M": [("params_m", "")],
            "image: speed-up": [("image_speedup", "")],
            "label accuracy: held-out captions, trained ones": [
                ("label_accuracy", "split/held-out"),
                ("label_accuracy", "split/trained"),
            ],
            "KID, less is better": [("kid", "")],
            "PSNR, dB": [("psnr_db", "")],
        },
        {
            "original": "original",
            "base undistilled": "Base, not distilled",
            "base, long": "Base, distilled longer",
            "tiny": "Tiny, distilled",
            "12 steps": "original, 12 steps",
            "output alone, every 2nd call": "original, every 2nd call forecast",
        },
        _front,
    ),
    Block(
        "docs/distill.md",
        "distill",
        "table1",
        "`pocket`, 25 steps",
        {
            "parameters, M": [("params_m", "")],
            "image speed-up": [("image_speedup", "")],
            "label accuracy": [("label_accuracy", "")],
            "label as the original's": [("label_agreement", "")],
            "KID, less is better": [("kid", "")],
            "CLIP score": [("clip_score", "")],
            "PSNR to the original, dB": [("psnr_db", "")],
        },
        {
            "original": "original",
            "base undistilled": "Base, not distilled",
            "base, short": "Base, shorter",
            "base": "Base",
            "base over seeds": "Base, three seeds",
            "base, long": "Base, longer",
            "small": "Small",
            "tiny": "Tiny",
            "16 steps": "original, 16 steps",
            "12 steps": "original, 12 steps",
            "8 steps": "original, 8 steps",
            "output alone, every 2nd call": "original, every 2nd call forecast",
        },
        _students,
    ),
    Block(
        "docs/distill.md",
        "ways",
        "compression",
        "`pocket`, 25 steps",
        WORTH,
        {
            "original": "original",
            "base over seeds": "Base, three seeds",
            "small": "Small",
            "tiny": "Tiny",
            "chosen base over seeds": "chosen at Base's MACs, three seeds",
            "chosen small": "chosen at Small's",
            "chosen tiny": "chosen at Tiny's",
            "from drawn pictures": "Base, from pictures that the original drew",
            "in two stages": "Base, removed in two stages",
            "base longer over seeds": "Base, more steps, three seeds",
            "1122 frozen over seeds": "Base's sides, the original's middle, as many; three seeds",
            "1222 frozen": "Base's outermost level alone, as many",
            "2211 frozen": "the original's sides, Base's middle, as many",
            "4 experts": "Base with 4 experts, as many",
            "base as long": "Base, for as much time as the assembly takes",
            "base as long as experts": "Base, for as much time as the experts take",
            "16 steps": "original, 16 steps",
            "12 steps": "original, 12 steps",
        },
        partial(_whole_table, "compression"),
    ),
    Block(
        "docs/experts.md",
        "experts",
        "table3",
        "`pocket`, 25 steps",
        {"image speed-up": [("image_speedup", "")], "held-out output loss": [("output_held_out", "")], **WORTH},
        {
            "original": "original",
            "base longer": "Base",
            "2 experts": "2 experts",
            "4 experts": "4 experts",
            "8 experts": "8 experts",
        },
        partial(_whole_table, "table3"),
    ),
    Block(
        "docs/measure.md",
        "bench-pocket",
        "demo",
        "`pocket`, 64 x 64, 25 steps, guidance 3",
        {
            "UNet parameters, M": [("params_m", "")],
            "MACs per call, G": [("macs_g", "")],
            "UNet call, ms": [("unet_ms", "")],
            "image, ms": [("image_ms", "")],
            "image speed-up": [("image_speedup", "")],
        },
        {"pocket": "original", "base": "`remove: base`"},
        _bench,
    ),
    Block(
        "docs/measure.md",
        "costs",
        "costs",
        "real size",
        {
            "parameters, M": [("params_m", "")],
            "UNet call, GMACs": [("macs_g", "")],
            "UNet call, ms": [("unet_ms", "")],
            "speed-up": [("unet_speedup", "")],
            "peak memory, MB": [("peak_memory_mb", "")],
        },
        {
            "sd15": "SD 1.5",
            **{f"sd15 {name}": f"without the layers of {name.capitalize()}" for name in ("base", "small", "tiny")},
            "sd15 1122": "Base's outer two levels around the whole deep ones",
            "sd15 1222": "Base's outermost level alone",
            "sd15 2211": "the whole outer levels around Base's deep ones",
        },
    ),
    Block(
        "docs/measure.md",
        "costs-plans",
        "costs",
        "plans, 50 steps",
        {
            "all UNet calls, of the MACs": [("macs_share", GENERATION)],
            "of the time": [("time_share", GENERATION)],
            "speed-up": [("denoising_speedup", GENERATION)],
            "share of the bound": [("bound_share", GENERATION)],
        },
        {f"sd15 {plan}": plan for plan in OF_SD15},
        _costs,
    ),
    Block(
        "docs/claims.md",
        "claims-compute",
        "demo",
        "UNet",
        {
            f"{title} of {', '.join(blocks)}": [(metric, f"block/{block}") for block in blocks]
            for title, metric in (("parameters, M,", "params_m"), ("GMACs of a call,", "macs_g"))
            for blocks in (("down.3", "mid", "up.0"), ("down.0", "up.3"))
        },
        {"pocket": "original"},
    ),
    Block(
        "docs/claims.md",
        "claims-assembly",
        "table2",
        "what goes on from Base",
        WORTH,
        {
            "original": "original",
            "base": "Base, before that",
            "base longer over seeds": "Base, three seeds",
            "base as long": "Base, for as much time as the next takes",
            "1122 frozen over seeds": "Base's sides, the original's middle frozen, three seeds",
            "1122 frozen": "the first of them",
            "1122": "the same, nothing frozen",
            "1222 frozen": "Base's outermost level alone",
            "2211 frozen": "the original's sides, Base's middle",
            "16 steps": "original, 16 steps",
            "12 steps": "original, 12 steps",
        },
        _assembly,
    ),
    Block(
        "docs/claims.md",
        "claims-stability",
        "table2",
        "Base's sides, the original's middle",
        {title: WORTH[title] for title in [*WORTH][3:]},
        {
            "1122 undistilled": "before it learns again",
            **{
                f"1122{frozen}{place}": f"{told}, {'frozen' if frozen else 'nothing frozen'}"
                for place, told in ((", early", "a quarter of the steps"), (", half", "half of them"), ("", "all"))
                for frozen in (" frozen", "")
            },
        },
    ),
    Block(
        "docs/switch.md",
        "switch",
        "table4",
        "`pocket`, 25 DDIM steps",
        TURNS,
        {
            "original": "original",
            **{f"{steps} steps": f"original, {steps} steps" for steps in (20, 16, 12)},
            **{
                f"{name} {order} {share}%": f"{name.capitalize()} {order}, {share} % of the calls"
                for name in ("base", "tiny")
                for order in ("first", "last")
                for share in (25, 50)
            },
            "base": "Base alone",
            "searched 0.75": "searched, three quarters of the time",
            "searched 0.6": "searched, 0.6 of it",
            "searched 0.9 (unets-alone)": "searched among UNets alone, 0.9 of it",
            "searched 0.75 (unets-alone)": "the same, three quarters",
        },
        partial(_whole_table, "table4"),
    ),
    Block(
        "docs/claims.md",
        "claims-turns",
        "table4",
        "`pocket`, 25 DDIM steps",
        TURNS,
        {
            "original": "original",
            "12 steps": "original, 12 steps",
            "base first 50%": "Base, then the original, half of the calls each",
            "base last 50%": "the original, then Base",
            "searched 0.75 (unets-alone)": "searched among the UNets",
            "searched 0.75": "searched, calls skipped",
        },
    ),
    Block("docs/claims.md", "claims-ddim", "inherit-calibrated-ddim", "50 DDIM steps", PLANS, _plans(25, 17)),
    Block("docs/claims.md", "claims-dpm", "inherit-calibrated-dpm", "25 DPM++ 2M steps", PLANS, _plans(17, 13)),
    Block(
        "docs/claims.md",
        "claims-deepcache",
        "inherit-calibrated-ddim",
        "50 DDIM steps",
        PLANS,
        {
            "25 steps": "25 plain steps",
            "DeepCache 2, every 2": "DeepCache, the package, branch 2, every 2nd call in full",
            "17 steps": "17 plain steps",
            "DeepCache 2, every 3": "DeepCache, every 3rd call in full",
        },
    ),
    Block(
        "docs/inherit.md",
        "inherit-ddim",
        "inherit-calibrated-ddim",
        "`pocket`, 50 DDIM steps",
        CALLS,
        _beside_peers(25, 17, 13, 10, without=["zeus, first 12%", "sada, at most 1 left out", "DeepCache 1, every 2"]),
        _inherit,
    ),
    Block(
        "docs/inherit.md",
        "inherit-dpm",
        "inherit-calibrated-dpm",
        "`pocket`, 25 DPM++ 2M steps",
        CALLS,
        _beside_peers(
            *(17, 13, 9, 7),
            without=[
                *("line, every 4th", "zeus, first 6%", "sada", "spectrum, tuned"),
                *("DeepCache 2, every 2", "DeepCache 2, every 3"),
            ],
        ),
        _inherit,
    ),
    Block(
        "docs/inherit.md",
        "guidance",
        "inherit-guidance",
        "50 DDIM steps, guidance 3",
        GUIDED,
        {
            "plain": "plain",
            "interval alone": "guidance from 900 to 300",
            "17 calls alone": "17 calls in full",
            "interval, 17 calls": "both",
            "interval, 12 calls": "12 calls in full, guidance likewise",
            "17 steps": "17 plain steps",
            "13 steps": "13 plain steps",
            "12 steps": "12 plain steps",
        },
        _guided,
    ),
    Block(
        "docs/inherit.md",
        "guidance-dpm",
        "inherit-guidance-dpm",
        "25 DPM++ 2M steps, guidance 3",
        GUIDED,
        {
            "plain": "plain",
            "interval alone": "guidance from 900 to 300",
            "12 calls alone": "12 calls in full",
            "interval, 12 calls": "both",
            "interval, 10 calls": "10 calls in full, guidance likewise",
            "interval, 9 calls": "9 calls in full, guidance likewise",
            "12 steps": "12 plain steps",
            "9 steps": "9 plain steps",
            "8 steps": "8 plain steps",
        },
        _guided,
    ),
    Block(
        "docs/distill.md",
        "less",
        "less",
        "Base, `make less`",
        {
            "label accuracy": [("label_accuracy", "")],
            "KID, less is better": [("kid", "")],
            "PSNR to the original's pictures, dB": [("psnr_db", "")],
        },
        {
            "original": "original",
            "from drawings": "from real drawings",
            "from drawn pictures": "from pictures that the original drew",
            "the same under captions of others": "from those, under captions of others too",
        },
    ),
    Block(
        "docs/claims.md",
        "claims-base",
        "table1",
        "`pocket`",
        {
            "image: speed-up": [("image_speedup", "")],
            "label accuracy": [("label_accuracy", "")],
            "KID, less is better": [("kid", "")],
        },
        {
            "original": "original",
            "base undistilled": "Base, not distilled",
            "base over seeds": "Base, distilled, three seeds",
            "base, long": "Base, distilled longer",
        },
    ),
    _levels(
        "levels",
        "`pocket`, 50 DDIM steps",
        ["25 calls of 50", "17 calls of 50", "10 calls of 50"],
        ["25 steps", "18 steps", "10 steps"],
        {"a line": "", "the last value": " (repeated)"},
    ),
    _levels(
        "levels-few",
        "`pocket`, 20 DDIM steps",
        ["10 calls of 20", "7 calls of 20", "4 calls of 20"],
        ["10 steps (few-levels)", "7 steps", "4 steps"],
        {"a line": " (few-levels)", "the last value": " (few-repeated)"},
    ),
    *(
        Samplers(
            "docs/inherit.md",
            f"samplers-{every}",
            every,
            {
                "fitted": "ours {calls}",
                "a straight line": "output alone, {calls} calls of {steps}",
                "as many plain steps": "{calls} steps",
                "DeepCache, the package": "DeepCache 0, every {every}",
                **({"`zeus`, about as many": "zeus"} if every == 2 else {}),
            },
        )
        for every in ORDINALS
    ),
    Targets(
        "docs/inherit.md",
        "targets",
        {
            "held-out": "captions of drawings that the model did not learn from, Euler",
            "learnt": "captions that it learnt, DPM++ 2M",
            "free": "captions that are in no data, UniPC",
        },
        ["1-5x", "2x", "3x", "30db", "35db", "40db", "45db"],
    ),
    Sweep(
        "docs/inherit.md",
        "exhaustive",
        {
            "1.5×": ("the plan", None),
            "2×": ("the plan (held-out-2x)", None),
            "3×": ("the plan (held-out-3x)", None),
            **{f"{db} dB": (f"the plan (held-out-{db}db)", float(db)) for db in (30, 35, 40, 45)},
        },
    ),
)


SHEETS = {
    "table1": ("original", "base undistilled", "base, short", "base", "base, long"),
    "table2": ("original", "base longer", "1122 frozen", "2211 frozen"),
}
"""Result -> whose pictures are kept as docs/results/NAME.png, a row each, of the same captions."""


def kept(result: str) -> dict[str, Path]:
    """The runs of a result, by their names."""
    return {folder.name: folder for folder in sorted((RESULTS / result).iterdir()) if folder.is_dir()}


def joined(result: str) -> Report:
    return join({name: read(folder) for name, folder in kept(result).items()})


def pages() -> dict[Path, str]:
    """Every page that shows kept figures, as it has to be."""
    results = [folder.name for folder in sorted(RESULTS.iterdir()) if folder.is_dir()]
    digests = {result: {name: markdown.digest(folder) for name, folder in kept(result).items()} for result in results}
    found = {RESULTS / f"{result}.md": markdown.render(joined(result), digests[result]) for result in results}
    for block in BLOCKS:
        page = ROOT / block.page
        found[page] = filled(found.get(page) or page.read_text(), block.name, block.text())
    return found


def filled(page: str, name: str, text: str) -> str:
    """The page with this text between the comments of that name."""
    before, mark, rest = page.partition(f"<!-- figures: {name} -->\n")
    _, end, after = rest.partition(END)
    assert mark, f"the page has a place for {name}"
    assert end, f"the place for {name} ends"
    return f"{before}{mark}{text}\n{end}{after}"


def keep(result: str, runs: Sequence[Path]) -> None:
    """Take over what these runs found, without their pictures. Nothing is told of the folders of this machine."""
    texts: dict[str, dict[str, str]] = {}
    for run in runs:
        name, report = run.resolve().name, replace(read(run), images=None)
        recipe = re.sub(r"(?m)^out: .*", f"out: runs/{name}", (run / RECIPE).read_text(encoding="utf-8"))
        data = json.dumps(to_json(report), indent=1, ensure_ascii=False)
        if name in texts:
            sys.exit(f"{run}: another run is called {name} too; give one of them another name")
        texts[name] = {RECIPE: recipe, REPORT: data + "\n"}
        for file, text in texts[name].items():
            if place := PLACE.search(text):
                sys.exit(f"{run / file}: names {place[0]}, which is nowhere else; run the recipe with relative paths")
    shutil.rmtree(RESULTS / result, ignore_errors=True)
    for name, files in texts.items():
        (RESULTS / result / name).mkdir(parents=True)
        for file, text in files.items():
            (RESULTS / result / name / file).write_text(text, encoding="utf-8")


def sheet(run: Path, setups: Sequence[str]) -> Image.Image:
    """What a run's set-ups drew of its first captions, side by side."""
    images = read(run).images
    assert images, "the run has its pictures"
    rows = [
        [Image.open(run / images.folders[name] / f"{i:06d}.png") for i in range(len(images.prompts))] for name in setups
    ]
    width, height = rows[0][0].size
    canvas = Image.new("RGB", (width * len(images.prompts), height * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            canvas.paste(image, (x * width, y * height))
    return canvas


def main(words: Sequence[str]) -> None:
    if words:
        verb, result, *runs = words
        if verb != "keep" or not runs:
            sys.exit(__doc__)
        keep(result, [Path(run) for run in runs])
        if result in SHEETS:
            sheet(Path(runs[0]), SHEETS[result]).save(RESULTS / f"{result}.png", optimize=True)
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
