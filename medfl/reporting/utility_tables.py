"""Tables about utility: every number of a figure, and the differences between models."""

from __future__ import annotations

from collections.abc import Callable

from medfl.reporting import wording
from medfl.reporting.estimates import (
    Estimate,
    Measure,
    Statistic,
    by_patient_in,
    in_region,
    paired_difference,
)
from medfl.reporting.tables import NOTHING, Table, spread
from medfl.reporting.texts import ENGLISH, Texts
from medfl.runs.records import Region, Variant
from medfl.runs.results import RunResults

NOTES: dict[Variant, str] = {
    "federated": "note.federated",
    "non-private": "note.non-private",
    "local-only": "note.local-only",
    "alone": "note.alone",
    "adapted": "note.adapted",
    "pooled": "note.pooled",
    "initial-only": "note.initial-only",
    "threshold": "note.threshold",
}

Show = Callable[[Estimate, Texts], str]


def dice_table(run: RunResults, texts: Texts = ENGLISH) -> Table:
    """Mean Dice by variant and region."""
    return _by_variant(
        run,
        measure="dice",
        statistic="mean",
        caption=texts("dice.caption"),
        show=wording.dice_estimate,
        texts=texts,
    )


def distances(run: RunResults, texts: Texts = ENGLISH) -> Table:
    """Median 95 % Hausdorff distance by variant and region."""
    return _by_variant(
        run,
        measure="hd95_mm",
        statistic="median",
        caption=texts("distances.caption"),
        show=wording.millimetre_estimate,
        texts=texts,
    )


def lesion_table(run: RunResults, texts: Texts = ENGLISH) -> Table | None:
    """Classic Dice beside lesion-wise Dice and distance; None where no lesions were scored."""
    measures: tuple[tuple[Measure, Statistic, Show], ...] = (
        ("dice", "mean", wording.dice_estimate),
        ("lesion_dice", "mean", wording.dice_estimate),
        ("lesion_hd95_mm", "median", wording.millimetre_estimate),
    )
    rows = []
    for variant in run.variants:
        scores = run.scores_of(variant)
        if all(score.lesion_dice is None for score in scores):
            continue
        name = _name(run, variant, texts)
        for region in run.study.input.regions:
            if not any(score.region == region for score in scores):
                continue
            cells = (
                _shown(in_region(scores, region, measure=measure, statistic=statistic), show, texts)
                for measure, statistic, show in measures
            )
            rows.append((texts("table.model_region", model=name, region=region), *cells))
    if not rows:
        return None
    return Table(
        caption=texts("lesions.caption"),
        head=(
            texts("table.model_and_region"),
            texts("lesions.dice"),
            texts("lesions.lesion_dice"),
            texts("lesions.distance"),
        ),
        rows=tuple(rows),
    )


def difference_table(run: RunResults, texts: Texts = ENGLISH) -> Table:
    """Federated minus each baseline, on the same patients."""
    return Table(
        caption=texts("differences.caption", federated=_name(run, "federated", texts)),
        head=(texts("differences.compared"), *_region_heads(run, texts)),
        rows=tuple(
            (
                _name(run, variant, texts),
                *(
                    _shown(difference(run, variant, region), wording.difference_estimate, texts)
                    for region in run.study.input.regions
                ),
            )
            for variant in run.variants
            if variant != "federated"
        ),
    )


def gains_table(run: RunResults, texts: Texts = ENGLISH) -> Table | None:
    """What each site has alone and what it gets by joining; None where they were not compared."""
    if not {"alone", "adapted"} <= set(run.variants):
        return None
    rows = []
    for region in run.study.input.regions:
        for site in (*(site.name for site in run.sites), ""):
            gained = gain(run, region, site=site)
            if gained is not None:
                rows.append(
                    (
                        texts(
                            "table.site_region",
                            site=site or texts("table.all_sites"),
                            region=region,
                        ),
                        _dice(run, "alone", region, texts, site=site),
                        _dice(run, "adapted", region, texts, site=site),
                        wording.difference_estimate(gained, texts),
                    )
                )
    return Table(
        caption=texts("gains.caption"),
        head=(
            texts("table.site_and_region"),
            texts("gains.alone"),
            texts("gains.joined"),
            texts("gains.gain"),
        ),
        rows=tuple(rows),
    )


