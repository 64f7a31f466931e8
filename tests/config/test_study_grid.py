"""A grid file: what it may say, and how a mistake in it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfl.config.study_grid import load_study_grid
from medfl.errors import ConfigError

TEXT = """
id = "grid"
study = "studies/study.toml"
sites = ["${SITES}/north.toml", "east.toml"]
seeds = [1, 2]
epsilons = ["none", 8, 3.0]
baselines = ["alone", "adapted"]
[[variants]]
name = "plain-start"
settings = { "training.rounds" = 3 }
without = ["synthetic"]
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SITES", "/elsewhere")
    path = tmp_path / "grid.toml"
    path.write_text(TEXT)
    return path


def test_paths_are_taken_from_the_file_and_from_the_environment(written: Path) -> None:
    grid = load_study_grid(written)
    assert grid.study == written.parent / "studies" / "study.toml"
    assert grid.sites == (Path("/elsewhere/north.toml"), written.parent / "east.toml")


def test_no_noise_is_the_training_without_noise_and_no_target(written: Path) -> None:
    grid = load_study_grid(written)
    assert grid.targets == (8.0, 3.0)
    assert grid.wanted == ("alone", "adapted", "non-private")
    assert grid.trust == ("local",)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("[1, 2]", "[1, 1]", "key seeds: expected each of them once, found [1, 1]"),
        ("8, 3.0]", "'no']", "key epsilons.1: expected a number, or 'none' for no noise"),
        ("8, 3.0]", "-1]", "key epsilons.1: expected a number above 0 and up to 1e+06, found -1"),
        ('"none", 8, 3.0', '"none"', "expected a number in epsilons beside 'none'"),
        ('"alone", ', '"lonely", ', "key baselines.0: "),
        ('"plain-start"', '"base"', "expected distinct names other than 'base'"),
        ('"training.rounds" = 3', '"seed" = 3', "a key of the study that the grid does not set"),
        ('["synthetic"]', '["privacy"]', "a key of the study that the grid does not set"),
        ("seeds", "seed", "key seed: unknown key"),
    ],
)
def test_a_mistake_is_told_by_key_and_rule(written: Path, old: str, new: str, told: str) -> None:
    assert old in TEXT
    written.write_text(TEXT.replace(old, new))
    with pytest.raises(ConfigError) as refused:
        load_study_grid(written)
    assert str(refused.value).startswith(f"{written}: ")
    assert told in str(refused.value)
