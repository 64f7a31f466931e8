"""The report of a grid of studies: from its table alone, in two languages, the worst marked."""

from __future__ import annotations

import csv
import re
import shutil
from collections import Counter
from pathlib import Path

import pypdfium2
import pytest

from medfl.cli import main
from medfl.errors import ReportError
from medfl.reporting.grid_aggregates import FILE
from medfl.reporting.grid_report import render_grid, verdict, write_grid_report
from medfl.reporting.grid_scores import GridScores, Setting
from medfl.reporting.grid_tables import gains_tables, site_tables, spent_table
from medfl.reporting.grid_words import WORST
from medfl.reporting.pdf import write_pdf
from medfl.reporting.texts import ENGLISH, Texts
from medfl.runs.grid_records import GRID, GridRecord
from medfl.runs.grid_table import TABLE, read_table
from tests.grid_folders import EPSILONS, GAINS, LEVELS, PATIENTS, SEEDS, SITES, write_grid
from tests.reporting.test_chinese_report import NAMES, Shown
from tests.reporting.test_texts import LATIN

OWN = {
    "made-up-grid",
    "other-start",
    "North",
    "South",
    "East",
    "West",
    "none",
    "synthetic",
    "study",
}


def read(folder: Path) -> tuple[GridRecord, GridScores]:
    return GRID.read(folder), GridScores(read_table(folder))


def test_gains_are_means_over_patients_and_seeds(finished_grid: Path) -> None:
    _, scores = read(finished_grid)
    setting = Setting(trust="secure", epsilon=3.0)
    for site, gain in GAINS.items():
        found = scores.gain(setting, "WT", site=site)
        assert found is not None
        assert (found.value, found.patients) == (pytest.approx(gain), PATIENTS)
    total = scores.gain(setting, "WT")
    assert total is not None
    assert total.value == pytest.approx(sum(GAINS.values()) / len(GAINS))
    assert min(GAINS.values()) <= total.low < total.value < total.high <= max(GAINS.values())
    least = scores.least_gain(setting, "WT")
    assert least is not None
    assert least[0] == "East"


def test_a_model_without_a_setting_is_the_same_in_all_of_them(finished_grid: Path) -> None:
    _, scores = read(finished_grid)
    alone = {scores.mean("alone", setting.of("base"), "TC") for setting in scores.settings}
    assert len(alone) == 1
    federated = {scores.mean("federated", setting.of("base"), "TC") for setting in scores.settings}
    assert len(scores.settings) == 2 * 2 * len(EPSILONS)
    assert len(federated) == 2 * len(EPSILONS)


def test_a_seed_that_lacks_a_model_leaves_no_mean_of_the_others(finished_grid: Path) -> None:
    rows = [
        row for row in read_table(finished_grid) if (row.model, row.seed) != ("pooled", SEEDS[-1])
    ]
    scores, setting = GridScores(rows), Setting(trust="local", epsilon=8.0)
    assert scores.mean("pooled", setting, "WT") is None
    assert scores.mean("alone", setting, "WT") is not None


def test_the_worst_hospital_is_marked_in_every_column(finished_grid: Path) -> None:
    _, scores = read(finished_grid)
    for tables, lowest in ((gains_tables, "East"), (site_tables, "West")):
        of_study, of_variant = tables(scores, ENGLISH)
        assert "other-start" in of_variant.caption
        marked = [
            row[0]
            for row in of_study.rows
            for cell in row[1:]
            if cell.endswith(WORST) and ("+" in cell or "−" in cell or tables is site_tables)
        ]
        settings = 2 * len(EPSILONS)
        assert Counter(marked) == {f"{lowest}, TC": settings, f"{lowest}, WT": settings}


