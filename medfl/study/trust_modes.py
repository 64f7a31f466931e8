"""`TrustModes`: a study as it is, beside itself in the other trust mode.

What a secure sum saves in noise, and what it asks for in return: sites that have to stay, and
others that may not side with the server. Both are shown side by side before anybody decides.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import ValidationError

from medfl.config import SiteConfig, StudyConfig
from medfl.config.site import Trust
from medfl.privacy.accounting.charges import Charge
from medfl.privacy.accounting.collusion import collusion_counts, epsilon_against
from medfl.privacy.accounting.planner import (
    SitePlan,
    averaged_noise,
    combined_noise,
    equal_steps,
    noise_to_signal,
)
from medfl.protocol.secure_round import sum_threshold

Planner = Callable[[StudyConfig, SiteConfig], SitePlan]
"""Plans one site, whatever the others need."""

_WORTH_A_WORD = 1.05  # times less noise
_VALUE_ERROR = "Value error, "  # how pydantic begins what a validator of ours says


@dataclass(frozen=True, kw_only=True)
class TrustMode:
    """A study in one trust mode, with the sites that would take part.

    Attributes:
        trust: The mode.
        of_study: Whether it is the study's own; the other one is a thought.
        noise_per_coordinate: On the averaged update of one step, in units of the clip norm C.
        noise_to_signal: See `medfl.privacy.accounting.planner.noise_to_signal`.
        threshold: Sites that have to stay to the end of a round.
        epsilons: Of the study for the patients of the site with the weakest promise, by the number
            of other sites that side with the server; see `collusion_counts`.
    """

    trust: Trust
    of_study: bool
    noise_per_coordinate: float
    noise_to_signal: float
    threshold: int
    epsilons: dict[int, float]


@dataclass(frozen=True, kw_only=True)
class TrustModes:
    """A study's own trust mode and the other one.

    Attributes:
        modes: ``local`` first; ``secure`` if there can be a secure sum.
        obstacle: Why there can be none, in a sentence; else empty.
        advice: What would change the noise, in a sentence; empty where there is an obstacle.
    """

    modes: tuple[TrustMode, ...]
    obstacle: str
    advice: str

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of other sites with the server, for each of which there is an epsilon."""
        return tuple(self.modes[0].epsilons)

    def to_dict(self) -> dict[str, Any]:
        """The modes as JSON types; infinite values stay floats."""
        return {**asdict(self), "modes": [asdict(mode) for mode in self.modes]}


def compare_trust_modes(
    study: StudyConfig, sites: Sequence[SiteConfig], *, parameters: int, plan: Planner
) -> TrustModes:
    """Plan a study in both trust modes, for the same sites and the same target epsilon.

    Args:
        study: The study.
        sites: Two or more, which would take part. Whether their policies allow for the other mode
            is not asked.
        parameters: Trained parameters of the network.
        plan: Plans a site by itself.

    Raises:
        MedflError: As `plan` does.
    """
    local = _variant(study, privacy={"trust": "local", "colluding_sites": 0})
    alone, count = [plan(local, site) for site in sites], len(sites)
    try:
        found = _sum_of(study, sites, plan=plan)
    except ValueError as error:
        counts = collusion_counts(sites=count, threshold=count, tolerated=0)
        mode = _mode(study, local, alone, parameters=parameters, counts=counts)
        return TrustModes(modes=(mode,), obstacle=_obstacle(error), advice="")
    counts = collusion_counts(
        sites=count, threshold=found.threshold, tolerated=study.privacy.colluding_sites
    )
    modes = (
        _mode(study, local, alone, parameters=parameters, counts=counts),
        _mode(
            study,
            found.study,
            found.plans,
            parameters=parameters,
            counts=counts,
            threshold=found.threshold,
        ),
    )
    return TrustModes(modes=modes, obstacle="", advice=_advice(modes, found))


def with_common_noise(plans: Sequence[SitePlan]) -> list[SitePlan]:
    """The plans of a secure sum, which has one noise: the largest that one of its sites needs."""
    sigma = max((plan.mechanism.noise_multiplier for plan in plans), default=0.0)
    common = [
        replace(plan, mechanism=replace(plan.mechanism, noise_multiplier=sigma)) for plan in plans
    ]
    return [replace(plan, epsilon=plan.epsilon_after(plan.total_steps)) for plan in common]


@dataclass(frozen=True, kw_only=True)
class _Sum:
    """A study as a secure sum.

    Attributes:
        free_noise: Of the same one with `min_sites` at the threshold, which asks for no more sites.
        least_noise: Of the same one if no site may leave.
    """

    study: StudyConfig
    is_of_study: bool
    plans: list[SitePlan]
    threshold: int
    free_noise: float
    least_noise: float


