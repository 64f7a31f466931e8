"""Every mistake of a user ends in one clear sentence and an exit code, never in a traceback."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from medfl import __version__
from medfl.cli import app
from medfl.phantom.hospitals import write_hospitals

COMMANDS = ("phantom", "check", "predict", "plan", "simulate", "report", "budget", "ledger init")


Medfl = Callable[..., Any]


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tiny hospitals with their site files."""
    folder = tmp_path_factory.mktemp("cli") / "hospitals"
    write_hospitals(
        folder,
        patients=(2, 2, 2, 2),
        shape=(20, 20, 16),
        spacing=(9.0, 9.0, 10.0),
        skull_stripped=True,
        seed=3,
        on_patient=lambda: None,
    )
    return folder


@pytest.fixture
def hospital(hospitals: Path, tmp_path: Path) -> Path:
    """A site file of a hospital, which needs a ledger."""
    text = (hospitals / "east.toml").read_text()
    for old, new in {
        "open-data": "hospital",
        "= true": "= false",
        'root = "east"': f'root = "{hospitals / "east"}"',
    }.items():
        text = text.replace(old, new)
    path = tmp_path / "east.toml"
    path.write_text(text)
    return path


def refused(ended: Any, code: int, *parts: object) -> None:
    """One sentence on standard error, with all of the parts."""
    assert ended.out == ""
    ended.refused(code, *parts)


MISTAKES: dict[str, tuple[Callable[[str], str | bytes], tuple[str, ...]]] = {
    "unknown key": (
        lambda text: text.replace("rounds = 2", "rounds = 2\nround = 2"),
        ("key training.round: unknown key",),
    ),
    "wrong type": (
        lambda text: text.replace("epsilon = 8.0", 'epsilon = "8"'),
        ("key privacy.epsilon", "valid number", "found '8'"),
    ),
    "doubled key": (
        lambda text: text.replace("rounds = 2", "rounds = 2\nrounds = 3"),
        ("expected TOML", "Cannot overwrite a value", "line 1"),
    ),
    "date": (
        lambda text: text.replace("rounds = 2", "rounds = 2025-01-01"),
        ("found a date or time",),
    ),
    "10 MB": (
        lambda text: text + "#" * 10_000_000,
        ("expected at most 1000000 bytes", "found 100"),
    ),
    "no text": (lambda _: b"\xff\xff\xff", ("expected text in UTF-8 or UTF-16",)),
    "empty": (lambda _: "", ("key id: required, but missing",)),
}


