"""Sites side by side: the same run, bit by bit, whoever works where and whoever dies."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from safetensors import safe_open

from medfl.errors import ConfigError, FederationError
from medfl.privacy.ledger.ledger import Ledger
from medfl.runs.records import Round
from medfl.server.ask import ask
from medfl.server.progress import Silent
from medfl.server.run_folder import RunFolder
from medfl.study.in_process_grid import InProcessGrid, run_in_process
from medfl.study.run import run_study
from medfl.study.side_by_side import Part, PartTeller, SideBySideGrid, Together, share_out
from medfl.study.workers import Workers

OPEN: dict[str, Any] = {
    "privacy": {"share_metrics": True, "allow_baselines": True},
    "threads": 2,
    "adapt": {"steps": 2},
}
SITES = ("east", "north", "south")
BESIDE = {"evaluation": {"every": 1, "baselines": ["local-only", "alone", "adapted", "pooled"]}}
STUDY: dict[str, Any] = {
    "aggregation": {"strategy": "fedadam", "server_learning_rate": 1e-3, "ema_decay": 0.9},
    "evaluation": {"every": 1},
}


class Noted(Silent):
    """Keeps what it is told, and does something at the n-th step."""

    def __init__(self, *, at: int = 0, action: Callable[[], object] = bool) -> None:
        self.steps: list[tuple[str, int, int]] = []
        self.phases: list[str] = []
        self.bars: list[tuple[int, int]] = []
        self._at = at
        self._action = action

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def advanced(self, done: int, total: int) -> None:
        self.bars.append((done, total))

    def stepped(self, site: str, done: int, total: int) -> None:
        self.steps.append((site, done, total))
        if len(self.steps) == self._at:
            self._action()


def workers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "medfl.study.worker" in p.cmdline()]


def kill_one() -> None:
    workers()[0].kill()


# Who works where


@pytest.mark.parametrize(
    ("patients", "places", "expected"),
    [
        ((5, 4, 4), 1, [0, 0, 0]),
        ((5, 4, 4), 2, [0, 1, 1]),
        ((2, 9, 3), 2, [1, 0, 1]),
        ((5, 4, 4), 3, [0, 1, 2]),
    ],
)
def test_the_longest_work_is_given_first_to_who_has_least(
    patients: tuple[int, ...], places: int, expected: list[int], federation: Any
) -> None:
    sites = [
        federation.site(name, declared_patients=count)
        for name, count in zip(SITES, patients, strict=True)
    ]
    assert share_out(sites, places=places, by_patients=True) == expected
    even = share_out(sites, places=places, by_patients=False)
    assert max(map(even.count, range(places))) - min(map(even.count, range(places))) <= 1


def test_sites_with_one_state_folder_share_a_place(federation: Any, tmp_path: Path) -> None:
    sites = federation.sites(state=str(tmp_path / "state"))
    other = federation.site("west", state=str(tmp_path / "other" / ".." / "west"))
    same = federation.site("west", state=str(tmp_path / "west"))
    assert share_out([*sites, other, same], places=5, by_patients=True) == [0, 0, 0, 1, 1]


# Progress of several sites


def test_what_sites_do_together_is_one_phase_with_one_bar() -> None:
    shown = Noted()
    together = Together(shown)
    east, south = (PartTeller(name, tell=together.hear) for name in ("east", "south"))
    east.phase("alone")
    east.advanced(1, 4)
    south.phase("alone")
    south.advanced(2, 4)
    east.advanced(4, 4)
    south.advanced(4, 4)
    assert shown.phases == ["east alone", "east alone, south alone"]
    assert shown.bars == [(0, 1), (1, 4), (1, 5), (3, 8), (6, 8), (8, 8)]


def test_what_one_site_does_after_the_other_is_one_phase_each() -> None:
    shown = Noted()
    together = Together(shown)
    for name in ("east", "south"):
        teller = PartTeller(name, tell=together.hear)
        teller.planned((), rounds=2)
        teller.phase("rounds")
        for number in (1, 2):
            teller.round_finished(Round(round=number, seconds=1.0, sites={}))
    assert shown.phases == ["east rounds", "south rounds"]
    assert shown.bars == [(0, 1), (1, 2), (2, 2)] * 2


def test_a_part_says_who_does_what() -> None:
    assert Part(site="east", name="alone", done=1, total=2).label == "east alone"


# The grid


def numbers(values: list[float]) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"w": Array(np.array(values, np.float32))})})


def values_of(message: Message) -> list[float]:
    return list(message.content.array_records["arrays"]["w"].numpy())


def counting_nodes(tell: Callable[[Any], None]) -> Callable[[Message], Message | None]:
    """Nodes that tell their partition and how often they were asked; node 4 is silent."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        seen = context.state.get("seen", numbers([0.0])["arrays"])["w"].numpy()[0] + 1
        context.state["seen"] = numbers([seen])["arrays"]
        partition = context.node_config["partition-id"]
        return Message(numbers([partition, seen, os.getpid()]), reply_to=message)

    nodes = {node: {"partition-id": node * 10} for node in (2, 3, 4)}
    grid = InProcessGrid(app, node_configs=nodes)
    return lambda message: None if message.metadata.dst_node_id == 4 else grid.deliver(message)


