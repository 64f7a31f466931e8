"""A process of a running site: it lives and dies with the one that started it, which logs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Collection

from medfl.deployment.hospital.site_log import SiteLog


def start_child(
    module: str, arguments: list[str], *, secret: bytes, inherited: Collection[int] = ()
) -> subprocess.Popen[bytes]:
    """Start the function `main` of a module.

    Args:
        module: Its name.
        arguments: Of its command line.
        secret: What it reads by `medfl.deployment.parent.read_secret`.
        inherited: File descriptors that stay open in it, by the same numbers.
    """
    # Not `-m`: a fork server would run such a module again in every fork.
    command = [sys.executable, "-c", f"from {module} import main; main()", *arguments]
    # How often the runner asks the node for a message, in seconds.
    environment = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2", **os.environ}
    child = subprocess.Popen(  # noqa: S603
        command,
        env=environment,
        pass_fds=inherited,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    # The pipe stays open: its end tells the child that this process is gone.
    stdin = child.stdin
    if stdin is not None:
        stdin.write(secret)
        stdin.flush()
    return child


def follow_child(
    log: SiteLog, child: subprocess.Popen[bytes], *, notice: Callable[[str], None] = lambda _: None
) -> None:
    """Log what a child writes until it ends; `notice` is shown each line."""
    output = child.stdout
    if output is not None:
        with output:
            log.follow((line.decode(errors="replace") for line in output), notice=notice)
