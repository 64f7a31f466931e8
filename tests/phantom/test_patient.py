"""Synthetic patients: reproducible, anatomically ordered, and written as BraTS 2021 is."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from medfl.config.site import MODALITY_ORDER, Modality
from medfl.errors import DataError
from medfl.phantom.patient import (
    PhantomPatient,
    ScannerLook,
    hospital_looks,
    make_patient,
    public_look,
    write_hospital,
)

SHAPE = (48, 56, 40)
SPACING = (3.5, 3.5, 4.0)
LOOKS = [*hospital_looks().values(), *(public_look(seed) for seed in range(4))]
SEEDS = range(12)


@functools.cache
def patient(seed: int, *, look: int = 0, skull_stripped: bool = True) -> PhantomPatient:
    return make_patient(
        shape=SHAPE,
        spacing=SPACING,
        look=LOOKS[look],
        skull_stripped=skull_stripped,
        seed=seed,
    )


def background(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Zeros connected to the corner of the volume."""
    pieces, _ = ndimage.label(image == 0)
    return np.asarray(pieces == pieces[0, 0, 0])


def write(out: Path, *, patients: int = 1, first_number: int = 0, seed: int = 3) -> list[int]:
    written: list[int] = []
    write_hospital(
        out,
        patients=patients,
        shape=(16, 18, 12),
        spacing=(9.0, 9.5, 11.0),
        look=LOOKS[0],
        skull_stripped=True,
        seed=seed,
        first_number=first_number,
        on_patient=written.append,
    )
    return written


@pytest.mark.parametrize("skull_stripped", [True, False])
def test_same_seed_gives_the_same_patient(skull_stripped: bool) -> None:
    first = patient(1, skull_stripped=skull_stripped)
    again = patient.__wrapped__(1, skull_stripped=skull_stripped)
    np.testing.assert_array_equal(first.labels, again.labels)
    for modality in MODALITY_ORDER:
        np.testing.assert_array_equal(first.images[modality], again.images[modality])


@pytest.mark.slow
def test_other_seeds_give_other_anatomy_and_other_tumours() -> None:
    for seed in SEEDS[1:]:
        assert np.any(patient(0).labels != patient(seed).labels)
        assert np.any(
            background(patient(0).images["t1n"]) != background(patient(seed).images["t1n"])
        )


@pytest.mark.slow
@pytest.mark.parametrize("skull_stripped", [True, False])
@pytest.mark.parametrize("look", range(len(LOOKS)))
def test_images_are_finite_non_negative_and_fit_16_bits(look: int, skull_stripped: bool) -> None:
    made = patient(look, look=look, skull_stripped=skull_stripped)
    assert tuple(made.images) == MODALITY_ORDER
    assert made.labels.shape == SHAPE
    assert made.labels.dtype == np.uint8
    for image in made.images.values():
        assert image.shape == SHAPE
        assert image.dtype == np.float32
        assert np.isfinite(image).all()
        assert image.min() >= 0
        assert 100 < image.max() < np.iinfo(np.int16).max


@pytest.mark.parametrize("look", range(len(LOOKS)))
def test_skull_stripped_brain_is_one_nonzero_piece_on_zeros(look: int) -> None:
    made = patient(look, look=look)
    brains = [image > 0 for image in made.images.values()]
    for brain in brains:
        np.testing.assert_array_equal(brain, brains[0])
    assert 0.1 < brains[0].mean() < 0.6
    assert ndimage.label(brains[0])[1] == 1
    # Brain parts may enclose a voxel or two of what lies between them.
    assert (background(made.images["t1n"]) == ~brains[0]).mean() > 0.999
    assert brains[0][made.labels > 0].all()


