"""The documents: short enough, every link leads somewhere, every command is listed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from typer.main import get_command

from medfl.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
GUIDES = ROOT / "notebooks" / "guides"
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted(GUIDES.rglob("*.md")),
    *sorted((ROOT / "site_configs").rglob("*.md")),
]


def anchors(path: Path) -> set[str]:
    """What a link to a heading is called, by GitHub's rule."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def links(path: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            yield target


def commands(command: click.Command, *names: str) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from commands(each, *names, name)
    elif not command.hidden:
        yield " ".join(names)


def test_the_readme_is_a_page_and_not_a_book() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in links(path):
        file, _, heading = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        if heading:
            assert heading in anchors(there), target


def test_the_readme_leads_to_every_guide() -> None:
    targets = {(ROOT / target.partition("#")[0]).resolve() for target in links(ROOT / "README.md")}
    assert set(GUIDES.glob("*.md")) <= targets


@pytest.mark.parametrize("command", sorted(commands(get_command(app))))
def test_every_command_is_listed(command: str) -> None:
    """In a row of its group, as `medfl site init DIR`, `rotate DIR`."""
    lines = (GUIDES / "commands.md").read_text(encoding="utf-8").splitlines()
    *group, name = command.split()
    start = " ".join(["| `medfl", *group, ""])
    cells = [line.removeprefix(start).split(" | ")[0] for line in lines if line.startswith(start)]
    assert any(re.search(rf"(^|`){name}\b", cell) for cell in cells)
