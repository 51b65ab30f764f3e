"""GPU-hours and memory of distilling and judging at the size of SD 1.5, reckoned from published and counted figures.

    python scripts/gpu_hours.py
    python scripts/gpu_hours.py --gpu-tflops 989 --utilisation 0.3 --gpus 1 8 64 --students base tiny --batch 64
    python scripts/gpu_hours.py --markdown           # the tables of docs/scale.md

No GPU was at hand: nothing here was timed on one by us. What goes in is listed with where it comes from; what is only
assumed is an option. A step's work is counted in multiply-accumulates (two FLOP each): a forward pass of the teacher,
and of each student one forward pass, a backward pass of twice as much and, with gradient checkpointing, a second
forward pass. BK-SDM's script encodes picture and caption at every step besides; `asdm distill` does so once. How many
FLOP a second a GPU really does is what BK-SDM's published hours say, unless it is told.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console
from rich.table import Table

BK_README = "BK-SDM's README"
COUNTED = "counted, SD 1.5 at 512 pixels, attention included"
SOURCE = "where from"
HOUR = 3600


@dataclass(frozen=True)
class Figure:
    """A number that goes in, with its unit and where it comes from."""

    value: float
    unit: str
    source: str


FIGURES = {
    "BK-SDM Base, 50,000 steps of 256": Figure(300, "A100-hours", BK_README),
    "BK-SDM Base, 50,000 steps of 64": Figure(60, "A100-hours", BK_README),
    "30,000 pictures of a model": Figure(10, "3090-hours", f"{BK_README} (about)"),
    "an A100's peak, dense float16": Figure(312, "TFLOP/s", "NVIDIA's data sheet"),
    "UNet: original": Figure(401.64, "GMACs", COUNTED),
    "Base": Figure(261.50, "GMACs", COUNTED),
    "Small": Figure(255.45, "GMACs", COUNTED),
    "Tiny": Figure(242.75, "GMACs", COUNTED),
    "VAE encoder": Figure(558.33, "GMACs", COUNTED),
    "text encoder": Figure(6.55, "GMACs", "BK-SDM's repository, issue 53"),
    "two processes' speed over one's": Figure(1.80, "×", "measured: pocket, 2 CPU cores, gloo"),
    "teacher's share of a step's passes": Figure(0.333, "", "measured: SD 1.5 size, 2 CPU cores, bfloat16"),
    "three single runs over three in one": Figure(1.23, "×", "measured: pocket, 2 CPU cores (another run: 1.20)"),
}
"""Published, measured and counted; the README's figures were read there."""
SCALING = FIGURES["two processes' speed over one's"].value / 2
"""The same share is assumed among any number, and among GPUs."""
STUDENTS = ["base", "small", "tiny"]
LATENCY = {"original": 1.41, "Base": 0.96, "Small": 0.90, "Tiny": 0.80}
"""Seconds per picture on an RTX 3090: 25 PNDM steps with guidance, VAE and text encoder. BK-SDM's paper, latency table,
quoted from memory."""
PARAMETERS = {
    "SD 1.5, Base": (579.38, 859.52),
    "SD 1.5, nothing removed": (859.52, 859.52),
    "SDXL, Base": (1717.28, 2567.46),
    "SDXL, nothing removed": (2567.46, 2567.46),
}
"""Millions of parameters of the student's UNet and of the teacher's, counted."""
BYTES = {"weights": 4, "gradients": 4, "gradients in DDP's buckets": 4, "AdamW": 8, "running mean": 4}
"""Of one parameter that learns, in float32 as `asdm distill` keeps them."""
FROZEN, ADAMW_8BIT = 2, 2
"""Bytes per parameter of a bfloat16 teacher, and of AdamW's two means in 8 bits."""


@dataclass(frozen=True)
class Rows:
    """A table: its title, column heads, and cells as they are printed."""

    title: str
    heads: Sequence[str]
    cells: Sequence[Sequence[str]]


