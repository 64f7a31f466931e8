"""Masks of cohorts: geometry, names and labels of the source, and what becomes of bad cases."""

from __future__ import annotations

import gzip
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medfl.config.site import MODALITY_ORDER, SiteData
from medfl.data.label_schemes import scheme_values
from medfl.data.labels import regions_of
from medfl.data.layouts.survey import read_case
from medfl.data.nifti.headers import read_header
from medfl.errors import ConfigError, DataError
from medfl.prediction.cohort import predict_case, predict_cohort
from medfl.prediction.evaluation import evaluate
from medfl.prediction.predictor import Predictor
from tests.prediction.conftest import SPEC, write_model

CASE = "BraTS2021_00000"


def as_layout(patients: Path, root: Path, layout: str) -> SiteData:
    """The same images under the names of another source."""
    scheme = {"msd": "msd", "nnunet": "nnunet", "bids": "brats2023", "brats2023": "brats2023"}
    for number, folder in enumerate(sorted(patients.iterdir())):
        images = [
            nibabel.load(folder / f"{folder.name}_{ending}.nii.gz")
            for ending in ("t1", "t1ce", "t2", "flair")
        ]
        name = {
            "msd": f"BRATS_00{number}",
            "nnunet": f"case_{number}",
            "bids": f"sub-0{number}",
            "brats2023": f"BraTS-GLI-0000{number}-000",
        }[layout]
        if layout == "msd":
            order = [images[3], images[0], images[1], images[2]]
            stacked = np.stack([image.get_fdata(dtype=np.float32) for image in order], axis=-1)
            files = {f"imagesTr/{name}": nibabel.Nifti1Image(stacked, images[0].affine)}
        else:
            files = {}
            for index, image in enumerate(images):
                path = {
                    "nnunet": f"imagesTr/{name}_000{index}",
                    "bids": f"{name}/anat/{name}_" + ("T1w", "ce-gd_T1w", "T2w", "FLAIR")[index],
                    "brats2023": f"{name}/{name}-{MODALITY_ORDER[index]}",
                }[layout]
                files[path] = image
        for path, image in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(image, root / f"{path}.nii.gz")
    return SiteData(
        root=root, layout=layout, label_scheme=scheme[layout], modalities=MODALITY_ORDER
    )


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def test_a_cohort_s_masks_lie_where_the_source_has_them(
    model: Path, data: SiteData, tmp_path: Path
) -> None:
    steps: list[tuple[int, int]] = []
    failed = predict_cohort(
        Predictor(model, device="cpu"),
        data,
        out=tmp_path / "out",
        on_case=lambda *step: steps.append(step),
    )
    assert failed == []
    assert steps == [(1, 3), (2, 3), (3, 3)]
    for folder in sorted(data.root.iterdir()):
        mask = tmp_path / "out" / folder.name / f"{folder.name}_seg.nii.gz"
        source = nibabel.load(folder / f"{folder.name}_seg.nii.gz")
        written = nibabel.load(mask)
        assert written.shape == source.shape
        assert np.array_equal(written.affine, source.affine)
        assert written.get_data_dtype() == np.uint8
        assert set(np.unique(voxels(mask))) <= scheme_values("brats")
        assert voxels(mask).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "mask"),
    [
        ("msd", "labelsTr/BRATS_000.nii.gz"),
        ("nnunet", "labelsTr/case_0.nii.gz"),
        ("bids", "derivatives/medfl/sub-00/anat/sub-00_desc-medfl_dseg.nii.gz"),
        ("brats2023", "BraTS-GLI-00000-000/BraTS-GLI-00000-000-seg.nii.gz"),
    ],
)
def test_each_source_gets_its_own_names_and_labels_for_the_same_tumour(
    layout: str, mask: str, model: Path, data: SiteData, patients: Path, tmp_path: Path
) -> None:
    predictor = Predictor(model, device="cpu")
    predict_cohort(predictor, data, out=tmp_path / "brats")
    other = as_layout(patients, tmp_path / "source", layout)
    assert predict_cohort(predictor, other, out=tmp_path / "other") == []
    reference = voxels(tmp_path / "brats" / CASE / f"{CASE}_seg.nii.gz")
    written = voxels(tmp_path / "other" / mask)
    for region in ("WT", "ET"):
        expected = regions_of(torch.from_numpy(reference), scheme="brats", regions=(region,))
        found = regions_of(torch.from_numpy(written), scheme=other.label_scheme, regions=(region,))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("code", [(1, 0), (0, 2), (1, 4), (0, 0)])
