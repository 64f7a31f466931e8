"""The server's own account of what every site has spent.

Epsilon is recomputed here from the reported events and never believed. Everything that a site
released counts, also what the server then rejected, and so does what a site was asked for and never
answered, until the site's ledger says otherwise. A site that reports anything but the mechanism it
agreed to is counted as having added no noise: nothing is known of what it did.

Sites sign what they say of their ledgers. A ledger that goes back, or that was charged for less
than the site has released, was restored from an old copy: its site is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from medfl.privacy.accounting.accountant import Charge, epsilon
from medfl.privacy.mechanism import Mechanism
from medfl.protocol.keys import is_successor
from medfl.protocol.messages import Declaration, SiteUpdate, Statement, expect
from medfl.runs.records import Event, EventMechanism
from medfl.server.run_folder import RunFolder

BEFORE_CHARGE = ("budget", "cache", "message", "policy")
"""First words of the codes with which a site refuses before it charges anything."""

_UNKNOWN = 0.0  # epsilon of an event, until it is counted


@dataclass
class _Account:
    """What is known of one site.

    Attributes:
        charges: One for each event, by the mechanism that was agreed at its time.
        head: Sequence of the newest head that came with an update.
        stated: Steps that the site's ledger was charged for, as it last said.
        presumed: Steps that the site was asked for since, without an answer.
        last: The newest statement.
    """

    declaration: Declaration
    last: Statement
    charges: list[Charge] = field(default_factory=list)
    head: int = 0
    stated: int = 0
    presumed: int = 0

    @property
    def released(self) -> int:
        """Steps of all events."""
        return sum(charge.steps for charge in self.charges)

    @property
    def unseen(self) -> int:
        """Steps that were charged, or may have been, and whose result never came."""
        return max(0, self.stated - self.released) + self.presumed


class FederationLedger:
    """Events of one run by site, appended to the run folder as they come.

    Args:
        folder: Where earlier events of this run are read from and new ones go.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._accounts: dict[str, _Account] = {}
        self._seen: set[tuple[str, str, int]] = set()
        self._events = 0
        declarations = folder.declarations()
        for event in folder.events():
            while declarations and declarations[0][0] <= self._events:
                self._declared(declarations.pop(0)[1])
            self._replay(event)
        for _, declaration in declarations:
            self._declared(declaration)

    @property
    def declarations(self) -> Mapping[str, Declaration]:
        """The newest declaration of every site that ever joined this run, sorted by site."""
        return {site: self._accounts[site].declaration for site in sorted(self._accounts)}

    def declare(self, declaration: Declaration) -> None:
        """Take note of a site that joins, or joins again after a crash.

        Raises:
            MessageError: If it is not signed by the key that this site had, or one that followed;
                or if its ledger is older than what it has shown before.
        """
        known = self._accounts.get(declaration.site)
        expect(
            declaration.is_signed_by(declaration.event_key),
            "declaration-signature",
            "a declaration signed by its own event key",
        )
        if known is not None:
            expect(
                is_successor(
                    declaration.event_key,
                    of=known.declaration.event_key,
                    rotations=declaration.rotations,
                ),
                "declaration-key",
                "the event key that the site joined with, or one that it named",
            )
            self._expect_growth(declaration, known)
        self._folder.append_declaration(declaration, after_events=self._events)
        self._declared(declaration)

    def check(self, update: SiteUpdate, *, site: str) -> None:
        """Screen what an update says of the site's ledger, before it is recorded.

        Raises:
            MessageError: If it is not signed by the site, or its ledger is older than what the site
                has shown before.
        """
        account = self._accounts[site]
        expect(
            update.is_signed_by(account.declaration.event_key),
            "update-signature",
            "an update signed by the site",
        )
        if (site, update.message_id, update.ledger_sequence) in self._seen:
            return
        expect(update.ledger_sequence > account.head, "ledger-rolled-back", "a ledger that grows")
        expect(
            update.run_steps >= account.released + update.steps,
            "ledger-rolled-back",
            "a ledger that was charged for all that the site released",
        )

    def record(self, update: SiteUpdate, *, site: str, round_number: int, admitted: bool) -> float:
        """Count an update and return the site's epsilon of this run.

        An update that a site sends again out of its outbox answers the same message with the same
        ledger sequence and is counted once.
        """
        key = (site, update.message_id, update.ledger_sequence)
        if key not in self._seen:
            declaration = self._accounts[site].declaration
            signed = update.run == declaration.run and update.is_signed_by(declaration.event_key)
            self._append(
                Event(
                    sequence=self._events + 1,
                    round=round_number,
                    site=site,
                    message_id=update.message_id,
                    mechanism=EventMechanism(**update.mechanism.to_dict()),
                    steps=update.steps,
                    admitted=admitted,
                    ledger_sequence=update.ledger_sequence,
                    ledger_hash=update.ledger_hash,
                    signed=signed,
                    statement=update.model_dump_json(),
                    epsilon=_UNKNOWN,
                )
            )
        return self.epsilon(site)

    def presume(self, site: str, *, round_number: int, code: str) -> float:
        """Count a round that a site was asked for and whose update never came.

        Whether its ledger was charged is unknown until the site speaks again, so it is taken to
        have been, unless the site refused with a code that comes before the charge.
        """
        mechanism = self._accounts[site].declaration.mechanism.in_round(round_number)
        if code.split("-")[0] not in BEFORE_CHARGE:
            self._append(
                Event(
                    sequence=self._events + 1,
                    round=round_number,
                    site=site,
                    mechanism=EventMechanism(**mechanism.to_dict()),
                    steps=mechanism.local_steps,
                    admitted=False,
                    presumed=code or "silent",
                    epsilon=_UNKNOWN,
                )
            )
        return self.epsilon(site)

    def charges(self, site: str) -> Sequence[Charge]:
        """What a site has spent in this run, what never arrived included."""
        account = self._accounts[site]
        if not account.unseen:
            return tuple(account.charges)
        mechanism = account.declaration.mechanism
        return (*account.charges, Charge(mechanism=mechanism, steps=account.unseen))

    def unseen_steps(self, site: str) -> int:
        """Steps that a site was charged for, or may have been, and whose result never came."""
        return self._accounts[site].unseen

    def epsilon(self, site: str) -> float:
        """Epsilon of a site in this run, at the site's delta."""
        return epsilon(self.charges(site), delta=self._accounts[site].declaration.delta)

    def newest(self, site: str) -> Statement:
        """What a site last said of its ledger."""
        return self._accounts[site].last

    def _expect_growth(self, statement: Statement, account: _Account) -> None:
        before = account.last
        grown = statement.ledger_sequence > before.ledger_sequence or (
            statement.ledger_sequence == before.ledger_sequence
            and statement.ledger_hash == before.ledger_hash
        )
        expect(grown, "ledger-rolled-back", "a ledger that grows")
        expect(
            statement.run_steps >= max(account.released, account.stated),
            "ledger-rolled-back",
            "a ledger that was charged for all that the site released",
        )

    def _append(self, event: Event) -> None:
        self._replay(event)
        after = self.epsilon(event.site)
        self._folder.append_event(event.model_copy(update={"epsilon": after}))

    def _declared(self, declaration: Declaration) -> None:
        account = self._accounts.get(declaration.site)
        if account is None:
            account = _Account(declaration=declaration, last=declaration)
            self._accounts[declaration.site] = account
        account.declaration, account.last = declaration, declaration
        account.stated, account.presumed = declaration.run_steps, 0

    def _replay(self, event: Event) -> None:
        self._events += 1
        account = self._accounts.get(event.site)
        if account is None:
            return
        if event.presumed:
            account.presumed += event.steps
            return
        self._seen.add((event.site, event.message_id, event.ledger_sequence))
        agreed = account.declaration.mechanism
        if not _keeps_to(agreed, event):
            # Not composed as reported: an absurd report could keep an accountant busy for hours.
            agreed = replace(agreed, noise_multiplier=0.0)
        account.charges.append(Charge(mechanism=agreed, steps=agreed.local_steps))
        if event.signed:
            statement = SiteUpdate.model_validate_json(event.statement)
            account.head = max(account.head, statement.ledger_sequence)
            account.stated = max(account.stated, statement.run_steps)
            newer = statement.ledger_sequence > account.last.ledger_sequence
            # An old ledger does not tell what was charged since.
            if newer and statement.run_steps >= account.released:
                account.last, account.presumed = statement, 0


def _keeps_to(agreed: Mechanism, event: Event) -> bool:
    """Whether an update reports the mechanism that was agreed to, in the round that it speaks of.

    An answer that comes a round too late is one to its own round, whose clip norm may be another.
    """
    spoken_of = event.round
    if event.statement:
        spoken_of = SiteUpdate.model_validate_json(event.statement).round
    reported = Mechanism.from_dict(event.mechanism.model_dump())
    try:
        expected = agreed.in_round(spoken_of)
    except ValueError:  # a round that the study does not have
        return False
    return reported == expected and event.steps == agreed.local_steps