def gain(run: RunResults, region: Region, *, site: str = "") -> Estimate | None:
    """What joining gains over staying alone without noise, paired by patient.

    Args:
        run: The run.
        region: Region.
        site: A site's name, or nothing for all.
    """
    return _paired(run, "adapted", "alone", region, site=site)


def least_gain(run: RunResults, region: Region) -> tuple[str, Estimate] | None:
    """The site that gains least in a region, or loses most."""
    gains = [(gain(run, region, site=site.name), site.name) for site in run.sites]
    found = [(name, estimate) for estimate, name in gains if estimate is not None]
    return min(found, key=lambda pair: pair[1].value) if found else None


def dice_by_site(run: RunResults, texts: Texts = ENGLISH) -> Table:
    """Mean Dice by site, region and variant."""
    scored = {score.site for score in run.scores}
    names = [site.name for site in run.sites if site.name in scored]
    return Table(
        caption=texts("dice_by_site.caption"),
        head=(
            texts("table.site_and_region"),
            *(_name(run, variant, texts) for variant in run.variants),
        ),
        rows=tuple(
            (
                texts("table.site_region", site=name, region=region),
                *(_dice(run, variant, region, texts, site=name) for variant in run.variants),
            )
            for name in names
            for region in run.study.input.regions
        ),
    )


def dice_by_round(run: RunResults, texts: Texts = ENGLISH) -> Table:
    """Mean Dice of the federated model by scored round and region."""
    return Table(
        caption=texts("dice_by_round.caption"),
        head=(texts("dice_by_round.after"), *_region_heads(run, texts)),
        rows=tuple(
            (
                str(number),
                *(
                    _dice(run, "federated", region, texts, at=number)
                    for region in run.study.input.regions
                ),
            )
            for number in spread(run.scored_rounds("federated"))
        ),
    )


def model_notes(run: RunResults, texts: Texts = ENGLISH) -> list[tuple[str, str]]:
    """Name and one-line description of each scored model."""
    return [(_name(run, variant, texts), texts(NOTES[variant])) for variant in run.variants]


def difference(run: RunResults, variant: Variant, region: Region) -> Estimate | None:
    """Mean Dice of the federated model minus that of `variant`, paired by patient."""
    return _paired(run, "federated", variant, region)


def _paired(
    run: RunResults, one: Variant, other: Variant, region: Region, *, site: str = ""
) -> Estimate | None:
    """Mean Dice of one variant minus that of another, at one site or at all."""
    first, second = (
        by_patient_in(run.scores_of(name), region, measure="dice", site=site)
        for name in (one, other)
    )
    return paired_difference(first, second)


def _by_variant(
    run: RunResults,
    *,
    measure: Measure,
    statistic: Statistic,
    caption: str,
    show: Show,
    texts: Texts,
) -> Table:
    rows = []
    for variant in run.variants:
        found = [
            in_region(run.scores_of(variant), region, measure=measure, statistic=statistic)
            for region in run.study.input.regions
        ]
        scored = [each for each in found if each is not None]
        if scored:
            patients = str(max(each.patients for each in scored))
            cells = (_shown(each, show, texts) for each in found)
            rows.append((_name(run, variant, texts), *cells, patients))
    head = (texts("table.model"), *_region_heads(run, texts), texts("table.patients"))
    return Table(caption=caption, head=head, rows=tuple(rows))


def _name(run: RunResults, variant: Variant, texts: Texts) -> str:
    return wording.variant_name(variant, guarantee=run.guarantee, texts=texts)


def _dice(
    run: RunResults,
    variant: Variant,
    region: Region,
    texts: Texts,
    *,
    site: str = "",
    at: int = -1,
) -> str:
    scores = run.scores_of(variant, at=at)
    found = in_region(scores, region, measure="dice", statistic="mean", site=site)
    return _shown(found, wording.dice_estimate, texts)


def _shown(found: Estimate | None, show: Show, texts: Texts) -> str:
    return NOTHING if found is None else show(found, texts)


def _region_heads(run: RunResults, texts: Texts) -> tuple[str, ...]:
    return tuple(wording.region_label(region, texts) for region in run.study.input.regions)
