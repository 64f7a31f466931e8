"""What the parts of `medfl audit` find of the code in a process with or without a planted bug."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from bugs import plant
from medfl.audit.canary_run import CANARIES, GUESSED, audit_study, small_federation
from medfl.audit.mechanism_probe import probe_mechanism
from medfl.audit.path_federation import path_federation
from medfl.audit.sensitivity import sensitivity_on_path

DRAWS, PATIENTS = 4, 5  # of the sensitivity

Check = Callable[[], str]
"""Looks at the code of this process and says what is wrong, or nothing."""


def _mechanism() -> str:
    # As a study clips unless it says something else.
    found = probe_mechanism(noise_origin="operating-system", clipping="normalised")
    return ", ".join(found.broken)


def _sensitivity() -> str:
    with tempfile.TemporaryDirectory() as scratch:
        study, sites = path_federation(Path(scratch) / "hospitals")
        found = sensitivity_on_path(
            study,
            sites,
            scratch=Path(scratch) / "path",
            draws=DRAWS,
            patients=PATIENTS,
            advance=lambda *_: None,
        )
    if found.keeps_promise:
        return ""
    return (
        f"{found.largest:.3g} C; of {found.worlds} rounds {found.changed} changed; "
        f"{found.failures} failures, {found.off_grid} off the grid"
    )


def _canaries() -> str:
    with tempfile.TemporaryDirectory() as scratch:
        study, sites = small_federation(Path(scratch) / "hospitals")
        found = audit_study(
            study,
            sites,
            canaries=CANARIES,
            guessed=GUESSED,
            out=Path(scratch) / "run",
            generator=np.random.default_rng(),
            advance=lambda *_: None,
        )
    if found.consistent:
        return ""
    return (
        f"epsilon {found.shown.epsilon:.1f} of {found.claimed_epsilon:.1f}, "
        f"mu {found.shown.mu:.2f} of {found.claimed_mu:.2f}"
    )


CHECKS: dict[str, Check] = {
    "mechanism": _mechanism,
    "sensitivity": _sensitivity,
    "canaries": _canaries,
}


def check(name: str, columns: Sequence[str], out: Path) -> None:
    """Plant a bug in this process and write one JSON line a column.

    Args:
        name: Of the bug.
        columns: Some of `CHECKS`.
        out: The file.
    """
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    plant(name)
    with out.open("w", encoding="utf-8") as lines:
        for column in columns:
            begin = time.monotonic()
            try:
                found = CHECKS[column]()
                outcome = "caught" if found else "missed"
            except Exception as error:  # noqa: BLE001  a bug may make the audit end anyhow
                found, outcome = f"{type(error).__name__}: {error}"[:300], "stopped"
            seconds = time.monotonic() - begin
            cell = {"outcome": outcome, "found": found, "seconds": seconds}
            print(json.dumps({"column": column, **cell}), file=lines, flush=True)
