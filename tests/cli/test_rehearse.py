"""What `medfl rehearse` refuses before anything begins."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any


def test_a_port_that_is_taken_is_refused(medfl: Any, tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        ended = medfl("rehearse", "--port", port, "--keep", tmp_path / "kept")
    ended.refused(2, "--port", str(port))


def test_a_folder_in_use_is_refused(medfl: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    medfl("rehearse", "--keep", tmp_path).refused(2, "--keep", tmp_path)
