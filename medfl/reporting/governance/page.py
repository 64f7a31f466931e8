"""A document as a page: in the look of the run's report, offline, and without a script."""

from __future__ import annotations

from medfl.reporting.governance.content import Document
from medfl.reporting.pages import page_environment, with_font


def to_page(document: Document) -> str:
    """The document as HTML."""
    template = page_environment().get_template("document.html.j2")
    return with_font(lambda font: template.render(document=document, font=font))
