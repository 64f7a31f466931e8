"""Which files of a server are its own account's alone, and a start that insists on it.

Anyone who reads them can impersonate the server, or reach its control path; anyone who writes them
can let a hospital in. Flower makes its database with the umask's mode, in a closed folder.
"""

from __future__ import annotations

from medfl.deployment.coordinator.options import OPTIONS
from medfl.deployment.coordinator.server_folder import FOLDERS, ServerFolder
from medfl.secret_files import changeable, refuse, require_owner_only

_FILES = (
    "superexec.secret",
    "control.secret",
    "ca.key",
    "server.key",
    "server.key.old",
    "sites.json",
)


def require_private(folder: ServerFolder) -> None:
    """Refuse a server whose secrets, keys or databases other accounts can read or write.

    Raises:
        ConfigError: If one is open.
    """
    path = folder.path
    jobs = sorted(folder.jobs.glob("*.json"))
    refuse(changeable([path / OPTIONS]))  # no secret, but it names a program that is run
    require_owner_only(path, *(path / name for name in (*FOLDERS, *_FILES)), *jobs)
