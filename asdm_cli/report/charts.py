"""Plots by matplotlib, as SVG that stands inside a page: text is the page's, colours are its variables, and nothing
in it is a style or an id that could meet another plot's."""

from __future__ import annotations

import io
import math
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from xml.etree import ElementTree

import numpy as np
from cycler import cycler
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from asdm_cli.records import Timeline
from asdm_cli.report.metrics import shown, spread
from asdm_cli.report.tables import Bars, Curves, Point, Scatter

WIDTHS = {"wide": 720, "narrow": 348}
"""Every plot is drawn twice, px wide; the style sheet shows the one that fits the screen."""
COLOURS = 8
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
    "axes.labelcolor": SOFT,
    "axes.edgecolor": SOFT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=[INK]),
    "grid.color": RULE,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "path.simplify": False,
}
MOST_POINTS = 300
"""Of a line; a longer one is thinned to means, with the reach of what each stands for behind it."""
MOST_BARS, LONGEST = 24, 26
SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"
TIP = "tip: "
"""What an id begins with that is to be shown when something is pointed at."""


@dataclass(frozen=True)
class Chart:
    """The same plot at both widths, and the names of its colours where there is more than one to tell apart."""

    drawn: dict[str, Markup]
    legend: list[tuple[str, str]]


def scatter(view: Scatter, colours: Mapping[str, int]) -> Chart:
    label = f"{view.title}. Across: {view.x}, up: {view.y}. {len(view.points)} points."
    legend = [
        (series, f"c{colours[series]}") for series in dict.fromkeys(each.series for each in view.points if each.series)
    ]
    return _chart(label, legend, lambda axes: _scatter(axes, view, colours))


def curves(view: Curves, colours: Mapping[str, int]) -> Chart:
    label = (
        f"{view.title}. Across: {view.x}, up: {view.y}{', logarithmic' if view.log else ''}. {len(view.lines)} lines."
    )
    return _chart(label, _legend(view.lines, colours), lambda axes: _curves(axes, view, colours))


def bars(view: Bars, colours: Mapping[str, int]) -> Chart:
    rows = min(len(view.categories), MOST_BARS) * (len(view.values) * 14 + 10)
    label = f"{view.title}, {view.unit}. {len(view.categories)} groups of bars."
    return _chart(label, _legend(view.values, colours), lambda axes: _bars(axes, view, colours), rows + 50)


def timeline(view: Timeline, colours: Mapping[str, int]) -> Chart:
    words = [word for letter, word in view.letters.items() if any(letter in row for row in view.rows.values())]
    label = f"{view.title}, {max(map(len, view.rows.values()), default=0)} UNet calls. {len(view.rows)} rows."
    legend = [(word, f"c{colours[word]}") for word in words]
    return _chart(label, legend, lambda axes: _timeline(axes, view, colours), 16 * len(view.rows) + 50)


def _legend(names: Iterable[str], colours: Mapping[str, int]) -> list[tuple[str, str]]:
    found = [(name, f"c{colours[name]}") for name in names]
    return found if len(found) > 1 else []


def _chart(label: str, legend: list[tuple[str, str]], draw: Callable[[Axes], None], height: float = 0) -> Chart:
    drawn = {}
    for name, width in WIDTHS.items():
        with rc_context(STYLE), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a letter that matplotlib's own font lacks is set in the page's
            figure = Figure((width / 72, (height or min(max(0.6 * width, 270), 400)) / 72), layout="constrained")
            draw(figure.subplots())
            buffer = io.StringIO()
            figure.savefig(
                buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")), transparent=True
            )
        drawn[name] = _inline(buffer.getvalue(), name, label)
    return Chart(drawn, legend)


