"""Where pages come from: templates of this package, in which everything is escaped."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from medfl.reporting import han_font, wording
from medfl.reporting.figures import FigureFile
from medfl.reporting.texts import PageTexts, Texts

# Before all other fonts, and for nothing but Chinese: behind them, Chromium shows boxes in the text
# that it shapes before it has loaded this one.
_FONT_RULE = (
    '@font-face {{ font-family: "medfl Han"; unicode-range: U+2E80-FFEF; '
    "src: url(data:font/woff;base64,{}); }}"
)


@dataclass(frozen=True, kw_only=True)
class Image:
    """An embedded figure."""

    source: str
    alt: str


def page_environment() -> Environment:
    """A new environment; a name that a page lacks is an error."""
    return Environment(
        loader=PackageLoader("medfl", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def with_font(render: Callable[[Markup], str]) -> str:
    """A page with the Chinese characters that it shows.

    Args:
        render: Makes the page with a rule of style that stands before all others. It is called
            twice where there are such characters: the first pass says which of them are shown.
    """
    page = render(Markup())
    font = han_font.embeddable(page)
    return render(Markup(_FONT_RULE.format(font))) if font else page  # noqa: S704  Base64


def texted_environment(texts: Texts) -> Environment:
    """The same for a page whose sentences come from a catalogue.

    Args:
        texts: Of the reader's language.
    """
    environment, said = page_environment(), PageTexts(texts)
    shown = (wording.at_most, wording.plain, wording.power)
    environment.filters |= {function.__name__: function for function in shown}
    environment.globals |= {
        "t": said,
        "say": said.sentences,
        "day": texts.day,
        "listing": texts.listing,
        "number": texts.number,
    }
    return environment


def embedded(figure: FigureFile) -> Image:
    """A figure that stands in the page itself."""
    encoded = base64.b64encode(figure.path.read_bytes()).decode("ascii")
    return Image(source=f"data:image/png;base64,{encoded}", alt=figure.alt)