def test_a_scan_s_geometry_is_kept_and_none_of_its_texts(
    code: tuple[int, int], model: Path, data: SiteData, patients: Path, tmp_path: Path
) -> None:
    root = tmp_path / "turned"
    shutil.copytree(patients / CASE, root / CASE)
    turned = np.array([[0, 3.0, 0, -11], [-2.5, 0, 0, 4], [0, 0.4, 6.0, 7], [0, 0, 0, 1]])
    for path in (root / CASE).iterdir():
        image = nibabel.Nifti1Image(voxels(path), None)
        image.set_qform(turned, code=code[0], strip_shears=True)
        image.set_sform(turned, code=code[1])
        image.header["pixdim"][1:4] = (2.5, 3.0, 6.0)
        image.header["descrip"] = b"Smith^John"
        image.header["aux_file"] = b"Smith.nii"
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Smith^John"))
        nibabel.save(image, path)
    out = tmp_path / "mask.nii.gz"
    predict_case(Predictor(model, device="cpu"), root / CASE, data=data, out=out)
    source, mask = nibabel.load(root / CASE / f"{CASE}_t1.nii.gz"), nibabel.load(out)
    for name in ("sform_code", "qform_code", "xyzt_units"):
        assert mask.header[name] == source.header[name]
    assert np.allclose(mask.affine, source.affine, atol=1e-4)
    assert np.allclose(mask.header.get_zooms(), source.header.get_zooms(), atol=1e-4)
    assert b"Smith" in gzip.decompress((root / CASE / f"{CASE}_t1.nii.gz").read_bytes())
    assert b"Smith" not in gzip.decompress(out.read_bytes())


def test_a_mask_follows_a_scan_that_is_stored_in_another_direction(
    model: Path, data: SiteData, patients: Path, tmp_path: Path
) -> None:
    predictor = Predictor(model, device="cpu")
    predict_case(predictor, patients / CASE, data=data, out=tmp_path / "mask.nii.gz")
    for path in (patients / CASE).iterdir():
        image = nibabel.load(path)
        nibabel.save(
            image.as_reoriented(np.array([[1, -1], [0, 1], [2, -1]])),
            (tmp_path / "turned" / CASE).mkdir(parents=True, exist_ok=True)
            or tmp_path / "turned" / CASE / path.name,
        )
    predict_case(predictor, tmp_path / "turned" / CASE, data=data, out=tmp_path / "turned.nii.gz")
    straight, turned = (nibabel.load(tmp_path / name) for name in ("mask.nii.gz", "turned.nii.gz"))
    back = nibabel.as_closest_canonical(turned)
    assert np.array_equal(
        np.asarray(back.dataobj), np.asarray(nibabel.as_closest_canonical(straight).dataobj)
    )


def test_probabilities_are_one_volume_a_region(
    model: Path, data: SiteData, patients: Path, tmp_path: Path
) -> None:
    predictor = Predictor(model, device="cpu")
    out = tmp_path / "mask.nii.gz"
    predict_case(predictor, patients / CASE, data=data, out=out, probabilities=True)
    values = voxels(tmp_path / "mask_probabilities.nii.gz")
    assert values.shape == (30, 34, 26, 2)
    assert values.dtype == np.float32
    assert 0 <= values.min() < 0.5 < values.max() <= 1
    labels = voxels(out)
    assert np.array_equal((values[..., 0] > 0.5) | (values[..., 1] > 0.5), labels > 0)


def test_a_mirrored_scan_is_segmented_alike_with_test_time_augmentation(
    model: Path, data: SiteData, patients: Path
) -> None:
    case = read_case(patients / CASE, data=data)
    plain, both = (Predictor(model, device="cpu", mirrored=mirrored) for mirrored in (False, True))
    one = plain.segment(case, label_scheme="brats").probabilities_RXYZ
    averaged = both.segment(case, label_scheme="brats").probabilities_RXYZ
    assert not torch.equal(one, averaged)
    assert torch.allclose(one, averaged, atol=0.5)


def test_an_image_is_seen_through_windows_of_the_study_s_size(
    data: SiteData, patients: Path, tmp_path: Path
) -> None:
    spec = replace(SPEC, window_size=(24, 20, 16))
    model = write_model(tmp_path / "wide.safetensors", spec=spec)
    predictor = Predictor(model, device="cpu")
    assert predictor.spec.window_size == (24, 20, 16)
    sizes = set()
    predictor._network.register_forward_hook(lambda _, seen, __: sizes.add(seen[0].shape[2:]))
    predictor.segment(read_case(patients / CASE, data=data), label_scheme="brats")
    assert sizes == {torch.Size([24, 20, 16])}


