"""A site is told before a study begins what of it the site would refuse."""

from __future__ import annotations

from typing import Any

import pytest

from medfl.config import SiteConfig, StudyConfig
from medfl.findings import Finding
from medfl.preflight.policy import check_policy
from medfl.preflight.site import preflight
from tests.federations import Federation
from tests.preflight.test_site import written

PEERS = {"north": "1" * 64, "west": "2" * 64}


def secure(federation: Federation, **changes: Any) -> StudyConfig:
    values = {"privacy": {"trust": "secure", "noise": "operating-system"}, **changes}
    return federation.study(**values)


def ready(federation: Federation, **changes: Any) -> SiteConfig:
    """A hospital that could take part in a secure sum, but for the changes."""
    values: dict[str, Any] = {"weight": 4.0, "privacy": {"trust": ["local", "secure"]}}
    privacy = {**values["privacy"], "peers": PEERS, **changes.pop("privacy", {})}
    return federation.hospital("east", **{**values, **changes, "privacy": privacy})


def codes(found: list[Finding]) -> list[str]:
    for finding in found:
        assert finding.severity == "error" and finding.value and finding.fix
    return [finding.rule for finding in found]


def test_a_site_that_is_ready_has_no_finding(federation: Federation) -> None:
    assert check_policy(ready(federation), secure(federation)) == []


@pytest.mark.parametrize(
    ("changes", "code", "fix"),
    [
        ({"privacy": {"trust": ["local"]}}, "policy-trust", 'trust = ["local", "secure"]'),
        ({"weight": 3.0}, "policy-weight", "weight = 4.0"),
        ({"privacy": {"peers": {}}}, "policy-peers", "[privacy.peers]"),
    ],
)
def test_what_keeps_a_site_from_a_secure_sum_is_said_with_its_fix(
    federation: Federation, changes: dict[str, Any], code: str, fix: str
) -> None:
    (finding,) = check_policy(ready(federation, **changes), secure(federation))
    assert codes([finding]) == [finding.rule]
    assert code in finding.rule and fix in finding.fix


def test_all_of_it_is_found_in_one_pass(federation: Federation) -> None:
    site = ready(federation, weight=3.0, privacy={"trust": ["local"], "peers": {}})
    found = " ".join(codes(check_policy(site, secure(federation))))
    assert all(code in found for code in ("policy-trust", "policy-weight", "policy-peers"))


def test_as_many_peers_are_needed_as_the_smallest_sum_has(federation: Federation) -> None:
    study = secure(federation, aggregation={"min_sites": 4})
    (finding,) = check_policy(ready(federation), study)
    assert "3 other sites" in finding.rule and finding.value == "2"


def test_open_data_need_no_peers(federation: Federation) -> None:
    site = federation.site("east", privacy={"trust": ["local", "secure"]})
    weight = float(site.declared_patients)
    site = federation.site("east", weight=weight, privacy={"trust": ["local", "secure"]})
    assert check_policy(site, secure(federation)) == []


def test_other_rules_of_the_policy_are_found_too(federation: Federation) -> None:
    site = ready(federation, privacy={"max_rounds": 1, "max_sampling_prob": 0.1})
    found = codes(check_policy(site, federation.study()))
    assert len(found) == 3  # the study's noise is seeded, besides
    assert "policy-rounds" in found[2] and "policy-sampling-prob" in found[1]


@pytest.mark.slow
def test_a_check_of_a_study_holds_them(federation: Federation, tmp_path: Any) -> None:
    path = written(secure(federation), tmp_path / "study.toml")
    path.write_text(path.read_text().replace("[training]", 'trust = "secure"\n[training]'))
    found = preflight(ready(federation, privacy={"peers": {}}), study=path)
    assert any("policy-peers" in finding.rule for finding in found)
