"""The SuperLink of a server, as a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from medfl.deployment.addresses import LOOPBACK, bound_sockets
from medfl.deployment.coordinator.server_folder import ServerFolder
from medfl.deployment.flower.superlink import serve_guarded


def arguments(folder: ServerFolder) -> list[str]:
    """What Flower's own command would be given."""
    return [
        # What is listened on is said below: Flower knows one address only.
        *("--host", LOOPBACK, "--port", str(folder.listen_port)),
        *("--ssl-certfile", str(folder.certificate), "--ssl-keyfile", str(folder.certificate_key)),
        *("--ssl-ca-certfile", str(folder.authority)),
        "--enable-supernode-auth",
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(folder.superexec_secret)),
        *("--database", str(folder.database)),
        "--disable-runtime-dependency-installation",
    ]


def main() -> None:
    """Serve until a signal comes or the parent process is gone.

    Reads the server's folder and the parent's process number from the command line.
    """
    folder, parent = ServerFolder(Path(sys.argv[1])), int(sys.argv[2])
    serve_guarded(
        arguments(folder),
        sockets=bound_sockets(folder.host, folder.listen_port),
        control_secret=folder.control_secret,
        parent=parent,
    )


if __name__ == "__main__":
    main()
