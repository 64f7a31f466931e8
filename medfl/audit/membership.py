"""Membership inference on a trained model: do its losses betray who was trained on?

The attack of Yeom et al. (arXiv 1709.01604, section 3.2): a patient with a small loss is called
a member. It is reported as Carlini et al. (arXiv 2112.03570, section II) advise, by the members
found at few false alarms. Members are the training patients of a run's sites, and non-members are
their held-out patients, whom a keyed hash chose; they show what a member's loss would have been
without the member. The rates are given beside the most that the mechanism lets any attack reach.

Losses of single patients are no release of the mechanism, so hospitals are refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import nn

from medfl.config import SiteConfig, StudyConfig
from medfl.data.cohort import Patient, pseudonym
from medfl.data.crops import cut_crops
from medfl.data.patient_store import PatientStore
from medfl.errors import ConfigError, FederationError, ModelError, PolicyRefused
from medfl.privacy.accounting.tradeoff import Distinguishability
from medfl.protocol.study_model import model_spec
from medfl.runs.files import FINAL_MODEL
from medfl.segmentation.heads import main_head
from medfl.segmentation.losses import patient_loss
from medfl.segmentation.model_file import read_model
from medfl.site.state import SiteState, simulated_state

Float64Array = npt.NDArray[np.float64]
Variant = Literal["federated", "non-private"]
Verdict = Literal["consistent", "violated"]

CONFIDENCE = 0.95
FALSE_ALARMS = 0.01
"""Share of non-members that may be called members: the rate of a privacy report."""

CROPS = 8
"""Crops of a patient that a loss is taken over, half of them on the tumour."""

NO_BOUND = Distinguishability(mu=np.inf, membership_advantage=1.0, tpr_at_1_percent_fpr=1.0)
"""What is promised without noise."""

_RESAMPLES = 2000
_CROPS_AT_ONCE = 2


@dataclass(frozen=True, kw_only=True)
class MembershipRates:
    """How well scores tell members from non-members.

    Intervals are at 95 % and speak of other patients of the same kind under the same model.

    Attributes:
        members: How many members.
        non_members: How many non-members.
        auc: Chance that a member scores above a non-member; ties count half.
        auc_low: Lower end of its percentile bootstrap interval, members and non-members resampled.
        auc_high: Upper end.
        tpr: Share of members above a threshold that at most 1 % of the non-members pass.
        tpr_low: Lower end of its interval (Clopper and Pearson 1934).
        tpr_high: Upper end.
        fpr_high: Upper end of the interval of that threshold's false positive rate: few
            non-members cannot show that it is as small as 1 %.
        smallest_fpr: 1 / non_members, the smallest rate that can be told from none.
        advantage: Largest true positive rate less false positive rate over all thresholds. The
            threshold is chosen on the same patients, so it is above 0 for guesses too.
        advantage_by_chance: What 95 % of random guesses stay below with as many patients.
    """

    members: int
    non_members: int
    auc: float
    auc_low: float
    auc_high: float
    tpr: float
    tpr_low: float
    tpr_high: float
    fpr_high: float
    smallest_fpr: float
    advantage: float
    advantage_by_chance: float


@dataclass(frozen=True, kw_only=True)
class MembershipAttack:
    """The attack on one model beside the mechanism's bound; nothing of it is one patient's.

    `dataclasses.asdict` gives JSON types.

    Attributes:
        variant: Whose model was attacked.
        rates: What was measured.
        bound: What the mechanism allows, of the site with the weakest guarantee.
        largest_tpr: The largest true positive rate that `bound` allows at `rates.fpr_high`.
        verdict: ``violated`` if even the lower end of the measured rate is above `largest_tpr`.
    """

    variant: Variant
    rates: MembershipRates
    bound: Distinguishability
    largest_tpr: float
    verdict: Verdict


def attack_run(
    study: StudyConfig, sites: Sequence[SiteConfig], *, run_folder: Path
) -> tuple[MembershipAttack, ...]:
    """Attack the final model of a run and, where there is one, its baseline without noise.

    Args:
        study: The run's study.
        sites: The run's sites, all of them.
        run_folder: The finished run.

    Returns:
        One attack a model, the federated one first.

    Raises:
        PolicyRefused: If a site's patients are not open data.
        ConfigError: If the model is not the study's, the sites are not the run's, or nobody is
            held out.
        FederationError: If the run has no readable ``privacy.json``.
        MedflError: If a cohort or a model cannot be used.
    """
    _require_open_data(sites)
    bound = _weakest_bound(run_folder, sites=sites)
    attacks = [
        attack_model(
            _final_model(run_folder),
            study=study,
            sites=sites,
            run_folder=run_folder,
            variant="federated",
            bound=bound,
        )
    ]
    without_noise = _final_model(run_folder / "baselines" / "non-private")
    if without_noise.exists():
        attacks.append(
            attack_model(
                without_noise,
                study=study,
                sites=sites,
                run_folder=run_folder,
                variant="non-private",
                bound=NO_BOUND,
            )
        )
    return tuple(attacks)


def attack_model(
    model_file: Path,
    *,
    study: StudyConfig,
    sites: Sequence[SiteConfig],
    run_folder: Path,
    variant: Variant,
    bound: Distinguishability,
) -> MembershipAttack:
    """Attack one model file.

    Args:
        model_file: A model that the sites' training patients were used for.
        study: How patients are prepared.
        sites: Whose patients.
        run_folder: Where simulated sites work.
        variant: What the model is.
        bound: What was promised to the sites' patients.

    Raises:
        PolicyRefused: If a site's patients are not open data.
        ConfigError: If the model is not the study's, or nobody is held out.
        MedflError: If a cohort or the model cannot be used.
    """
    _require_open_data(sites)
    spec, network = read_model(model_file)
    if spec != model_spec(study):
        raise ConfigError(f"{model_file}: expected a model of study {study.id!r}, found another.")
    member_losses: list[float] = []
    non_member_losses: list[float] = []
    for site in sites:
        site_state = simulated_state(site, run_folder=run_folder)
        training, held_out = site_state.stores(study)
        parts = site_state.patients
        member_losses += _losses(network, training, parts.training, site_state, study=study)
        non_member_losses += _losses(network, held_out, parts.held_out, site_state, study=study)
    if not non_member_losses:
        raise ConfigError("Expected a site with data.held_out > 0, found nobody held out.")
    if not np.isfinite([*member_losses, *non_member_losses]).all():
        raise ModelError(f"{model_file}: expected finite losses, found NaN or infinity.")
    rates = membership_rates(
        member_scores=[-loss for loss in member_losses],
        non_member_scores=[-loss for loss in non_member_losses],
    )
    return judged(rates, variant=variant, bound=bound)


def judged(
    rates: MembershipRates, *, variant: Variant, bound: Distinguishability
) -> MembershipAttack:
    """Hold measured rates against the mechanism's bound."""
    largest = largest_tpr(bound, fpr=rates.fpr_high)
    return MembershipAttack(
        variant=variant,
        rates=rates,
        bound=bound,
        largest_tpr=largest,
        verdict="consistent" if rates.tpr_low <= largest else "violated",
    )


