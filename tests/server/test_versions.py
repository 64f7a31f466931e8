"""A run goes on with the software that it was begun with, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medfl.errors import ConfigError
from medfl.server import versions
from medfl.server.versions import FILE, require_same_versions, write_versions
from medfl.study.simulation import prepare_folder


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    write_versions(tmp_path)
    return tmp_path


def change(folder: Path, **found: str) -> None:
    """Let the run have been begun with something else."""
    path = folder / FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | found))


def test_a_run_goes_on_with_what_began_it(begun: Path) -> None:
    require_same_versions(begun)
    assert set(json.loads((begun / FILE).read_text())) == {
        "medfl",
        "flwr",
        "dp-accounting",
        "opacus",
    }


def test_a_patch_release_in_mid_study_goes_on(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "__version__", "0.2.99")
    require_same_versions(begun)


@pytest.mark.parametrize("version", ["0.3.0", "1.2.0", "0.1.0", "0.20.0"])
def test_another_minor_version_is_refused_and_says_what_to_do(
    version: str, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "__version__", version)
    with pytest.raises(ConfigError) as caught:
        require_same_versions(begun)
    text = str(caught.value)
    assert f"expected medfl 0.2, with which this run was begun, found {version}" in text
    assert "install medfl 0.2.0 to continue, or begin a new run" in text


@pytest.mark.parametrize("name", ["flwr", "dp-accounting", "opacus"])
def test_libraries_that_send_count_or_step_have_to_match(name: str, begun: Path) -> None:
    change(begun, **{name: "0.0.1"})
    with pytest.raises(ConfigError, match=f"expected {name} 0.0, with which"):
        require_same_versions(begun)


@pytest.mark.parametrize("content", ["", "{", "[]", "[1]", '{"medfl": 1}'])
def test_an_unreadable_record_of_versions_is_refused(content: str, begun: Path) -> None:
    (begun / FILE).write_text(content)
    with pytest.raises(ConfigError, match="expected"):
        require_same_versions(begun)


def test_a_new_run_notes_its_versions_and_a_resumed_one_is_held_to_them(
    federation: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = federation.study()  # type: ignore[attr-defined]
    out = tmp_path / "run"
    prepare_folder(out, study=study, resume=False)
    prepare_folder(out, study=study, resume=True)
    monkeypatch.setattr(versions, "__version__", "0.3.0")
    with pytest.raises(ConfigError, match=r"expected medfl 0\.2"):
        prepare_folder(out, study=study, resume=True)
