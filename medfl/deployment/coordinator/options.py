"""`ServerOptions`: what a coordinator writes by hand; the server runs without the file."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field

from medfl.config.files import Section, load
from medfl.config.monitoring import Monitoring

OPTIONS = "server.toml"


class ServerOptions(Section):
    """The content of a server's ``server.toml``.

    Attributes:
        monitoring: What the running server shows on this machine, and whom it calls.
    """

    monitoring: Monitoring = Field(default_factory=Monitoring)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read them from a server's folder; without a file, what holds without one.

        Raises:
            ConfigError: If the file breaks a rule.
        """
        path = folder / OPTIONS
        return load(path, cls) if path.exists() else cls()
