"""What runs a site's ClientApps, as a process of its own."""

from __future__ import annotations

import sys

from medfl.deployment.flower.log_lines import log_to_parent
from medfl.deployment.flower.tasks import run_forked_tasks
from medfl.deployment.parent import read_secret

CLIENT_APP = "medfl.deployment.hospital.client_component"
"""What is imported once, before the first message."""


def main() -> None:
    """Run until a signal comes or the parent process is gone.

    Reads the SuperNode's address from the command line.
    """
    secret = read_secret()
    log_to_parent()
    run_forked_tasks(sys.argv[1], secret=secret, preload=CLIENT_APP)
