from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfl.errors import ReportError
from medfl.runs.results import read_run
from tests.run_folders import without_lesions

RunBuilder = Callable[..., Path]
Change = Callable[[Any], None]

SITES = ("North", "South", "East", "West")
REGIONS = ("TC", "WT", "ET")
ROUNDS = 10
LOCAL_STEPS = 5

REQUIRED = (
    "study.json",
    "sites.json",
    "environment.json",
    "plan.json",
    "privacy.json",
    "federation.json",
    "rounds.jsonl",
    "federation_ledger.jsonl",
)


def edit_json(path: Path, change: Change) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def edit_line(path: Path, number: int, change: Change) -> None:
    """Change one JSON line in place."""
    lines = path.read_text(encoding="utf-8").splitlines()
    value = json.loads(lines[number])
    change(value)
    lines[number] = json.dumps(value)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def edit_score(folder: Path, column: str, value: str) -> None:
    """Change one cell of the first row of the scores."""
    path = folder / "metrics.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0][column] = value
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_reads_every_file_of_a_run(build_run: RunBuilder) -> None:
    run = read_run(build_run())
    assert run.study.id == "made-up-study"
    assert run.study.input.regions == REGIONS
    assert [site.name for site in run.sites] == list(SITES)
    assert list(run.plans) == list(run.privacy) == list(SITES)
    assert run.plans["North"].clip_norm == 1.0
    assert [row.round for row in run.rounds] == list(range(1, ROUNDS + 1))
    assert len(run.events) == ROUNDS * len(SITES) - 1  # one update never arrived
    assert run.privacy["South"].epsilon_at[1e-6] == pytest.approx(7.2 * 1.13)
    assert len(run.predictions) == 4
    assert run.variants == (
        "federated",
        "non-private",
        "local-only",
        "initial-only",
        "threshold",
    )


def test_scores_of_the_final_model_are_those_of_its_last_round(build_run: RunBuilder) -> None:
    run = read_run(build_run(patients=3))
    assert run.scored_rounds("federated") == (0, 2, 4, 6, 8, 10)
    assert {score.round for score in run.scores_of("federated")} == {ROUNDS}
    assert {score.round for score in run.scores_of("federated", at=4)} == {4}
    assert {score.round for score in run.scores_of("initial-only")} == {0}
    assert len(run.scores_of("federated")) == len(SITES) * 3 * len(REGIONS)


def test_metrics_and_pictures_may_be_absent(build_run: RunBuilder) -> None:
    run = read_run(build_run(metrics=False, pictures=0))
    assert run.scores == ()
    assert run.predictions == ()
    assert run.variants == ()


def test_a_table_without_lesion_wise_scores_is_read(build_run: RunBuilder) -> None:
    folder = build_run(pictures=0)
    without_lesions(folder)
    run = read_run(folder)
    assert run.scores[0].hd95_mm is not None
    assert {score.lesion_dice for score in run.scores} == {None}
    assert {score.lesion_hd95_mm for score in run.scores} == {None}


def test_table_without_scores_is_read_as_none(build_run: RunBuilder) -> None:
    folder = build_run(metrics=False)
    header = "variant,round,site,patient,region,dice,hd95_mm\n"
    (folder / "metrics.csv").write_text(header, encoding="utf-8")
    assert read_run(folder).scores == ()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="expected a run folder, found none"):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_file_is_named(build_run: RunBuilder, name: str) -> None:
    folder = build_run(pictures=0)
    (folder / name).unlink()
    with pytest.raises(ReportError, match=rf"{name}: expected a readable file") as error:
        read_run(folder)
    assert error.value.code == "report"


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("content", [b'{"id": "x', b"\xff\xfe\x00", b"[1]\n", b"\x00"])
def test_a_damaged_file_is_named(build_run: RunBuilder, name: str, content: bytes) -> None:
    folder = build_run(pictures=0)
    (folder / name).write_bytes(content)
    with pytest.raises(ReportError, match=name):
        read_run(folder)


def test_a_torn_last_line_is_named_with_its_number(build_run: RunBuilder) -> None:
    folder = build_run(pictures=0)
    with (folder / "rounds.jsonl").open("a", encoding="utf-8") as lines:
        lines.write('{"round": 11, "sec')
    with pytest.raises(ReportError, match=rf"rounds\.jsonl: line {ROUNDS + 1}: .*Invalid JSON"):
        read_run(folder)


@pytest.mark.parametrize("value", ["nan", -0.1, None, True, "eight", "-inf"])
def test_an_epsilon_that_is_no_loss_is_refused(build_run: RunBuilder, value: object) -> None:
    folder = build_run(pictures=0)
    edit_json(folder / "privacy.json", lambda rows: rows[1].update(epsilon_pld=value))
    with pytest.raises(ReportError, match=r"privacy\.json: key 1\.epsilon_pld"):
        read_run(folder)


