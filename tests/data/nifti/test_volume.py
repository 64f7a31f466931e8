"""Images are read along right, anterior, superior, however they are stored."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from medfl import DataError, read_volume

VOXELS = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)


def test_voxels_that_are_stored_in_this_order_are_read_as_they_are(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(VOXELS, np.diag([1.0, 2.0, 3.0, 1.0])), tmp_path / "a.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz"), VOXELS)


def test_mirrored_and_exchanged_axes_are_turned(tmp_path: Path) -> None:
    # Stored along posterior, left, superior: the first two axes exchanged and both mirrored.
    affine = np.array([[0, -1, 0, 0], [-2, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]], dtype=float)
    stored = VOXELS.transpose(1, 0, 2)[::-1, ::-1]
    nibabel.save(nibabel.Nifti1Image(stored, affine), tmp_path / "b.nii")
    assert np.array_equal(read_volume(str(tmp_path / "b.nii")), VOXELS)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.nii").write_text("no image", encoding="utf-8")
    with pytest.raises(DataError, match=r"c\.nii: "):
        read_volume(tmp_path / "c.nii")
