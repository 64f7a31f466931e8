"""Bugs that `planted_bugs.py` plants into the code that users run."""

from __future__ import annotations

from bugs.clipping import CLIPPING
from bugs.draws import DRAWS
from bugs.noise import NOISE
from bugs.patients import PATIENTS
from bugs.payment import LEDGER
from bugs.planting import Bug, Planting
from bugs.secure import SECURE

BUGS: tuple[Bug, ...] = (*NOISE, *CLIPPING, *DRAWS, *PATIENTS, *LEDGER, *SECURE)

NONE = "none planted"
"""Name of the right code, which nothing may accuse."""


def plant(name: str) -> Planting:
    """Plant a bug in this process; `Planting.undo` takes it away.

    Args:
        name: Of one of `BUGS`, or `NONE`.

    Raises:
        ValueError: If there is no such bug, or the code was rewritten under it.
    """
    planting = Planting()
    if name != NONE:
        bug_named(name).plant(planting)
    return planting


def bug_named(name: str) -> Bug:
    """One of `BUGS`.

    Raises:
        ValueError: If there is none of this name.
    """
    for bug in BUGS:
        if bug.name == name:
            return bug
    raise ValueError(f"Expected one of {[bug.name for bug in BUGS]}, found {name!r}.")
