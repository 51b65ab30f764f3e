"""report.html: one file that needs nothing else, for a browser that is offline.

Whatever the report says is data: the template escapes it, and the page's own policy lets the browser run no script and
fetch no file but what this module put there.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from asdm_cli.data.images import UnreadableError, read_file
from asdm_cli.records import Report
from asdm_cli.report import charts, tables
from asdm_cli.report.charts import Chart
from asdm_cli.report.tables import Table

GENERATOR = '<meta name="generator" content="asdm">'
"""Near a page's beginning: it is ours."""
LARGEST_PX, SMALL_PX, WEBP_QUALITY = 256, 128, 85
"""Larger images are shrunk to the first; up to the second they are stored without loss."""


@dataclass(frozen=True)
class Entry:
    """A heading with a plot, a table, or a plot with its figures behind it."""

    id: str
    title: str
    chart: Chart | None = None
    table: Table | None = None
    note: str = ""


@dataclass(frozen=True)
class Picture:
    uri: str
    width: int
    height: int
    """Of the original, px."""


def render(report: Report, folder: Path) -> str:
    """The page as text. Paths of images start at `folder`."""
    environment = Environment(
        loader=PackageLoader("asdm_cli.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(prose=_prose, breakable=_breakable)
    title, summary = tables.headline(report)
    entries = list(_entries(report))
    opened = [
        entry for entry in (_first(entries, "figures", "part"), _first(entries, "plot", "curve", "timeline")) if entry
    ]
    style, script = _source("report.css"), _source("report.js")
    grid = tables.images(report, folder)
    return environment.get_template("report.html.j2").render(
        report=report,
        title=title,
        summary=summary,
        prompts=grid.prompts if grid else [],
        pictures={name: [file and _picture(file) for file in row] for name, row in grid.rows.items()} if grid else {},
        opened=opened,
        folded=[entry for entry in entries if entry not in opened],
        cards=tables.cards(report),
        generator=GENERATOR,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def is_ours(page: Path) -> bool:
    """Whether a file is a page that `render` gave."""
    with page.open("rb") as file:
        return GENERATOR.encode() in file.read(1024)


def _entries(report: Report) -> Iterable[Entry]:
    """All that is on a page below its title, what matters most first; an id begins with what kind of thing it is."""
    parts, plots, curves = tables.parts(report), tables.scatters(report), tables.curves(report)
    names = [point.series for plot in plots for point in plot.points if point.series]
    names += [name for plot in curves for name in plot.lines] + [
        name for _, bars in parts if bars for name in bars.values
    ]
    names += [word for timeline in report.timelines for word in timeline.letters.values()]
    colours = {name: place % charts.COLOURS for place, name in enumerate(dict.fromkeys(names))}
    if lead := tables.main(report):
        yield Entry("figures", lead.title, table=lead, note=lead.note)
    for place, plot in enumerate(plots):
        yield Entry(f"plot-{place}", plot.title, charts.scatter(plot, colours), plot.table, plot.note)
    for place, table in enumerate([*tables.everything(report), *tables.comparisons(report)]):
        yield Entry(f"table-{place}", table.title, table=table, note=table.note)
    for place, (table, bars) in enumerate(parts):
        yield Entry(f"part-{place}", table.title, charts.bars(bars, colours) if bars else None, table)
    for place, curve in enumerate(curves):
        yield Entry(f"curve-{place}", curve.title, charts.curves(curve, colours), curve.table)
    for place, each in enumerate(report.timelines):
        table = tables.timeline_table(each)
        yield Entry(f"timeline-{place}", each.title, charts.timeline(each, colours), table, each.note)
    for place, table in enumerate(tables.facts(report)):
        yield Entry(f"fact-{place}", table.title, table=table)


def _first(entries: Iterable[Entry], *kinds: str) -> Entry | None:
    found = [entry for kind in kinds for entry in entries if entry.id.startswith(kind)]
    return found[0] if found else None


def _picture(file: Path) -> Picture | None:
    """Decoded and written anew, so that only pixels reach the page; None for what cannot be read."""
    try:
        image = read_file(file)
    except (UnreadableError, OSError):
        return None
    size, buffer = image.size, io.BytesIO()
    image.thumbnail((LARGEST_PX, LARGEST_PX), Image.Resampling.LANCZOS)
    kind = "png" if max(size) <= SMALL_PX else "webp"
    image.save(buffer, kind, **{"optimize": True} if kind == "png" else {"quality": WEBP_QUALITY})
    return Picture(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", *size)


def _prose(text: str) -> Markup:
    """Escaped text in which `words between backticks` are set as code, and figures keep their units beside them."""
    together = re.sub(r"(?<=\d) (?=(?:%|dB|ms|MB|GB|M|G)(?!\w))", "\u00a0", str(escape(text)))
    return Markup(re.sub("`([^`\n]+)`", r"<code>\1</code>", together))


def _breakable(text: str) -> Markup:
    """Escaped text in which an address like down_blocks.0.conv1 may be broken behind its points."""
    return Markup(re.sub(r"(?<=\w)\.(?=[^\W\d])|(?<=[^\W\d])\.(?=\d)", ".<wbr>", str(escape(text))))


def _source(name: str) -> str:
    return (resources.files("asdm_cli.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    """The way in which a page's policy names an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"
