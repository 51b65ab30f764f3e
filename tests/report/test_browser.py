"""The page in a browser: what people can do with it, and that all of them can."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from asdm_cli.report.page import render
from tests.report import made

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
    """A page with every kind of entry, and with names that are wider than any phone."""
    folder = made.draw(tmp_path_factory.mktemp("browser") / "run")
    report, training = made.compared(), made.trained()
    long = "a_name_of_one_word_that_is_wider_than_any_phone_on_which_somebody_reads_it"
    report.setups[long] = {"model": long}
    report.records.extend([*training.records, made.interval(long, "kid", 0.2, 0.01, protocol="quality")])
    report.facts[long] = {long: long}
    report.notes.append(long)
    assert report.images is not None
    report = replace(report, images=replace(report.images, prompts=[*made.PROMPTS, "fifth", "sixth"]))
    page = folder / "page.html"
    page.write_text(render(report, folder))
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
    """A column of the main table as it stands, without its head."""
    rows = page.locator("#figures tbody tr")
    return [row.locator("th, td").nth(index).inner_text().split()[0] for row in rows.all()]


def test_a_column_is_sorted_by_its_figures_and_then_as_before(page: Any) -> None:
    head = page.locator("#figures th", has_text="parameters")
    before = column(page, 1)
    assert before[:4] == ["8.77", "5.91", "5.10", "3.20"]
    head.locator("button").click()
    assert (column(page, 1)[:5], head.get_attribute("aria-sort")) == (
        ["3.20", "5.10", "5.91", "8.77", "–"],
        "ascending",
    )
    head.locator("button").press("Enter")
    assert (column(page, 1)[:2], head.get_attribute("aria-sort")) == (["8.77", "5.91"], "descending")
    page.locator("#figures th", has_text="set-up").locator("button").press("Space")
    assert (column(page, 0)[0], head.get_attribute("aria-sort")) == (
        "a_name_of_one_word_that_is_wider_than_any_phone_on_which_somebody_reads_it",
        "none",
    )


def test_an_image_is_enlarged_and_left_by_keys(page: Any) -> None:
    assert page.evaluate("[...document.images].filter((image) => image.naturalWidth > 0).length") == 19
    dialog, images = page.locator("dialog"), page.locator("table.grid button")
    images.first.focus()
    page.keyboard.press("Enter")
    assert dialog.locator("img").get_attribute("alt") == f"pocket: {made.PROMPTS[0]}"
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    assert dialog.locator("figcaption").inner_text().split("\n") == ["base", made.PROMPTS[0]], "and no further"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    page.wait_for_function(f"document.activeElement.querySelector('img').alt === 'tiny: {made.PROMPTS[0]}'")
    images.nth(1).click()
    dialog.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()


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


def test_the_page_is_in_order_for_readers_of_every_kind(page: Any) -> None:
    levels = page.evaluate(f"{AUDIT}; headings()")
    assert levels.count(1) == 1
    assert len(levels) > 15
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.evaluate(f"{AUDIT}; nameless()") == []
    assert page.evaluate(f"{AUDIT}; twice()") == []
    assert page.locator("html").get_attribute("lang") == "en"
    assert [page.get_by_role(role).count() for role in ("main", "banner")] == [1, 1]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the figures"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")


def test_nothing_scrolls_inside_the_page_and_a_phone_has_the_figures_that_matter(page: Any) -> None:
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate(f"{AUDIT}; scrolling()") == [], width
    heads = page.locator("#figures thead th:visible")
    assert heads.count() == 4


def test_a_phone_shows_set_ups_before_references_side_by_side_and_a_press_shows_all(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    boxes = [row.bounding_box() for row in page.locator("#images tbody tr").all()]
    assert [box["x"] for box in boxes] == sorted({box["x"] for box in boxes})
    assert len({box["y"] for box in boxes}) == 1
    assert page.locator("#images tbody tr").last.locator("th").inner_text() == "real"
    cells = page.locator("#images tbody tr").first.locator("td:visible")
    assert cells.count() == 4
    page.locator("#images .more").click()
    assert cells.count() == 6


def test_nothing_is_lost_without_a_script(browser: Any, file: str) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(file)
    assert page.locator("button:visible").count() == 0, "no button that does nothing"
    assert page.locator("table.figures").first.is_visible()
    assert page.locator("table.grid img").first.is_visible()
    page.locator("#part-0 > summary").click()
    assert page.locator("#part-0 svg.wide").is_visible()
    page.close()
