"""Where pages come from: templates of this package, in which everything is escaped."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def page_environment() -> Environment:
    """A new environment; a name that a page lacks is an error."""
    return Environment(
        loader=PackageLoader("medfl", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
