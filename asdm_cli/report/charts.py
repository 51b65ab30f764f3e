"""Plots by matplotlib: as SVG that stands inside a page, where text is the page's, colours are its variables, and
nothing is a style or an id that could meet another plot's; and as PDF for a paper."""

from __future__ import annotations

import io
import math
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
from cycler import cycler
from markupsafe import Markup, escape
from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path as Outline
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from asdm_cli.records import Record, Timeline
from asdm_cli.report.metrics import metric, shown, spread
from asdm_cli.report.plots import COLOURS, Bars, Curves, Point, Scatter

WIDTHS = {"wide": 720, "narrow": 348}
"""Every plot is drawn twice, px wide; the style sheet shows the one that fits the screen."""
INK, SOFT, RULE, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = [f"#0a00{index:02x}" for index in range(COLOURS)]
VARIABLES = {INK: "ink", SOFT: "soft", RULE: "rule", PAPER: "paper"} | {c: f"c{i}" for i, c in enumerate(SERIES)}
"""Colours that stand for the page's variables, which a light and a dark screen fill differently."""
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "asdm",
    "text.parse_math": False,
    "font.size": 12,
    "text.color": INK,
    "axes.titlesize": 12,
    "axes.titlecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": SOFT,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=SERIES),
    "grid.color": RULE,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "path.simplify": False,
}
PRINTED = ["#3b6fb6", "#d2691e", "#3a8f6b", "#b5487f", "#8a6fc4", "#a3851a", "#4796a8", "#7d7d7d", "#b0413e", "#5d7a2c"]
"""The page's on white."""
INKS = {INK: "#1d1f21", SOFT: "#5b6067", RULE: "#e2e2dc"}
PAPER_STYLE = {
    **{key: INKS.get(value, value) if isinstance(value, str) else value for key, value in STYLE.items()},
    "axes.prop_cycle": cycler(color=PRINTED),
    "font.size": 9,
    "axes.titlesize": 9,
    "pdf.fonttype": 42,  # letters stay letters, as journals ask
}
PRINTED_WIDTH = 468
"""Points: a page of text between its margins."""
CREATOR = "asdm show"
MADE = f"/Creator ({CREATOR})".encode()
"""Somewhere in a file of plots: it is ours."""
MOST_POINTS = 300
"""Of a line; a longer one is thinned to means, with the reach of what each stands for behind it."""
LONGEST, LEGEND = 26, 4
SIDES = (
    ("left", "center"),
    ("right", "center"),
    ("center", "bottom"),
    ("center", "top"),
    *product(("left", "right"), ("bottom", "top")),
)
"""Where a name may stand beside its point: which side of the name is next to it; the first that is free."""
ROOM = 4
"""Between a name and another's point, px."""
AWAY = {"left": 8, "right": -8, "bottom": 9, "top": -9, "center": 0}
TIP = "tip: "
"""What an id begins with that is to be shown when something is pointed at."""


@dataclass(frozen=True)
class Drawing:
    """A plot that is drawn where it is shown. `label` says in words what it is; `names` are those of its colours, each
    with its place among them; `draw` gives the points that are to be named once their places are known; `height` is 0
    where the width says it."""

    label: str
    names: list[tuple[str, int]]
    draw: Callable[[Axes], list[Point] | None]
    height: float = 0


@dataclass(frozen=True)
class Chart:
    """The same plot at both widths, and the names of its colours where there is more than one to tell apart."""

    drawn: list[Markup]
    legend: list[tuple[str, str]]


def scatter(view: Scatter, colours: Mapping[str, int]) -> Drawing:
    label = f"{view.title}. Across: {view.x}, up: {view.y}. {len(view.points)} points."
    series = dict.fromkeys(point.series for point in view.points if point.series) if view.lines else ()
    return Drawing(label, _named(series, colours), lambda axes: _scatter(axes, view, colours))


def curves(view: Curves, colours: Mapping[str, int]) -> Drawing:
    figure = metric(view.metric)
    label = f"{view.title}{', logarithmic' if figure.log else ''}, by {figure.axis}. {len(view.lines)} lines."
    return Drawing(label, _named(view.lines, colours), lambda axes: _curves(axes, view, colours))


def bars(view: Bars, colours: Mapping[str, int]) -> Drawing:
    height = len(view.categories) * (len(view.values) * 14 + 10) + 50
    label = f"{view.title}, {metric(view.metric).label}{view.which}. {len(view.categories)} groups of bars."
    return Drawing(label, _named(view.values, colours), lambda axes: _bars(axes, view, colours), height)


def timeline(view: Timeline, colours: Mapping[str, int]) -> Drawing:
    words = [word for letter, word in view.letters.items() if any(letter in row for row in view.rows.values())]
    label = f"{view.title}, {max(map(len, view.rows.values()), default=0)} by {view.axis}. {len(view.rows)} rows."
    height = 16 * len(view.rows) + 50
    return Drawing(label, _named(words, colours), lambda axes: _timeline(axes, view, colours), height)


def _named(names: Iterable[str], colours: Mapping[str, int]) -> list[tuple[str, int]]:
    return [(name, colours[name]) for name in names]