def _sum_of(study: StudyConfig, sites: Sequence[SiteConfig], *, plan: Planner) -> _Sum:
    """The study with the trust mode ``secure``; ValueError if it cannot be."""
    count = len(sites)
    secure = _variant(study, privacy={"trust": "secure"})
    threshold = sum_threshold(secure, sites=count)
    # In a secure sum every patient counts alike; see `medfl.privacy.policy`.
    members = [site.model_copy(update={"weight": float(site.declared_patients)}) for site in sites]
    needed = study.aggregation.min_sites
    by_needed = {
        number: with_common_noise(
            [plan(_variant(secure, aggregation={"min_sites": number}), site) for site in members]
        )
        for number in {needed, threshold, count}
    }
    return _Sum(
        study=secure,
        is_of_study=study.privacy.trust == "secure",
        plans=by_needed[needed],
        threshold=threshold,
        free_noise=averaged_noise(by_needed[threshold]),
        least_noise=averaged_noise(by_needed[count]),
    )


def _variant(study: StudyConfig, **changes: dict[str, Any]) -> StudyConfig:
    """The study with other settings; ValueError if they contradict the rest of it."""
    values = study.model_dump(mode="json")
    for section, changed in changes.items():
        values[section] |= changed
    return StudyConfig.model_validate_json(json.dumps(values))


def _mode(
    study: StudyConfig,
    variant: StudyConfig,
    plans: Sequence[SitePlan],
    *,
    parameters: int,
    counts: Sequence[int],
    threshold: int = 0,
) -> TrustMode:
    noise = combined_noise(plans, aggregation=variant.aggregation)
    return TrustMode(
        trust=variant.privacy.trust,
        of_study=variant.privacy.trust == study.privacy.trust,
        noise_per_coordinate=noise,
        noise_to_signal=noise_to_signal(noise, steps=equal_steps(study), parameters=parameters),
        threshold=threshold or study.aggregation.min_sites,
        epsilons={
            colluding: max(
                epsilon_against(
                    [Charge(mechanism=plan.mechanism, steps=plan.total_steps)],
                    sites=len(plans),
                    threshold=threshold or len(plans),
                    colluding_sites=colluding,
                    delta=plan.delta,
                )
                for plan in plans
            )
            for colluding in counts
        },
    )


def _obstacle(error: ValueError) -> str:
    """The rule that is broken, as the study's own check words it."""
    text = str(error)
    if isinstance(error, ValidationError):
        text = error.errors(include_url=False)[0]["msg"].removeprefix(_VALUE_ERROR)
    return f"There can be no secure sum: {text[:1].lower()}{text[1:].rstrip('.')}."


def _advice(modes: tuple[TrustMode, TrustMode], found: _Sum) -> str:
    secure = modes[1].noise_per_coordinate
    words, for_free = _comparison(modes, found), secure / found.free_noise
    if for_free < _WORTH_A_WORD:
        return words
    # A hospital's share is cut for `min_sites`, though a sum ends with no fewer than the threshold.
    return (
        f"{words} A sum of {len(found.plans)} sites needs {found.threshold} of them in any case: "
        f"min_sites = {found.threshold} would divide its noise by {for_free:.2g} and lose no round."
    )


def _comparison(modes: tuple[TrustMode, TrustMode], found: _Sum) -> str:
    local, secure = (mode.noise_per_coordinate for mode in modes)
    saved, more = local / secure, secure / found.least_noise
    noise = "the noise on the averaged update"
    all_stay = f"min_sites = {len(found.plans)}, where every site has to stay to the end,"
    if found.is_of_study:
        words = f'trust = "local" would multiply {noise} by {saved:.2g}'
        if more < _WORTH_A_WORD:
            return f"{words}; no other min_sites lowers it further."
        return f"{words}; {all_stay} would divide it by {more:.2g}."
    if saved * more < _WORTH_A_WORD:
        return f'trust = "secure" would not lower {noise}.'
    if saved < _WORTH_A_WORD:
        words = f'trust = "secure" would lower {noise} with a larger min_sites only'
        return f"{words}: {all_stay} would divide it by {saved * more:.2g}."
    words = f'trust = "secure" would divide {noise} by {saved:.2g}'
    if more < _WORTH_A_WORD:
        return f"{words}."
    return f"{words}, and together with {all_stay} by {saved * more:.2g}."
