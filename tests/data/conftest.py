"""Small hospitals on disk: BraTS 2021 folders of random heads, written by nibabel alone.

Tests ask for the fixture `hospital`, add patients, and then damage what they want to be found.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from medfl.config.site import SiteConfig, SiteData, SitePolicy
from medfl.data.cohort import Case

ENDINGS = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}
SHAPE = (16, 20, 12)


def head(shape: tuple[int, ...], *, seed: int) -> NDArray[np.float32]:
    """A bright, noisy ellipsoid in air that is exactly 0."""
    axes = np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.9
    noise = np.random.default_rng(seed).normal(100, 15, shape)
    return (inside * noise.clip(20, 200)).astype(np.float32)


def tumour(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Nested boxes off the middle: edema 2, core 1, enhancing 4."""
    label = np.zeros(shape, np.uint8)
    label[9:14, 5:12, 4:9] = 2
    label[10:13, 6:10, 5:8] = 1
    label[11:13, 7:9, 5:7] = 4
    return label


@dataclass
class HospitalFolder:
    """A root that tests fill with patients and then damage."""

    root: Path
    shape: tuple[int, int, int] = SHAPE
    affine: NDArray[np.float64] = field(default_factory=lambda: np.diag([2.0, 2.0, 3.0, 1.0]))

    head = staticmethod(head)
    tumour = staticmethod(tumour)

    def add(self, name: str = "BraTS2021_00000", *, seed: int = 0, group: str = "") -> Path:
        """Write a sound patient and return the case folder."""
        folder = self.root / group / name
        for number, ending in enumerate(ENDINGS.values()):
            values = head(self.shape, seed=10 * seed + number)
            self.write(folder / f"{name}_{ending}.nii.gz", values)
        self.write(folder / f"{name}_seg.nii.gz", tumour(self.shape))
        return folder

    def write(self, path: Path, values: NDArray[Any]) -> None:
        """Write an image; nibabel decides by the suffix whether it is compressed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, self.affine), path)

    def case(self, name: str = "BraTS2021_00000") -> Case:
        """The case of a patient that was added."""
        folder = self.root / name
        return Case(
            case_id=name,
            images={
                modality: folder / f"{name}_{ending}.nii.gz" for modality, ending in ENDINGS.items()
            },
            mask=folder / f"{name}_seg.nii.gz",
        )

    def data(self, **changes: Any) -> SiteData:
        """The site's `[data]` table."""
        values: dict[str, Any] = {
            "root": self.root,
            "layout": "brats2021",
            "label_scheme": "brats",
            "modalities": tuple(ENDINGS),
        }
        return SiteData(**(values | changes))

    def site(self, *, declared_patients: int, **changes: Any) -> SiteConfig:
        """The site's file."""
        return SiteConfig(
            name="north",
            purpose="open-data",
            declared_patients=declared_patients,
            weight=1.0,
            state=self.root.parent / "state",
            data=self.data(**changes),
            privacy=SitePolicy(epsilon=8.0),
        )


@pytest.fixture
def hospital(tmp_path: Path) -> HospitalFolder:
    root = tmp_path / "hospital"
    root.mkdir()
    return HospitalFolder(root=root)
