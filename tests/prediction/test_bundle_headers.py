"""One verdict on every header: what `check` accepts, `predict` and the bundle segment alike."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medfl.config.site import SiteConfig, SiteData, SitePolicy
from medfl.data.checks import check_cohort
from medfl.prediction.cohort import predict_cohort
from medfl.prediction.monai_bundle import export_bundle
from medfl.prediction.predictor import Predictor
from medfl.runs.files import FINAL_MODEL
from tests.prediction.bundles import content, finished_run, run_bundle
from tests.prediction.conftest import SPEC
from tests.prediction.headers import Stored, qform, sform

SHAPE = (12, 14, 10)
CASE = "BraTS2021_00001"
SPACING = (2.0, 2.5, 3.0)

TURN = math.cos(math.pi / 12), math.sin(math.pi / 12)  # half of 30 degrees, as quaternions have it


def turned(*sizes: float, shear: float = 0.0) -> np.ndarray:
    """30 degrees around the third axis."""
    cosine, sine = math.cos(math.pi / 6), math.sin(math.pi / 6)
    affine = np.diag([*sizes, 1.0])
    affine[:2, :2] = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag(sizes[:2])
    affine[0, 2] = shear
    affine[:3, 3] = (-20.0, 11.0, 7.0)
    return affine


STRAIGHT = sform(np.array([[2.0, 0, 0, -9], [0, 2, 0, 4], [0, 0, 3, 5], [0, 0, 0, 1]]))
OBLIQUE = sform(turned(2.0, 2.5, 3.0))
QFORM = qform((0.0, 0.0, TURN[1]), sizes=(2.0, 2.5, 3.0))
PERMUTED = sform(np.array([[0, 0, -3.0, 9], [2.0, 0, 0, 4], [0, -2.5, 0, 30], [0, 0, 0, 1]]))
MILLIMETRES = {"xyzt_units": 2}

ACCEPTED: dict[str, Stored] = {
    "sform alone": Stored(fields=OBLIQUE | MILLIMETRES),
    "qform alone": Stored(fields=QFORM | MILLIMETRES),
    "qform that mirrors": Stored(fields=QFORM | {"pixdim": [-1, 2, 2.5, 3, 0, 0, 0, 0]}),
    "qform and sform that agree": Stored(fields=QFORM | OBLIQUE),
    "qform and sform apart by a hair": Stored(fields=OBLIQUE | QFORM | {"qoffset_x": -20.04}),
    "qform and sform far apart": Stored(fields=STRAIGHT | QFORM),
    "pixdim apart from the sform": Stored(
        fields=OBLIQUE | QFORM | {"pixdim": [1, 3.7, 2.5, 3, 0, 0, 0, 0]}
    ),
    "pixdim apart from the sform by a hair": Stored(
        fields=STRAIGHT | QFORM | {"pixdim": [1, 2.001, 2, 3, 0, 0, 0, 0]}
    ),
    "left-handed": Stored(fields=sform(turned(-2.0, 2.0, 3.0))),
    "permuted axes": Stored(fields=PERMUTED),
    "sheared": Stored(fields=sform(turned(2.0, 2.0, 3.0, shear=0.4))),
    "no orientation": Stored(fields={"pixdim": [1, 2, 2.5, 3, 0, 0, 0, 0]}),
    "no sign in pixdim": Stored(fields=QFORM | {"pixdim": [0, 2, 2.5, 3, 0, 0, 0, 0]}),
    "a quaternion longer than 1 beside an sform": Stored(
        fields=QFORM | {"quatern_b": 0.8, "quatern_c": 0.7} | OBLIQUE
    ),
    "a quaternion longer than 1 by a rounding": Stored(
        fields=QFORM | {"quatern_b": 0.0, "quatern_c": 0.0, "quatern_d": 1.0000001}
    ),
    "voxels right behind the header": Stored(fields=OBLIQUE, offset=348),
    "extensions before the voxels": Stored(fields=OBLIQUE, offset=1024),
    "no unit": Stored(fields=OBLIQUE | {"xyzt_units": 0}),
    "an unknown unit": Stored(fields=OBLIQUE | {"xyzt_units": 5}),
    "a unit of time": Stored(fields=OBLIQUE | {"xyzt_units": 10}),
    "scaled": Stored(fields=OBLIQUE | {"scl_slope": 2.5, "scl_inter": -100.0}, dtype="i2"),
    "scaled by nothing": Stored(fields=OBLIQUE | {"scl_slope": np.nan, "scl_inter": np.nan}),
    "big-endian": Stored(fields=OBLIQUE, order=">", dtype="i2"),
    "uncompressed": Stored(fields=OBLIQUE, compressed=False),
    "a series of one volume": Stored(fields=OBLIQUE, more_axes=(1,)),
    "six dimensions": Stored(fields=PERMUTED, more_axes=(1, 1, 1)),
    "NIfTI-2": Stored(fields=OBLIQUE, version=2),
    "NIfTI-2, big-endian": Stored(fields=QFORM, version=2, order=">", dtype="f8"),
    **{
        f"voxels of type {dtype}": Stored(fields=PERMUTED, dtype=dtype)
        for dtype in ("i1", "u1", "u2", "i4", "u4", "i8", "u8", "f8")
    },
}

REFUSED: dict[str, tuple[Stored, str]] = {
    "metres": (Stored(fields=OBLIQUE | {"xyzt_units": 1}), "millimetres as the unit"),
    "micrometres": (Stored(fields=OBLIQUE | {"xyzt_units": 3}), "millimetres as the unit"),
    "one of a pair": (Stored(fields=OBLIQUE | {"magic": b"ni1"}), "one of a pair"),
    "Analyze": (Stored(fields=OBLIQUE | {"magic": b""}), "another magic word"),
    "two volumes": (Stored(fields=OBLIQUE, more_axes=(2,)), "3 dimensions"),
    "an unknown code": (Stored(fields=OBLIQUE | {"sform_code": 9}), "sform_code and qform_code"),
    "no transform but a quaternion longer than 1": (
        Stored(fields=QFORM | {"quatern_b": 0.8, "quatern_c": 0.7}),
        "a finite, invertible transform",
    ),
    "a transform of NaN": (Stored(fields=OBLIQUE | {"srow_x": [np.nan] * 4}), "a finite, inv"),
    "voxels of no size": (
        Stored(fields=OBLIQUE | {"pixdim": [1, 0, 2, 2, 0, 0, 0, 0]}),
        "voxel sizes",
    ),
    "voxels of 200 mm": (Stored(fields=sform(turned(200.0, 2.0, 3.0))), "at most 1000 mm"),
    "an endless scale": (Stored(fields=OBLIQUE | {"scl_slope": np.inf}), "a finite scale"),
    "voxels within the header": (Stored(fields=OBLIQUE | {"vox_offset": 300}), "begin after"),
    "complex voxels": (Stored(fields=OBLIQUE, dtype="c8"), "whole or real numbers"),
    "more voxels than bytes": (
        Stored(fields=OBLIQUE | {"dim": [3, 12, 14, 99, 1, 1, 1, 1]}),
        "uncompressed bytes",
    ),
}


class Both(NamedTuple):
    """A model in medfl's hands, and as a bundle."""

    predictor: Predictor
    bundle: Path


