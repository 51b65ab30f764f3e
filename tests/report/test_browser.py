"""The page in a browser: what people can do with it, and that all of them can."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from asdm_cli.report.document import Column, Report, Section, Table
from asdm_cli.report.html import render
from tests.report import samples

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives a browser")

AUDIT = Path(__file__).with_name("page_audit.js").read_text(encoding="utf-8")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = (1280, 390, 320)
ENOUGH = 4.5
"""The contrast of text that WCAG 2 asks for at level AA."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Closed at the end of this file: its event loop would be in the way of others."""
    with playwright.sync_playwright() as driver:
        found = next(filter(None, map(shutil.which, BROWSERS)), driver.chromium.executable_path)
        if not Path(found).exists():
            pytest.skip(f"no browser found: none of {', '.join(BROWSERS)}, and none of playwright's own")
        started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with every kind of part, a total, and sections of which the last is folded."""
    folder = samples.draw_pictures(tmp_path_factory.mktemp("browser") / "run")
    bench, evaluation, training = samples.bench_report(), samples.eval_report(), samples.training_report()
    columns = [Column("block", "block"), Column("layers", "layers")]
    sizes = {"down.10": 2, "down.9": None, "down.2": 10, "all": 12}
    blocks = Table("Blocks", columns, [{"block": name, "layers": size} for name, size in sizes.items()], total=True)
    long = "a_name_of_one_word_that_is_wider_than_any_phone_on_which_somebody_reads_it"
    parts = [blocks, Section("Cost", bench.summary, "bench"), *bench.parts, Section(long, long), *training.parts]
    parts += [Section("Quality", "128 captions.", "eval", folded=True), *evaluation.parts]
    page = folder / "page.html"
    page.write_text(render(Report("run", "All of it", long, parts, bench.cards | evaluation.cards), folder))
    return page.as_uri()


@pytest.fixture
def page(browser: Any, file: str) -> Iterator[Any]:
    """The page on a desktop; fails at the end if it wanted anything from anywhere or complained."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    troubles, requests = [], []
    opened.on("console", lambda message: troubles.append(message.text))
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(file)
    yield opened
    opened.close()
    assert troubles == []
    assert [url for url in requests if not url.startswith("data:image/")] == [file]


def column(page: Any, index: int) -> list[str]:
    """A column of the first table as it stands, without its head."""
    rows = page.locator("table.figures").first.locator("tbody tr, tfoot tr")
    return [row.locator("th, td").nth(index).inner_text() for row in rows.all()]


def test_pictures_are_inside(page: Any) -> None:
    assert page.evaluate("[...document.images].filter((image) => image.naturalWidth > 0).length") == 15


def test_a_column_is_sorted_by_its_figures_and_then_as_before(page: Any) -> None:
    before = ["down.10", "down.9", "down.2", "all"]
    head = page.locator("table.figures").first.locator("th", has_text="layers")
    assert column(page, 0) == before
    head.locator("button").click()
    assert (column(page, 1), head.get_attribute("aria-sort")) == (["2", "10", "–", "12"], "ascending")
    head.locator("button").click()
    assert (column(page, 1), head.get_attribute("aria-sort")) == (["10", "2", "–", "12"], "descending")
    head.locator("button").click()
    assert (column(page, 0), head.get_attribute("aria-sort")) == (before, "none")


def test_keys_sort_too_and_one_column_at_a_time(page: Any) -> None:
    heads = page.locator("table.figures").first.locator("thead th")
    heads.nth(1).locator("button").press("Enter")
    heads.nth(0).locator("button").press("Space")
    assert column(page, 0) == ["down.2", "down.9", "down.10", "all"], "numbers in names count as numbers"
    assert [head.get_attribute("aria-sort") for head in heads.all()] == ["ascending", "none"]


def test_intervals_are_sorted_by_their_middle(page: Any) -> None:
    table = page.locator("#part-3 table").first
    table.locator("th", has_text="UNet call, ms").locator("button").click()
    assert table.locator("tbody th").all_inner_texts() == ["tiny", "small", "base", "pocket"]


def test_a_picture_is_enlarged_and_left_by_keys(page: Any) -> None:
    page.goto(page.url + "#part-10")
    assert page.locator("#section-3").get_attribute("open") is not None, "a link opens what is folded"
    dialog, pictures = page.locator("dialog"), page.locator("table.grid button")
    pictures.first.focus()
    page.keyboard.press("Enter")
    assert dialog.locator("img").get_attribute("alt") == f"pocket: {samples.PROMPTS[0]}"
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    assert dialog.locator("figcaption").inner_text().split("\n") == [samples.PROMPTS[1], "pocket"], "and no further"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("document.activeElement.querySelector('img').alt") == f"pocket: {samples.PROMPTS[2]}"
    pictures.nth(1).click()
    dialog.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()


def test_cards_figures_and_sections_unfold(page: Any) -> None:
    card = page.locator("#part-3 details", has_text="How these figures were made")
    assert not card.locator("dl").is_visible()
    card.locator("summary").press("Enter")
    assert card.locator("dd").first.inner_text() == "cpu, 2 threads"
    figures = page.locator("#part-4 details", has_text="The figures")
    figures.locator("summary").click()
    assert figures.locator("tbody tr").count() == len(samples.BLOCKS)
    assert not page.locator("#part-10").is_visible()
    page.get_by_role("link", name="Quality").click()
    page.locator("#part-10").wait_for(state="visible")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_at_every_width(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate(f"{AUDIT}; wider()") == 0, width
        found = page.evaluate(f"{AUDIT}; contrasts()")
        assert len(found) > 300
        assert [text for text in found if text[0] < ENOUGH] == []
    assert page.evaluate(f"{AUDIT}; luminance(paper(document.body)) > 0.5") == (scheme == "light")


def test_contrast_is_measured_as_wcag_does(browser: Any) -> None:
    page = browser.new_page()
    page.set_content('<body style="background: #fff"><p style="color: #000">a<p style="color: #777">b</body>')
    assert page.evaluate(f"{AUDIT}; contrasts()") == [[21, "a"], [pytest.approx(4.48, abs=0.01), "b"]]
    page.close()


def test_the_page_is_in_order_for_readers_of_every_kind(page: Any) -> None:
    levels = page.evaluate(f"{AUDIT}; headings()")
    assert levels.count(1) == 1
    assert len(levels) == 1 + 1 + 3 + 8
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.evaluate(f"{AUDIT}; nameless()") == []
    assert page.evaluate(f"{AUDIT}; twice()") == []
    assert (page.title(), page.locator("html").get_attribute("lang")) == ("All of it", "en")
    assert [page.get_by_role(role).count() for role in ("main", "banner")] == [1, 1]
    assert page.locator("svg.wide[role=img]").count() == 5
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the figures"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")


def test_the_tab_key_stops_at_what_scrolls(page: Any) -> None:
    box = page.locator("#part-3 .box")
    assert box.get_attribute("tabindex") == "-1"
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_function("document.querySelector('#part-3 .box').tabIndex === 0")


def test_nothing_is_lost_without_a_script(browser: Any, file: str) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(file)
    assert page.locator("button:visible").count() == 0, "no button that does nothing"
    assert page.locator("table.figures").first.is_visible()
    page.locator("#section-3 > summary").click()
    assert page.locator("table.grid img").first.is_visible()
    page.close()
