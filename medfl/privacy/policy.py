"""The site's own rules against a proposal: refuse, never adapt.

Each rule has a code of its own, which is all that the server learns; the full sentence stays in the
site's log.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from medfl.config import SiteConfig, StudyConfig
from medfl.errors import PolicyRefused
from medfl.privacy.mechanism import REVISION, Mechanism


def check_study(study: StudyConfig, site: SiteConfig, *, private: bool = True) -> None:
    """Accept what a study fixes by itself, whatever noise the planner may find for it.

    It comes before any planning: absurd numbers would keep the planner for hours, and a site that
    refuses owes nobody a plan.

    Args:
        study: The proposal.
        site: The site's own file.
        private: False for the baseline without noise.

    Raises:
        PolicyRefused: At the first rule that is broken, with the rule's code.
    """
    for refusal in refusals(study, site, private=private):
        raise refusal


def refusals(
    study: StudyConfig, site: SiteConfig, *, private: bool = True
) -> Iterator[PolicyRefused]:
    """Every rule that what a study fixes by itself breaks; none for a study that is accepted.

    Args:
        study: The proposal.
        site: The site's own file.
        private: False for the baseline without noise.

    Yields:
        A refusal with the rule's code.
    """
    proposed = Mechanism(
        sampling_prob=study.privacy.sampling_prob,
        # The planner never goes below the site's floors.
        noise_multiplier=max(
            site.privacy.min_noise_multiplier,
            share_floor(site, honest_sites=study.honest_sites),
            1.0,
        )
        if private
        else 0.0,
        clip_norm=study.privacy.clip_norm,
        clipping=study.privacy.clipping,
        local_steps=study.training.local_steps,
        declared_patients=site.declared_patients,
        noise_origin=study.privacy.noise,
        clip_norm_schedule=study.clip_norm_schedule,
        trust=study.privacy.trust,
        honest_sites=study.honest_sites,
    )
    yield from _broken(proposed, rounds=study.training.rounds, site=site)
    yield from _unknown_start(study, site)


def share_floor(site: SiteConfig, *, honest_sites: int) -> float:
    """The noise multiplier of a secure sum with which the site's own share is large enough."""
    return site.privacy.min_share_noise_multiplier * math.sqrt(honest_sites)


def _unknown_start(study: StudyConfig, site: SiteConfig) -> Iterator[PolicyRefused]:
    """Compare patients with no list of a start that nobody at a hospital has decided on."""
    start = study.synthetic.start if study.synthetic is not None else None
    if start is None or start.seen_sha256 is None or site.purpose == "open-data":
        return
    if start.seen_sha256 not in site.privacy.seen_lists:
        yield PolicyRefused(
            "Refused the study's proposal: the site's policy expects a starting model that has "
            "seen nobody, or public patients whose list is in privacy.seen_lists, found "
            f"{', '.join(start.collections)} with the list {start.seen_sha256}.",
            code="policy-start",
        )


def check_proposal(mechanism: Mechanism, *, rounds: int, site: SiteConfig) -> None:
    """Accept a mechanism that is at least as strict as the site's policy.

    Args:
        mechanism: What the server proposes for each round.
        rounds: Rounds of the study.
        site: The site's own file.

    Raises:
        PolicyRefused: At the first rule that is broken, with the rule's code.
    """
    for refusal in _broken(mechanism, rounds=rounds, site=site):
        raise refusal


def _broken(mechanism: Mechanism, *, rounds: int, site: SiteConfig) -> Iterator[PolicyRefused]:
    for holds, code, rule, found in _rules(mechanism, rounds=rounds, site=site):
        if not holds:
            yield PolicyRefused(
                f"Refused the study's proposal: the site's policy expects {rule}, found {found}.",
                code=code,
            )


def _rules(
    mechanism: Mechanism, *, rounds: int, site: SiteConfig
) -> Iterator[tuple[bool, str, str, object]]:
    policy = site.privacy
    if not mechanism.is_private:
        yield (
            policy.allow_baselines,
            "policy-noise",
            "noise in every step (privacy.allow_baselines is false)",
            "a baseline without noise",
        )
    else:
        yield (
            mechanism.noise_multiplier >= policy.min_noise_multiplier,
            "policy-noise-multiplier",
            f"noise_multiplier >= {policy.min_noise_multiplier}",
            mechanism.noise_multiplier,
        )
    yield (
        mechanism.trust in policy.trust,
        "policy-trust",
        f"trust in {list(policy.trust)} (privacy.trust)",
        mechanism.trust,
    )
    if mechanism.trust == "secure":
        share = mechanism.noise_multiplier / math.sqrt(mechanism.honest_sites)
        yield (
            not mechanism.is_private or share >= policy.min_share_noise_multiplier * (1 - 1e-9),
            "policy-share",
            f"a share of the noise >= {policy.min_share_noise_multiplier} C",
            share,
        )
        yield (
            site.weight == site.declared_patients,
            "policy-weight",
            f"weight = declared_patients = {site.declared_patients} in a secure sum, where every "
            "patient counts alike",
            site.weight,
        )
    yield (
        mechanism.revision == REVISION,
        "policy-revision",
        f"the mechanism of its own engine, revision {REVISION}",
        mechanism.revision,
    )
    yield (
        site.purpose == "open-data" or mechanism.noise_origin == "operating-system",
        "policy-seeded",
        "noise from the operating system",
        mechanism.noise_origin,
    )
    yield (
        mechanism.clip_norm <= policy.max_clip_norm,
        "policy-clip-norm",
        f"clip_norm <= {policy.max_clip_norm}",
        mechanism.clip_norm,
    )
    yield (
        mechanism.sampling_prob <= policy.max_sampling_prob,
        "policy-sampling-prob",
        f"sampling_prob <= {policy.max_sampling_prob}",
        mechanism.sampling_prob,
    )
    yield (
        mechanism.local_steps <= policy.max_local_steps,
        "policy-local-steps",
        f"local_steps <= {policy.max_local_steps}",
        mechanism.local_steps,
    )
    yield (
        rounds <= policy.max_rounds,
        "policy-rounds",
        f"rounds <= {policy.max_rounds}",
        rounds,
    )
    yield (
        mechanism.declared_patients == site.declared_patients,
        "policy-declared-patients",
        f"declared_patients = {site.declared_patients}",
        mechanism.declared_patients,
    )
