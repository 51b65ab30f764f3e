"""report.html: one file that needs nothing else, for a browser that is offline.

Whatever the report says is data: the template escapes it, and the page's own policy lets the browser run no script and
fetch no file but what this module put there.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from itertools import chain
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape
from PIL import Image

from asdm_cli.data.images import UnreadableError, read_file
from asdm_cli.records import Card, Images, Report
from asdm_cli.report import charts, plots, tables
from asdm_cli.report.charts import Chart, Drawing
from asdm_cli.report.tables import Table
from asdm_cli.report.words import headline, ranked, unbroken

GENERATOR = '<meta name="generator" content="asdm">'
MADE = GENERATOR.encode()
"""Somewhere in a page: it is ours."""
ROWS = 4
"""Set-ups whose pictures are seen at once."""
LARGEST_PX, SMALL_PX, WEBP_QUALITY = 256, 128, 85
"""Larger images are shrunk to the first; up to the second they are stored without loss."""


@dataclass(frozen=True)
class Entry:
    """A table under its title, or a plot with the table of its figures behind it."""

    id: str
    table: Table
    drawing: Drawing | None = None
    note: str = ""

    @cached_property
    def chart(self) -> Chart | None:
        return charts.inline(self.drawing) if self.drawing else None


@dataclass(frozen=True)
class Picture:
    uri: str
    width: int
    height: int
    """Of the original, px."""


def render(report: Report, folder: Path) -> str:
    """The page as text. Paths of images start at `folder`."""
    found = list(entries(report))
    opened = _first(found, "figures", "part")
    opened += _first([entry for entry in found if entry not in opened], "plot", "curve", "timeline", "part")
    title, summary = headline(report)
    images, others = _images(report, folder)
    style, script = _source("report.css"), _source("report.js")
    return _template().render(
        report=report,
        title=title,
        summary=summary,
        images=images,
        others=others,
        opened=opened,
        folded=[entry for entry in found if entry not in opened],
        cards=[card(name, held) for name, held in report.protocols.items()],
        generator=GENERATOR,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


@cache
def _template() -> Template:
    environment = Environment(loader=PackageLoader("asdm_cli.report"), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters.update(prose=_prose, breakable=_breakable)
    return environment.get_template("report.html.j2")


def card(name: str, held: Card) -> Table:
    return tables.pairs(name, {key.replace("_", " "): value for key, value in held.items()})


def colours_of(together: Sequence[Sequence[str]]) -> dict[str, int]:
    """Of names that stand in plots, those of one plot `together`: one for each on the whole page, and another for each
    in a plot, as far as there are enough."""
    found: dict[str, int] = {}
    for name in dict.fromkeys(chain(*together)):
        beside = Counter(found[other] for names in together if name in names for other in names if other in found)
        used = Counter(found.values())
        found[name] = min(range(plots.COLOURS), key=lambda colour: (beside[colour], used[colour]))
    return found


def entries(report: Report) -> Iterator[Entry]:
    """All that is on a page below its title, what matters most first; an id begins with what kind of thing it is."""
    scatters, curves = plots.scatters(report), plots.curves(report)
    parts = {
        title: (tables.of_parts(title, found), plots.bars(title, found))
        for title, found in tables.parts(report).items()
    }
    together = [[point.series for point in plot.points if point.series] for plot in scatters if plot.lines]
    together += [[*plot.lines] for plot in curves]
    together += [[*bars.values] for _, bars in parts.values() if bars]
    together += [[*timeline.letters.values()] for timeline in report.timelines]
    colours = colours_of(together)
    if lead := tables.main(report):
        yield Entry("figures", lead)
    for place, table in enumerate(tables.others(report)):
        yield Entry(f"others-{place}", table)
    for place, plot in enumerate(scatters):
        yield Entry(f"plot-{place}", plot.table, charts.scatter(plot, colours), plot.note)
    for place, table in enumerate(tables.everything(report)):
        yield Entry(f"all-{place}", table)
    for place, table in enumerate(plots.comparisons(report)):
        yield Entry(f"table-{place}", table)
    for place, (table, bars) in enumerate(parts.values()):
        yield Entry(f"part-{place}", table, charts.bars(bars, colours) if bars else None)
    for place, curve in enumerate(curves):
        yield Entry(f"curve-{place}", curve.table, charts.curves(curve, colours))
    for place, each in enumerate(report.timelines):
        table = tables.pairs(each.title, each.rows)
        yield Entry(f"timeline-{place}", table, charts.timeline(each, colours), each.note)
    for place, table in enumerate(tables.facts(report)):
        yield Entry(f"fact-{place}", table)


def _first(entries: Iterable[Entry], *kinds: str) -> list[Entry]:
    """The first of the first of these kinds, if there is any."""
    return [entry for kind in kinds for entry in entries if entry.id.startswith(kind)][:1]


def _images(report: Report, folder: Path) -> list[dict[str, list[Picture | None]]]:
    """Those that are seen at once, and the others, by the name of the set-up, references last; None where there is no
    image, or none that can be read."""
    held = report.images or Images([], {})
    names = sorted(held.folders, key=lambda name: tables.is_reference(report, name)) if held.prompts else []
    ours, places = [name for name in names if not tables.is_reference(report, name)], range(len(held.prompts))
    matter = dict.fromkeys([*ours[:1], *ranked(report)[:2], *names[-1:], *ours[-1:], *names])
    first = [name for name in matter if name in names][:ROWS]
    grids = [[name for name in names if (name in first) == seen] for seen in (True, False)]
    return [
        {name: [_picture(folder / held.folders[name] / f"{place:06d}.png") for place in places] for name in grid}
        for grid in grids
    ]


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
    together = re.sub(r"(?<=\d)–(?=\d)", "\u2060–\u2060", unbroken(str(escape(text))))
    return Markup(re.sub("`([^`\n]+)`", r"<code>\1</code>", together))


def _breakable(text: str) -> Markup:
    """Escaped text in which an address like down_blocks.0.conv1 may be broken behind its points."""
    return Markup(re.sub(r"(?<=\w)\.(?=[^\W\d])|(?<=[^\W\d])\.(?=\d)", ".<wbr>", str(escape(text))))


def _source(name: str) -> str:
    return (resources.files("asdm_cli.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    """The way in which a page's policy names an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"
