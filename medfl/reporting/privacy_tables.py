"""Tables about privacy: what a loss means, where it came from, and what it does not cover."""

from __future__ import annotations

import math

from medfl.reporting import wording
from medfl.reporting.tables import NOTHING, Table, spread
from medfl.runs.records import SitePrivacy
from medfl.runs.results import RunResults


def meaning(run: RunResults) -> Table:
    """What the largest loss means to one patient, in three questions."""
    found_out = max(loss.tpr_at_1_percent_fpr for loss in run.privacy.values())
    largest = run.largest_loss.epsilon_pld
    if run.was_overstated:  # what its files say of it does not hold
        found_out, largest = 1.0, math.inf
    one_patient = "one patient" if run.federation.disjoint else "a patient of one site only"
    return Table(
        caption=f"What the strongest imaginable attacker can learn about {one_patient}, at most",
        head=("Question", "If nothing were released", "This study, at most", "Without protection"),
        rows=(
            (
                "The attacker says whether a patient took part, where both were equally likely "
                "before. How often is that right?",
                wording.percent_at_most(0.5),
                wording.percent_at_most(right_guesses(run)),
                wording.percent_at_most(1.0),
            ),
            (
                "The attacker may wrongly accuse 1 in 100 people who did not take part. How many "
                "of those who did are found out?",
                wording.percent_at_most(0.01),
                wording.percent_at_most(found_out),
                wording.percent_at_most(1.0),
            ),
            (
                "By what factor can anything released change the odds that a patient took part? "
                f"(Except with a probability of the order of {wording.power(run.largest_delta)}.)",
                "1",
                _odds_factor(largest),
                "no limit",
            ),
        ),
    )


def right_guesses(run: RunResults) -> float:
    """How often the strongest attacker is right about a patient, from even odds, at most."""
    if run.was_overstated:
        return 1.0
    return (1 + max(loss.membership_advantage for loss in run.privacy.values())) / 2


def privacy_losses(run: RunResults) -> Table:
    """Per site: steps, epsilon of the run and of the lifetime, budget, ledger head, event key."""
    return Table(
        caption=f"Privacy loss by site at the end of the run{_as_counted(run)}",
        head=(
            "Site",
            "Noisy steps charged",
            "Of these never arrived",
            "Lost rounds",
            "ε of this run",
            "ε of the cohort's lifetime, all planned rounds",
            "Budget",
            "Left",
            "Ledger head",
            "Events signed by",
        ),
        rows=tuple(
            (
                loss.site,
                f"{loss.steps:,}",
                f"{loss.unseen_steps:,}",
                f"{loss.lost_rounds:,}",
                wording.at_most(loss.epsilon_pld),
                _lifetime(run, loss),
                wording.at_least(loss.budget),
                _left(run, loss),
                f"{loss.ledger_sequence}: {loss.ledger_hash[:12]}",
                loss.event_key[:12],
            )
            for loss in _in_order(run)
        ),
    )


def several_sites(run: RunResults) -> Table:
    """Epsilon of one patient at several sites, and of several patients."""
    found = run.federation
    rows = [
        (f"One patient at {wording.listing(list(group.sites))}, declared", group)
        for group in found.overlaps
    ]
    if found.any_two_sites is not None:
        pair = wording.listing(list(found.any_two_sites.sites))
        rows.append((f"One patient at any two sites (most at {pair})", found.any_two_sites))
    return Table(
        caption=f"More than one site, more than one patient{_as_counted(run)}",
        head=("Who", "ε", "δ"),
        rows=(
            *(
                (who, wording.at_most(group.epsilon), wording.power(group.delta))
                for who, group in rows
            ),
            *(
                (
                    f"{size} patients together, a family for example",
                    wording.at_most(epsilon),
                    wording.power(found.delta),
                )
                for size, epsilon in sorted(found.groups.items())
            ),
        ),
    )


def mechanisms(run: RunResults) -> Table:
    """Per site: the parameters of the mechanism that was charged."""
    plans = [run.plans[loss.site] for loss in _in_order(run)]
    changing = wording.schedule(run.study.privacy.clip_norm_schedule)
    return Table(
        caption="The noise mechanism by site",
        head=(
            "Site",
            "Declared patients n",
            "Sampling probability q",
            "Noise multiplier σ",
            "Clip norm C",
            "Divisor L = q n",
            "Planned steps",
            "δ",
        ),
        rows=tuple(
            (
                plan.site,
                f"{plan.declared_patients:,}",
                wording.plain(plan.sampling_prob),
                wording.plain(plan.noise_multiplier),
                f"{wording.plain(plan.clip_norm)}{changing} ({plan.clipping})",
                wording.plain(plan.divisor),
                f"{plan.rounds} × {plan.local_steps}",
                wording.power(plan.delta),
            )
            for plan in plans
        ),
    )


