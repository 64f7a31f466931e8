"""The preflight beyond one fault at a time (`test_fault_list.py`): limits, counts, and texts."""

from __future__ import annotations

import gzip
import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medfl.config.site import SiteConfig, SiteData, SitePolicy
from medfl.data.checks import check_cohort
from medfl.data.cohort import pseudonym
from medfl.data.layouts.survey import read_cohort
from medfl.data.transforms import Frame, prepare_case
from medfl.errors import DataError
from medfl.findings import Finding
from medfl.preflight.shareable import shareable

# Where NIfTI-1 keeps its fields, in bytes.
DIM, SLOPE, SROW = 40, 112, 280

# What the Decathlon publishes, as far as it matters here.
OWN_DATASET = {
    "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
    "labels": {
        "0": "background",
        "1": "edema",
        "2": "non-enhancing tumor",
        "3": "enhancing tumour",
    },
}


@pytest.fixture
def damage(hospital: Any) -> Callable[..., Path]:
    """Two sound patients; the returned function changes bytes of one uncompressed t2 image."""
    hospital.add("BraTS2021_00000", seed=0)
    folder = hospital.add("BraTS2021_00001", seed=1)

    def change(offset: int, code: str, *values: float) -> Path:
        path = folder / "BraTS2021_00001_t2.nii.gz"
        content = bytearray(gzip.decompress(path.read_bytes()))
        struct.pack_into(f"<{code}", content, offset, *values)
        path.write_bytes(gzip.compress(content))
        return path

    return change


def findings(hospital: Any, *, declared_patients: int = 2, **changes: Any) -> list[Finding]:
    found = check_cohort(hospital.site(declared_patients=declared_patients, **changes))
    for finding in found:
        assert finding.rule, finding
        assert finding.value, finding
        assert finding.fix.endswith("."), finding
    return found


def only(found: list[Finding]) -> Finding:
    (finding,) = found
    return finding


# Headers


def test_every_fault_of_one_header_is_found(hospital: Any, damage: Callable[..., Path]) -> None:
    damage(SLOPE, "f", float("inf"))
    damage(SROW, "12f", *[0.0] * 12)
    damage(DIM + 2, "h", 0)
    assert len(findings(hospital)) == 3


# Files


def t2_of(hospital: Any) -> Path:
    hospital.add("BraTS2021_00000", seed=0)
    folder: Path = hospital.add("BraTS2021_00001", seed=1)
    return folder / "BraTS2021_00001_t2.nii.gz"


def test_an_uncompressed_web_page_is_found(hospital: Any) -> None:
    path = t2_of(hospital)
    path.unlink()
    path.with_suffix("").write_bytes(b"\n <html>Please log in</html>")
    assert "a web page" in only(findings(hospital)).value


def test_a_truncated_uncompressed_file_is_found(hospital: Any) -> None:
    path = t2_of(hospital)
    content = gzip.decompress(path.read_bytes())
    path.unlink()
    path.with_suffix("").write_bytes(content[:-1])
    finding = only(findings(hospital))
    assert finding.rule.startswith(f"{len(content)} uncompressed bytes")
    assert finding.value == str(len(content) - 1)


def test_a_gzip_bomb_is_refused_in_little_memory(hospital: Any) -> None:
    path = t2_of(hospital)
    content = gzip.decompress(path.read_bytes())
    bomb = gzip.compress(content + bytes(200 * 2**20), compresslevel=1)
    assert len(bomb) < 2 * 2**20
    path.write_bytes(bomb)
    tracemalloc.start()
    found = findings(hospital)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert only(found).value == "many more"
    assert peak < 20 * 2**20


# Voxels


def rewritten(hospital: Any, ending: str, values: np.ndarray) -> Finding:
    t2_of(hospital)
    path = hospital.root / "BraTS2021_00001" / f"BraTS2021_00001_{ending}.nii.gz"
    hospital.write(path, values)
    return only(findings(hospital))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_counted(hospital: Any, value: float) -> None:
    values = np.arange(16 * 20 * 12, dtype=np.float32).reshape(16, 20, 12)
    values[3, 4, :5] = value
    assert rewritten(hospital, "t1", values).value == "5 NaN or infinite ones"


