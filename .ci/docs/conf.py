"""The documents of the repository as a site that needs no network: `make docs`.

Sphinx reads the very files that the repository shows, where they lie, so that a link means the same
in both. Only the two pages of `notebooks/guides/reference` are filled in while the site is built:
the commands from the command line itself, the public names from their docstrings.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from sphinx.application import Sphinx

from medfl.version import __version__

sys.path.insert(0, str(Path(__file__).parent))  # where command_line.py is
logging.basicConfig(level=logging.WARNING)  # else the theme's colours set it, at INFO

project = "medfl"
version = release = __version__
html_title = f"medfl {__version__}"
html_show_copyright = False

root_doc = "README"
include_patterns = ["*.md", "notebooks/guides/**.md", "site_configs/*.md"]
exclude_patterns = [".*", "build", "dist", "medfl", "runs", "tests"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]

html_theme = "furo"  # carries its styles, scripts and icons, and uses the system's fonts
html_copy_source = False
html_show_search_summary = False  # a browser does not let a page of a folder fetch the others
templates_path = ["templates"]
html_additional_pages = {"index": "index.html"}  # leads to README.html, the name that links have

myst_heading_anchors = 4
highlight_language = "text"
smartquotes = False  # would make a dash of the two hyphens of an option
default_role = "py:obj"  # words in backticks, a link where they are a public name
maximum_signature_line_length = 88
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
napoleon_use_ivar = True

_CONTENTS = """
```{toctree}
:hidden:
:caption: Guides

notebooks/guides/hospital
site_configs/OPERATIONS
notebooks/guides/coordinator
notebooks/guides/researcher
notebooks/guides/data
notebooks/guides/data-protection
notebooks/guides/evidence
notebooks/guides/performance
```

```{toctree}
:hidden:
:caption: Reference

notebooks/guides/commands
notebooks/guides/reference/commands
notebooks/guides/reference/python
```

```{toctree}
:hidden:
:caption: The project

SECURITY
DECISIONS
CHANGELOG
CONTRIBUTING
```
"""


def _add_contents(app: Sphinx, name: str, text: list[str]) -> None:  # noqa: ARG001  Sphinx calls it
    # Not in README.md itself, where a reader of the repository would see them as code.
    if name == root_doc:
        text[0] += _CONTENTS


def setup(app: Sphinx) -> None:
    """Register the table of contents with Sphinx."""
    app.connect("source-read", _add_contents)
