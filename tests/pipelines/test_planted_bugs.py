"""Every planted bug changes the code and goes away again, and the table tells who caught it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

PIPELINES = Path(__file__).parents[2] / "pipelines"
GROUPS = {"noise", "clipping", "draws", "patients", "ledger", "secure"}


@pytest.fixture(scope="module")
def pipeline() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PIPELINES))
        import planted_bugs

        yield planted_bugs


@pytest.fixture(scope="module")
def bugs(pipeline: ModuleType) -> ModuleType:
    import bugs

    return bugs


@pytest.fixture(scope="module")
def table(pipeline: ModuleType) -> ModuleType:
    from bugs import table

    return table


@pytest.fixture(scope="module")
def behave(bugs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the code does now."""
    from bugs.behaviour import behaviour, tiny_federation

    federation = tiny_federation(tmp_path_factory.mktemp("planted") / "hospitals")
    return lambda: behaviour(federation)


def test_there_are_bugs_of_every_kind_and_each_has_a_name_of_its_own(bugs: ModuleType) -> None:
    names = [bug.name for bug in bugs.BUGS]
    assert len(set(names)) == len(names) >= 24
    assert bugs.NONE not in names
    assert {bug.group for bug in bugs.BUGS} == GROUPS
    for bug in bugs.BUGS:
        assert bug.sentence.endswith(".")
        assert "|" not in bug.name + bug.sentence  # it would end a cell of the table
    with pytest.raises(ValueError, match="found 'no such bug'"):
        bugs.plant("no such bug")


@pytest.mark.slow
def test_every_bug_changes_what_the_code_does_and_leaves_no_trace(
    bugs: ModuleType, behave: Any
) -> None:
    right = behave()
    assert behave() == right
    unchanged = []
    for bug in bugs.BUGS:
        planting = bugs.plant(bug.name)
        try:
            if behave() == right:
                unchanged.append(bug.name)
        finally:
            planting.undo()
    assert unchanged == []
    assert behave() == right


def counted(first: int, *, second: int = 1) -> int:
    """One line more than one."""
    total = [first, second]
    return sum(total)


class Shop:
    """Something to plant bugs in."""

    name = "shop"

    def open(self) -> str:
        return "open"

    @classmethod
    def found(cls) -> str:
        return f"{cls.__name__} found"


def test_an_edited_function_is_changed_for_whoever_holds_it_until_it_is_restored(
    bugs: ModuleType,
) -> None:
    planting, held, shop = bugs.Planting(), counted, Shop()
    planting.edit(counted, ("first, second", "first, -second"))
    planting.edit(Shop.open, ('return "open"', 'return "closed"'))
    planting.exchange(Shop, "name", "nobody's")
    assert (held(3), held(3, second=2), shop.open(), shop.name) == (2, 1, "closed", "nobody's")
    planting.undo()
    assert (held(3), held(3, second=2), shop.open(), shop.name) == (4, 5, "open", "shop")


def test_a_class_method_can_be_edited(bugs: ModuleType) -> None:
    planting = bugs.Planting()
    planting.edit(Shop.found, ('} found"', '} lost"'))
    assert Shop.found() == "Shop lost"
    planting.undo()
    assert Shop.found() == "Shop found"


@pytest.mark.parametrize(("old", "times"), [("no such line", 0), ("total", 2)])
def test_a_bug_that_fits_the_code_no_more_is_not_planted_in_vain(
    old: str, times: int, bugs: ModuleType
) -> None:
    with pytest.raises(ValueError, match=f"found it {times} times"):
        bugs.Planting().edit(counted, (old, "pass"))
    assert counted(3) == 4


def test_a_function_is_not_edited_twice(bugs: ModuleType) -> None:
    planting = bugs.Planting()
    planting.edit(counted, ("first, second", "first, -second"))
    with pytest.raises(ValueError, match="edited once"):
        planting.edit(counted, ("first, second", "first, 0"))
    planting.undo()
    assert counted(3) == 4


def cells(table: ModuleType, **outcomes: str) -> dict[str, Any]:
    found = {"caught": "noise_std", "missed": "", "error": "a crash", "stopped": "an exception"}
    return {
        column: table.Cell(outcome=outcome, found=found[outcome], seconds=1.0)
        for column, outcome in outcomes.items()
    }


def rows(table: ModuleType, *of_bugs: dict[str, str], none: dict[str, str]) -> list[Any]:
    named = zip(("none planted", "first", "second"), (none, *of_bugs), strict=False)
    return [
        table.Row(name=name, group="noise", sentence="Sentence.", cells=cells(table, **outcomes))
        for name, outcomes in named
    ]


SILENT = {"mechanism": "missed", "canaries": "missed", "tests": "missed"}


