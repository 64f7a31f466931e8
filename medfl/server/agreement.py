"""Before round 1: every site is asked, and answers with the mechanism that it will run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from medfl.config import StudyConfig
from medfl.errors import MedflError, MessageError, QuorumError
from medfl.privacy.accounting.accountant import Charge, epsilon
from medfl.privacy.mechanism import REVISION
from medfl.protocol.messages import Declaration, Proposal, read_body, refusal_code, to_record
from medfl.server.ask import ask, wait_for_nodes
from medfl.server.ledger import FederationLedger

logger = logging.getLogger(__name__)

# A site's noise is rounded up, so that a recomputed epsilon can only be lower than the target.
EPSILON_TOLERANCE = 1e-6

Doorkeeper = Callable[[Declaration, int], None]
"""Raises `MessageError` for a declaration that may not come from the node with this identifier."""


def welcome_all(declaration: Declaration, node: int) -> None:
    """Let every site in, where whoever runs the study has chosen the sites."""


def agree(
    grid: Grid,
    study: StudyConfig,
    *,
    run: str,
    private: bool,
    ledger: FederationLedger,
    timeout: float,
    welcome: Doorkeeper = welcome_all,
    seen: tuple[str, ...] = (),
) -> tuple[dict[str, Declaration], dict[str, int]]:
    """Propose the study to every connected node.

    Args:
        grid: The grid.
        study: The proposal.
        run: Identifier of the run; a resumed one is asked under the same.
        private: False for the baseline without noise.
        ledger: Takes note of every site that agrees.
        timeout: Seconds to wait for nodes, and then for their answers.
        welcome: Decides which site may declare for which node.
        seen: Digests of the images that the study's start has seen.

    Returns:
        Declarations by site, and the nodes by site.

    Raises:
        QuorumError: If fewer than `aggregation.min_sites` agree; it lists every refusal's code.
    """
    settings = study.aggregation
    nodes = wait_for_nodes(grid, minimum=settings.min_sites, timeout=timeout)
    question = to_record(Proposal(study=study, run=run, private=private, seen=seen))
    answers = ask(
        grid, dict.fromkeys(nodes, question), kind="query", group="agree", timeout=timeout
    )
    declarations: dict[str, Declaration] = {}
    by_site: dict[str, int] = {}
    problems: list[str] = []
    for number, node in enumerate(nodes, start=1):
        if node not in answers:
            problems.append(f"site {number}: silent")
            continue
        try:
            declaration = read_body(content_of(answers[node]), Declaration)
            check_declaration(declaration, study=study, private=private, known=declarations)
            _expect_run(declaration, run=run)
            welcome(declaration, node)
            ledger.declare(declaration)
        except MedflError as error:
            problems.append(f"site {number}: {error.code}")
        else:
            declarations[declaration.site] = declaration
            by_site[declaration.site] = node
    if problems:
        logger.warning("Left out of the run: %s.", "; ".join(problems))
    if len(declarations) < settings.min_sites:
        raise QuorumError(
            f"Expected at least {settings.min_sites} sites that agree to the study, found "
            f"{len(declarations)} ({'; '.join(problems) or 'no refusals'})."
        )
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
