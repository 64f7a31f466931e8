"""`medfl plan` says what a study costs and what it may bring, from the files alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from PIL import Image

from medfl.config import load_site
from medfl.privacy.ledger.ledger import Agreement, Ledger
from medfl.privacy.ledger.witness import Witness
from medfl.privacy.mechanism import Mechanism
from medfl.site.state import hospital_state, terms_of

PATIENTS = {"DU": 36, "HT": 28, "CS": 13, "FG": 12}
STUDY = """
id = "gliomas"
[input]
modalities = ["t1c", "t2f"]
regions = ["WT"]
crop_size = [16, 16, 16]
[network]
name = "SegResNet"
arguments = {{ init_filters = 8, blocks_down = [1, 1], blocks_up = [1] }}
[privacy]
epsilon = {epsilon}
sampling_prob = {q}
clip_norm = {clip_norm}
trust = "{trust}"
colluding_sites = {colluding_sites}
[training]
rounds = {rounds}
local_steps = {local_steps}
optimizer = "sgd"
learning_rate = 0.5
[aggregation]
strategy = "fedavg"
min_sites = {min_sites}
"""
SITE = """
name = "{name}"
purpose = "{purpose}"
declared_patients = {patients}
weight = {patients}.0
state = "state/{name}"
[data]
root = "no images here"
layout = "lgg"
label_scheme = "lgg"
modalities = ["t1c", "t2f"]
[privacy]
epsilon = {budget}
max_rounds = {max_rounds}
max_clip_norm = {max_clip_norm}
min_noise_multiplier = {min_noise_multiplier}
trust = {trust}
"""


Medfl = Callable[..., Any]


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Path]:
    """Writes a study file; rounds are few, since every one of them is accounted for."""

    def write(**changed: Any) -> Path:
        values = {
            "epsilon": 8.0, "q": 0.3, "rounds": 6, "local_steps": 2, "clip_norm": 1.0,
            "trust": "local", "colluding_sites": 0, "min_sites": 1,
        } | changed  # fmt: skip
        path = tmp_path / "study.toml"
        path.write_text(STUDY.format(**values))
        return path

    return write


@pytest.fixture
def site(tmp_path: Path) -> Callable[..., Path]:
    """Writes a site file."""

    def write(name: str = "DU", **changed: Any) -> Path:
        values = {
            "purpose": "open-data",
            "patients": PATIENTS.get(name, 20),
            "budget": 10.0,
            "max_rounds": 100,
            "max_clip_norm": 1.0,
            "min_noise_multiplier": 0.5,
            "trust": ["local"],
        } | changed
        path = tmp_path / f"{name}.toml"
        path.write_text(SITE.format(name=name, **values))
        return path

    return write


def refused(ended: Any, code: int, *parts: object) -> None:
    """One sentence on standard error, with all of the parts."""
    ended.refused(code, *parts)


def spent(hospital: Path, *, sigma: float, rounds: int) -> None:
    """Charge the ledger of a hospital with an earlier study."""
    config = load_site(hospital)
    mechanism = Mechanism(
        sampling_prob=0.3,
        noise_multiplier=sigma,
        clip_norm=1.0,
        clipping="fixed",
        local_steps=2,
        declared_patients=config.declared_patients,
    )
    folder = hospital_state(config).ledger_folder
    agreement = Agreement(
        study="earlier",
        proposal="0" * 64,
        mechanism=mechanism,
        members=frozenset({"a"}),
        steps=2 * rounds,
    )
    # Not by `create_ledger`, which asks the witness about the patients: none are here.
    terms = asdict(terms_of(config))
    with Ledger.create(folder, **terms, witness=Witness.of_this_machine()) as ledger:
        ledger.agree("r", agreement)
        for number in range(1, rounds + 1):
            ledger.charge(
                study="earlier", run="r", round=number, message_id=f"m{number}", mechanism=mechanism
            )


@pytest.mark.slow
def test_json_holds_every_figure_of_the_plan(medfl: Medfl, study: Any, site: Any) -> None:
    files = [site("DU"), site("FG", budget=9.0)]
    ended = medfl("plan", study(), *files, "--json")
    assert (ended.code, ended.err) == (0, "")
    report = json.loads(ended.out)
    assert (report["study"], report["target_epsilon"]) == ("gliomas", 8.0)
    assert [row["site"] for row in report["sites"]] == ["DU", "FG"]
    for row, budget in zip(report["sites"], (10.0, 9.0), strict=True):
        assert (row["rounds"], row["local_steps"], row["steps"]) == (6, 2, 12)
        assert row["divisor"] == pytest.approx(0.3 * PATIENTS[row["site"]])
        assert row["noise_per_coordinate"] == pytest.approx(
            row["noise_multiplier"] / row["divisor"]
        )
        ratio = row["noise_per_coordinate"] * math.sqrt(report["parameters"] / 12)
        assert row["noise_to_signal"] == pytest.approx(ratio)
        assert row["epsilon_before"] == 0.0
        assert 7.99 < row["epsilon"] <= 8.0
        assert row["epsilon_budget"] == budget
    assert report["refused"] == {}
    du, fg = report["sites"]
    assert du["noise_multiplier"] == fg["noise_multiplier"]
    assert du["steps_until_spent"] > fg["steps_until_spent"] > 12
    together = report["federation"]
    assert (together["sites"], together["declared_patients"]) == (["DU", "FG"], 48)
    # Weights are the patients here, so that w_i / L_i = 1 / q for both.
    assert together["noise_per_coordinate"] == pytest.approx(
        math.sqrt(2) * du["noise_multiplier"] / (0.3 * 48)
    )


def test_the_network_is_counted_without_an_image(medfl: Medfl, study: Any, site: Any) -> None:
    from monai.networks.nets import SegResNet

    report = json.loads(medfl("plan", study(), site(), "--json").out)
    network = SegResNet(
        init_filters=8, blocks_down=(1, 1), blocks_up=(1,), in_channels=2, out_channels=1
    )
    assert report["parameters"] == sum(p.numel() for p in network.parameters())


def test_a_part_that_the_network_does_not_have_is_named(
    medfl: Medfl, study: Any, site: Any
) -> None:
    path = study()
    path.write_text(
        path.read_text().replace("[aggregation]", 'trainable = ["top.*"]\n[aggregation]')
    )
    refused(medfl("plan", path, site()), 2, "training.trainable", "'norms'", "'top.*'")


@pytest.mark.slow
def test_tables_and_verdicts_fit_a_terminal(medfl: Medfl, study: Any, site: Any) -> None:
    long = "a-hospital-with-a-name-of-forty-letters0"
    files = [site(name, budget=0.5 if name == "FG" else 10.0) for name in (*PATIENTS, long)]
    ended = medfl("plan", study(epsilon=1.0), *files)
    assert (ended.code, ended.err) == (0, "")
    assert max(len(line) for line in ended.out.splitlines()) <= 80
    assert "…" not in ended.out
    text = " ".join(ended.out.split())
    assert (
        "CS alone, 13 patients at epsilon 1: expect no benefit; more patients, more sites," in text
    )
    assert "FG alone, 12 patients at epsilon 0.5: expect no benefit" in text
    assert "Together (5 of 5 sites), 109 patients at epsilon 1: expect no benefit" in text
    assert "rule of thumb" in text


def test_much_less_noise_is_a_better_verdict(medfl: Medfl, study: Any, site: Any) -> None:
    benefits = []
    for patients in (10, 20, 400):
        file = site(patients=patients)
        row = json.loads(medfl("plan", study(), file, "--json").out)["sites"][0]
        benefits.append(row["benefit"])
    assert benefits == ["none", "weak", "usable"]


@pytest.mark.slow
def test_a_hospitals_earlier_studies_are_counted(medfl: Medfl, study: Any, site: Any) -> None:
    fresh, used = site("DU", purpose="hospital"), site("HT", purpose="hospital")
    spent(fresh, sigma=3.0, rounds=0)
    spent(used, sigma=3.0, rounds=5)
    report = json.loads(medfl("plan", study(epsilon=6.0), fresh, used, "--json").out)
    du, ht = report["sites"]
    oracle = PLDAccountant(value_discretization_interval=1e-3)
    gaussian = dp_accounting.GaussianDpEvent(3.0)
    oracle.compose(dp_accounting.PoissonSampledDpEvent(0.3, gaussian), 10)
    assert ht["epsilon_before"] == pytest.approx(oracle.get_epsilon(1e-5), rel=1e-6)
    assert du["epsilon_before"] == 0.0 < du["epsilon"] <= 6.0
    assert ht["epsilon_before"] < ht["epsilon"] <= 10.0
    assert 12 <= ht["steps_until_spent"] < du["steps_until_spent"]


def test_a_budget_that_is_used_up_is_said(medfl: Medfl, study: Any, site: Any) -> None:
    hospital = site("DU", purpose="hospital", budget=3.0)
    spent(hospital, sigma=1.6, rounds=3)
    ended = medfl("plan", study(), hospital)
    refused(ended, 3, "Site DU", "used it up")
    assert ended.out == "DU would answer budget-exceeded.\n"


def test_a_site_without_budget_does_not_hide_what_the_others_may_expect(
    medfl: Medfl, study: Any, site: Any
) -> None:
    hospital, other = site("DU", purpose="hospital", budget=3.0), site("FG")
    spent(hospital, sigma=1.6, rounds=3)
    ended = medfl("plan", study(), hospital, other, "--json")
    refused(ended, 3, "Site DU", "used it up")
    report = json.loads(ended.out)
    assert report["refused"] == {"DU": "budget-exceeded"}
    assert report["federation"]["sites"] == ["FG"]


def test_policy_is_asked_before_anything_is_planned(
    medfl: Medfl, study: Any, site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study of a million steps would keep the planner for hours, for sites that refuse it."""

    def planned(*_: Any, **__: Any) -> None:
        raise AssertionError("planned for a site that refuses")

    monkeypatch.setattr("medfl.study.plan.plan_site", planned)
    refusals = [
        ({"rounds": 10**6}, "rounds <= 100"),
        ({"local_steps": 10**6}, "local_steps <= "),
        ({"clip_norm": 2.0}, "clip_norm <= 1.0"),
    ]
    for changed, rule in refusals:
        refused(medfl("plan", study(**changed), site()), 3, "Site DU", rule)


