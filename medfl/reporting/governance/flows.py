"""The picture of a run's data flows: who holds what, and what crosses from whom to whom.

It is drawn from the run, so it shows noise only where the run had some, and scores where any left.
A small drawing of boxes and arrows needs no plotting library: as text it stays sharp on paper, can
be searched, and speaks with the page's font.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from medfl.reporting import wording
from medfl.reporting.governance.content import Picture
from medfl.reporting.pages import page_environment
from medfl.reporting.texts import Texts
from medfl.runs.results import RunResults

FILE = "data-flows"
MAX_SITES = 6  # by name; the rest is counted

_WIDTH = 980
_LEFT, _CENTRE, _RIGHT = (10, 270), (500, 190), (790, 180)  # x and width of the three columns
_LINE, _PADDING, _GAP = 19, 34, 62
_EM = 14
_STAYS, _LEAVES, _BARE, _OPEN = "#0b6b4f", "#005a8c", "#a3231b", "#8a4b00"


@dataclass(frozen=True, kw_only=True)
class _Line:
    text: str
    muted: bool = False


@dataclass(frozen=True, kw_only=True)
class _Box:
    x: int
    y: int
    width: int
    height: int
    lines: tuple[_Line, ...]
    fill: str
    stroke: str


@dataclass(frozen=True, kw_only=True)
class _Arrow:
    """A horizontal arrow with its words above it."""

    x: int
    end: int
    y: int
    lines: tuple[str, ...]
    colour: str

    @property
    def middle(self) -> float:
        return (self.x + self.end) / 2

    @property
    def back(self) -> int:
        """Towards the shaft, from the arrow's head."""
        return -11 if self.end > self.x else 11


def flows(run: RunResults, texts: Texts, *, limited: bool) -> Picture:
    """The drawing.

    Args:
        run: Results.
        texts: Of the reader's language.
        limited: Whether noise limits what an update tells of a patient.
    """
    outgoing = tuple(_outgoing(run, texts, limited=limited))
    alt = texts(
        "flows.alt",
        sites=texts.count("count.site", len(run.sites)),
        what=" ".join(text for text, _ in outgoing),
    )
    arrows = tuple(_arrows(outgoing, texts))
    height = max(arrow.y for arrow in arrows) + 40
    boxes = tuple(_boxes(run, texts, height=height))
    height = max(height, *(box.y + box.height for box in boxes)) + 10
    svg = (
        page_environment()
        .get_template("governance/flows.svg.j2")
        .render(width=_WIDTH, height=height, alt=alt, boxes=boxes, arrows=arrows)
    )
    return Picture(
        svg=Markup(svg),  # noqa: S704  made by a template that escapes
        alt=alt,
        caption=texts("flows.caption"),
        file=f"{FILE}.{texts.language}.svg",
    )


def _boxes(run: RunResults, texts: Texts, *, height: int) -> Iterator[_Box]:
    names = [wording.shortened(site.name, length=28) for site in run.sites]
    shown = names if len(names) <= MAX_SITES else names[: MAX_SITES - 1]
    lines = [_Line(text=texts.count("flows.sites", len(names)))]
    lines += [_Line(text=name) for name in shown]
    if len(shown) < len(names):
        lines.append(_Line(text=texts.count("flows.more", len(names) - len(shown))))
    x, width = _LEFT
    for part in ("flows.stay", "flows.own_work"):
        lines.append(_Line(text=""))
        lines += [_Line(text=text, muted=True) for text in _wrapped(texts(part), width - 28)]
    yield _box(x, width, lines, least=height - 20, fill="#e9f5f0", stroke=_STAYS)
    x, width = _CENTRE
    server = [_Line(text=texts("flows.server"))]
    what = "flows.server.secure" if run.federation.secure_sum else "flows.server.local"
    server += [_Line(text=text, muted=True) for text in _wrapped(texts(what), width - 28)]
    yield _box(x, width, server, least=height - 20, fill="#f4f6f8", stroke="#52606b")
    x, width = _RIGHT
    model = [_Line(text=text) for text in _wrapped(texts("flows.model"), width - 28)]
    model += [_Line(text=text, muted=True) for text in _wrapped(texts("flows.use"), width - 28)]
    yield _box(x, width, model, least=0, fill="#f4f6f8", stroke="#52606b")


def _box(x: int, width: int, lines: list[_Line], *, least: int, fill: str, stroke: str) -> _Box:
    height = max(least, _LINE * len(lines) + _PADDING // 2)
    return _Box(x=x, y=10, width=width, height=height, lines=tuple(lines), fill=fill, stroke=stroke)


def _arrows(outgoing: Sequence[tuple[str, str]], texts: Texts) -> Iterator[_Arrow]:
    start, end = sum(_LEFT) + 6, _CENTRE[0] - 6
    y = 10
    for text, colour in outgoing:
        lines = _wrapped(text, end - start - 14, size=13)
        y += _GAP - 18 + 18 * len(lines)
        yield _Arrow(x=start, end=end, y=y, lines=lines, colour=colour)
    lines = _wrapped(texts("flows.back"), end - start - 14, size=13)
    y += _GAP - 18 + 18 * len(lines)
    yield _Arrow(x=end, end=start, y=y, lines=lines, colour=_LEAVES)
    yield _Arrow(x=sum(_CENTRE) + 6, end=_RIGHT[0] - 6, y=50, lines=(), colour=_LEAVES)


def _outgoing(run: RunResults, texts: Texts, *, limited: bool) -> Iterator[tuple[str, str]]:
    """What leaves the sites in this run, with the colour that says how it is protected."""
    if run.un_noised_sites:
        yield texts("flows.bare"), _BARE
    elif not limited:
        yield texts("flows.weak"), _BARE
    elif run.federation.secure_sum:
        yield texts("flows.masked"), _LEAVES
    else:
        yield texts("flows.noisy"), _LEAVES
    yield texts("flows.statements"), _LEAVES
    if run.scores:
        yield texts("flows.scores"), _OPEN


def _wrapped(text: str, width: float, *, size: int = _EM) -> tuple[str, ...]:
    """A text in lines; Chinese may be broken anywhere, Latin between words."""
    lines, line = [], ""
    for piece in _pieces(text):
        if line and _measured(line + piece.rstrip(), size) > width and piece.strip(_NEVER_FIRST):
            lines.append(line.strip())
            line = ""
        line += piece
    return (*lines, line.strip())


_NEVER_FIRST = "，。；：、）"


def _pieces(text: str) -> Iterator[str]:
    word = ""
    for letter in text:
        if _is_wide(letter):
            if word:
                yield word
            yield letter
            word = ""
            continue
        word += letter
        if letter == " ":
            yield word
            word = ""
    if word:
        yield word


def _is_wide(letter: str) -> bool:
    return ord(letter) >= 0x2E80


def _measured(text: str, size: int) -> float:
    """A generous width in pixels: fonts differ, and nothing may run over an edge."""
    return sum(size if _is_wide(letter) else 0.58 * size for letter in text)
