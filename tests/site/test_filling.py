"""A cache that is filled beforehand: the first round prepares nobody, and nothing is charged."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from medfl.data import patient_store
from medfl.data.cache import TensorCache
from medfl.errors import ConfigError, DataError
from medfl.site.filling import fill_cache
from medfl.site.state import CACHE


def fill(federation: Any, site: Any) -> tuple[list[DataError], list[tuple[int, int]]]:
    """Errors, and what was told of the progress."""
    told: list[tuple[int, int]] = []
    failed = fill_cache(
        federation.site_state(site), federation.study(), on_patient=lambda *work: told.append(work)
    )
    return failed, told


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cases in the order in which they are prepared."""
    names: list[str] = []
    original = patient_store.prepare_case

    def note(case: Any, frame: Any) -> Any:
        names.append(case.case_id)
        return original(case, frame)

    monkeypatch.setattr(patient_store, "prepare_case", note)
    return names


def test_a_round_after_it_prepares_nobody_and_nothing_was_charged(
    federation: Any, prepared: list[str]
) -> None:
    site = federation.hospital("east", threads=2)
    assert fill(federation, site) == ([], [(1, 4), (2, 4), (3, 4), (4, 4)])
    assert len(prepared) == 4
    prepared.clear()
    site_state = federation.site_state(site)
    training, _ = site_state.stores(federation.study())
    training.verify()
    assert [len(training.prepared(index)) for index in range(4)] == [1, 1, 1, 1]
    assert fill(federation, site)[0] == []
    assert prepared == []
    with site_state.open_ledger() as ledger:
        assert ledger.spent().epsilon == 0


@pytest.mark.parametrize(("shares_metrics", "patients"), [(True, 4), (False, 3)])
def test_held_out_patients_are_prepared_only_where_they_are_scored(
    shares_metrics: bool, patients: int, federation: Any, prepared: list[str]
) -> None:
    state = str(federation.scratch / "state")
    site = federation.site("east", state=state, privacy={"share_metrics": shares_metrics})
    assert fill(federation, site)[1][-1] == (patients, patients)
    assert len(set(prepared)) == patients


def test_every_patient_who_cannot_be_prepared_is_told_and_the_others_are(
    federation: Any, prepared: list[str]
) -> None:
    site = federation.hospital("east", copy_patients=True)
    damaged = sorted(site.data.root.glob("*/*_t1ce.nii.gz"))[:2]
    for image in damaged:
        image.write_bytes(image.read_bytes()[:200])
    failed, told = fill(federation, site)
    assert told[-1] == (4, 4)
    assert len(failed) == 2
    for image in damaged:
        assert any(image.parent.name in str(error) for error in failed)
    assert len(set(prepared)) == 4


def test_a_cache_that_is_too_small_is_refused_and_filled_once_it_is_larger(
    federation: Any, prepared: list[str]
) -> None:
    state = str(federation.scratch / "state")
    site = federation.site("east", state=state)
    fill(federation, site)
    sizes = [path.stat().st_size for path in (site.state / CACHE).iterdir()]
    TensorCache(site.state / CACHE).clear()
    small = federation.site("east", cache_gigabytes=1.5 * max(sizes) / 1e9, state=state)
    with pytest.raises(DataError, match="holds 3 patients, found room for 1"):
        fill(federation, small)
    prepared.clear()
    assert fill(federation, site)[0] == []
    assert len(prepared) == 2


def test_a_full_disk_is_an_error_and_not_a_patients(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TensorCache, "write", full)
    with pytest.raises(DataError, match="expected room for prepared images"):
        fill(federation, federation.hospital("east"))


def test_a_site_without_a_modality_of_the_study_is_refused(federation: Any) -> None:
    with pytest.raises(ConfigError, match="found \\['t1c'\\]"):
        fill(federation, federation.site("east", data={"modalities": ["t1c"]}))
