"""The federation of 2019: how its institutions are cut, and what a cell keeps."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from medfl.config import load_site
from medfl.errors import ConfigError


@pytest.fixture
def pipeline(recipe: Callable[[str], ModuleType]) -> ModuleType:
    return recipe("li_2019")


@pytest.fixture
def cells(pipeline: ModuleType) -> ModuleType:
    return importlib.import_module("li_2019_cells")


def test_brats_2018_is_cut_by_the_institution_in_each_name(
    pipeline: ModuleType, tmp_path: Path
) -> None:
    root = tmp_path / "brats"
    for grade, case in (
        ("HGG", "Brats18_TCIA08_469_1"),
        ("HGG", "Brats18_CBICA_AAB_1"),
        ("HGG", "Brats18_CBICA_AAG_1"),
        ("LGG", "Brats18_TCIA08_113_1"),
        ("LGG", "Brats18_2013_0_1"),
    ):
        (root / grade / case).mkdir(parents=True)
    sites = [load_site(file) for file in pipeline.brats_sites(root, out=tmp_path / "out")]
    assert [site.name for site in sites] == ["2013", "CBICA", "TCIA08"]
    assert [site.declared_patients for site in sites] == [1, 2, 2]
    listed = sites[2].data.include
    assert listed is not None
    assert listed.read_text().split() == ["Brats18_TCIA08_469_1", "Brats18_TCIA08_113_1"]


def test_a_folder_without_brats_2018_is_refused(pipeline: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected the folders HGG and LGG of BraTS 2018"):
        pipeline.brats_sites(tmp_path, out=tmp_path / "out")


def test_weights_go_through_one_row_and_back(cells: ModuleType) -> None:
    weights = {"b": torch.randn(2, 3), "a": torch.randn(4)}
    row = cells._flat(weights)
    assert row.shape == (10,)
    change = np.arange(10.0)
    moved = cells._moved(weights, change)
    np.testing.assert_allclose(cells._flat(moved), row + change, rtol=1e-6)


def test_every_setting_has_a_file_and_a_true_epsilon_of_its_own(cells: ModuleType) -> None:
    names = [setting.name for setting in cells.SETTINGS]
    assert len(set(names)) == len(names)
    assert all("/" not in name for name in names)
    assert {8.0, math.inf} <= {setting.epsilon for setting in cells.SETTINGS}
    by_size = [setting for setting in cells.SETTINGS if setting.by_size]
    assert {setting.epsilon for setting in by_size} == {math.inf}
