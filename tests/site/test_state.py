"""Where a site keeps its files, who may read them, and what it refuses before any work."""

from __future__ import annotations

from typing import Any

import pytest

from medfl.errors import ConfigError, DataError, LedgerError, PrivacyError
from medfl.site.state import OPEN_DATA_KEY, create_ledger, hospital_state


def test_a_hospital_keeps_everything_in_its_own_state(federation: Any) -> None:
    site = federation.hospital("east")
    site_state = federation.site_state(site)
    assert site_state.ledger_folder == site.state / "ledger"
    with site_state.open_ledger() as ledger:
        assert ledger.terms.cohort == "east"
        assert ledger.terms.epsilon == site.privacy.epsilon
        assert ledger.terms.purpose == "hospital"
    assert site_state.outbox is not None
    assert (site.state / "outbox").is_dir()


def test_open_data_keep_their_ledger_in_the_run_folder(federation: Any) -> None:
    site_state = federation.site_state(federation.site("east"))
    assert site_state.ledger_folder == federation.scratch / "run" / "sites" / "east" / "ledger"
    with site_state.open_ledger() as ledger:
        assert ledger.terms.purpose == "open-data"


def test_a_hospitals_key_is_secret_and_stays_the_same(federation: Any) -> None:
    site = federation.hospital("east")
    key = federation.site_state(site).key
    assert len(key) == 32
    assert federation.site_state(site).key == key
    assert (site.state / "site.key").stat().st_mode & 0o777 == 0o600
    assert federation.site_state(federation.hospital("south")).key != key
    assert federation.site_state(federation.site("east")).key == OPEN_DATA_KEY


def test_a_ledger_is_made_once(federation: Any) -> None:
    site = federation.hospital("east")
    with pytest.raises(LedgerError):
        create_ledger(site, folder=hospital_state(site).ledger_folder)


@pytest.mark.parametrize("declared", [2, 4])
def test_a_cohort_of_another_size_than_declared_is_refused(declared: int, federation: Any) -> None:
    site_state = federation.site_state(federation.site("east", declared_patients=declared))
    with pytest.raises(PrivacyError, match=f"declared_patients = {declared} training") as caught:
        site_state.require_declared_patients()
    assert caught.value.code == "declared-patients"


def test_a_site_lacking_a_modality_of_the_study_is_refused(federation: Any) -> None:
    site_state = federation.site_state(federation.site("east", data={"modalities": ["t1c"]}))
    with pytest.raises(ConfigError) as caught:
        site_state.stores(federation.study())
    assert caught.value.code == "modalities"


def test_a_missing_folder_is_a_mistake_in_the_data(federation: Any) -> None:
    root = str(federation.scratch / "nowhere")
    site_state = federation.site_state(federation.site("east", data={"root": root}))
    with pytest.raises(DataError):
        site_state.stores(federation.study())


def test_network_and_patients_are_prepared_once(federation: Any) -> None:
    site_state, study = federation.site_state(federation.site("east")), federation.study()
    assert site_state.network(study) is site_state.network(study)
    assert site_state.stores(study) is site_state.stores(study)
    training, held_out = site_state.stores(study)
    assert (len(training), len(held_out)) == (3, 1)


def test_held_out_patients_never_train(federation: Any) -> None:
    site_state = federation.site_state(federation.site("north"))
    training = {patient.patient_id for patient in site_state.patients.training}
    held_out = {patient.patient_id for patient in site_state.patients.held_out}
    assert (len(training), len(held_out)) == (4, 1)
    assert not training & held_out