def both(folder: Path, **changes: Any) -> Both:
    run_dir = finished_run(folder / "run", spec=replace(SPEC, **changes))
    return Both(Predictor(run_dir / FINAL_MODEL), export_bundle(run_dir, folder / "bundle"))


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return both(tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def resampling(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return both(tmp_path_factory.mktemp("resampling"), spacing=SPACING)


def write_case(root: Path, stored: Stored, *, flair: Stored | None = None) -> SiteData:
    """One patient whose files all have this header, but for the FLAIR on request."""
    axes = np.meshgrid(*[np.linspace(-1, 1, size) for size in SHAPE], indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.9
    values: dict[str, np.ndarray] = {}
    for number, ending in enumerate(("t1ce", "flair")):
        noise = np.random.default_rng(number).normal(60, 12, SHAPE)
        values[ending] = inside * noise.clip(20, 110)
    for ending, image in values.items():
        mine = flair if flair is not None and ending == "flair" else stored
        mine.write(root / CASE / f"{CASE}_{ending}{mine.suffix}", image)
    mask = inside & (axes[0] > 0.3)
    stored.as_mask().write(root / CASE / f"{CASE}_seg{stored.suffix}", mask)
    return SiteData(root=root, layout="brats2021", label_scheme="brats", modalities=("t1c", "t2f"))


def rules_broken(data: SiteData) -> list[str]:
    """What `medfl check` finds wrong with the one patient."""
    site = SiteConfig(
        name="north",
        purpose="open-data",
        declared_patients=1,
        weight=1.0,
        state=data.root.parent / "state",
        data=data,
        privacy=SitePolicy(epsilon=8.0),
    )
    return [f"{one.rule}, {one.value}" for one in check_cohort(site) if one.severity == "error"]


def entry(data: SiteData) -> dict[str, list[str]]:
    files = [next((data.root / CASE).glob(f"{CASE}_{end}.nii*")) for end in ("t1ce", "flair")]
    return {"image": [str(path) for path in files]}


def masks(folder: Path) -> list[bytes]:
    return [content(path) for path in folder.rglob("*_seg.nii.gz")]


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_bundle_s_mask_is_medfl_s_byte_for_byte(
    name: str, resampling: Both, tmp_path: Path
) -> None:
    data = write_case(tmp_path / "images", ACCEPTED[name])
    assert rules_broken(data) == []
    assert predict_cohort(resampling.predictor, data, out=tmp_path / "ours") == []
    assert run_bundle(resampling.bundle, [entry(data)], out=tmp_path / "theirs") == ""
    (ours,) = masks(tmp_path / "ours")
    assert masks(tmp_path / "theirs") == [ours]
    assert any(ours[352:])  # a mask of nothing would be alike by chance


@pytest.mark.parametrize("name", REFUSED)
def test_what_check_refuses_the_bundle_refuses_with_the_same_sentence(
    name: str,
    native: Both,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored, rule = REFUSED[name]
    data = write_case(tmp_path / "images", stored)
    assert any(rule in broken for broken in rules_broken(data))
    (failed,) = predict_cohort(native.predictor, data, out=tmp_path / "ours")
    ended = run_bundle(native.bundle, [entry(data)], out=tmp_path / "theirs")
    assert ended == "error: expected a mask of every case, 1 of 1 failed."
    assert f"1 of 1: failed: {failed.reason}\n" in capsys.readouterr().err
    assert rule in failed.reason
    assert masks(tmp_path / "ours") + masks(tmp_path / "theirs") == []


def test_a_mask_lies_where_the_first_file_does(
    native: Both, resampling: Both, tmp_path: Path
) -> None:
    first = Stored(fields=QFORM | {"qoffset_x": -20.04}, order=">", dtype="i2", compressed=False)
    second = Stored(fields=OBLIQUE, version=2, dtype="f8")
    data = write_case(tmp_path / "images", first, flair=second)
    assert rules_broken(data) == []
    for name, model in {"native": native, "resampling": resampling}.items():
        out = tmp_path / name
        assert predict_cohort(model.predictor, data, out=out / "ours") == []
        assert run_bundle(model.bundle, [entry(data)], out=out / "theirs") == ""
        (ours,) = masks(out / "ours")
        assert masks(out / "theirs") == [ours]
        assert np.frombuffer(ours, "<f4", count=1, offset=268) == np.float32(-20.04)


def test_images_on_two_grids_are_refused_alike(
    native: Both, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apart = Stored(fields=OBLIQUE | {"srow_x": turned(2.02, 2.5, 3.0)[0]})
    data = write_case(tmp_path / "images", Stored(fields=OBLIQUE), flair=apart)
    assert any("corners up to" in broken for broken in rules_broken(data))
    (failed,) = predict_cohort(native.predictor, data, out=tmp_path / "ours")
    assert run_bundle(native.bundle, [entry(data)], out=tmp_path / "theirs") != ""
    assert failed.reason in capsys.readouterr().err
    assert "expected the grid of" in failed.reason


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_no_numbers_are_refused_alike(
    value: float, native: Both, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_case(tmp_path / "images", Stored(fields=OBLIQUE))
    image = np.ones(SHAPE)
    image[3, 4, 5] = value
    Stored(fields=OBLIQUE).write(data.root / CASE / f"{CASE}_flair.nii.gz", image)
    assert rules_broken(data) != []
    (failed,) = predict_cohort(native.predictor, data, out=tmp_path / "ours")
    assert run_bundle(native.bundle, [entry(data)], out=tmp_path / "theirs") != ""
    assert failed.reason in capsys.readouterr().err
    assert "expected finite voxels" in failed.reason


numbers = st.floats(-1.25, 1.25, width=32)
sizes = st.sampled_from((0.5, 1.0, 2.0, 2.001, 3.0, 9.0))
three_sizes = st.tuples(sizes, sizes, sizes)
codes = st.sampled_from((0, 1, 2, 4, 7))


@st.composite
def transforms(draw: st.DrawFn) -> dict[str, Any]:
    """Any qform beside any sform, each sound or not, with the sizes of either or of neither."""
    fields = qform(
        draw(st.tuples(numbers, numbers, numbers)),
        sizes=draw(three_sizes),
        qfac=draw(st.sampled_from((1.0, -1.0, 0.0))),
        code=draw(codes),
    )
    if draw(st.booleans()):
        turn, _ = np.linalg.qr(
            np.array(draw(st.lists(numbers, min_size=9, max_size=9))).reshape(3, 3)
        )
        affine = np.eye(4)
        affine[:3, :3] = turn * draw(three_sizes)
        affine[0, 2] += draw(st.sampled_from((0.0, 0.0, 0.01, 1.0)))
        affine[:3, 3] = draw(st.tuples(numbers, numbers, numbers))
        pixdim = fields["pixdim"]
        fields |= sform(affine, code=draw(codes))
        if draw(st.booleans()):
            fields["pixdim"] = pixdim
    return fields


headers = st.builds(
    lambda fields, units, slope, **storage: Stored(
        fields=fields | {"xyzt_units": units, "scl_slope": slope}, **storage
    ),
    fields=transforms(),
    units=st.sampled_from((0, 2, 2, 10, 1, 5)),
    slope=st.sampled_from((1.0, 0.0, 0.25, -2.0, np.nan)),
    version=st.sampled_from((1, 1, 2)),
    order=st.sampled_from("<>"),
    dtype=st.sampled_from(("u1", "i2", "f4", "f8")),
    offset=st.sampled_from((0, 560, 640)),
    more_axes=st.sampled_from(((), (1,))),
    compressed=st.booleans(),
)


@pytest.mark.slow
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(stored=headers, resampled=st.booleans())
def test_check_predict_and_the_bundle_never_part(
    stored: Stored, resampled: bool, native: Both, resampling: Both, tmp_path: Path
) -> None:
    for name in ("images", "ours", "theirs"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    model = resampling if resampled else native
    data = write_case(tmp_path / "images", stored)
    sound = rules_broken(data) == []
    assert (predict_cohort(model.predictor, data, out=tmp_path / "ours") == []) == sound
    assert (run_bundle(model.bundle, [entry(data)], out=tmp_path / "theirs") == "") == sound
    assert len(masks(tmp_path / "ours")) == sound
    assert masks(tmp_path / "ours") == masks(tmp_path / "theirs")
