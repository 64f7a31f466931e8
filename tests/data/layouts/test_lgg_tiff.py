"""The LGG originals, slice by slice, as cases that the layout `lgg` reads."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medfl.config import load_site
from medfl.data.layouts.lgg_tiff import import_lgg
from medfl.data.layouts.survey import read_cohort
from medfl.errors import DataError

NAME = "TCGA_CS_4944_20010208"


def write_patient(
    root: Path, name: str = NAME, *, slices: int = 11, replaced: bool = False
) -> Path:
    """Slices whose voxels say where they are: red columns, green rows, blue the slice."""
    folder = root / name
    folder.mkdir(parents=True)
    rows, columns = np.mgrid[0:6, 0:5].astype(np.uint8)
    for number in range(1, slices + 1):
        red = rows if replaced else columns
        image = np.stack([red, rows, np.full_like(rows, number)], axis=-1)
        Image.fromarray(image, mode="RGB").save(folder / f"{name}_{number}.tif")
        mask = np.zeros((6, 5), np.uint8)
        mask[0, 4] = 255 if number == 10 else 0
        Image.fromarray(mask, mode="L").save(folder / f"{name}_{number}_mask.tif")
    return folder


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def test_slices_become_volumes_in_their_numbers_order(tmp_path: Path) -> None:
    write_patient(tmp_path / "kaggle_3m")
    (patient,) = import_lgg(tmp_path / "kaggle_3m", tmp_path / "out")
    assert (patient.patient_id, patient.site, patient.replaced) == ("TCGA_CS_4944", "CS", ())
    case = tmp_path / "out" / "CS" / "TCGA_CS_4944"
    t1, flair, t1ce, mask = (
        voxels(case / f"TCGA_CS_4944_{name}.nii.gz") for name in ("t1", "flair", "t1ce", "seg")
    )
    assert t1.shape == (5, 6, 11)
    assert t1[:, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert flair[0, :, 0].tolist() == [5, 4, 3, 2, 1, 0]  # towards anterior
    assert t1ce[0, 0].tolist() == list(range(1, 12))  # 10 after 9, not after 1
    assert np.argwhere(mask).tolist() == [[4, 5, 9]]
    assert mask.max() == 1


def test_each_hospital_gets_a_site_file_that_reads_its_patients(tmp_path: Path) -> None:
    for name in (NAME, "TCGA_DU_0001_19990101", "TCGA_DU_0002_19990101"):
        write_patient(tmp_path / "kaggle_3m", name)
    import_lgg(tmp_path / "kaggle_3m", tmp_path / "out")
    site = load_site(tmp_path / "out" / "DU.toml")
    assert len(read_cohort(site.data).patients) == 2
    assert site.purpose == "open-data"


def test_a_sequence_that_was_replaced_is_reported(tmp_path: Path) -> None:
    write_patient(tmp_path / "kaggle_3m", replaced=True)
    (patient,) = import_lgg(tmp_path / "kaggle_3m", tmp_path / "out")
    assert patient.replaced == ("t1",)


def lacks_a_slice(folder: Path) -> None:
    (folder / f"{NAME}_5.tif").unlink()


def lacks_a_mask(folder: Path) -> None:
    (folder / f"{NAME}_5_mask.tif").unlink()


def is_damaged(folder: Path) -> None:
    (folder / f"{NAME}_5.tif").write_bytes(b"II*\0 and no more")


def is_cut_off(folder: Path) -> None:
    path = folder / f"{NAME}_5.tif"
    path.write_bytes(path.read_bytes()[:40])


def is_no_tiff(folder: Path) -> None:
    Image.new("RGB", (5, 6)).save(folder / f"{NAME}_5.tif", format="PNG")


def has_another_size(folder: Path) -> None:
    Image.new("RGB", (7, 6)).save(folder / f"{NAME}_5.tif")


def has_a_grey_mask(folder: Path) -> None:
    Image.new("L", (5, 6), 128).save(folder / f"{NAME}_5_mask.tif")


def is_another_examination(folder: Path) -> None:
    write_patient(folder.parent, "TCGA_CS_4944_20020101")


def is_a_stranger(folder: Path) -> None:
    (folder.parent / "notes").mkdir()


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        (lacks_a_slice, "slices numbered from 1 without gaps, found 10 up to 11"),
        (lacks_a_mask, "a slice and a mask for each number"),
        (is_damaged, "expected a TIFF image"),
        (is_cut_off, "expected a TIFF image"),
        (is_no_tiff, "expected a TIFF image"),
        (
            has_another_size,
            "expected 6 x 5 pixels in every slice and mask, found 6 x 7 in number 5",
        ),
        (has_a_grey_mask, "expected 0 and 255 in the masks"),
        (is_another_examination, "one examination a patient"),
        (is_a_stranger, "expected a folder named TCGA"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_bad_collection_is_refused_with_its_place(
    fault: object, rule: str, tmp_path: Path
) -> None:
    fault(write_patient(tmp_path / "kaggle_3m"))  # type: ignore[operator]
    with pytest.raises(DataError, match=rule) as caught:
        import_lgg(tmp_path / "kaggle_3m", tmp_path / "out")
    assert str(tmp_path) in str(caught.value)


def test_a_folder_with_files_is_never_written_into(tmp_path: Path) -> None:
    write_patient(tmp_path / "kaggle_3m")
    with pytest.raises(DataError, match="new or empty folder"):
        import_lgg(tmp_path / "kaggle_3m", tmp_path)
    with pytest.raises(DataError, match="expected the folder kaggle_3m"):
        import_lgg(tmp_path / "away", tmp_path / "out")


@pytest.mark.real_data
def test_originals_halved_are_the_converted_sample(real_data: Path, tmp_path: Path) -> None:
    imported = import_lgg(real_data / "lgg_original" / "kaggle_3m", tmp_path / "out")
    assert {patient.patient_id for patient in imported} >= {"TCGA_CS_4944", "TCGA_EZ_7264"}
    case = Path("CS") / "TCGA_CS_4944"
    for name in ("t1", "flair", "t1ce"):
        file = case / f"TCGA_CS_4944_{name}.nii.gz"
        full = voxels(tmp_path / "out" / file).astype(float)
        halved = full.reshape(128, 2, 128, 2, -1).mean(axis=(1, 3))
        assert np.abs(halved - voxels(real_data / "lgg" / file)).max() <= 0.5
