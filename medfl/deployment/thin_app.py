"""`ThinApp`: what a server ships to the sites; it holds no code and only names installed packages.

Flower sends an app to every node, which then runs it. Ours has one file that points at the medfl
package that the hospital has installed and reviewed. Its bytes follow from the version of medfl
alone, so both sides can make them, and a site refuses any other.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass

from medfl.version import __version__

# The first date that a zip archive can hold: the same bytes whenever they are made.
_DATE = (1980, 1, 1, 0, 0, 0)
_PROJECT = "pyproject.toml"


@dataclass(frozen=True, kw_only=True)
class ThinApp:
    """Two components by name.

    Attributes:
        server: The ServerApp, as ``module:name``.
        client: The ClientApp, as ``module:name``.
    """

    server: str
    client: str

    @property
    def content(self) -> bytes:
        """The archive that Flower ships."""
        project = (
            "[project]\n"
            'name = "medfl"\n'
            f'version = "{__version__}"\n\n'
            "[tool.flwr.app]\n"
            'publisher = "medfl"\n\n'
            "[tool.flwr.app.components]\n"
            f'serverapp = "{self.server}"\n'
            f'clientapp = "{self.client}"\n'
        ).encode()
        listed = f"{_PROJECT},{hashlib.sha256(project).hexdigest()},{len(project) * 8}"
        archive = io.BytesIO()
        # Stored, since the bytes of a compressed file depend on the installed zlib.
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
            file.writestr(_entry(_PROJECT), project)
            file.writestr(_entry(".info/CONTENT"), listed)
        return archive.getvalue()

    @property
    def digest(self) -> str:
        """SHA-256 of the archive, as hexadecimal text."""
        return hashlib.sha256(self.content).hexdigest()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, date_time=_DATE)
    entry.create_system = 3  # the same on every system
    return entry


THIN_APP = ThinApp(
    server="medfl.deployment.coordinator.server_component:app",
    client="medfl.deployment.hospital.client_component:app",
)
