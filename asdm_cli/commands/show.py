"""`asdm show MODEL|RUN`: what a model is made of, or what a run found out. Reads headers and JSON only."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from asdm_cli.commands.options import Overwrite, Verbose, examples, set_verbosity
from asdm_cli.errors import ModelError
from asdm_cli.progress import Terminal, hand_over

if TYPE_CHECKING:
    from asdm_cli.models.source import ModelDirectory
    from asdm_cli.records import Report
    from asdm_cli.unet.anatomy import Anatomy

UNET = "unet"
OUTSIDE = "outside"
"""What stands in no block of a UNet: conv_in, the time embedding, conv_out."""

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL|RUN...",
        help="A run directory shows its report; a model directory or [bold]pocket[/] its components and UNet.",
        show_default=False,
    ),
]
Shape = Annotated[
    Literal["csv", "markdown", "latex"] | None,
    typer.Option(
        "--format", help="Print every record (csv), or the main table, for other programs.", show_default=False
    ),
]
Page = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="PAGE.html", help="Write the reports of these runs as one page instead.", show_default=False
    ),
]


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "# the components of a model, and the addresses that a recipe's remove: may name",
            "asdm show pocket",
            "# the figures of a run",
            "asdm show runs/bench-pocket",
            "# the model that a run wrote",
            "asdm show runs/prune-pocket-base/model",
            "# all of them for other programs, the main table for a paper",
            "asdm show runs/bench-pocket --format csv",
            "# what models cost and what their images are worth, on one page",
            "asdm show runs/bench-pocket runs/eval-pocket --out runs/page.html",
        )
    )(show)


def show(
    sources: Sources, shape: Shape = None, page: Page = None, overwrite: Overwrite = False, verbose: Verbose = False
) -> None:
    """Show what a model is made of, or what a run found out.

    A UNet is shown as the tree of its addresses, each with its parameters. Several runs are put together on a page, or
    in a format for other programs: set-ups of one model that draw in one way are one row.
    """
    set_verbosity(verbose)
    if page is not None or shape is not None:
        from asdm_cli.report.join import join, read_all

        report = join(read_all([Path(source) for source in sources]))
        if shape is not None:
            from asdm_cli.report.export import FORMATS

            hand_over(FORMATS[shape](report))
        if page is not None:
            _write_page(page, report, overwrite)
            hand_over(page)
        return
    out = Terminal()
    for source in sources:
        if (Path(source) / "report.json").is_file():
            _show_run(Path(source), out)
        else:
            _show_model(source, out)


def _show_run(run: Path, out: Terminal) -> None:
    from asdm_cli.report import merge, run_directory, terminal

    of_records = run_directory.is_of_records(run)
    terminal.show(run_directory.read(run) if of_records else merge.read(run), out, run / "report.html")


def _show_model(source: str, out: Terminal) -> None:
    from asdm_cli.models.source import find

    model = find(source)
    out.print(_components(model))
    for name in (name for name in model.components if name == UNET or name.startswith(f"{UNET}s/")):
        out.print(_unet(model, name))
    for line in (*_switch(model), *_plans(model)):
        out.print(line)


def _switch(model: ModelDirectory) -> list[str]:
    """Who serves what, where several UNets take turns."""
    from asdm_cli.models.switched import component, read_switch
    from asdm_cli.recipe.patches import described

    switch = read_switch(model)
    if switch is None:
        return []
    whose = ", ".join(f"{name} ({component(switch, name)})" for name in switch.unets)
    idle = "; idle ones live on the CPU" if switch.idle == "cpu" else ""
    return [f"UNets that take turns{idle}: {whose}", f"served by {described(switch)}"]


def _plans(model: ModelDirectory) -> list[str]:
    """The rules that each UNet draws by, of one alone without its name."""
    from asdm_cli.models.provenance import run_time_plan
    from asdm_cli.models.switched import read_switch
    from asdm_cli.schedule import describe

    whole, switch = run_time_plan(model), read_switch(model)
    plans = {"": whole} if whole else {f"{name}: ": plan for name, plan in (switch.plans if switch else {}).items()}
    return [
        f"{whose}inherits {rule.nodes} ({rule.carry}, order {rule.order}); computed: {describe(rule.schedule)}"
        for whose, plan in plans.items()
        for rule in plan.rules
    ]


def _write_page(file: Path, report: Report, overwrite: bool) -> None:
    from asdm_cli.models.write import atomic_file
    from asdm_cli.report import page

    if file.is_dir():
        raise ModelError(f"{file}: is a directory; give the name of a page, as in {file / 'page.html'}")
    if file.exists() and not overwrite:
        raise ModelError(f"{file}: exists already; choose another name, or say --overwrite to replace it")
    if file.is_symlink() or (file.exists() and not page.is_ours(file)):
        raise ModelError(f"{file}: is no page from asdm, and --overwrite replaces nothing else; choose another name")
    with atomic_file(file) as partial:
        partial.write_text(page.render(report, Path()), encoding="utf-8")


def _components(model: ModelDirectory) -> Table:
    table = Table("component", "class", "parameters", "number format", title=str(model.path), title_justify="left")
    table.columns[2].justify = "right"
    for name in model.components:
        counts, formats = _weights(model, name)
        total = f"{sum(counts.values()):,}" if counts else ""
        table.add_row(name, _class(model, name), total, ", ".join(sorted(formats)))
    return table


def _class(model: ModelDirectory, name: str) -> str:
    entry = model.index.get(name)
    beside = f"takes turns with {UNET}" if name.startswith(f"{UNET}s/") else "beside the pipeline"
    return str(entry[1]) if isinstance(entry, list) else beside


def _weights(model: ModelDirectory, name: str) -> tuple[dict[str, int], set[str]]:
    """Elements of each weight tensor of a component, and their formats; nothing for one without weights."""
    from asdm_cli.unet.checkpoint import read_headers

    if not (model.component(name) / "config.json").is_file():
        return {}, set()
    tensors = read_headers(model.weights(name)).tensors
    floats = {key: entry for key, entry in tensors.items() if entry.dtype.startswith(("F", "BF"))}
    return {key: prod(entry.shape) for key, entry in floats.items()}, {entry.dtype for entry in floats.values()}


def _unet(model: ModelDirectory, component: str) -> Tree:
    from asdm_cli.unet.anatomy import Anatomy

    anatomy = Anatomy.of(model.config(component))
    counts = _by_address(anatomy, _weights(model, component)[0])
    root = Tree(_label(component, "", _total(anatomy, counts)))
    branches: dict[str | None, Tree] = {None: root}
    for node in anatomy.nodes:
        kind = "" if node.kind == node.address.rpartition(".")[2] else node.kind
        branches[node.address] = branches[node.parent].add(_label(node.address, kind, counts[node.address]))
    root.add(_label(OUTSIDE, "conv_in, time embedding, conv_out", counts[OUTSIDE]))
    return root


def _by_address(anatomy: Anatomy, counts: dict[str, int]) -> Counter[str]:
    """Parameters of every address with all that lies below it."""
    parents = {node.address: node.parent for node in anatomy.nodes}
    summed: Counter[str] = Counter()
    for key, count in counts.items():
        address: str | None = anatomy.address_of_key(key) or OUTSIDE
        while address is not None:
            summed[address] += count
            address = parents.get(address)
    return summed


def _total(anatomy: Anatomy, counts: Counter[str]) -> int:
    return counts[OUTSIDE] + sum(counts[node.address] for node in anatomy.nodes if node.parent is None)


def _label(address: str, kind: str, parameters: int) -> Text:
    return Text.assemble((address, "bold"), (f" {kind}" if kind else "", "dim"), f" {parameters:,}")
