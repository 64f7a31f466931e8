"""The font of Chinese characters that comes with medfl, for machines that have none.

Noto Sans SC (SIL Open Font License, ``fonts/OFL.txt``), reduced to the 3,755 most frequent
characters and those of the catalogues; CONTRIBUTING says how it was made. Figures need it since
matplotlib draws letters itself, pages since a bare server that prints them has no such font.
"""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from functools import cache
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont
from matplotlib.font_manager import fontManager

FAMILIES = ("DejaVu Sans", "Noto Sans SC")
"""For matplotlib: letter by letter the first that has it."""

_FILE = Path(__file__).with_name("fonts") / "NotoSansSC-Regular.otf"
_FIRST_HAN = 0x2E80  # of the blocks before it, every font has what a report needs


@cache
def make_known() -> None:
    """Let matplotlib find it, which keeps one list of fonts a process."""
    fontManager.addfont(_FILE)
    # There is no bold cut of it: a bold title takes this one, without a warning at each letter.
    fontManager.ttflist.append(replace(fontManager.ttflist[-1], weight="bold"))


def embeddable(page: str) -> str:
    """The Chinese characters of a page as a WOFF font in Base64; empty where there are none.

    A few hundred of them take a seventh of the whole font.

    Args:
        page: Whatever is shown on it; characters that the font lacks are left to the reader's own.
    """
    with TTFont(_FILE) as font:
        shown = {ord(letter) for letter in page if ord(letter) >= _FIRST_HAN}
        if not shown & font.getBestCmap().keys():
            return ""
        options = Options(layout_features=[], hinting=False)
        subsetter = Subsetter(options)
        subsetter.populate(unicodes=shown)
        subsetter.subset(font)
        font.flavor = "woff"
        reduced = io.BytesIO()
        font.save(reduced)
    return base64.b64encode(reduced.getvalue()).decode("ascii")
