"""The annex to an impact assessment: it claims what the folder shows, and marks the rest."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medfl.reporting.governance.content import (
    Blank,
    Bullets,
    Cell,
    Document,
    Facts,
    Figures,
    Grid,
    Notice,
    Paragraph,
    Picture,
    count_blanks,
)
from medfl.reporting.governance.dpia import dpia
from medfl.reporting.governance.dpia_risks import found_risks
from medfl.reporting.governance.evidence import evidence
from medfl.reporting.governance.markdown import to_markdown
from medfl.reporting.governance.page import to_page
from medfl.reporting.governance.words import Case
from medfl.reporting.texts import Texts
from medfl.runs.records import SecureSum
from medfl.runs.results import read_run
from tests.reporting.governance.runs import DOUBTFUL

Builder = Callable[..., Path]

LANGUAGES = ("en", "zh")
SECURE = SecureSum(sites=4, threshold=3, honest_sites=2, colluding_sites=1)


def annex(folder: Path, language: str = "en") -> Document:
    return dpia(read_run(folder), Texts(language))  # type: ignore[arg-type]


def texts_of(document: Document) -> Iterator[str]:
    """Everything that a document says."""
    yield from (document.kicker, document.title, document.when, document.verdict)
    yield from document.reasons
    for section in document.sections:
        yield section.title
        for block in section.blocks:
            cells: tuple[Cell, ...] = ()
            match block:
                case Paragraph() | Notice():
                    cells = (block.text,)
                case Bullets():
                    cells = block.items
                case Facts():
                    cells = tuple(cell for row in block.rows for cell in row)
                case Grid():
                    inside = (cell for row in block.rows for cell in row)
                    cells = (block.caption, *block.head, *inside)
                case Figures():
                    table = block.table
                    inside = (cell for row in table.rows for cell in row)
                    cells = (table.caption, *table.head, *inside)
                case Picture():
                    cells = (block.alt, block.caption)
                case Blank():
                    cells = (block,)
            for cell in cells:
                yield from (cell.lead, cell.text) if isinstance(cell, Blank) else (cell,)


def shown(page: str) -> str:
    """What a page shows and reads aloud, in one line."""
    aloud = " ".join(re.findall(r'aria-label="([^"]*)"', page))
    bare = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(f"{bare} {aloud}").split())


def without_escapes(markdown: str) -> str:
    return " ".join(re.sub(r"\\([\\`*_\[\]<>|#.+-])", r"\1", markdown).replace("**", "").split())


def levels(folder: Path) -> dict[str, str]:
    run, texts = read_run(folder), Texts("en")
    case = Case(run=run, found=evidence(run), texts=texts)
    return {risk.name: risk.likelihood for risk in found_risks(case)}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("secure_sum", [None, SECURE])
def test_page_and_markdown_say_the_same(
    language: str, secure_sum: SecureSum | None, deployed_run: Builder
) -> None:
    document = annex(deployed_run(secure_sum=secure_sum), language)
    page, markdown = shown(to_page(document)), without_escapes(to_markdown(document))
    for text in texts_of(document):
        assert " ".join(text.split()) in page
        assert " ".join(text.split()) in markdown
    leads = {Texts(language)(key) for key in ("blank.controller", "blank.cell")}  # type: ignore[arg-type]
    blanks = count_blanks(document.sections)
    assert sum(to_markdown(document).count(f"**[{lead}**") for lead in leads) == blanks > 30
    assert to_page(document).count('<span class="blank">') == blanks


def test_a_run_of_hospitals_shows_its_promise(deployed_run: Builder) -> None:
    document = annex(deployed_run())
    assert document.tone == "given"
    assert "ε ≤ 7.90 (δ = 10⁻⁵)" in document.verdict
    said = "\n".join(texts_of(document))
    assert "right in at most 79.7" in said
    assert "10 of 10, with 5 local steps each" in said
    assert "Secret random numbers of each site's operating system" in said
    for name in ("North", "South", "East", "West"):
        assert name in said


@pytest.mark.parametrize(
    ("guess", "likelihood"), [(0.59, "low"), (0.61, "medium"), (0.79, "medium"), (0.81, "high")]
)
def test_how_likely_an_attack_is_follows_what_an_attacker_can_know(
    guess: float, likelihood: str, deployed_run: Builder
) -> None:
    folder = deployed_run()
    path = folder / "privacy.json"
    path.write_text(path.read_text().replace("0.5931", f"{2 * guess - 1:.4f}"))
    found = levels(folder)
    assert found["Somebody learns that a patient took part, and so of the illness"] == likelihood


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("doubt", sorted(DOUBTFUL))
def test_what_stands_against_a_promise_is_said_first_and_makes_the_risk_high(
    doubt: str, language: str, deployed_run: Builder
) -> None:
    folder = DOUBTFUL[doubt](deployed_run)
    document, texts = annex(folder, language), Texts(language)  # type: ignore[arg-type]
    assert document.tone != "given"
    assert document.verdict == texts("dpia.verdict.doubt")
    key = "simulation" if doubt == "open data" else doubt
    assert document.reasons[0] == texts(f"doubt.{key}", done=6, planned=10)
    said = "\n".join(texts_of(document))
    assert texts("dpia.residual.text", level=texts("level.high")) in said
    assert texts("dpia.residual.consult") in said
    assert texts("dpia.verdict.why") not in said


@pytest.mark.parametrize("doubt", ["none", "overstated", "seeded"])
def test_no_figure_is_repeated_where_nothing_limits_the_loss(
    doubt: str, deployed_run: Builder
) -> None:
    said = "\n".join(texts_of(annex(DOUBTFUL[doubt](deployed_run))))
    assert "ε ≤" not in said
    assert "7.90" not in said
    assert "79.7" not in said
    assert "No limit is shown" in said
    for claim in (
        "limited by",
        "noise at the site limits",
        "enough noise",
        "what protects the patient",
    ):
        assert claim not in said.lower(), claim


def test_an_update_without_noise_is_drawn_as_one(deployed_run: Builder) -> None:
    bare = to_page(annex(deployed_run(noise_multiplier=0.0)))
    assert "WITHOUT noise" in shown(bare)
    assert "noisy" not in shown(bare)[shown(bare).index("Data flows: ") :][:400]


def test_scores_are_drawn_where_they_left(build_run: Builder, tmp_path: Path) -> None:
    assert "Scores of single patients" in "\n".join(texts_of(annex(build_run(pictures=0))))


def test_who_would_have_to_work_together_is_named(deployed_run: Builder) -> None:
    said = "\n".join(texts_of(annex(deployed_run(secure_sum=SECURE))))
    assert "Within the promise: The server and 1 of the other sites." in said
    assert "a patient would be left with ε ≤ 26.7" in said  # 7.9 times 1.5 three times


def test_a_patient_of_two_hospitals_is_said_to_lose_more(deployed_run: Builder) -> None:
    said = "\n".join(texts_of(annex(deployed_run())))
    assert "A patient of the two most costly sites would have ε ≤ 11.4." in said


def test_what_shared_patients_lose_is_added_up(deployed_run: Builder) -> None:
    said = "\n".join(texts_of(annex(deployed_run(overlaps=[("North", "South")]))))
    assert "Declared in the study and added up: ε ≤ 11.4" in said
    assert "The study declares that some sites share patients" in said


def test_every_requirement_leads_to_a_section(deployed_run: Builder) -> None:
    document = annex(deployed_run())
    (table,) = (block for block in document.sections[-1].blocks if isinstance(block, Grid))
    numbers = {int(found) for row in table.rows for found in re.findall(r"\d+", str(row[1]))}
    assert numbers <= set(range(1, len(document.sections)))
    assert numbers == set(range(2, len(document.sections)))  # the first says what the annex is


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "`a` | *b* [c](d) # e"])
def test_names_in_a_folder_write_no_page_and_no_markdown(name: str, deployed_run: Builder) -> None:
    folder = deployed_run()
    path = folder / "study.json"
    text = path.read_text().replace('"SegResNet"', f'"{name}"')
    path.write_text(text)
    document = annex(folder)
    assert name in "\n".join(texts_of(document))
    assert name not in to_page(document) or "<" not in name
    assert name not in to_markdown(document)
    assert f"- Network: {name[:4]}" not in to_markdown(document)


def test_many_sites_are_counted_in_the_picture(deployed_run: Builder) -> None:
    names = [f"Hospital-{number:02}" for number in range(10)]
    document = annex(deployed_run(sites=names))
    (picture,) = document.pictures
    assert "Hospital-04" in picture.svg
    assert "Hospital-05" not in picture.svg
    assert "and 5 more" in picture.svg
