"""What a site shows to others: no name and no place of its own, but every fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfl.findings import Finding
from medfl.preflight.shareable import NOT_SHARED, places_of, shareable

KEY = b"k" * 32
PLACES = {"/srv/medfl/north": "STATE", "/srv/medfl/north/images": "ROOT", "h.org:8443": "HOST:PORT"}


def shared_fix(fix: str, *, name: str = "memory", patient: str = "", names: bool = True) -> str:
    finding = Finding(
        severity="error", patient=patient, name=name, rule="r", value="v", fix=fix, names=names
    )
    (shared,) = shareable([finding], key=KEY, places=PLACES)
    assert shared.name == ""
    assert shared.value == (NOT_SHARED if names else "v")
    return shared.fix


@pytest.mark.parametrize(
    ("fix", "shown"),
    [
        ("Free space and/or memory.", "Free space and/or memory."),
        ("chmod 600 /srv/medfl/north/keys/node", "chmod 600 STATE/keys/node"),
        ("Read /srv/medfl/north/images again.", "Read ROOT again."),
        ("Open h.org:8443 in the firewall.", "Open HOST:PORT in the firewall."),
        ("chmod 700 /home/smith/medfl", NOT_SHARED),
        ("Move ~/smith away.", NOT_SHARED),
        ("Write to='/home/x'.", NOT_SHARED),
    ],
)
def test_a_fix_stays_without_the_site_s_places(fix: str, shown: str) -> None:
    assert shared_fix(fix) == shown


@pytest.mark.parametrize("fix", ["Remove P001.", "Delete scan.nii.gz.", "Look into P001_a."])
def test_a_fix_that_names_a_patient_or_a_file_is_left_out(fix: str) -> None:
    assert shared_fix(fix, name="P001_a/scan.nii.gz", patient="P001") == NOT_SHARED


def test_the_places_of_a_site_are_known_in_every_form(tmp_path: Path) -> None:
    from medfl.config import load_site

    (tmp_path / "images").mkdir()
    file = tmp_path / "site.toml"
    file.write_text(
        """
        name = "north"
        purpose = "hospital"
        declared_patients = 4
        weight = 4.0
        state = "."
        [data]
        root = "images"
        layout = "brats2021"
        label_scheme = "brats"
        modalities = ["t2f"]
        [privacy]
        epsilon = 8.0
        """
    )
    site = load_site(file)
    ca = Path("here.crt")
    places = places_of(site, study=tmp_path / "s.toml", server="h:1", ca=ca)
    assert places[str(tmp_path)] == "STATE"
    assert places[str(tmp_path / "images")] == "ROOT"
    assert places[str(tmp_path / "s.toml")] == "STUDY.toml"
    assert places["here.crt"] == places[str(ca.resolve())] == "CA.crt"
    assert places["h:1"] == "HOST:PORT"
