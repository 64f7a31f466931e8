"""The demo's path in small, as commands; every file that comes out is opened and looked into."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import dp_accounting
import matplotlib.image
import nibabel
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SITES = ("north", "east", "south", "west")
STUDY = """
id = "small"
seed = 3

[input]
modalities = ["t1n", "t1c", "t2w", "t2f"]
regions = ["TC", "WT", "ET"]
crop_size = [16, 16, 16]

[network]
name = "SegResNet"
arguments = { init_filters = 8, blocks_down = [1, 1], blocks_up = [1] }

[privacy]
epsilon = 6.0
sampling_prob = 0.4

[training]
rounds = 3
local_steps = 2
optimizer = "sgd"
learning_rate = 1.0

[aggregation]
strategy = "fedadam"
server_learning_rate = 3e-3
ema_decay = 0.5
min_sites = 3

[evaluation]
every = 2
overlap = 0.0
baselines = ["initial-only", "non-private", "local-only", "threshold"]
pictures = 1

[synthetic]
shape = [32, 32, 24]
spacing = [5.6, 5.6, 6.8]
skull_stripped = true
seed = 500
pretraining_patients = 3
pretraining_steps = 3
"""


def medfl(*arguments: str | Path) -> str:
    """Run the command line in a process of its own, as a person would."""
    code = "import sys; from medfl.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hospitals, a study and its finished run."""
    root = tmp_path_factory.mktemp("study")
    sizes = ("--patients", "8", "8", "4", "4", "--shape", "32", "32", "24")
    medfl("phantom", root / "hospitals", *sizes, "--spacing", "5.6", "5.6", "6.8")
    (root / "study.toml").write_text(STUDY)
    files = [root / "hospitals" / f"{name}.toml" for name in SITES]
    for file in files:
        assert not [f for f in json.loads(medfl("check", file, "--json")) if is_error(f)]
    plan = json.loads(medfl("plan", root / "study.toml", *files, "--json"))["sites"]
    assert [row["site"] for row in plan] == list(SITES)
    assert all(5.9 < row["epsilon"] <= 6.0 for row in plan)
    printed = medfl("simulate", root / "study.toml", *files, "--out", root / "run")
    (root / "printed.txt").write_text(printed)
    return root


