"""report.html: one file that needs nothing else, for a browser that is offline.

Whatever the report says is data: the template escapes it, and the page's own policy lets the browser run no
script and fetch no file but what this module put there.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from asdm_cli.report import bars_plot, curves_plot, figures, scatter_plot, timeline_plot
from asdm_cli.report.document import Bars, Curves, Grid, Part, Report, Scatter, Table, Timeline
from asdm_cli.report.pictures import embed

WIDTHS = {"wide": 720, "narrow": 348}
"""Every plot is drawn twice, px wide; the style sheet shows the one that fits the screen."""
COLOURS = 8
KINDS: dict[type[Part], str] = {
    Table: "table",
    Scatter: "scatter",
    Curves: "curves",
    Bars: "bars",
    Grid: "grid",
    Timeline: "timeline",
}


def render(report: Report, folder: Path) -> str:
    """The page as text. Paths of pictures start at `folder`; RunError if one cannot be read."""
    environment = Environment(
        loader=PackageLoader("asdm_cli.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(figures=figures, bar_px=bars_plot.BAR, row_px=timeline_plot.ROW)
    environment.tests["listing"] = lambda entry: isinstance(entry, list)
    environment.filters.update(figure=figures.text, prose=_prose)
    style, script = _source("page.css"), _source("page.js")
    return environment.get_template("page.html.j2").render(
        report=report,
        sections=_sections(report, folder),
        other_cards=_cards_without_table(report),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _sections(report: Report, folder: Path) -> list[dict[str, Any]]:
    """What the template needs of each part: its kind, an anchor, and what is drawn."""
    colours = _colours(report)
    return [
        {"id": f"part-{index}", "kind": KINDS[type(part)], "part": part, **_drawn(part, folder, colours)}
        for index, part in enumerate(report.parts, 1)
    ]


def _drawn(part: Part, folder: Path, colours: Mapping[str, int]) -> dict[str, Any]:
    if isinstance(part, Table):
        return {"kinds": figures.interval_kinds(part, part.columns)}
    if isinstance(part, Grid):
        return {"pictures": [[path and embed(folder / path) for path in row] for row in part.pictures]}
    if isinstance(part, Bars):
        plots = {name: bars_plot.lay_out(part, width, colours) for name, width in WIDTHS.items()}
        return {"plots": plots, "legend": _legend(list(part.values), colours)}
    if isinstance(part, Curves):
        curves = {name: curves_plot.lay_out(part, width, colours) for name, width in WIDTHS.items()}
        return {"plots": curves, "legend": _legend(list(part.lines), colours)}
    if isinstance(part, Timeline):
        rows = {name: timeline_plot.lay_out(part, width, colours) for name, width in WIDTHS.items()}
        return {"plots": rows, "legend": timeline_plot.legend(part, colours)}
    drawings = {name: scatter_plot.lay_out(part, width, colours) for name, width in WIDTHS.items()}
    return {"plots": drawings, "legend": _legend([point.series for point in part.points], colours)}


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


def _legend(series: list[str], colours: Mapping[str, int]) -> list[tuple[str, str]]:
    """Names with the classes of their colours, where there is more than one to tell apart."""
    names = [name for name in dict.fromkeys(series) if name]
    return [(name, f"c{colours[name]}") for name in names] if len(names) > 1 else []


def _cards_without_table(report: Report) -> dict[str, Any]:
    shown = {part.card for part in report.parts if isinstance(part, Table)}
    return {name: card for name, card in report.cards.items() if name not in shown}


def _prose(text: str) -> Markup:
    """Escaped text in which `words between backticks` are set as code."""
    return Markup(re.sub("`([^`\n]+)`", r"<code>\1</code>", str(escape(text))))


def _source(name: str) -> str:
    return (resources.files("asdm_cli.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    """The way in which a page's policy names an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"