def test_the_table_tells_who_caught_what(table: ModuleType) -> None:
    shown = rows(
        table,
        {"mechanism": "caught", "canaries": "missed", "tests": "caught"},
        {"mechanism": "missed", "tests": "caught"},
        none=SILENT,
    )
    assert table.markdown(shown).splitlines() == [
        "| bug | what the code does | mechanism test | canaries | fast tests |",
        "| --- | --- | --- | --- | --- |",
        "| none planted | Sentence. | silent | silent | silent |",
        "| first | Sentence. | caught | no | caught |",
        "| second | Sentence. | no | – | caught |",
        "| **caught** | **2 of 2** | 1 of 2 | 0 of 1 | 2 of 2 |",
    ]
    assert table.problems(shown) == []


@pytest.mark.parametrize(
    ("bug", "none", "problem"),
    [
        ({"mechanism": "missed", "tests": "missed"}, SILENT, "first: caught by nothing"),
        ({}, SILENT, "first: caught by nothing"),
        (
            {"mechanism": "caught", "tests": "error"},
            SILENT,
            "first: fast tests could not be run: a crash",
        ),
        ({"mechanism": "stopped", "tests": "missed"}, SILENT, "first: caught by nothing"),
        (
            {"mechanism": "caught"},
            {**SILENT, "canaries": "caught"},
            "The right code is accused by canaries: noise_std",
        ),
        (
            {"mechanism": "caught"},
            {**SILENT, "mechanism": "stopped"},
            "The right code is accused by mechanism test: an exception",
        ),
    ],
)
def test_what_nothing_catches_and_a_false_alarm_are_problems(
    bug: dict[str, str], none: dict[str, str], problem: str, table: ModuleType
) -> None:
    assert table.problems(rows(table, bug, none=none)) == [problem]


@pytest.mark.parametrize(
    ("accused", "caught_by", "status"), [("", "tests", 0), ("", "", 1), ("tests", "tests", 1)]
)
def test_the_exit_status_tells_whether_every_bug_was_caught_and_the_right_code_was_not(
    accused: str,
    caught_by: str,
    status: int,
    pipeline: ModuleType,
    table: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def run(task: Any) -> dict[str, Any]:
        by = accused if task.bug == "none planted" else caught_by
        outcomes = {column: "caught" if column == by else "missed" for column in task.columns}
        return cells(table, **outcomes)

    monkeypatch.setattr(pipeline, "run", run)
    app = typer.Typer()
    app.command()(pipeline.main)
    out = tmp_path / "found.json"
    done = CliRunner().invoke(app, ["--only", "no noise", "--out", str(out)])
    assert done.exit_code == status
    assert "[1/6]" in done.output
    assert "| no noise |" in done.output
    assert "minutes" in done.output
    values = json.loads(out.read_text(encoding="utf-8"))
    assert [row["name"] for row in values["bugs"]] == ["none planted", "no noise"]
    assert values["bugs"][1]["caught"] == bool(caught_by)
    assert bool(values["problems"]) == bool(status)


def test_a_column_is_run_for_bugs_that_it_could_notice_and_audits_come_first(
    pipeline: ModuleType, table: ModuleType
) -> None:
    names = ["none planted", "no noise", "a layer that counts"]
    tasks = [(task.bug, task.columns) for task in pipeline.tasks_of(names, list(table.COLUMNS))]
    assert tasks[:3] == [
        ("none planted", ("mechanism", "sensitivity")),
        ("no noise", ("mechanism",)),
        ("a layer that counts", ("mechanism", "sensitivity")),
    ]
    assert tasks[3:6] == [(name, ("tests",)) for name in names]
    assert tasks[6:] == [("none planted", ("canaries",)), ("no noise", ("canaries",))]


def test_every_named_test_exists(pipeline: ModuleType) -> None:
    missing = [path for path in pipeline.TESTS if not (pipeline.ROOT / path).exists()]
    assert missing == []


@pytest.mark.slow
def test_bugs_are_caught_by_the_parts_that_can_see_them_and_the_right_code_is_not_accused(
    pipeline: ModuleType, tmp_path: Path
) -> None:
    app = typer.Typer()
    app.command()(pipeline.main)
    out = tmp_path / "found.json"
    options = ["--only", "half of the noise", "--only", "one generator a round"]
    # The fast tests have groups of their own, and the canaries theirs.
    options += ["--column", "mechanism", "--column", "sensitivity"]
    done = CliRunner().invoke(app, [*options, "--out", str(out)])
    assert done.exit_code == 0, done.output
    values = json.loads(out.read_text(encoding="utf-8"))
    outcomes = {
        row["name"]: {column: cell["outcome"] for column, cell in row["cells"].items()}
        for row in values["bugs"]
    }
    assert outcomes["none planted"] == {"mechanism": "missed", "sensitivity": "missed"}
    assert outcomes["half of the noise"]["mechanism"] == "caught"
    assert outcomes["one generator a round"]["sensitivity"] == "caught"
