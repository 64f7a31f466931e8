"""Tables about privacy: what a loss means, where it came from, and what was charged."""

from __future__ import annotations

import math

from medfl.reporting import wording
from medfl.reporting.tables import NOTHING, Table, spread
from medfl.reporting.texts import ENGLISH, Texts
from medfl.runs.records import SitePrivacy
from medfl.runs.results import RunResults

_CLIPPING = {"fixed": "clipping.fixed", "normalised": "clipping.normalised"}


def meaning(run: RunResults, texts: Texts = ENGLISH) -> Table:
    """What the largest loss means to one patient, in three questions."""
    found_out = max(loss.tpr_at_1_percent_fpr for loss in run.privacy.values())
    largest = run.largest_loss.epsilon_pld
    if run.was_overstated:  # what its files say of it does not hold
        found_out, largest = 1.0, math.inf
    disjoint = run.federation.disjoint
    return Table(
        caption=texts("meaning.caption" if disjoint else "meaning.caption.one_site"),
        head=(
            texts("meaning.question"),
            texts("meaning.nothing_released"),
            texts("meaning.this_study"),
            texts("meaning.unprotected"),
        ),
        rows=(
            (
                texts("meaning.guess"),
                wording.percent_at_most(0.5, texts),
                wording.percent_at_most(right_guesses(run), texts),
                wording.percent_at_most(1.0, texts),
            ),
            (
                texts("meaning.found_out"),
                wording.percent_at_most(0.01, texts),
                wording.percent_at_most(found_out, texts),
                wording.percent_at_most(1.0, texts),
            ),
            (
                texts("meaning.odds", delta=wording.power(run.largest_delta)),
                "1",
                _odds_factor(largest, texts),
                texts("meaning.no_limit"),
            ),
        ),
    )


def right_guesses(run: RunResults) -> float:
    """How often the strongest attacker is right about a patient, from even odds, at most."""
    if run.was_overstated:
        return 1.0
    return (1 + max(loss.membership_advantage for loss in run.privacy.values())) / 2


def privacy_losses(run: RunResults, texts: Texts = ENGLISH) -> Table:
    """Per site: steps, epsilon of the run and of the lifetime, budget, ledger head, event key."""
    return Table(
        caption=_as_counted(run, texts("losses.caption"), texts),
        head=(
            texts("table.site"),
            texts("losses.steps"),
            texts("losses.unseen"),
            texts("losses.lost"),
            texts("losses.epsilon"),
            texts("losses.lifetime"),
            texts("losses.budget"),
            texts("losses.left"),
            texts("losses.head"),
            texts("losses.key"),
        ),
        rows=tuple(
            (
                loss.site,
                texts.number(loss.steps),
                texts.number(loss.unseen_steps),
                texts.number(loss.lost_rounds),
                wording.at_most(loss.epsilon_pld),
                _lifetime(run, loss, texts),
                wording.at_least(loss.budget),
                _left(run, loss, texts),
                f"{loss.ledger_sequence}: {loss.ledger_hash[:12]}",
                loss.event_key[:12],
            )
            for loss in _in_order(run)
        ),
    )


def several_sites(run: RunResults, texts: Texts = ENGLISH) -> Table:
    """Epsilon of one patient at several sites, and of several patients."""
    found = run.federation
    rows = [
        (texts("several.declared", sites=texts.listing(group.sites)), group)
        for group in found.overlaps
    ]
    if found.any_two_sites is not None:
        pair = texts.listing(found.any_two_sites.sites)
        rows.append((texts("several.any_two", sites=pair), found.any_two_sites))
    return Table(
        caption=_as_counted(run, texts("several.caption"), texts),
        head=(texts("several.who"), "ε", "δ"),
        rows=(
            *(
                (who, wording.at_most(group.epsilon), wording.power(group.delta))
                for who, group in rows
            ),
            *(
                (
                    texts.count("several.together", size),
                    wording.at_most(epsilon),
                    wording.power(found.delta),
                )
                for size, epsilon in sorted(found.groups.items())
            ),
        ),
    )


