"""What everybody may read: it follows from nothing that could name a hospital or a size."""

from __future__ import annotations

import ast
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import medfl.reporting.governance
from medfl.reporting.governance.markdown import to_markdown
from medfl.reporting.governance.page import to_page
from medfl.reporting.governance.public_facts import public_facts
from medfl.reporting.governance.public_summary import public_summary
from medfl.reporting.governance.statement import statement
from medfl.reporting.governance.write import documents
from medfl.reporting.texts import Texts
from medfl.runs.records import SecureSum
from medfl.runs.results import read_run
from tests.reporting.governance.runs import DOUBTFUL

Builder = Callable[..., Path]

LANGUAGES = ("en", "zh")
HOME = Path(medfl.reporting.governance.__file__).parent


def public(folder: Path, language: str = "en") -> dict[str, str]:
    """The public files of a run, without the style and the font of a page."""
    document = public_summary(public_facts(read_run(folder)), Texts(language))  # type: ignore[arg-type]
    page = re.sub(r"(?s)<style>.*?</style>", "", to_page(document))
    return {"page": page, "markdown": to_markdown(document)}


def registered(folder: Path) -> dict[str, str]:
    """The run's entry for the registry."""
    return {"entry": statement(public_facts(read_run(folder)))}


def resized(folder: Path, *, names: dict[str, str], patients: dict[str, int], batch: int) -> Path:
    """The same run at hospitals of other names and sizes, and so of other ratios.

    Every rate is a batch over the number of patients, and every delta a tenth of its inverse.
    """
    for path in folder.glob("*.json*"):
        text = path.read_text()
        for old, new in names.items():
            text = text.replace(f'"{old}"', f'"{new}"')
        path.write_text(text)
    by_name = {names[old]: count for old, count in patients.items()}
    sites = json.loads((folder / "sites.json").read_text())
    for site in sites:
        count = by_name[site["name"]]
        site |= {"declared_patients": count, "weight": float(count)}
    (folder / "sites.json").write_text(json.dumps(sites))
    plans = json.loads((folder / "plan.json").read_text())
    for plan in plans:
        count = by_name[plan["site"]]
        rates = {"sampling_prob": batch / count, "divisor": float(batch)}
        plan |= {"declared_patients": count, "delta": 1 / (10 * count)} | rates
    (folder / "plan.json").write_text(json.dumps(plans))
    losses = json.loads((folder / "privacy.json").read_text())
    for loss in losses:
        loss["delta"] = 1 / (10 * by_name[loss["site"]])
    (folder / "privacy.json").write_text(json.dumps(losses))
    federation = json.loads((folder / "federation.json").read_text())
    federation["delta"] = max(loss["delta"] for loss in losses)
    (folder / "federation.json").write_text(json.dumps(federation))
    lines = []
    for line in (folder / "federation_ledger.jsonl").read_text().splitlines():
        event = json.loads(line)
        count = by_name[event["site"]]
        event["mechanism"] |= {"declared_patients": count, "sampling_prob": batch / count}
        lines.append(json.dumps(event) + "\n")
    (folder / "federation_ledger.jsonl").write_text("".join(lines))
    return folder


FIRST = {
    "names": {"North": "Charite", "South": "Lyon-Sud", "East": "UZ_Gent", "West": "Oslo7"},
    "patients": {"North": 137, "South": 211, "East": 183, "West": 149},
    "batch": 29,
}
SECOND = {
    "names": {"North": "Addenbrookes", "South": "Inselspital", "East": "AMC", "West": "KI"},
    "patients": {"North": 817, "South": 241, "East": 353, "West": 479},
    "batch": 53,
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_hospital_size_study_or_folder_is_named(language: str, deployed_run: Builder) -> None:
    folder = resized(deployed_run(), **FIRST)
    run = read_run(folder)
    ratios = [count * plan.sampling_prob for plan in run.plans.values() for count in (1, 40)]
    secrets = {
        *FIRST["names"].values(),
        *map(str, FIRST["patients"].values()),
        *(f"{sum(FIRST['patients'].values()):,}", str(sum(FIRST["patients"].values()))),
        *(str(FIRST["batch"]), *(f"{ratio:.3g}" for ratio in ratios)),
        *(f"{plan.delta:.2g}" for plan in run.plans.values()),
        *(run.study.id, run.environment.config_digest, run.environment.commit, str(folder)),
        *(run.environment.platform, run.environment.command, folder.name + "/"),
        *(loss.event_key[:12] for loss in run.privacy.values()),
    }
    for name, text in (public(folder, language) | registered(folder)).items():
        for secret in secrets:
            assert not re.search(
                rf"(?<![A-Za-z0-9.]){re.escape(secret)}(?![A-Za-z0-9.])", text, re.I
            ), (
                name,
                secret,
            )


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    "secure_sum", [None, SecureSum(sites=4, threshold=3, honest_sites=2, colluding_sites=1)]
)
def test_runs_of_other_hospitals_and_sizes_with_the_same_promise_read_the_same(
    language: str, secure_sum: SecureSum | None, deployed_run: Builder
) -> None:
    folder = resized(deployed_run(secure_sum=secure_sum), **FIRST)
    one = public(folder, language) | registered(folder)
    shutil.rmtree(folder)
    folder = resized(deployed_run(secure_sum=secure_sum), **SECOND)
    assert one == public(folder, language) | registered(folder)