def gmacs(part: str) -> float:
    return FIGURES[part].value


def encoding(flip: bool = False) -> float:
    """GMACs of one sample's picture (and its mirror image) and caption."""
    return (1 + flip) * gmacs("VAE encoder") + gmacs("text encoder")


def learning(students: Sequence[str], checkpointing: bool) -> float:
    """GMACs of one sample of a step with latents at hand; the students share the teacher's forward pass."""
    passes = 4 if checkpointing else 3
    return gmacs("UNet: original") + passes * sum(gmacs(name.capitalize()) for name in students)


def implied_tflops(batch: int) -> float:
    """TFLOP/s that BK-SDM's published hours come to."""
    seconds = FIGURES[f"BK-SDM Base, 50,000 steps of {batch}"].value * HOUR
    return 2 * (encoding() + learning(["base"], True)) * 50_000 * batch / seconds / 1e3


def hours(per_sample: float, samples: float, tflops: float) -> float:
    return 2 * per_sample * samples / tflops / 1e3 / HOUR


def over(gpus: int, alone: float, scaling: float) -> float:
    """Hours on so many GPUs; `scaling` is the share of a GPU's speed that is left of it among others."""
    return alone if gpus == 1 else alone / gpus / scaling


def inputs() -> Rows:
    """Figures of one unit and source share a line."""
    cells = []
    for (unit, source), items in groupby(FIGURES.items(), lambda item: (item[1].unit, item[1].source)):
        names, figures = zip(*items, strict=True)
        cells.append(("; ".join(names), f"{', '.join(f'{each.value:g}' for each in figures)} {unit}".strip(), source))
    rates = ", ".join(f"{implied_tflops(batch):.1f}" for batch in (256, 64))
    implied = ("an A100 at that work; batch 256, 64", f"{rates} TFLOP/s", "computed from the above")
    return Rows("What goes in", ("figure", "value", SOURCE), [*cells, implied])


def training(told: argparse.Namespace) -> Rows:
    tflops, samples = told.gpu_tflops * told.utilisation, told.steps * told.batch
    each, together = told.students[0], ", ".join(told.students)
    alone = {name: hours(learning([name], True), samples, tflops) for name in told.students}
    kinds = {
        f"BK-SDM's script, {each}": hours(encoding() + learning([each], True), samples, tflops),
        f"`asdm distill`, {each}": alone[each],
        f"`asdm distill`, {each}, without gradient checkpointing": hours(learning([each], False), samples, tflops),
    }
    if len(alone) > 1:
        kinds |= {
            f"`asdm distill`, {together}, one after the other": sum(alone.values()),
            f"`asdm distill`, {together}, in one run": hours(learning(told.students, True), samples, tflops),
        }
    kinds[f"encoding {told.pairs:,} pairs once, mirrored too"] = hours(encoding(flip=True), told.pairs, tflops)
    return Rows(
        f"Training: {told.steps:,} steps of {told.batch} at {tflops:.1f} TFLOP/s",
        ("what", *map(_gpus, told.gpus)),
        [(what, *(_time(over(n, took, told.scaling)) for n in told.gpus)) for what, took in kinds.items()],
    )


def judging(told: argparse.Namespace) -> Rows:
    """Pictures are drawn without a word between the processes, so nothing is lost among them."""
    alone = {f"{name}, {each:.2f} s per picture": told.prompts * each / HOUR for name, each in LATENCY.items()}
    readme = FIGURES["30,000 pictures of a model"].value
    alone["as BK-SDM's README says, about"] = readme * told.prompts / 30_000
    return Rows(
        f"Drawing {told.prompts:,} pictures, 25 steps, RTX 3090",
        ("model", *map(_gpus, told.gpus)),
        [(name, *(_time(took / n) for n in told.gpus)) for name, took in alone.items()],
    )


