"""What a folder seems to hold: the right layout first, and never surer than it can be."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medfl.data.layouts.detection import detect
from medfl.errors import DataError


def write(path: Path, *, values: tuple[int, ...] | None = None, volumes: int = 0) -> None:
    """A small image; a mask where values are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(len(str(path))).normal(size=(6, 6, 6)).astype(np.float32)
    if values is not None:
        voxels = np.resize(np.array([0, *values], np.uint8), (6, 6, 6))
    if volumes:
        voxels = np.stack([voxels] * volumes, axis=-1)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)


def write_gli(root: Path, *cases: str, values: tuple[int, ...]) -> None:
    for case in cases:
        for ending in ("t1n", "t1c", "t2w", "t2f"):
            write(root / case / f"{case}-{ending}.nii.gz")
        write(root / case / f"{case}-seg.nii.gz", values=values)


def write_flat(root: Path, *cases: str, values: tuple[int, ...]) -> None:
    for case in cases:
        for number in range(4):
            write(root / "imagesTr" / f"{case}_000{number}.nii.gz")
        write(root / "labelsTr" / f"{case}.nii.gz", values=values)
        write(root / "imagesTs" / f"{case}9_0000.nii.gz")


def test_a_years_own_names_and_values_are_certain(tmp_path: Path) -> None:
    for case in ("BraTS2021_00000", "BraTS2021_00002"):
        for ending in ("t1", "t1ce", "t2", "flair"):
            write(tmp_path / case / f"{case}_{ending}.nii.gz")
        write(tmp_path / case / f"{case}_seg.nii.gz", values=(1, 2, 4))
    best, *others = detect(tmp_path)
    assert (best.layout, best.label_scheme, best.surety) == ("brats2021", "brats", "certain")
    assert best.modalities == ("t1n", "t1c", "t2w", "t2f")
    assert (best.patients, best.cases, best.explained, best.problems) == (2, 2, 1.0, 0)
    assert best.values == (0, 1, 2, 4)
    assert others == []


def test_folders_that_are_links_are_weighed_like_others(tmp_path: Path) -> None:
    archive, root = tmp_path / "archive", tmp_path / "root"
    for case in ("BraTS2021_00000", "BraTS2021_00002"):
        for ending in ("t1", "t1ce", "t2", "flair"):
            write(archive / case / f"{case}_{ending}.nii.gz")
        write(archive / case / f"{case}_seg.nii.gz", values=(1, 2, 4))
    for number in range(6):
        write(archive / "unrelated" / str(number) / "scan.nii.gz")
    assert detect(archive)[0].explained == 0.25
    root.mkdir()
    for folder in archive.iterdir():
        (root / folder.name).symlink_to(folder)
    assert detect(root) == detect(archive)


def test_a_resection_cavity_tells_2024_from_2023(tmp_path: Path) -> None:
    write_gli(tmp_path, "BraTS-GLI-00005-100", "BraTS-GLI-00005-101", values=(1, 2, 3, 4))
    best = detect(tmp_path)[0]
    assert (best.layout, best.label_scheme, best.surety) == ("brats2024", "brats2024", "certain")
    assert (best.patients, best.cases) == (1, 2)


def test_2023_and_2024_without_a_cavity_stay_a_guess(tmp_path: Path) -> None:
    write_gli(tmp_path, "BraTS-GLI-00000-000", values=(1, 2, 3))
    proposals = detect(tmp_path)
    assert {proposal.layout for proposal in proposals} == {"brats2023", "brats2024"}
    assert {proposal.surety for proposal in proposals} == {"a guess"}


def test_flat_files_of_nnunet_are_found_beside_their_test_set(tmp_path: Path) -> None:
    write_flat(tmp_path, "case_1", "case_2", values=(1, 2, 3))
    best = detect(tmp_path)[0]
    assert (best.layout, best.label_scheme, best.surety) == ("nnunet", "nnunet", "likely")


NNUNET = {"background": 0, "edema": 1, "non-enhancing tumor": 2, "enhancing tumor": 3}
OF_2023 = {"background": 0, "NCR": 1, "ED": 2, "ET": 3}


