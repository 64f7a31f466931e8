"""A process of a running site: it lives and dies with the one that started it, which logs it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from medfl.deployment.hospital.site_log import SiteLog

READ_SECONDS = 0.5
"""How long an ended process is heard out."""


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


@dataclass(kw_only=True)
class Child:
    """A process whose lines are logged, from now on and until it ends.

    Attributes:
        log: What it writes goes there.
        notice: Is shown each line.
        last_line: What it wrote last: of an error that nobody caught, which error.
    """

    process: subprocess.Popen[bytes]
    log: SiteLog
    notice: Callable[[str], None] = lambda _: None
    last_line: str = ""
    _reader: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()

    def heard(self) -> None:
        """Wait for what an ended process still had to say."""
        self._reader.join(timeout=READ_SECONDS)

    def _follow(self) -> None:
        output = self.process.stdout
        if output is not None:
            with output:
                lines = (line.decode(errors="replace") for line in output)
                self.log.follow(lines, notice=self._hear)

    def _hear(self, line: str) -> None:
        self.last_line = line or self.last_line
        self.notice(line)