def test_the_small_table_holds_the_means_and_differences_of_the_page(
    finished_grid: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(finished_grid, folder)
    write_grid_report(folder)
    with (folder / FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    (gain,) = [
        row
        for row in rows
        if (row["variant"], row["trust"], row["epsilon"]) == ("base", "local", "8")
        and (row["model"], row["minus"], row["site"]) == ("adapted", "alone", "East")
        and row["region"] == "WT"
    ]
    assert float(gain["value"]) == pytest.approx(GAINS["East"], abs=1e-6)
    assert (gain["patients"], gain["seeds"]) == (str(PATIENTS), str(len(SEEDS)))
    models = {row["model"] for row in rows if not row["minus"]}
    assert models == {"federated", "adapted", *LEVELS}
    assert {row["site"] for row in rows} == {*SITES, ""}


def test_the_verdict_is_that_of_the_interval(tmp_path: Path) -> None:
    folder = write_grid(tmp_path / "out", trust=("local",))
    _, scores = read(folder)
    assert verdict(scores, ENGLISH).title.startswith("With epsilon 8, joining pays: +0.02")
    of = {site: GridScores(row for row in read_table(folder) if row.site == site) for site in SITES}
    assert "joining does harm: −0.03" in verdict(of["East"], ENGLISH).title
    bare = [row for row in read_table(folder) if row.model not in ("alone", "adapted")]
    assert "reaches a Dice of" in verdict(GridScores(bare), ENGLISH).title
    record = GRID.read(folder)
    assert "were not computed" in render_grid(record, GridScores(bare), {})
    # Green only where a promise is kept and a gain is shown.
    assert '<body class="given">' in render_grid(record, scores, {})
    assert '<body class="simulated">' in render_grid(record, of["East"], {})


@pytest.mark.parametrize(("guarantee", "told"), [("given", False), ("simulated", True)])
def test_noise_without_a_guarantee_is_said(guarantee: str, told: bool, tmp_path: Path) -> None:
    folder = write_grid(tmp_path / "out", guarantee=guarantee)  # type: ignore[arg-type]
    record, scores = read(folder)
    page = render_grid(record, scores, {})
    assert f'<body class="{guarantee}">' in page
    assert ("gives nobody a guarantee" in page) is told


def test_what_was_spent_is_rounded_up_and_counted_by_run(finished_grid: Path) -> None:
    record, scores = read(finished_grid)
    rows = spent_table(record, scores, ENGLISH).rows
    assert len(rows) == len(scores.settings)
    assert rows[0] == ("noise at each site, epsilon 8", "3", "7.99", "10⁻⁵")


def test_no_english_is_left_in_chinese_and_no_number_differs(finished_grid: Path) -> None:
    record, scores = read(finished_grid)
    english, chinese = (
        Shown(render_grid(record, scores, {}, Texts(language))) for language in ("en", "zh")
    )
    words = set(re.findall(r"[A-Za-z][A-Za-z0-9-]*", chinese.text))
    assert words - LATIN - NAMES - OWN <= {"run", "grid", "out"}
    said = [Counter(re.findall(r"\d[\d,.]*\d|\d", page.text)) for page in (english, chinese)]
    differ = {number for number in said[0] | said[1] if said[0][number] != said[1][number]}
    assert differ <= {"1"}  # of January


def test_the_page_is_made_again_where_the_runs_are_not(
    finished_grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in (TABLE, GRID.name):
        shutil.copy(finished_grid / name, folder)
    monkeypatch.setattr("sys.argv", ["medfl", "report", str(folder), "--language", "zh"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    page = (folder / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 3
    assert "http" not in page.replace("http-equiv", "")
    pdf = write_pdf(folder / "report.html")
    with pypdfium2.PdfDocument(pdf) as document:
        text = "".join(sheet.get_textpage().get_text_range() for sheet in document)
    assert "哪些中心获益" in text


def test_an_unfinished_grid_and_a_damaged_table_are_told(
    finished_grid: Path, tmp_path: Path
) -> None:
    (tmp_path / "cells").mkdir()
    with pytest.raises(ReportError, match="the same `medfl study run`"):
        write_grid_report(tmp_path)
    shutil.copy(finished_grid / GRID.name, tmp_path)
    lines = (finished_grid / TABLE).read_text().splitlines()
    for damaged, told in (
        (lines[1].replace("WT", "XX").replace("TC", "XX"), "line 2: key region"),
        (lines[1].rsplit(",", 1)[0] + ",much", "line 2: expected numbers"),
        (lines[1].rsplit(",", 1)[0], "line 2: expected numbers"),
    ):
        (tmp_path / TABLE).write_text("\n".join([lines[0], damaged]))
        with pytest.raises(ReportError, match=told):
            write_grid_report(tmp_path)
    (tmp_path / TABLE).write_text("a,b\n")
    with pytest.raises(ReportError, match="expected the columns"):
        write_grid_report(tmp_path)
