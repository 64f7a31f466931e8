"""`Finding`: one thing that a person should know, of data, machine, network or ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a person should know before a study.

    Attributes:
        severity: An ``error`` forbids training, a ``warning`` deserves a look.
        patient: The site's own identifier; empty for the whole cohort.
        name: File, folder or setting at this site.
        rule: What was expected; never names a patient or an image.
        value: What was found.
        fix: What to do about it.
        names: Whether `value` or `fix` holds local names.
    """

    severity: Severity
    patient: str
    name: str
    rule: str
    value: str
    fix: str
    names: bool = False
