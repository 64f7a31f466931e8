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
from medfl.runs.records import Region, Variant
from medfl.runs.results import RunResults


def dice_table(run: RunResults) -> Table:
    """Mean Dice by variant and region."""
    return _by_variant(
        run,
        measure="dice",
        statistic="mean",
        caption="Mean Dice of the final models on held-out patients (95 % interval)",
        show=wording.dice_estimate,
    )


def distances(run: RunResults) -> Table:
    """Median 95 % Hausdorff distance by variant and region."""
    return _by_variant(
        run,
        measure="hd95_mm",
        statistic="median",
        caption="95 % Hausdorff distance in mm, median over held-out patients (95 % interval)",
        show=wording.millimetre_estimate,
    )


def lesion_table(run: RunResults) -> Table | None:
    """Classic Dice beside lesion-wise Dice and distance; None where no lesions were scored."""
    measures: tuple[tuple[Measure, Statistic, Callable[[Estimate], str]], ...] = (
        ("dice", "mean", wording.dice_estimate),
        ("lesion_dice", "mean", wording.dice_estimate),
        ("lesion_hd95_mm", "median", wording.millimetre_estimate),
    )
    rows = []
    for variant in run.variants:
        scores = run.scores_of(variant)
        if all(score.lesion_dice is None for score in scores):
            continue
        name = wording.variant_name(variant, guarantee=run.guarantee)
        for region in run.study.input.regions:
            if not any(score.region == region for score in scores):
                continue
            cells = (
                _shown(in_region(scores, region, measure=measure, statistic=statistic), show)
                for measure, statistic, show in measures
            )
            rows.append((f"{name}, {region}", *cells))
    if not rows:
        return None
    return Table(
        caption="Final models on held-out patients, tumour as a whole and lesion by lesion "
        "(95 % interval)",
        head=(
            "Model and region",
            "Dice, mean",
            "Lesion-wise Dice, mean",
            "Lesion-wise 95 % Hausdorff distance in mm, median",
        ),
        rows=tuple(rows),
    )


def difference_table(run: RunResults) -> Table:
    """Federated minus each baseline, on the same patients."""
    federated = wording.variant_name("federated", guarantee=run.guarantee)
    return Table(
        caption=f"Dice of “{federated}” minus each comparison, same patients (95 % interval)",
        head=("Compared with", *_region_heads(run)),
        rows=tuple(
            (
                wording.variant_name(variant, guarantee=run.guarantee),
                *(
                    _shown(difference(run, variant, region), wording.difference_estimate)
                    for region in run.study.input.regions
                ),
            )
            for variant in run.variants
            if variant != "federated"
        ),
    )


def gains_table(run: RunResults) -> Table | None:
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
                        f"{site or 'All sites'}, {region}",
                        _dice(run, "alone", region, site=site),
                        _dice(run, "adapted", region, site=site),
                        wording.difference_estimate(gained),
                    )
                )
    return Table(
        caption="Mean Dice on held-out patients of what each site has alone, without noise, and of "
        "what it makes of the federated model (95 % interval over patients)",
        head=("Site and region", "Alone", "Joined and adapted at home", "Gain"),
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


def dice_by_site(run: RunResults) -> Table:
    """Mean Dice by site, region and variant."""
    scored = {score.site for score in run.scores}
    names = [site.name for site in run.sites if site.name in scored]
    return Table(
        caption="Mean Dice by site and region (95 % interval)",
        head=(
            "Site and region",
            *(wording.variant_name(variant, guarantee=run.guarantee) for variant in run.variants),
        ),
        rows=tuple(
            (
                f"{name}, {region}",
                *(_dice(run, variant, region, site=name) for variant in run.variants),
            )
            for name in names
            for region in run.study.input.regions
        ),
    )


def dice_by_round(run: RunResults) -> Table:
    """Mean Dice of the federated model by scored round and region."""
    return Table(
        caption="Mean Dice of the federated model by round (95 % interval)",
        head=("After round", *_region_heads(run)),
        rows=tuple(
            (
                str(number),
                *(_dice(run, "federated", region, at=number) for region in run.study.input.regions),
            )
            for number in spread(run.scored_rounds("federated"))
        ),
    )


def model_notes(run: RunResults) -> list[tuple[str, str]]:
    """Name and one-line description of each scored model."""
    notes: dict[Variant, str] = {
        "federated": "the study's final model",
        "non-private": "the same federated training without noise",
        "local-only": "each site's own model, trained with the same noise on its own patients only",
        "alone": "each site's choice among the starting model, that model trained on without noise "
        "on the site's own patients only, and their average; it would "
        "stay at the site",
        "adapted": "each site's choice among the federated model, that model trained on at home "
        "without noise, what the site trains alone, and averages; it would stay at the site",
        "pooled": "ordinary training without noise on the patients of all sites in one place, as "
        "if images could be shared",
        "initial-only": "the starting point, before any training at a site",
        "threshold": "all FLAIR voxels above one level, tuned on training patients of all sites",
    }
    return [
        (wording.variant_name(variant, guarantee=run.guarantee), notes[variant])
        for variant in run.variants
    ]


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
    show: Callable[[Estimate], str],
) -> Table:
    rows = []
    for variant in run.variants:
        found = [
            in_region(run.scores_of(variant), region, measure=measure, statistic=statistic)
            for region in run.study.input.regions
        ]
        scored = [each for each in found if each is not None]
        if scored:
            name = wording.variant_name(variant, guarantee=run.guarantee)
            patients = str(max(each.patients for each in scored))
            rows.append((name, *(_shown(each, show) for each in found), patients))
    return Table(caption=caption, head=("Model", *_region_heads(run), "Patients"), rows=tuple(rows))


def _dice(
    run: RunResults, variant: Variant, region: Region, *, site: str = "", at: int = -1
) -> str:
    scores = run.scores_of(variant, at=at)
    found = in_region(scores, region, measure="dice", statistic="mean", site=site)
    return _shown(found, wording.dice_estimate)


def _shown(found: Estimate | None, show: Callable[[Estimate], str]) -> str:
    return NOTHING if found is None else show(found)


def _region_heads(run: RunResults) -> tuple[str, ...]:
    return tuple(f"{wording.REGION_NAMES[region]} ({region})" for region in run.study.input.regions)
