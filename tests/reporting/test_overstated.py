"""Reports of runs whose promise was too small, and of later runs at the same sites."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from medfl.reporting.report import render
from medfl.runs.results import read_run

RunBuilder = Callable[..., Path]

SIGNS = ("events", "account", "environment")
ALARM = "Do not rely on the privacy that this run was said to have"


class Text(HTMLParser):
    """Text of a page, and the class of its body."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.body: str | None = ""
        self._pieces: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "body":
            self.body = dict(attrs)["class"]

    def handle_data(self, data: str) -> None:
        self._pieces.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"[\s\xa0\u202f]+", " ", " ".join(self._pieces))


def page_of(folder: Path) -> Text:
    return Text(render(read_run(folder), {}))


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def age(folder: Path, *signs: str) -> Path:
    """Let files of a run folder be as medfl 0.1 wrote them."""
    if "events" in signs:
        path = folder / "federation_ledger.jsonl"
        path.write_text(path.read_text().replace(', "revision": 2', ""))
        assert "revision" not in path.read_text()
    if "account" in signs:
        edit_json(
            folder / "privacy.json",
            lambda losses: [
                loss.pop(key) for loss in losses for key in ("revision", "affected_steps")
            ],
        )
    if "environment" in signs:
        edit_json(folder / "environment.json", lambda found: found.update(medfl="0.1.0"))
    return folder


def test_a_run_of_this_version_is_guaranteed_and_warns_of_nothing(build_run: RunBuilder) -> None:
    folder = build_run(pictures=0)
    page = page_of(folder)
    assert read_run(folder).guarantee == page.body == "given"
    for words in ("medfl 0.1", "low bits", "too small", "Older steps"):
        assert words not in page.text


@pytest.mark.parametrize("signs", [SIGNS, *((sign,) for sign in SIGNS)])
def test_a_run_of_the_first_version_is_given_no_unqualified_promise(
    signs: Sequence[str], build_run: RunBuilder
) -> None:
    folder = age(build_run(pictures=0), *signs)
    page = page_of(folder)
    assert read_run(folder).guarantee == page.body == "overstated"
    assert page.text.count(ALARM) == 1
    for claim in ("differentially private", "Federated, private", "keeps ε", "worst case"):
        assert claim not in page.text
    assert "Training, all rounds no" in page.text
    assert "no finite ε holds against whoever reads them" in page.text
    assert "(7.90 was claimed) no limit" in page.text
    assert "medfl ledger verify" in page.text


def test_a_single_event_of_the_first_version_is_enough(build_run: RunBuilder) -> None:
    folder = build_run(pictures=0)
    path = folder / "federation_ledger.jsonl"
    path.write_text(path.read_text().replace(', "revision": 2', "", 1))
    assert page_of(folder).body == "overstated"


def test_every_figure_of_an_old_run_stands_with_a_word_of_caution(build_run: RunBuilder) -> None:
    page = page_of(age(build_run(pictures=0), *SIGNS))
    # What the loss means to a patient: the server may know for sure.
    assert "How often is that right? 50 % 100 % 100 %" in page.text
    assert "are found out? 1 % 100 % 100 %" in page.text
    assert "1 no limit no limit" in page.text
    for caption in (
        "Privacy loss by site at the end of the run",
        "More than one site, more than one patient",
        "The same loss, counted in other ways",
        "Privacy loss so far (ε) by round and site",
    ):
        assert f"{caption}, as medfl 0.1 counted it: too small" in page.text
    assert "All figures of this section are too small." in page.text
    # Each sentence that states the headline figure says that it was a claim.
    for match in re.finditer(r"7\.90", page.text[: page.text.index("3 Privacy loss by site")]):
        around = page.text[max(0, match.start() - 80) : match.end() + 40]
        assert re.search("claimed|stated|said", around), around


def test_an_old_run_of_overlapping_sites_claims_nothing_either(build_run: RunBuilder) -> None:
    page = page_of(age(build_run(pictures=0, overlaps=[["North", "East"]]), *SIGNS))
    assert "together was said to have ε ≤ 10.8" in page.text
    assert "of one patient together were said to be at most ε = 10.8" in page.text


def test_an_old_simulation_is_called_both(build_run: RunBuilder) -> None:
    page = page_of(age(build_run(pictures=0, noise_origin="seeded"), *SIGNS))
    assert ALARM in page.text
    assert "The noise came from a fixed seed at that" in page.text
    assert "fixed seed (simulation)" in page.text
    assert "With secret noise" not in page.text


def test_a_missing_noise_is_worse_than_an_overstated_one(build_run: RunBuilder) -> None:
    folder = age(build_run(pictures=0, noise_multiplier=0.0), *SIGNS)
    assert page_of(folder).body == "none"


def test_an_old_hospitals_budget_has_nothing_known_left(build_run: RunBuilder) -> None:
    page = page_of(age(build_run(purpose="hospital", metrics=False, pictures=0), *SIGNS))
    assert "South 50 5 1 7.20 7.25 8.00 not known" in page.text


def test_older_steps_in_a_sites_ledger_qualify_its_lifetime_alone(build_run: RunBuilder) -> None:
    folder = build_run(purpose="hospital", metrics=False, pictures=0)
    edit_json(folder / "privacy.json", lambda losses: losses[1].update(affected_steps=1234))
    page = page_of(folder)
    assert page.body == "given"
    assert "The training keeps ε ≤ 7.90" in page.text
    assert "Earlier runs at South promised too much" in page.text
    assert "Older steps in the ledger of South." in page.text
    assert "holds 1,234 steps charged by medfl 0.1, whose promise was too small" in page.text
    assert "South 50 5 1 7.20 7.25 (too small) 8.00 not known" in page.text
    assert "North 50 0 0 7.90 7.95 8.00 0.0500" in page.text
    assert "ledger of North" not in page.text