@pytest.mark.parametrize(
    ("labels", "scheme", "surety"),
    [
        (NNUNET, "nnunet", "certain"),
        (OF_2023, "brats2023", "certain"),
        ({"background": 0, "NETC": 1, "SNFH": 2, "ET": 3}, "brats2023", "certain"),
        ({"whole tumor": [1, 2, 3], "tumor core": [1, 3], "ET": [3]}, "brats2023", "certain"),
        ({"background": 0, "a": 1, "b": 2, "c": 3}, "nnunet", "likely"),
    ],
)
def test_a_scheme_is_certain_only_where_its_labels_have_names(
    labels: dict[str, object], scheme: str, surety: str, tmp_path: Path
) -> None:
    write_flat(tmp_path, "case_1", "case_2", values=(1, 2, 3))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    best = detect(tmp_path)[0]
    assert (best.layout, best.label_scheme, best.surety) == ("nnunet", scheme, surety)


def test_a_4d_file_is_the_decathlon(tmp_path: Path) -> None:
    write(tmp_path / "imagesTr" / "BRATS_001.nii.gz", volumes=4)
    write(tmp_path / "labelsTr" / "BRATS_001.nii.gz", values=(1, 2, 3))
    best = detect(tmp_path)[0]
    assert (best.layout, best.label_scheme, best.surety) == ("msd", "msd", "likely")


def test_bids_masks_fit_several_schemes_and_say_so(tmp_path: Path) -> None:
    for ending in ("T1w", "ce-gd_T1w", "T2w", "FLAIR"):
        write(tmp_path / "sub-01" / "anat" / f"sub-01_{ending}.nii.gz")
    mask = tmp_path / "derivatives" / "manual" / "sub-01" / "anat" / "sub-01_space-orig_dseg.nii.gz"
    write(mask, values=(1, 2, 3))
    best = detect(tmp_path)[0]
    assert (best.layout, best.surety) == ("bids", "likely")
    schemes = {best.label_scheme, *best.other_schemes}
    assert schemes == {
        *("brats2015", "brats2023", "brats2024", "brats-ped", "lumiere", "msd", "nnunet")
    }


def test_values_of_another_scheme_are_no_certainty(tmp_path: Path) -> None:
    case = "BraTS2021_00000"
    for ending in ("t1", "t1ce", "t2", "flair"):
        write(tmp_path / case / f"{case}_{ending}.nii.gz")
    write(tmp_path / case / f"{case}_seg.nii.gz", values=(1, 2, 3))
    (best,) = detect(tmp_path)
    assert (best.layout, best.surety, best.values) == ("brats2021", "a guess", (0, 1, 2, 3))


def test_mixed_years_are_no_certainty(tmp_path: Path) -> None:
    write_gli(tmp_path, "BraTS-GLI-00005-100", values=(1, 2, 3, 4))
    for ending in ("t1", "t1ce", "t2", "flair", "seg"):
        write(tmp_path / "BraTS2021_00000" / f"BraTS2021_00000_{ending}.nii.gz", values=(1, 2, 4))
    assert {proposal.surety for proposal in detect(tmp_path)} == {"a guess"}


def test_modalities_are_those_that_every_case_has(tmp_path: Path) -> None:
    write_gli(tmp_path, "BraTS-GLI-00005-100", "BraTS-GLI-00006-100", values=(1, 4))
    (tmp_path / "BraTS-GLI-00006-100" / "BraTS-GLI-00006-100-t2w.nii.gz").unlink()
    best = detect(tmp_path)[0]
    assert best.modalities == ("t1n", "t1c", "t2f")
    assert best.surety == "likely"


def test_many_folders_of_an_unknown_layout_are_no_roots(tmp_path: Path) -> None:
    for number in range(21):
        case = f"BraTS-MEN-{number:05d}-000"
        write(tmp_path / f"P{number}" / case / f"{case}-t1c.nii.gz")
    assert detect(tmp_path) == []
    for number in range(20, 0, -1):
        case = f"BraTS-MEN-{number:05d}-000"
        (tmp_path / f"P{number}" / case / f"{case}-t1c.nii.gz").unlink()
    assert detect(tmp_path)[0].layout == "brats-men"


def test_a_folder_of_something_else_gives_no_proposal(tmp_path: Path) -> None:
    write(tmp_path / "anything.nii.gz")
    assert detect(tmp_path) == []
    with pytest.raises(DataError, match="expected a folder"):
        detect(tmp_path / "away")


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize(("folder", "layout"), [("brats2015", "brats2015"), ("lgg/CS", "lgg")])
def test_real_cases_are_detected(folder: str, layout: str, real_data: Path) -> None:
    best = detect(real_data / folder)[0]
    assert (best.layout, best.label_scheme, best.surety) == (layout, layout, "certain")
