"""The page: complete, self-contained, and deaf to what its data says."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from asdm_cli.errors import RunError
from asdm_cli.report.document import Bars, Column, Curves, Grid, Point, Report, Scatter, Section, Table, Timeline
from asdm_cli.report.html import render

VOID = {"meta", "img", "br", "wbr", "hr", "link", "input", "line", "rect", "circle", "path", "polyline"}
HOSTILE = "\"><img src=x onerror=alert(1)></script><script>alert('2')</script>&amp;{{ 7 * 7 }}"


@dataclass
class Page(HTMLParser):
    """Elements by name with their attributes and texts; fails where tags do not nest."""

    source: str
    elements: dict[str, list[dict[str, str | None]]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.setdefault(tag, []).append(dict(attributes))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.setdefault(tag, []).append(dict(attributes))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data)


def of_class(page: Page, tag: str, name: str) -> int:
    return sum(name in (element.get("class") or "").split() for element in page.elements.get(tag, []))


@pytest.fixture
def page(bench: Report, evaluation: Report, folder: Path) -> Page:
    both = Report("bench", "Both", "Sum", [*bench.parts, *evaluation.parts], bench.cards | evaluation.cards)
    return Page(render(both, folder))


def test_the_page_shows_every_part(page: Page) -> None:
    assert of_class(page, "table", "figures") == 2 + 3, "tables, and the figures of plots"
    assert of_class(page, "table", "grid") == 1
    assert of_class(page, "figure", "plot") == 3
    assert of_class(page, "svg", "wide") == of_class(page, "svg", "narrow") == 3
    assert len(page.elements["details"]) == 2 + 3, "a protocol card at each table, the figures at each plot"
    assert sum((image.get("src") or "").startswith("data:image/") for image in page.elements["img"]) == 15


def test_parts_belong_to_the_section_before_them(bench: Report, evaluation: Report, folder: Path) -> None:
    first, folded = Section("Cost", "It is `low`.", "bench"), Section("Quality", folded=True)
    parts = [bench.parts[0], first, *bench.parts[1:], folded, *evaluation.parts]
    page = Page(render(Report("run", "All", "", parts), folder))
    assert page.texts["h2"] == ["Cost", "Cost", "Quality"], "the table before the first section, and the sections"
    assert page.texts["h3"] == [part.title for part in (*bench.parts[1:], *evaluation.parts)]
    sections = [fold for fold in page.elements["details"] if fold.get("class") == "chapter"]
    assert [(fold["id"], "open" in fold) for fold in sections] == [("section-1", True), ("section-2", False)]
    assert page.texts["code"] == ["low"]
    links = [link["href"] for link in page.elements["a"]]
    assert links == ["#main", "#part-1", "#section-1", "#section-2", "#part-6", "#part-7", "#part-8"], "long lists only"


def test_a_total_is_the_foot_of_its_table(tmp_path: Path) -> None:
    columns = [Column("block", "block"), Column("params_m", "parameters", "lower")]
    rows = [{"block": name, "params_m": size} for name, size in (("down", 3.0), ("up", 2.0), ("all", 1.0))]
    page = Page(render(Report("", "", "", [Table("", columns, rows, total=True)]), tmp_path))  # type: ignore[arg-type]
    assert len(page.elements["tfoot"]) == 1
    assert page.texts["strong"] == ["2.00"], "a total is never the best"
    without = Page(render(Report("", "", "", [Table("", columns, rows)]), tmp_path))  # type: ignore[arg-type]
    assert "tfoot" not in without.elements


def test_every_figure_and_bar_is_drawn(page: Page) -> None:
    assert len(page.elements["polyline"]) == 2 * 2, "two series, at two widths"
    assert len(page.elements["circle"]) == 2 * 4
    assert sum(rect.get("rx") == "1.5" for rect in page.elements["rect"]) == 2 * 4 * 9
    assert sum("whisker" in (path.get("class") or "") for path in page.elements["path"]) == 2 * 4
    assert {"30.3–33.1", "0.98–1.03"} <= {text.strip() for text in page.texts["small"]}


def test_a_timeline_has_tips_and_a_legend(page: Page) -> None:
    tips = {"up.2.1.attn, calls 1–3: inherited", "up.2.1.attn, call 9: computed", "mid, call 10: dead"}
    assert tips <= set(page.texts["title"])
    assert "mid: 3 computed, 8 dead" in page.texts["title"], "of a row, where it is narrow"
    legend = {text.strip() for text in page.texts["li"]}
    assert {"computed", "inherited from an earlier call", "dead: not computed, for nobody reads it"} <= legend
    for state, spans in {"computed": 7, "inherited": 3, "dead": 3}.items():
        assert of_class(page, "rect", state) == spans + 1, "and one in the legend"
        assert f"svg .{state} {{ fill:" in page.source
    assert [of_class(page, "path", state) for state in ("computed", "inherited", "dead")] == [3, 1, 1]


def test_a_long_timeline_makes_a_short_page(tmp_path: Path) -> None:
    rows = [f"up.{index}" for index in range(60)]
    empty, full = (
        render(Report("", "", "", [Timeline("", rows, [cells] * 60)]), tmp_path) for cells in ("", "ciiii" * 20)
    )
    assert 60 * 40 * 40 < len(full) - len(empty) < 60 * 40 * 200, "bytes per row and span"


def test_curves_have_lines_bands_and_a_text(training: Report, tmp_path: Path) -> None:
    source = render(training, tmp_path)
    page = Page(source)
    assert len(page.elements["polyline"]) == 2 * 3, "three lines, at two widths"
    assert of_class(page, "path", "band") == 2 * 2 + 1, "the learning rate has more points than the narrow one shows"
    label = page.elements["svg"][2]["aria-label"]
    assert label is not None
    assert "up: noise loss, logarithmic. base: from 1 to 0.0" in label
    assert len(label) < 200
    assert [entry.strip() for entry in page.texts["li"]] == ["base", "small"], "no legend for one line"
    assert len(source) < 120_000, "bytes, of 4,200 points"


def test_a_name_has_one_colour_on_the_page(training: Report, tmp_path: Path) -> None:
    bars = Bars("", "", ["x"], {"small": [1.0], "other": [2.0]})
    page = Page(render(Report("", "", "", [bars, *training.parts]), tmp_path))
    assert [line.get("class") for line in page.elements["polyline"]] == ["s2", "s0", "s2", "s0", "s2", "s2"]


def test_figures_that_are_not_drawn_are_told(tmp_path: Path) -> None:
    curves = Curves("", "", "", {"<a>": [(0.0, 1.0), (1.0, math.nan), (2.0, 3.0)]})
    page = Page(render(Report("", "", "", [curves]), tmp_path))
    assert page.texts["p"][-1] == "Not drawn: <a>: 1 of 3 (not finite)."


def test_the_page_needs_nothing_from_anywhere(page: Page) -> None:
    attributes = [(name, value or "") for each in page.elements.values() for one in each for name, value in one.items()]
    links = [value for name, value in attributes if name in {"src", "href", "action", "data", "srcset", "xlink:href"}]
    assert len(links) >= 20
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert "http:" not in page.source
    assert "https:" not in page.source
    assert "@import" not in page.source
    assert "url(" not in page.source
    assert {"link", "iframe", "object", "embed"}.isdisjoint(page.elements)


def test_hostile_texts_stay_texts(folder: Path) -> None:
    picture = Path("pictures/pocket-0.png")
    columns = [Column("name", HOSTILE), Column("x", HOSTILE)]
    rows: list[dict[str, str | int | float | None]] = [{"name": HOSTILE, "x": HOSTILE}]
    parts = [
        Table(HOSTILE, columns, list(rows), HOSTILE, HOSTILE),  # type: ignore[arg-type]
        Scatter(HOSTILE, HOSTILE, HOSTILE, [Point(1, 2, HOSTILE, series) for series in (HOSTILE, "b")], HOSTILE),
        Curves(HOSTILE, HOSTILE, HOSTILE, {HOSTILE: [(0.0, 1.0), (1.0, math.nan)], "b": [(0.0, 2.0)]}, note=HOSTILE),
        Bars(HOSTILE, HOSTILE, [HOSTILE], {HOSTILE: [1.0], "b": [2.0]}, HOSTILE),
        Grid(HOSTILE, [HOSTILE], [HOSTILE], [[picture]], HOSTILE),
        Timeline(HOSTILE, [HOSTILE], ["cid"], HOSTILE),
    ]
    cards = {HOSTILE: {HOSTILE: HOSTILE, "list": [HOSTILE]}, "other": {HOSTILE: None}}
    page = Page(render(Report(HOSTILE, HOSTILE, HOSTILE, parts, cards), folder))  # type: ignore[arg-type]
    assert len(page.elements["script"]) == 1
    assert len(page.elements["img"]) == 2, "the picture and the enlarged one"
    assert not [name for each in page.elements.values() for one in each for name in one if name.startswith("on")]
    assert HOSTILE in page.texts["h1"]
    assert HOSTILE in page.texts["dd"]
    assert HOSTILE in page.texts["th"]
    assert f"{HOSTILE}: from 1 to n/a, lowest 1" in page.texts["title"]
    assert f"{HOSTILE}, call 1: inherited" in page.texts["title"]
    assert "49" not in "".join(page.texts["h1"])


def test_code_in_a_note_is_set_as_code_and_nothing_else_is(tmp_path: Path) -> None:
    page = Page(render(Report("eval", "", "`<b>` and <b>", [Table("", [], [], "see `asdm show`")]), tmp_path))
    assert page.texts["code"] == ["<b>", "asdm show"]
    assert "b" not in page.elements


def test_addresses_may_be_broken_behind_their_points_and_figures_may_not(tmp_path: Path) -> None:
    columns = [Column("name", ""), Column("x", ""), Column("words", "")]
    rows = [{"name": "up_blocks.0.resnets.1.conv1", "x": 1.25, "words": "0.5, <b>.c"}]
    source = render(Report("", "", "", [Table("", columns, rows)]), tmp_path)  # type: ignore[arg-type]
    for cell in (">up_blocks.<wbr>0.<wbr>resnets.<wbr>1.<wbr>conv1<", ">1.25<", ">0.5, &lt;b&gt;.c<"):
        assert cell in source, cell


def test_the_policy_names_the_only_script_and_style(page: Page) -> None:
    policy = next(meta["content"] for meta in page.elements["meta"] if "http-equiv" in meta)
    assert policy is not None
    assert "default-src 'none'" in policy
    for tag in ("script", "style"):
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page.source, re.DOTALL)
        assert len(found) == 1
        digest = base64.b64encode(hashlib.sha256(found[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "style" not in {name for each in page.elements.values() for one in each for name in one}


def test_the_best_of_each_column_is_marked(page: Page) -> None:
    cost, quality = ["320", "3.20", "0.120", "17.3", "1.80", "900"], ["0.0310", "28.40", "17.8"]
    assert page.texts["strong"] == cost + quality, "from top to bottom"


def test_pictures_are_small_enough_and_have_a_text(page: Page) -> None:
    images = [image for image in page.elements["img"] if image.get("src")]
    assert len(images) == 15
    for image in images:
        payload = (image["src"] or "").split(",")[1]
        with Image.open(io.BytesIO(base64.b64decode(payload))) as opened:
            assert opened.size == ((256, 256) if image["width"] == "512" else (64, 64))
        assert image["alt"]


@pytest.mark.parametrize("content", [None, b"not a picture"])
def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content:
        (tmp_path / "a.png").write_bytes(content)
    report = Report("eval", "", "", [Grid("", ["a"], ["b"], [[Path("a.png")]])])
    with pytest.raises(RunError, match=r"a\.png: .*run the recipe again"):
        render(report, tmp_path)


def test_empty_and_odd_parts_make_a_page(tmp_path: Path) -> None:
    odd = Report(
        "eval",
        "Odd",
        "",
        [
            Table("", [], []),
            Table("", [Column("name", "")], [{"name": None}, {}]),
            Scatter("", "", "", []),
            Scatter("", "", "", [Point(0, 0, "origin", "s"), Point(math.nan, 1, "nowhere", "s")]),
            Curves("", "", "", {}),
            Curves("", "", "", {"a": [], "b": [(0.0, math.nan)]}),
            Curves("", "", "", {"a": [(0.0, -1.0)], "b": [(math.nan, 1.0)]}, log=True),
            Bars("", "", [], {}),
            Bars("", "", ["a", "b"], {"x": [math.nan, -1.0], "y": [0.0, 0.0]}),
            Grid("", [], [], []),
            Timeline("", [], []),
            Timeline("", ["a"], [""]),
            Timeline("", ["a"], ["d"]),
        ],
    )
    page = Page(render(odd, tmp_path))
    assert len(page.elements["section"]) == 13
    assert len(page.elements["circle"]) == 2, "the point at the origin, at two widths"
