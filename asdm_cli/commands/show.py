"""What a model is made of, or what a run found out. Reads headers and JSON only."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from asdm_cli.console import Terminal, hand_over
from asdm_cli.errors import ModelError

if TYPE_CHECKING:
    from asdm_cli.models.source import ModelDirectory

UNET = "unet"
OUTSIDE = "outside"
"""What stands in no block of a UNet: conv_in, the time embedding, conv_out."""


def show(sources: list[str], page: Path | None, overwrite: bool) -> None:
    from asdm_cli.report import merge, terminal

    if page is not None:
        _write_page(page, [Path(source) for source in sources], overwrite)
        hand_over(page)
        return
    out = Terminal()
    for source in sources:
        if (Path(source) / "report.json").is_file():
            terminal.show(merge.read(Path(source)), out)
        else:
            _show_model(source, out)


def _write_page(page: Path, runs: list[Path], overwrite: bool) -> None:
    from asdm_cli.models.write import atomic_file
    from asdm_cli.report import html, merge

    if page.is_dir():
        raise ModelError(f"{page}: is a directory; give the name of a page, as in {page / 'page.html'}")
    if page.exists() and not overwrite:
        raise ModelError(f"{page}: exists already; choose another name, or say --overwrite to replace it")
    if page.is_symlink() or (page.exists() and not html.is_ours(page)):
        raise ModelError(f"{page}: is no page from asdm, and --overwrite replaces nothing else; choose another name")
    reports = [merge.read(run) for run in runs]
    joined = merge.combine(" and ".join(report.title for report in reports), reports)
    by_verb = {report.verb: report for report in reports}
    if {"bench", "eval"} <= by_verb.keys():
        plot = merge.speed_quality(by_verb["bench"], by_verb["eval"])
        joined = replace(joined, parts=[plot, *joined.parts])
    with atomic_file(page) as partial:
        partial.write_text(html.render(joined, Path()), encoding="utf-8")


def _show_model(source: str, out: Terminal) -> None:
    from asdm_cli.models.source import find

    model = find(source)
    weights = {name: _weights(model, name) for name in model.components}
    table = Table("component", "class", "parameters", "number format", title=str(model.path), title_justify="left")
    table.columns[2].justify = "right"
    for name, (counts, formats) in weights.items():
        entry = model.index.get(name)
        beside = f"takes turns with {UNET}" if name.startswith(f"{UNET}s/") else "beside the pipeline"
        kind = str(entry[1]) if isinstance(entry, list) else beside
        table.add_row(name, kind, f"{sum(counts.values()):,}" if counts else "", ", ".join(sorted(formats)))
    out.print(table)
    for name, (counts, _) in weights.items():
        if name == UNET or name.startswith(f"{UNET}s/"):
            out.print(_unet(model, name, counts))
    for line in _at_run_time(model):
        out.print(line)


def _weights(model: ModelDirectory, name: str) -> tuple[dict[str, int], set[str]]:
    """Elements of each weight tensor of a component, and their formats; nothing for one without weights."""
    from asdm_cli.unet.checkpoint import read_headers

    if not (model.component(name) / "config.json").is_file():
        return {}, set()
    tensors = read_headers(model.weights(name)).tensors
    floats = {key: entry for key, entry in tensors.items() if entry.dtype.startswith(("F", "BF"))}
    return {key: prod(entry.shape) for key, entry in floats.items()}, {entry.dtype for entry in floats.values()}


def _unet(model: ModelDirectory, component: str, weights: dict[str, int]) -> Tree:
    """The tree of its addresses, each with the parameters of all that lies below it."""
    from asdm_cli.unet.anatomy import Anatomy

    anatomy = Anatomy.of(model.config(component))
    parents = {node.address: node.parent for node in anatomy.nodes}
    counts: Counter[str] = Counter()
    for key, count in weights.items():
        address: str | None = anatomy.address_of_key(key) or OUTSIDE
        while address is not None:
            counts[address] += count
            address = parents.get(address)

    def label(address: str, kind: str, parameters: int) -> Text:
        return Text.assemble((address, "bold"), (f" {kind}" if kind else "", "dim"), f" {parameters:,}")

    root = Tree(label(component, "", sum(weights.values())))
    branches: dict[str | None, Tree] = {None: root}
    for node in anatomy.nodes:
        kind = "" if node.kind == node.address.rpartition(".")[2] else node.kind
        branches[node.address] = branches[node.parent].add(label(node.address, kind, counts[node.address]))
    root.add(label(OUTSIDE, "conv_in, time embedding, conv_out", counts[OUTSIDE]))
    return root


def _at_run_time(model: ModelDirectory) -> list[str]:
    """Who serves what, where several UNets take turns, and the rules that each draws by."""
    from asdm_cli.models.provenance import run_time_plan
    from asdm_cli.models.switched import component, read_switch
    from asdm_cli.recipe.patches import described

    whole, switch, lines = run_time_plan(model), read_switch(model), list[str]()
    plans = {"": whole} if whole else {}
    if switch is not None:
        whose = ", ".join(f"{name} ({component(switch, name)})" for name in switch.unets)
        idle = "; idle ones live on the CPU" if switch.idle == "cpu" else ""
        lines += [f"UNets that take turns{idle}: {whose}", f"served by {described(switch)}"]
        plans |= {f"{name}: ": plan for name, plan in switch.plans.items()}
    return lines + [
        f"{whose}inherits {rule.nodes} ({rule.carry}, order {rule.order}); computed: {rule.schedule}"
        for whose, plan in plans.items()
        for rule in plan.rules
    ]
