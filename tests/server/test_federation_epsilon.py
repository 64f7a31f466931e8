"""What ``federation.json`` says of a patient at several sites, and of several patients."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant, privacy_loss_distribution

from medfl.errors import ConfigError
from medfl.privacy.accounting.charges import Charge
from medfl.privacy.accounting.groups import group_epsilon
from medfl.privacy.mechanism import Mechanism
from medfl.runs.files import FEDERATION, PRIVACY
from medfl.server.account import federation_summary
from medfl.server.ledger import FederationLedger
from medfl.server.progress import Silent
from medfl.server.run_folder import RunFolder
from medfl.study.run import run_study
from medfl.study.simulation import check_sites

pytestmark = pytest.mark.slow

NOISE = {"CS": 2.6, "DU": 2.0, "HT": 2.2}
DELTAS = {"CS": 1e-5, "DU": 1e-5, "HT": 2e-5}
STEPS, PROBABILITY = 10, 0.3

VoiceOf = Callable[..., Any]


def mechanism(
    noise_multiplier: float, *, steps: int = STEPS, sampling_prob: float = PROBABILITY
) -> Mechanism:
    return Mechanism(
        sampling_prob=sampling_prob,
        noise_multiplier=noise_multiplier,
        clip_norm=1.0,
        clipping="fixed",
        local_steps=steps,
        declared_patients=20,
    )


def gaussian(noise_multiplier: float, *, steps: int) -> float:
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-3)
    step = dp_accounting.GaussianDpEvent(noise_multiplier)
    accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
    return float(accountant.get_epsilon(1e-5))


def finished(path: Path, voice_of: VoiceOf, noise: Mapping[str, float]) -> RunFolder:
    """A run of one round in which every site took part."""
    folder = RunFolder(path)
    ledger = FederationLedger(folder)
    for site, noise_multiplier in noise.items():
        voice = voice_of(site, mechanism=mechanism(noise_multiplier))
        ledger.declare(voice.declaration(delta=DELTAS[site]))
        ledger.record(voice.update(1), site=site, round_number=1, admitted=True)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, voice_of: VoiceOf) -> RunFolder:
    return finished(tmp_path_factory.mktemp("federation-epsilon") / "run", voice_of, NOISE)


def oracle(*sites: str, delta: float) -> float:
    """Epsilon of these sites' steps, composed by the accountant's own library."""
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-4)
    for site in sites:
        step = dp_accounting.PoissonSampledDpEvent(
            PROBABILITY, dp_accounting.GaussianDpEvent(NOISE[site])
        )
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, STEPS))
    return float(accountant.get_epsilon(delta))


def test_without_overlaps_the_largest_loss_of_a_site_counts(folder: RunFolder) -> None:
    found = federation_summary(folder)
    assert found.disjoint is True
    assert found.composition == "maximum over sites (disjoint patients)"
    assert found.overlaps == ()
    assert found.delta == 2e-5
    assert found.epsilon == pytest.approx(oracle("DU", delta=1e-5), rel=1e-6)


def test_a_declared_overlap_is_composed_and_counts(folder: RunFolder) -> None:
    found = federation_summary(folder, overlaps=[("DU", "CS"), ("HT", "CS")])
    assert found.disjoint is False
    assert found.composition == "composed over declared overlaps"
    assert [(group.sites, group.delta) for group in found.overlaps] == [
        (("DU", "CS"), 1e-5),
        (("HT", "CS"), 2e-5),
    ]
    composed = [oracle("DU", "CS", delta=1e-5), oracle("HT", "CS", delta=2e-5)]
    assert [group.epsilon for group in found.overlaps] == pytest.approx(composed, rel=1e-6)
    assert found.epsilon == pytest.approx(max(composed), rel=1e-6)
    assert found.epsilon > 1.2 * oracle("DU", delta=1e-5)


def test_an_overlap_of_three_sites_costs_all_three(folder: RunFolder) -> None:
    found = federation_summary(folder, overlaps=[("CS", "DU", "HT")])
    assert found.epsilon == pytest.approx(oracle("CS", "DU", "HT", delta=2e-5), rel=1e-6)


def test_the_worst_two_sites_are_told_whatever_was_declared(folder: RunFolder) -> None:
    for overlaps in ([], [("HT", "CS")]):
        pair = federation_summary(folder, overlaps=overlaps).any_two_sites
        assert (pair.sites, pair.delta) == (("DU", "HT"), 2e-5)
        assert pair.epsilon == pytest.approx(oracle("DU", "HT", delta=2e-5), rel=1e-6)


def test_an_overlap_with_a_site_that_never_joined_costs_nothing(
    tmp_path: Path, voice_of: VoiceOf
) -> None:
    folder = finished(tmp_path / "run", voice_of, {"DU": NOISE["DU"]})
    found = federation_summary(folder, overlaps=[("DU", "GONE")])
    assert (found.disjoint, found.overlaps, found.any_two_sites) == (True, (), None)
    assert found.epsilon == pytest.approx(oracle("DU", delta=1e-5), rel=1e-6)


def test_a_site_without_noise_leaves_no_limit(tmp_path: Path, voice_of: VoiceOf) -> None:
    folder = finished(tmp_path / "run", voice_of, {"DU": 0.0, "HT": NOISE["HT"]})
    found = federation_summary(folder, overlaps=[("DU", "HT")])
    assert found.epsilon == found.overlaps[0].epsilon == math.inf
    assert found.any_two_sites.epsilon == found.groups[2] == math.inf
    folder.write(FEDERATION, found)
    assert json.loads((folder.path / "federation.json").read_text())["epsilon"] == "inf"


def test_families_are_bounded_by_the_patient_who_loses_most(folder: RunFolder) -> None:
    apart = federation_summary(folder).groups
    together = federation_summary(folder, overlaps=[("DU", "HT")]).groups
    assert set(apart) == {2, 5}
    alone = {site: [Charge(mechanism=mechanism(NOISE[site]), steps=STEPS)] for site in NOISE}
    weakest = group_epsilon([alone["DU"]], size=2, delta=2e-5, disjoint=True)
    assert apart[2] == pytest.approx(weakest, rel=1e-9)
    both = [*alone["DU"], *alone["HT"]]
    shared = group_epsilon([both], size=5, delta=2e-5, disjoint=False)
    assert together[5] == pytest.approx(shared, rel=1e-9)
    assert apart[2] < apart[5] < together[5]


@pytest.mark.parametrize("disjoint", [True, False])
@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize(("noise_multiplier", "steps"), [(4.0, 1), (6.0, 20), (3.0, 10)])
def test_a_group_bound_covers_the_exact_loss_of_a_gaussian(
    noise_multiplier: float, steps: int, size: int, disjoint: bool
) -> None:
    """Without sampling, k patients are one patient with k times the sensitivity."""
    of_one = [Charge(mechanism=mechanism(noise_multiplier, sampling_prob=1.0), steps=steps)]
    bound = group_epsilon([of_one], size=size, delta=1e-5, disjoint=disjoint)
    exact = gaussian(noise_multiplier / size, steps=steps)
    assert exact <= bound < (1.01 if disjoint else 5) * exact


@pytest.mark.parametrize("disjoint", [True, False])
@pytest.mark.parametrize("size", [2, 5])
def test_a_group_bound_covers_the_exact_loss_under_sampling(size: int, disjoint: bool) -> None:
    """k patients of one site, drawn apart from each other: a binomial mixture is exact."""
    of_one = [Charge(mechanism=mechanism(4.0), steps=20)]
    bound = group_epsilon([of_one], size=size, delta=1e-5, disjoint=disjoint)
    drawn = range(size + 1)
    chances = [math.comb(size, n) * PROBABILITY**n * (1 - PROBABILITY) ** (size - n) for n in drawn]
    losses = privacy_loss_distribution.from_mixture_gaussian_mechanism(
        4.0, [float(n) for n in drawn], chances, value_discretization_interval=1e-3
    ).self_compose(20)
    exact = losses.get_epsilon_for_delta(1e-5)
    assert exact <= bound < (1.02 if disjoint else 12) * exact


@pytest.mark.parametrize("at_other", range(4))
def test_a_group_bound_covers_families_at_two_unlike_sites(at_other: int) -> None:
    """Three patients, some at a site of little noise and some at one that draws more often."""
    places = [
        [Charge(mechanism=mechanism(3.0, sampling_prob=0.2), steps=12)],
        [Charge(mechanism=mechanism(4.0, sampling_prob=0.4), steps=8)],
    ]
    bound = group_epsilon(places, size=3, delta=1e-5, disjoint=True)
    losses = None
    for place, size in zip(places, (3 - at_other, at_other), strict=True):
        if not size:
            continue
        chance = place[0].mechanism.sampling_prob
        drawn = range(size + 1)
        of_site = privacy_loss_distribution.from_mixture_gaussian_mechanism(
            place[0].mechanism.noise_multiplier,
            [float(n) for n in drawn],
            [math.comb(size, n) * chance**n * (1 - chance) ** (size - n) for n in drawn],
            value_discretization_interval=1e-3,
        ).self_compose(place[0].steps)
        losses = of_site if losses is None else losses.compose(of_site)
    assert losses is not None
    assert losses.get_epsilon_for_delta(1e-5) <= bound


@pytest.mark.parametrize("disjoint", [True, False])
def test_a_group_of_patients_on_whom_nothing_was_charged_loses_nothing(disjoint: bool) -> None:
    assert group_epsilon([()], size=5, delta=1e-5, disjoint=disjoint) == 0


@pytest.mark.parametrize("disjoint", [True, False])
def test_noise_too_weak_for_a_group_leaves_no_limit(disjoint: bool) -> None:
    weak = Charge(mechanism=mechanism(0.02), steps=STEPS)
    assert group_epsilon([[weak]], size=5, delta=1e-5, disjoint=disjoint) == math.inf


def test_an_overlap_of_a_site_that_is_not_there_is_refused(federation: Any) -> None:
    study = federation.study(overlap=[{"sites": ["north", "moon"]}])
    with pytest.raises(ConfigError, match=r"among the sites of the run .*, found \['moon'\]"):
        check_sites(study, federation.sites())
    check_sites(federation.study(overlap=[{"sites": ["north", "east"]}]), federation.sites())


@pytest.mark.slow
def test_a_whole_study_writes_what_its_overlaps_cost(federation: Any, tmp_path: Path) -> None:
    study = federation.study(overlap=[{"sites": ["north", "east"]}])
    out = tmp_path / "whole"
    run_study(
        study,
        federation.sites("east", "north"),
        out=out,
        engine="inprocess",
        resume=False,
        progress=Silent(),
    )
    found, losses = FEDERATION.read(out), PRIVACY.read(out)
    assert found.disjoint is False
    assert found.overlaps[0].sites == ("north", "east")
    assert found.overlaps[0].epsilon == found.any_two_sites.epsilon == found.epsilon
    assert found.epsilon > max(loss.epsilon_pld for loss in losses)