def inline(drawing: Drawing) -> Chart:
    """For a page."""
    drawn = []
    for name, width in WIDTHS.items():
        buffer = io.StringIO()
        with _figure(drawing, width, STYLE) as figure:
            figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        drawn.append(_inline(buffer.getvalue(), name, drawing.label))
    legend = [(name, f"c{place}") for name, place in drawing.names]
    return Chart(drawn, legend if len(legend) > 1 else [])


def to_pdf(drawings: Iterable[tuple[str, Drawing]], file: Path) -> None:
    """Each under its title on a page as large as it."""
    with rc_context(PAPER_STYLE), PdfPages(file, metadata={"Creator": CREATOR}) as pages:  # fonts are stored at its end
        for title, drawing in drawings:
            with _figure(drawing, PRINTED_WIDTH, PAPER_STYLE, title) as figure:
                pages.savefig(figure)


@contextmanager
def _figure(drawing: Drawing, width: float, style: Mapping[str, Any], title: str = "") -> Iterator[Figure]:
    """Laid out; for a paper, which has no page around it, with a title and the names of its colours."""
    with rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that matplotlib's own font lacks is set in the page's
        size = width / 72, (drawing.height or min(max(0.6 * width, 270), 400)) / 72
        figure = Figure(size, layout="constrained")
        axes = figure.subplots()
        points = drawing.draw(axes) or []
        if title:
            figure.suptitle(title, x=0.01, ha="left")
            if len(drawing.names) > 1:
                marks = [Patch(color=f"C{place}", label=name) for name, place in drawing.names]
                figure.legend(handles=marks, loc="outside lower left", ncols=LEGEND, frameon=False)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # it is laid out: once is enough
        _name_points(axes, points)
        for text in axes.texts if title else ():  # a page's style sheet does this, and keeps them text
            text.set_path_effects([withStroke(linewidth=2, foreground="white")])
        yield figure


def _scatter(axes: Axes, view: Scatter, colours: Mapping[str, int]) -> list[Point]:
    """The points that are to be named when their places are known."""
    for series, line in view.lines.items():
        places = [[point.x.value for point in line], [point.y.value for point in line]]
        axes.plot(*places, color=f"C{colours[series]}", linewidth=1.5, zorder=2)
    for point in view.points:
        colour = "C0"
        if view.lines:
            colour = f"C{colours[point.series]}" if point.series else rcParams["text.color"]
        place, alpha = (point.x.value, point.y.value), 1.0 if point.front else 0.4
        reach = {"xerr": _reach(point.x), "yerr": _reach(point.y)}
        axes.errorbar(*place, **reach, fmt="none", ecolor=colour, elinewidth=1, capsize=2.5, alpha=0.6 * alpha)
        (mark,) = axes.plot(*place, "o", color=colour, markersize=7 if point.front else 5, alpha=alpha, zorder=3)
        said = ", ".join(f"{shown(each)} ({spread(each)})".removesuffix(" ()") for each in (point.x, point.y))
        mark.set_gid(f"{TIP}{point.name}: {said}")
    axes.margins(0.08)
    _axes(axes, view.x, view.y)
    return [point for point in view.points if point.front]


def _reach(record: Record) -> list[list[float]] | None:
    if record.low is None or record.high is None or not math.isfinite(record.high - record.low):
        return None
    return [[max(0.0, record.value - record.low)], [max(0.0, record.high - record.value)]]


def _name_points(axes: Axes, points: Sequence[Point]) -> None:
    """Each name beside its point where there is room for it; the others are in the table, and in tips."""
    room, taken = axes.get_window_extent(), dict[str, Bbox]()
    dots = [axes.transData.transform((point.x.value, point.y.value)) for point in points]
    for point, (across, up) in product(points, SIDES):
        if point.name in taken:
            continue
        away = {"xytext": (AWAY[across], AWAY[up]), "textcoords": "offset points", "ha": across, "va": up}
        text = axes.annotate(point.name, (point.x.value, point.y.value), **away)
        box = text.get_window_extent()
        inside = room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1
        if (
            inside
            and not box.count_overlaps(list(taken.values()))
            and not any(box.padded(ROOM).contains(*dot) for dot in dots)
        ):
            taken[point.name] = box
        else:
            text.remove()


def _curves(axes: Axes, view: Curves, colours: Mapping[str, int]) -> None:
    figure = metric(view.metric)
    for name, line in view.lines.items():
        points, colour = np.array([(each.at, each.value) for each in line], dtype=float), f"C{colours[name]}"
        points = points[np.isfinite(points).all(1) & ((points[:, 1] > 0) | (not figure.log))]
        if len(points) > MOST_POINTS:
            chunks = np.array_split(points, MOST_POINTS)
            low, high = ([getattr(chunk[:, 1], end)() for chunk in chunks] for end in ("min", "max"))
            points = np.array([chunk.mean(0) for chunk in chunks])
            axes.fill_between(points[:, 0], low, high, color=colour, alpha=0.2, linewidth=0)
        marker = "" if len(points) > 1 else "o"
        axes.plot(points[:, 0], points[:, 1], color=colour, linewidth=1.5, marker=marker, gid=TIP + name)
    axes.margins(x=0.01)
    _axes(axes, figure.axis, figure.label)
    if figure.log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(10, (1,) if high / low > 1000 else (1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(_tick))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _axes(axes: Axes, x: str, y: str) -> None:
    """What is up stands above the plot, level, where it can be read."""
    axes.set_xlabel(x, loc="right")
    axes.set_title(y, loc="left")
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_tick))


