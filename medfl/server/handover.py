"""After the last round: the final model goes once to every hospital that agreed to the run.

It is what the sites' noisy updates were averaged to, and so as private as they are. Sites with open
data are in simulations only, where it lies in the run folder, and are not asked.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from medfl.config import StudyConfig
from medfl.errors import MedflError
from medfl.protocol.messages import (
    FINISH,
    Declaration,
    Finished,
    FinishTask,
    Participant,
    Weights,
    expect,
    read_body,
    to_record,
)
from medfl.server.agreement import content_of
from medfl.server.ask import ask

HANDOVER_SECONDS = 600.0
"""How long a site may take; a round may last a day, but to keep a model takes seconds."""

logger = logging.getLogger(__name__)


def hand_over(
    weights: Weights,
    *,
    study: StudyConfig,
    run: str,
    grid: Grid,
    declarations: Mapping[str, Declaration],
    nodes: Mapping[str, int],
    timeout: float,
) -> dict[str, str]:
    """Send the final model.

    Args:
        weights: The model.
        study: The study.
        run: Identifier of the run.
        grid: The grid.
        declarations: Of all sites of the run, by site.
        nodes: Their nodes.
        timeout: Seconds that are waited for the sites.

    Returns:
        The hospitals that do not have it, with the code of the reason.
    """
    asked = [site for site, said in declarations.items() if said.purpose == "hospital"]
    if not asked:
        return {}
    sites = {
        site: Participant(label_scheme=said.label_scheme, mechanism=said.mechanism)
        for site, said in declarations.items()
    }
    question = to_record(FinishTask(study=study, run=run, sites=sites), weights=weights)
    found = ask(
        grid,
        {nodes[site]: question for site in asked},
        kind=FINISH,
        group="final",
        timeout=timeout,
    )
    codes = {site: _refusal(found.get(nodes[site]), site=site, run=run) for site in asked}
    undelivered = {site: code for site, code in codes.items() if code}
    if undelivered:
        told = ", ".join(f"{site}: {code}" for site, code in undelivered.items())
        logger.warning("The final model did not reach every hospital (%s).", told)
    return undelivered


def _refusal(reply: Message | None, *, site: str, run: str) -> str:
    """Empty text if the site has the model."""
    if reply is None:
        return "silent"
    try:
        answer = read_body(content_of(reply), Finished)
        expect((answer.site, answer.run) == (site, run), "finished-other", "an answer of this run")
    except MedflError as error:
        return error.code
    return ""