@pytest.mark.parametrize("module", ["public_summary", "statement"])
def test_a_public_document_is_made_from_public_facts_alone(module: str) -> None:
    tree = ast.parse((HOME / f"{module}.py").read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not any(name and name.startswith("medfl.runs") for name in imported)
    assert "RunResults" not in named
    assert "PublicFacts" in named


def test_the_documents_of_a_run_hold_the_public_summary(deployed_run: Builder) -> None:
    folder = deployed_run()
    assert (
        documents(read_run(folder), Texts("en"))["public-summary.en.md"]
        == (public(folder)["markdown"])
    )


def test_public_facts_hold_no_text_of_a_person_and_no_count_of_a_hospital(
    deployed_run: Builder,
) -> None:
    facts = vars(public_facts(read_run(resized(deployed_run(), **FIRST))))
    strings = {name for name, value in facts.items() if isinstance(value, str)}
    assert strings == {"version", "audited", "tuning"}
    numbers = {name: value for name, value in facts.items() if type(value) in (int, float)}
    assert numbers == {
        "rounds": 10,
        "planned": 10,
        "epsilon": 7.9,
        "delta": 0.001,  # of a hospital of 137 patients, 0.00073
        "colluding": 0,
    }


@pytest.mark.parametrize("delta", [1e-5, 1.1e-6, 1 / 370, 1 / 1370, 0.01])
def test_delta_is_never_rounded_down(delta: float, deployed_run: Builder) -> None:
    folder = deployed_run()
    for name in ("privacy.json", "federation.json", "plan.json"):
        path = folder / name
        path.write_text(path.read_text().replace('"delta": 1e-05', f'"delta": {delta!r}'))
    found = public_facts(read_run(folder)).delta
    assert delta <= found < 10 * delta
    assert math.log10(found) == pytest.approx(round(math.log10(found)), abs=1e-12)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("doubt", sorted(DOUBTFUL))
def test_what_stands_against_a_promise_is_told_to_everybody(
    doubt: str, language: str, deployed_run: Builder
) -> None:
    said = public(DOUBTFUL[doubt](deployed_run), language)
    texts = Texts(language)  # type: ignore[arg-type]
    key = "simulation" if doubt == "open data" else doubt
    for text in said.values():
        assert texts("public.verdict.doubt") in text
        assert texts(f"doubt.{key}", done=6, planned=10) in text


@pytest.mark.parametrize("doubt", ["none", "overstated", "seeded"])
def test_nothing_is_promised_where_nothing_limits_the_loss(
    doubt: str, deployed_run: Builder
) -> None:
    folder = DOUBTFUL[doubt](deployed_run)
    for text in (public(folder) | registered(folder)).values():
        assert "ε" not in text.replace("δ is rounded", "")
        assert "80" not in text
        assert "added random noise before" not in text
        assert "stays limited" not in text


@pytest.mark.parametrize("doubt", ["simulation", "unknown", "open data"])
def test_a_trial_does_not_say_that_hospitals_took_part(doubt: str, deployed_run: Builder) -> None:
    for text in public(DOUBTFUL[doubt](deployed_run)).values():
        assert "Several hospitals trained" not in text
        assert "No image of a patient left" not in text
        assert "This was a trial" in text