def _tick(value: float, _place: int | None = None) -> str:
    text = f"{value:,.10g}" if 1e-4 <= abs(value) < 1e7 or not value else f"{value:.3g}"
    return text.replace("-", "−")


def _bars(axes: Axes, view: Bars, colours: Mapping[str, int]) -> None:
    names, count = view.categories, len(view.values)
    for place, (series, row) in enumerate(view.values.items()):
        lengths = [max(0.0, each.value) if each and math.isfinite(each.value) else 0.0 for each in row]
        at = [index + (place - (count - 1) / 2) * 0.8 / count for index in range(len(names))]
        drawn = axes.barh(at, lengths, 0.8 / count - 0.04, color=f"C{colours[series]}")
        texts = [shown(each) if each else "" for each in row]
        axes.bar_label(
            drawn, texts, padding=4, fontsize=0.92 * rcParams["font.size"], color=rcParams["axes.labelcolor"]
        )
    axes.margins(x=0.15)
    axes.set_xticks([])
    axes.spines["left"].set_visible(True)
    axes.set_title(metric(view.metric).label + view.which, loc="left")
    _rows(axes, names)


def _timeline(axes: Axes, view: Timeline, colours: Mapping[str, int]) -> None:
    """One outline for each letter, around all the calls that have it."""
    calls = max(map(len, view.rows.values()), default=0)
    boxes: dict[str, list[Outline]] = {}
    for row, cells in enumerate(view.rows.values()):
        for letter, run in groupby(enumerate(cells), lambda cell: cell[1]):
            at = [place for place, _ in run]
            corners = Outline.unit_rectangle().vertices * (len(at) - 0.08, 0.8) + (at[0] + 0.04, row - 0.4)
            boxes.setdefault(letter, []).append(Outline(corners, Outline.unit_rectangle().codes))
    for letter, outlines in boxes.items():
        word = view.letters[letter]
        outline = Outline.make_compound_path(*outlines)
        axes.add_patch(PathPatch(outline, facecolor=f"C{colours[word]}", edgecolor="none", gid=TIP + word))
    axes.set_xlim(0, max(calls, 1))
    axes.set_xlabel(view.axis, loc="right")
    shown_calls = range(0, calls, max(1, calls // 10))
    axes.set_xticks([call + 0.5 for call in shown_calls], [str(call) for call in shown_calls])
    axes.tick_params(axis="x", length=0)
    _rows(axes, view.rows)


def _rows(axes: Axes, names: Iterable[str]) -> None:
    """One below the other, the first on top, their names cut where they are long."""
    cut = [name if len(name) <= LONGEST else name[: LONGEST - 1] + "…" for name in names]
    axes.set_yticks(range(len(cut)), cut, color=rcParams["text.color"])
    axes.set_ylim(max(len(cut), 1) - 0.5, -0.5)
    axes.spines["bottom"].set_visible(False)


def _inline(source: str, name: str, label: str) -> Markup:
    """The drawing as a part of a page: no style attribute, which the page's policy would refuse, and no id but those
    that something refers to."""
    _, width, height = re.findall(r'viewBox="0 0 (([\d.]+) ([\d.]+))"', source)[0]
    salt = f"{name}-{zlib.crc32((label + source).encode()):x}-"
    svg = re.sub(r"(?s)^.*?<svg[^>]*>|<metadata>.*?</metadata>|<style.*?</style>|</svg>\s*$", "", source)
    svg = re.sub(rf'<g id="{TIP}([^"]*)">', r"<g><title>\1</title>", svg)
    own = set(re.findall(r'(?:href="#|url\(#)(\w+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{salt}{found[1]}"' if found[1] in own else "", svg)
    svg = re.sub(r'(?:xlink:)?(href="#|url\(#)', rf"\g<1>{salt}", svg)
    svg = re.sub(r' style="([^"]*)"', lambda found: _attributes(found[1]), svg)
    svg = re.sub(r' (?:d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d)\d+|\n", r"\1", found[0]), svg)
    svg = re.sub('"(#0[0-9a-f]{5})"', lambda found: f'"var(--{VARIABLES[found[1]]})"', svg)
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return Markup(f'<svg class="{name}" role="img" aria-label="{escape(label)}" {size}>{svg}</svg>')


def _attributes(style: str) -> str:
    """A style as attributes, which a page may have; the font is the page's."""
    entries = [[word.strip() for word in entry.split(":", 1)] for entry in style.split(";") if entry.strip()]
    return "".join(f' {key}="{value.removesuffix("px")}"' for key, value in entries if key != "font-family")
