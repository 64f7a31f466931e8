"""``privacy.json`` and ``federation.json``: what the sites have spent, each and together.

The largest loss of a site is that of the federation only where no patient is at two sites. What is
charged to several sites on one patient composes: they draw and noise apart from each other, with
parameters that were fixed before the first round. In a secure sum they share the noise instead, see
`medfl.privacy.accounting.shared_sum`, and a site's own loss depends on who sides with the server.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

from medfl.privacy.accounting.accountant import (
    Accuracy,
    Charge,
    epsilon,
    epsilon_rdp,
    replace_one_epsilon,
)
from medfl.privacy.accounting.collusion import collusion_counts, epsilon_against
from medfl.privacy.accounting.groups import group_epsilon
from medfl.privacy.accounting.prv import epsilon_prv
from medfl.privacy.accounting.shared_sum import charge_at_several_sites
from medfl.privacy.accounting.tradeoff import distinguishability
from medfl.protocol.messages import Declaration
from medfl.protocol.secure_round import sum_threshold
from medfl.runs.files import STUDY
from medfl.runs.records import (
    COMPOSED,
    DISJOINT,
    Federation,
    PatientOfSites,
    SecureSum,
    SitePrivacy,
    SiteRound,
)
from medfl.server.ledger import FederationLedger
from medfl.server.run_folder import RunFolder

DELTAS = (1e-4, 1e-5, 1e-6)
GROUP_SIZES = (2, 5)

Paid = Callable[[Sequence[str]], list[Charge]]
"""What is charged on a patient who is at all of these sites."""

Deltas = Mapping[str, float]


def privacy_summary(folder: RunFolder) -> tuple[SitePrivacy, ...]:
    """One entry for every site that ever joined the run, recomputed from the federation ledger.

    Args:
        folder: The finished run.
    """
    ledger, secure_sum = FederationLedger(folder), _secure_sum(folder)
    rounds = folder.rounds()
    return tuple(
        _site_privacy(
            ledger,
            declaration,
            lost=sum(_is_lost(line.sites, site=site) for line in rounds),
            secure_sum=secure_sum,
        )
        for site, declaration in ledger.declarations.items()
    )


def _secure_sum(folder: RunFolder) -> SecureSum | None:
    """Whose updates are added up, as roster and study say; None where each is sent by itself."""
    roster = folder.roster()
    if not roster:
        return None
    study = STUDY.read(folder.path)
    return SecureSum(
        sites=len(roster),
        threshold=sum_threshold(study, sites=len(roster)),
        honest_sites=study.honest_sites,
        colluding_sites=study.privacy.colluding_sites,
    )


def _against_sites(
    charges: Sequence[Charge], secure_sum: SecureSum | None, *, delta: float
) -> dict[int, float]:
    if secure_sum is None:
        return {}
    sites, threshold = secure_sum.sites, secure_sum.threshold
    counts = collusion_counts(
        sites=sites, threshold=threshold, tolerated=secure_sum.colluding_sites
    )
    return {
        count: epsilon_against(
            charges,
            sites=sites,
            threshold=threshold,
            colluding_sites=count,
            delta=delta,
            accuracy="report",
        )
        for count in counts
    }


def _site_privacy(
    ledger: FederationLedger,
    declaration: Declaration,
    *,
    lost: int,
    secure_sum: SecureSum | None,
) -> SitePrivacy:
    charges, newest = ledger.charges(declaration.site), ledger.newest(declaration.site)
    delta = declaration.delta
    attack = distinguishability(charges)
    return SitePrivacy(
        site=declaration.site,
        delta=delta,
        epsilon_pld=epsilon(charges, delta=delta, accuracy="report"),
        epsilon_prv=epsilon_prv(charges, delta=delta),
        epsilon_rdp=epsilon_rdp(charges, delta=delta),
        epsilon_replace_one=replace_one_epsilon(charges, delta=delta),
        epsilon_at={other: epsilon(charges, delta=other, accuracy="report") for other in DELTAS},
        mu=attack.mu,
        membership_advantage=attack.membership_advantage,
        tpr_at_1_percent_fpr=attack.tpr_at_1_percent_fpr,
        steps=sum(charge.steps for charge in charges),
        unseen_steps=ledger.unseen_steps(declaration.site),
        lifetime_epsilon=declaration.epsilon,
        budget=declaration.epsilon_budget,
        lost_rounds=lost,
        ledger_sequence=newest.ledger_sequence,
        ledger_hash=newest.ledger_hash,
        event_key=declaration.event_key,
        revision=min(
            (charge.mechanism.revision for charge in charges),
            default=declaration.mechanism.revision,
        ),
        affected_steps=declaration.affected_steps,
        noise_origin=declaration.mechanism.noise_origin,
        adjacency=declaration.mechanism.adjacency,
        epsilon_colluding=_against_sites(charges, secure_sum, delta=delta),
    )


def federation_summary(folder: RunFolder, *, overlaps: Iterable[Sequence[str]] = ()) -> Federation:
    """What one patient may lose to all sites of a run together.

    Args:
        folder: The finished run.
        overlaps: Groups of sites that may share patients; sites that never joined do not count.

    Returns:
        Epsilon and delta that hold for every patient; those of a patient at all sites of each
        group, and at any two sites, whatever was declared; and the epsilon of several patients
        together, see `group_epsilon`.
    """
    ledger = FederationLedger(folder)
    paid = _paid_in_sums(folder, ledger) if folder.roster() else _paid_apart(ledger)
    deltas = {site: declaration.delta for site, declaration in ledger.declarations.items()}
    joined = [tuple(site for site in group if site in deltas) for group in overlaps]
    groups = tuple(_composed(group, paid, deltas) for group in joined if len(group) > 1)
    alone = {site: _epsilon((site,), paid, deltas, accuracy="report") for site in deltas}
    delta = max(deltas.values())
    places = [*((site,) for site in deltas), *(group.sites for group in groups)]
    one_patient = [paid(sites) for sites in places]
    return Federation(
        disjoint=not groups,
        epsilon=max([*alone.values(), *(group.epsilon for group in groups)]),
        delta=delta,
        composition=COMPOSED if groups else DISJOINT,
        overlaps=groups,
        any_two_sites=_worst_pair(paid, deltas),
        groups={
            size: group_epsilon(one_patient, size=size, delta=delta, disjoint=not groups)
            for size in GROUP_SIZES
        },
        secure_sum=_secure_sum(folder),
    )


def _paid_apart(ledger: FederationLedger) -> Paid:
    """Sites that noise for themselves: their charges compose."""
    charges = {site: ledger.charges(site) for site in ledger.declarations}
    return lambda sites: [charge for site in sites for charge in charges[site]]


def _paid_in_sums(folder: RunFolder, ledger: FederationLedger) -> Paid:
    """Sites that share a noise: what a patient at several of them moves is in one sum."""
    apart, steps = _paid_apart(ledger), STUDY.read(folder.path).total_steps

    def paid(sites: Sequence[str]) -> list[Charge]:
        charged = [site for site in sites if apart((site,))]
        if len(charged) < 2:
            return apart(charged)
        mechanisms = (charge.mechanism for charge in apart(charged))
        weakest = min(mechanisms, key=lambda mechanism: mechanism.noise_multiplier)
        return [charge_at_several_sites(weakest, sites=len(charged), steps=steps)]

    return paid


def _worst_pair(paid: Paid, deltas: Deltas) -> PatientOfSites | None:
    """The two sites that cost a patient of both the most; None where there is one site only."""
    # A coarse count bounds each pair from above, so most pairs never need the fine one.
    coarse = {pair: _epsilon(pair, paid, deltas) for pair in itertools.combinations(deltas, 2)}
    worst: PatientOfSites | None = None
    for pair in sorted(coarse, key=coarse.__getitem__, reverse=True):
        if worst is not None and coarse[pair] <= worst.epsilon:
            break
        found = _composed(pair, paid, deltas)
        if worst is None or found.epsilon > worst.epsilon:
            worst = found
    return worst


def _composed(sites: Sequence[str], paid: Paid, deltas: Deltas) -> PatientOfSites:
    return PatientOfSites(
        sites=tuple(sites),
        epsilon=_epsilon(sites, paid, deltas, accuracy="report"),
        delta=max(deltas[site] for site in sites),
    )


def _epsilon(
    sites: Sequence[str], paid: Paid, deltas: Deltas, *, accuracy: Accuracy = "budget"
) -> float:
    return epsilon(paid(sites), delta=max(deltas[site] for site in sites), accuracy=accuracy)


def _is_lost(sites: Mapping[str, SiteRound], *, site: str) -> bool:
    """Whether a round has no update of a site, be it that the site only joined a resumed run."""
    return site not in sites or sites[site].outcome != "admitted"
