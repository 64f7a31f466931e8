"""Runs one tiny federation of real processes on this machine, over TLS, to be measured.

    python pipelines/deployment_cost.py processes SITES PAYLOAD FOLDER

The arguments and what is left are those of `federation_cost.py`; the commands are those that a
coordinator and hospitals use. Everything that was started ends with this process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from resident_memory import forget_peak, peak_bytes, resident_bytes
from tiny_federation import write_sites, write_study

from medfl.deployment.processes import flower_environment, free_port, start, stop
from medfl.protocol.keys import PUBLIC

MEDFL = str(Path(sys.executable).parent / "medfl")
SERVING_SECONDS = 180.0
RUN_SECONDS = 780.0
SUPERLINK = "medfl.deployment.coordinator.superlink"

Launch = Callable[..., None]
"""Starts a medfl command under a name."""


def main() -> None:
    """Run what the arguments say."""
    way, count, payload, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    write_study(folder / "study.toml", way=way, sites=count, payload=payload)
    sites = write_sites(folder, sites=count, purpose="hospital")
    server, port = folder / "server", free_port()
    _medfl("server", "init", server, "--host", "127.0.0.1", "--port", port)
    for site in sites.values():
        _medfl("server", "admit", server, site.state / PUBLIC, site.name)
    begin = time.monotonic()
    with _processes(folder) as launch:
        launch("serving", "server", "start", server)
        _wait_until_serving(folder / "serving.log")
        superlink = _process_number(SUPERLINK, server)
        forget_peak(superlink)
        base = resident_bytes(superlink)
        for path, site in sites.items():
            address = f"127.0.0.1:{port}"
            launch(site.name, "site", "start", path, "--server", address, "--ca", server / "ca.crt")
        _medfl(
            *("server", "run", server, folder / "study.toml", "--out", folder / "run"),
            seconds=RUN_SECONDS,
        )
        peak = peak_bytes(superlink)
    line = {
        "total_seconds": time.monotonic() - begin,
        "superlink_bytes": None if base is None or peak is None else peak - base,
    }
    sys.stdout.write(json.dumps(line) + "\n")


def _medfl(*arguments: object, seconds: float = 120.0) -> None:
    command = [MEDFL, *map(str, arguments)]
    subprocess.run(command, check=True, timeout=seconds, stdout=subprocess.DEVNULL)  # noqa: S603


@contextmanager
def _processes(folder: Path) -> Iterator[Launch]:
    running: list[subprocess.Popen[bytes]] = []
    environment = flower_environment(home=folder / "flower")

    def launch(name: str, *arguments: object) -> None:
        command = [MEDFL, *map(str, arguments)]
        running.append(start(command, log=folder / f"{name}.log", environment=environment))

    try:
        yield launch
    finally:
        # All at once, sites before the server: one after the other would take minutes.
        for process in reversed(running):
            process.terminate()
        for process in reversed(running):
            stop(process)


def _wait_until_serving(log: Path) -> None:
    deadline = time.monotonic() + SERVING_SECONDS
    while "Serving" not in log.read_text(encoding="utf-8"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"Expected a server within {SERVING_SECONDS:g} s, found none.")
        time.sleep(0.2)


def _process_number(module: str, folder: Path) -> int:
    """The process that runs a module on a server's folder; 0, which is no process, if none."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it ended
            continue
        if module.encode() in words and os.fsencode(folder) in words:
            return int(path.parent.name)
    return 0


if __name__ == "__main__":
    main()