def test_a_bad_case_does_not_stop_the_others(
    model: Path, data: SiteData, patients: Path, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(patients, root)
    (root / CASE / f"{CASE}_t1ce.nii.gz").write_bytes(b"")
    here = data.model_copy(update={"root": root})
    (failed,) = predict_cohort(Predictor(model, device="cpu"), here, out=tmp_path / "out")
    assert failed.case_id == CASE
    assert "t1ce" in failed.reason
    assert len(list((tmp_path / "out").rglob("*_seg.nii.gz"))) == 2


def test_an_interrupted_run_goes_on(model: Path, data: SiteData, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = out / CASE / f"{CASE}_seg.nii.gz"
    done.parent.mkdir(parents=True)
    done.write_bytes(b"kept")
    predict_cohort(Predictor(model, device="cpu"), data, out=out)
    assert done.read_bytes() == b"kept"
    assert len(list(out.rglob("*_seg.nii.gz"))) == 3


def test_a_model_that_needs_another_modality_says_so(
    model: Path, filling_model: Path, data: SiteData, tmp_path: Path
) -> None:
    flair = data.model_copy(update={"modalities": ("t2f",)})
    with pytest.raises(
        DataError, match=r"the model's modalities \['t1c', 't2f'\], found \['t2f'\]"
    ):
        predict_cohort(Predictor(model, device="cpu"), flair, out=tmp_path / "out")
    filling = Predictor(filling_model, device="cpu")
    assert predict_cohort(filling, flair, out=tmp_path / "out") == []
    none = data.model_copy(update={"modalities": ("t1n",)})
    with pytest.raises(DataError, match="the model's modalities"):
        predict_cohort(filling, none, out=tmp_path / "none")


def test_files_that_are_there_are_never_replaced(
    model: Path, data: SiteData, patients: Path, tmp_path: Path
) -> None:
    predictor = Predictor(model, device="cpu")
    (tmp_path / "m_probabilities.nii.gz").touch()
    for out, kept in (("m.nii.gz", True), ("m.png", False)):
        with pytest.raises(ConfigError, match=r"expected a new file|expected a name ending"):
            predict_case(
                predictor, patients / CASE, data=data, out=tmp_path / out, probabilities=kept
            )
    with pytest.raises(DataError, match="found none"):
        predict_cohort(predictor, data.model_copy(update={"root": tmp_path}), out=tmp_path / "out")


def custom(root: Path, mask: str, *, case: str = r"(?P<patient>case\d+)") -> SiteData:
    layout = {
        "case": case,
        "images": {"t1c": "{case}_nifti/t1c", "t2f": "{case}_nifti/t2f"},
        "mask": mask,
    }
    return SiteData.model_validate(
        {
            "root": root,
            "layout": "custom",
            "label_scheme": "brats",
            "modalities": ("t1c", "t2f"),
            "custom": layout,
        }
    )


@pytest.fixture
def two_cases(patients: Path, tmp_path: Path) -> Path:
    root = tmp_path / "custom"
    for number, source in enumerate(sorted(patients.iterdir())[:2]):
        folder = root / f"case{number}_nifti"
        folder.mkdir(parents=True)
        for name, ending in (("t1c", "t1ce"), ("t2f", "flair"), ("seg", "seg")):
            shutil.copy(source / f"{source.name}_{ending}.nii.gz", folder / f"{name}.nii.gz")
    return root


def test_a_stand_in_within_a_folders_name_is_filled(
    two_cases: Path, model: Path, tmp_path: Path
) -> None:
    data = custom(two_cases, "{case}_nifti/seg")
    assert predict_cohort(Predictor(model), data, out=tmp_path / "out") == []
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in found_masks(tmp_path))
    assert written == ["case0_nifti/seg.nii.gz", "case1_nifti/seg.nii.gz"]
    scores = evaluate(tmp_path / "out", data).scores
    assert {score.case for score in scores} == {"case0", "case1"}


def found_masks(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "out").rglob("*.nii.gz"))


def test_two_cases_never_share_a_mask(two_cases: Path, model: Path, tmp_path: Path) -> None:
    (two_cases / "case1_nifti").rename(two_cases / "Case0_nifti")  # one file on some disks
    data = custom(two_cases, "{case}_nifti/seg", case=r"(?P<patient>[cC]ase\d+)")
    with pytest.raises(DataError, match="for both Case0 and case0"):
        predict_cohort(Predictor(model), data, out=tmp_path / "out")
    assert found_masks(tmp_path) == []
    with pytest.raises(DataError, match="for both Case0 and case0"):
        evaluate(tmp_path / "out", data)


