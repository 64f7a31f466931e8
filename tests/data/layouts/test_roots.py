"""Several folders of one site: one patient is one patient under all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medfl.config import load_site
from medfl.config.site import SiteConfig, SiteData
from medfl.data.checks import check_cohort
from medfl.data.layouts.survey import names_of_masks, read_cohort, survey_cohort
from medfl.deployment.hospital.site_log import Redaction
from medfl.errors import ConfigError, DataError
from tests.data.layouts.sources import ALL, of, write_mask, write_scan

SITE = """
name = "north"
purpose = "open-data"
declared_patients = 2
weight = 2.0
state = "state"

[data]
root = {root}
layout = "brats-men"
label_scheme = "brats2023"
modalities = ["t1n", "t1c", "t2w", "t2f"]

[privacy]
epsilon = 8.0
"""


def add(root: Path, case: str, *, seed: int = 0) -> Path:
    for place, ending in enumerate(ALL):
        write_scan(root / case / f"{case}-{ending}.nii.gz", seed=10 * seed + place)
    write_mask(root / case / f"{case}-seg.nii.gz", scheme="brats2023")
    return root / case


def data(*roots: Path) -> SiteData:
    return of("brats-men", roots)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    one, other = tmp_path / "a", tmp_path / "b"
    add(one, "BraTS-MEN-00001-000", seed=1)
    add(one, "BraTS-MEN-00002-000", seed=2)
    add(other, "BraTS-MEN-00002-001", seed=3)
    return one, other


def test_a_patient_under_two_roots_is_one_patient_with_more_cases(two: tuple[Path, Path]) -> None:
    patients = read_cohort(data(*two)).patients
    assert {p.patient_id: [case.case_id for case in p.cases] for p in patients} == {
        "BraTS-MEN-00001": ["BraTS-MEN-00001-000"],
        "BraTS-MEN-00002": ["BraTS-MEN-00002-000", "BraTS-MEN-00002-001"],
    }
    assert read_cohort(data(*reversed(two))).patients == patients


def test_a_case_under_two_roots_is_refused(two: tuple[Path, Path]) -> None:
    again = add(two[1], "BraTS-MEN-00001-000", seed=9)
    with pytest.raises(DataError, match="expected each case in one folder, found also") as error:
        read_cohort(data(*two))
    assert str(again) in str(error.value)
    assert str(two[0] / again.name) in str(error.value)


@pytest.mark.parametrize("kept", [("t1n", "t1c"), ()])
def test_the_halves_of_a_case_are_not_put_together(
    kept: tuple[str, ...], two: tuple[Path, Path]
) -> None:
    again = add(two[1], "BraTS-MEN-00001-000", seed=9)
    for ending in (*ALL, "seg"):
        side = two[1] if ending in kept else two[0]
        if ending != "seg":
            other = again if side == two[0] else two[0] / again.name
            (other / f"{again.name}-{ending}.nii.gz").unlink()
    problems = survey_cohort(data(*two)).problems
    assert [problem.rule for problem in problems][:1] == ["each case in one folder"]


def test_a_mask_under_another_root_is_nobodys(two: tuple[Path, Path]) -> None:
    name = "UPENN-GBM-00001_11"
    for place, ending in enumerate(("T1", "T1GD", "T2", "FLAIR")):
        write_scan(two[0] / f"u/images_structural/{name}/{name}_{ending}.nii.gz", seed=place)
    write_mask(two[1] / f"u/images_segm/{name}_segm.nii.gz", scheme="brats")
    found = survey_cohort(of("upenn-gbm", (two[0] / "u", two[1] / "u")))
    assert {p.rule.split(" (")[0] for p in found.problems} == {
        "one mask",
        "images beside every mask",
    }


def test_one_root_within_another_is_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    for roots in ((tmp_path, two[0]), (two[0], tmp_path), (two[0], tmp_path / "a" / ".." / "a")):
        with pytest.raises(DataError, match=r"folders in data\.root that lie apart"):
            read_cohort(data(*roots))
    link = tmp_path / "link"
    link.symlink_to(two[0])
    with pytest.raises(DataError, match=r"folders in data\.root that lie apart"):
        read_cohort(data(two[0], link))


def test_a_root_that_is_missing_is_named(two: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="away: expected a folder, found nothing"):
        read_cohort(data(*two, tmp_path / "away"))


def test_the_preflight_sees_all_roots(two: tuple[Path, Path], tmp_path: Path) -> None:
    (two[1] / "BraTS-MEN-00002-001" / "BraTS-MEN-00002-001-t2w.nii.gz").write_bytes(b"")
    site = SiteConfig(
        name="site",
        purpose="open-data",
        declared_patients=2,
        weight=1.0,
        state=tmp_path / "state",
        data=data(*two),
        privacy={"epsilon": 8.0},
    )
    found = [f for f in check_cohort(site) if f.severity == "error"]
    assert [f.name for f in found] == ["BraTS-MEN-00002-001/BraTS-MEN-00002-001-t2w.nii.gz"]


def test_predicted_masks_of_all_roots_have_places_of_their_own(two: tuple[Path, Path]) -> None:
    found = names_of_masks(survey_cohort(data(*two)).patients, data=data(*two))
    assert {str(path) for path in found.values()} == {
        f"{case}/{case}-seg.nii.gz"
        for case in ("BraTS-MEN-00001-000", "BraTS-MEN-00002-000", "BraTS-MEN-00002-001")
    }


def test_no_folder_of_any_root_reaches_the_log(two: tuple[Path, Path]) -> None:
    redacted = Redaction(data(*two))
    for root, case in ((two[0], "BraTS-MEN-00001-000"), (two[1], "BraTS-MEN-00002-001")):
        assert redacted(f"cannot read {root}/{case}/x.nii") == f"cannot read {root}/..."
        assert redacted(f"case {case}") == "case [patient]"


def test_a_site_file_names_one_root_or_several(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text(SITE.format(root='["images", "/archive"]'))
    assert load_site(file).data.roots == (tmp_path / "images", Path("/archive"))
    file.write_text(SITE.format(root='"images"'))
    assert load_site(file).data.root == tmp_path / "images"


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("[]", r"key data.root: expected a folder in quotes, or a list of them, found \[\]"),
        ("5", "key data.root: expected a folder in quotes, or a list of them, found 5"),
        ('""', "key data.root: expected a folder in quotes"),
        ('["a", 5]', "key data.root: expected a folder in quotes"),
        ('["a", "a"]', r"key data.root: expected each folder once, found \['a', 'a'\]"),
        ('["${MEDFL_UNSET}"]', "key data.root: .* MEDFL_UNSET to be set"),
    ],
)
def test_a_mistake_in_roots_is_named(root: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text(SITE.format(root=root))
    with pytest.raises(ConfigError) as error:
        load_site(file)
    assert re.search(expected, str(error.value)), error.value
