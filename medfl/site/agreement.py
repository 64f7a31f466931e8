"""What a site agrees to before round 1: the study, the noise, and who takes part.

A site answers a proposal with the mechanism that it will run, and writes the agreement into its
ledger, where every round looks it up.
"""

from __future__ import annotations

from medfl.config import StudyConfig
from medfl.errors import PolicyRefused, SecureSumRefused
from medfl.privacy.accounting.charges import Charge
from medfl.privacy.accounting.planner import plan_site
from medfl.privacy.ledger.allowance import most_steps
from medfl.privacy.ledger.ledger import Agreement, Ledger
from medfl.privacy.policy import check_proposal, check_study
from medfl.protocol.messages import Declaration, Proposal
from medfl.protocol.secure_round import Member, RosterTask
from medfl.segmentation.networks import trained_names
from medfl.site.open_runs import OpenRuns
from medfl.site.seen_patients import require_unseen_by_start
from medfl.site.state import SiteState
from medfl.site.sum_state import SumState


def declare(site_state: SiteState, proposal: Proposal) -> Declaration:
    """Answer a proposal: the site's public constants and the mechanism that it will run.

    Where updates will be added up in secret, it is the mechanism that the site needs at least, and
    the site agrees to nothing before it knows with whom: see `join`.

    Raises:
        PolicyRefused: If the proposal is weaker than the site's policy, or the site is in as many
            other studies as it allows (policy-studies-at-once).
        PrivacyError: If the study's start has seen a patient of the site.
        BudgetExceeded: If the study does not fit what is left of the budget.
        MedflError: If the site cannot take part (data, modalities, ledger).
    """
    return _declared(site_state, proposal, agrees=proposal.study.privacy.trust == "local")


def join(site_state: SiteState, task: RosterTask) -> Declaration:
    """Agree to a study whose updates are added up in secret, with these sites and this noise.

    Raises:
        PolicyRefused: If the noise is less than this site needs (policy-noise-multiplier), or a
            hospital has not named one of the others under this key (policy-peers).
        SecureSumRefused: If the roster has not this site as it is, is too short, or is another one
            than the run had (secure-sum-roster).
        MedflError: As `declare` says.
    """
    _require_known(site_state, task)
    sums = SumState(site_state.folder, run=task.run)
    sums.require_roster(task.members)  # before the ledger takes note of anything
    declaration = _declared(site_state, task, agrees=True, noise_multiplier=task.noise_multiplier)
    sums.agree(task.members)
    return declaration


def _require_known(site_state: SiteState, task: RosterTask) -> None:
    site, members = site_state.site, task.members
    own = Member(event_key=site_state.keys.event_key, declared_patients=site.declared_patients)
    if task.study.privacy.trust != "secure" or members.get(site.name) != own:
        raise SecureSumRefused(
            "Expected a roster of a secure sum with this site as it is, found another.",
            code="secure-sum-roster",
        )
    needed = task.study.aggregation.min_sites
    if len(members) < needed:
        raise SecureSumRefused(
            f"Expected a roster of at least {needed} sites, found {len(members)}.",
            code="secure-sum-roster",
        )
    if site.purpose == "open-data":
        return
    for name, member in members.items():
        if name != site.name and site.privacy.peers.get(name) != member.event_key:
            raise PolicyRefused(
                "Expected every other site of a secure sum in privacy.peers of this site's file, "
                f"under the key that was compared by telephone; found {name} with the key "
                f"{member.event_key}.",
                code="policy-peers",
            )


def _declared(
    site_state: SiteState, proposal: Proposal, *, agrees: bool, noise_multiplier: float = 0.0
) -> Declaration:
    check_study(proposal.study, site_state.site, private=proposal.private)
    with OpenRuns(site_state.site).entering(proposal):
        return _agreed_or_not(
            site_state, proposal, agrees=agrees, noise_multiplier=noise_multiplier
        )


def _agreed_or_not(
    site_state: SiteState, proposal: Proposal, *, agrees: bool, noise_multiplier: float
) -> Declaration:
    site, study = site_state.site, proposal.study
    require_unseen_by_start(site_state, proposal)
    # Whatever would make a round fail shall fail here, before anything is charged.
    site_state.stores(study)
    trained_names(site_state.network(study), study.training.trainable)
    keys = site_state.keys
    with site_state.open_ledger() as ledger:
        agreement = ledger.agreement(proposal.run)
        if agreement is None:
            site_state.require_declared_patients()
            mechanism = plan_site(
                study,
                site,
                history=ledger.history(),
                private=proposal.private,
                noise_multiplier=noise_multiplier,
            ).mechanism
        else:
            _require_agreed(agreement, study)
            mechanism = agreement.mechanism
        if study.privacy.trust == "secure" and agrees:
            _require_noise(noise_multiplier, needed=mechanism.noise_multiplier)
        check_proposal(mechanism, rounds=study.training.rounds, site=site)
        # A run that goes on after a crash has paid for some of its steps already.
        done = ledger.steps(run=proposal.run)
        if done < study.total_steps:
            remaining = Charge(mechanism=mechanism, steps=study.total_steps - done)
            epsilon = ledger.admit(study.id, [remaining], run=proposal.run)
        else:
            epsilon = ledger.spent().epsilon
        if agreement is None and agrees:
            ledger.agree(
                proposal.run,
                Agreement(
                    study=study.id,
                    proposal=study.digest,
                    mechanism=mechanism,
                    members=frozenset(site_state.members),
                    steps=most_steps(
                        rounds=study.training.rounds, local_steps=mechanism.local_steps
                    ),
                ),
                patients=site_state.marks(),
            )
        head, affected = ledger.head(), ledger.affected_steps()
    declaration = Declaration(
        site=site.name,
        run=proposal.run,
        run_steps=done,
        event_key=keys.event_key,
        rotations=keys.rotations,
        purpose=site.purpose,
        declared_patients=site.declared_patients,
        weight=site.weight,
        modalities=site.data.modalities,
        label_scheme=site.data.label_scheme,
        delta=site.privacy.delta,
        epsilon_budget=site.privacy.epsilon,
        epsilon=epsilon,
        mechanism=mechanism,
        ledger_sequence=head.sequence,
        ledger_hash=head.hash,
        affected_steps=affected,
    )
    return declaration.signed(keys)


def _require_noise(proposed: float, *, needed: float) -> None:
    """The planner takes the larger one, so that equality says that it is enough."""
    if proposed != needed:
        raise PolicyRefused(
            f"Expected a secure sum with a noise_multiplier of {needed:g}, which this site needs "
            f"or agreed to, found {proposed:g}.",
            code="policy-noise-multiplier",
        )


def agreed(ledger: Ledger, *, run: str, study: StudyConfig) -> Agreement:
    """What this site agreed to for a run.

    Raises:
        PolicyRefused: If it agreed to nothing, or to another study.
    """
    agreement = ledger.agreement(run)
    if agreement is None:
        raise PolicyRefused(
            "Expected a run that this site agreed to, found no agreement.",
            code="policy-not-agreed",
        )
    _require_agreed(agreement, study)
    return agreement


def _require_agreed(agreement: Agreement, study: StudyConfig) -> None:
    if agreement.proposal != study.digest:
        raise PolicyRefused(
            f"Expected the proposal that this site agreed to for the run ({agreement.study}), "
            f"found another ({study.id}).",
            code="policy-not-agreed",
        )
