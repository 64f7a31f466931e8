"""The lines that a site's processes write, so that their parent can tell who says what.

Private names of Flower's: the form of its log's lines, and what they say of a connection.
"""

from __future__ import annotations

import logging
import re
import sys

from flwr.supercore.logger import update_console_handler

OWN = "medfl"
"""How medfl's own lines begin, where those of others begin with a level."""

CONNECTED = re.compile(r"SuperNode ID|Connection successful")
"""In a line of a node that has a connection, for the first time or again."""

FORGOTTEN = re.compile(r"task-token authentication failed|Failed to push task output: .* '401 ")
"""In a line of a task that is over for the node, as of each one whose run was stopped."""

UNCONNECTED = re.compile(r"Connection attempt failed")
"""In a line of a node that has none, and tries again."""


def log_to_parent() -> None:
    """Write plain lines to standard error: Flower's with their level, medfl's marked as its own."""
    update_console_handler(colored=False)
    logging.getLogger("flwr").propagate = False  # else each of its lines would appear twice
    logging.basicConfig(
        level=logging.WARNING, format=f"{OWN}: %(message)s", stream=sys.stderr, force=True
    )
    logging.getLogger("medfl").setLevel(logging.INFO)
