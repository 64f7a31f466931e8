"""The entry for the registry: in its schema, and without a parameter that a run does not show."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

import medfl.reporting.governance
from medfl.reporting.governance.public_facts import public_facts
from medfl.reporting.governance.statement import FILE, statement
from medfl.reporting.governance.write import documents
from medfl.reporting.texts import Texts
from medfl.runs.records import SecureSum
from medfl.runs.results import read_run
from tests.reporting.governance.runs import DOUBTFUL, rewrite

Builder = Callable[..., Path]

SCHEMA = Path(medfl.reporting.governance.__file__).with_name("registry.schema.json")
SECURE = SecureSum(sites=4, threshold=3, honest_sites=2, colluding_sites=1)


@pytest.fixture(scope="module")
def validator() -> Draft7Validator:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema, format_checker=Draft7Validator.FORMAT_CHECKER)


def entry(folder: Path) -> Any:
    return yaml.safe_load(statement(public_facts(read_run(folder))))


def faults(validator: Draft7Validator, found: Any) -> list[str]:
    return [error.message for error in validator.iter_errors(found)]


def leaves(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        for value in node.values():
            yield from leaves(value)
    elif isinstance(node, list):
        for value in node:
            yield from leaves(value)
    else:
        yield node


@pytest.mark.parametrize("secure_sum", [None, SECURE])
def test_an_entry_is_in_the_schema_of_the_registry(
    secure_sum: SecureSum | None, deployed_run: Builder, validator: Draft7Validator
) -> None:
    found = entry(deployed_run(secure_sum=secure_sum))
    assert faults(validator, found) == []
    assert (found["status"], found["tier"]) == ("Draft", 3)
    assert found["deployment"]["privacy_loss"]["privacy_parameters"] == {
        "epsilon": 7.9,
        "delta": 1e-5,
    }
    assert found["deployment"]["dp_variant"]["variant_name"] == "Approximate DP"
    assert found["deployment"]["basic"]["publication_date"] == "2026-01-31"
    against = found["deployment"]["deployment_model"]["model_name_details"]
    assert ("up to 1 of the other hospitals" in against) == (secure_sum is not None)


@pytest.mark.parametrize("doubt", sorted(DOUBTFUL))
def test_an_entry_of_a_run_that_shows_no_protection_has_no_parameters(
    doubt: str, deployed_run: Builder, validator: Draft7Validator
) -> None:
    found = entry(DOUBTFUL[doubt](deployed_run))
    assert faults(validator, found) == []
    assert found["tier"] == 1
    assert set(found["deployment"]) == {"basic", "administrative"}
    assert found["deployment"]["administrative"]["notes"].startswith("NOT TO BE SUBMITTED")
    assert not any(isinstance(leaf, float) for leaf in leaves(found))


def test_epsilon_is_never_rounded_down(deployed_run: Builder) -> None:
    folder = deployed_run()
    rewrite(folder / "federation.json", epsilon=7.9512)
    parameters = entry(folder)["deployment"]["privacy_loss"]["privacy_parameters"]
    assert parameters["epsilon"] == 7.96


@pytest.mark.parametrize(
    ("tuning", "said"),
    [
        (None, "does not state"),
        ({"on": "public"}, "synthetic patients"),
        ({"on": "public", "collections": ["TCGA-LGG"]}, "public patients"),
        ({"on": "sites", "runs": 3}, "charged"),
    ],
)
def test_what_settings_were_chosen_on_is_said_without_a_name(
    tuning: dict[str, Any] | None, said: str, deployed_run: Builder
) -> None:
    folder = deployed_run()
    rewrite(folder / "study.json", tuning=tuning)
    found = entry(folder)["deployment"]["implementation"]
    assert said in found["preprocessing_and_hyperparameter_tuning"]
    assert "TCGA" not in str(found)


def test_the_registry_reads_texts_of_several_lines_as_they_are(deployed_run: Builder) -> None:
    text = statement(public_facts(read_run(deployed_run())))
    styles = {token.style for token in yaml.scan(text) if hasattr(token, "style")}
    assert styles <= {None, "|", "'"}
    assert "    actors: |\n      - Hospitals:" in text


def test_one_entry_serves_all_languages(deployed_run: Builder) -> None:
    run = read_run(deployed_run())
    assert documents(run, Texts("en"))[FILE] == documents(run, Texts("zh"))[FILE]


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"tier": 4},
        {"status": "Done"},
        {"deployment": {"basic": {}, "administrative": {"registry_authors": ["A"]}}},
    ],
)
def test_the_schema_refuses_what_the_registry_refuses(
    change: dict[str, Any], deployed_run: Builder, validator: Draft7Validator
) -> None:
    assert faults(validator, entry(deployed_run()) | change)
