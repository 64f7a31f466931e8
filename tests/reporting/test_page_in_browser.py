"""Pages as a browser lays them out: on a phone, at a desk, on paper, and for screen readers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from medfl.reporting.governance.write import documents
from medfl.reporting.grid_report import write_grid_report
from medfl.reporting.report import write_report
from medfl.reporting.texts import Language, Texts
from medfl.runs.results import read_run

pytestmark = pytest.mark.slow

LANGUAGES: tuple[Language, ...] = ("en", "zh")
NAMES = ("report", "grid", "dpia", "public-summary")
PAPER = 688  # CSS pixels between the margins of an A4 sheet
TOO_WIDE = """() => [...document.querySelectorAll("body *")]
    .filter((one) => !one.closest("figure, table, svg") && one.scrollWidth > one.clientWidth + 1
        && getComputedStyle(one).overflowX !== "auto"
        && getComputedStyle(one).display !== "inline")
    .map((one) => one.outerHTML.slice(0, 80))"""
CUT_ON_PAPER = """() => [...document.querySelectorAll(".scroll")]
    .filter((one) => one.scrollWidth > one.clientWidth + 1)
    .map((one) => one.getAttribute("aria-label"))"""


@pytest.fixture(scope="module")
def chromium(browser: str) -> Iterator[Browser]:
    """The browser of this machine: nothing is downloaded."""
    with sync_playwright() as playwright:
        options: dict[str, Any] = {"args": ["--no-sandbox", "--disable-gpu"]}
        with playwright.chromium.launch(executable_path=browser, **options) as found:
            yield found


@pytest.fixture(scope="module")
def pages(
    finished_run: Path, finished_grid: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Addresses of the reports of a run and of a grid, and of the documents, by language."""
    folder, run = tmp_path_factory.mktemp("pages"), read_run(finished_run)
    for language in LANGUAGES:
        contents = documents(run, Texts(language))
        for kind, written in (
            ("report", write_report(finished_run, language=language)),
            ("grid", write_grid_report(finished_grid, language=language)),
        ):
            contents[f"{kind}.{language}.html"] = written.read_text(encoding="utf-8")
        for name, content in contents.items():
            (folder / name).write_text(content, encoding="utf-8")
    return {path.stem: path.as_uri() for path in folder.glob("*.html")}


@pytest.fixture(params=[f"{name}.{language}" for name in NAMES for language in LANGUAGES])
def page(
    request: pytest.FixtureRequest, chromium: Browser, pages: dict[str, str]
) -> Iterator[Page]:
    with chromium.new_context() as context:
        opened = context.new_page()
        opened.goto(pages[request.param])
        yield opened


def test_every_page_is_looked_at(pages: dict[str, str]) -> None:
    assert set(pages) == {f"{name}.{language}" for name in NAMES for language in LANGUAGES}


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_runs_over_the_edge_of_a_screen(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(TOO_WIDE) == []


def test_nothing_is_cut_off_on_paper(page: Page) -> None:
    page.set_viewport_size({"width": PAPER, "height": 1000})
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") == PAPER
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate(CUT_ON_PAPER) == []


@pytest.mark.parametrize("width", [390, 1200])
def test_an_audit_of_accessibility_finds_nothing(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    found = Axe().run(page).response["violations"]
    assert [(rule["id"], [node["html"][:90] for node in rule["nodes"]]) for rule in found] == []


def test_pictures_and_tables_can_be_read_aloud(page: Page) -> None:
    assert page.locator("img").count() == page.locator('img[alt]:not([alt=""])').count()
    named = page.locator('svg[role="img"][aria-label]:not([aria-label=""])')
    assert page.locator("svg").count() == named.count()
    assert page.locator("th").count() == page.locator("th[scope]").count()
    assert page.locator("table").count() == page.locator("table > caption").count()


def test_reports_have_all_of_their_pictures(chromium: Browser, pages: dict[str, str]) -> None:
    with chromium.new_context() as context:
        opened = context.new_page()
        for kind, pictures in (("report", 6), ("grid", 3)):
            opened.goto(pages[f"{kind}.en"])
            assert opened.locator("img").count() == pictures