def test_a_target_that_no_noise_meets_is_said(medfl: Medfl, study: Any, site: Any) -> None:
    ended = medfl("plan", study(epsilon=1e-7), site())
    refused(ended, 3, "Site DU", "cost at most epsilon 1e-07", "12 steps", "found none")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of_study", "of_site", "code", "parts"),
    [
        ({"rounds": 8}, {"max_rounds": 7}, "policy-rounds", ("rounds <= 7", "found 8")),
        (
            {"clip_norm": 2.0},
            {"max_clip_norm": 1.5},
            "policy-clip-norm",
            ("clip_norm <= 1.5", "found 2.0"),
        ),
    ],
)
def test_a_site_that_would_refuse_is_shown_and_ends_the_plan_with_its_rule(
    of_study: dict[str, Any],
    of_site: dict[str, Any],
    code: str,
    parts: tuple[str, ...],
    medfl: Medfl,
    study: Any,
    site: Any,
) -> None:
    willing = {"max_rounds": 100, "max_clip_norm": 5.0}
    files = [site("DU", **willing), site("FG", **(willing | of_site))]
    ended = medfl("plan", study(**of_study), *files, "--json")
    refused(ended, 3, "Site FG", *parts)
    report = json.loads(ended.out)
    assert [row["site"] for row in report["sites"]] == ["DU"]
    assert report["refused"] == {"FG": code}
    assert report["federation"]["sites"] == ["DU"]
    assert report["federation"]["noise_per_coordinate"] == pytest.approx(
        report["sites"][0]["noise_per_coordinate"]
    )
    table = medfl("plan", study(**of_study), *files)
    refused(table, 3, "Site FG", *parts)
    assert f"FG would answer {code}." in table.out
    assert "FG alone" not in table.out
    assert "Together (1 of 2 sites)" in table.out


