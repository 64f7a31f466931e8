"""A document as Markdown, to be completed in any editor.

Names and figures come from a run folder, so whatever Markdown would take for a sign of its own is
escaped: nothing in a folder can add a link, a heading or markup to a document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from medfl.reporting.governance.content import (
    Blank,
    Block,
    Bullets,
    Cell,
    Document,
    Facts,
    Figures,
    Grid,
    Notice,
    Paragraph,
    Picture,
)

_SIGNS = re.compile(r"([\\`*_\[\]<>|#])")
_LINE_START = re.compile(r"^(\s*)([-+]|\d+[.)])(?=\s)")
_EMPTY_LINE = "> ………"


def to_markdown(document: Document) -> str:
    """The document's text, in GitHub's Markdown."""
    parts = [
        _plain(document.kicker),
        f"# {_plain(document.title)}",
        _plain(document.when),
        f"**{_plain(document.verdict)}**",
        "\n".join(f"- {_plain(reason)}" for reason in document.reasons),
    ]
    for number, section in enumerate(document.sections, start=1):
        parts.append(f"## {number} {_plain(section.title)}")
        parts += [_block(block) for block in section.blocks]
    parts += ["---", _plain(document.footer)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    match block:
        case Paragraph():
            return _plain(block.text)
        case Notice():
            return f"> {_plain(block.text)}"
        case Bullets():
            return "\n".join(f"- {_plain(item)}" for item in block.items)
        case Facts():
            return "\n".join(f"- {_plain(name)}: {_cell(cell)}" for name, cell in block.rows)
        case Grid():
            return "\n".join(_table(block.caption, block.head, block.rows))
        case Figures():
            return "\n".join(_table(block.table.caption, block.table.head, block.table.rows))
        case Picture():
            return f"![{_plain(block.alt)}]({block.file})\n\n*{_plain(block.caption)}*"
        case Blank():
            return f"> {_cell(block)}\n>\n{_EMPTY_LINE}"


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Iterator[str]:
    yield f"*{_plain(caption)}*\n"
    yield f"| {' | '.join(map(_plain, head))} |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _cell(cell: Cell) -> str:
    if isinstance(cell, Blank):
        return f"**[{_plain(cell.lead)}** {_plain(cell.text)}**]**"
    return _plain(cell)


def _plain(text: str) -> str:
    """One line of text that Markdown shows as it is."""
    line = _SIGNS.sub(r"\\\1", " ".join(text.split()))
    return _LINE_START.sub(r"\1\\\2", line)