# Offsets of NIfTI-1 header fields in bytes, and what is written there.
ODD_HEADERS: dict[str, list[tuple[int, str, tuple[float, ...]]]] = {
    "voxels right behind the header": [(108, "<f", (348.0,))],
    "a quaternion longer than 1": [(256, "<3f", (0.8, 0.7, 0.1)), (252, "<h", (1,))],
    "sform and qform apart": [(268, "<f", (40.0,)), (252, "<h", (1,))],
    "a sheared sform": [(284, "<f", (0.2,))],
    "pixdim apart from the sform": [(80, "<f", (3.7,))],
    "an unknown unit": [(123, "<b", (5,))],
    "no orientation": [(254, "<h", (0,))],
    "a pixdim that ends in 0 signs": [(76, "<f", (0.0,))],
}


def with_fields(path: Path, fields: list[tuple[int, str, tuple[float, ...]]]) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    for offset, code, values in fields:
        if offset == 108:  # the four bytes of the extension flag go with it
            del content[348:352]
        struct.pack_into(code, content, offset, *values)
    path.write_bytes(gzip.compress(bytes(content)))


def geometry(path: Path) -> bytes:
    """The fields that place an image, as they are stored."""
    content = gzip.decompress(path.read_bytes())
    return content[76:92] + content[123:124] + content[252:328]


@pytest.mark.parametrize("name", ODD_HEADERS)
def test_whatever_header_check_accepts_gets_a_mask_with_the_same_geometry(
    name: str, model: Path, data: SiteData, patients: Path, tmp_path: Path
) -> None:
    root = tmp_path / "odd"
    shutil.copytree(patients / CASE, root / CASE)
    for path in (root / CASE).iterdir():
        with_fields(path, ODD_HEADERS[name])
    odd = data.model_copy(update={"root": root})
    # What `medfl check` says of it: things to look at, and nothing that forbids it.
    for path in (root / CASE).iterdir():
        read_header(path)
    assert predict_cohort(Predictor(model), odd, out=tmp_path / "out") == []
    (mask,) = found_masks(tmp_path)
    source = geometry(root / CASE / f"{CASE}_t1ce.nii.gz")
    stated = source if name != "a pixdim that ends in 0 signs" else b"\0\0\x80?" + source[4:]
    assert geometry(mask) == stated


def test_a_mask_that_could_not_be_written_counts_as_not_done(
    model: Path, data: SiteData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = nibabel.save

    def full(image: nibabel.Nifti1Image, path: Path) -> None:
        save(image, path)
        Path(path).write_bytes(Path(path).read_bytes()[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nibabel, "save", full)
    failed = predict_cohort(Predictor(model), data, out=tmp_path / "out")
    assert failed
    assert all("No space left" in one.reason for one in failed)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
    monkeypatch.undo()
    assert predict_cohort(Predictor(model), data, out=tmp_path / "out") == []
    assert len(found_masks(tmp_path)) == len(failed)


def test_the_folder_of_one_case_is_segmented_like_a_cohort_of_one(
    model: Path, data: SiteData, patients: Path, tmp_path: Path
) -> None:
    predictor = Predictor(model, device="cpu")
    one = data.model_copy(update={"root": patients / CASE})
    assert predict_cohort(predictor, one, out=tmp_path / "one") == []
    predict_case(predictor, patients / CASE, data=data, out=tmp_path / "mask.nii.gz")
    mask = tmp_path / "one" / CASE / f"{CASE}_seg.nii.gz"
    assert np.array_equal(voxels(mask), voxels(tmp_path / "mask.nii.gz"))


def test_a_case_that_lacks_an_image_is_told_so(
    model: Path, data: SiteData, patients: Path, tmp_path: Path
) -> None:
    shutil.copytree(patients / CASE, tmp_path / CASE)
    (tmp_path / CASE / f"{CASE}_flair.nii.gz").unlink()
    lacking = data.model_copy(update={"root": tmp_path / CASE})
    with pytest.raises(DataError, match=r"one t2f image"):
        predict_cohort(Predictor(model, device="cpu"), lacking, out=tmp_path / "out")


def test_a_folder_without_images_is_no_case(model: Path, data: SiteData, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = data.model_copy(update={"root": tmp_path / "empty"})
    with pytest.raises(DataError, match=r"Point data\.root at the folder"):
        predict_cohort(Predictor(model, device="cpu"), empty, out=tmp_path / "out")
