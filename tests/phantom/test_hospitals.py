"""Synthetic hospitals: any number of them, for simulations and for deployments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medfl.config import load_site
from medfl.data.layouts.survey import read_cohort
from medfl.errors import LedgerError
from medfl.phantom.hospitals import hospital_names, write_hospitals
from medfl.preflight.site import check_ledger, preflight
from medfl.protocol.keys import KEYS, PUBLIC, SiteKeys
from medfl.site.state import create_ledger, hospital_state


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine of its own, whose witness remembers nothing yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "account"))


def written(out: Path, *, hospitals: int, **options: Any) -> list[Path]:
    return write_hospitals(
        out, patients=[2] * hospitals, shape=(24, 24, 20), spacing=(7.0, 7.0, 8.0), **options
    )


def test_there_are_names_for_any_number_of_hospitals() -> None:
    assert hospital_names(3) == ("north", "east", "south")
    assert hospital_names(10)[-3:] == ("northwest", "hospital-9", "hospital-10")
    names = hospital_names(40)
    assert len(set(names)) == 40


def test_six_hospitals_have_a_file_and_a_cohort_each(tmp_path: Path) -> None:
    files = written(tmp_path / "out", hospitals=6)
    sites = [load_site(file) for file in files]
    assert [site.name for site in sites] == list(hospital_names(6))
    assert {site.purpose for site in sites} == {"open-data"}
    patients = {patient.patient_id for site in sites for patient in read_cohort(site.data).patients}
    assert len(patients) == 12


@pytest.mark.slow
def test_what_is_to_be_deployed_can_be(tmp_path: Path) -> None:
    for file in written(tmp_path / "out", hospitals=2, purpose="hospital"):
        moved = tmp_path / file.name  # its paths do not depend on where it lies
        file.rename(moved)
        site = load_site(moved)
        assert (site.purpose, site.declared_patients, site.threads) == ("hospital", 2, 1)
        assert site.state.stat().st_mode & 0o777 == 0o700
        keys = SiteKeys.create(site.state / KEYS)
        keys.write_public(site.state / PUBLIC, folder=site.state / KEYS)
        create_ledger(site, folder=site.state / "ledger").close()
        assert [found for found in preflight(site) if found.severity == "error"] == []
        (ledger,) = check_ledger(hospital_state(site))
        assert ledger.severity == "note"


@pytest.mark.slow
def test_patients_of_another_seed_are_others_to_the_witness(tmp_path: Path) -> None:
    for seed in (1, 2):
        (file,) = written(tmp_path / str(seed), hospitals=1, purpose="hospital", seed=seed)
        site = load_site(file)
        create_ledger(site, folder=site.state / "ledger").close()
    (file,) = written(tmp_path / "again", hospitals=1, purpose="hospital", seed=2)
    site = load_site(file)
    with pytest.raises(LedgerError, match="pays for some of them"):
        create_ledger(site, folder=site.state / "ledger")


def test_no_deployed_patient_is_called_like_one_of_the_collection(tmp_path: Path) -> None:
    (file,) = written(tmp_path / "out", hospitals=1, purpose="hospital")
    for patient in read_cohort(load_site(file).data).patients:
        assert len(patient.patient_id.removeprefix("BraTS2021_")) == 15