def largest_tpr(bound: Distinguishability, *, fpr: float) -> float:
    """The most members that any attack may find.

    Args:
        bound: Of the mechanism.
        fpr: False positive rate of the attack, in [0, 1].

    Returns:
        The smaller of what mu (Dong et al., arXiv 1905.02383, eq. 6) and the membership advantage
        (Yeom et al., definition 4) allow.
    """
    if np.isinf(bound.mu):
        return 1.0
    by_mu = float(stats.norm.cdf(stats.norm.ppf(fpr) + bound.mu))
    return min(by_mu, fpr + bound.membership_advantage)


def membership_rates(
    *, member_scores: Sequence[float], non_member_scores: Sequence[float]
) -> MembershipRates:
    """Measure how well scores tell members from non-members.

    Args:
        member_scores: One a member; larger means more like a member.
        non_member_scores: One a non-member.

    Raises:
        ValueError: If one of the two is empty or a score is not finite.
    """
    members = np.asarray(member_scores, dtype=np.float64)
    others = np.asarray(non_member_scores, dtype=np.float64)
    if not (members.size and others.size):
        raise ValueError(
            f"Expected members and non-members, found {members.size} and {others.size}."
        )
    if not (np.isfinite(members).all() and np.isfinite(others).all()):
        raise ValueError("Expected finite scores, found NaN or infinity.")
    # Constant seed: the same scores give the same interval.
    rng = np.random.default_rng(0)
    auc_low, auc_high = _auc_interval(members, others, rng=rng)
    false_alarms = int(FALSE_ALARMS * others.size)
    # Strictly above one score more than may be passed: a tie with it counts as a false alarm.
    threshold = np.sort(others)[::-1][false_alarms]
    found = int((members > threshold).sum())
    tpr_low, tpr_high = _clopper_pearson(found, members.size)
    advantage, by_chance = _advantage(members, others, rng=rng)
    return MembershipRates(
        members=members.size,
        non_members=others.size,
        auc=float(_wins(members, others).mean()),
        auc_low=auc_low,
        auc_high=auc_high,
        tpr=found / members.size,
        tpr_low=tpr_low,
        tpr_high=tpr_high,
        # At an order statistic of the non-members, the same interval as for a fixed threshold.
        fpr_high=_clopper_pearson(false_alarms, others.size)[1],
        smallest_fpr=1 / others.size,
        advantage=advantage,
        advantage_by_chance=by_chance,
    )


