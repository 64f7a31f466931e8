"""`ServerSettings`: under which address hospitals reach a server, and where it listens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError

from medfl.config.files import Section
from medfl.deployment.addresses import bare
from medfl.deployment.invitation import FederationName
from medfl.durable import write_atomically
from medfl.errors import ConfigError

FEDERATION = "medfl federation"
SETTINGS = "server.json"

Port = Annotated[int, Field(ge=1, le=65535)]


class ServerSettings(Section):
    """The content of a server's ``server.json``.

    Attributes:
        host: DNS name or IP address, without brackets.
        port: TCP port that hospitals use.
        federation: Name of the federation.
        listen_port: TCP port of this machine, where it is another one.
    """

    host: str
    port: Port
    federation: FederationName = FEDERATION
    listen_port: Port | None = None

    @classmethod
    def of(cls, *, host: str, port: int, listen_port: int | None, federation: str) -> Self:
        """Settings as somebody gives them; a listening port that is no other one is left out.

        Raises:
            ConfigError: If port or name cannot be.
        """
        try:
            return cls(
                host=bare(host),
                port=port,
                listen_port=None if listen_port == port else listen_port,
                federation=federation,
            )
        except ValidationError:
            ports = sorted({port, listen_port or port})
            raise ConfigError(
                "Expected ports from 1 to 65535 and a federation's name of 1 to 60 letters, "
                f"digits, spaces, '.', '-' or '_', found {ports} and {federation!r}."
            ) from None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read them from a server's folder.

        Raises:
            OSError: If they cannot be read.
            ValueError: If they are damaged.
        """
        return cls.model_validate_json((folder / SETTINGS).read_text(encoding="utf-8"))

    def write(self, folder: Path) -> None:
        """Replace them in a server's folder."""
        # Without what is not set, so that an earlier version reads them too.
        text = self.model_dump_json(indent=2, exclude_none=True)
        write_atomically(folder / SETTINGS, text.encode())
