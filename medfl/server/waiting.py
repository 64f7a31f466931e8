"""`Waiting`: who was asked in the current round and who has answered, for whoever looks on."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from medfl.server.run_folder import RunFolder


class Waiting:
    """Keeps ``waiting.json`` of a run folder while a round waits for answers.

    Args:
        folder: The run folder.
        round_number: 1 for the first round.
        asked: Names of the sites.
        timeout: Seconds until the round goes on without those that are silent.
    """

    def __init__(
        self, folder: RunFolder, *, round_number: int, asked: Iterable[str], timeout: float
    ) -> None:
        self._folder = folder
        since = datetime.now(UTC)
        self._fixed = {
            "round": round_number,
            "since": since.isoformat(),
            "deadline": (since + timedelta(seconds=timeout)).isoformat(),
            "asked": sorted(asked),
        }
        self._answered: list[str] = []
        self._write()

    def heard(self, site: str) -> None:
        """Take note of an answer, whatever it says."""
        self._answered.append(site)
        self._write()

    def _write(self) -> None:
        self._folder.write_waiting(self._fixed | {"answered": sorted(self._answered)})