def test_nothing_is_promised_where_every_site_refuses(medfl: Medfl, study: Any, site: Any) -> None:
    files = [site("DU", max_rounds=2), site("FG", max_rounds=3)]
    ended = medfl("plan", study(), *files, "--json")
    assert ended.code == 3
    du, fg = ended.err.splitlines()
    assert du.startswith("error: Site DU: ") and "rounds <= 2" in du
    assert fg.startswith("Site FG: ") and "rounds <= 3" in fg
    assert json.loads(ended.out)["federation"] is None
    assert "Together" not in medfl("plan", study(), *files).out


def test_the_largest_noise_that_a_file_may_ask_for_is_planned_and_more_is_refused(
    medfl: Medfl, study: Any, site: Any, tmp_path: Path
) -> None:
    picture = tmp_path / "plan.png"
    largest = site(min_noise_multiplier=1e6, patients=1)
    ended = medfl("plan", study(), largest, "--json", "--picture", picture)
    assert (ended.code, ended.err) == (0, "")
    assert picture.stat().st_size > 0
    row = json.loads(ended.out)["sites"][0]
    assert row["noise_multiplier"] == 1e6
    assert row["benefit"] == "none"
    beyond = site(min_noise_multiplier=1e308, patients=1)
    refused(medfl("plan", study(), beyond), 2, "privacy.min_noise_multiplier", "1e+308")


