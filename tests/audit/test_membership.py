"""Membership rates against hand-made examples, scipy and brute force; the attack on real runs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from scipy import stats

from medfl.audit.membership import (
    NO_BOUND,
    attack_run,
    judged,
    largest_tpr,
    membership_rates,
)
from medfl.config import SiteConfig, StudyConfig, load_site
from medfl.errors import ConfigError, FederationError, PolicyRefused
from medfl.phantom.hospitals import write_hospitals
from medfl.privacy.accounting.tradeoff import Distinguishability
from medfl.server.progress import Silent
from medfl.study.run import run_study

GAUSSIAN = Distinguishability(mu=1.0, membership_advantage=0.3829, tpr_at_1_percent_fpr=0.0924)
STUDY: dict[str, Any] = {
    "id": "tiny",
    "input": {"modalities": ["t1c", "t2f"], "regions": ["WT"], "crop_size": [16, 16, 16]},
    "network": {
        "name": "SegResNet",
        "arguments": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    },
    "privacy": {"epsilon": 8.0, "sampling_prob": 0.5, "noise": "seeded"},
    "training": {"rounds": 1, "local_steps": 1, "optimizer": "sgd", "learning_rate": 0.5},
    "aggregation": {"strategy": "fedavg", "min_sites": 2, "round_timeout_seconds": 60.0},
    "evaluation": {"every": 100, "pictures": 0, "baselines": ["non-private"]},
}


def normal_scores(shift: float, *, members: int, others: int, seed: int) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    return {
        "member_scores": list(rng.normal(shift, 1, members)),
        "non_member_scores": list(rng.normal(0, 1, others)),
    }


def test_a_small_example_gives_what_a_hand_computes() -> None:
    rates = membership_rates(member_scores=[3, 2, 1], non_member_scores=[2, 0])
    assert (rates.members, rates.non_members) == (3, 2)
    assert rates.auc == pytest.approx(4.5 / 6)  # 2 wins, 1 win and a tie, 1 win
    assert rates.tpr == pytest.approx(1 / 3)  # only 3 is above every non-member
    assert rates.advantage == pytest.approx(1 / 2)  # everything from 1 up: 3 of 3 less 1 of 2
    assert rates.smallest_fpr == 1 / 2
    assert (rates.tpr_low, rates.tpr_high) == pytest.approx((0.0084, 0.9057), abs=1e-4)
    assert rates.fpr_high == pytest.approx(1 - 0.025 ** (1 / 2))


def test_clearly_separated_scores_are_found() -> None:
    rates = membership_rates(
        member_scores=list(range(100, 160)), non_member_scores=list(range(-100, 0))
    )
    assert (rates.auc, rates.auc_low, rates.tpr, rates.advantage) == (1, 1, 1, 1)
    assert rates.tpr_low > 0.94
    assert rates.advantage_by_chance < 0.3


@pytest.mark.parametrize("seed", range(5))
def test_equal_distributions_look_like_guessing(seed: int) -> None:
    rates = membership_rates(**normal_scores(0, members=400, others=300, seed=seed))
    assert rates.auc == pytest.approx(0.5, abs=0.07)
    assert rates.tpr < 0.05
    assert rates.advantage < rates.advantage_by_chance + 0.03


def test_advantage_of_guesses_stays_below_chance_as_often_as_stated() -> None:
    drawn = [
        membership_rates(**normal_scores(0, members=30, others=20, seed=seed)) for seed in range(60)
    ]
    below = sum(rates.advantage <= rates.advantage_by_chance for rates in drawn)
    assert 52 <= below <= 60


def test_ties_find_nobody() -> None:
    rates = membership_rates(member_scores=[1.0] * 7, non_member_scores=[1.0] * 5)
    assert (rates.auc, rates.tpr, rates.advantage, rates.advantage_by_chance) == (0.5, 0, 0, 0)


@pytest.mark.parametrize("others", [22, 99, 100, 250])
def test_rates_agree_with_scipy_and_brute_force(others: int) -> None:
    scores = normal_scores(1.0, members=80, others=others, seed=others)
    members, non_members = (np.round(values, 1) for values in scores.values())  # with ties
    rates = membership_rates(member_scores=list(members), non_member_scores=list(non_members))
    wins = stats.mannwhitneyu(members, non_members).statistic
    assert rates.auc == pytest.approx(wins / (80 * others))
    distance = stats.ks_2samp(members, non_members, alternative="less").statistic
    assert rates.advantage == pytest.approx(distance)
    allowed = [
        np.mean(members > threshold)
        for threshold in [*members, *non_members]
        if np.mean(non_members > threshold) <= 0.01
    ]
    assert rates.tpr == pytest.approx(max(allowed))
    exact = stats.binomtest(round(80 * rates.tpr), 80).proportion_ci(0.95, "exact")
    assert (rates.tpr_low, rates.tpr_high) == pytest.approx((exact.low, exact.high))


@pytest.mark.slow
def test_interval_of_the_auc_agrees_with_scipys_bootstrap() -> None:
    scores = normal_scores(0.8, members=60, others=25, seed=3)

    def auc(members: Any, others: Any) -> float:
        return float(stats.mannwhitneyu(members, others).statistic / (len(members) * len(others)))

    oracle = stats.bootstrap(
        tuple(scores.values()),
        auc,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    rates = membership_rates(**scores)
    assert (rates.auc_low, rates.auc_high) == pytest.approx((oracle.low, oracle.high), abs=0.02)


def test_limit_of_the_false_positive_rate_holds_as_often_as_stated() -> None:
    true_rates, limits = [], []
    for seed in range(150):
        scores = normal_scores(0, members=1, others=30, seed=seed)
        true_rates.append(stats.norm.sf(max(scores["non_member_scores"])))
        limits.append(membership_rates(**scores).fpr_high)
    covered = float(np.mean(np.array(true_rates) <= np.array(limits)))
    assert 0.95 <= covered <= 0.995


@pytest.mark.parametrize(("members", "others"), [([], [1.0]), ([1.0], []), ([float("nan")], [1.0])])
def test_scores_that_say_nothing_are_refused(members: list[float], others: list[float]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        membership_rates(member_scores=members, non_member_scores=others)


def test_bound_is_that_of_the_gaussian_mechanism() -> None:
    # Two normal distributions at distance mu = 1: the best threshold for a rate of 1 %.
    expected = stats.norm.sf(stats.norm.isf(0.01) - 1.0)
    assert largest_tpr(GAUSSIAN, fpr=0.01) == pytest.approx(expected)
    assert largest_tpr(GAUSSIAN, fpr=0.01) == pytest.approx(0.0924, abs=1e-3)
    tighter = replace(GAUSSIAN, membership_advantage=0.02)
    assert largest_tpr(tighter, fpr=0.01) == pytest.approx(0.03)
    assert largest_tpr(NO_BOUND, fpr=0.0) == 1


def test_more_members_found_than_the_mechanism_allows_is_a_violation() -> None:
    clear = membership_rates(**normal_scores(4.0, members=200, others=300, seed=0))
    assert judged(clear, variant="federated", bound=GAUSSIAN).verdict == "violated"
    assert judged(clear, variant="non-private", bound=NO_BOUND).verdict == "consistent"
    # As distinguishable as was promised.
    allowed = membership_rates(**normal_scores(1.0, members=200, others=300, seed=0))
    assert judged(allowed, variant="federated", bound=GAUSSIAN).verdict == "consistent"


def test_few_non_members_cannot_show_a_violation() -> None:
    few = membership_rates(member_scores=[3, 2, 1], non_member_scores=[0, 0])
    assert few.tpr == 1
    assert judged(few, variant="federated", bound=GAUSSIAN).verdict == "consistent"


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[SiteConfig]:
    return write_sites(tmp_path_factory.mktemp("hospitals") / "all")


def write_sites(folder: Path) -> list[SiteConfig]:
    """Two synthetic hospitals that hold out half of their patients."""
    files = write_hospitals(
        folder,
        patients=(12, 12, 1, 1),
        shape=(24, 24, 16),
        spacing=(7.5, 7.5, 10.0),
        skull_stripped=True,
        seed=7,
        on_patient=lambda: None,
    )
    return [_half_held_out(load_site(file)) for file in files[:2]]


def _half_held_out(site: SiteConfig) -> SiteConfig:
    data = site.data.model_copy(update={"held_out": 0.5})
    return site.model_copy(update={"data": data, "declared_patients": 6, "threads": 1})


def study(**training: Any) -> StudyConfig:
    values = STUDY | {"training": STUDY["training"] | training}
    return StudyConfig.model_validate_json(json.dumps(values))


def run(of: StudyConfig, sites: list[SiteConfig], *, out: Path) -> Path:
    run_study(of, sites, out=out, engine="inprocess", resume=False, progress=Silent())
    return out


@pytest.fixture(scope="module")
def short_run(sites: list[SiteConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(study(), sites, out=tmp_path_factory.mktemp("runs") / "short")


@pytest.mark.slow
def test_both_models_of_a_run_are_attacked_and_nobody_is_named(
    sites: list[SiteConfig], short_run: Path
) -> None:
    attacks = attack_run(study(), sites, run_folder=short_run)
    assert [attack.variant for attack in attacks] == ["federated", "non-private"]
    for attack in attacks:
        assert (attack.rates.members, attack.rates.non_members) == (12, 12)
        assert attack.verdict == "consistent"
    account = json.loads((short_run / "privacy.json").read_text(encoding="utf-8"))
    assert attacks[0].bound.mu == max(entry["mu"] for entry in account)
    assert attacks[1].bound == NO_BOUND
    assert attacks == attack_run(study(), sites, run_folder=short_run)
    # Rates and bounds only: no value stands for one patient.
    leaves = json.dumps([asdict(attack) for attack in attacks])
    assert "BraTS" not in leaves
    assert "[" not in leaves[1:]


@pytest.mark.slow
def test_the_weakest_guarantee_of_the_sites_is_the_bound(
    sites: list[SiteConfig], short_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("run.json", "checkpoints"):
        (folder / name).symlink_to(short_run / name)
    account = json.loads((short_run / "privacy.json").read_text(encoding="utf-8"))
    account[1] |= {"mu": "inf", "membership_advantage": 1.0, "tpr_at_1_percent_fpr": 1.0}
    (folder / "privacy.json").write_text(json.dumps(account), encoding="utf-8")
    (attack,) = attack_run(study(), sites, run_folder=folder)
    assert attack.bound == NO_BOUND


@pytest.mark.slow
def test_hospitals_are_refused(sites: list[SiteConfig], short_run: Path) -> None:
    hospital = sites[1].model_copy(update={"purpose": "hospital"})
    with pytest.raises(PolicyRefused, match="open-data") as refusal:
        attack_run(study(), [sites[0], hospital], run_folder=short_run)
    assert refusal.value.code == "policy-metrics"


@pytest.mark.slow
def test_study_and_sites_have_to_be_the_runs(sites: list[SiteConfig], short_run: Path) -> None:
    with pytest.raises(ConfigError, match="sites"):
        attack_run(study(), sites[:1], run_folder=short_run)
    other = study().model_copy(
        update={"input": study().input.model_copy(update={"crop_size": (16, 16, 8)})}
    )
    with pytest.raises(ConfigError, match="study 'tiny'"):
        attack_run(other, sites, run_folder=short_run)


@pytest.mark.slow
def test_an_unfinished_run_is_refused_and_nothing_is_written(
    sites: list[SiteConfig], tmp_path: Path
) -> None:
    with pytest.raises(FederationError, match="account"):
        attack_run(study(), sites, run_folder=tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_memorised_patients_are_found_and_private_ones_are_not(tmp_path: Path) -> None:
    sites = write_sites(tmp_path / "hospitals")
    # Tumours drawn at random cannot be learnt from other patients, only memorised.
    for site in sites:
        for number, mask in enumerate(sorted(site.data.root.glob("*/*_seg.nii.gz"))):
            _draw_random_box(mask, seed=number)
    memorising = study(rounds=10, local_steps=20, optimizer="adam", learning_rate=3e-3)
    folder = run(memorising, sites, out=tmp_path / "run")
    private, plain = attack_run(memorising, sites, run_folder=folder)
    assert plain.rates.auc_low > 0.8
    assert plain.rates.advantage > plain.rates.advantage_by_chance
    assert private.rates.auc_low < 0.5
    assert private.rates.advantage <= private.rates.advantage_by_chance
    assert private.verdict == "consistent"


def _draw_random_box(mask: Path, *, seed: int) -> None:
    image = nibabel.load(mask)
    labels = np.zeros(image.shape, dtype=np.uint8)
    corner = np.random.default_rng(seed).integers(0, np.array(image.shape) - 8)
    labels[tuple(slice(start, start + 8) for start in corner)] = 2
    nibabel.save(nibabel.Nifti1Image(labels, image.affine), mask)


@pytest.mark.slow
def test_torchs_generator_is_left_alone(sites: list[SiteConfig], short_run: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    attack_run(study(), sites, run_folder=short_run)
    assert torch.equal(torch.get_rng_state(), before)
