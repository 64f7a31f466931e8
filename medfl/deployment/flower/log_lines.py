"""The lines that a site's processes write, so that their parent can tell who says what.

Private names of Flower's: the form of its log's lines.
"""

from __future__ import annotations

import logging
import sys

from flwr.supercore.logger import update_console_handler

OWN = "medfl"
"""How medfl's own lines begin, where those of others begin with a level."""


def log_to_parent() -> None:
    """Write plain lines to standard error: Flower's with their level, medfl's marked as its own."""
    update_console_handler(colored=False)
    logging.getLogger("flwr").propagate = False  # else each of its lines would stand there twice
    logging.basicConfig(
        level=logging.WARNING, format=f"{OWN}: %(message)s", stream=sys.stderr, force=True
    )
    logging.getLogger("medfl").setLevel(logging.INFO)
