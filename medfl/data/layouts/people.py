"""Who a name is, where a public collection made it: two timepoints of one person are one patient.

Collections are converted and moved about, and keep their cases' names in layouts that cannot know
what part of a name is the person. Taking two people for one protects them more than was asked;
taking one for two halves the protection, so that a name that is known is always read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from medfl.data.layouts.brats import BRATS
from medfl.data.layouts.glioma_collections import COLLECTIONS

# Follow-ups that the first versions of UCSF-PDGM published under numbers of their own; since the
# third they are called after the person.
_RENUMBERED: Mapping[str, str] = MappingProxyType(
    {
        "UCSF-PDGM-0138": "UCSF-PDGM-0429",
        "UCSF-PDGM-0175": "UCSF-PDGM-0396",
        "UCSF-PDGM-0181": "UCSF-PDGM-0409",
        "UCSF-PDGM-0278": "UCSF-PDGM-0431",
        "UCSF-PDGM-0289": "UCSF-PDGM-0391",
        "UCSF-PDGM-0315": "UCSF-PDGM-0433",
    }
)
_RULES = (*BRATS.values(), *COLLECTIONS.values())
_CASES = (
    *(re.compile(rule.case, re.IGNORECASE) for rule in _RULES if rule.case),
    *(
        re.compile(f"(?P<patient>{rule.patient})[_-]{rule.session}", re.IGNORECASE)
        for rule in _RULES
        if rule.session
    ),
    re.compile(r"(?P<patient>sub-[A-Za-z0-9]+)_ses-[A-Za-z0-9]+"),
)


def person_of(name: str) -> str:
    """The person that a name refers to.

    Args:
        name: Of a case or a patient.

    Returns:
        The patient, if a known collection calls cases so; else the name as it is.
    """
    match = next((m for pattern in _CASES if (m := pattern.fullmatch(name))), None)
    patient = match["patient"] if match else name
    return _RENUMBERED.get(patient, patient)