@contextmanager
def grid_of(jobs: int) -> Iterator[SideBySideGrid]:
    with (
        Workers(jobs) as places,
        places.bench(counting_nodes, hear=lambda _: None) as bench,
    ):
        yield SideBySideGrid(bench, places={node: node % jobs for node in (2, 3, 4)})


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_nodes_answer_in_the_order_of_the_questions_and_keep_their_state(jobs: int) -> None:
    heard: list[tuple[int, list[float]]] = []
    with grid_of(jobs) as grid:
        app = ServerApp()

        @app.main()
        def main(given: Grid, _: Context) -> None:
            for nodes in ((3,), (3, 2, 4), (2, 3)):
                questions = {node: numbers([0.0]) for node in nodes}
                replies = ask(given, questions, kind="train", group="1", timeout=0.05)
                heard.extend((node, values_of(reply)) for node, reply in replies.items())

        run_in_process(app, grid)
    assert [(node, values[:2]) for node, values in heard] == [
        (3, [30.0, 1.0]),
        (3, [30.0, 2.0]),
        (2, [20.0, 1.0]),
        (2, [20.0, 2.0]),
        (3, [30.0, 3.0]),
    ]
    assert len({values[2] for _, values in heard}) == jobs


# Whole runs


def content(file: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Metadata and exact values of a model file, whose metadata stand in any order."""
    with safe_open(file, framework="np") as opened:
        values = {name: opened.get_tensor(name).tobytes() for name in opened.keys()}  # noqa: SIM118
        return opened.metadata(), values


def models(out: Path) -> dict[Path, Any]:
    """All models of a run and of its baselines, but for the name of the run."""
    found = {}
    for file in sorted(out.rglob("checkpoints/*.safetensors")):
        metadata, values = content(file)
        metadata.pop("run", None)
        found[file.relative_to(out)] = metadata, values
    return found


def tables(out: Path) -> dict[Path, list[list[str]]]:
    found = {}
    for file in sorted(out.rglob("*.csv")):
        with file.open(newline="") as opened:
            found[file.relative_to(out)] = list(csv.reader(opened))
    return found


def events(out: Path) -> list[Any]:
    """What the server wrote of every update, but for what names the run and the keys."""
    changing = {"message_id", "ledger_hash", "statement"}
    return [event.model_dump(exclude=changing) for event in RunFolder(out).events()]


def charges(folder: Path) -> list[Any]:
    """What a site's ledger was charged for."""
    with Ledger.open(folder) as ledger:
        spent = [(run.study, run.charges, run.epsilon) for run in ledger.spent().by_run]
        return [spent, [(entry.sequence, entry.kind) for entry in ledger.entries()]]


def outcomes(out: Path) -> list[Any]:
    return [line.model_copy(update={"seconds": 0.0}) for line in RunFolder(out).rounds()]


def assert_same(out: Path, other: Path) -> None:
    assert models(out) == models(other)
    assert tables(out) == tables(other)
    assert events(out) == events(other)
    assert outcomes(out) == outcomes(other)
    ledgers = sorted(file.relative_to(out) for file in out.rglob("sites/*/ledger"))
    assert ledgers
    for ledger in ledgers:
        assert charges(out / ledger) == charges(other / ledger)
    written = [json.loads((folder / "privacy.json").read_text()) for folder in (out, other)]
    assert [site["epsilon_pld"] for site in written[0]] == [s["epsilon_pld"] for s in written[1]]


@pytest.fixture(scope="module")
def one_after_the_other(shared_federation: Any) -> Path:
    """A study without workers, with what is done beside it."""
    out: Path = shared_federation.scratch / "one"
    study = shared_federation.study(**STUDY | BESIDE)
    run_study(study, shared_federation.sites(*SITES, **OPEN), out=out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [2, 3])
def test_a_run_is_the_same_bits_however_many_sites_work_at_once(
    jobs: int, federation: Any, one_after_the_other: Path
) -> None:
    noted, out = Noted(), federation.scratch / "run"
    study = federation.study(**STUDY | BESIDE)
    run_study(study, federation.sites(*SITES, **OPEN), out=out, jobs=jobs, progress=noted)
    assert_same(out, one_after_the_other)
    assert sorted(noted.steps) == sorted((name, 1, 1) for name in SITES for _ in range(2))
    assert f"sites at once: {jobs}" in noted.phases
    assert "east alone" in " ".join(noted.phases)
    assert workers() == []


@pytest.mark.slow
def test_a_run_whose_worker_was_killed_goes_on_to_the_same_bits(federation: Any) -> None:
    study, sites = federation.study(**STUDY), federation.sites(*SITES, **OPEN)
    unbroken, out = federation.scratch / "unbroken", federation.scratch / "run"
    run_study(study, sites, out=unbroken)
    noted = Noted(at=4, action=kill_one)  # in the second round
    with pytest.raises(FederationError, match=r"ended by signal SIGKILL.*--resume"):
        run_study(study, sites, out=out, jobs=2, progress=noted)
    assert workers() == []
    assert len(RunFolder(out).rounds()) == 1
    run_study(study, sites, out=out, jobs=2, resume=True)
    assert models(out) == models(unbroken)
    scores = Path("metrics.csv")
    assert tables(out)[scores] == tables(unbroken)[scores]


@pytest.mark.slow
def test_a_stopped_run_leaves_no_process(federation: Any) -> None:
    def stop() -> None:
        assert len(workers()) == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(
            federation.study(),
            federation.sites(*SITES, **OPEN),
            out=federation.scratch / "run",
            jobs=2,
            progress=Noted(at=1, action=stop),
        )
    assert workers() == []


@pytest.mark.slow
def test_a_site_s_failure_arrives_as_its_code_and_names_nobody(
    federation: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Two hospitals with ledgers and a witness; the images of one are damaged once it agreed."""
    east, south = (federation.hospital(name, copy_patients=True) for name in ("east", "south"))

    class Damage(Silent):
        def planned(self, *_: Any, **__: Any) -> None:
            for file in Path(south.data.root).rglob("*_flair.nii.gz"):
                file.write_bytes(file.read_bytes()[:200])

    study = federation.study(
        privacy={"noise": "operating-system"}, aggregation={"min_sites": 1}, training={"rounds": 1}
    )
    out = federation.scratch / "run"
    run_study(study, [east, south], out=out, jobs=2, progress=Damage())
    (line,) = RunFolder(out).rounds()
    codes = {name: (site.outcome, site.code) for name, site in line.sites.items()}
    assert codes == {"east": ("admitted", ""), "south": ("refused", "data")}
    assert "Refused with code data" in caplog.text
    assert "BraTS2021" not in caplog.text
    for site, paid in ((east, 1), (south, 0)):
        with Ledger.open(site.state / "ledger") as ledger:
            assert sum(run.charges for run in ledger.spent().by_run) == paid


def test_ray_shares_the_machine_itself(federation: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jobs = 1 for --engine ray"):
        run_study(
            federation.study(), federation.sites(), out=tmp_path / "run", engine="ray", jobs=2
        )
    assert not (tmp_path / "run").exists()


SCRIPT = """
import sys
import medfl
print("begun", flush=True)  # and no `if __name__ == "__main__"`
study, sites = medfl.load_study(sys.argv[1]), [medfl.load_site(file) for file in sys.argv[3:]]
print(medfl.run_study(study, sites, out=sys.argv[2], jobs=2).study)
"""


@pytest.mark.slow
def test_a_script_without_a_guard_runs_one_study(
    hospital_files: dict[str, Path], tiny_study: str, tmp_path: Path
) -> None:
    (tmp_path / "study.toml").write_text(tiny_study)
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "torch.py").write_text("raise RuntimeError('not ours')")
    script = [sys.executable, "-P", tmp_path / "script.py", tmp_path / "study.toml"]
    ended = subprocess.run(
        [*script, tmp_path / "run", hospital_files["east"], hospital_files["south"]],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["begun", "tiny"]
