from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medfl.reporting.estimates import by_patient, estimate, in_region, paired_difference
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
