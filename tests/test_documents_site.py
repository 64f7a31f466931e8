"""The site that `make docs` builds: complete, linked, and readable without a network."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import click
import pytest
from playwright.sync_api import sync_playwright
from typer.main import get_command

import medfl
from medfl.cli.app import app

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = Path("notebooks", "guides", "reference")
LOADED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """What a page loads, where its links lead, and what they may lead to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {found.get("id") or ""}
        if tag == "a":
            self.links.append(found.get("href") or "")
        elif tag in LOADED and found.get(LOADED[tag]):
            self.loaded.append(found[LOADED[tag]] or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` builds it: a warning is an error, a link that leads nowhere is one."""
    folder = tmp_path_factory.mktemp("documents")
    command = [
        *(sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", ".ci/docs"),
        *("-d", str(folder / "doctrees"), ".", str(folder / "site")),
    ]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def commands(command: click.Command, *names: str) -> Iterator[str]:
    yield "-".join(names)
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from commands(each, *names, name)


def test_every_document_is_a_page(site: Path) -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "notebooks" / "guides").rglob("*.md")]
    expected = {path.relative_to(ROOT).with_suffix(".html") for path in documents}
    assert expected <= {path.relative_to(site) for path in site.rglob("*.html")}


def test_every_link_leads_somewhere(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"https?:|mailto:", link):
                continue
            file, _, anchor = unquote(link).partition("#")
            there = (path.parent / file).resolve() if file else path
            assert there.is_file(), (path.name, link)
            assert there not in pages or anchor in pages[there].anchors, (path.name, link)


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for address in page.loaded:
            local = address.partition("?")[0].partition("#")[0]
            there = (path.parent / local) if local else path
            assert address.startswith("data:") or there.is_file(), address
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert "@import" not in text
        assert not re.search(r"url\([\"']?(https?:)?//", text)


def test_the_references_name_everything_that_is_public(pages: dict[Path, Page], site: Path) -> None:
    python = pages[site / REFERENCE / "python.html"].anchors
    assert {f"medfl.{name}" for name in medfl.__all__ if name != "__version__"} <= python
    line = pages[site / REFERENCE / "commands.html"].anchors
    assert set(commands(get_command(app), "medfl")) <= line


def test_a_browser_finds_words_in_it_without_a_server(site: Path, browser: str) -> None:
    with sync_playwright() as playwright:
        options: dict[str, Any] = {"args": ["--no-sandbox", "--disable-gpu"]}
        with playwright.chromium.launch(executable_path=browser, **options) as started:
            page = started.new_page(viewport={"width": 390, "height": 800})
            troubles: list[str] = []
            page.on("pageerror", lambda error: troubles.append(str(error)))
            page.goto((site / "index.html").as_uri())
            page.wait_for_url("**/README.html")
            assert page.evaluate("document.documentElement.scrollWidth") == 390
            page.goto((site / "search.html").as_uri() + "?q=witness")
            page.wait_for_selector("#search-results li a")
            titles = page.locator("#search-results li a").all_inner_texts()
    assert "Operations" in titles
    assert troubles == []