def mechanisms(run: RunResults, texts: Texts = ENGLISH) -> Table:
    """Per site: the parameters of the mechanism that was charged."""
    plans = [run.plans[loss.site] for loss in _in_order(run)]
    changing = wording.schedule(run.study.privacy.clip_norm_schedule, texts)
    return Table(
        caption=texts("mechanism.caption"),
        head=(
            texts("table.site"),
            texts("mechanism.patients"),
            texts("mechanism.sampling"),
            texts("mechanism.multiplier"),
            texts("mechanism.clip"),
            texts("mechanism.divisor"),
            texts("mechanism.steps"),
            "δ",
        ),
        rows=tuple(
            (
                plan.site,
                texts.number(plan.declared_patients),
                wording.plain(plan.sampling_prob),
                wording.plain(plan.noise_multiplier),
                texts(
                    "mechanism.clip.value",
                    clip=wording.plain(plan.clip_norm) + changing,
                    clipping=_clipping(plan.clipping, texts),
                ),
                wording.plain(plan.divisor),
                f"{plan.rounds} × {plan.local_steps}",
                wording.power(plan.delta),
            )
            for plan in plans
        ),
    )


def accountants(run: RunResults, texts: Texts = ENGLISH) -> Table:
    """Per site: three accountants side by side, replace-one, other deltas, and mu."""
    deltas = sorted({delta for loss in run.privacy.values() for delta in loss.epsilon_at})[::-1]
    return Table(
        caption=_as_counted(run, texts("accountants.caption"), texts),
        head=(
            texts("table.site"),
            texts("accountants.pld"),
            texts("accountants.prv"),
            texts("accountants.rdp"),
            texts("accountants.replace_one"),
            *(texts("accountants.at_delta", delta=wording.power(delta)) for delta in deltas),
            "μ",
        ),
        rows=tuple(
            (
                loss.site,
                wording.at_most(loss.epsilon_pld),
                _cross_check(loss, texts),
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


def losses_by_round(run: RunResults, texts: Texts = ENGLISH) -> Table:
    """Epsilon so far by round and site."""
    names = [loss.site for loss in _in_order(run)]
    return Table(
        caption=_as_counted(run, texts("rounds.caption"), texts),
        head=(texts("table.round"), *names),
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


def _in_order(run: RunResults) -> list[SitePrivacy]:
    return [run.privacy[site.name] for site in run.sites if site.name in run.privacy]


def _as_counted(run: RunResults, caption: str, texts: Texts) -> str:
    return texts("caption.overstated", caption=caption) if run.was_overstated else caption


def _lifetime(run: RunResults, loss: SitePrivacy, texts: Texts) -> str:
    purposes = {site.name: site.purpose for site in run.sites}
    if purposes[loss.site] == "open-data":
        return texts("losses.no_claim")
    stated = wording.at_most(loss.lifetime_epsilon)
    return texts("losses.too_small", epsilon=stated) if loss.affected_steps else stated


def _left(run: RunResults, loss: SitePrivacy, texts: Texts) -> str:
    purposes = {site.name: site.purpose for site in run.sites}
    used = loss.epsilon_pld
    if purposes[loss.site] == "hospital":
        if loss.affected_steps or run.was_overstated:
            return texts("losses.not_known")
        used = max(used, loss.lifetime_epsilon)
    left = loss.budget - used
    return wording.at_least(left) if left >= 0 else texts("losses.exceeded")


def _clipping(name: str, texts: Texts) -> str:
    return texts(_CLIPPING[name]) if name in _CLIPPING else name


def _cross_check(loss: SitePrivacy, texts: Texts) -> str:
    skipped = math.isinf(loss.epsilon_prv) and math.isfinite(loss.epsilon_pld)
    return texts("accountants.not_computed") if skipped else wording.at_most(loss.epsilon_prv)


def _odds_factor(epsilon: float, texts: Texts) -> str:
    if epsilon >= 700:  # floats end there
        return texts("meaning.no_limit")
    return wording.at_most(math.exp(epsilon))
