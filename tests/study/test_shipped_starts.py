"""Starting files that come with medfl: named by a study, described by it, and listed."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medfl.cli import main
from medfl.config import StudyConfig, load_study
from medfl.deployment.coordinator.job import Job
from medfl.errors import ModelError
from medfl.protocol.study_model import model_spec
from medfl.study import shipped_starts
from medfl.study.shipped_starts import MAX_BYTES, ShippedStart, shipped_file
from medfl.study.simulation import prepare_folder
from medfl.study.starting_point import FILE, ORIGIN, first_weights, write_starting_point

STUDIES = sorted((Path(__file__).parents[2] / "site_configs").glob("*/study.toml"))
UNKNOWN = f'start = {{ shipped = "nobody", sha256 = "{"0" * 64}" }}\n'


def unwatched(_done: int, _total: int) -> None:
    """Nobody looks."""


@pytest.fixture(scope="module")
def made(pretraining_study: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one starting file, and the study that it was made from."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "study.toml").write_text(pretraining_study)
    write_starting_point(
        load_study(folder / "study.toml"),
        out=folder / "starts" / "tiny.safetensors",
        threads=1,
        drawn=unwatched,
        advance=unwatched,
    )
    return folder


@pytest.fixture
def installed(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation that ships the file."""
    monkeypatch.setattr(
        shipped_starts, "FOLDER", shutil.copytree(made / "starts", tmp_path / "starts")
    )
    return tmp_path / "starts" / "tiny.safetensors"


@pytest.fixture
def medfl(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line: exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medfl", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        seen = capsys.readouterr()
        return int(end.value.code or 0), seen.out, seen.err

    return run


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made / "study.toml", tmp_path))


def problems_of(studies: list[StudyConfig]) -> list[str]:
    """What is wrong with the files that this installation ships, given all studies."""
    found, named = [], {}
    for study in studies:
        start = study.synthetic and study.synthetic.start
        if start and start.shipped:
            named[start.shipped] = study
    for each in shipped_starts.shipped_starts():
        if each.name not in named:
            found.append(f"{each.name}: no study says how it is made")
        elif not describes(each, named.pop(each.name)):
            found.append(f"{each.name}: the study says otherwise")
        if shipped_file(each.name).stat().st_size > MAX_BYTES:
            found.append(f"{each.name}: large")
    return found + [f"{name}: not there" for name in named]


def describes(each: ShippedStart, study: StudyConfig) -> bool:
    """Whether a study says exactly what its file says, with the file's digest."""
    assert study.synthetic is not None
    assert study.synthetic.start is not None
    return (
        each.sha256 == study.synthetic.start.sha256
        and each.spec == model_spec(study)
        and each.provenance["origin"] == ORIGIN
        and each.provenance["synthetic"]
        == study.synthetic.model_dump(mode="json", exclude={"start"})
        and each.provenance["seed"] == study.seed
        and each.provenance["study"] == study.id
        and each.provenance["missing_modality"] == study.input.missing_modality
    )


def test_every_file_of_this_installation_is_small_and_described_by_its_study() -> None:
    assert problems_of([load_study(path) for path in STUDIES]) == []


def test_a_file_that_its_study_does_not_describe_is_noticed(
    installed: Path, study: Path, medfl: Any
) -> None:
    assert problems_of([load_study(study)]) == ["tiny: no study says how it is made"]
    line = line_of(medfl("starts")[1])
    study.write_text(study.read_text() + line)
    good = load_study(study)
    assert problems_of([good]) == []
    assert problems_of([good.model_copy(update={"seed": 9})]) == ["tiny: the study says otherwise"]
    study.write_text(study.read_text().replace("pretraining_steps = 2", "pretraining_steps = 3"))
    assert problems_of([load_study(study)]) == ["tiny: the study says otherwise"]
    installed.unlink()
    assert problems_of([good]) == ["tiny: not there"]


def line_of(text: str) -> str:
    (line,) = re.findall(r"^ *(start = .*)$", text, flags=re.MULTILINE)
    return f"{line}\n"


def test_the_listed_line_makes_a_study_start_from_the_file(
    installed: Path, study: Path, medfl: Any, tmp_path: Path
) -> None:
    code, out, _ = medfl("starts")
    assert code == 0
    assert "tiny: t1c, t2f to WT, ET; SegResNet, spacing native, crops of 16 x 16 x 16" in out
    assert "2 steps on 2 synthetic patients of narrow variety" in out
    study.write_text(study.read_text() + line_of(out))
    started, run = load_study(study), tmp_path / "run"
    prepare_folder(run, study=started, resume=False)
    assert (run / FILE).read_bytes() == installed.read_bytes()
    expected = load_file(installed)
    # The run folder keeps what is needed: another version of medfl may ship another file.
    installed.unlink()
    prepare_folder(run, study=started, resume=True)
    found = first_weights(started, out=run, threads=1, advance=unwatched)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    job = Job(run="first", study=started, out=run, sites={})
    assert Job.model_validate_json(job.model_dump_json()).study.digest == started.digest


def test_the_study_that_names_the_file_makes_it_again(
    installed: Path, study: Path, medfl: Any, tmp_path: Path
) -> None:
    study.write_text(study.read_text() + line_of(medfl("starts")[1]))
    again = tmp_path / "again.safetensors"
    code, _, errors = medfl("pretrain", study, "-o", again)
    assert code == 0, errors
    assert again.read_bytes() == installed.read_bytes()


def test_a_name_that_is_not_shipped_is_refused_with_those_that_are(
    installed: Path, study: Path, federation: Any, medfl: Any, tmp_path: Path
) -> None:
    study.write_text(study.read_text() + UNKNOWN)
    site, run = federation.files["east"], tmp_path / "run"
    code, _, errors = medfl("simulate", study, site, "--out", run)
    assert code == 2
    assert "a start that this medfl ships (tiny), found 'nobody'" in " ".join(errors.split())
    assert not run.exists()
    installed.unlink()
    code, _, errors = medfl("simulate", study, site, "--out", run)
    assert code == 2
    assert "ships (none at all), found 'nobody'" in " ".join(errors.split())


def test_a_file_of_another_version_than_the_study_pins_is_refused(
    installed: Path, study: Path, medfl: Any, tmp_path: Path
) -> None:
    study.write_text(study.read_text() + line_of(medfl("starts")[1]))
    installed.write_bytes(installed.read_bytes() + b"\0")
    with pytest.raises(ModelError):
        prepare_folder(tmp_path / "run", study=load_study(study), resume=False)
    assert not (tmp_path / "run").exists()


def test_an_installation_without_files_says_so(installed: Path, medfl: Any) -> None:
    installed.unlink()
    code, out, _ = medfl("starts")
    assert code == 0
    assert "no starting model" in out