def test_not_a_number_is_refused_as_an_epsilon(build_run: RunBuilder) -> None:
    folder = build_run(pictures=0)
    path = folder / "privacy.json"
    path.write_text(path.read_text().replace('"mu": ', '"mu": NaN, "was": ', 1))
    with pytest.raises(ReportError, match=r"privacy\.json: key 0\.mu"):
        read_run(folder)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("variant", "federated-2"),
        ("round", "1.5"),
        ("round", "-1"),
        ("region", "XX"),
        ("dice", "1.01"),
        ("dice", "-0.01"),
        ("dice", "nan"),
        ("dice", ""),
        ("hd95_mm", "-1"),
        ("hd95_mm", "inf"),
        ("hd95_mm", "far"),
    ],
)
def test_a_score_that_is_none_is_refused(build_run: RunBuilder, column: str, value: str) -> None:
    folder = build_run(pictures=0)
    edit_score(folder, column, value)
    with pytest.raises(ReportError, match=r"metrics\.csv: line 2"):
        read_run(folder)


@pytest.mark.parametrize(
    "table",
    [
        "variant,round,site\n",
        "",
        "variant,round,site,patient,region,dice,hd95_mm\nfederated,1,North\n",
        "variant,round,site,patient,region,dice,hd95_mm\nfederated,1,North,a,WT,0.5,1,extra\n",
        "variant,round,site,patient,region,dice,hd95_mm,lesion_dice,lesion_hd95_mm\n"
        "federated,1,North,a,WT,0.5,1\n",
        "variant,round,site,patient,region,dice,hd95_mm,lesion_dice,lesion_hd95_mm\n"
        "federated,1,North,a,WT,0.5,1,1.5,1\n",
        "variant,round,site,patient,region,dice,hd95_mm,lesion_dice,lesion_hd95_mm\n"
        "federated,1,North,a,WT,0.5,1,nan,1\n",
        'variant,round,site,patient,region,dice,hd95_mm\nfederated,1,"North,a,WT,0.5,1\n',
    ],
    ids=[
        "other columns",
        "empty",
        "short row",
        "long row",
        "row of an earlier version",
        "lesion-wise Dice above 1",
        "lesion-wise Dice that is no number",
        "open quote",
    ],
)
def test_a_damaged_table_is_refused(build_run: RunBuilder, table: str) -> None:
    folder = build_run(pictures=0)
    (folder / "metrics.csv").write_text(table, encoding="utf-8")
    with pytest.raises(ReportError, match=r"metrics\.csv"):
        read_run(folder)


def _set(row: Any, key: str, value: object) -> None:
    row[key] = value


