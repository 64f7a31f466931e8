"""`write_pdf`: the page as a PDF in A4, printed by a library that pip installs.

PlutoPrint lays out HTML with print styles and needs neither a browser nor a library of the system.
The letters come from the page and from matplotlib, so that a server without any font prints the
same pages as a desk. Nothing is fetched: the page holds all that it shows, and any other address is
refused.
"""

from __future__ import annotations

import base64
from pathlib import Path

import matplotlib as mpl

from medfl.durable import written_aside
from medfl.errors import PdfUnavailable, ReportError

_FONT_RULE = (
    '@font-face {{ font-family: "{family}"; font-weight: {weight}; '
    "src: url(data:font/ttf;base64,{font}); }}"
)
_FONTS = (
    ("medfl Latin", "normal", "DejaVuSans.ttf"),
    ("medfl Latin", "bold", "DejaVuSans-Bold.ttf"),
    ("medfl Mono", "normal", "DejaVuSansMono.ttf"),
)
_FAMILIES = (
    'body { font-family: "medfl Han", "medfl Latin" !important; }\n'
    'code, pre { font-family: "medfl Han", "medfl Mono" !important; }'
)


def write_pdf(page: Path) -> Path:
    """Print a report.

    Args:
        page: An HTML page that `write_report` wrote.

    Returns:
        The path of the PDF, beside the page and named after it.

    Raises:
        PdfUnavailable: If PlutoPrint is not installed, or does not load here.
        ReportError: If the folder cannot be written.
    """
    try:
        import plutoprint
    except ImportError as error:
        raise PdfUnavailable(
            f"--pdf: expected the package plutoprint (pip install plutoprint), "
            f"found: {error}. The report itself was written: {page}"
        ) from None

    class Refusing(plutoprint.ResourceFetcher):
        """Answers no address at all; data that stands in the page is no address."""

        def fetch_url(self, url: str) -> plutoprint.ResourceData:
            raise ValueError(f"expected a page that loads nothing, found {url[:80]!r}")

    target = page.with_suffix(".pdf")
    book = plutoprint.Book(plutoprint.PAGE_SIZE_A4)
    book.custom_resource_fetcher = Refusing()
    source = page.read_text(encoding="utf-8")
    book.load_html(source, user_style=_style(), base_url="about:report")
    try:
        with written_aside(target) as draft, draft.open("wb") as file:
            book.write_to_pdf_stream(file)
    except OSError as error:
        raise ReportError(f"{target}: expected a writable file, found: {error}") from None
    return target


def _style() -> str:
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    rules = [
        _FONT_RULE.format(
            family=family,
            weight=weight,
            font=base64.b64encode((folder / name).read_bytes()).decode("ascii"),
        )
        for family, weight, name in _FONTS
    ]
    return "\n".join((*rules, _FAMILIES))