def test_one_site_in_two_files_is_refused(medfl: Medfl, study: Any, site: Any) -> None:
    refused(medfl("plan", study(), site("DU"), site("DU")), 2, "several with the names ['DU']")


def test_the_picture_is_a_png_and_the_table_stands_beside_it(
    medfl: Medfl, study: Any, site: Any, tmp_path: Path
) -> None:
    picture = tmp_path / "plan.png"
    ended = medfl("plan", study(), site("DU"), site("FG"), "--picture", picture)
    assert (ended.code, ended.err) == (0, "")
    assert "Together (2 of 2 sites)" in ended.out
    with Image.open(picture) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 300
    for colour in ("#0072b2", "#b23b00"):  # the line, and the budget
        exact = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        assert (pixels == exact).all(axis=-1).sum() > 100


@pytest.mark.slow
@pytest.mark.parametrize("trust", ["local", "secure"])
def test_both_trust_modes_stand_side_by_side(
    trust: str, medfl: Medfl, study: Any, site: Any, tmp_path: Path
) -> None:
    path, picture = study(local_steps=1, rounds=12, trust=trust, min_sites=3), tmp_path / "plan.png"
    files = [site(name, patients=20, trust=["local", "secure"]) for name in PATIENTS]
    ended = medfl("plan", path, *files, "--json", "--picture", picture)
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(ended.out)["trust_modes"]
    assert found["obstacle"] == ""
    local, secure = found["modes"]
    assert (local["trust"], local["of_study"]) == ("local", trust == "local")
    assert (secure["trust"], secure["of_study"]) == ("secure", trust == "secure")
    # Equal sites: the noise of a sum holds 3 shares for certain, and 4 if all stay.
    ratio = local["noise_per_coordinate"] / secure["noise_per_coordinate"]
    assert ratio == pytest.approx(math.sqrt(3))
    assert local["noise_to_signal"] / secure["noise_to_signal"] == pytest.approx(ratio)
    assert (local["threshold"], secure["threshold"]) == (3, 3)
    assert list(local["epsilons"]) == list(secure["epsilons"]) == ["0", "1", "2", "3"]
    assert len(set(local["epsilons"].values())) == 1
    against = list(secure["epsilons"].values())
    assert against == sorted(against)
    assert against[0] == pytest.approx(local["epsilons"]["0"]) and against[0] <= 8.0 < against[1]
    shown = medfl("plan", path, *files).out
    assert max(len(line) for line in shown.splitlines()) <= 80
    text = " ".join(shown.split())
    assert "Trust modes: epsilon against the server with other sites" in text
    assert found["advice"] in text
    if trust == "local":
        assert found["advice"].startswith('trust = "secure" would divide')
        assert "by 1.7, and together with min_sites = 4" in found["advice"]
    else:
        assert "multiply the noise on the averaged update by 1.7; min_sites = 4" in found["advice"]
    with Image.open(picture) as image:
        assert image.size[1] > 900  # a row for the sites, and one for the trust modes