CONTRADICTIONS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no site": (
        lambda run: edit_json(run / "sites.json", lambda sites: sites.clear()),
        r"sites\.json: expected one or more distinct sites",
    ),
    "doubled site": (
        lambda run: edit_json(run / "sites.json", lambda sites: sites.append(sites[0])),
        r"sites\.json: expected one or more distinct sites",
    ),
    "doubled plan": (
        lambda run: edit_json(run / "plan.json", lambda plans: plans.append(plans[0])),
        r"plan\.json: expected one entry a site",
    ),
    "no loss at all": (
        lambda run: edit_json(run / "privacy.json", lambda losses: losses.clear()),
        r"privacy\.json: expected an entry for each site that took part",
    ),
    "loss of one site missing": (
        lambda run: edit_json(run / "privacy.json", lambda losses: losses.pop()),
        r"privacy\.json: expected an entry for each site that took part, found \['West'\]",
    ),
    "plan of one site missing": (
        lambda run: edit_json(run / "plan.json", lambda plans: plans.pop()),
        r"plan\.json: expected an entry for each site that took part, found \['West'\]",
    ),
    "unknown site in a round": (
        lambda run: edit_line(
            run / "rounds.jsonl", 2, lambda row: row["sites"].update(Moon=row["sites"]["West"])
        ),
        r"rounds\.jsonl: expected sites of sites\.json, found \['Moon'\]",
    ),
    "unknown site in the ledger": (
        lambda run: edit_line(
            run / "federation_ledger.jsonl", 0, lambda row: _set(row, "site", "Moon")
        ),
        r"federation_ledger\.jsonl: expected sites of sites\.json",
    ),
    "unknown site in the scores": (
        lambda run: edit_score(run, "site", "Moon"),
        r"metrics\.csv: expected sites of sites\.json",
    ),
    "no rounds": (
        lambda run: (run / "rounds.jsonl").write_text("") and None,
        r"rounds\.jsonl: expected one or more federated rounds",
    ),
    "a round twice": (
        lambda run: edit_line(run / "rounds.jsonl", 4, lambda row: _set(row, "round", 4)),
        r"rounds\.jsonl: expected ascending federated rounds",
    ),
    "more rounds than planned": (
        lambda run: edit_line(run / "rounds.jsonl", -1, lambda row: _set(row, "round", 11)),
        r"rounds\.jsonl: expected at most the study's 10 rounds, found 11",
    ),
    "another divisor": (
        lambda run: edit_json(run / "plan.json", lambda plans: _set(plans[2], "divisor", 9.0)),
        r"plan\.json: expected divisor = .* 10 at 'East', found 9",
    ),
    "less noise than planned": (
        lambda run: edit_line(
            run / "federation_ledger.jsonl",
            5,
            lambda row: _set(row["mechanism"], "noise_multiplier", 1.9),
        ),
        r"federation_ledger\.jsonl: expected the planned mechanism in the admitted event 6",
    ),
    "more patients drawn than planned": (
        lambda run: edit_line(
            run / "federation_ledger.jsonl",
            5,
            lambda row: _set(row["mechanism"], "sampling_prob", 0.5),
        ),
        r"federation_ledger\.jsonl: expected the planned mechanism",
    ),
    "less loss than the rounds say": (
        lambda run: edit_json(
            run / "privacy.json",
            lambda losses: losses[0].update(epsilon_pld=2.0, lifetime_epsilon=2.0),
        ),
        r"privacy\.json: expected an epsilon of 'North' that covers its rounds, up to 7\.9",
    ),
    "fewer steps than the events say": (
        lambda run: edit_json(run / "privacy.json", lambda losses: _set(losses[0], "steps", 49)),
        r"privacy\.json: expected steps of 'North' that cover the 50 of its events, found 49",
    ),
    "a federation of other sites": (
        lambda run: edit_json(
            run / "federation.json",
            lambda found: _set(found["any_two_sites"], "sites", ["North", "Moon"]),
        ),
        r"federation\.json: expected sites of sites\.json, found \['Moon'\]",
    ),
    "less loss of the federation than of a site": (
        lambda run: edit_json(run / "federation.json", lambda found: _set(found, "epsilon", 7.8)),
        r"federation\.json: expected an epsilon that covers every .* up to 7\.9, found 7\.8",
    ),
    "less loss of the federation than of an overlap": (
        lambda run: edit_json(
            run / "federation.json",
            lambda found: found.update(
                disjoint=False,
                composition="composed over declared overlaps",
                overlaps=[found["any_two_sites"]],
            ),
        ),
        r"federation\.json: expected an epsilon that covers every .* up to 11\.3",
    ),
    "a smaller delta of the federation than of a site": (
        lambda run: edit_json(run / "federation.json", lambda found: _set(found, "delta", 1e-6)),
        r"federation\.json: expected a delta that covers every site's, up to 1e-05, found 1e-06",
    ),
    "an overlap among disjoint patients": (
        lambda run: edit_json(
            run / "federation.json",
            lambda found: found.update(overlaps=[found["any_two_sites"]], epsilon=12.0),
        ),
        r"federation\.json: expected overlaps exactly where patients are not disjoint",
    ),
    "a maximum where patients are shared": (
        lambda run: edit_json(
            run / "federation.json", lambda found: _set(found, "disjoint", False)
        ),
        r"federation\.json: expected overlaps exactly where patients are not disjoint",
    ),
    "no two sites among four": (
        lambda run: edit_json(
            run / "federation.json", lambda found: _set(found, "any_two_sites", None)
        ),
        r"federation\.json: expected any two sites where there are two, found None",
    ),
    "scores of a hospital": (
        lambda run: edit_json(
            run / "sites.json", lambda sites: _set(sites[3], "purpose", "hospital")
        ),
        r"metrics\.csv: expected no scores of a hospital's patients, found \['West'\]",
    ),
    "pictures of somebody": (
        lambda run: (
            (run / "predictions" / "synthetic-1").rename(run / "predictions" / "P1") and None
        ),
        r"predictions: expected folders of synthetic patients only, .* found P1",
    ),
    "a picture without truth": (
        lambda run: (run / "predictions" / "synthetic-1" / "truth.nii.gz").unlink(),
        r"truth\.nii\.gz: expected an image beside the other two",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_files_that_contradict_each_other_are_refused(build_run: RunBuilder, name: str) -> None:
    break_it, message = CONTRADICTIONS[name]
    folder = build_run(pictures=1)
    read_run(folder)
    break_it(folder)
    with pytest.raises(ReportError, match=message):
        read_run(folder)


def test_a_round_that_an_absent_site_did_not_pay_for_is_no_contradiction(
    build_run: RunBuilder,
) -> None:
    run = build_run()
    events = (run / "federation_ledger.jsonl").read_text(encoding="utf-8").splitlines()
    number = next(n for n, line in enumerate(events) if json.loads(line)["site"] == "North")
    absent = {"admitted": False, "presumed": "silent"}
    edit_line(run / "federation_ledger.jsonl", number, lambda row: row.update(absent))
    silent = {"outcome": "silent", "code": "silent", "epsilon": 99.0, "steps": 0}
    edit_line(run / "rounds.jsonl", 0, lambda row: row["sites"]["North"].update(silent))
    edit_json(run / "privacy.json", lambda losses: _set(losses[0], "steps", 49))
    assert read_run(run).privacy["North"].steps == 49


def test_a_noisy_run_is_guaranteed(build_run: RunBuilder) -> None:
    run = read_run(build_run(pictures=0))
    assert run.guarantee == "given"
    assert run.un_noised_sites == ()


def test_a_plan_without_noise_takes_the_guarantee(build_run: RunBuilder) -> None:
    run = read_run(build_run(noise_multiplier=0.0, pictures=0))
    assert run.guarantee == "none"
    assert run.un_noised_sites == SITES


def test_one_step_without_noise_takes_the_guarantee(build_run: RunBuilder) -> None:
    folder = build_run(pictures=0)
    edit_line(
        folder / "federation_ledger.jsonl",
        -1,
        lambda row: _set(row["mechanism"], "noise_multiplier", 0.0),
    )
    run = read_run(folder)
    assert run.guarantee == "none"
    assert run.un_noised_sites == ("West",)


def test_an_unlimited_loss_takes_the_guarantee(build_run: RunBuilder) -> None:
    folder = build_run(pictures=0)
    edit_json(folder / "privacy.json", lambda losses: _set(losses[2], "epsilon_pld", "inf"))
    edit_json(folder / "federation.json", lambda found: _set(found, "epsilon", "inf"))
    assert read_run(folder).un_noised_sites == ("East",)


def test_a_comparison_without_noise_leaves_the_guarantee(build_run: RunBuilder) -> None:
    folder = build_run(pictures=0)

    def comparison(row: dict[str, Any]) -> None:
        row["variant"] = "non-private"
        row["mechanism"]["noise_multiplier"] = 0.0

    edit_line(folder / "federation_ledger.jsonl", -1, comparison)
    run = read_run(folder)
    assert run.guarantee == "given"
    assert sum(event.steps for event in run.events) == (ROUNDS * len(SITES) - 2) * LOCAL_STEPS


def test_rounds_of_a_comparison_are_left_out(build_run: RunBuilder) -> None:
    folder = build_run(pictures=0)
    path = folder / "rounds.jsonl"
    first = {**json.loads(path.read_text().splitlines()[0]), "variant": "local-only"}
    path.write_text(path.read_text() + json.dumps(first) + "\n")
    assert len(read_run(folder).rounds) == ROUNDS


def test_seeded_noise_at_one_site_is_a_simulation(build_run: RunBuilder) -> None:
    folder = build_run(pictures=0)
    edit_json(folder / "privacy.json", lambda losses: _set(losses[3], "noise_origin", "seeded"))
    assert read_run(folder).guarantee == "simulated"


def test_no_noise_outranks_seeded_noise(build_run: RunBuilder) -> None:
    folder = build_run(noise_multiplier=0.0, noise_origin="seeded", pictures=0)
    assert read_run(folder).guarantee == "none"


def test_federation_takes_the_largest_epsilon_and_the_largest_delta(build_run: RunBuilder) -> None:
    folder = build_run(pictures=0)
    edit_json(folder / "privacy.json", lambda losses: _set(losses[3], "delta", 3e-5))
    edit_json(folder / "federation.json", lambda found: _set(found, "delta", 3e-5))
    run = read_run(folder)
    assert run.largest_loss.site == "North"
    assert run.largest_delta == 3e-5


def test_results_cannot_be_changed(build_run: RunBuilder) -> None:
    run = read_run(build_run(pictures=0))
    with pytest.raises(AttributeError):
        run.sites = ()  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        run.privacy["North"].epsilon_pld = 0.0


@pytest.mark.parametrize("done", [0, 3])
def test_a_run_that_stopped_is_told_with_how_far_it_came(build_run: RunBuilder, done: int) -> None:
    folder = build_run(pictures=0)
    lines = (folder / "rounds.jsonl").read_text().splitlines(keepends=True)
    (folder / "rounds.jsonl").write_text("".join(lines[:done]))
    for name in ("environment.json", "sites.json", "plan.json", "privacy.json", "federation.json"):
        (folder / name).unlink()
    with pytest.raises(ReportError, match=rf"stopped after {done} of {ROUNDS} rounds.*--resume"):
        read_run(folder)
