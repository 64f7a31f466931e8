"""Canaries in a small federation: what the attack shows of the real code, and of broken code."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medfl.audit.canaries import (
    GRADIENT,
    AuditedState,
    Canaries,
    direction,
    draw_canaries,
    moved,
)
from medfl.audit.canary_run import (
    CANARIES,
    GUESSED,
    CanaryAudit,
    _Attack,
    audit_study,
    guess,
    small_federation,
)
from medfl.config import SiteConfig, StudyConfig
from medfl.errors import ConfigError, QuorumError
from medfl.privacy.accounting.accountant import Charge, epsilon
from medfl.privacy.mechanism import Mechanism
from medfl.protocol.messages import TrainTask
from medfl.segmentation.networks import trainable_state
from medfl.server.run_folder import RunFolder

pytestmark = pytest.mark.slow

OWN_PATIENTS = 3  # of each of the small hospitals

Audit = Callable[..., CanaryAudit]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyConfig, list[SiteConfig]]:
    """The default federation, whose hospitals are written once."""
    return small_federation(tmp_path_factory.mktemp("audit") / "hospitals")


@pytest.fixture
def audit(federation: Any, tmp_path: Path) -> Audit:
    """Audits the federation, with changes."""
    study, sites = federation

    def run(
        *,
        canaries: int = CANARIES,
        guessed: int = GUESSED,
        training: dict[str, Any] | None = None,
        privacy: dict[str, Any] | None = None,
        site: dict[str, Any] | None = None,
        advance: Callable[[int, int], None] = lambda *_: None,
    ) -> CanaryAudit:
        values = study.model_dump(mode="json")
        values["training"] |= training or {}
        values["privacy"] |= privacy or {}
        return audit_study(
            StudyConfig.model_validate_json(json.dumps(values)),
            [one.model_copy(update=site or {}) for one in sites],
            canaries=canaries,
            guessed=guessed,
            out=tmp_path / "run",
            generator=np.random.default_rng(1),
            advance=advance,
        )

    return run


def site_state(federation: Any, folder: Path, *, included: list[bool]) -> AuditedState:
    """The first site with canaries on the first weights of one parameter."""
    study, sites = federation
    network = AuditedState(sites[0], canaries=none(), folder=folder).network(study)
    name = sorted(trainable_state(network))[0]
    canaries = Canaries(
        weights=tuple((name, index) for index in range(len(included))),
        included=np.array(included),
    )
    return AuditedState(sites[0], canaries=canaries, folder=folder)


def none() -> Canaries:
    return Canaries(weights=(), included=np.array([], dtype=np.bool_))


def test_guesses_name_the_highest_scores() -> None:
    scores = np.array([0.3, 5.0, -9.0, 4.0, 1.0])
    found = guess(scores, np.array([True, True, True, False, True]), guessed=3)
    assert (found.canaries, found.guessed, found.correct) == (5, 3, 2)


def test_every_canary_has_a_weight_of_its_own_and_a_fair_coin() -> None:
    model = {"a": torch.zeros(30, 20), "b": torch.zeros(400)}
    canaries = draw_canaries(model, count=1000, generator=np.random.default_rng(2))
    assert set(canaries.weights) == {
        (name, index) for name in model for index in range(model[name].numel())
    }
    assert abs(int(canaries.included.sum()) - 500) < 4 * math.sqrt(250)
    with pytest.raises(ConfigError, match="at most 1000 canaries"):
        draw_canaries(model, count=1001, generator=np.random.default_rng(2))


def test_a_canarys_gradient_lies_on_its_own_axis_and_turns_round_every_round(
    federation: Any, tmp_path: Path
) -> None:
    study, _ = federation
    site = site_state(federation, tmp_path, included=[True, False])
    network = site.network(study)
    for number, way in ((1, 1.0), (2, -1.0), (3, 1.0)):
        patients = site.training_patients(
            study, network, round_number=number, members=frozenset(site.members)
        )
        assert len(patients) == OWN_PATIENTS + 2
        for canary, size in ((0, way * GRADIENT), (1, 0.0)):
            network.zero_grad()
            patients.loss_of(OWN_PATIENTS + canary, torch.Generator()).backward()
            gradients = torch.cat(
                [p.grad.flatten() for p in network.parameters() if p.grad is not None]
            )
            assert float(gradients.sum()) == size
            assert int(gradients.count_nonzero()) == int(size != 0)


def test_a_site_declares_its_canaries_and_still_checks_its_own_patients(
    federation: Any, tmp_path: Path
) -> None:
    site = site_state(federation, tmp_path, included=[True, False])
    assert site.site.declared_patients == OWN_PATIENTS + 2
    assert len(set(site.members)) == OWN_PATIENTS + 2
    site.require_declared_patients()


def test_a_site_with_fewer_patients_of_its_own_than_declared_is_left_out(audit: Audit) -> None:
    with pytest.raises(QuorumError, match="declared-patients"):
        audit(canaries=4, guessed=2, site={"declared_patients": OWN_PATIENTS + 1})


def test_an_update_that_repeats_itself_cancels() -> None:
    canaries = Canaries(weights=(("a", 1), ("a", 0)), included=np.array([True, False]))
    update = {"a": torch.tensor([0.5, -2.0])}
    first, second = (moved(update, canaries, round_number=number) for number in (1, 2))
    assert first.tolist() == [2.0, -0.5]  # a step goes against the gradient
    assert (first + second).tolist() == [0.0, 0.0]


def test_an_audit_runs_the_real_code(audit: Audit, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = audit(
        canaries=40,
        guessed=8,
        training={"rounds": 2},
        advance=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 2), (2, 2)]
    events = RunFolder(tmp_path / "run").events()
    assert [event.site for event in events] == ["east", "north"] * 2
    mechanism = Mechanism.from_dict(events[0].mechanism.model_dump())
    assert mechanism.declared_patients == OWN_PATIENTS + 20
    assert mechanism.noise_origin == "operating-system"
    charged = [Charge(mechanism=mechanism, steps=2)]
    assert (
        found.claimed_epsilon == epsilon(charged, delta=found.delta) == pytest.approx(4, abs=0.01)
    )
    values = json.loads(json.dumps(found.to_dict()))
    assert (values["canaries"], values["guessed"]) == (40, 8)
    assert values["consistent"] == found.consistent
    # So few guesses could not contradict the claim, and the audit says so.
    assert values["largest_showable"]["epsilon"] < values["claimed_epsilon"]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"site": {"purpose": "hospital"}}, "purpose 'open-data'"),
        ({"training": {"rounds": 3}}, "even number of rounds"),
        ({"training": {"optimizer": "adam"}}, "training.optimizer = 'sgd'"),
        ({"training": {"weight_decay": 0.1}}, "no weight_decay for an audit"),
        ({"canaries": 3}, "as many canaries at each"),
        ({"canaries": 4, "guessed": 5}, "at most one a canary"),
        ({"guessed": 0}, "at least one guess"),
        ({"canaries": 1_000_000}, "one a weight"),
    ],
)
def test_what_cannot_be_audited_is_refused(
    changes: dict[str, Any], rule: str, audit: Audit, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rule):
        audit(**changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_real_code_is_consistent_with_its_claim(audit: Audit) -> None:
    found = audit()
    assert found.consistent
    assert found.claimed_epsilon == pytest.approx(4, abs=0.01)
    # The attack sees something, and could have seen more than the claim.
    assert found.shown.epsilon > 0.4
    assert found.largest_showable.epsilon > 1.2 * found.claimed_epsilon
    assert found.largest_showable.mu > 1.5 * found.claimed_mu
    # Nor does the code add more noise than it needs.
    assert 0.5 * found.claimed_mu < found.estimate.mu_low
    assert found.estimate.mu_high < 1.1 * found.claimed_mu


def test_a_whole_clip_norm_scores_one_in_every_round(federation: Any) -> None:
    falling = {"shape": "linear", "warmup_rounds": 1, "final_fraction": 0.01}
    values = federation[0].model_dump(mode="json")
    values["training"] |= {"learning_rate_schedule": falling}
    values["privacy"] |= {"clip_norm_schedule": falling}
    study = StudyConfig.model_validate_json(json.dumps(values))
    whole = Mechanism(
        sampling_prob=0.5,
        noise_multiplier=1.0,
        clip_norm=1.0,
        clipping="fixed",
        local_steps=1,
        declared_patients=8,
        clip_norm_schedule=study.clip_norm_schedule,
    )
    canaries = {"north": Canaries(weights=(("a", 0),), included=np.array([True]))}
    attack = _Attack(canaries, patients={"north": 4})
    for number in range(1, study.training.rounds + 1):
        mechanism = whole.in_round(number)
        task = TrainTask(
            study=study, run="r", round=number, message_id="r/1/north", mechanism=mechanism
        )
        step = -direction(number) * study.learning_rate(number) * mechanism.clip_norm
        update = {"a": torch.tensor([step / mechanism.divisor], dtype=torch.float64)}
        attack.see("north", task, {"a": torch.zeros(1)}, update)
        assert attack.scores["north"] == pytest.approx(number)


@pytest.mark.slow
def test_canaries_show_as_much_where_clip_norm_and_learning_rate_change(audit: Audit) -> None:
    falling = {"shape": "linear", "warmup_rounds": 1, "final_fraction": 0.01}
    found = audit(
        training={"learning_rate_schedule": falling}, privacy={"clip_norm_schedule": falling}
    )
    assert found.consistent
    assert 0.5 * found.claimed_mu < found.estimate.mu_low
    assert found.estimate.mu_high < 1.1 * found.claimed_mu


@pytest.mark.slow
@pytest.mark.parametrize(
    "bug",
    [
        "no noise",
        "noise divided by the batch",
        "noise repeated in every round",
        "clipped per crop",
    ],
)
def test_a_planted_bug_contradicts_the_claim(
    bug: str, audit: Audit, plant: Callable[[str], None]
) -> None:
    plant(bug)
    found = audit()
    assert not found.consistent
    assert found.shown.mu > found.claimed_mu


def test_an_engine_that_never_clips_is_refused_by_the_server(
    audit: Audit, plant: Callable[[str], None]
) -> None:
    plant("never clipped")
    with pytest.raises(QuorumError, match="update-norm"):
        audit()


def test_in_a_secure_sum_the_attack_sees_the_sum_and_its_noise_is_what_was_promised(
    audit: Audit,
) -> None:
    """One promise's noise is in the sum, and the attack would see a good part of it missing."""
    found = audit(privacy={"trust": "secure"})
    assert found.consistent
    assert found.estimate.epsilon > found.claimed_epsilon / 2


def test_a_share_that_is_too_small_is_caught_in_the_sum(
    audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the noise were counted for four shares, of which the sum holds two."""
    share = Mechanism.share_std.fget
    monkeypatch.setattr(
        Mechanism,
        "share_std",
        property(lambda self: share(self) / (4 if self.trust == "secure" else 1)),
    )
    assert not audit(privacy={"trust": "secure"}).consistent
