"""Before round 1 of a secure sum: every site learns with whom it will be added up, and agrees.

The roster is fixed for the whole run, also where it goes on after a crash: who is on it and missing
counts as fallen out, and who is not on it takes no part.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from flwr.app import RecordDict
from flwr.serverapp import Grid

from medfl.errors import MedflError, MessageError
from medfl.protocol.messages import Declaration, read_body, to_record
from medfl.protocol.secure_round import ROSTER, Member, Members, RosterTask
from medfl.server.agreement import check_declaration, content_of
from medfl.server.ledger import FederationLedger
from medfl.server.roll_call import RollCall
from medfl.server.run import Run

NOT_ON_ROSTER = "not-on-roster"
"""Code of a site that came when the sites of the run's sums were fixed already."""

logger = logging.getLogger(__name__)


def agree_on_roster(
    grid: Grid,
    run: Run,
    *,
    declarations: Mapping[str, Declaration],
    nodes: Mapping[str, int],
    roster: Members,
    ledger: FederationLedger,
    roll: RollCall,
) -> dict[str, Declaration]:
    """Ask every site of the roster to agree to it, and to the noise of the sum.

    Args:
        grid: The grid.
        run: The study, and the identifier of the run.
        declarations: What the sites declared that they need, by site.
        nodes: Their nodes.
        roster: Of the run, from `roster_of` or from before a crash.
        ledger: Takes note of every site that agrees.
        roll: Takes note of every site that does not.

    Returns:
        Declarations with the mechanism of the sum, of those that agreed.

    Raises:
        QuorumError: If they are fewer than `aggregation.min_sites`, or not all where the run
            requires them.
    """
    study = run.study
    invited = {site: said for site, said in declarations.items() if site in roster}
    # A run that goes on has its noise already: sites declare what they agreed to.
    sigma = max((said.mechanism.noise_multiplier for said in invited.values()), default=0.0)

    def question() -> RecordDict:
        return to_record(
            RosterTask(
                study=study,
                run=run.run,
                private=run.private,
                seen=run.seen,
                beside=run.beside,
                members=roster,
                noise_multiplier=sigma,
            )
        )

    for site in declarations.keys() - roster.keys():
        roll.miss(site, NOT_ON_ROSTER)
    answers = roll.ask(
        grid,
        [nodes[site] for site in invited],
        question=question,
        kind=ROSTER,
        group="roster",
    )
    agreed: dict[str, Declaration] = {}
    for site in invited:
        if nodes[site] not in answers:
            continue
        try:
            said = read_body(content_of(answers[nodes[site]]), Declaration)
            check_declaration(said, study=study, private=run.private, known=agreed)
            _expect_agreed(said, site=site, run=run.run, member=roster[site], sigma=sigma)
            ledger.declare(said)
        except MedflError as error:
            roll.miss(site, error.code)
        else:
            agreed[site] = said
    if len(agreed) < len(declarations):
        logger.warning("Left out of the secure sum: %s.", roll.problems)
    roll.require(agreed, to="agree to the roster of a secure sum")
    return agreed


def roster_of(declarations: Mapping[str, Declaration]) -> Members:
    """Everybody who agreed to the study."""
    return {
        site: Member(event_key=said.event_key, declared_patients=said.declared_patients)
        for site, said in sorted(declarations.items())
    }


def _expect_agreed(said: Declaration, *, site: str, run: str, member: Member, sigma: float) -> None:
    found = (said.site, said.run, said.event_key, said.declared_patients)
    expected = (site, run, member.event_key, member.declared_patients)
    if found != expected or said.mechanism.noise_multiplier != sigma:
        raise MessageError("Expected an answer to this roster.", code="declaration-roster")
