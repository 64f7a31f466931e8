"""Label values to regions and back, against MONAI and written-out tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.transforms import ConvertToMultiChannelBasedOnBratsClasses, MapLabelValue

from medfl.config.site import KNOWN_SCHEMES
from medfl.data.label_schemes import scheme_regions, scheme_values
from medfl.data.labels import labels_from_regions, regions_of
from medfl.errors import DataError

ALL = ("TC", "WT", "ET")
brats_masks = hnp.arrays(np.uint8, (3, 4, 5), elements=st.sampled_from([0, 1, 2, 4]))


@given(label=brats_masks)
def test_brats_regions_agree_with_monai(label: np.ndarray) -> None:
    expected = ConvertToMultiChannelBasedOnBratsClasses(et_label=4)(torch.as_tensor(label)[None])
    regions = regions_of(torch.as_tensor(label), scheme="brats", regions=ALL)
    assert torch.equal(regions, expected.to(torch.uint8))


@pytest.mark.parametrize(
    ("value", "inside"), [(0, (0, 0, 0)), (1, (1, 1, 0)), (2, (0, 1, 0)), (4, (1, 1, 1))]
)
def test_each_brats_value_belongs_to_its_regions(value: int, inside: tuple[int, ...]) -> None:
    regions = regions_of(np.full((1, 1, 1), value), scheme="brats", regions=ALL)
    assert tuple(regions[:, 0, 0, 0]) == inside


def test_brats_2015_counts_the_solid_core_as_core() -> None:
    regions = regions_of(np.array([[[0, 1, 2, 3, 4]]]), scheme="brats2015", regions=ALL)
    assert regions[:, 0, 0].tolist() == [[0, 1, 0, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 1]]


@given(label=hnp.arrays(np.uint8, (3, 4, 5), elements=st.sampled_from([0, 1, 2, 3])))
def test_brats_2023_needs_monai_s_other_setting(label: np.ndarray) -> None:
    expected = ConvertToMultiChannelBasedOnBratsClasses(et_label=3)(torch.as_tensor(label)[None])
    regions = regions_of(torch.as_tensor(label), scheme="brats2023", regions=ALL)
    assert torch.equal(regions, expected.to(torch.uint8))


def test_monai_s_default_would_lose_the_enhancing_tumour_of_2023() -> None:
    label = np.array([[[0, 1, 2, 3]]], np.uint8)
    wrong = ConvertToMultiChannelBasedOnBratsClasses()(torch.as_tensor(label)[None])
    assert wrong[2].sum() == 0
    regions = regions_of(label, scheme="brats2023", regions=ALL)
    assert regions[:, 0, 0].tolist() == [[0, 1, 0, 1], [0, 1, 1, 1], [0, 0, 0, 1]]


def test_the_resection_cavity_of_2024_is_no_tumour() -> None:
    label = np.array([[[0, 1, 2, 3, 4]]], np.uint8)
    wrong = ConvertToMultiChannelBasedOnBratsClasses()(torch.as_tensor(label)[None])
    assert wrong[2, 0, 0].tolist() == [0, 0, 0, 0, 1]  # MONAI's default: enhancing tumour
    regions = regions_of(label, scheme="brats2024", regions=ALL)
    assert regions[:, 0, 0].tolist() == [[0, 1, 0, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 0]]
    assert 4 in scheme_values("brats2024")


@pytest.mark.parametrize("scheme", ["msd", "nnunet"])
@given(label=hnp.arrays(np.uint8, (3, 4, 5), elements=st.sampled_from([0, 1, 2, 3])))
def test_edema_comes_first_in_msd_and_nnunet(scheme: str, label: np.ndarray) -> None:
    mapped = MapLabelValue([1, 2, 3], [2, 1, 4])(torch.as_tensor(label)[None])
    expected = ConvertToMultiChannelBasedOnBratsClasses()(mapped)
    regions = regions_of(torch.as_tensor(label), scheme=scheme, regions=ALL)
    assert torch.equal(regions, expected.to(torch.uint8))


@pytest.mark.parametrize("scheme", KNOWN_SCHEMES)
def test_written_labels_are_read_as_the_same_regions(scheme: str) -> None:
    regions = scheme_regions(scheme)
    values = np.array(sorted(scheme_values(scheme)))[None, None]
    inside = regions_of(values, scheme=scheme, regions=regions)
    written = labels_from_regions(inside, scheme=scheme, regions=regions)
    assert (regions_of(written, scheme=scheme, regions=regions) == inside).all()


def test_lgg_masks_show_the_whole_tumour_only() -> None:
    assert scheme_regions("lgg") == ("WT",)
    label = np.array([[[0, 1]]], np.uint8)
    assert regions_of(label, scheme="lgg", regions=("WT",)).tolist() == [[[[0, 1]]]]
    with pytest.raises(DataError, match=r"expected regions out of \['WT'\], found \['TC', 'ET'\]"):
        regions_of(label, scheme="lgg", regions=ALL)


def test_channels_follow_the_wanted_regions() -> None:
    label = np.array([[[0, 1, 2, 4]]], np.uint8)
    regions = regions_of(label, scheme="brats", regions=("WT", "ET"))
    assert regions[:, 0, 0].tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]


@pytest.mark.parametrize("scale", [0.99999994, 0.9999999, 1.0000001])
def test_a_scale_factor_a_hair_off_one_loses_no_label(scale: float) -> None:
    label = (np.array([[[0, 1, 2, 4]]]) * scale).astype(np.float32)
    assert regions_of(label, scheme="brats", regions=("ET",))[0, 0, 0].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("scheme", "value"),
    [
        ("brats", 3.0),  # enhancing tumour of BraTS 2023
        ("lgg", 2.0),
        ("brats", 0.5),
        ("brats", 3.9),
        ("brats", -1.0),
        ("brats", 257.0),  # 1 if it were cut to a byte
        ("brats", float("nan")),
        ("brats", float("inf")),
    ],
)
def test_values_outside_the_scheme_are_refused_by_name(scheme: str, value: float) -> None:
    label = np.zeros((2, 2, 2), np.float32)
    label[1, 1, 1] = value
    with pytest.raises(DataError, match=f"found {value:g}"):
        regions_of(label, scheme=scheme, regions=("WT",))


def test_at_most_five_wrong_values_are_named() -> None:
    label = np.linspace(0, 1, 1000, dtype=np.float32).reshape(10, 10, 10)
    with pytest.raises(DataError) as error:
        regions_of(label, scheme="brats", regions=("WT",))
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("dtype", [">i2", "<u2", "<u4", "<i8", ">f8", "?"])
def test_any_stored_number_type_is_read(dtype: str) -> None:
    label = np.array([[[0, 1]]]).astype(dtype)
    assert regions_of(label, scheme="lgg", regions=("WT",)).tolist() == [[[[0, 1]]]]


def test_result_is_of_the_mask_s_kind_and_the_mask_is_not_changed() -> None:
    label = np.array([[[0, 4]]], np.float32)[:, :, ::-1]
    assert isinstance(regions_of(label, scheme="brats", regions=ALL), np.ndarray)
    assert label.tolist() == [[[4, 0]]]
    tensor = regions_of(torch.tensor([[[0, 4]]]), scheme="brats", regions=ALL)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.dtype == torch.uint8


@given(label=brats_masks)
def test_labels_come_back_from_their_regions(label: np.ndarray) -> None:
    regions = regions_of(label, scheme="brats", regions=ALL)
    assert np.array_equal(labels_from_regions(regions, scheme="brats", regions=ALL), label)


def test_the_innermost_region_decides_a_contradiction() -> None:
    # ET alone, ET with TC, TC alone, WT alone, nothing
    tc, wt, et = [0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [1, 1, 0, 0, 0]
    regions = torch.tensor([tc, wt, et], dtype=torch.bool)[:, None, None]
    labels = labels_from_regions(regions, scheme="brats", regions=ALL)
    assert labels[0, 0].tolist() == [4, 4, 1, 2, 0]


@pytest.mark.parametrize("scheme", ["brats", "lgg"])
def test_written_values_belong_to_the_scheme(scheme: str) -> None:
    regions = scheme_regions(scheme)
    everything = np.ones((len(regions), 1, 1, 1), np.uint8)
    written = labels_from_regions(everything, scheme=scheme, regions=regions)
    assert set(written.flatten().tolist()) <= scheme_values(scheme)
