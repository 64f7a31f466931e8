"""How the settings of a grid are named: no more of them than tells one from another."""

from __future__ import annotations

from medfl.config.study_grid import BASE, Mode
from medfl.reporting import wording
from medfl.reporting.grid_scores import GridScores, Setting
from medfl.reporting.texts import Texts

WORST = "▼"
"""Behind the lowest of several numbers."""

_TRUST: dict[Mode, str] = {
    "local": "studies.trust.local",
    "secure": "studies.trust.secure",
    "hybrid": "studies.trust.hybrid",
}


def trust_name(trust: Mode, texts: Texts) -> str:
    """``noise at each site``."""
    return texts(_TRUST[trust])


def variant_name(variant: str, texts: Texts) -> str:
    """A variant's own name; the study itself has none."""
    return texts("studies.variant.base") if variant == BASE else variant


def line_name(variant: str, trust: Mode, scores: GridScores, texts: Texts) -> str:
    """A line of several epsilons."""
    if len(scores.variants) == 1:
        return trust_name(trust, texts)
    if len(scores.trusts) == 1:
        return variant_name(variant, texts)
    return texts(
        "studies.pair", first=variant_name(variant, texts), second=trust_name(trust, texts)
    )


def setting_name(setting: Setting, scores: GridScores, texts: Texts) -> str:
    """``secure sum, epsilon 3``, or ``epsilon 3`` where there is one trust mode."""
    epsilon = (
        texts("studies.no_noise")
        if setting.epsilon is None
        else texts("studies.epsilon", epsilon=wording.plain(setting.epsilon))
    )
    if len(scores.trusts) == 1:
        return epsilon
    return texts("studies.pair", first=trust_name(setting.trust, texts), second=epsilon)