def test_rounding_in_an_affine_is_no_fault(hospital: Any) -> None:
    path = t2_of(hospital)
    values = np.asarray(nibabel.load(path).dataobj)
    nibabel.save(nibabel.Nifti1Image(values, hospital.affine + 1e-4 * np.eye(4)), path)
    assert findings(hospital) == []


def test_images_centred_around_an_air_of_zero_are_a_warning(hospital: Any) -> None:
    values = hospital.head(hospital.shape, seed=3)
    inside = values > 0
    values[inside] -= values[inside].mean()
    finding = rewritten(hospital, "t1", values)
    assert (finding.severity, finding.rule) == ("warning", "air darker than tissue")
    values[~inside] = values.min() - 1
    hospital.write(hospital.root / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz", values)
    assert findings(hospital) == []


def test_a_4d_file_is_judged_volume_by_volume(hospital: Any) -> None:
    heads = [hospital.head(hospital.shape, seed=number) for number in range(4)]
    for name in ("BRATS_001", "BRATS_002"):
        images = np.stack([values + len(name) for values in heads], axis=-1)
        if name == "BRATS_002":
            images = images * 2
            images[..., 2] = 5
        write_nifti(hospital.root / "imagesTr" / f"{name}.nii.gz", images)
        write_nifti(
            hospital.root / "labelsTr" / f"{name}.nii.gz", hospital.tumour(hospital.shape) % 4
        )
    (hospital.root / "dataset.json").write_text(json.dumps(OWN_DATASET))
    finding = only(check_cohort(decathlon(hospital.root)))
    assert finding.name == "imagesTr/BRATS_002.nii.gz[2]"
    assert finding.value == "5 in every voxel"
    write_nifti(hospital.root / "imagesTr" / "BRATS_002.nii.gz", np.stack(heads[:3], axis=-1) * 2)
    finding = only(check_cohort(decathlon(hospital.root)))
    assert (finding.rule, finding.value) == ("4 dimensions with 4 volumes", "4 (16 x 20 x 12 x 3)")


# The cohort


def write_nifti(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)


def decathlon(root: Path, **changes: Any) -> SiteConfig:
    values = {
        "root": root,
        "layout": "msd",
        "label_scheme": "msd",
        "modalities": ("t1n", "t1c", "t2w", "t2f"),
        **changes,
    }
    return SiteConfig(
        name="north",
        purpose="open-data",
        declared_patients=2,
        weight=1.0,
        state=root.parent / "state",
        data=SiteData(**values),
        privacy=SitePolicy(epsilon=8.0),
    )


@pytest.mark.parametrize(
    ("content", "rule", "value"),
    [
        (
            {"modality": {"0": "T1w", "1": "FLAIR", "2": "t1gd", "3": "T2w"}},
            "channel 0 to be t2f",
            "'T1w'",
        ),
        (
            {"labels": {"0": "background", "1": "enhancing tumour", "2": "core", "3": "x"}},
            "1 to be WT, as in label_scheme 'msd'",
            "'enhancing tumour', TC and WT and ET",
        ),
        ({"labels": {"background": 0, "edema": 2}}, "2 to be TC and WT", "'edema', WT"),
    ],
    ids=["channels", "labels", "nnU-Net's labels"],
)
def test_a_dataset_json_that_contradicts_the_layout_is_an_error(
    content: dict[str, Any], rule: str, value: str, hospital: Any
) -> None:
    for number, name in enumerate(("BRATS_001", "BRATS_002")):
        images = [hospital.head(hospital.shape, seed=10 * number + n) for n in range(4)]
        write_nifti(hospital.root / "imagesTr" / f"{name}.nii.gz", np.stack(images, axis=-1))
        write_nifti(
            hospital.root / "labelsTr" / f"{name}.nii.gz", hospital.tumour(hospital.shape) % 4
        )
    (hospital.root / "dataset.json").write_text(json.dumps(content))
    found = [f for f in check_cohort(decathlon(hospital.root)) if f.severity == "error"]
    assert rule in found[0].rule
    assert found[0].value == value
    # The Decathlon's own file contradicts nothing.
    (hospital.root / "dataset.json").write_text(json.dumps(OWN_DATASET))
    assert check_cohort(decathlon(hospital.root)) == []


def test_one_modality_stored_as_another_is_a_warning(hospital: Any) -> None:
    folder = t2_of(hospital).parent
    flair = nibabel.load(folder / "BraTS2021_00001_flair.nii.gz")
    # The same voxels as doubles and with another header: not the same bytes.
    copy = nibabel.Nifti1Image(np.asarray(flair.dataobj, np.float64), flair.affine)
    copy.header["descrip"] = b"copy"
    nibabel.save(copy, folder / "BraTS2021_00001_t1.nii.gz")
    finding = only(findings(hospital))
    assert finding.severity == "warning"
    assert finding.name == "BraTS2021_00001/BraTS2021_00001_flair.nii.gz"
    assert "BraTS2021_00001_t1.nii.gz" in finding.value


def test_one_person_under_two_ids_is_an_error_named_once(hospital: Any) -> None:
    hospital.add("BraTS2021_00000", seed=0)
    hospital.add("BraTS2021_00001", seed=0)
    finding = only(findings(hospital))
    assert (finding.severity, finding.rule) == ("error", "each person under one patient id")
    assert "BraTS2021_00000" in finding.value
    assert "BraTS2021_00001" in finding.name


def test_several_cases_of_a_patient_are_a_note(hospital: Any) -> None:
    hospital.add("BraTS19_TMC_06290_1", seed=0, group="HGG")
    hospital.add("BraTS19_TMC_06290_2", seed=1, group="HGG")
    found = findings(hospital, declared_patients=1, layout="brats2019")
    assert [finding.severity for finding in found] == ["warning", "note"]
    assert found[1].value == "BraTS19_TMC_06290_1, BraTS19_TMC_06290_2"


@pytest.mark.parametrize(
    ("declared", "held_out", "value"),
    [
        (5, 0.0, "4 (4 in all, 0 held out)"),
        (3, 0.0, "4 (4 in all, 0 held out)"),
        (4, 0.25, "3 (4 in all, 1 held out)"),
    ],
)
def test_a_declared_number_that_is_not_the_training_patients_is_an_error(
    hospital: Any, declared: int, held_out: float, value: str
) -> None:
    for number in range(4):
        hospital.add(f"BraTS2021_0000{number}", seed=number)
    finding = only(findings(hospital, declared_patients=declared, held_out=held_out))
    assert finding.severity == "error"
    assert finding.rule == f"{declared} training patients, as declared"
    assert finding.value == value


def test_the_training_patients_after_holding_out_may_be_declared(hospital: Any) -> None:
    for number in range(4):
        hospital.add(f"BraTS2021_0000{number}", seed=number)
    assert findings(hospital, declared_patients=3, held_out=0.25) == []


# All at once


def test_all_problems_come_in_one_pass_errors_first(hospital: Any) -> None:
    for number in range(3):
        hospital.add(f"BraTS2021_0000{number}", seed=number)
    first, second, third = (hospital.root / f"BraTS2021_0000{number}" for number in range(3))
    hospital.write(
        first / "BraTS2021_00000_seg.nii.gz", np.zeros(hospital.shape, np.uint8)
    )  # warning
    (second / "BraTS2021_00001_t1.nii.gz").unlink()
    (second / "BraTS2021_00001_t2.nii.gz").write_bytes(b"")  # of a case with a missing image
    (third / "BraTS2021_00002_seg.nii.gz").unlink()
    (third / "BraTS2021_00002_flair.nii").touch()
    found = findings(hospital, declared_patients=7)
    assert [finding.severity for finding in found] == ["error"] * 5 + ["warning"]
    assert sorted(finding.value for finding in found) == sorted(
        [
            "none",
            "none",
            "BraTS2021_00002_flair.nii, BraTS2021_00002_flair.nii.gz",
            "an empty file",
            "3 (3 in all, 0 held out)",
            "an empty mask",
        ]
    )
    with pytest.raises(DataError, match="2 more; `medfl check` lists all"):
        read_cohort(hospital.data())


def test_progress_counts_every_case(hospital: Any) -> None:
    for number in range(3):
        hospital.add(f"BraTS2021_0000{number}", seed=number)
    steps: list[tuple[str, int, int]] = []
    check_cohort(hospital.site(declared_patients=3), on_progress=lambda *step: steps.append(step))
    assert steps == [(part, done, 3) for part in ("headers", "voxels") for done in (1, 2, 3)]


def test_what_is_shared_names_nobody(hospital: Any) -> None:
    """Every kind of finding at once, in a cohort whose names are all known."""
    key = b"k" * 32
    for number in range(6):
        hospital.add(f"BraTS2021_0000{number}", seed=number)
    hospital.add("BraTS2021_00006", seed=5)
    folders = [hospital.root / f"BraTS2021_0000{number}" for number in range(7)]
    (folders[0] / "BraTS2021_00000_t1.nii.gz").write_bytes(b"<html>BraTS2021_00000</html>")
    (folders[1] / "BraTS2021_00001_t1.nii.gz").unlink()
    (folders[2] / "BraTS2021_00002_t2.nii").touch()
    hospital.write(folders[3] / "BraTS2021_00003_seg.nii.gz", np.full(hospital.shape, 9, np.uint8))
    (folders[4] / "BraTS2021_00004_seg.nii.gz").unlink()
    (hospital.root / "Smith, John").mkdir()
    found = check_cohort(hospital.site(declared_patients=9))
    assert {finding.patient for finding in found} >= {f"BraTS2021_0000{n}" for n in range(5)}
    shared = shareable(found, key=key)
    text = repr(shared)
    for name in ("BraTS2021_0", "Smith", str(hospital.root), ".nii"):
        assert name in repr(found)
        assert name not in text
    assert [f.severity for f in shared] == [f.severity for f in found]
    assert {f.patient for f in shared} >= {pseudonym(f"BraTS2021_0000{n}", key=key) for n in (0, 3)}
    assert "mask values out of [0, 1, 2, 4]" in text
    assert "found='9'" in text or "value='9'" in text
    assert {finding.patient for finding in shareable(found, key=b"")} == {""}


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "patients", "copied"),
    [("DU", 36, 3), ("HT", 28, 8), ("CS", 13, 0), ("FG", 12, 3), ("EZ", 1, 0)],
)
def test_real_hospitals_have_only_their_known_copies(
    real_data: Path, tmp_path: Path, name: str, patients: int, copied: int
) -> None:
    """The published data put FLAIR where a sequence was missing."""
    site = SiteConfig(
        name=name,
        purpose="open-data",
        declared_patients=patients,
        weight=1.0,
        state=tmp_path,
        data=SiteData(
            root=real_data / "lgg" / name,
            layout="lgg",
            label_scheme="lgg",
            modalities=("t1n", "t1c", "t2f"),
        ),
        privacy=SitePolicy(epsilon=8.0),
    )
    found = check_cohort(site)
    assert {finding.severity for finding in found} <= {"warning"}
    rules = [finding.rule for finding in found]
    assert rules.count("a different image in every file") == copied
    assert rules.count("at least 2 patients") == (patients == 1)
    assert len(rules) == copied + (patients == 1)


def test_a_series_of_one_volume_is_one_image(hospital: Any) -> None:
    folder = hospital.add("BraTS2021_00000", seed=0)
    hospital.add("BraTS2021_00001", seed=1)
    for path in folder.iterdir():
        image = nibabel.load(path)
        series = nibabel.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine)
        nibabel.save(series, path)
    assert findings(hospital) == []
    cohort = read_cohort(hospital.site(declared_patients=2).data)
    frame = Frame(modalities=("t1c",), regions=("WT",), spacing="native", label_scheme="brats")
    assert prepare_case(cohort.patients[0].cases[0], frame).image_CDHW.shape == (1, 16, 20, 12)


def test_a_pair_of_files_is_called_a_pair(hospital: Any) -> None:
    folder = hospital.add("BraTS2021_00000", seed=0)
    hospital.add("BraTS2021_00001", seed=1)
    path = folder / "BraTS2021_00000_t2.nii.gz"
    nibabel.save(nibabel.Nifti1Pair.from_image(nibabel.load(path)), folder / "t2.img")
    path.unlink()
    finding = only(findings(hospital))
    assert finding.value == "none, but pairs of .hdr and .img"
    assert "single .nii.gz" in finding.fix
