"""`shareable`: findings as they may be shown to somebody who helps a site.

Patients become keyed hashes, values that hold local names are left out, and a fix stays what it is:
without it nobody could help. The site's own folders in a fix become words, and a fix that holds
any other name is left out as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from medfl.config import SiteConfig
from medfl.data.cohort import pseudonym
from medfl.findings import Finding

NOT_SHARED = "(not shared)"

# The beginning of a path from the root or from somebody's home, and not the bar in "and/or".
_PATH = re.compile(r"(?<![\w.)])~?/\w")


def shareable(
    findings: Iterable[Finding],
    *,
    key: bytes,
    places: Mapping[str, str] = MappingProxyType({}),
) -> list[Finding]:
    """Findings without anything that identifies a patient or a place of this site.

    Args:
        findings: For the site's own screen.
        key: Secret of the pseudonyms; without it, findings carry none.
        places: What a rule or a fix says in place of this site's own folders, files and server; see
            `places_of`.
    """
    return [
        replace(
            finding,
            patient=pseudonym(finding.patient, key=key) if key and finding.patient else "",
            name="",
            rule=_without(finding.rule, places),
            value=NOT_SHARED if finding.names else finding.value,
            fix=_shared_fix(finding, places) if finding.names else finding.fix,
        )
        for finding in findings
    ]


def places_of(
    site: SiteConfig, *, study: Path | None, server: str, ca: Path | None
) -> dict[str, str]:
    """The places that fixes name, each with the word for it that can be shared.

    Args:
        site: Its folders.
        study: The study file that was tried.
        server: ``HOST:PORT`` of the server; empty without one.
        ca: The authority's certificate.
    """
    places = dict.fromkeys(site.data.roots, "ROOT") | {site.state: "STATE"}
    if study is not None:
        places[study] = "STUDY.toml"
    if ca is not None:
        places[ca] = "CA.crt"
    words = {str(path): word for path, word in places.items()}
    words |= {str(path.resolve()): word for path, word in places.items()}
    return words | ({server: "HOST:PORT"} if server else {})


def _shared_fix(finding: Finding, places: Mapping[str, str]) -> str:
    fix = _without(finding.fix, places)
    local = [finding.patient]
    if not finding.name.startswith("/") and "/" in finding.name:  # a case and its file
        local += finding.name.split("/")
    if _PATH.search(fix) or any(name in fix for name in local if name):
        return NOT_SHARED
    return fix


def _without(text: str, places: Mapping[str, str]) -> str:
    for place in sorted(places, key=len, reverse=True):  # a folder after what lies in it
        text = text.replace(place, places[place])
    return text
