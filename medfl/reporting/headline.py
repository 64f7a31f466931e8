"""The utility of the final federated model in one number, and how it compares."""

from __future__ import annotations

from dataclasses import dataclass

from medfl.reporting import utility_tables, wording
from medfl.reporting.estimates import in_region
from medfl.reporting.texts import Texts
from medfl.reporting.unfound import found_regions
from medfl.runs.records import Region, Variant
from medfl.runs.results import RunResults

_COMPARED: dict[Variant, str] = {
    "non-private": "comparison.non-private",
    "local-only": "comparison.local-only",
    "alone": "comparison.alone",
    "adapted": "comparison.adapted",
    "pooled": "comparison.pooled",
    "initial-only": "comparison.initial-only",
    "threshold": "comparison.threshold",
}


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The utility of the final federated model in one region, and how it compares."""

    region: str
    score: str
    low: str
    high: str
    patients: int
    comparisons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LeastGain:
    """The site that gains least by joining, or loses most, in the same region."""

    site: str
    gain: str
    region: str


def headline(run: RunResults, texts: Texts) -> Headline | None:
    """None where no scores were released."""
    region = _region(run)
    found = in_region(run.scores_of("federated"), region, measure="dice", statistic="mean")
    if found is None:
        return None
    return Headline(
        region=wording.region_name(region, texts).lower(),
        score=wording.dice(found.value),
        low=wording.dice(found.low),
        high=wording.dice(found.high),
        patients=found.patients,
        comparisons=tuple(
            _comparison(run, variant, region, texts)
            for variant in _COMPARED
            if variant in run.variants
        ),
    )


def least_gain(run: RunResults, texts: Texts) -> LeastGain | None:
    """None where nobody compared joining with staying alone."""
    region = _region(run)
    found = utility_tables.least_gain(run, region)
    if found is None:
        return None
    site, gain = found
    return LeastGain(
        site=site,
        gain=wording.difference_estimate(gain, texts),
        region=wording.region_name(region, texts).lower(),
    )


def _region(run: RunResults) -> Region:
    """The whole tumour where it is segmented, and else the first region that anything finds."""
    regions = found_regions(run) or run.study.input.regions
    return "WT" if "WT" in regions else regions[0]


def _comparison(run: RunResults, variant: Variant, region: Region, texts: Texts) -> str:
    """A verdict only where the interval allows one."""
    model = texts(_COMPARED[variant])
    reached = in_region(run.scores_of(variant), region, measure="dice", statistic="mean")
    gap = utility_tables.difference(run, variant, region)
    if reached is None or gap is None:
        return texts("comparison.not_scored", model=model)
    dice = wording.dice(reached.value)
    if gap.low <= 0 <= gap.high:
        return texts("comparison.unclear", model=model, dice=dice)
    verdict = "comparison.higher" if gap.value < 0 else "comparison.lower"
    return texts(verdict, model=model, dice=dice)
