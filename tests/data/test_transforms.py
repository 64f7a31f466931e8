"""Cases in the frame and back: geometry against nibabel, the store against the files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from medfl.data import transforms
from medfl.data.cohort import Case
from medfl.data.framing import restore_probabilities
from medfl.data.intensity import normalise_scan
from medfl.data.labels import labels_from_regions
from medfl.data.transforms import Frame, prepare_case, prepare_image
from medfl.errors import DataError

REGIONS = ("TC", "WT", "ET")
ORIENTATIONS = ["RAS", "LAS", "LPS", "PIR", "SLA", "ALI"]


def frame(**changes: Any) -> Frame:
    values: dict[str, Any] = {
        "modalities": ("t1n", "t1c", "t2w", "t2f"),
        "regions": REGIONS,
        "spacing": "native",
        "label_scheme": "brats",
    }
    return Frame(**(values | changes))


def reorient(case: Case, axcodes: str) -> None:
    """Rewrite all files of a case in another orientation; the head stays where it is."""
    assert case.mask is not None
    for path in (*case.images.values(), case.mask):
        image = nibabel.load(path)
        turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(axcodes))
        turned = image.as_reoriented(turn)
        # A full read: the file is overwritten while its lazy array is still wanted.
        nibabel.save(nibabel.Nifti1Image(np.asarray(turned.dataobj), turned.affine), path)
        assert "".join(nibabel.aff2axcodes(nibabel.load(path).affine)) == axcodes


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


# The frame


def test_a_ras_case_keeps_its_voxels(hospital: Any) -> None:
    folder = hospital.add()
    prepared = prepare_case(hospital.case(), frame())
    for channel, ending in zip(prepared.image_CDHW, ("t1", "t1ce", "t2", "flair"), strict=True):
        stored = nibabel.load(folder / f"BraTS2021_00000_{ending}.nii.gz").get_fdata(
            dtype=np.float32
        )
        assert np.array_equal(channel.numpy(), normalise_scan(stored))
    label = np.asarray(nibabel.load(folder / "BraTS2021_00000_seg.nii.gz").dataobj)
    for region, values in zip(prepared.regions_RDHW, [(1, 4), (1, 2, 4), (4,)], strict=True):
        assert np.array_equal(region.numpy(), np.isin(label, values))
    assert prepared.spacing_mm == pytest.approx((2, 2, 3))
    assert prepared.image_CDHW.dtype == torch.float32
    assert prepared.regions_RDHW.dtype == torch.uint8


@pytest.mark.parametrize("axcodes", ORIENTATIONS[1:])
@pytest.mark.parametrize("spacing", ["native", (2.5, 2.5, 2.5)])
def test_the_stored_orientation_does_not_matter(hospital: Any, axcodes: str, spacing: Any) -> None:
    hospital.add()
    expected = prepare_case(hospital.case(), frame(spacing=spacing))
    reorient(hospital.case(), axcodes)
    turned = prepare_case(hospital.case(), frame(spacing=spacing))
    assert torch.allclose(turned.image_CDHW, expected.image_CDHW, atol=1e-4)
    assert torch.equal(turned.regions_RDHW, expected.regions_RDHW)
    assert turned.spacing_mm == pytest.approx(expected.spacing_mm)


def test_the_study_s_spacing_is_reached(hospital: Any) -> None:
    hospital.add()
    prepared = prepare_case(hospital.case(), frame(spacing=(1.0, 2.0, 4.0)))
    assert prepared.spacing_mm == pytest.approx((1, 2, 4))
    # 16, 20, 12 voxels of 2, 2, 3 mm: the outer voxels' centres are 30, 38 and 33 mm apart.
    assert prepared.image_CDHW.shape == (4, 31, 20, 9)
    assert prepared.regions_RDHW.shape == (3, 31, 20, 9)
    assert set(prepared.regions_RDHW.unique().tolist()) == {0, 1}


def test_resampling_interpolates_images_linearly(hospital: Any) -> None:
    """A ramp along one axis stays a ramp in millimetres."""
    folder = hospital.add()
    ramp = np.broadcast_to(np.arange(1.0, 17)[:, None, None], hospital.shape).astype(np.float32)
    hospital.write(folder / "BraTS2021_00000_flair.nii.gz", ramp)
    fine = prepare_case(hospital.case(), frame(spacing=(1.0, 2.0, 3.0))).image_CDHW[3, :, 5, 5]
    coarse = prepare_case(hospital.case(), frame()).image_CDHW[3, :, 5, 5]
    expected = np.interp(np.arange(31) / 2, np.arange(16), coarse.numpy())
    assert np.allclose(fine.numpy(), expected, atol=1e-4)


def test_modalities_and_regions_follow_the_frame(hospital: Any) -> None:
    hospital.add()
    everything = prepare_case(hospital.case(), frame())
    part = prepare_case(hospital.case(), frame(modalities=("t1c", "t2f"), regions=("WT",)))
    assert torch.equal(part.image_CDHW, everything.image_CDHW[[1, 3]])
    assert torch.equal(part.regions_RDHW, everything.regions_RDHW[[1]])


def test_a_scan_is_normalised_by_itself_alone(hospital: Any) -> None:
    folder = hospital.add()
    before = prepare_case(hospital.case(), frame()).image_CDHW
    path = folder / "BraTS2021_00000_t2.nii.gz"
    hospital.write(path, nibabel.load(path).get_fdata(dtype=np.float32) * 50)
    assert torch.allclose(prepare_case(hospital.case(), frame()).image_CDHW, before, atol=1e-4)


def test_centres_lie_where_they_say(hospital: Any) -> None:
    hospital.add()
    prepared = prepare_case(hospital.case(), frame())
    tumour = prepared.regions_RDHW.any(dim=0).flatten()
    assert torch.equal(prepared.foreground, tumour.nonzero()[:, 0])
    assert not tumour[prepared.background].any()
    assert (prepared.image_CDHW.amax(dim=0).flatten()[prepared.background] > 0).all()
    assert len(prepared.background) > 500


def test_centres_are_thinned_evenly_and_the_same_way_every_time(
    hospital: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.add()
    every = prepare_case(hospital.case(), frame()).background
    monkeypatch.setattr(transforms, "_MAX_CENTRES", 100)
    first, second = (prepare_case(hospital.case(), frame()).background for _ in range(2))
    assert torch.equal(first, second)
    assert len(first.unique()) == 100
    assert torch.isin(first, every).all()
    assert (first[0], first[-1]) == (every[0], every[-1])


def test_a_frame_that_the_label_scheme_cannot_fill_is_refused() -> None:
    with pytest.raises(DataError, match="expected regions out of"):
        frame(label_scheme="lgg")


# Files that cannot be used


def damaged(hospital: Any, ending: str, values: np.ndarray, affine: np.ndarray) -> str:
    path = hospital.root / "BraTS2021_00000" / f"BraTS2021_00000_{ending}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    with pytest.raises(DataError) as error:
        prepare_case(hospital.case(), frame())
    assert path.name in str(error.value)
    return str(error.value)


def test_images_on_different_grids_are_refused(hospital: Any) -> None:
    hospital.add()
    shifted = hospital.affine.copy()
    shifted[0, 3] = 1
    assert "expected the grid of" in damaged(hospital, "flair", np.ones(hospital.shape), shifted)


def test_a_mask_of_another_shape_is_refused(hospital: Any) -> None:
    hospital.add()
    small = np.zeros((16, 20, 11), np.uint8)
    assert "expected the grid of" in damaged(hospital, "seg", small, hospital.affine)


def test_voxels_that_are_no_numbers_are_refused(hospital: Any) -> None:
    hospital.add()
    values = np.ones(hospital.shape, np.float32)
    values[3, 3, 3] = np.nan
    assert "NaN or infinity" in damaged(hospital, "t2", values, hospital.affine)


def test_labels_outside_the_scheme_are_refused(hospital: Any) -> None:
    hospital.add()
    values = np.full(hospital.shape, 3, np.uint8)
    assert "found 3" in damaged(hospital, "seg", values, hospital.affine)


def test_a_truncated_file_is_refused(hospital: Any) -> None:
    path = hospital.add() / "BraTS2021_00000_t2.nii.gz"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"BraTS2021_00000_t2.*a truncated file"):
        prepare_case(hospital.case(), frame())


def test_a_missing_mask_or_image_is_refused(hospital: Any) -> None:
    hospital.add()
    case = hospital.case()
    with pytest.raises(DataError, match="expected a mask"):
        prepare_case(Case(case_id="x", images=case.images, mask=None), frame())
    with pytest.raises(DataError, match=r"found no \['t1c', 't2w', 't2f'\]"):
        prepare_image(Case(case_id="x", images={"t1n": case.images["t1n"]}, mask=None), frame())


# The way back


def returned(hospital: Any, study: Frame) -> np.ndarray:
    """The mask's regions in the frame, brought back to the source's grid as label values."""
    regions = prepare_case(hospital.case(), study).regions_RDHW
    image = prepare_image(hospital.case(), study)
    restored = restore_probabilities(regions.to(torch.float32), image=image)
    assert restored.dtype == torch.float32
    labels = labels_from_regions(restored > 0.5, scheme="brats", regions=REGIONS)
    return np.asarray(labels)


@pytest.mark.parametrize("axcodes", ORIENTATIONS)
def test_a_native_segmentation_returns_voxel_for_voxel(hospital: Any, axcodes: str) -> None:
    hospital.affine[:3, 3] = (-17.25, 30.5, 4.125)
    folder = hospital.add()
    reorient(hospital.case(), axcodes)
    source = nibabel.load(folder / "BraTS2021_00000_seg.nii.gz")
    assert np.array_equal(returned(hospital, frame()), np.asarray(source.dataobj))


@pytest.mark.slow
@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SLA"])
@pytest.mark.parametrize("sizes", [(1.0, 1.0, 5.0), (0.9, 1.1, 1.0), (0.7, 0.7, 0.7)])
def test_a_resampled_segmentation_returns_to_the_source_s_grid(
    hospital: Any, axcodes: str, sizes: tuple[float, float, float]
) -> None:
    hospital.shape = (48, 44, 24)
    hospital.affine = np.diag([*sizes, 1.0])
    folder = hospital.add()
    ball = np.linalg.norm((np.indices(hospital.shape).T - (24, 22, 12)) / (14, 14, 8), axis=-1).T
    hospital.write(folder / "BraTS2021_00000_seg.nii.gz", 4 * (ball < 1).astype(np.uint8))
    reorient(hospital.case(), axcodes)
    source = np.asarray(nibabel.load(folder / "BraTS2021_00000_seg.nii.gz").dataobj)
    labels = returned(hospital, frame(spacing=(1.0, 1.0, 1.0)))
    assert labels.shape == source.shape
    assert dice(labels > 0, source > 0) > 0.95


def test_what_fills_the_frame_fills_the_image_to_its_edges(hospital: Any) -> None:
    hospital.add()
    image = prepare_image(hospital.case(), frame(spacing=(2.9, 2.9, 2.9)))
    restored = restore_probabilities(torch.ones(1, *image.shape[1:]), image=image)
    assert torch.equal(restored, torch.ones(1, *hospital.shape))


def test_an_oblique_scan_returns_voxel_for_voxel(hospital: Any) -> None:
    angle = np.deg2rad(12)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    hospital.affine = turn @ np.diag([-1.5, 1.5, 4.0, 1.0])
    folder = hospital.add()
    source = nibabel.load(folder / "BraTS2021_00000_seg.nii.gz")
    assert np.array_equal(returned(hospital, frame()), np.asarray(source.dataobj))


def test_a_case_without_mask_can_be_segmented(hospital: Any) -> None:
    hospital.add()
    case = Case(case_id="x", images=hospital.case().images, mask=None)
    assert prepare_image(case, frame()).shape == (4, *hospital.shape)


# The store


def test_voxels_that_a_study_would_blow_up_are_refused(hospital: Any) -> None:
    hospital.affine = np.diag([60.0, 45.0, 80.0, 1.0])
    hospital.add()
    with pytest.raises(DataError, match=r"at most 134217728 voxels at the study's spacing"):
        prepare_case(hospital.case(), frame(spacing=(1.0, 1.0, 1.0)))


def test_a_transform_holds_against_a_pixdim_that_differs_by_a_hair(hospital: Any) -> None:
    """MONAI's readers took the qform of one image and the sform of the other."""
    hospital.affine = np.array([[-2.0, 0, 0, 15], [0, -2.0, 0, 19], [0, 0, 3.0, 0], [0, 0, 0, 1.0]])
    hospital.add()
    before = prepare_case(hospital.case(), frame())
    path = hospital.case().mask
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<f", content, 80, 2.001)  # pixdim of the first axis
    struct.pack_into("<3f", content, 256, 0.0, 0.0, 0.0)  # a qform that turns nothing
    path.write_bytes(gzip.compress(content))
    after = prepare_case(hospital.case(), frame())
    assert torch.equal(before.regions_RDHW, after.regions_RDHW)


@pytest.mark.real_data
def test_a_real_patient_goes_to_a_frame_and_back(real_data: Path) -> None:
    folder = real_data / "lgg" / "EZ" / "TCGA_EZ_7264"
    case = Case(
        case_id="TCGA_EZ_7264",
        images={
            "t1n": folder / "TCGA_EZ_7264_t1.nii.gz",
            "t2f": folder / "TCGA_EZ_7264_flair.nii.gz",
        },
        mask=folder / "TCGA_EZ_7264_seg.nii.gz",
    )
    study = frame(modalities=("t1n", "t2f"), regions=("WT",), label_scheme="lgg")
    prepared = prepare_case(case, study)
    image = prepare_image(case, study)
    restored = restore_probabilities(prepared.regions_RDHW.to(torch.float32), image=image)
    assert case.mask is not None
    assert np.array_equal(restored[0].numpy(), np.asarray(nibabel.load(case.mask).dataobj))
