"""Estimates over patients: a mean or median with its bootstrap interval.

The patient is the unit here too: several cases of one patient are averaged first, and the interval
says how much the figure would move with other patients of the same kind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from medfl.runs.records import Region, Score

Measure = Literal["dice", "hd95_mm", "lesion_dice", "lesion_hd95_mm"]
Statistic = Literal["mean", "median"]
PatientKey = tuple[str, str]

RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic over patients.

    Attributes:
        value: Mean or median.
        low: Lower end of the 95 % percentile bootstrap interval; equals `value` for one patient.
        high: Upper end.
        patients: How many patients it rests on.
    """

    value: float
    low: float
    high: float
    patients: int


def by_patient(scores: Iterable[Score], *, measure: Measure) -> dict[PatientKey, float]:
    """One value a patient: the mean over the patient's cases. Blank values are left out.

    Args:
        scores: Rows of one variant, round and region.
        measure: Column.

    Returns:
        Values by (site, pseudonym), since two sites may use one pseudonym.
    """
    values: defaultdict[PatientKey, list[float]] = defaultdict(list)
    for score in scores:
        value: float | None = getattr(score, measure)
        if value is not None:
            values[(score.site, score.patient)].append(value)
    return {patient: float(np.mean(cases)) for patient, cases in sorted(values.items())}


def by_patient_in(
    scores: Iterable[Score], region: Region, *, measure: Measure, site: str = ""
) -> dict[PatientKey, float]:
    """`by_patient` of one region, at one site or at all of them.

    Args:
        scores: Rows of one variant and round.
        region: Region.
        measure: Column.
        site: A site's name, or nothing for all.
    """
    rows = (row for row in scores if row.region == region and site in ("", row.site))
    return by_patient(rows, measure=measure)


def in_region(
    scores: Iterable[Score],
    region: Region,
    *,
    measure: Measure,
    statistic: Statistic,
    site: str = "",
) -> Estimate | None:
    """The statistic of one region over the patients of one site, or of all sites.

    Args:
        scores: Rows of one variant and round.
        region: Region.
        measure: Column.
        statistic: Mean or median.
        site: A site's name, or nothing for all.

    Returns:
        The estimate, or None where no patient was scored.
    """
    return estimate(by_patient_in(scores, region, measure=measure, site=site), statistic=statistic)


def mean_dice(scores: Iterable[Score], region: Region) -> Estimate | None:
    """Mean Dice of one region over patients, with its interval.

    Args:
        scores: Rows of one variant and round, as `RunResults.scores_of` gives them.
        region: Region.

    Returns:
        The estimate, or None where no patient was scored.
    """
    return in_region(scores, region, measure="dice", statistic="mean")


def estimate(values: Mapping[PatientKey, float], *, statistic: Statistic) -> Estimate | None:
    """The statistic over patients with its interval, or None without patients.

    The interval is the percentile bootstrap (Efron 1979) with 2000 resamples of patients and a
    fixed seed, so that a report made twice is the same.
    """
    if not values:
        return None
    sample: npt.NDArray[np.float64] = np.array(list(values.values()))
    summarise = np.mean if statistic == "mean" else np.median
    draws = np.random.default_rng(0).integers(0, sample.size, size=(RESAMPLES, sample.size))
    low, high = np.quantile(summarise(sample[draws], axis=1), (0.025, 0.975))
    return Estimate(
        value=float(summarise(sample)), low=float(low), high=float(high), patients=sample.size
    )


def paired_difference(
    values: Mapping[PatientKey, float], reference: Mapping[PatientKey, float]
) -> Estimate | None:
    """Mean of `values` minus `reference` over the patients that have both."""
    shared = {
        patient: values[patient] - reference[patient] for patient in values.keys() & reference
    }
    return estimate(dict(sorted(shared.items())), statistic="mean")


def estimate_over_runs(runs: Sequence[Mapping[PatientKey, float]]) -> Estimate:
    """The mean over patients and runs, with an interval over both.

    Runs and patients are resampled independently, since every run scores the same patients (Owen,
    "The pigeonhole bootstrap", Annals of Applied Statistics 2007).

    Args:
        runs: A value for each patient, the same patients in every run; runs differ in their seed.

    Raises:
        ValueError: If there is no run or no patient, or the runs are not of the same patients.
    """
    if not runs or not runs[0] or any(run.keys() != runs[0].keys() for run in runs):
        raise ValueError(f"expected runs of the same patients, found {[len(r) for r in runs]}")
    table: npt.NDArray[np.float64] = np.array([[run[key] for key in sorted(run)] for run in runs])
    generator = np.random.default_rng(0)
    drawn_runs = generator.integers(0, len(table), size=(RESAMPLES, len(table)))
    drawn = generator.integers(0, table.shape[1], size=(RESAMPLES, table.shape[1]))
    by_draw = table[drawn_runs].mean(axis=1)
    means = np.take_along_axis(by_draw, drawn, axis=1).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(
        value=float(table.mean()), low=float(low), high=float(high), patients=table.shape[1]
    )


def paired_difference_over_runs(
    runs: Sequence[Mapping[PatientKey, float]], references: Sequence[Mapping[PatientKey, float]]
) -> Estimate:
    """Mean difference between two models over patients and runs, paired by both.

    Args:
        runs: As for `estimate_over_runs`.
        references: What is subtracted; the same patients, and a run for each of `runs`.

    Raises:
        ValueError: As for `estimate_over_runs`, or if there are more runs of one than of the other.
    """
    if any(run.keys() != other.keys() for run, other in zip(runs, references, strict=True)):
        raise ValueError("expected the same patients in both, found others")
    return estimate_over_runs(
        [
            {key: run[key] - other[key] for key in run}
            for run, other in zip(runs, references, strict=True)
        ]
    )
