"""The runs that a hospital is in now: `privacy.studies_at_once` of its file limits how many.

A run is open from the hospital's agreement until its final model has come, or until a proposal
comes from a server that does not name it among the runs it has under way. A server's word opens
nothing: a run that is not open is answered in no round as long as others have all places, so that
saying of a run that it has ended, or inventing another one, gives a server no more runs than the
policy allows. It must propose the run again, as `--resume` does, and there must be room. One case
is left to time: a run to which no server is connected any more is not proposed over, so that a
round of another agreed run may take its place once it has been silent for as long as its study's
own time limit of a round, and for an hour at least.

What is written here guards no budget: the ledger does, over all runs together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from medfl.config import SiteConfig, StudyConfig
from medfl.config.files import Section
from medfl.durable import write_atomically
from medfl.errors import PolicyRefused
from medfl.privacy.ledger.witness_lock import exclusive
from medfl.protocol.messages import Proposal
from medfl.runs.attendance import STUDIES_AT_ONCE
from medfl.site.state_folder import OPEN_RUNS

UNUSABLE = "policy-open-runs"
"""Code where it cannot be told which runs are open; the answer comes before any charge."""


LEAST_SILENCE_SECONDS = 3600.0
"""However short a time limit a server chooses: two runs in turns are two runs at once."""


class OpenRun(Section):
    """A run that the site is in.

    Attributes:
        study: Name of the study.
        silence: Seconds without a message after which another agreed run may take its place.
        heard: When its last message was answered, in seconds since 1970.
    """

    study: str
    silence: float = Field(gt=0)
    heard: float


_RUNS = TypeAdapter(dict[str, OpenRun])
_Runs = dict[str, OpenRun]


class OpenRuns:
    """The open runs of one site; open data have no limit, since nobody asks them but a simulation.

    Args:
        site: The site's file.
        clock: Says the time in seconds since 1970.
    """

    def __init__(self, site: SiteConfig, *, clock: Callable[[], float] = time.time) -> None:
        self._folder: Path = site.state / OPEN_RUNS
        self._limit = site.privacy.studies_at_once
        self._is_limited = site.purpose == "hospital"
        self._clock = clock

    def names(self) -> tuple[str, ...]:
        """Identifiers of the open runs, in the order in which they were opened.

        Raises:
            PolicyRefused: If the list is damaged.
        """
        return tuple(self._read())

    @contextmanager
    def entering(self, proposal: Proposal) -> Iterator[None]:
        """Open the proposed run after a `with` block in which the site agrees to it.

        Args:
            proposal: The run, and what else its server has under way.

        Raises:
            PolicyRefused: If as many others are open as the policy allows, or the list cannot be
                read or written.
        """
        if not self._is_limited:
            yield
            return
        with self._locked():
            runs = self._read()
            kept = {
                run: entry
                for run, entry in runs.items()
                if run == proposal.run or run in proposal.beside
            }
            self._insist_on_room(kept, run=proposal.run)
            yield
            self._write(self._with(kept, run=proposal.run, study=proposal.study))

    def require_room(self, run: str) -> None:
        """Refuse a round whose run is not open and cannot be opened; nothing is written.

        Raises:
            PolicyRefused: As `entering` says.
        """
        if self._is_limited:
            self._with_room_for(run)

    def require_open(self, run: str, *, study: StudyConfig) -> None:
        """Take note of a round that nothing else speaks against; open its run if there is room.

        Raises:
            PolicyRefused: As `entering` says.
        """
        if not self._is_limited:
            return
        with self._locked():
            runs = self._with_room_for(run)
            self._write(self._with(runs, run=run, study=study))

    def close(self, run: str) -> None:
        """Take note that a run has come to its end; its next round would need a place again.

        Raises:
            PolicyRefused: If the list cannot be read or written.
        """
        if not self._is_limited:
            return
        with self._locked():
            runs = self._read()
            if runs.pop(run, None) is not None:
                self._write(runs)

    def _with_room_for(self, run: str) -> _Runs:
        """The open runs, without silent ones where that makes room."""
        runs = self._read()
        if run not in runs:
            now = self._clock()
            runs = {
                name: entry for name, entry in runs.items() if now - entry.heard <= entry.silence
            }
            self._insist_on_room(runs, run=run)
        return runs

    def _insist_on_room(self, runs: _Runs, *, run: str) -> None:
        others = {name: entry for name, entry in runs.items() if name != run}
        if run in runs or len(others) < self._limit:
            return
        told = ", ".join(f"{name} (study {entry.study})" for name, entry in others.items())
        raise PolicyRefused(
            f"Refused the run {run}: the site's policy expects at most {self._limit} "
            f"stud{'y' if self._limit == 1 else 'ies'} at once (privacy.studies_at_once), found "
            f"the site in {told}.",
            code=STUDIES_AT_ONCE,
        )

    def _with(self, runs: _Runs, *, run: str, study: StudyConfig) -> _Runs:
        silence = max(LEAST_SILENCE_SECONDS, study.aggregation.round_timeout_seconds)
        return {**runs, run: OpenRun(study=study.id, silence=silence, heard=self._clock())}

    def _locked(self) -> AbstractContextManager[None]:
        return exclusive(self._folder / "lock")

    def _read(self) -> _Runs:
        path = self._folder / "runs.json"
        try:
            return _RUNS.validate_json(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError):
            raise PolicyRefused(
                f"{path}: expected the runs that this site is in, found a damaged file; delete it, "
                "and the next message of each run writes it again.",
                code=UNUSABLE,
            ) from None

    def _write(self, runs: _Runs) -> None:
        path = self._folder / "runs.json"
        try:
            write_atomically(path, _RUNS.dump_json(runs), mode=0o600)
        except OSError as error:
            raise PolicyRefused(
                f"{path}: the runs that this site is in could not be written: {error}.",
                code=UNUSABLE,
            ) from None