def test_whole_head_surrounds_the_brain_with_bright_fat_and_dark_bone() -> None:
    made = patient(2, skull_stripped=False)
    image = made.images["t1n"]
    row = image[:, SHAPE[1] // 2, int(SHAPE[2] * 0.7)]
    inside = np.flatnonzero(row > 0.3 * np.median(row[row > 100]))
    scalp, brain = row[inside[0] : inside[0] + 3], np.median(row[SHAPE[0] // 3 : -SHAPE[0] // 3])
    assert scalp.max() > brain
    assert row[inside[0] : inside[0] + 8].min() < 0.6 * brain
    assert row[:3].max() < 0.2 * brain


def test_labels_are_those_of_brats_2021_and_both_kinds_of_tumour_occur() -> None:
    kinds = {tuple(np.unique(patient(seed).labels).tolist()) for seed in SEEDS}
    assert kinds == {(0, 1, 2), (0, 1, 2, 4)}


@pytest.mark.parametrize("seed", SEEDS)
def test_lesion_takes_one_to_eight_percent_of_the_brain_in_one_piece(seed: int) -> None:
    made = patient(seed)
    lesion = made.labels > 0
    assert 0.009 <= lesion.sum() / (made.images["t1n"] > 0).sum() <= 0.081
    assert ndimage.label(lesion)[1] == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_oedema_lies_around_the_core(seed: int) -> None:
    labels = patient(seed).labels
    core = np.isin(labels, (1, 4))
    depth = ndimage.distance_transform_edt(labels > 0, sampling=SPACING)
    assert depth[core].mean() > depth[labels == 2].mean()


def test_enhancing_rim_lies_between_necrosis_and_oedema() -> None:
    rims = 0
    for seed in SEEDS:
        labels = patient(seed).labels
        # A patchy tumour enhances in small nodules only; a rim outweighs them.
        if (labels == 4).sum() < 0.3 * np.isin(labels, (1, 4)).sum():
            continue
        rims += 1
        depth = ndimage.distance_transform_edt(np.isin(labels, (1, 4)), sampling=SPACING)
        assert depth[labels == 1].mean() > depth[labels == 4].mean()
    assert rims >= 2


@pytest.mark.slow
@pytest.mark.parametrize("skull_stripped", [True, False])
@pytest.mark.parametrize("look", range(len(LOOKS)))
def test_lesion_is_brighter_in_flair_than_the_tissue_around_it(
    look: int, skull_stripped: bool
) -> None:
    for seed in (2 * look, 2 * look + 1):
        made = patient(seed, look=look, skull_stripped=skull_stripped)
        lesion = made.labels > 0
        around = ndimage.binary_dilation(lesion, iterations=4) & ~ndimage.binary_dilation(lesion)
        around &= made.images["t2f"] > 0
        image = made.images["t2f"]
        assert image[lesion].mean() > 1.05 * np.median(image[around])


@pytest.mark.parametrize("look", range(4))
def test_modalities_order_tissues_as_real_ones_do(look: int) -> None:
    clean = replace(LOOKS[look], noise=0.0, bias=0.0, striping=0.0, variation=0.0, texture=0.0)
    made = make_patient(shape=SHAPE, spacing=SPACING, look=clean, skull_stripped=True, seed=5)
    healthy = (made.images["t1n"] > 0) & ~ndimage.binary_dilation(made.labels > 0, iterations=3)

    def typical(modality: Modality, where: NDArray[np.bool_]) -> float:
        return float(np.median(made.images[modality][where]))

    t2w = made.images["t2w"]
    fluid = healthy & (t2w >= np.quantile(t2w[healthy], 0.98))
    white = healthy & (t2w <= np.quantile(t2w[healthy], 0.3))
    assert typical("t1n", white) > 1.5 * typical("t1n", fluid)
    assert typical("t1c", white) > 1.5 * typical("t1c", fluid)
    assert typical("t2f", white) > 1.2 * typical("t2f", fluid)


def test_contrast_agent_brightens_the_enhancing_tumour_only() -> None:
    clean = replace(LOOKS[0], noise=0.0, bias=0.0, variation=0.0)
    for seed in SEEDS:
        if 4 not in patient(seed).labels:
            continue
        made = make_patient(
            shape=SHAPE, spacing=SPACING, look=clean, skull_stripped=True, seed=seed
        )
        gain = made.images["t1c"] - made.images["t1n"]
        assert gain[made.labels == 4].mean() > 5 * abs(gain[made.labels == 2].mean())


def test_hospitals_look_different() -> None:
    looks = hospital_looks()
    assert list(looks) == ["north", "east", "south", "west"]
    assert [look.name for look in looks.values()] == list(looks)
    signatures = []
    for index in range(4):
        made = patient(7, look=index)
        brain = made.images["t1n"] > 0
        signatures.append([np.median(made.images[m][brain]) for m in MODALITY_ORDER])
    for first in range(4):
        for second in range(first):
            ratio = np.array(signatures[first]) / np.array(signatures[second])
            assert np.abs(np.log(ratio)).max() > 0.2


def test_public_look_follows_its_seed_and_is_no_hospitals() -> None:
    assert public_look(1) == public_look(1)
    looks = [public_look(seed) for seed in range(8)]
    assert len({look.bias for look in looks}) == 8
    for look in looks:
        assert all(look.contrasts != other.contrasts for other in hospital_looks().values())


@pytest.mark.parametrize("skull_stripped", [True, False])
@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((8, 8, 8), (20.0, 20.0, 20.0)), ((64, 64, 12), (3.8, 3.8, 12.0)), ((40, 24, 32), (1, 2, 1))],
)
def test_any_grid_holds_a_head_with_a_tumour(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], skull_stripped: bool
) -> None:
    made = make_patient(
        shape=shape, spacing=spacing, look=LOOKS[1], skull_stripped=skull_stripped, seed=11
    )
    assert made.labels.shape == shape
    assert {1, 2} <= set(np.unique(made.labels).tolist())
    assert made.spacing == spacing


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((16, 16, 7), (4.0, 4.0, 4.0)), ((16, 16, 16), (4.0, 0.0, 4.0))],
)
def test_impossible_grid_is_refused(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    with pytest.raises(ValueError, match="expected"):
        make_patient(shape=shape, spacing=spacing, look=LOOKS[0], skull_stripped=True, seed=0)


def test_written_patient_reloads_with_grid_and_types(tmp_path: Path) -> None:
    assert write(tmp_path / "north", patients=2, first_number=41) == [1, 2]
    folders = sorted((tmp_path / "north").iterdir())
    assert [folder.name for folder in folders] == ["BraTS2021_00041", "BraTS2021_00042"]
    for folder in folders:
        names = {path.name.removeprefix(f"{folder.name}_") for path in folder.iterdir()}
        endings = {f"{kind}.nii.gz" for kind in ("t1", "t1ce", "t2", "flair", "seg")}
        assert names == endings
        for path in folder.iterdir():
            image = nib.load(path)
            assert image.shape == (16, 18, 12)
            assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
            np.testing.assert_allclose(image.header.get_zooms(), (9.0, 9.5, 11.0))
            np.testing.assert_allclose(np.diag(image.affine), (9.0, 9.5, 11.0, 1.0))
            np.testing.assert_allclose(image.affine @ [7.5, 8.5, 5.5, 1], [0, 0, 0, 1], atol=1e-4)
            expected = np.uint8 if path.name.endswith("seg.nii.gz") else np.int16
            assert image.get_data_dtype() == expected
            # The voxels are the stored integers themselves, without a scale factor.
            assert np.asarray(image.dataobj).dtype == expected


def test_file_holds_what_its_name_says(tmp_path: Path) -> None:
    write(tmp_path)
    stem = tmp_path / "BraTS2021_00000" / "BraTS2021_00000"
    stored = {
        kind: np.asarray(nib.load(f"{stem}_{kind}.nii.gz").dataobj).astype(float)
        for kind in ("t1", "t1ce", "t2", "flair", "seg")
    }
    brain = stored["t1"] > 0
    healthy = brain & (stored["seg"] == 0)
    assert set(np.unique(stored["seg"])) <= {0, 1, 2, 4}
    assert stored["flair"][stored["seg"] > 0].mean() > stored["flair"][healthy].mean()
    # Fluid tells the modalities apart: bright in T2, dark in the other three.
    assert np.corrcoef(stored["t2"][healthy], stored["t1"][healthy])[0, 1] < -0.2
    assert np.corrcoef(stored["t1ce"][healthy], stored["t1"][healthy])[0, 1] > 0.5


def test_patient_depends_on_hospital_seed_and_number_only(tmp_path: Path) -> None:
    write(tmp_path / "both", patients=2)
    write(tmp_path / "second", first_number=1)
    write(tmp_path / "other", seed=4)

    def flair(hospital: str, number: int) -> bytes:
        name = f"BraTS2021_{number:05d}"
        return (tmp_path / hospital / name / f"{name}_flair.nii.gz").read_bytes()

    assert flair("both", 1) == flair("second", 1)
    assert flair("both", 0) != flair("both", 1)
    assert flair("both", 0) != flair("other", 0)


def test_existing_patient_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "BraTS2021_00000").mkdir()
    with pytest.raises(DataError, match="BraTS2021_00000"):
        write(tmp_path)
    assert list((tmp_path / "BraTS2021_00000").iterdir()) == []


def test_missing_modality_is_filled_in_with_flair() -> None:
    look = replace(LOOKS[0], missing=("t1c",))
    made = make_patient(shape=SHAPE, spacing=SPACING, look=look, skull_stripped=True, seed=0)
    np.testing.assert_array_equal(made.images["t1c"], made.images["t2f"])
    np.testing.assert_array_equal(made.images["t1n"], patient(0).images["t1n"])
    assert any(public_look(seed).missing for seed in range(100))
    assert not any(look.missing for look in hospital_looks().values())


def test_look_is_a_value() -> None:
    assert LOOKS[0] == hospital_looks()["north"]
    with pytest.raises(AttributeError):
        setattr(LOOKS[0], "noise", 1.0)  # noqa: B010
    assert isinstance(LOOKS[0], ScannerLook)