def _losses(
    network: nn.Module,
    store: PatientStore,
    patients: Sequence[Patient],
    site_state: SiteState,
    *,
    study: StudyConfig,
) -> list[float]:
    """One loss a patient, over crops that follow from the patient alone."""
    device = torch.device(site_state.site.device)
    network.to(device).eval()
    losses = []
    for index, patient in enumerate(patients):
        name = pseudonym(patient.patient_id, key=site_state.key)
        images, regions = cut_crops(
            store.prepared(index),
            crop_size=study.input.crop_size,
            count=CROPS,
            generator=torch.Generator().manual_seed(int(name[:15], 16)),
        )
        with torch.no_grad():
            parts = [
                main_head(network, network(part.to(device)))
                for part in images.split(_CROPS_AT_ONCE)
            ]
            losses.append(float(patient_loss(torch.cat(parts), regions.to(device))))
    return losses


def _require_open_data(sites: Sequence[SiteConfig]) -> None:
    hospitals = [site.name for site in sites if site.purpose != "open-data"]
    if hospitals:
        raise PolicyRefused(
            "Expected purpose = 'open-data' for losses of single patients, found the hospitals "
            f"{hospitals}.",
            code="policy-metrics",
        )


def _final_model(run_folder: Path) -> Path:
    return run_folder / FINAL_MODEL


def _weakest_bound(run_folder: Path, *, sites: Sequence[SiteConfig]) -> Distinguishability:
    """The bounds of the site with the weakest guarantee, as the run's own account states them."""
    path = run_folder / "privacy.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        # Infinity is written as text, which reads back as a float.
        bounds = {
            entry["site"]: Distinguishability(
                mu=float(entry["mu"]),
                membership_advantage=float(entry["membership_advantage"]),
                tpr_at_1_percent_fpr=float(entry["tpr_at_1_percent_fpr"]),
            )
            for entry in entries
        }
    except (OSError, ValueError, KeyError, TypeError):
        raise FederationError(f"{path}: expected a finished run's account, found none.") from None
    names = sorted(site.name for site in sites)
    if names != sorted(bounds):
        raise ConfigError(f"Expected the run's sites {sorted(bounds)}, found {names}.")
    return max(bounds.values(), key=lambda bound: (bound.mu, bound.membership_advantage))


def _wins(members: Float64Array, others: Float64Array) -> Float64Array:
    """Shape (members, others): 1 where the member is above, one half where they tie."""
    return np.asarray((np.sign(members[:, None] - others[None, :]) + 1) / 2, dtype=np.float64)


def _auc_interval(
    members: Float64Array, others: Float64Array, *, rng: np.random.Generator
) -> tuple[float, float]:
    def times_drawn(size: int) -> npt.NDArray[np.int64]:
        return rng.multinomial(size, np.full(size, 1 / size), size=_RESAMPLES)

    wins = _wins(members, others)
    pairs = (times_drawn(members.size) @ wins) * times_drawn(others.size)
    low, high = np.quantile(pairs.sum(axis=1) / wins.size, _tails())
    return float(low), float(high)


def _advantage(
    members: Float64Array, others: Float64Array, *, rng: np.random.Generator
) -> tuple[float, float]:
    """The measured advantage, and the one that 95 % of random memberships stay below."""
    scores = np.concatenate([members, others])
    order = np.argsort(-scores)
    ranked = scores[order]
    # A threshold lies between different scores only: equal ones are called members together.
    is_last = np.append(ranked[1:] != ranked[:-1], True)
    measured = (order < members.size)[None]
    guesses = rng.permuted(np.repeat(measured, _RESAMPLES, axis=0), axis=1)

    def largest(is_member: npt.NDArray[np.bool_]) -> Float64Array:
        tpr = is_member.cumsum(axis=1) / members.size
        fpr = (~is_member).cumsum(axis=1) / others.size
        # The last threshold calls everybody a member, which is an advantage of 0.
        return np.asarray((tpr - fpr)[:, is_last].max(axis=1), dtype=np.float64)

    return float(largest(measured)[0]), float(np.quantile(largest(guesses), CONFIDENCE))


def _clopper_pearson(successes: int, trials: int) -> tuple[float, float]:
    low_tail, high_tail = _tails()
    low = stats.beta.ppf(low_tail, successes, trials - successes + 1) if successes else 0.0
    high = stats.beta.ppf(high_tail, successes + 1, trials - successes) if successes < trials else 1
    return float(low), float(high)


def _tails() -> tuple[float, float]:
    return (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
