"""`Document`: what a document says, apart from how it is shown.

A page and a Markdown file are two renderings of one value, so that they cannot say different
things. Everything in it is plain text; whoever renders it escapes it. A `Blank` is a place where a
person has to write: software knows what a run did, and nobody's legal basis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from markupsafe import Markup

from medfl.reporting.tables import Table

Tone = Literal["given", "simulated", "none"]
"""Named as the report's page names its colours: all is well, with reservations, not protected."""


@dataclass(frozen=True, kw_only=True)
class Blank:
    """A place where a person writes: a paragraph of its own, or a cell of a table.

    Attributes:
        lead: Who has to write.
        text: What is asked for.
    """

    kind: ClassVar[str] = "blank"
    lead: str
    text: str

    def __html__(self) -> str:
        """In a page, also as the cell of a table."""
        mark = Markup('<span class="blank"><strong>{}</strong> {}</span>')
        return mark.format(self.lead, self.text)


Cell: TypeAlias = str | Blank


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """One paragraph."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A paragraph that nobody may miss."""

    kind: ClassVar[str] = "notice"
    text: str


@dataclass(frozen=True, kw_only=True)
class Bullets:
    """A list."""

    kind: ClassVar[str] = "bullets"
    items: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names with what is said of them."""

    kind: ClassVar[str] = "facts"
    rows: tuple[tuple[str, Cell], ...]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table of words, some of which a person writes; the first cell of a row is its header."""

    kind: ClassVar[str] = "grid"
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A table that the report shows too.

    Attributes:
        style: As the report's page shows it.
    """

    kind: ClassVar[str] = "figures"
    table: Table
    style: Literal["numbers", "words meaning"] = "numbers"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A drawing.

    Attributes:
        svg: The whole drawing.
        alt: What it shows, for who cannot see it.
        caption: Below it.
        file: Name of the drawing beside the Markdown file.
    """

    kind: ClassVar[str] = "picture"
    svg: Markup
    alt: str
    caption: str
    file: str


Block: TypeAlias = Paragraph | Notice | Bullets | Facts | Grid | Figures | Picture | Blank


@dataclass(frozen=True, kw_only=True)
class Section:
    """A numbered part of a document.

    Attributes:
        anchor: Its address in the page.
    """

    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document in one language.

    Attributes:
        kicker: What kind of document it is.
        verdict: The most important sentence.
        reasons: What it rests on.
        footer: Where the document comes from.
    """

    tag: str
    tone: Tone
    kicker: str
    title: str
    when: str
    verdict: str
    reasons: tuple[str, ...]
    sections: tuple[Section, ...]
    contents: str
    footer: str

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Its drawings."""
        found = (block for section in self.sections for block in section.blocks)
        return tuple(block for block in found if isinstance(block, Picture))


def count_blanks(sections: Iterable[Section]) -> int:
    """How many places a person has to fill in."""
    return sum(1 for _ in _blanks(sections))


def _blanks(sections: Iterable[Section]) -> Iterator[Blank]:
    for block in (block for section in sections for block in section.blocks):
        if isinstance(block, Blank):
            yield block
        elif isinstance(block, Facts | Grid):
            yield from (cell for row in block.rows for cell in row if isinstance(cell, Blank))
