"""Folders of images that are not NIfTI: they are named, with the way to NIfTI."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfl.config.site import MODALITY_ORDER, SiteData
from medfl.data.layouts.other_formats import not_nifti
from medfl.data.layouts.survey import survey_cohort

DICOM = bytes(128) + b"DICM"


def write(path: Path, content: bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("files", "value", "fix"),
    [
        (["p/VSD.Brain.XX.O.MR_Flair.1.mha", "p/notes.txt"], "1 of MetaImage", "SimpleITK"),
        (["p/s/IM1.dcm", "p/s/IM2.DCM", "p/label.nrrd"], "2 of DICOM", "dcm2niix"),
        (["p/mri/orig.mgz"], "1 of MGH", "mri_convert"),
        (["TCGA_CS_1/TCGA_CS_1_1.tif"], "1 of TIFF", "medfl import lgg"),
    ],
)
def test_another_format_is_named_with_its_way_to_nifti(
    files: list[str], value: str, fix: str, tmp_path: Path
) -> None:
    for file in files:
        write(tmp_path / file)
    found = not_nifti(tmp_path)
    assert found is not None
    assert found.value == f"{value} and none of NIfTI"
    assert fix in found.fix


def test_dicom_is_known_by_its_content(tmp_path: Path) -> None:
    for name in ("I0001", "1.2.840.113619"):
        write(tmp_path / "series" / name, DICOM)
    write(tmp_path / "series" / "README", b"short")
    found = not_nifti(tmp_path)
    assert found is not None
    assert found.value.startswith("2 of DICOM")


def test_a_folder_with_nifti_or_without_images_says_nothing(tmp_path: Path) -> None:
    write(tmp_path / "notes.txt")
    assert not_nifti(tmp_path) is None
    write(tmp_path / "a" / "source.dcm", DICOM)
    write(tmp_path / "b" / "image.nii.gz")
    assert not_nifti(tmp_path) is None


def test_linked_folders_count_once_and_links_in_a_circle_come_to_an_end(tmp_path: Path) -> None:
    archive, root = tmp_path / "archive", tmp_path / "root"
    write(archive / "series" / "1.dcm", DICOM)
    (archive / "series" / "up").symlink_to(archive)
    root.mkdir()
    for name in ("p1", "p2"):
        (root / name).symlink_to(archive)
    found = not_nifti(root)
    assert found is not None
    assert found.value == "1 of DICOM and none of NIfTI"


@pytest.mark.parametrize("folder", ["BraTS2021_00000", "anything"])
def test_a_site_hears_of_it_first(folder: str, tmp_path: Path) -> None:
    write(tmp_path / folder / f"{folder}_t1.mha")
    data = SiteData(
        root=tmp_path, layout="brats2021", label_scheme="brats", modalities=MODALITY_ORDER
    )
    first = survey_cohort(data).problems[0]
    assert "MetaImage" in first.value
    assert first.where == str(tmp_path)
