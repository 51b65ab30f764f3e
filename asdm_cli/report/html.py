"""report.html: one file that needs nothing else, for a browser that is offline.

Whatever the report says is data: the template escapes it, and the page's own policy lets the browser run no
script and fetch no file but what this module put there.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from asdm_cli.report import bars_plot, curves_plot, figures, scatter_plot, timeline_plot
from asdm_cli.report.document import Bars, Curves, Grid, Part, Report, Scatter, Section, Table, Timeline
from asdm_cli.report.pictures import embed
from asdm_cli.report.tabulate import Plot, tabulate

WIDTHS = {"wide": 720, "narrow": 348}
"""Every plot is drawn twice, px wide; the style sheet shows the one that fits the screen."""
COLOURS = 8
GENERATOR = '<meta name="generator" content="asdm">'
"""Near a page's beginning: it is ours."""
Shown = Table | Grid | Plot
KINDS: dict[type[Shown], str] = {
    Table: "table",
    Scatter: "scatter",
    Curves: "curves",
    Bars: "bars",
    Grid: "grid",
    Timeline: "timeline",
}


PLOTS: dict[type[Plot], Callable[[Any, float, Mapping[str, int]], Any]] = {
    Scatter: scatter_plot.lay_out,
    Curves: curves_plot.lay_out,
    Bars: bars_plot.lay_out,
    Timeline: timeline_plot.lay_out,
}
UNBROKEN = 14
"""A cell of text up to so many letters stays in one line."""


def render(report: Report, folder: Path) -> str:
    """The page as text. Paths of pictures start at `folder`; RunError if one cannot be read."""
    environment = Environment(
        loader=PackageLoader("asdm_cli.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        figures=figures, generator=GENERATOR, bar_px=bars_plot.BAR, row_px=timeline_plot.ROW, unbroken=UNBROKEN
    )
    environment.tests["listing"] = lambda entry: isinstance(entry, list)
    environment.filters.update(figure=figures.text, prose=_prose, breakable=_breakable)
    chapters = _chapters(report, folder)
    style, script = _source("page.css"), _source("page.js")
    return environment.get_template("page.html.j2").render(
        report=report,
        chapters=chapters,
        contents_of_page=[link for chapter in chapters for link in _links(chapter)],
        other_cards=_cards_without_table(report),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _chapters(report: Report, folder: Path) -> list[dict[str, Any]]:
    """Each section with its parts, and before them the parts that belong to none."""
    colours = _colours(report)
    chapters: list[dict[str, Any]] = [{"id": "", "section": None, "parts": []}]
    for index, part in enumerate(report.parts, 1):
        if isinstance(part, Section):
            chapters.append({"id": f"section-{len(chapters)}", "section": part, "parts": []})
        else:
            chapters[-1]["parts"].append(
                {"id": f"part-{index}", "kind": KINDS[type(part)], "part": part, **_drawn(part, folder, colours)}
            )
    for chapter in chapters:
        chapter["contents"] = [(entry["id"], entry["part"].title) for entry in chapter["parts"]]
    return [chapter for chapter in chapters if chapter["section"] or chapter["parts"]]


def _links(chapter: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the contents of the page lead: to a section, which has contents of its own, or to each part of none."""
    return [(chapter["id"], chapter["section"].title)] if chapter["section"] else chapter["contents"]


def _drawn(part: Shown, folder: Path, colours: Mapping[str, int]) -> dict[str, Any]:
    if isinstance(part, Table):
        return {"kinds": figures.interval_kinds(part, part.columns), "table": None}
    if isinstance(part, Grid):
        return {"pictures": [[path and embed(folder / path) for path in row] for row in part.pictures], "table": None}
    table = tabulate(part)
    return {
        "plots": {name: PLOTS[type(part)](part, width, colours) for name, width in WIDTHS.items()},
        "legend": _legend(part, colours),
        "table": {"part": table, "kinds": figures.interval_kinds(table, table.columns)},
    }


def _colours(report: Report) -> dict[str, int]:
    """One colour for each name in all plots of the page."""
    numbers = count()
    names: dict[str, int] = {}
    for part in report.parts:
        for name in _named(part):
            if name not in names:
                names[name] = next(numbers) % COLOURS
    return names


def _named(part: Part) -> list[str]:
    if isinstance(part, Bars):
        return list(part.values)
    if isinstance(part, Curves):
        return list(part.lines)
    if isinstance(part, Scatter):
        return [point.series for point in part.points if point.series]
    if isinstance(part, Timeline) and not part.is_of_nodes:
        return list(part.letters.values())
    return []


def _legend(plot: Plot, colours: Mapping[str, int]) -> list[tuple[str, str]]:
    """Names with the classes of their colours, where there is more than one to tell apart."""
    if isinstance(plot, Timeline):
        return timeline_plot.legend(plot, colours)
    names = list(dict.fromkeys(_named(plot)))
    return [(name, f"c{colours[name]}") for name in names] if len(names) > 1 else []


def _cards_without_table(report: Report) -> dict[str, Any]:
    shown = {part.card for part in report.parts if isinstance(part, Table)}
    return {name: card for name, card in report.cards.items() if name not in shown}


def _prose(text: str) -> Markup:
    """Escaped text in which `words between backticks` are set as code, and figures keep their units beside them."""
    together = re.sub(r"(?<=\d) (?=(?:%|dB|ms|MB|GB)(?!\w))", "\u00a0", str(escape(text)))
    return Markup(re.sub("`([^`\n]+)`", r"<code>\1</code>", together))


def is_ours(page: Path) -> bool:
    """Whether a file is a page that `render` gave."""
    with page.open("rb") as file:
        return GENERATOR.encode() in file.read(1024)


def _breakable(text: str) -> Markup:
    """Escaped text in which an address like down_blocks.0.conv1 may be broken behind its points."""
    return Markup(re.sub(r"(?<=\w)\.(?=[^\W\d])|(?<=[^\W\d])\.(?=\d)", ".<wbr>", str(escape(text))))


def _source(name: str) -> str:
    return (resources.files("asdm_cli.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    """The way in which a page's policy names an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"