def is_error(finding: dict[str, Any]) -> bool:
    return finding["severity"] == "error"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def events(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "run" / "federation_ledger.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_epsilon_follows_from_the_recorded_events(folder: Path) -> None:
    for entry in read_json(folder / "run" / "privacy.json"):
        accountant = PLDAccountant()
        for event in events(folder):
            if event["site"] == entry["site"]:
                mechanism = event["mechanism"]
                gaussian = dp_accounting.GaussianDpEvent(mechanism["noise_multiplier"])
                step = dp_accounting.PoissonSampledDpEvent(mechanism["sampling_prob"], gaussian)
                accountant.compose(step, event["steps"])
        assert entry["epsilon_pld"] == pytest.approx(accountant.get_epsilon(entry["delta"]), 1e-3)
        assert entry["epsilon_prv"] == pytest.approx(entry["epsilon_pld"], abs=0.02)
        assert entry["steps"] == 6
        assert entry["noise_origin"] == "operating-system"


def test_every_round_of_every_site_is_in_the_tables(folder: Path) -> None:
    expected = {(str(number), site) for number in (1, 2, 3) for site in SITES}
    rows = read_table(folder / "run" / "rounds.csv")
    assert {(row["round"], row["site"]) for row in rows} == expected
    assert {row["outcome"] for row in rows} == {"admitted"}
    lines = (folder / "run" / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3]
    assert {(str(e["round"]), e["site"]) for e in events(folder)} == expected


def test_every_model_is_scored_on_the_same_held_out_patients(folder: Path) -> None:
    rows = read_table(folder / "run" / "metrics.csv")
    patients = {
        variant: {row["patient"] for row in rows if row["variant"] == variant}
        for variant in {row["variant"] for row in rows}
    }
    assert set(patients) == {
        "federated",
        "initial-only",
        "non-private",
        "local-only",
        "threshold",
    }
    assert all(chosen == patients["federated"] for chosen in patients.values())
    assert len(patients["federated"]) == 2 + 2 + 1 + 1
    names = {path.name for name in SITES for path in (folder / "hospitals" / name).iterdir()}
    assert not names & patients["federated"]


def test_checkpoints_say_what_they_are(folder: Path) -> None:
    checkpoints = folder / "run" / "checkpoints"
    for name in ("initial", "round-0002", "round-0003", "final"):
        with safe_open(checkpoints / f"{name}.safetensors", framework="np") as file:
            metadata = file.metadata()
            assert all(np.isfinite(file.get_tensor(key)).all() for key in file.keys())  # noqa: SIM118
        spec, provenance = json.loads(metadata["spec"]), json.loads(metadata["provenance"])
        assert spec["modalities"] == ["t1n", "t1c", "t2w", "t2f"]
        assert spec["regions"] == ["TC", "WT", "ET"]
        assert provenance["label_schemes"] == ["brats"]
        assert set(provenance["mechanisms"]) == set(SITES)
        assert "not a medical device" in metadata["notice"]


def test_private_training_moved_the_model(folder: Path) -> None:
    def weights(name: str) -> np.ndarray[Any, Any]:
        path = folder / "run" / "checkpoints" / f"{name}.safetensors"
        with safe_open(path, framework="np") as file:
            return np.concatenate([file.get_tensor(key).ravel() for key in sorted(file.keys())])

    assert np.abs(weights("final") - weights("initial")).max() > 1e-4


def test_configuration_and_versions_are_kept(folder: Path) -> None:
    run = folder / "run"
    assert read_json(run / "study.json")["id"] == "small"
    assert [site["name"] for site in read_json(run / "sites.json")] == sorted(SITES)
    environment = read_json(run / "environment.json")
    assert environment["command"].startswith("medfl simulate ")
    assert {"medfl", "torch", "monai", "opacus", "flwr", "commit"} <= set(environment)


def test_tensorboard_shows_epsilon_and_dice(folder: Path) -> None:
    log = EventAccumulator(str(folder / "run" / "tensorboard"))
    log.Reload()
    tags = log.Tags()["scalars"]
    assert {f"epsilon/{site}" for site in SITES} <= set(tags)
    assert {f"dice-WT/{site}" for site in SITES} <= set(tags)
    values = [point.value for point in log.Scalars("epsilon/north")]
    assert values == sorted(values)
    assert len(values) == 3


def test_pictures_are_of_a_synthetic_patient_and_say_so(folder: Path) -> None:
    case = folder / "run" / "predictions" / "synthetic-1"
    image, truth, mask = (
        nibabel.load(case / f"{name}.nii.gz") for name in ("t2f", "truth", "segmentation")
    )
    assert image.shape == truth.shape == mask.shape == (32, 32, 24)
    assert b"not a medical device" in bytes(mask.header["descrip"])
    assert set(np.unique(np.asanyarray(truth.dataobj))) <= {0, 1, 2, 4}
    assert np.asanyarray(truth.dataobj).any()


def test_figures_show_something(folder: Path) -> None:
    figures = list((folder / "run" / "figures").glob("*.png"))
    assert len(figures) >= 4
    assert all(matplotlib.image.imread(path).std() > 0.01 for path in figures)


class Text(HTMLParser):
    """Text and sources of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.sources: list[str] = []

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("img", "script", "link", "iframe"):
            self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_report_is_one_offline_page_with_the_runs_numbers(folder: Path) -> None:
    page = Text()
    page.feed((folder / "run" / "report.html").read_text())
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    summary = read_json(folder / "run" / "summary.json")
    for site in SITES:
        assert site in page.text
        assert re.search(rf"{summary['sites'][site]['epsilon']:.1f}|6\.00", page.text)
    assert f"{summary['dice']['federated']['WT']:.2f}" in page.text


def test_person_at_the_terminal_learns_epsilon_dice_and_where_it_is(folder: Path) -> None:
    printed = (folder / "printed.txt").read_text()
    assert "/ 10" in printed
    assert all(word in printed for word in (*SITES, "Dice WT", "report.html", "non-private"))


def test_final_model_segments_a_case_on_its_own_grid(folder: Path) -> None:
    case = sorted((folder / "hospitals" / "west").iterdir())[0]
    model = folder / "run" / "checkpoints" / "final.safetensors"
    out = folder / "mask.nii.gz"
    medfl("predict", "--model", model, case, "-o", out)
    mask, source = nibabel.load(out), nibabel.load(next(case.glob("*flair.nii.gz")))
    assert mask.shape == source.shape
    assert np.array_equal(mask.affine, source.affine)
    assert mask.get_data_dtype() == np.uint8
    assert set(np.unique(np.asanyarray(mask.dataobj))) <= {0, 1, 2, 4}


def test_ledger_of_a_site_agrees_with_the_servers(folder: Path) -> None:
    for entry in read_json(folder / "run" / "privacy.json"):
        site = folder / "hospitals" / f"{entry['site']}.toml"
        spent = json.loads(medfl("budget", site, "--run", folder / "run", "--json"))
        assert spent["epsilon"] == pytest.approx(entry["epsilon_pld"], abs=0.01)
        assert spent["wasted"] == 0
        assert [run["steps"] for run in spent["runs"]] == [6]
        assert [run["charges"] == run["released"] == 3 for run in spent["runs"]] == [True]
