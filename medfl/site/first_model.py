"""What a site does with the first model of a run: it keeps it, to try what it could make alone."""

from __future__ import annotations

import logging
from pathlib import Path

from medfl.config import StudyConfig
from medfl.errors import FederationError, MessageError
from medfl.protocol.failures import line_of
from medfl.protocol.messages import Weights
from medfl.protocol.study_model import study_model_bytes
from medfl.site.run_models import models_of, write_model

logger = logging.getLogger(__name__)


def keep_start(state: Path, weights: Weights, *, study: StudyConfig, run: str) -> None:
    """Keep the model that round 1 of a run begins with; the first one that came stays.

    That no patient had trained it is the server's word. Nothing rests on it but the name of a
    candidate: what is made of it stays at the hospital, and no study accepts it as its start. For
    the same reason a failure is noted and no more.

    Args:
        state: The site's state folder.
        weights: What the server sent.
        study: The study.
        run: Identifier of the run.
    """
    try:
        path = models_of(state, run=run).start
        if not path.exists():
            content = study_model_bytes(weights, study=study, round_number=0, declarations={})
            write_model(path, content)
    except (FederationError, MessageError) as error:
        logger.warning("The run's first model was not kept: %s", line_of(error))