@pytest.mark.slow
@pytest.mark.parametrize(("colluding", "sites"), [(0, 4), (1, 4)])
def test_noise_that_buys_no_round_is_named(
    colluding: int, sites: int, medfl: Medfl, study: Any, site: Any
) -> None:
    files = [site(name, patients=20, trust=["local", "secure"]) for name in PATIENTS][:sites]
    path = study(local_steps=1, rounds=12, min_sites=2, colluding_sites=colluding, trust="secure")
    advice = json.loads(medfl("plan", path, *files, "--json").out)["trust_modes"]["advice"]
    # Any two majorities share a site, so that a sum ends with three of four or not at all.
    divided = math.sqrt((3 - colluding) / (2 - colluding))
    assert "A sum of 4 sites needs 3 of them in any case: min_sites = 3 " in advice
    assert f"would divide its noise by {divided:.2g} and lose no round." in advice


@pytest.mark.slow
def test_many_sites_are_folded_to_where_something_changes(
    medfl: Medfl, study: Any, site: Any
) -> None:
    path = study(local_steps=1, trust="secure", colluding_sites=2, min_sites=9, epsilon=1.0)
    files = [site(f"S{number}", trust=["secure"]) for number in range(12)]
    ended = medfl("plan", path, *files)
    assert (ended.code, ended.err) == (0, "")
    assert max(len(line) for line in ended.out.splitlines()) <= 80
    heading = next(line for line in ended.out.splitlines() if line.split()[:2] == ["trust", "/"])
    assert heading.split()[-6:] == ["alone", "1", "2", "5", "6", "11"], ended.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"local_steps": 2, "min_sites": 2}, "training.local_steps = 1 with privacy.trust"),
        ({"local_steps": 1, "min_sites": 1}, "aggregation.min_sites >= 2 with privacy.trust"),
        ({"local_steps": 1, "min_sites": 3}, "3 sites or more in a secure sum, found 2"),
    ],
)
def test_a_study_that_can_have_no_secure_sum_is_told_why(
    changes: dict[str, Any], words: str, medfl: Medfl, study: Any, site: Any
) -> None:
    path, files = study(**changes), [site("DU"), site("FG")]
    shown = " ".join(medfl("plan", path, *files).out.split())
    assert "There can be no secure sum: expected " in shown and words in shown
    assert "Trust modes" not in shown
    found = json.loads(medfl("plan", path, *files, "--json").out)["trust_modes"]
    assert [mode["trust"] for mode in found["modes"]] == ["local"]


def test_one_site_has_nobody_to_trust(medfl: Medfl, study: Any, site: Any) -> None:
    assert json.loads(medfl("plan", study(), site(), "--json").out)["trust_modes"] is None


def test_a_picture_that_is_no_png_is_refused_before_anything_is_planned(
    medfl: Medfl, study: Any, site: Any, tmp_path: Path
) -> None:
    ended = medfl("plan", study(), site(), "--picture", tmp_path / "plan.pdf")
    refused(ended, 2, "--picture", "ends in .png", "plan.pdf")
    assert ended.out == ""


def test_a_picture_in_a_folder_that_is_not_there_is_said(
    medfl: Medfl, study: Any, site: Any, tmp_path: Path
) -> None:
    refused(
        medfl("plan", study(), site(), "--picture", tmp_path / "no" / "plan.png"), 1, "plan.png"
    )


def test_a_grid_of_runs_is_charged_and_fits_a_terminal(medfl: Medfl, study: Any, site: Any) -> None:
    path = study(epsilon=1.0)
    report = json.loads(medfl("plan", path, site("DU"), "--runs", 12, "--json").out)
    (grid,) = report["grid"]
    assert (grid["site"], grid["runs"], grid["affordable"]) == ("DU", 12, 12)
    assert report["sites"][0]["epsilon"] < grid["epsilon"] <= 10.0
    shown = medfl("plan", path, site("DU"), "--runs", 12)
    assert (shown.code, shown.err) == (0, "")
    assert "12 runs, one after the other" in shown.out
    assert max(len(line) for line in shown.out.splitlines()) <= 80


def test_a_site_that_cannot_pay_for_the_grid_is_named(medfl: Medfl, study: Any, site: Any) -> None:
    small, large = site("DU"), site("FG", budget=100.0)
    ended = medfl("plan", study(), small, large, "--runs", 5, "--json")
    refused(ended, 3, "Site DU", "5 runs", "budget of 10", "pays for 1")
    report = json.loads(ended.out)
    assert report["refused"] == {"DU": "budget-exceeded"}
    assert [row["site"] for row in report["sites"]] == ["FG"]
