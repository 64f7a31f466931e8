"""A step's sum is the sum of its patients' own terms, whatever cohort, study or cache there is."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medfl.audit.path_observer import NEVER, Coins, PathObserver, SparingState
from medfl.config import SiteConfig, StudyConfig, load_site
from medfl.phantom.hospitals import write_hospitals
from medfl.privacy.mechanism import Mechanism

STEPS, SCANS = 2, 8
DRAWN = 0.0


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a synthetic hospital with a site file beside it."""
    files = write_hospitals(
        tmp_path_factory.mktemp("scans") / "hospitals",
        patients=(SCANS, 1, 1, 1),
        shape=(16, 16, 12),
        spacing=(11.0, 11.0, 13.0),
        skull_stripped=True,
        seed=31,
        on_patient=lambda: None,
    )
    return files[0].with_suffix("")


def cohort(scans: Path, folder: Path, *, cases: Sequence[int]) -> SiteConfig:
    """A site whose patients have so many cases each."""
    numbers = [(patient, case) for patient, count in enumerate(cases) for case in range(count)]
    for (patient, case), scan in zip(numbers, sorted(scans.iterdir()), strict=False):
        shutil.copytree(scan, folder / "data" / f"person{patient}_{case}")
    values = load_site(scans.with_suffix(".toml")).model_dump(mode="json")
    values |= {"threads": 1, "declared_patients": len(cases), "state": str(folder / "state")}
    values["data"] |= {
        "root": str(folder / "data"),
        "layout": "custom",
        "custom": {
            "case": r"(?P<patient>person\d)_\d",
            "images": {"t1c": "{case}/*_t1ce", "t2f": "{case}/*_flair"},
            "mask": "{case}/*_seg",
        },
        "modalities": ["t1c", "t2f"],
        "held_out": 0.0,
    }
    return SiteConfig.model_validate_json(json.dumps(values))


def study_with(*, dropout: float, modality_dropout: float, crops: int) -> StudyConfig:
    """A study of tiny crops."""
    values: dict[str, Any] = {
        "id": "property",
        "input": {
            "modalities": ["t1c", "t2f"],
            "regions": ["WT"],
            "crop_size": [8, 8, 8],
            "crops_per_patient": crops,
            "missing_modality": "zero-fill",
            "modality_dropout": modality_dropout,
        },
        "network": {
            "name": "SegResNet",
            "arguments": {
                "init_filters": 8,
                "blocks_down": [1, 1],
                "blocks_up": [1],
                "dropout_prob": dropout,
            },
        },
        "privacy": {"epsilon": 4.0, "sampling_prob": 0.5},
        "training": {"rounds": 4, "local_steps": 2, "optimizer": "sgd", "learning_rate": 0.1},
        "aggregation": {"strategy": "fedavg", "min_sites": 1},
    }
    return StudyConfig.model_validate_json(json.dumps(values))


@pytest.mark.slow
@settings(
    max_examples=5,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    cases=st.lists(st.integers(1, 2), min_size=2, max_size=4),
    dropout=st.sampled_from([0.0, 0.3]),
    modality_dropout=st.sampled_from([0.0, 0.4]),
    crops=st.integers(1, 3),
    # Nothing, one case and a half, and everything; a prepared case is 31 kB here.
    memory_bytes=st.sampled_from([1, 45_000, 10**9]),
    cache_bytes=st.sampled_from([1, 45_000, 10**9]),
    clip_norm=st.sampled_from([1.0, 2.0**-10]),
    clipping=st.sampled_from(["fixed", "normalised"]),
    round_number=st.integers(1, 4),
    data=st.data(),
)
def test_the_sum_of_a_step_is_the_sum_of_its_patients_own_terms(
    scans: Path,
    cases: list[int],
    dropout: float,
    modality_dropout: float,
    crops: int,
    memory_bytes: int,
    cache_bytes: int,
    clip_norm: float,
    clipping: Any,
    round_number: int,
    data: st.DataObject,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        site = cohort(scans, folder, cases=cases)
        study = study_with(dropout=dropout, modality_dropout=modality_dropout, crops=crops)
        mechanism = Mechanism(
            sampling_prob=0.5,
            noise_multiplier=1.0,
            clip_norm=clip_norm,
            clipping=clipping,
            local_steps=STEPS,
            declared_patients=8,
        )

        def site_state(cache: str) -> SparingState:
            return SparingState(
                site,
                folder=folder,
                cache=folder / cache,
                cache_bytes=cache_bytes,
                memory_bytes=memory_bytes,
            )

        def sums(where: SparingState, coins: Coins) -> Any:
            seen = PathObserver(study=study, mechanism=mechanism, round_number=round_number)
            result = seen.sums(where, coins)
            assert (seen.off_grid, seen.failures) == (0, 0)
            return result

        shared = site_state("shared")
        coin = st.sampled_from([DRAWN, DRAWN, NEVER])
        coins = {
            member: data.draw(st.tuples(*[coin] * STEPS), label="coins")
            for member in shared.members
        }
        everybody = sums(shared, coins)
        own = {n: sums(site_state(f"own {n}"), {n: of_n}) for n, of_n in coins.items()}
        np.testing.assert_array_equal(everybody, sum(own.values()))
        gone = data.draw(st.sampled_from(sorted(coins)), label="gone")
        not_drawn = coins | {gone: (NEVER,) * STEPS}
        left = {name: of_name for name, of_name in coins.items() if name != gone}
        for fewer in (not_drawn, left, not_drawn):
            np.testing.assert_array_equal(everybody - sums(shared, fewer), own[gone])
        norms = np.sqrt(np.square(own[gone].astype(float)).sum(axis=1)) * mechanism.grid
        assert norms.max() <= clip_norm


def test_somebody_who_is_drawn_has_a_gradient(scans: Path, tmp_path: Path) -> None:
    site = cohort(scans, tmp_path, cases=[2, 1])
    site_state = SparingState(
        site, folder=tmp_path, cache=tmp_path / "cache", cache_bytes=10**9, memory_bytes=1
    )
    mechanism = Mechanism(
        sampling_prob=0.5,
        noise_multiplier=1.0,
        clip_norm=0.5,
        clipping="normalised",
        local_steps=STEPS,
        declared_patients=8,
    )
    study = study_with(dropout=0.3, modality_dropout=0.4, crops=2)
    observer = PathObserver(study=study, mechanism=mechanism, round_number=1)
    first, second = site_state.members
    found = observer.sums(site_state, {first: (DRAWN, NEVER), second: (NEVER, NEVER)})
    norms = np.sqrt(np.square(found.astype(float)).sum(axis=1)) * mechanism.grid
    # C |g| / (|g| + 0.01), and nothing where nobody was drawn.
    assert 0.45 < norms[0] < 0.5
    assert norms[1] == 0
    # The same patient takes other crops and another dropout in another step.
    again = observer.sums(site_state, {first: (DRAWN, DRAWN), second: (NEVER, NEVER)})
    np.testing.assert_array_equal(again[0], found[0])
    assert not np.array_equal(again[0], again[1])
