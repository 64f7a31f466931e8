"""A site's file: what protects patients cannot be left out or weakened by mistake."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from medfl.config import SiteConfig, load_site
from medfl.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
SITE = """
name = "DU"
purpose = "hospital"
declared_patients = 20
weight = 20.0
state = "state/DU"

[data]
root = "patients"
layout = "brats2021"
label_scheme = "brats"
modalities = ["t1n", "t1c", "t2w", "t2f"]

[privacy]
epsilon = 8.0
"""


def loaded(tmp_path: Path, text: str = SITE) -> SiteConfig:
    path = tmp_path / "site.toml"
    path.write_text(text)
    return load_site(path)


def changed(old: str, new: str) -> str:
    assert old in SITE
    return SITE.replace(old, new)


def test_what_is_not_said_is_strict(tmp_path: Path) -> None:
    site = loaded(tmp_path)
    assert site.privacy.delta == 1e-5
    assert site.privacy.min_noise_multiplier == 0.5
    assert not site.privacy.share_metrics
    assert not site.privacy.allow_baselines
    assert site.data.held_out == 0.0
    assert site.device == "cpu"


def test_relative_paths_are_taken_from_the_files_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (tmp_path / "site.toml").write_text(SITE)
    site = load_site(Path("../site.toml"))
    assert site.data.root == tmp_path / "patients"
    assert site.state == tmp_path / "state" / "DU"


def test_absolute_paths_and_variables_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDFL_TEST_DATA", "/mnt/images")
    site = loaded(tmp_path, changed('"patients"', '"${MEDFL_TEST_DATA}/brats"'))
    assert site.data.root == Path("/mnt/images/brats")
    assert loaded(tmp_path, changed('"state/DU"', '"/var/lib/medfl"')).state == Path(
        "/var/lib/medfl"
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"hospital"', '"research"', "key purpose: .*'hospital' or 'open-data', found 'research'"),
        ('name = "DU"', 'name = "../DU"', "key name: expected 1 to 40 letters.* found '../DU'"),
        ('name = "DU"', 'name = ""', "key name: expected 1 to 40 letters"),
        ("= 20\n", "= 0\n", "key declared_patients: .* found 0"),
        ("= 20\n", "= 20.0\n", "key declared_patients: .* found 20.0"),
        ("weight = 20.0", "weight = -1.0", "key weight: .* found -1.0"),
        ('"brats2021"', '"brats2055"', "key data.layout: .* found 'brats2055'"),
        ('"t1n", "t1c"', '"t1c", "t1n"', "key data: expected distinct modalities in the order"),
        ('"t1n", "t1c"', '"t1n", "t1n"', "key data.*: "),
        ('["t1n", "t1c", "t2w", "t2f"]', "[]", "key data.modalities: "),
        ('"t2f"]', '"flair"]', "key data.modalities.3: .* found 'flair'"),
        ("epsilon = 8.0", "epsilon = 0.0", "key privacy.epsilon: .* found 0.0"),
        ("epsilon = 8.0", "epsilon = 8.0\ndelta = 1.0", "key privacy.delta: .* found 1.0"),
        ("epsilon = 8.0", "epsilon = 8.0\ndelta = 0.006", "privacy.delta <= .* = 0.005, found 0.0"),
        ("epsilon = 8.0", "epsilon = 8.0\nmax_sampling_prob = 1.1", "key privacy.max_sampling_pro"),
        ("epsilon = 8.0", "epsilon = 8.0\nmax_rounds = 0", "key privacy.max_rounds: .* found 0"),
        ("epsilon = 8.0", "epsilon = 8.0\nnoise = 0.0", "key privacy.noise: unknown key"),
        ("weight", 'device = "gpu"\nweight', "key device: expected 'cpu', 'cuda' or 'cuda:N'"),
        ("weight", "threads = 0\nweight", "key threads: .* found 0"),
        ('"patients"', '"${MEDFL_TEST_UNSET}"', "key data.root: .* MEDFL_TEST_UNSET to be set"),
        ('"brats"\n', '"brats"\nheld_out = 1.0\n', "key data.held_out: .* found 1.0"),
    ],
)
def test_a_mistake_is_named(old: str, new: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, changed(old, new))
    assert re.search(expected, str(caught.value))


@pytest.mark.parametrize("key", ["share_metrics", "allow_baselines"])
def test_a_hospital_cannot_be_opened(key: str, tmp_path: Path) -> None:
    text = SITE + f"{key} = true\n"
    with pytest.raises(ConfigError, match="to be false for the purpose 'hospital'"):
        loaded(tmp_path, text)
    assert getattr(loaded(tmp_path, text.replace('"hospital"', '"open-data"')).privacy, key)


def test_a_delta_at_the_limit_is_accepted(tmp_path: Path) -> None:
    text = changed("epsilon = 8.0", "epsilon = 8.0\ndelta = 0.005")
    assert loaded(tmp_path, text).privacy.delta == 0.005


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, id=str(file.relative_to(REPOSITORY)))
        for file in sorted((REPOSITORY / "site_configs").rglob("*.toml"))
        if "[data]" in file.read_text()
    ],
)
def test_the_site_files_of_the_repository_are_sound(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in re.findall(r"\$\{(\w+)\}", file.read_text()):
        monkeypatch.setenv(name, "/data")
    values: Any = load_site(file)
    assert values.declared_patients >= 1


def test_a_model_of_the_hospitals_own_is_made_only_where_the_file_says_so(tmp_path: Path) -> None:
    adapt = loaded(tmp_path).adapt
    assert not adapt.after_study
    assert (adapt.steps, adapt.folds, adapt.seed, adapt.device) == (100, 3, 0, "cpu")
    given = loaded(tmp_path, SITE + "[adapt]\nafter_study = true\nsteps = 7\n").adapt
    assert (given.after_study, given.steps, given.folds) == (True, 7, 3)


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("steps = 0", "adapt.steps"),
        ("steps = 1000001", "adapt.steps"),
        ("folds = 1", "adapt.folds"),
        ("folds = 101", "adapt.folds"),
        ("seed = -1", "adapt.seed"),
        ('device = "gpu"', "adapt.device"),
        ("after_study = 1", "adapt.after_study"),
        ("rounds = 3", "adapt.rounds"),
    ],
)
def test_how_it_is_made_has_its_ends(tmp_path: Path, line: str, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"key {re.escape(key)}:"):
        loaded(tmp_path, f"{SITE}[adapt]\n{line}\n")
