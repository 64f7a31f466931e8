"""Who trains in a round, and that nobody's leaving changes anything about the others."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from medfl.config import SiteConfig
from medfl.privacy import engine
from medfl.privacy.patients import Patients
from medfl.protocol.messages import Proposal, TrainTask
from medfl.segmentation.networks import trainable_state
from medfl.site import state as site_states
from medfl.site.agreement import declare
from medfl.site.round import train_update
from medfl.site.state import SiteState


@pytest.fixture
def hospital(federation: Any) -> SiteConfig:
    """A hospital whose folders a test may change, with held-out patients."""
    site: SiteConfig = federation.hospital("north", copy_patients=True)
    return site


def anew(site: SiteConfig, **changes: Any) -> SiteState:
    """As in a process of its own: nothing is remembered but what lies on disk."""
    data = site.data.model_copy(update=changes)
    return SiteState(site.model_copy(update={"data": data}), folder=site.state)


def patients_of(site_state: SiteState, study: Any, members: frozenset[str]) -> Patients:
    network = site_state.network(study)
    return site_state.training_patients(study, network, round_number=1, members=members)


def losses(patients: Patients, *, step: int = 0) -> dict[str, float]:
    """Everybody's loss in one step, by pseudonym."""
    found = {}
    for index, name in enumerate(patients.names):
        with patients.randomness(index, step=step) as generator:
            found[name] = float(patients.loss_of(index, generator).detach())
    return found


def test_who_leaves_changes_nobody_elses_crops(federation: Any, hospital: SiteConfig) -> None:
    study = federation.study(input={"missing_modality": "zero-fill", "modality_dropout": 0.3})
    before = anew(hospital)
    members = frozenset(before.members)
    everybody = losses(patients_of(before, study, members))
    assert len(everybody) == 5
    for folder in sorted(Path(hospital.data.root).iterdir())[:3]:
        shutil.rmtree(folder)
        left = losses(patients_of(anew(hospital), study, members))
        assert left.items() < everybody.items()
    assert len(left) == 2


def test_who_leaves_does_not_decide_whether_somebody_else_trains(
    federation: Any, hospital: SiteConfig
) -> None:
    """Where patients are held out, a withdrawal may move another one between the parts."""
    study, held_out = federation.study(), 0.4
    site_state = anew(hospital, held_out=held_out)
    members = frozenset(site_state.members)
    assert len(members) == 3
    everybody = patients_of(site_state, study, members)
    assert set(everybody.names) == members
    moved = 0
    for folder in sorted(Path(hospital.data.root).iterdir()):
        away = folder.rename(hospital.state / folder.name)
        later = anew(hospital, held_out=held_out)
        left = set(patients_of(later, study, members).names)
        pseudonym = site_states.pseudonym(folder.name, key=later.key)
        assert left == members - {pseudonym}
        moved += members - {pseudonym} != set(later.members) & members
        away.rename(folder)
    assert moved > 0  # else this would have tested nothing


def test_patients_are_computed_alike_whatever_the_caches_hold(
    federation: Any, hospital: SiteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = federation.study()
    site_state = anew(hospital)
    members = frozenset(site_state.members)
    expected = losses(patients_of(site_state, study, members))
    for memory, disk in ((0, 1.0), (2**30, 1e-6), (0, 1e-6)):
        small = hospital.model_copy(update={"cache_gigabytes": disk})
        other = anew(small)
        patients = patients_of(other, study, members)
        _, store = other.member_store(study, members=members)
        store._memory_bytes = memory
        store.verify()
        for _ in range(2):
            assert losses(patients) == expected
        shutil.rmtree(hospital.state / "cache")


def test_other_steps_rounds_and_seeds_cut_other_crops(federation: Any) -> None:
    site_state = federation.site_state(federation.site("east"))
    members = frozenset(site_state.members)
    found = []
    for seed in (0, 1):
        study = federation.study(seed=seed)
        network = site_state.network(federation.study())
        for number in (1, 2):
            patients = site_state.training_patients(
                study, network, round_number=number, members=members
            )
            found += [tuple(losses(patients, step=step).values()) for step in (0, 1)]
    assert len(set(found)) == len(found) == 8


def test_a_run_whose_patients_have_all_withdrawn_goes_on_with_noise(
    federation: Any, hospital: SiteConfig
) -> None:
    study = federation.study(privacy={"noise": "operating-system"})
    agreed = anew(hospital)
    proposal = Proposal(study=study, run="first", private=True)
    mechanism = declare(agreed, proposal).mechanism
    # Somebody new is there, who waits for the next run.
    for number, folder in enumerate(sorted(Path(hospital.data.root).iterdir())):
        new = folder.rename(folder.with_name(f"BraTS2021_9999{number}"))
        for file in new.iterdir():
            file.rename(new / file.name.replace(folder.name, new.name))
    later = anew(hospital)
    task = TrainTask(
        study=study, run="first", round=1, message_id="first/1/north", mechanism=mechanism
    )
    weights = trainable_state(later.network(study))
    update, released = train_update(
        later, task, weights, expires=time.time() + 60, on_step=lambda *_: None
    )
    assert update.steps == mechanism.local_steps
    assert all(not torch.equal(released[name], value) for name, value in weights.items())
    with later.open_ledger() as ledger:
        assert ledger.steps(run="first") == mechanism.local_steps


def test_two_sites_and_two_rounds_never_share_noise(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise in common could be subtracted by whoever sees two updates."""
    monkeypatch.setattr(engine, "poisson_draw", lambda **_: [])
    study = federation.study(privacy={"noise": "operating-system"})
    start = trainable_state(federation.site_state(federation.site("east")).network(study))
    moved = []
    for name in ("east", "south"):
        site_state = federation.site_state(federation.hospital(name))
        mechanism = declare(site_state, Proposal(study=study, run="first", private=True)).mechanism
        for number in (1, 2):
            task = TrainTask(
                study=study,
                run="first",
                round=number,
                message_id=f"first/{number}/{name}",
                mechanism=mechanism,
            )
            _, released = train_update(
                site_state, task, start, expires=time.time() + 60, on_step=lambda *_: None
            )
            noise = [(released[key] - start[key]).flatten() for key in sorted(start)]
            moved.append(torch.cat(noise).double() * mechanism.divisor)
    table = torch.corrcoef(torch.stack(moved)) - torch.eye(4, dtype=torch.float64)
    assert float(table.abs().max()) < 6 / math.sqrt(len(moved[0]))
