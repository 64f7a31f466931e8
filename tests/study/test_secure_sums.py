"""Whole runs whose updates are added up in secret, through the code that users run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import Message

from medfl.config import SiteConfig, StudyConfig
from medfl.errors import QuorumError
from medfl.privacy.accounting.accountant import epsilon
from medfl.privacy.ledger.ledger import Ledger
from medfl.protocol.secure_round import ADD, ADVERTISE, CONFIRM, ROSTER, SHARE, UNMASK
from medfl.runs.records import SecureSum
from medfl.server.account import federation_summary, privacy_summary
from medfl.server.ledger import FederationLedger
from medfl.study.run import run_study
from tests.federations import Fault, Federation, Finished

PHASES = (ADVERTISE, SHARE, ADD, CONFIRM, UNMASK)


def secure(federation: Federation, **changes: Any) -> StudyConfig:
    """The tiny study with a secure sum; of its three sites one may fall out."""
    values: dict[str, Any] = {
        "privacy": {"trust": "secure"},
        "aggregation": {"round_timeout_seconds": 4.0},
    }
    for section, inner in changes.items():
        values[section] = {**values.get(section, {}), **inner}
    return federation.study(**values)


def sites_of(federation: Federation, **privacy: Any) -> list[SiteConfig]:
    """All sites, weighted by their patients and ready for a secure sum."""
    return [
        federation.site(
            site.name,
            weight=float(site.declared_patients),
            privacy={"trust": ["local", "secure"], **privacy},
        )
        for site in federation.sites()
    ]


def silent(site: str, kind: str) -> Fault:
    """One site does not answer from one phase on."""
    order = (ROSTER, *PHASES)

    def fault(name: str, message: Message, answer: Callable[[], Message]) -> Message | None:
        at = message.metadata.message_type
        late = at in order and order.index(at) >= order.index(kind)
        return None if name == site and late else answer()

    return fault


def steps(run: Finished, site: str) -> int:
    """Noisy steps that a site's ledger was charged for."""
    with Ledger.open(run.state(site) / "ledger") as ledger:
        ledger.verify()
        return sum(each.steps for each in ledger.spent().by_run)


def test_without_noise_it_is_the_average_over_all_patients(federation: Federation) -> None:
    """A site's weight is its patients there, so that both ways say the same of each patient."""
    sites = sites_of(federation, allow_baselines=True, max_clip_norm=10.0)
    hidden = federation.run(secure(federation), sites, name="hidden", private=False)
    shown = federation.run(federation.study(), sites, name="shown", private=False)
    for name, value in shown.weights.items():
        assert torch.allclose(hidden.weights[name], value, atol=2e-6), name
    assert hidden.outcomes() == dict.fromkeys(("east", "north", "south"), ("admitted", ""))


def test_every_site_is_charged_for_every_round_and_ledgers_verify(federation: Federation) -> None:
    run = federation.run(secure(federation), sites_of(federation))
    assert {site: steps(run, site) for site in run.outcomes()} == dict.fromkeys(run.outcomes(), 2)


@pytest.mark.slow
def test_what_holds_against_the_server_and_other_sites_is_accounted_for(
    federation: Federation,
) -> None:
    """Two of three sites have to stay, and their noise is that of the promise."""
    run = federation.run(secure(federation), sites_of(federation))
    for loss in privacy_summary(run.folder):
        against = loss.epsilon_colluding
        assert list(against) == [0, 1, 2]
        assert loss.epsilon_pld == against[0] < against[1] == against[2]
    found = federation_summary(run.folder, overlaps=[("east", "north")])
    assert found.secure_sum == SecureSum(sites=3, threshold=2, honest_sites=2, colluding_sites=0)
    # Under one noise, which is worse than two of the same size.
    (shared,) = found.overlaps
    charges = FederationLedger(run.folder).charges("east")
    assert shared.epsilon > epsilon([*charges, *charges], delta=shared.delta)
    assert found.any_two_sites is not None and found.any_two_sites.epsilon == shared.epsilon


def test_no_update_of_one_site_is_in_what_it_sends(federation: Federation) -> None:
    """Two runs of the same study and seed send other bytes, and give the same model."""
    study = secure(federation)
    first = federation.run(study, sites_of(federation), name="first", run_id="same")
    second = federation.run(study, sites_of(federation), name="second", run_id="same")
    for name, value in first.weights.items():
        assert torch.equal(second.weights[name], value), name
    large = [reply for reply in first.replies if len(reply) > 50_000]
    again = [reply for reply in second.replies if len(reply) > 50_000]
    assert len(large) == len(again) == 6
    for one, other in zip(large, again, strict=True):
        equal = sum(a == b for a, b in zip(one[4096:40_000], other[4096:40_000], strict=True))
        assert equal / 35_904 < 0.01  # 1 in 256 by chance


@pytest.mark.parametrize("kind", PHASES)
def test_a_site_that_falls_out_in_any_phase_ends_nothing(federation: Federation, kind: str) -> None:
    run = federation.run(secure(federation), sites_of(federation), fault=silent("south", kind))
    assert len(run.folder.rounds()) == 2
    outcome = run.outcomes()["south"]
    stays = kind in (CONFIRM, UNMASK)  # its vector is in the sum by then
    assert outcome == (("admitted", "") if stays else ("silent", "silent"))
    expected = 2 if stays else 0
    assert steps(run, "south") == expected


@pytest.mark.parametrize("kind", PHASES)
def test_too_few_sites_end_the_run_without_a_sum_and_with_the_charge(
    federation: Federation, kind: str
) -> None:
    def fault(site: str, message: Message, answer: Callable[[], Message]) -> Message | None:
        gone = silent("south", kind)(site, message, answer)
        return None if gone is None else silent("east", kind)(site, message, lambda: gone)

    study = secure(federation)
    with pytest.raises(QuorumError, match="at least 2 usable updates"):
        federation.run(study, sites_of(federation), fault=fault)
    run = Finished(path=federation.scratch / "run")
    charged = 1 if kind in (ADD, CONFIRM, UNMASK) else 0
    assert steps(run, "north") == charged
    again = federation.run(study, sites_of(federation), resume=True)
    # The first round was begun: no site makes its secrets again.
    assert again.outcomes(1)["north"] == ("rejected", "secure-sum-void")
    assert again.outcomes(2)["north"] == ("admitted", "")
    assert steps(again, "north") == charged + 1


def test_a_site_alone_has_noise_of_its_own_in_the_baseline(federation: Federation) -> None:
    """A sum needs two: what one site makes alone is private by its own noise, or not at all."""
    study = secure(federation, evaluation={"baselines": ["local-only", "non-private"]})
    sites = [
        site.model_copy(
            update={
                "privacy": site.privacy.model_copy(
                    update={"share_metrics": True, "allow_baselines": True}
                )
            }
        )
        for site in sites_of(federation)
    ]
    out = federation.scratch / "whole"
    run_study(study, sites, out=out, jobs=1)
    events = [
        json.loads(line)
        for line in (out / "baselines" / "local-only-north" / "federation_ledger.jsonl")
        .read_text()
        .splitlines()
    ]
    mechanisms = [event["mechanism"] for event in events]
    assert {each.get("trust", "local") for each in mechanisms} == {"local"}
    assert {each.get("honest_sites", 1) for each in mechanisms} == {1}
