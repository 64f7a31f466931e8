"""The figure for real cases: scored as `medfl evaluate` does, beside the best threshold."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from medfl.cli.pretrain import write_with_progress
from medfl.config import load_site, load_study
from medfl.config.open_data_site import open_data_site
from medfl.config.site import MODALITY_ORDER
from medfl.phantom.patient import hospital_looks, write_hospital
from medfl.segmentation.metrics import score
from medfl.site.state import simulated_state


@pytest.fixture
def pipeline(recipe: Callable[[str], ModuleType]) -> ModuleType:
    return recipe("pretraining")


@pytest.fixture
def collection(
    pipeline: ModuleType,
    pretraining_study: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> ModuleType:
    """Two sites of three synthetic patients each stand for a collection of real ones."""
    for number, site in enumerate(("east", "west")):
        write_hospital(
            tmp_path / "data" / "tiny" / site,
            patients=3,
            shape=(24, 28, 20),
            spacing=(7.0, 6.5, 8.0),
            look=hospital_looks()[site],
            skull_stripped=True,
            seed=5,
            first_number=10 * number,
            on_patient=lambda _: None,
        )
    (tmp_path / "studies" / "tiny").mkdir(parents=True)
    (tmp_path / "studies" / "tiny" / "study.toml").write_text(pretraining_study)
    tiny = pipeline.Collection(
        name="tiny",
        layout="brats2021",
        label_scheme="brats",
        modalities=MODALITY_ORDER,
        has_sites=True,
    )
    monkeypatch.setattr(pipeline, "COLLECTIONS", {"tiny": tiny})
    monkeypatch.setattr(pipeline, "STUDIES", tmp_path / "studies")
    monkeypatch.setenv("MEDFL_REAL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "80")
    return pipeline


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_dice_of_every_level_is_that_of_the_mask_at_this_level(
    share: float, pipeline: ModuleType
) -> None:
    random = np.random.default_rng(3)
    image = random.uniform(0, 4, (6, 7, 5)).round(2).astype(np.float32)
    inside = random.random(image.shape) < share
    found = pipeline.dice_by_level(image, inside, levels=pipeline.LEVELS)
    for number in (0, 17, 150, 300):
        (wanted,) = score(
            torch.from_numpy(image > np.float32(pipeline.LEVELS[number]))[None],
            torch.from_numpy(inside)[None],
            regions=("WT",),
            spacing_mm=(1, 1, 1),
            with_hd95=False,
        )
        assert found[number] == pytest.approx(wanted.dice, abs=1e-6)


def test_the_threshold_is_the_best_for_these_very_patients(
    collection: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = collection.COLLECTIONS["tiny"].sites(collection._real_data())
    rival = collection.best_threshold(sites, "WT")
    assert rival.modality == "t2f"
    assert len(rival.dice) == 6
    best = np.mean(list(rival.dice.values()))
    for level in (0.8, 1.0, 1.2, 1.5, 2.0):
        monkeypatch.setattr(collection, "LEVELS", np.array([level]))
        other = collection.best_threshold(sites, "WT")
        assert np.mean(list(other.dice.values())) <= best
    assert best > 0.2


def test_patients_who_may_not_be_looked_at_are_those_that_the_site_files_hold_out(
    pipeline: ModuleType, real_data: Path
) -> None:
    """Whatever is tuned on the others can be judged by the held-out patients of a study."""
    collection = pipeline.COLLECTIONS["lgg"]
    aside = collection.aside(collection.sites(real_data))
    configs = Path(__file__).parents[2] / "site_configs" / "lgg"
    held_out = set()
    for file in sorted(configs.glob("[A-Z]*.toml")):
        site = load_site(file)
        parts = simulated_state(site, run_folder=Path("none")).patients
        held_out |= {(site.name, patient.patient_id) for patient in parts.held_out}
    assert len(held_out) == 22
    assert aside == held_out


@pytest.mark.slow
def test_one_command_trains_scores_and_prints_a_row_a_region(
    collection: ModuleType, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ended = CliRunner().invoke(collection.app, ["tiny", "--out", str(out)])
    assert ended.exit_code == 0, ended.output
    number, interval = r"-?\d\.\d{3}", r"-?\d\.\d{3} to -?\d\.\d{3}"
    for region, modality in (("WT", "t2f"), ("ET", "t1c")):
        row = rf"tiny {region} │ 6 │ +{number} │ +{number} │ +{number} │\n"
        row += rf"│ +│ +│ +{interval} │ +{interval} │ +{interval} │\n"
        row += rf"│ +│ +│ +│ +{modality} > \d\.\d\d │"
        assert re.search(row, ended.output), ended.output
        with (out / "tiny" / f"{region}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["site"] for row in rows} == {"east", "west"}
        assert len(rows) == 6
    assert (out / "tiny" / "cases.png").stat().st_size > 10_000
    # The model is scored again without training it again.
    model = str(out / "tiny" / collection.MODEL)
    again = CliRunner().invoke(
        collection.app, ["tiny", "--model", model, "--out", str(tmp_path / "again")]
    )
    assert again.exit_code == 0, again.output
    assert not (tmp_path / "again" / "tiny" / collection.MODEL).exists()
    for region in ("WT", "ET"):
        name = f"tiny/{region}.csv"
        assert (out / name).read_text() == (tmp_path / "again" / name).read_text()


def test_a_model_is_not_scored_on_patients_whom_it_has_seen(
    collection: ModuleType, pretraining_study: str, tmp_path: Path
) -> None:
    site = tmp_path / "east.toml"
    site.write_text(
        open_data_site(
            "east",
            about="Synthetic patients",
            root=str(tmp_path / "data" / "tiny" / "east"),
            layout="brats2021",
            label_scheme="brats",
            modalities=MODALITY_ORDER,
            patients=3,
            held_out=0.0,
        )
    )
    path = tmp_path / "public.toml"
    path.write_text(f"{pretraining_study}public_steps = 1\n")
    model = tmp_path / "public.safetensors"
    write_with_progress(load_study(path), out=model, sites=[load_site(site)])
    sites = collection.COLLECTIONS["tiny"].sites(collection._real_data())
    with pytest.raises(typer.BadParameter, match="of the patients of east, found 3 whom it has"):
        collection.require_unseen(model, sites)
    collection.require_unseen(model, {"west": sites["west"]})


@pytest.mark.parametrize("value", ["", "/no/such/folder"])
def test_without_real_data_it_says_what_to_set(
    value: str, pipeline: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEDFL_REAL_DATA", value)
    ended = CliRunner().invoke(pipeline.app, ["--out", str(tmp_path / "out")])
    assert ended.exit_code == 2
    assert "MEDFL_REAL_DATA" in ended.output
    assert not (tmp_path / "out").exists()


def test_results_are_not_overwritten(collection: ModuleType, tmp_path: Path) -> None:
    ended = CliRunner().invoke(collection.app, ["tiny", "--out", str(tmp_path / "data")])
    assert ended.exit_code == 2
    assert "expected a new folder" in ended.output