@pytest.mark.parametrize("command", ["plan", "simulate"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_study_file_is_named(
    mistake: str, command: str, medfl: Medfl, study: Path, hospitals: Path, tmp_path: Path
) -> None:
    spoil, parts = MISTAKES[mistake]
    content = spoil(study.read_text())
    study.write_bytes(content if isinstance(content, bytes) else content.encode())
    out = ("--out", tmp_path / "run") if command == "simulate" else ()
    refused(medfl(command, study, hospitals / "east.toml", *out), 2, study, *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["check", "budget", "ledger init"])
def test_a_mistake_in_a_site_file_is_named(
    command: str, medfl: Medfl, hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEDFL_TEST_DATA", raising=False)
    text = hospital.read_text()
    for new, part in {
        'root = "${MEDFL_TEST_DATA}/north"': "environment variable MEDFL_TEST_DATA to be set",
        "root = 5": "found 5",
        'rood = "x"': "key data.rood: unknown key",
    }.items():
        start = text.index("root = ")
        spoiled = text[:start] + new + text[text.index("\n", start) :]
        hospital.write_text(spoiled)
        refused(medfl(*command.split(), hospital), 2, hospital, "data.", part)


def test_a_missing_file_is_named(medfl: Medfl, study: Path, tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    refused(medfl("plan", study, missing), 2, missing, "No such file")
    refused(medfl("check", missing), 2, missing, "No such file")
    refused(medfl("report", tmp_path / "no run"), 1, tmp_path / "no run")


@pytest.mark.slow
def test_files_written_on_windows_are_read(medfl: Medfl, study: Path, hospitals: Path) -> None:
    study.write_bytes(b"\xef\xbb\xbf" + study.read_text().replace("\n", "\r\n").encode())
    assert medfl("plan", study, hospitals / "east.toml").code == 0


def test_relative_paths_of_a_site_file_do_not_depend_on_the_working_folder(
    medfl: Medfl, hospitals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = medfl("check", hospitals / "east.toml", "--json")
    assert all(finding["rule"] != "a folder" for finding in json.loads(ended.out))
    assert ended.code == 0


def test_a_plan_is_json_that_says_what_each_site_will_spend(
    medfl: Medfl, study: Path, hospitals: Path
) -> None:
    ended = medfl("plan", study, hospitals / "east.toml", hospitals / "west.toml", "--json")
    assert ended.code == 0
    plans = json.loads(ended.out)["sites"]
    assert [plan["site"] for plan in plans] == ["east", "west"]
    for plan in plans:
        assert plan["steps"] == 2
        assert plan["epsilon_before"] == 0.0
        assert 7.9 < plan["epsilon"] <= 8.0
        assert plan["divisor"] == pytest.approx(0.5 * plan["declared_patients"])
        assert plan["noise_per_coordinate"] == pytest.approx(
            plan["noise_multiplier"] / plan["divisor"]
        )


def test_a_plan_reads_no_image_and_writes_nothing(
    medfl: Medfl, study: Path, hospitals: Path, tmp_path: Path
) -> None:
    site = tmp_path / "sites" / "east.toml"
    site.parent.mkdir()
    site.write_text((hospitals / "east.toml").read_text())
    ended = medfl("plan", study, site)
    assert ended.code == 0
    assert "east" in ended.out
    assert list(site.parent.iterdir()) == [site]


def test_a_hospital_without_a_ledger_is_refused(
    medfl: Medfl, study: Path, hospital: Path, tmp_path: Path
) -> None:
    for command in (("plan", study, hospital), ("budget", hospital)):
        refused(medfl(*command), 3, "ledger.sqlite", "found none", "medfl ledger init")
    assert not (tmp_path / "state" / "east" / "ledger").exists()


def test_a_ledger_is_made_once(medfl: Medfl, hospital: Path, study: Path, tmp_path: Path) -> None:
    medfl("site", "init", tmp_path / "state" / "east")
    first = medfl("ledger", "init", hospital, "--yes")
    assert first.code == 0, first.err
    assert "budget epsilon 10" in first.out
    refused(medfl("ledger", "init", hospital, "--yes"), 3, "never replaced")
    ended = medfl("budget", hospital, "--json")
    found = json.loads(ended.out)
    assert (found["site"], found["epsilon"], found["left"]) == ("east", 0.0, 10.0)
    assert medfl("plan", study, hospital).code == 0


def test_a_ledger_that_was_cut_is_refused(medfl: Medfl, hospital: Path, tmp_path: Path) -> None:
    medfl("site", "init", tmp_path / "state" / "east")
    medfl("ledger", "init", hospital, "--yes")
    file = tmp_path / "state" / "east" / "ledger" / "ledger.sqlite"
    file.write_bytes(file.read_bytes()[:1000])
    refused(medfl("budget", hospital), 3, "ledger")


def test_a_run_is_not_written_over_files(
    medfl: Medfl, study: Path, hospitals: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    ended = medfl("simulate", study, hospitals / "east.toml", "--out", out)
    refused(ended, 2, out, "expected a new or empty folder", "--resume")
    assert [file.name for file in out.iterdir()] == ["thesis.tex"]
    ended = medfl("simulate", study, hospitals / "east.toml", "--out", out, "--resume")
    refused(ended, 2, out, "found no run")
    ended = medfl("simulate", study, hospitals / "east.toml", "--out", out / "thesis.tex")
    refused(ended, 2, "expected a new or empty folder")


def test_sites_that_do_not_fit_the_study_are_refused(
    medfl: Medfl, study: Path, hospitals: Path, hospital: Path, tmp_path: Path
) -> None:
    east, out = hospitals / "east.toml", ("--out", tmp_path / "run")
    refused(medfl("simulate", study, east, east, *out), 2, "found several with the names ['east']")
    tiny = study.read_text()
    study.write_text(tiny.replace("min_sites = 1", "min_sites = 3"))
    refused(medfl("simulate", study, east, *out), 2, "aggregation.min_sites = 3", "found 1")
    study.write_text(tiny.replace("pictures = 0", 'baselines = ["non-private"]'))
    refused(medfl("simulate", study, hospital, *out), 2, "allow_baselines", "['east']")
    assert not (tmp_path / "run").exists()


def test_a_network_that_cannot_be_trained_is_refused(
    medfl: Medfl, study: Path, hospitals: Path, tmp_path: Path
) -> None:
    tiny = study.read_text()
    for old, new, part in (
        ('"SegResNet"', '"SegResNot"', "near: SegResNet"),
        ("init_filters = 8", 'norm = "batch", init_filters = 8', "BatchNorm3d"),
        ("init_filters = 8", "init_filter = 8", "unknown ['init_filter']"),
        ("[16, 16, 16]", "[15, 16, 16]", "takes crops of (15, 16, 16)"),
    ):
        study.write_text(tiny.replace(old, new))
        ended = medfl("simulate", study, hospitals / "east.toml", "--out", tmp_path / "run")
        refused(ended, 2, "network", part)
    assert not (tmp_path / "run").exists()


def test_phantoms_are_not_written_over_files(medfl: Medfl, hospitals: Path) -> None:
    for out in (hospitals, hospitals / "east.toml"):
        refused(medfl("phantom", out), 2, out, "expected a new or empty folder")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with random weights."""
    from medfl.segmentation.model_file import ModelSpec, model_bytes
    from medfl.segmentation.networks import trainable_state

    spec = ModelSpec(
        network="SegResNet",
        arguments={"init_filters": 8, "blocks_down": (1, 1), "blocks_up": (1,)},
        modalities=("t1c", "t2f"),
        regions=("WT", "ET"),
        spacing="native",
        crop_size=(16, 16, 16),
        window_size=(16, 16, 16),
    )
    path = tmp_path_factory.mktemp("model") / "final.safetensors"
    path.write_bytes(model_bytes(trainable_state(spec.build(seed=1)), spec=spec, provenance={}))
    return path


@pytest.fixture
def case(hospitals: Path, tmp_path: Path) -> Path:
    """A copy of one case's images, without its mask."""
    source = sorted(path for path in (hospitals / "east").iterdir() if path.is_dir())[0]
    folder = tmp_path / source.name
    folder.mkdir()
    for file in source.iterdir():
        if "seg" not in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_mask_is_written_once(medfl: Medfl, case: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks" / "mask.nii.gz"
    ended = medfl("predict", case, "--model", model, "-o", out)
    assert ended.code == 0, ended.err
    assert "not a medical device" in ended.out
    before = out.read_bytes()
    refused(medfl("predict", case, "--model", model, "-o", out), 2, out, "found one that exists")
    assert out.read_bytes() == before


def test_a_case_that_lacks_a_modality_is_refused(
    medfl: Medfl, case: Path, model: Path, tmp_path: Path
) -> None:
    (missing,) = case.glob("*_t1ce.nii.gz")
    missing.unlink()
    ended = medfl("predict", case, "--model", model, "-o", tmp_path / "mask.nii.gz")
    refused(ended, 2, case, "t1ce")
    assert not (tmp_path / "mask.nii.gz").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("crop_size", [10**9, 16, 16]),
        ("crop_size", [0, 16, 16]),
        ("arguments", {"blocks_down": [1, 10**9]}),
        ("network", "../SegResNet"),
        ("modalities", ["t2f", "t1c"]),
        ("modalities", 3),
        ("spacing", [1e-9, 1, 1]),
        ("regions", ["WT", "whole"]),
    ],
)
def test_a_forged_model_cannot_keep_the_machine_busy(
    key: str, value: object, medfl: Medfl, case: Path, model: Path, tmp_path: Path
) -> None:
    with safe_open(model, framework="pt") as file:
        metadata = dict(file.metadata())
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata["spec"] = json.dumps(json.loads(metadata["spec"]) | {key: value})
    forged = tmp_path / "forged.safetensors"
    save_file(weights, forged, metadata=metadata)
    ended = medfl("predict", case, "--model", forged, "-o", tmp_path / "mask.nii.gz")
    refused(ended, 2, "expected")


def test_a_model_file_of_something_else_is_refused(
    medfl: Medfl, case: Path, model: Path, study: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import save_file

    foreign, cut = tmp_path / "foreign.safetensors", tmp_path / "cut.safetensors"
    save_file({"w": torch.zeros(3)}, foreign)
    cut.write_bytes(model.read_bytes()[:-10])
    for path in (foreign, cut, study, tmp_path, tmp_path / "none"):
        ended = medfl("predict", case, "--model", path, "-o", tmp_path / "mask.nii.gz")
        refused(ended, 2, path, "expected")


def test_wrong_options_of_predict_are_named(
    medfl: Medfl, case: Path, model: Path, study: Path, tmp_path: Path
) -> None:
    mask = tmp_path / "mask.nii.gz"
    ended = medfl("predict", case, "--model", model, "-o", tmp_path / "mask.png")
    refused(ended, 2, "--out", "'mask.png'")
    ended = medfl("predict", tmp_path / "nobody", "--model", model, "-o", mask)
    refused(ended, 2, tmp_path / "nobody")
    ended = medfl("predict", case, "--model", model, "-o", mask, "--device", "gpu")
    refused(ended, 2, "--device", "'gpu'")
    ended = medfl("predict", case, "--model", model, "-o", study / "mask.nii.gz")
    refused(ended, 1, study)


@pytest.mark.parametrize("arguments", [(), ("frobnicate",), ("plan",), ("plan", "--frob")])
def test_wrong_usage_shows_how_to_get_help(arguments: tuple[str, ...], medfl: Medfl) -> None:
    ended = medfl(*arguments)
    assert ended.code == 2
    assert "Usage: " in ended.out + ended.err
    assert "--help" in ended.out + ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_says_more_than_one_sentence(
    command: str, medfl: Medfl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    ended = medfl(*command.split(), "--help")
    assert ended.code == 0
    text = ended.out.partition("Usage:")[2].partition("╭")[0]
    sentences = [part for part in text.replace("\n", " ").split(". ") if part.strip()]
    assert len(sentences) >= 2, text


def test_the_help_lists_every_command(medfl: Medfl) -> None:
    ended = medfl("--help")
    for command in COMMANDS:
        assert f" {command.split()[0]} " in ended.out


def test_the_version_is_printed(medfl: Medfl) -> None:
    ended = medfl("--version")
    assert (ended.code, ended.out) == (0, f"medfl {__version__}\n")


def test_windows_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 2
    text = " ".join(capsys.readouterr().err.split())
    assert text.startswith("error: Expected Linux or macOS")
    assert "WSL 2" in text
    assert "Traceback" not in text