def memory(_told: argparse.Namespace) -> Rows:
    whole = sum(BYTES.values())
    cells = []
    for name, (student, teacher) in PARAMETERS.items():
        alone = student * (whole - BYTES["gradients in DDP's buckets"])
        small = student * (whole - BYTES["AdamW"] + ADAMW_8BIT)
        figures = [each / 1e3 + teacher * FROZEN / 1e3 for each in (alone, student * whole, small)]
        cells.append((name, f"{student:,.0f} M", *(f"{each:.1f} GB" for each in figures)))
    return Rows(
        "Memory of each GPU, before activations",
        ("student", "learns", "alone", "among others (DDP)", "DDP, 8-bit AdamW"),
        cells,
    )


def checks(_told: argparse.Namespace) -> Rows:
    """What can be both counted and measured. Counted for SD 1.5, so pocket's figure is near it, not equal."""
    teacher = gmacs("UNet: original")
    share = teacher / learning(["base"], False)
    saved = sum(learning([name], False) for name in STUDENTS) / learning(STUDENTS, False)
    measured = (FIGURES[name].value for name in list(FIGURES)[-2:])
    return Rows(
        "Does the counting hold? Without gradient checkpointing",
        ("what", "counted", "measured"),
        [
            (what, f"{counted:.2f}", f"{found:.2f}")
            for what, counted, found in zip(list(FIGURES)[-2:], (share, saved), measured, strict=True)
        ],
    )


def _time(taken: float) -> str:
    return f"{taken:,.1f} h" if taken >= 1 else f"{60 * taken:.0f} min"


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' * (count > 1)}"


def _is_text(number: int, head: str) -> bool:
    return number == 0 or head == SOURCE


def markdown(rows: Rows) -> str:
    """The title stands where the first column's head would."""
    marks = ["---" if _is_text(number, head) else "---:" for number, head in enumerate(rows.heads)]
    lines = [[rows.title, *rows.heads[1:]], marks, *rows.cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rich_table(rows: Rows) -> Table:
    table = Table(title=rows.title, title_justify="left")
    for number, head in enumerate(rows.heads):
        table.add_column(head, justify="left" if _is_text(number, head) else "right")
    for line in rows.cells:
        table.add_row(*(cell.replace("`", "") for cell in line))
    return table


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    peak = FIGURES["an A100's peak, dense float16"].value
    parser = argparse.ArgumentParser(
        description="GPU-hours and memory, reckoned.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--gpu-tflops", type=float, default=peak, help="a GPU's peak")
    add("--utilisation", type=float, default=implied_tflops(256) / peak, help="share of it; BK-SDM's if not told")
    add("--scaling", type=float, default=SCALING, help="speed of a GPU among others over one alone's; assumed")
    add("--gpus", type=int, nargs="+", default=[1, 8, 64], help="how many")
    add("--students", nargs="+", choices=STUDENTS, default=STUDENTS, help="who learns")
    add("--batch", type=int, default=256, help="samples of a step")
    add("--steps", type=int, default=50_000, help="of training")
    add("--pairs", type=int, default=212_776, help="pictures to learn from; BK-SDM's")
    add("--prompts", type=int, default=30_000, help="pictures to draw")
    add("--markdown", action="store_true", help="print the tables as Markdown")
    told = parser.parse_args(arguments)
    for name in ("gpu_tflops", "utilisation", "scaling"):
        if getattr(told, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0")
    if min(told.gpus) < 1:
        parser.error("--gpus must be 1 or more")
    return told


def main(arguments: Sequence[str] | None = None) -> None:
    told = options(arguments)
    tables = [inputs(), training(told), checks(told), judging(told), memory(told)]
    if told.markdown:
        print("\n\n".join(markdown(rows) for rows in tables))
        return
    console = Console(width=120)
    for rows in tables:
        console.print(rich_table(rows))


if __name__ == "__main__":
    main()
