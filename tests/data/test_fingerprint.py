"""An image is known again however it is stored, and by nothing but its voxels."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from medfl.config.site import SiteData
from medfl.data import fingerprint as module
from medfl.data.cache import TensorCache
from medfl.data.fingerprint import (
    FEWEST_VALUES,
    file_fingerprints,
    fingerprint,
    patient_fingerprints,
)
from medfl.data.layouts.survey import read_cohort
from medfl.errors import DataError

ENDINGS = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}
Voxels = NDArray[Any]


def brain(seed: int, *, shape: tuple[int, int, int] = (9, 10, 8)) -> Voxels:
    """A head of whole numbers in a frame of zeros."""
    voxels = np.zeros(shape, np.int16)
    random = np.random.default_rng(seed)
    voxels[2:-2, 2:-2, 2:-2] = random.integers(1, 900, voxels[2:-2, 2:-2, 2:-2].shape)
    return voxels


def write(path: Path, voxels: Voxels, **changes: Any) -> Path:
    image = nibabel.Nifti1Image(voxels, changes.pop("affine", np.diag([1.0, 1.0, 2.0, 1.0])))
    for key, value in changes.items():
        image.header[key] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> TensorCache:
    return TensorCache(tmp_path / "cache")


def of(path: Path, cache: TensorCache, *, volumes: int = 1) -> tuple[str, ...]:
    return file_fingerprints(path, volumes=volumes, cache=cache)


def renamed(path: Path) -> Path:
    return Path(shutil.copy(path, path.with_name("somebody-else.nii.gz")))


def uncompressed(path: Path) -> Path:
    target = path.with_name("plain.nii")
    target.write_bytes(gzip.decompress(path.read_bytes()))
    return target


def compressed_harder(path: Path) -> Path:
    target = path.with_name("harder.nii.gz")
    target.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
    return target


def header_bytes(path: Path) -> Path:
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[148:152] = b"xxxx"  # in descrip
    target = path.with_name("described.nii.gz")
    target.write_bytes(gzip.compress(bytes(content)))
    return target


def again(change: Callable[[Voxels], Voxels], **header: Any) -> Callable[[Path], Path]:
    def convert(path: Path) -> Path:
        voxels = np.asarray(nibabel.load(path).dataobj)
        return write(path.with_name("converted.nii.gz"), change(voxels), **header)

    return convert


def rescaled(path: Path) -> Path:
    """As integers with a slope and an intercept, which give the same real values."""
    voxels = np.asarray(nibabel.load(path).dataobj).astype(np.int32)
    image = nibabel.Nifti1Image(voxels * 4 - 400, np.eye(4))
    image.header.set_slope_inter(0.25, 100.0)
    target = path.with_name("scaled.nii.gz")
    # nibabel would choose a slope of its own; this writes what the array holds.
    content = (
        bytearray(image.header.binaryblock)
        + b"\0\0\0\0"
        + image.get_fdata().astype(np.int32).tobytes(order="F")
    )
    content[112:120] = struct.pack("<ff", 0.25, 100.0)
    content[108:112] = struct.pack("<f", 352.0)
    target.write_bytes(gzip.compress(bytes(content)))
    return target


CONVERSIONS: dict[str, Callable[[Path], Path]] = {
    "another name": renamed,
    "no compression": uncompressed,
    "another compression": compressed_harder,
    "four bytes of the header": header_bytes,
    "another affine": again(lambda v: v, affine=np.diag([-3.0, 1.0, 1.0, 1.0])),
    "a flip": again(lambda v: v[::-1]),
    "axes exchanged": again(lambda v: v.transpose(2, 0, 1)),
    "float32": again(lambda v: v.astype(np.float32)),
    "float64": again(lambda v: v.astype(np.float64)),
    "big-endian": again(lambda v: v.astype(">i4")),
    "slope and intercept": rescaled,
    "padding": again(lambda v: np.pad(v, 5)),
    "cropped background": again(lambda v: v[1:-1, 1:-1, 1:-1]),
    "NaN for background": again(lambda v: np.where(v == 0, np.float32(np.nan), v)),
}


@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_a_converted_copy_is_the_same_image(
    conversion: str, cache: TensorCache, tmp_path: Path
) -> None:
    path = write(tmp_path / "scan.nii.gz", brain(1))
    copy = CONVERSIONS[conversion](path)
    assert copy != path
    assert of(copy, cache) == of(path, cache)
    assert len(of(path, cache)) == 1


def test_another_patient_and_one_other_voxel_are_other_images() -> None:
    changed = brain(1)
    changed[4, 4, 4] += 1
    assert len({fingerprint(v.astype(np.float32)) for v in (brain(1), brain(2), changed)}) == 3


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", ["whole numbers", "fractions"])
@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (-0.1, 3.0)])
def test_the_canonical_form_is_the_one_that_is_stated(
    seed: int, kind: str, slope: float, intercept: float
) -> None:
    voxels = brain(seed).astype(np.float32)
    if kind == "fractions":
        voxels = np.round(voxels * np.float32(0.37), 1)
    real = [float(np.float32(float(v) * slope + intercept)) for v in voxels.ravel()]
    counted = Counter(real)
    background = max(counted, key=lambda value: counted[value])
    del counted[background]
    values = sorted(counted)
    content = struct.pack(f"<{len(values)}f", *values)
    content += struct.pack(f"<{len(values)}Q", *(counted[value] for value in values))
    expected = hashlib.sha256(content).hexdigest()
    assert fingerprint(voxels, slope=slope, intercept=intercept) == expected


@pytest.mark.parametrize(
    ("values", "identifies"),
    [(0, False), (1, False), (FEWEST_VALUES - 1, False), (FEWEST_VALUES, True)],
)
def test_an_image_of_few_values_identifies_nobody(values: int, *, identifies: bool) -> None:
    voxels = np.zeros((6, 6, 6), np.float32)
    voxels.flat[:values] = np.arange(1, values + 1)
    assert bool(fingerprint(voxels)) is identifies


@pytest.mark.parametrize("value", [0, 7, np.nan, np.inf])
def test_an_image_without_content_identifies_nobody(
    value: float, cache: TensorCache, tmp_path: Path
) -> None:
    path = write(tmp_path / "empty.nii.gz", np.full((4, 4, 4), value, np.float32))
    assert of(path, cache) == ()


def test_volumes_of_one_file_are_known_as_those_of_several(
    cache: TensorCache, tmp_path: Path
) -> None:
    parts = [brain(seed) for seed in range(4)]
    together = write(tmp_path / "all.nii.gz", np.stack(parts, axis=-1))
    alone = [write(tmp_path / f"{n}.nii.gz", part) for n, part in enumerate(parts)]
    found = of(together, cache, volumes=4)
    assert found == tuple(of(path, cache)[0] for path in alone)
    assert len(set(found)) == 4


# --- all images of a patient


def cohort(root: Path, *, cases: tuple[str, ...] = ("BraTS2021_00001", "BraTS2021_00002")) -> None:
    for number, case in enumerate(cases):
        for channel, ending in enumerate(ENDINGS.values()):
            write(root / case / f"{case}_{ending}.nii.gz", brain(10 * number + channel))
        write(root / case / f"{case}_seg.nii.gz", np.zeros((9, 10, 8), np.uint8))


def data(root: Path, *modalities: str, **changes: Any) -> SiteData:
    return SiteData(
        root=root,
        layout=changes.pop("layout", "brats2021"),
        label_scheme="brats",
        modalities=modalities or tuple(ENDINGS),
        **changes,
    )


def known(site: SiteData, cache: TensorCache) -> dict[str, frozenset[str]]:
    return patient_fingerprints(read_cohort(site).patients, data=site, cache=cache, threads=2)


@pytest.mark.parametrize("used", [("t1n",), ("t2f",), ("t1c", "t2w"), tuple(ENDINGS)])
def test_every_modality_counts_whichever_the_site_uses(
    used: tuple[str, ...], cache: TensorCache, tmp_path: Path
) -> None:
    cohort(tmp_path / "root")
    found = known(data(tmp_path / "root", *used), cache)
    assert [len(fingerprints) for fingerprints in found.values()] == [4, 4]
    assert found == known(data(tmp_path / "root"), cache)


def test_every_timepoint_counts(cache: TensorCache, tmp_path: Path) -> None:
    cohort(tmp_path / "root", cases=("BraTS2021_00001", "BraTS2021_00002"))
    one_person = data(tmp_path / "root", patient=r"(?P<patient>BraTS2021)_\d+")
    (fingerprints,) = known(one_person, cache).values()
    assert len(fingerprints) == 8


def test_an_examination_that_is_left_out_counts_for_its_patient(
    cache: TensorCache, tmp_path: Path
) -> None:
    cohort(tmp_path / "root")
    (tmp_path / "root/BraTS2021_00002/BraTS2021_00002_seg.nii.gz").unlink()
    one_person = {"patient": r"(?P<patient>BraTS2021)_\d+", "incomplete": "leave-out"}
    (fingerprints,) = known(data(tmp_path / "root", **one_person), cache).values()
    assert len(fingerprints) == 8


def test_a_run_that_was_not_chosen_counts(cache: TensorCache, tmp_path: Path) -> None:
    root = tmp_path / "root"
    anat = root / "sub-01" / "anat"
    for number, run in enumerate(("1", "2")):
        write(anat / f"sub-01_run-{run}_FLAIR.nii.gz", brain(number))
    write(anat / "sub-01_label-lesion_mask.nii.gz", np.zeros((9, 10, 8), np.uint8))
    of_run = [
        known(data(root, "t2f", layout="bids", bids={"run": run}), cache) for run in ("1", "2")
    ]
    assert len(of_run[0]["sub-01"]) == 2
    assert of_run[0] == of_run[1]


def test_a_damaged_image_is_an_error_where_the_site_uses_it_and_ignored_elsewhere(
    cache: TensorCache, tmp_path: Path
) -> None:
    cohort(tmp_path / "root")
    damaged = tmp_path / "root" / "BraTS2021_00001" / "BraTS2021_00001_t2.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(DataError, match=r"_t2\.nii\.gz: expected intact gzip data"):
        known(data(tmp_path / "root", "t2w"), cache)
    found = known(data(tmp_path / "root", "t1n"), cache)
    assert [len(fingerprints) for fingerprints in found.values()] == [3, 4]


def test_an_image_that_is_gone_is_an_error(cache: TensorCache, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        of(tmp_path / "gone.nii.gz", cache)


# --- remembered


def test_an_unchanged_file_is_read_once(
    cache: TensorCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "scan.nii.gz", brain(1))
    first = of(path, cache)
    with monkeypatch.context() as patch:
        patch.setattr(module, "read_header", lambda *_, **__: pytest.fail("was read"))
        assert of(path, cache) == first
    write(path, brain(2))
    assert of(path, cache) not in ((), first)


@pytest.mark.parametrize("rest", [b"", b"end", b"00\nend\n", b"\xff\xfe"])
def test_a_memory_that_a_power_failure_cut_short_is_not_believed(
    rest: bytes, cache: TensorCache, tmp_path: Path
) -> None:
    path = write(tmp_path / "scan.nii.gz", brain(1))
    first = of(path, cache)
    (memory,) = (tmp_path / "cache").iterdir()
    memory.write_bytes(rest)
    assert of(path, cache) == first
