"""What makes a hospital's own model after a study, as a process of its own."""

from __future__ import annotations

import logging
import signal
import sys
import time
from pathlib import Path

import torch

from medfl.deployment.flower.log_lines import log_to_parent
from medfl.deployment.hospital.homework import TOLD
from medfl.deployment.hospital.site_file import load_hospital
from medfl.deployment.parent import read_secret
from medfl.errors import ConfigError
from medfl.protocol.failures import line_of
from medfl.segmentation.model_file import STAYS
from medfl.site.own_model import table_of, write_own_model
from medfl.site.run_models import models_of
from medfl.site.state import hospital_state

LINE_SECONDS = 60.0
"""Least time between two lines of one part of the work."""

logger = logging.getLogger(__name__)


def main() -> None:
    """Make the model; a failure is one line, and nothing else depends on it.

    Reads the site file and the run from the command line.
    """
    # Ctrl-C goes to all processes of the terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    read_secret()
    log_to_parent()
    site_file, run = sys.argv[1:]
    try:
        make_own_model(Path(site_file), run=run)
    except Exception as error:  # noqa: BLE001  whatever it is, its text may name a patient
        logger.warning("No model of the hospital's own was made from %s: %s", run, line_of(error))
        sys.exit(TOLD)


def make_own_model(site_file: Path, *, run: str) -> None:
    """Adapt the final model of a run as the site's file says.

    Args:
        site_file: The site's file.
        run: The run.

    Raises:
        ConfigError: If there are fewer than two training patients, or the device is not there.
        MedflError: If the model cannot be made for another reason.
    """
    site = load_hospital(site_file)
    torch.set_num_threads(site.threads)
    site_state, models = hospital_state(site), models_of(site.state, run=run)
    patients = len(site_state.members)
    if patients < 2:
        raise ConfigError(
            "Expected two training patients at least, so that one can judge what the other has "
            "taught, found fewer; the federated model serves as it is."
        )
    write_own_model(
        site_state,
        models.federated,
        out=models.own,
        start=models.start if models.start.exists() else None,
        steps=site.adapt.steps,
        folds=min(site.adapt.folds, patients),
        seed=site.adapt.seed,
        device=site.adapt.device,
        watch=_Lines(run),
    )
    # No score: a log may be shown to somebody who helps, and no guarantee covers scores.
    logger.info(
        "The hospital's own model of %s is in %s (%s); what was tried is in %s.",
        run,
        models.own,
        STAYS,
        table_of(models.own),
    )


class _Lines:
    """A line when a part of the work ends, and now and then before that."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._told = time.monotonic()

    def __call__(self, part: str, done: int, total: int) -> None:
        if done == total or time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            logger.info("%s: %s: %d/%d", self._run, part, done, total)
