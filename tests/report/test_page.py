"""The page: complete, self-contained, and deaf to what its data says."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from asdm_cli.records import Record
from asdm_cli.report import charts, plots
from asdm_cli.report.metrics import metric
from asdm_cli.report.page import colours_of, entries, render
from tests.report import made

VOID = {"meta", "img", "br", "wbr", "hr", "link", "input"}


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
            self.texts.setdefault(self.open[-1], []).append(data.strip())

    def of_class(self, tag: str, name: str) -> int:
        return sum(name in (element.get("class") or "").split() for element in self.elements.get(tag, []))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(render(made.compared(), made.draw(tmp_path_factory.mktemp("page") / "run")))


def test_the_first_screen_is_the_result_images_table_and_plot_and_the_rest_is_folded(page: Page) -> None:
    order = [
        "<h1>plans 2: 3.30\u00a0times as fast",
        'id="images"',
        '<section id="figures">',
        '<section id="plot-0">',
        '<section class="folds">',
    ]
    places = [page.source.index(each) for each in order]
    assert places == sorted(places)
    folds = re.findall(r'<details class="fold" id="([a-z]+)', page.source)
    kinds = "others plot plot all all all table table part part part timeline fact fact fact protocols"
    assert folds == kinds.split()
    assert page.of_class("svg", "wide") == page.of_class("svg", "narrow") == 3 + 3 + 1
    assert page.texts["p"][0] == "asdm compare · Everything"
    assert "Fidelity is to pocket's pictures of the same prompts and seeds." in page.texts["p"]


def test_the_page_needs_nothing_from_anywhere(page: Page) -> None:
    attributes = [(name, value or "") for each in page.elements.values() for one in each for name, value in one.items()]
    links = [value for name, value in attributes if name in {"src", "href", "action", "data", "srcset", "xlink:href"}]
    assert len(links) >= 20
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert not [word for word in ("https:", "@import") if word in page.source]
    assert set(re.findall("http:[^\"']*", page.source)) <= {"http://www.w3.org/2000/svg"}, "a name, not an address"
    assert {"link", "iframe", "object", "embed", "style:"}.isdisjoint(page.elements)


def test_nothing_is_twice_and_what_is_referred_to_is_there(page: Page) -> None:
    everything = [one for each in page.elements.values() for one in each]
    ids = [one["id"] for one in everything if "id" in one]
    assert len(ids) == len(set(ids)) > 20
    used = {value[1:] for one in everything if (value := one.get("href") or "").startswith("#")}
    used |= {value[5:-1] for one in everything if (value := one.get("clip-path") or "")}
    assert used
    assert used <= set(ids)


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


def test_images_are_small_enough_and_have_a_text(page: Page) -> None:
    images = [image for image in page.elements["img"] if image.get("src")]
    assert len(images) == 5 * 4 - 1
    for image in images:
        payload = (image["src"] or "").split(",")[1]
        with Image.open(io.BytesIO(base64.b64decode(payload))) as opened:
            assert opened.size == ((256, 256) if image["width"] == "512" else (64, 64))
        assert image["alt"]
    assert page.texts["span"].count("no image") == 1


def test_an_image_that_cannot_be_read_stops_no_page(run: Path) -> None:
    (run / "images/base/000001.png").write_bytes(b"not an image")
    assert Page(render(made.compared(), run)).texts["span"].count("no image") == 2


def test_hostile_texts_stay_texts(run: Path) -> None:
    page = Page(render(made.odd(), run))
    assert len(page.elements["script"]) == 1
    assert len(page.elements["img"]) == 2, "the image and the enlarged one"
    assert not [name for each in page.elements.values() for one in each for name in one if name.startswith("on")]
    for tag in ("th", "td", "p", "h3"):
        assert any(made.HOSTILE in text for text in page.texts[tag]), tag
    assert "49" not in "".join(page.texts["p"])


def test_plots_for_a_paper_keep_their_letters(tmp_path: Path) -> None:
    """Each on a page; fonts that a viewer can read, not outlines that it may not have."""
    drawings = [(entry.table.title, entry.drawing) for entry in entries(made.compared()) if entry.drawing]
    charts.to_pdf(drawings, tmp_path / "plots.pdf")
    written = (tmp_path / "plots.pdf").read_bytes()
    assert written.count(b"/Type /Page /") == len(drawings) > 3
    assert b"/CIDFontType2" in written
    assert b"/Type3" not in written
    assert charts.MADE in written


def test_combinations_have_a_line_for_each_of_what_was_varied_first() -> None:
    report = made.compared()
    for place, about in enumerate(report.setups.values()):
        if about.get("series") == "plans":
            about["varied"] = {"level": "block" if place % 2 else "layer", "every": place}
    before, (plot, *_) = plots.scatters(made.compared())[0], plots.scatters(report)
    assert {"block", "layer"} <= {point.series for point in plot.points}
    assert "plans" not in {point.series for point in plot.points}
    assert "plans" in {point.series for point in before.points}
    told = plots.comparisons(report), plots.comparisons(made.compared())
    assert told[0] == told[1], "equal fidelity is told of all ways that are ours"


def test_a_paper_has_the_colours_of_the_page_on_white() -> None:
    style = (Path(charts.__file__).parent / "templates/report.css").read_text()
    light = style[: style.index("@media")]
    assert [re.search(rf"--c{place}: (#\w+);", light)[1] for place in range(plots.COLOURS)] == charts.PRINTED  # type: ignore[index]


def test_more_set_ups_than_colours_are_no_bars() -> None:
    few = [Record(f"set-up {number}", "macs_g", 1.0, of=f"block/{of}") for number in range(10) for of in "ab"]
    assert plots.bars("by block", few)
    assert plots.bars("by block", [*few, Record("another", "macs_g", 1.0, of="block/a")]) is None


def test_of_more_parts_than_can_be_drawn_those_that_matter_are_and_it_says_so() -> None:
    many = [Record("all", "error_alone", float(-number % 40), of=f"unit/{number}") for number in range(40)]
    few = plots.bars("without one", many)
    assert few is not None
    assert len(few.categories) == len(few.values["all"]) == 24
    lower = metric("error_alone").better == "lower"
    worth = sorted((each.value for each in many), reverse=not lower)
    assert sorted((each.value for each in few.values["all"] if each), reverse=not lower) == worth[:24]
    assert few.which in charts.bars(few, {"all": 0}).label
    assert few.which.endswith("of 40")


def test_names_of_one_plot_have_colours_of_their_own_on_a_page_of_many() -> None:
    apart = [[f"{plot}-{number}" for number in range(4)] for plot in range(5)]
    colours = colours_of([*apart, ["0-0", "4-3", "2-1"]])
    assert max(colours.values()) < plots.COLOURS
    for names in [*apart, ["0-0", "4-3", "2-1"]]:
        assert len({colours[name] for name in names}) == len(names)
    assert len(set(colours_of([[f"{number}"] for number in range(10)]).values())) == 10


def test_plots_are_drawn_by_matplotlib_and_it_is_imported_for_nothing_else() -> None:
    rooms = "join, export, terminal, run_directory"
    asked = (
        f"import sys; from asdm_cli.report import {rooms}; print('matplotlib' in sys.modules, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
