from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfl.errors import ReportError
from medfl.reporting import utility_tables
from medfl.reporting.gains_figure import gains_figure
from medfl.reporting.report import render, write_report
from medfl.runs.attendance import AWAY, SILENT, STUDIES_AT_ONCE, Absence, Attendance
from medfl.runs.files import ATTENDANCE
from medfl.runs.results import read_run
from medfl.segmentation.lesions import GLIOMA, PENALTY_MM
from tests.run_folders import without_lesions

RunBuilder = Callable[..., Path]

VOID = {"meta", "img", "br", "link"}
EVIL = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=1>"


class Page(HTMLParser):
    """What a browser would find: elements with attributes, text, and whether tags are balanced."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "title"):
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"[\s\xa0\u202f]+", " ", " ".join(self.pieces))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def links(self) -> Iterator[str]:
        for _, attributes in self.elements:
            for name in ("src", "href", "action", "data", "poster", "srcset"):
                if name in attributes:
                    yield attributes[name] or ""


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def quick_page_of(folder: Path) -> Page:
    """The page without figures, which take most of the time."""
    return Page(render(read_run(folder), {}))


@pytest.fixture(scope="module")
def page(finished_run: Path) -> Page:
    return page_of(finished_run)


@pytest.mark.slow
def test_page_has_its_eight_sections_in_order(page: Page) -> None:
    headings = re.findall(r"<h2>(\d) ", page.source)
    assert headings == [str(number) for number in range(1, 9)]
    assert page.of("html")[0]["lang"] == "en"
    assert len(page.of("h1")) == 1
    targets = {attributes.get("id") for _, attributes in page.elements}
    assert {link["href"][1:] for link in page.of("a") if link["href"]} <= targets


def test_page_loads_nothing_and_runs_nothing(page: Page) -> None:
    for link in page.links():
        assert link.startswith(("#", "data:image/png;base64,"))
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    assert not any(
        name.startswith("on") or name == "style"
        for _, attributes in page.elements
        for name in attributes
    )
    assert "url(" not in page.source
    assert "@import" not in page.source
    assert "http:" not in page.source
    assert "https:" not in page.source
    policy = next(m for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert str(policy["content"]).startswith("default-src 'none'")


def test_figures_are_embedded_as_they_are_on_disk(page: Page, finished_run: Path) -> None:
    embedded = {
        base64.b64decode(str(image["src"]).partition(",")[2], validate=True)
        for image in page.of("img")
    }
    assert embedded == {path.read_bytes() for path in (finished_run / "figures").glob("*.png")}
    assert len(embedded) == 6
    assert all(len(str(image["alt"])) > 30 for image in page.of("img"))


def test_tables_can_be_read_aloud(page: Page) -> None:
    tables = len(page.of("table"))
    assert tables >= 10
    assert len(page.of("caption")) == tables
    assert all(header["scope"] in ("row", "col") for header in page.of("th"))


def test_guarantee_names_epsilon_delta_unit_adjacency_trust_and_releases(page: Page) -> None:
    statement = page.text[page.text.index("Technical statement") :]
    for words in (
        "differentially private with ε ≤ 7.90 and δ = 10⁻⁵",
        "one patient as the unit",
        "zero-out adjacency",
        "local trust mode",
        "the server is not trusted",
        "noisy update of each round",
        "the final model included",
        "replace-one adjacency), the figure at North is ε = 15.1",
    ):
        assert words in statement


def test_meaning_is_told_in_odds_that_a_patient_understands(page: Page) -> None:
    assert "How often is that right? 50 % 79.7 % 100 %" in page.text
    assert "are found out? 1 % 25.1 % 100 %" in page.text
    assert "2,700" in page.text  # e to the 7.9, rounded up


def test_each_site_is_listed_with_its_loss_and_mechanism(page: Page) -> None:
    row = "South 50 5 1 7.20 no claim 8.00 0.800 11: c0ffee000000 5ea15ea15ea1"
    assert row in page.text
    assert "Noisy steps charged Of these never arrived Lost rounds" in page.text
    assert "South 40 0.25 2 1 (normalised) 10 10 × 5 10⁻⁵" in page.text
    assert "South 7.20 7.21 7.78 13.7 6.20 7.20 8.14 1.50" in page.text
    assert "South in round 4 (silent: timeout)" in page.text


def test_federation_takes_the_maximum_only_for_disjoint_patients(page: Page) -> None:
    assert "the largest loss of any site counts, ε = 7.90 at North" in page.text
    assert "This holds if no patient is at two sites" in page.text
    assert "may share patients" not in page.text
    assert "One patient at any two sites (most at South and North) 11.4 10⁻⁵" in page.text


def test_several_patients_together_are_told_apart_from_one(page: Page) -> None:
    assert "2 patients together, a family for example 25.5 10⁻⁵" in page.text
    assert "5 patients together, a family for example 166 10⁻⁵" in page.text


def test_declared_overlaps_make_the_composed_loss_the_headline(build_run: RunBuilder) -> None:
    overlaps = [["North", "East"], ["South", "East", "West"]]
    page = quick_page_of(build_run(pictures=0, overlaps=overlaps))
    assert "The training keeps ε ≤ 14.7 (δ = 10⁻⁵) for every patient" in page.text
    shared = "may share patients (North and East; South, East and West)"
    assert page.text.count(shared) == 2
    assert "a patient at several sites 14.7" in page.text
    assert "can learn about a patient of one site only, at most" in page.text
    assert "whether a given patient of one site only took part" in page.text
    assert "One patient at North and East, declared 10.8 10⁻⁵" in page.text
    assert "One patient at South, East and West, declared 14.7 10⁻⁵" in page.text
    assert "the largest loss of any site counts" not in page.text
    assert "All losses of one patient together are at most ε = 14.7 at δ = 10⁻⁵" in page.text
    assert "a lifetime leaves out the other sites" in page.text


def test_a_run_of_one_site_has_no_two_sites(build_run: RunBuilder) -> None:
    page = quick_page_of(build_run(sites=("North",), metrics=False, pictures=0))
    assert "any two sites" not in page.text
    assert "2 patients together" in page.text


def test_open_data_makes_no_lifetime_claim(page: Page) -> None:
    assert "No lifetime claim is made" in page.text
    assert "Scores on their held-out patients were released without noise" in page.text


def test_utility_stands_beside_every_baseline_with_interval_and_count(page: Page) -> None:
    for name in (
        "Federated, private",
        "Federated, no noise",
        "Each site alone, with noise",
        "Starting model",
    ):
        assert re.search(name + r"( 0\.\d\d \(0\.\d\d to 0\.\d\d\)){3} 24 ", page.text)
    assert re.search(r"Brightness threshold – 0\.\d\d \(0\.\d\d to 0\.\d\d\) – 24 ", page.text)
    assert re.search(r"the same training without noise: 0\.\d\d \(higher\)", page.text)
    assert re.search(r"the starting model: 0\.\d\d \(lower\)", page.text)
    assert "empty in truth and prediction scores Dice 1 and distance 0 mm" in page.text


def test_methods_suffice_to_repeat_the_run(page: Page) -> None:
    for words in (
        "medfl simulate study.toml sites/*.toml",
        "0123456789abcdef0123456789abcdef01234567",
        "ab" * 32,
        "Opacus 1.6.0, Flower 1.41.0, dp-accounting 0.6.0",
        "200 training steps on 64 synthetic patients",
        "AES-256 in counter mode keyed by the operating system",
        "Poisson over patients",
        "31 January 2026",
    ):
        assert words in page.text


def test_a_start_from_a_file_is_named_with_its_digest(build_run: RunBuilder) -> None:
    folder = build_run()
    start = {"file": "pretrained.safetensors", "sha256": "cd" * 32}
    edit_json(folder / "study.json", lambda study: study["synthetic"].update(start=start))
    text = quick_page_of(folder).text
    assert "read from pretrained.safetensors (SHA-256" in text
    assert "cd" * 32 in text
    shipped = {"shipped": "lgg", "sha256": "cd" * 32}
    edit_json(folder / "study.json", lambda study: study["synthetic"].update(start=shipped))
    assert "read from the file lgg that comes with medfl (SHA-256" in quick_page_of(folder).text


def test_page_says_that_it_is_no_medical_device(page: Page) -> None:
    assert "Not a medical device." in page.text


def test_page_names_no_patient_and_no_folder(page: Page, finished_run: Path) -> None:
    pseudonyms = {score.patient for score in read_run(finished_run).scores}
    assert not any(pseudonym in page.source for pseudonym in pseudonyms)
    assert str(finished_run) not in page.source
    assert "synthetic-1" not in page.source


@pytest.mark.slow
def test_a_report_made_twice_is_the_same(finished_run: Path, page: Page) -> None:
    assert page_of(finished_run).source == page.source
    assert not list(finished_run.glob("*.part"))


@pytest.mark.parametrize("where", ["plan", "one event", "infinite loss"])
def test_a_run_with_a_step_without_noise_is_given_no_guarantee(
    build_run: RunBuilder, where: str
) -> None:
    folder = build_run(pictures=0, noise_multiplier=0.0 if where == "plan" else 2.0)
    if where == "one event":
        path = folder / "federation_ledger.jsonl"
        bare = path.read_text().replace('"noise_multiplier": 2.0', '"noise_multiplier": 0.0', 1)
        path.write_text(bare)
    if where == "infinite loss":
        edit_json(folder / "privacy.json", lambda losses: losses[0].update(epsilon_pld="inf"))
        edit_json(folder / "federation.json", lambda found: found.update(epsilon="inf"))
    page = quick_page_of(folder)
    assert page.text.count("No privacy guarantee") == 1
    assert page.of("body")[0]["class"] == "none"
    for claim in ("differentially private", "Federated, private", "keeps ε", "noisy summary"):
        assert claim not in page.text
    assert "Training, all rounds no" in page.text


def test_seeded_noise_is_called_a_simulation(build_run: RunBuilder) -> None:
    page = quick_page_of(build_run(noise_origin="seeded", pictures=0))
    assert "No privacy guarantee for this run: its noise was simulated" in page.text
    assert "differentially private" not in page.text
    assert "Training, all rounds no" in page.text
    assert "fixed seed (simulation)" in page.text


def test_hospitals_show_a_lifetime_and_neither_scores_nor_pictures(build_run: RunBuilder) -> None:
    page = page_of(build_run(purpose="hospital", metrics=False, pictures=0))
    assert "South 50 5 1 7.20 7.25 8.00 0.750" in page.text
    assert "No lifetime claim" not in page.text
    assert "Scores were not released" in page.text
    assert "images of patients never leave their site" in page.text
    assert len(page.of("img")) == 1


def test_a_site_over_its_budget_is_shown_as_such(build_run: RunBuilder) -> None:
    folder = build_run(purpose="hospital", metrics=False, pictures=0)
    edit_json(folder / "privacy.json", lambda losses: losses[1].update(lifetime_epsilon=8.2))
    assert "South 50 5 1 7.20 8.20 8.00 exceeded" in quick_page_of(folder).text


def test_an_unfinished_study_says_so(build_run: RunBuilder) -> None:
    folder = build_run(metrics=False, pictures=0)
    edit_json(folder / "study.json", lambda study: study["training"].update(rounds=30))
    assert "10 of 30 rounds were done" in quick_page_of(folder).text


def test_a_site_that_rounds_were_begun_without_is_named_with_the_reason(
    build_run: RunBuilder,
) -> None:
    folder = build_run()
    away = {"north": Absence(code=AWAY, seconds=30.0)}
    starts = [Attendance(first_round=1, absent=away), Attendance(first_round=2, absent={})]
    (folder / ATTENDANCE.name).write_text("".join(map(ATTENDANCE.line, starts)))
    said = "north took no part in round 1: no answer within 30 s (not connected)."
    assert said in quick_page_of(folder).text
    (folder / ATTENDANCE.name).write_text('{"first_round": 1}\n')
    with pytest.raises(ReportError, match=r"attendance.jsonl: line 1: key absent"):
        write_report(folder)


@pytest.mark.parametrize(
    "absence",
    [
        Absence(code=AWAY, seconds=30.0),
        Absence(code=SILENT, seconds=0.25),
        Absence(code=STUDIES_AT_ONCE, seconds=1.0, beside=("local-1", "other-2")),
        Absence(code=STUDIES_AT_ONCE, seconds=1.0),
        Absence(code="policy-epsilon", seconds=1.0),
    ],
)
def test_the_report_and_the_terminal_give_one_reason(
    absence: Absence, build_run: RunBuilder
) -> None:
    folder = build_run(pictures=0)
    start = Attendance(first_round=1, absent={"north": absence})
    (folder / ATTENDANCE.name).write_text(ATTENDANCE.line(start))
    assert f"north took no part in rounds 1 to 10: {absence.reason}." in quick_page_of(folder).text


def test_a_difference_within_chance_is_no_verdict(build_run: RunBuilder) -> None:
    folder = build_run(pictures=0)
    table = folder / "metrics.csv"
    lines = table.read_text().splitlines()
    final = [line for line in lines if line.startswith("federated,10,")]
    copies = [line.replace("federated,10,", "local-only,10,") for line in final]
    kept = [line for line in lines if not line.startswith("local-only")]
    table.write_text("\n".join(kept + copies) + "\n")
    assert re.search(
        r"with the same noise: 0\.\d\d \(no clear difference\)", quick_page_of(folder).text
    )


def test_who_gains_is_said_by_hospital_with_the_one_that_gains_least(build_run: RunBuilder) -> None:
    folder = build_run(pictures=0)
    table = folder / "metrics.csv"
    lines = table.read_text().splitlines()
    columns = lines[0].split(",")
    gains = {"North": 0.05, "South": 0.02, "East": -0.01, "West": 0.03}
    rows = [line.split(",") for line in lines if line.startswith("initial-only,")]
    for row in rows:
        values = dict(zip(columns, row, strict=True)) | {"variant": "alone", "round": "10"}
        better = {"variant": "adapted", "dice": str(float(values["dice"]) + gains[values["site"]])}
        lines += [",".join(values.values()), ",".join((values | better).values())]
    table.write_text("\n".join(lines) + "\n")
    page = quick_page_of(folder)
    assert page.text.index("Who gains") < page.text.index("What was promised")
    assert "The hospital that gains least is East , by −0.01 (−0.01 to −0.01)" in page.text
    gained = utility_tables.gains_table(read_run(folder))
    assert gained is not None
    shown = {row[0]: row[-1] for row in gained.rows}
    assert len(shown) == (len(gains) + 1) * 3
    assert shown["North, WT"] == "+0.05 (+0.05 to +0.05)"
    assert shown["East, WT"] == "−0.01 (−0.01 to −0.01)"
    assert shown["All sites, WT"].startswith("+0.02 (")
    panels = gains_figure(read_run(folder)).axes
    assert len(panels) == 3
    for panel in panels:
        assert [text.get_text() for text in panel.texts] == [
            {"North": "+0.05", "South": "+0.02", "East": "−0.01", "West": "+0.03"}[label.get_text()]
            for label in panels[0].get_yticklabels()
        ]


def test_without_the_comparison_nobody_is_said_to_gain(page: Page) -> None:
    assert "Who gains" not in page.text


def test_lesion_wise_scores_stand_beside_the_classic_ones(page: Page, finished_run: Path) -> None:
    assert "Lesion by lesion" in page.text
    run = read_run(finished_run)
    table = utility_tables.lesion_table(run)
    assert table is not None
    rows = {row[0]: row[1:] for row in table.rows}
    assert len(rows) == 4 * 3  # the made-up threshold has no lesion-wise scores
    final = [score for score in run.scores_of("federated") if score.region == "WT"]
    dice, lesion_dice, distance = rows["Federated, private, WT"]
    assert dice.startswith(f"{np.mean([score.dice for score in final]):.2f} (")
    assert lesion_dice.startswith(f"{np.mean([score.lesion_dice for score in final]):.2f} (")
    median = np.median([score.lesion_hd95_mm for score in final])
    assert distance.startswith(f"{median:.0f} (")
    for row in table.rows:
        assert all(cell in page.text for cell in row)


def test_the_report_names_the_rule_that_lesions_were_scored_by(page: Page) -> None:
    assert f"the truth is dilated by {GLIOMA.dilation_voxels} voxels" in page.text
    assert f"at most {GLIOMA.above_mm3:g} mm³" in page.text
    assert f"a distance of {PENALTY_MM:g} mm" in page.text
    assert "the study's grid of 2 × 2 × 2 mm" in page.text


def test_the_report_says_that_lesions_were_scored_as_scanned(build_run: RunBuilder) -> None:
    folder = build_run(pictures=0)
    edit_json(folder / "study.json", lambda study: study["input"].update(spacing="native"))
    assert "They were made on each scan's own grid, where" in quick_page_of(folder).text


def test_a_run_of_an_earlier_version_is_reported_without_lesions(build_run: RunBuilder) -> None:
    folder = build_run(pictures=0)
    without_lesions(folder)
    text = quick_page_of(folder).text
    assert "Mean Dice of the final models" in text
    assert "esion-wise" not in text
    assert "Lesion by lesion" not in text


def test_text_from_files_is_escaped(build_run: RunBuilder) -> None:
    folder = build_run(sites=(EVIL, "South"), metrics=False, pictures=0)

    def spoil(environment: dict[str, Any]) -> None:
        environment.update(command=EVIL, commit=EVIL, platform=EVIL)

    edit_json(folder / "environment.json", spoil)
    edit_json(folder / "study.json", lambda study: study["network"].update(name=EVIL))
    page = page_of(folder)
    assert "script" not in {tag for tag, _ in page.elements}
    assert all("onerror" not in attributes for _, attributes in page.elements)
    assert all(str(image["src"]).startswith("data:") for image in page.of("img"))
    assert page.text.count("<script>alert('x')</script>") >= 4


def test_a_broken_run_leaves_no_report(build_run: RunBuilder) -> None:
    folder = build_run(pictures=0)
    (folder / "privacy.json").unlink()
    with pytest.raises(ReportError, match=r"privacy\.json"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_a_folder_that_cannot_be_written_is_named(build_run: RunBuilder) -> None:
    folder = build_run(metrics=False, pictures=0)
    (folder / "report.html").mkdir()
    with pytest.raises(ReportError, match="expected a writable folder"):
        write_report(folder)