def _scatter(axes: Axes, view: Scatter, colours: Mapping[str, int]) -> None:
    by_name = {point.name: point for point in view.points}
    for series, names in view.lines.items():
        line = [by_name[name] for name in names]
        axes.plot(
            [each.x.value for each in line],
            [each.y.value for each in line],
            color=SERIES[colours[series]],
            linewidth=1.5,
            zorder=2,
        )
    for point in view.points:
        colour = SERIES[colours[point.series]] if point.series else INK if view.lines else SERIES[0]
        reach = {"xerr": _reach(point.x), "yerr": _reach(point.y)}
        alpha = 1.0 if point.front else 0.4
        place = (point.x.value, point.y.value)
        axes.errorbar(*place, **reach, fmt="none", ecolor=colour, elinewidth=1, capsize=2.5, alpha=0.6 * alpha)
        (mark,) = axes.plot(*place, "o", color=colour, markersize=7 if point.front else 5, alpha=alpha, zorder=3)
        mark.set_gid(f"{TIP}{point.name}: {_said(point)}")
    axes.margins(0.08)
    _axes(axes, view.x, view.y)
    _name_points(axes, [point for point in view.points if point.front])


def _reach(record: Any) -> list[list[float]] | None:
    if record.low is None or record.high is None or not all(map(math.isfinite, (record.low, record.high))):
        return None
    return [[max(0.0, record.value - record.low)], [max(0.0, record.high - record.value)]]


def _said(point: Point) -> str:
    return ", ".join(f"{shown(each)}{f' ({reach})' if (reach := spread(each)) else ''}" for each in (point.x, point.y))


def _name_points(axes: Axes, points: Sequence[Point]) -> None:
    """Each name beside its point where there is room for it; the others are in the table, and in tips."""
    figure = axes.figure
    figure.draw_without_rendering()
    renderer, room = figure._get_renderer(), axes.get_window_extent()
    along = sorted(points, key=lambda point: point.x.value)
    dots = [axes.transData.transform((point.x.value, point.y.value)) for point in along]
    taken: list[Any] = []
    for point in along:
        place = (point.x.value, point.y.value)
        for offset, sides in (
            ((8, 0), ("left", "center")),
            ((-8, 0), ("right", "center")),
            ((0, 9), ("center", "bottom")),
            ((0, -9), ("center", "top")),
            ((8, 9), ("left", "bottom")),
            ((-8, -9), ("right", "top")),
            ((8, -9), ("left", "top")),
            ((-8, 9), ("right", "bottom")),
        ):
            text = axes.annotate(point.name, place, offset, textcoords="offset points", ha=sides[0], va=sides[1])
            box = text.get_window_extent(renderer)
            inside = room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1
            if (
                inside
                and not any(box.overlaps(other) for other in taken)
                and not any(box.contains(*dot) for dot in dots)
            ):
                taken.append(box)
                break
            text.remove()


def _curves(axes: Axes, view: Curves, colours: Mapping[str, int]) -> None:
    for name, line in view.lines.items():
        points, colour = np.array(line, dtype=float), SERIES[colours[name]]
        points = points[np.isfinite(points).all(1) & ((points[:, 1] > 0) | (not view.log))]
        if len(points) > MOST_POINTS:
            chunks = np.array_split(points, MOST_POINTS)
            low, high = ([getattr(chunk[:, 1], end)() for chunk in chunks] for end in ("min", "max"))
            points = np.array([chunk.mean(0) for chunk in chunks])
            axes.fill_between(points[:, 0], low, high, color=colour, alpha=0.2, linewidth=0)
        (drawn,) = axes.plot(
            points[:, 0], points[:, 1], color=colour, linewidth=1.5, marker="" if len(points) > 1 else "o"
        )
        drawn.set_gid(TIP + name)
    if view.log:
        axes.set_yscale("log")
    axes.margins(x=0.01)
    _axes(axes, view.x, view.y, view.log)


