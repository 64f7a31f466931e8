"""Regions that no model finds, whose scores would pass for a result.

A patient without a region scores Dice 1 if nothing is predicted there, and 0 is scored where it is
missed. So models that never find it all "reach" the share of patients who do not have it.
"""

from __future__ import annotations

from collections.abc import Iterable

from medfl.reporting import wording
from medfl.reporting.estimates import mean_dice
from medfl.reporting.texts import ENGLISH, Texts
from medfl.runs.records import Region
from medfl.runs.results import RunResults


def unfound_regions(run: RunResults) -> tuple[Region, ...]:
    """Regions in which no final model overlaps with the truth of any patient."""
    return tuple(region for region in run.study.input.regions if _is_unfound(run, region))


def found_regions(run: RunResults) -> tuple[Region, ...]:
    """The others: what there is to be drawn."""
    unfound = unfound_regions(run)
    return tuple(region for region in run.study.input.regions if region not in unfound)


def unfound_notes(run: RunResults, texts: Texts = ENGLISH) -> tuple[str, ...]:
    """What the scores of such a region mean, one sentence a region."""
    notes = []
    for region in unfound_regions(run):
        means = [mean_dice(run.scores_of(variant), region) for variant in run.variants]
        values = sorted(found.value for found in means if found is not None)
        ends = list(dict.fromkeys(wording.dice(value) for value in (values[0], values[-1])))
        score = ends[0] if len(ends) == 1 else texts("number.range", low=ends[0], high=ends[1])
        name = wording.region_name(region, texts).lower()
        notes.append(texts("unfound.text", region=name, score=score))
    return tuple(notes)


def is_unfound(scores: Iterable[float]) -> bool:
    """Whether these are scores of a region that nothing finds.

    Args:
        scores: Dice of one region, of all models and patients.
    """
    values = set(scores)
    return 0 in values and values <= {0, 1}


def _is_unfound(run: RunResults, region: Region) -> bool:
    return is_unfound(
        score.dice
        for variant in run.variants
        for score in run.scores_of(variant)
        if score.region == region
    )
