"""Before round 1: every site is asked, and answers with the mechanism that it will run."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from medfl.config import StudyConfig
from medfl.errors import MedflError, MessageError
from medfl.privacy.accounting.accountant import Charge, epsilon
from medfl.privacy.mechanism import REVISION
from medfl.protocol.messages import Declaration, Proposal, read_body, refusal_code, to_record
from medfl.server.ledger import FederationLedger
from medfl.server.roll_call import RollCall
from medfl.server.run import Run

logger = logging.getLogger(__name__)

# A site's noise is rounded up, so that a recomputed epsilon can only be lower than the target.
EPSILON_TOLERANCE = 1e-6


def agree(
    grid: Grid, run: Run, *, ledger: FederationLedger, roll: RollCall
) -> tuple[dict[str, Declaration], dict[str, int]]:
    """Propose the study to every connected node.

    Args:
        grid: The grid.
        run: The study, and whom to ask; one that goes on is asked under the same identifier.
        ledger: Takes note of every site that agrees.
        roll: Takes note of every site that does not.

    Returns:
        Declarations by site, and the nodes by site.

    Raises:
        QuorumError: If fewer than `aggregation.min_sites` agree, or not all where the run requires
            them; it lists every refusal's code.
    """
    study = run.study
    nodes = roll.connected(grid)

    def question() -> RecordDict:
        return to_record(
            Proposal(
                study=study,
                run=run.run,
                private=run.private,
                seen=run.seen,
                beside=run.beside,
            )
        )

    answers = roll.ask(grid, nodes, question=question, kind="query", group="agree")
    declarations: dict[str, Declaration] = {}
    by_site: dict[str, int] = {}
    for number, node in enumerate(nodes, start=1):
        if node not in answers:
            continue
        try:
            declaration = read_body(content_of(answers[node]), Declaration)
            check_declaration(declaration, study=study, private=run.private, known=declarations)
            _expect_run(declaration, run=run.run)
            run.welcome(declaration, node)
            ledger.declare(declaration)
        except MedflError as error:
            roll.miss(roll.name_of(node, number=number), error.code)
        else:
            declarations[declaration.site] = declaration
            by_site[declaration.site] = node
    if roll.absent:
        logger.warning("Left out of the run: %s.", roll.problems)
    roll.require(declarations, to="agree to the study")
    return dict(sorted(declarations.items())), dict(sorted(by_site.items()))


def _expect_run(declaration: Declaration, *, run: str) -> None:
    if declaration.run != run:
        raise MessageError("Expected an answer for this run.", code="declaration-run")


def check_declaration(
    declaration: Declaration,
    *,
    study: StudyConfig,
    private: bool,
    known: Mapping[str, Declaration],
) -> None:
    """Accept a declaration that keeps the study's promise.

    Raises:
        MessageError: With a code of its own for each rule that is broken.
    """
    mechanism = declaration.mechanism
    agreed = (
        mechanism.sampling_prob == study.privacy.sampling_prob
        and mechanism.clip_norm == study.privacy.clip_norm
        and mechanism.clip_norm_schedule == study.clip_norm_schedule
        and mechanism.clipping == study.privacy.clipping
        and mechanism.local_steps == study.training.local_steps
        and mechanism.noise_origin == study.privacy.noise
        and mechanism.declared_patients == declaration.declared_patients
        and mechanism.is_private == private
        and mechanism.revision == REVISION
        and mechanism.trust == study.privacy.trust
        and mechanism.honest_sites == study.honest_sites
    )
    if not agreed:
        raise MessageError("Expected the study's mechanism.", code="declaration-mechanism")
    if declaration.site in known:
        raise MessageError("Expected one node a site.", code="declaration-doubled")
    if declaration.delta > 1 / (10 * declaration.declared_patients):
        raise MessageError("Expected delta <= 1/(10 n).", code="declaration-delta")
    planned = [Charge(mechanism=mechanism, steps=study.total_steps)]
    promised = study.privacy.epsilon + EPSILON_TOLERANCE
    if private and epsilon(planned, delta=declaration.delta) > promised:
        raise MessageError("Expected the study's epsilon.", code="declaration-epsilon")


def content_of(reply: Message) -> RecordDict:
    """The records of a reply.

    Raises:
        MessageError: With the site's code if the site refused, or if its node failed.
    """
    if reply.has_error():
        raise MessageError("Expected an answer, found a failed node.", code="node-error")
    code = refusal_code(reply.content)
    if code:
        raise MessageError(f"The site refused with code {code}.", code=code)
    return reply.content
