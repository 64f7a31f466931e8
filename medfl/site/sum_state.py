"""`SumState`: what a site keeps of the secure sums of one run, between the messages of a round.

Each message may be answered by a process of its own. What a round's next phase needs is secret and
is written, for the owner only, before the answer leaves: a site that forgot an answer could be
asked for another one, and two answers can unmask what one does not. Nor do two messages at once get
two: an answer leaves only if the state that it was made from is still the newest.
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from medfl.durable import write_atomically
from medfl.errors import FederationError, SecureSumRefused
from medfl.privacy.ledger.witness_lock import exclusive
from medfl.protocol.secure_round import Members
from medfl.secret_files import require_owner_only
from medfl.secure_sum.messages import Sign
from medfl.secure_sum.party import Party
from medfl.site.run_folders import folder_of_run
from medfl.site.state_folder import SUMS

_MEMBERS = TypeAdapter(Members)
_STATE = re.compile(r"round-([0-9]{7})\.state")


class SumState:
    """The roster of one run, and the state of its newest round.

    Args:
        folder: Where the site's ledger and outbox are.
        run: Identifier of the run.

    Raises:
        MessageError: If the run has no name for a folder.
    """

    def __init__(self, folder: Path, *, run: str) -> None:
        self._folder = folder_of_run(folder / SUMS, run=run)
        self._read: bytes | None = None

    def members(self) -> Members:
        """With whom the site agreed to form sums.

        Raises:
            SecureSumRefused: If it agreed to nobody.
            FederationError: If the file is damaged.
        """
        path = self._folder / "roster.json"
        if not path.exists():
            raise SecureSumRefused(
                "Expected a run for which this site agreed to a roster, found none.",
                code="secure-sum-roster",
            )
        require_owner_only(path)
        try:
            return _MEMBERS.validate_json(path.read_bytes())
        except ValidationError:
            raise FederationError(f"{path}: expected a roster, found a damaged file.") from None

    def require_roster(self, members: Members) -> None:
        """Refuse another roster than the one that the site agreed to; nothing if it has none yet.

        Raises:
            SecureSumRefused: If it agreed to another one before.
        """
        if (self._folder / "roster.json").exists() and self.members() != members:
            raise SecureSumRefused(
                "Expected the roster that this site agreed to for the run, found another.",
                code="secure-sum-roster",
            )

    def agree(self, members: Members) -> None:
        """Keep the roster of the run, once and for all.

        Raises:
            SecureSumRefused: If the site agreed to another one before.
        """
        self.require_roster(members)
        if (self._folder / "roster.json").exists():
            return
        # `parents` would make the folders above with the umask's mode.
        for folder in (self._folder.parent.parent, self._folder.parent, self._folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = _MEMBERS.dump_json(dict(sorted(members.items())))
        write_atomically(self._folder / "roster.json", content, mode=0o600)

    def begin(self, party: Party) -> None:
        """Keep the first state of a round, and forget the rounds before it.

        Raises:
            SecureSumRefused: If this round or a later one was begun: its secrets are never made
                again.
        """
        number = party.terms.round
        with exclusive(self._folder / "lock"):
            newest = self.newest
            if number <= newest:
                raise SecureSumRefused(
                    f"Expected a round after {newest}, the last that was begun, found {number}.",
                    code="secure-sum-again",
                )
            self._write(party)
            for path in self._folder.glob("round-*.state"):
                if path != self._path(number):
                    path.unlink()

    @property
    def newest(self) -> int:
        """The last round that was begun; 0 if none was."""
        found = [_STATE.fullmatch(path.name) for path in self._folder.glob("round-*.state")]
        return max((int(match[1]) for match in found if match), default=0)

    def party(self, round_number: int, *, sign: Sign) -> Party:
        """This site in a round, as it left its last phase.

        Raises:
            SecureSumRefused: If the site is in no such round, or its state is damaged.
        """
        path = self._path(round_number)
        if not path.exists():
            raise SecureSumRefused(
                f"Expected a round that this site has begun, found {round_number}.",
                code="secure-sum-order",
            )
        require_owner_only(path)
        self._read = path.read_bytes()
        return Party.restore(self._read, sign=sign)

    def keep(self, party: Party) -> None:
        """Write a phase's state, before its answer leaves.

        Raises:
            SecureSumRefused: If another message was answered since `party` was read.
        """
        with exclusive(self._folder / "lock"):
            path = self._path(party.terms.round)
            if not path.exists() or path.read_bytes() != self._read:
                raise SecureSumRefused(
                    f"Expected one message of round {party.terms.round} at a time, found another "
                    "that was answered meanwhile.",
                    code="secure-sum-again",
                )
            self._write(party)

    def _write(self, party: Party) -> None:
        self._read = party.state()
        write_atomically(self._path(party.terms.round), self._read, mode=0o600)

    def _path(self, round_number: int) -> Path:
        return self._folder / f"round-{round_number:07d}.state"