def accountants(run: RunResults) -> Table:
    """Per site: three accountants side by side, replace-one, other deltas, and mu."""
    deltas = sorted({delta for loss in run.privacy.values() for delta in loss.epsilon_at})[::-1]
    return Table(
        caption=f"The same loss, counted in other ways{_as_counted(run)}",
        head=(
            "Site",
            "ε, PLD (used)",
            "ε, PRV",
            "ε, RDP",
            "ε, replace-one",
            *(f"ε at δ = {wording.power(delta)}" for delta in deltas),
            "μ",
        ),
        rows=tuple(
            (
                loss.site,
                wording.at_most(loss.epsilon_pld),
                _cross_check(loss),
                wording.at_most(loss.epsilon_rdp),
                wording.at_most(loss.epsilon_replace_one),
                *(
                    wording.at_most(loss.epsilon_at[delta]) if delta in loss.epsilon_at else NOTHING
                    for delta in deltas
                ),
                wording.at_most(loss.mu),
            )
            for loss in _in_order(run)
        ),
    )


def losses_by_round(run: RunResults) -> Table:
    """Epsilon so far by round and site."""
    names = [loss.site for loss in _in_order(run)]
    return Table(
        caption=f"Privacy loss so far (ε) by round and site{_as_counted(run)}",
        head=("Round", *names),
        rows=tuple(
            (
                str(row.round),
                *(
                    wording.at_most(row.sites[name].epsilon) if name in row.sites else NOTHING
                    for name in names
                ),
            )
            for row in spread(run.rounds)
        ),
    )


def accesses(run: RunResults) -> Table:
    """Every use of patients' data, and whether the stated epsilon covers it."""
    covered = "yes" if run.guarantee == "given" else "no"
    scored = "no: released without noise (open data)" if run.scores else "none released"
    has_baselines = bool(set(run.variants) - {"federated", "initial-only"})
    return Table(
        caption="Uses of patients' data in this run",
        head=("Use", "Covered by ε?", "Why"),
        rows=(
            ("Training, all rounds", covered, "every step, also those with an empty draw"),
            (
                "Failed and lost rounds",
                covered,
                "charged in the site's ledger before the first step, never refunded; what never "
                "left a site adds nothing to ε",
            ),
            (
                "Earlier runs",
                "no" if run.is_open_data else "in the lifetime ε",
                "not counted for open data"
                if run.is_open_data
                else "a hospital's ledger counts every run on the same patients",
            ),
            _choice_of_settings(run),
            ("Choice of the final model", "not needed", "the last round, never chosen by score"),
            (
                "Scores on held-out patients",
                scored,
                "they take no part in training, but the scores are exact"
                if run.scores
                else "a hospital's scores stay with it",
            ),
            (
                "Comparison models",
                "no" if has_baselines else "none",
                "made from the same open data, outside the guarantee"
                if has_baselines
                else "none was made from the sites' patients",
            ),
            ("Normalisation", "not needed", "each scan by itself, no statistics of a cohort"),
            _pretraining(run),
            (
                "Split into training and held-out",
                "not needed",
                "by a keyed hash of the patient's name, never by outcome",
            ),
        ),
    )


def _choice_of_settings(run: RunResults) -> tuple[str, str, str]:
    use, tuning = "Choice of the settings", run.study.tuning
    if tuning is None:
        return (use, "not stated", "the study does not say what its settings were chosen on")
    if tuning.on == "sites":
        why = (
            f"as its coordinator states, among {wording.counted(tuning.runs, 'run')} at these sites"
        )
        if run.is_open_data:
            return (use, "no", f"{why}; not counted for open data")
        return (use, "in the lifetime ε", f"{why}, each of them charged")
    if not tuning.collections:
        return (use, "not needed", "as its coordinator states, on synthetic patients or none")
    listed = ", ".join(tuning.collections)
    return (use, "no", f"as its coordinator states, on the public patients of {listed}")


def _pretraining(run: RunResults) -> tuple[str, str, str]:
    synthetic = run.study.synthetic
    if synthetic is None or synthetic.pretraining_steps == 0:
        return ("Pretraining", "not needed", "none, random starting weights")
    if not synthetic.collections:
        return ("Pretraining", "not needed", "synthetic patients of no site")
    return (
        "Pretraining",
        "no",
        "the starting model has seen public patients, of "
        f"{', '.join(synthetic.collections)}: the guarantee does not cover them",
    )


def _in_order(run: RunResults) -> list[SitePrivacy]:
    return [run.privacy[site.name] for site in run.sites if site.name in run.privacy]


def _as_counted(run: RunResults) -> str:
    return ", as medfl 0.1 counted it: too small" if run.was_overstated else ""


def _lifetime(run: RunResults, loss: SitePrivacy) -> str:
    purposes = {site.name: site.purpose for site in run.sites}
    if purposes[loss.site] == "open-data":
        return "no claim"
    stated = wording.at_most(loss.lifetime_epsilon)
    return f"{stated} (too small)" if loss.affected_steps else stated


def _left(run: RunResults, loss: SitePrivacy) -> str:
    purposes = {site.name: site.purpose for site in run.sites}
    used = loss.epsilon_pld
    if purposes[loss.site] == "hospital":
        if loss.affected_steps or run.was_overstated:
            return "not known"
        used = max(used, loss.lifetime_epsilon)
    left = loss.budget - used
    return wording.at_least(left) if left >= 0 else "exceeded"


def _cross_check(loss: SitePrivacy) -> str:
    skipped = math.isinf(loss.epsilon_prv) and math.isfinite(loss.epsilon_pld)
    return "not computed" if skipped else wording.at_most(loss.epsilon_prv)


def _odds_factor(epsilon: float) -> str:
    return wording.at_most(math.exp(epsilon)) if epsilon < 700 else "no limit"  # floats end there
