"""What a model is made of, or what a run found out. Reads headers and JSON only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from asdm_cli.console import Terminal, hand_over, note
from asdm_cli.errors import ModelError

if TYPE_CHECKING:
    from asdm_cli.models.directory import ModelDirectory
    from asdm_cli.records import Report

UNET = "unet"
PAGES = {".html": "a page", ".md": "Markdown", ".pdf": "the plots"}
OUTSIDE = "outside"
"""What stands in no block of a UNet: conv_in, the time embedding, conv_out."""


def show(sources: list[str], shape: str | None, page: Path | None, overwrite: bool) -> None:
    if page is None and shape is None:
        for source in sources:
            if (Path(source) / "report.json").is_file():
                from asdm_cli.report import run_directory, terminal

                whole = Path(source) / "report.html"
                terminal.show(run_directory.read(Path(source)), Terminal(), whole if whole.is_file() else None)
            else:
                _show_model(source)
        return
    from asdm_cli.report.join import join, read_all

    sources = list(dict.fromkeys(str(Path(source)) for source in sources))
    runs = read_all([Path(source) for source in sources])
    report = join(runs)
    if shape is not None:
        from asdm_cli.report.export import FORMATS

        hand_over(FORMATS[shape](report))
    if page is not None:
        from asdm_cli.report.markdown import digest

        pairs = zip(runs, map(Path, sources), strict=True)
        recipes = {name: digest(source) for name, source in pairs if (source / "recipe.yaml").is_file()}
        _write_page(page, report, recipes, overwrite)
        note(str(page)) if shape is not None else hand_over(page)  # what is read as CSV is CSV alone


def _write_page(file: Path, report: Report, recipes: Mapping[str, str], overwrite: bool) -> None:
    """As its name ends: a page for browsers, Markdown, or the plots for a paper."""
    from asdm_cli.models.write import atomic_file
    from asdm_cli.report import charts, markdown, page

    if file.is_dir():
        raise ModelError(f"{file}: is a directory; give the name of a page, as in {file / 'page.html'}")
    if (kind := file.suffix.lower()) not in PAGES:
        ways = ", ".join(f"{ending} for {what}" for ending, what in PAGES.items())
        raise ModelError(f"{file}: nothing is written by this name; end it in {ways}")
    if file.exists() and not overwrite:
        raise ModelError(f"{file}: exists already; choose another name, or say --overwrite to replace it")
    if file.is_symlink() or (file.exists() and not any(made in file.read_bytes() for made in (page.MADE, charts.MADE))):
        raise ModelError(f"{file}: is no page from asdm, and --overwrite replaces nothing else; choose another name")
    plots = [(entry.table.title, entry.drawing) for entry in page.entries(report) if entry.drawing]
    if kind == ".pdf" and not plots:
        raise ModelError(f"{file}: these runs have nothing to plot, as two set-ups with speed and quality; name more")
    with atomic_file(file) as partial:
        if kind == ".pdf":
            charts.to_pdf(plots, partial)
        else:
            text = markdown.render(report, recipes) if kind == ".md" else page.render(report, Path())
            partial.write_text(text, encoding="utf-8")


def _show_model(source: str) -> None:
    from asdm_cli.models.directory import find
    from asdm_cli.models.metadata import read_metadata

    model, out = find(source), Terminal()
    weights = {name: _weights(model, name) for name in model.components}
    table = Table("component", "class", "parameters", "number format", title=source, title_justify="left")
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
    for spec in read_metadata(model).patches:  # what the model carries into drawing: who serves what, and plans
        for line in spec.told():
            out.print(line)


def _weights(model: ModelDirectory, name: str) -> tuple[dict[str, int], set[str]]:
    """Elements of each weight tensor of a component, and their formats; nothing for one without weights."""
    from asdm_cli.unet.weights import read_headers

    if not (model.component(name) / "config.json").is_file():
        return {}, set()
    tensors = read_headers(model.weights(name)).tensors
    floats = {key: entry for key, entry in tensors.items() if entry.dtype.startswith(("F", "BF"))}
    return {key: prod(entry.shape) for key, entry in floats.items()}, {entry.dtype for entry in floats.values()}


def _unet(model: ModelDirectory, component: str, weights: dict[str, int]) -> Tree:
    """The tree of its addresses, each with the parameters of all that lies below it."""
    from asdm_cli.unet.addresses import Anatomy

    anatomy = Anatomy.of(model.config(component))
    parents = {node.address: node.parent for node in anatomy.nodes}

    def above(address: str) -> set[str]:
        parent = parents.get(address)
        return {parent} | above(parent) if parent else set()

    counts: Counter[str] = Counter()
    for key, count in weights.items():
        owned = anatomy.owners(key) or {OUTSIDE}
        for address in owned.union(*(above(address) for address in owned)):
            counts[address] += count

    def label(address: str, kind: str, parameters: int) -> Text:
        return Text.assemble((address, "bold"), (f" {kind}" if kind else "", "dim"), f" {parameters:,}")

    root = Tree(label(component, "", sum(weights.values())))
    branches: dict[str | None, Tree] = {None: root}
    for node in anatomy.nodes:
        kind = "" if node.kind == node.address.rpartition(".")[2] else node.kind
        branches[node.address] = branches[node.parent].add(label(node.address, kind, counts[node.address]))
    root.add(label(OUTSIDE, "conv_in, time embedding, conv_out", counts[OUTSIDE]))
    return root
