"""Whether a site would refuse a study, by the very rules that answer the study's proposal."""

from __future__ import annotations

from medfl.config import SiteConfig, StudyConfig
from medfl.findings import Finding
from medfl.privacy.policy import refusals


def check_policy(site: SiteConfig, study: StudyConfig) -> list[Finding]:
    """What of a study the site's policy refuses, and what a secure sum needs besides.

    Args:
        site: The site.
        study: The proposal. What its noise costs is not looked at here; `medfl plan` shows it.

    Returns:
        An error for each rule that is broken.
    """
    found = [
        _error(
            study,
            rule=f"a study that the site's policy accepts ({refusal.code})",
            value=str(refusal),
            fix=_fix(refusal.code, site),
        )
        for refusal in refusals(study, site)
    ]
    if study.privacy.trust == "secure" and site.purpose == "hospital":
        found += _missing_peers(site, study)
    return found


def _fix(code: str, site: SiteConfig) -> str:
    if code == "policy-trust":
        return (
            'Write trust = ["local", "secure"] under [privacy] of the site\'s file if the site '
            "wants to take part in both kinds of studies; else decline the study."
        )
    if code == "policy-weight":
        return f"Write weight = {float(site.declared_patients)} into the site's file."
    return (
        "Ask the coordinator for another study, or change the site's file if the person "
        "responsible for its patients agrees."
    )


def _missing_peers(site: SiteConfig, study: StudyConfig) -> list[Finding]:
    """A hospital that knows too few others would refuse any roster that is long enough."""
    known = len(site.privacy.peers.keys() - {site.name})
    needed = study.aggregation.min_sites - 1
    if known >= needed:
        return []
    return [
        _error(
            study,
            rule=f"the event keys of {needed} other sites or more in privacy.peers (policy-peers): "
            "a server could make up the others of a secure sum",
            value=f"{known}",
            fix='Write a line NAME = "KEY" for every other site under [privacy.peers] of the '
            "site's file, with the event key from its site.pub as compared by telephone.",
        )
    ]


def _error(study: StudyConfig, *, rule: str, value: str, fix: str) -> Finding:
    return Finding(
        severity="error",
        patient="",
        name=f"study {study.id}",
        rule=rule,
        value=value,
        fix=fix,
        names=True,
    )