def _axes(axes: Axes, x: str, y: str, log: bool = False) -> None:
    """What is up stands above the plot, level, where it can be read."""
    axes.set_xlabel(x, loc="right")
    axes.set_title(y, loc="left", fontsize=12, color=SOFT)
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    if log:
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(10, (1,) if high / low > 1000 else (1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _tick(value: float, _place: int | None = None) -> str:
    text = f"{value:,.10g}" if 1e-4 <= abs(value) < 1e7 or not value else f"{value:.3g}"
    return text.replace("-", "−")


def _bars(axes: Axes, view: Bars, colours: Mapping[str, int]) -> None:
    names, count = view.categories[:MOST_BARS], len(view.values)
    for place, (series, row) in enumerate(view.values.items()):
        heights = [max(0.0, each) if each is not None and math.isfinite(each) else 0.0 for each in row[: len(names)]]
        at = [index + (place - (count - 1) / 2) * 0.8 / count for index in range(len(names))]
        drawn = axes.barh(at, heights, 0.8 / count - 0.04, color=SERIES[colours[series]])
        axes.bar_label(drawn, view.texts[series][: len(names)], padding=4, fontsize=11, color=SOFT)
    axes.set_yticks(range(len(names)), [_cut(name) for name in names], color=INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.15)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_visible(True)
    axes.set_title(view.unit, loc="left", fontsize=12, color=SOFT)


def _timeline(axes: Axes, view: Timeline, colours: Mapping[str, int]) -> None:
    """One outline for each letter, around all the calls that have it."""
    calls = max(map(len, view.rows.values()), default=0)
    for letter, word in view.letters.items():
        boxes = [
            Outline.unit_rectangle().vertices * (len(group) - 0.08, 0.8) + (group[0] + 0.04, row - 0.4)
            for row, cells in enumerate(view.rows.values())
            for found, group in (
                (found, [place for place, _ in run]) for found, run in groupby(enumerate(cells), lambda cell: cell[1])
            )
            if found == letter
        ]
        if boxes:
            outline = Outline.make_compound_path(*(Outline(box, Outline.unit_rectangle().codes) for box in boxes))
            patch = PathPatch(outline, facecolor=SERIES[colours[word]], edgecolor="none")
            patch.set_gid(TIP + word)
            axes.add_patch(patch)
    axes.set_xlim(0, max(calls, 1))
    axes.set_ylim(max(len(view.rows), 1) - 0.5, -0.5)
    axes.set_yticks(range(len(view.rows)), [_cut(name) for name in view.rows], color=INK)
    axes.set_xlabel("UNet call", loc="right")
    every = max(1, calls // 10)
    axes.set_xticks([call + 0.5 for call in range(0, calls, every)], [str(call) for call in range(0, calls, every)])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", length=0)


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _inline(source: str, name: str, label: str) -> Markup:
    """The drawing as a part of a page: no style attribute, which the page's policy would refuse, and no id but those
    that something refers to."""
    ElementTree.register_namespace("", SVG.strip("{}"))
    root, salt = ElementTree.fromstring(source), f"{name}-{zlib.crc32((label + source).encode()):x}-"
    used = {
        found
        for each in root.iter()
        for value in each.attrib.values()
        for found in re.findall(r"^#(\w+)|url\(#(\w+)\)", value)
    }
    own = {first or second for first, second in used}
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in (f"{SVG}metadata", f"{SVG}style")]:
            parent.remove(child)
    for each in list(root.iter()):
        _restyle(each)
        for key, value in list(each.attrib.items()):
            if key in ("d", "x", "y"):
                each.set(key, re.sub(r"(\.\d)\d+", r"\1", value).replace("\n", ""))
            elif key == LINK:
                del each.attrib[key]
                each.set("href", f"#{salt}{value[1:]}")
            elif key == "clip-path":
                each.set(key, value.replace("#", f"#{salt}"))
        key = each.attrib.pop("id", "")
        if key in own:
            each.set("id", salt + key)
        if key.startswith(TIP):
            title = ElementTree.Element(f"{SVG}title")
            title.text = key.removeprefix(TIP)
            each.insert(0, title)
    _, _, width, height = (root.get("viewBox") or "0 0 1 1").split()
    root.attrib.clear()
    root.attrib.update({"class": name, "role": "img", "aria-label": label, "width": width, "height": height})
    root.set("viewBox", f"0 0 {width} {height}")
    text = ElementTree.tostring(root, encoding="unicode")
    return Markup(re.sub('"(#0[0-9a-f]{5})"', lambda found: f'"var(--{VARIABLES[found[1]]})"', text))


def _restyle(element: ElementTree.Element) -> None:
    """A style as attributes, which a page may have; the font is the page's."""
    for entry in element.attrib.pop("style", "").split(";"):
        key, _, value = (word.strip() for word in entry.partition(":"))
        if key and key != "font-family":
            element.set(key, value.removesuffix("px"))
    if element.get("transform", "").startswith("rotate(-0"):
        del element.attrib["transform"]
