from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medfl.reporting.estimates import (
    by_patient,
    estimate,
    estimate_over_runs,
    in_region,
    paired_difference,
    paired_difference_over_runs,
)
from medfl.runs.records import Score


def score(
    *, site: str = "A", patient: str = "p", dice: float = 0.5, hd95: float | None = None
) -> Score:
    return Score(
        variant="federated",
        round=1,
        site=site,
        patient=patient,
        region="WT",
        dice=dice,
        hd95_mm=hd95,
    )


def test_several_cases_of_a_patient_count_once() -> None:
    scores = [score(dice=0.2), score(dice=0.4), score(patient="q", dice=0.9)]
    assert by_patient(scores, measure="dice") == pytest.approx({("A", "p"): 0.3, ("A", "q"): 0.9})
    found = in_region(scores, "WT", measure="dice", statistic="mean")
    assert found is not None
    assert found.value == pytest.approx(0.6)  # 0.5 if cases were counted
    assert found.patients == 2


def test_one_pseudonym_at_two_sites_is_two_patients() -> None:
    scores = [score(dice=0.2), score(site="B", dice=0.4)]
    assert len(by_patient(scores, measure="dice")) == 2
    found = in_region(scores, "WT", measure="dice", statistic="mean", site="B")
    assert found is not None
    assert (found.value, found.patients) == (0.4, 1)


def test_blank_distances_are_left_out() -> None:
    scores = [score(hd95=3.0), score(patient="q", hd95=None)]
    assert by_patient(scores, measure="hd95_mm") == {("A", "p"): 3.0}


def test_other_regions_are_left_out() -> None:
    assert in_region([score()], "ET", measure="dice", statistic="mean") is None


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_interval_agrees_with_scipys_bootstrap(statistic: str) -> None:
    sample = np.random.default_rng(1).beta(5, 2, size=40)
    values = {("A", str(index)): float(value) for index, value in enumerate(sample)}
    found = estimate(values, statistic=statistic)  # type: ignore[arg-type]
    oracle = stats.bootstrap(
        (sample,),
        getattr(np, statistic),
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert found is not None
    assert found.value == pytest.approx(getattr(np, statistic)(sample))
    width = oracle.high - oracle.low
    assert found.low == pytest.approx(oracle.low, abs=0.1 * width)
    assert found.high == pytest.approx(oracle.high, abs=0.1 * width)


def test_estimates_are_the_same_every_time() -> None:
    values = {("A", str(number)): number / 7 for number in range(7)}
    assert estimate(values, statistic="mean") == estimate(values, statistic="mean")


def test_one_patient_has_no_width_and_nobody_has_no_estimate() -> None:
    found = estimate({("A", "p"): 0.7}, statistic="mean")
    assert found is not None
    assert found.low == found.value == found.high == 0.7
    assert estimate({}, statistic="mean") is None


def test_difference_is_paired_and_over_shared_patients_only() -> None:
    values = {("A", "p"): 0.9, ("A", "q"): 0.5, ("A", "r"): 0.0}
    reference = {("A", "q"): 0.3, ("A", "p"): 0.7, ("B", "r"): 1.0}
    found = paired_difference(values, reference)
    assert found is not None
    assert found.value == pytest.approx(0.2)
    assert found.patients == 2
    # The same shift for each patient leaves no spread, however different the patients are.
    assert found.high - found.low == pytest.approx(0, abs=1e-12)


def grid(*rows: list[float]) -> list[dict[tuple[str, str], float]]:
    """Runs as rows, patients as columns."""
    return [{("A", f"p{number}"): value for number, value in enumerate(row)} for row in rows]


def test_one_run_gives_the_interval_over_patients() -> None:
    runs = grid([0.1, 0.4, 0.5, 0.9])
    alone = estimate(runs[0], statistic="mean")
    assert alone is not None
    over_runs = estimate_over_runs(runs)
    assert over_runs.value == pytest.approx(alone.value)
    assert over_runs.patients == 4
    # The same bootstrap, with other draws.
    assert over_runs.low == pytest.approx(alone.low, abs=0.05)
    assert over_runs.high == pytest.approx(alone.high, abs=0.05)


def test_seeds_that_disagree_widen_the_interval_and_equal_patients_do_not_hide_it() -> None:
    agree = estimate_over_runs(grid([0.5] * 20, [0.5] * 20, [0.5] * 20))
    disagree = estimate_over_runs(grid([0.2] * 20, [0.5] * 20, [0.8] * 20))
    assert (agree.low, agree.high) == pytest.approx((0.5, 0.5))
    assert disagree.value == pytest.approx(0.5)
    # Three runs drawn with replacement: all three the same with chance 1/27 for each.
    assert (disagree.low, disagree.high) == pytest.approx((0.2, 0.8))


def test_the_interval_over_runs_and_patients_has_the_variance_of_both() -> None:
    """Crossed effects: Var(mean) = s_runs^2 / R + s_patients^2 / P, each with R-1 or P-1 of it."""
    generator = np.random.default_rng(3)
    runs, patients = generator.normal(0, 0.03, 30), generator.normal(0, 0.1, 60)
    found = estimate_over_runs(grid(*(list(0.5 + run + patients) for run in runs)))
    expected = np.sqrt(runs.var() / 30 + patients.var() / 60)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(expected, rel=0.08)


def test_a_difference_over_runs_is_paired_by_patient_and_run() -> None:
    reference = grid([0.1, 0.9], [0.3, 0.5])
    better = [{key: value + 0.1 for key, value in run.items()} for run in reference]
    found = paired_difference_over_runs(better, reference)
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_runs_of_other_patients_are_refused() -> None:
    one, other = grid([0.1, 0.2]), grid([0.1])
    with pytest.raises(ValueError, match="same patients"):
        estimate_over_runs([*one, *other])
    with pytest.raises(ValueError, match="same patients"):
        paired_difference_over_runs(one, other)
    with pytest.raises(ValueError, match="same patients"):
        estimate_over_runs([])
