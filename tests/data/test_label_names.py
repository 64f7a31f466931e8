"""Names of labels as published collections spell them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfl.config.site import SiteData
from medfl.data.label_names import named_labels, tissue_named
from medfl.data.label_schemes import scheme_regions, scheme_values
from medfl.data.labels import labels_from_regions, regions_of
from medfl.data.layouts.dataset_json import described_scheme, label_contradictions

SPELLINGS = {
    "background": "background, BG, Background, RC, resection cavity, Cavity",
    "edema": "edema, Oedema, ED, SNFH, peritumoral edema, peritumoural oedema, "
    "edema/invaded tissue, surrounding non-enhancing FLAIR hyperintensity",
    "core": "NCR, NET, NCR/NET, NETC, necrosis, necrotic core, cyst, CC, cystic component, "
    "non-enhancing tumor, nonenhancing_tumour, necrotic and non-enhancing tumor core, "
    "Non Enhancing Tumor Core",
    "enhancing": "ET, enhancing, enhancing tumour, GD-enhancing tumor, active tumor",
}


@pytest.mark.parametrize(
    ("name", "tissue"),
    [(name, tissue) for tissue, names in SPELLINGS.items() for name in names.split(", ")],
)
def test_usual_spellings_are_understood(name: str, tissue: str) -> None:
    assert tissue_named(name) == tissue


@pytest.mark.parametrize("name", ["", "label 1", "thing", "enhancing and necrotic", "tumor"])
def test_what_is_not_understood_stays_unknown(name: str) -> None:
    assert tissue_named(name) is None


DESCRIBED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "nnU-Net's own conversion": (
        {"background": 0, "edema": 1, "non-enhancing tumor": 2, "enhancing tumour": 3},
        ("msd", "nnunet"),
    ),
    "values of BraTS 2023": ({"background": 0, "NCR": 1, "ED": 2, "ET": 3}, ("brats2023",)),
    "names of BraTS 2023": ({"background": 0, "NETC": 1, "SNFH": 2, "ET": 3}, ("brats2023",)),
    "values of BraTS 2024": (
        {"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4},
        ("brats2024",),
    ),
    "values of BraTS 2021": ({"background": 0, "NCR/NET": 1, "ED": 2, "ET": 4}, ("brats",)),
    "regions": (
        {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]},
        ("msd", "nnunet"),
    ),
    "regions of BraTS 2023": (
        {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [1, 3], "enhancing tumor": 3},
        ("brats2023",),
    ),
    "the Decathlon": (
        {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
        ("msd", "nnunet"),
    ),
    "one lesion": ({"background": 0, "tumor": 1}, ("lgg",)),
    "nothing that is known": ({"background": 0, "alpha": 1, "beta": 2, "gamma": 3}, ()),
    "another order": ({"background": 0, "ET": 1, "ED": 2, "NCR": 3}, ()),
}


@pytest.mark.parametrize("case", DESCRIBED)
def test_the_scheme_of_named_labels_is_found(case: str) -> None:
    labels, schemes = DESCRIBED[case]
    found = described_scheme({"labels": labels})
    assert found == schemes


@pytest.mark.parametrize(
    ("case", "scheme", "value"),
    [
        ("values of BraTS 2023", "nnunet", 1),  # necrosis, which nnU-Net's scheme takes for edema
        ("names of BraTS 2023", "nnunet", 2),
        ("regions of BraTS 2023", "nnunet", 1),
        ("nnU-Net's own conversion", "brats2023", 2),
        ("one lesion", "brats", 2),
    ],
)
def test_names_contradict_a_scheme_that_means_something_else(
    case: str, scheme: Any, value: int
) -> None:
    found = [rule for rule, _ in label_contradictions({"labels": DESCRIBED[case][0]}, scheme)]
    if case == "one lesion":  # the whole tumour is all that is told, and 1 is in it either way
        assert found == []
    else:
        assert any(rule.startswith(f"{value} to be") for rule in found)


def test_names_that_are_not_understood_are_told() -> None:
    found = named_labels({"labels": {"background": 0, "edema": 1, "beta": 2}})
    assert found.unknown == ("beta",)
    assert found.told == frozenset()
    assert found.regions[1] == {"TC": False, "WT": True, "ET": False}
    assert found.regions[2] == {}


def own(**labels: Any) -> SiteData:
    return SiteData(
        root=Path("x"),
        layout="nnunet",
        label_scheme="custom",
        labels=labels,
        modalities=("t2f",),
    )


def test_a_site_can_describe_a_scheme_of_its_own() -> None:
    scheme = own(**{"1": "enhancing", "2": "core", "5": "core", "7": "edema", "9": "background"})
    values = scheme.mask_scheme
    assert scheme_regions(values) == ("TC", "WT", "ET")
    assert scheme_values(values) == {0, 1, 2, 5, 7, 9}
    label = np.array([[[0, 1, 2, 5, 7, 9]]], np.uint8)
    regions = regions_of(label, scheme=values, regions=("TC", "WT", "ET"))
    assert regions[:, 0, 0].tolist() == [[0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0]]
    written = labels_from_regions(regions, scheme=values, regions=("TC", "WT", "ET"))
    assert written[0, 0].tolist() == [0, 1, 2, 2, 7, 0]


def test_a_scheme_with_one_value_shows_the_whole_tumour_only() -> None:
    assert scheme_regions(own(**{"1": "tumour"}).mask_scheme) == ("WT",)
