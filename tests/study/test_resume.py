"""A run that is stopped anywhere goes on to the same model, bit for bit, and pays nothing twice."""

from __future__ import annotations

import csv
import errno
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from safetensors import safe_open

from medfl.errors import ConfigError, FederationError
from medfl.runs.records import Round
from medfl.server.ledger import FederationLedger
from medfl.server.run_folder import RunFolder
from medfl.study.simulation import prepare_folder

pytestmark = pytest.mark.slow

Answer = Callable[[], Message]
Finished = Any  # of this folder's conftest

FALLING = {"shape": "cosine", "warmup_rounds": 1, "final_fraction": 0.3}
# Every kind of state that a resumed run needs: moments, an average, scores of every round, and
# numbers that are others in each round.
STUDY: dict[str, Any] = {
    "privacy": {"clip_norm_schedule": FALLING},
    "training": {"rounds": 3, "learning_rate_schedule": FALLING, "weight_decay": 0.1},
    "aggregation": {
        "strategy": "fedadam",
        "server_learning_rate": 1e-3,
        "server_learning_rate_schedule": FALLING,
        "ema_decay": 0.9,
    },
    "evaluation": {"every": 1},
}
SITES = ("east", "south")
RUN = "resumed"


class Stop:
    """Stops the run at the n-th message of a kind to a site, once."""

    def __init__(self, kind: str, site: str, number: int, *, after: bool, by: type) -> None:
        self._wanted = (kind, site)
        self._number = number
        self._after = after
        self._by = by

    def __call__(self, site: str, message: Message, answer: Answer) -> Message:
        if (message.metadata.message_type, site) != self._wanted:
            return answer()
        self._number -= 1
        if self._number == 0 and not self._after:
            raise self._by
        reply = answer()
        if self._number == 0:
            raise self._by
        return reply


@pytest.fixture(scope="module")
def unbroken(shared_federation: Any) -> Finished:
    """The same study without interruption."""
    study = shared_federation.study(**STUDY)
    return shared_federation.run(study, sites(shared_federation), name="unbroken", run_id=RUN)


def sites(federation: Any) -> list[Any]:
    return federation.sites(*SITES, privacy={"share_metrics": True})


def rows(finished: Finished, name: str) -> list[dict[str, str]]:
    with (finished.path / name).open(newline="") as file:
        return list(csv.DictReader(file))


def without_times(lines: list[Round]) -> list[Round]:
    return [line.model_copy(update={"seconds": 0.0}) for line in lines]


def content(file: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Metadata and exact values of a model file, whose metadata stand in any order."""
    with safe_open(file, framework="np") as opened:
        values = {name: opened.get_tensor(name).tobytes() for name in opened.keys()}  # noqa: SIM118
        return opened.metadata(), values


def assert_same_run(finished: Finished, unbroken: Finished) -> None:
    """Models, tables and ledgers of a resumed run and of an unbroken one."""
    for file in sorted((unbroken.path / "checkpoints").iterdir()):
        assert content(finished.path / "checkpoints" / file.name) == content(file)
    for name in ("metrics.csv", "rounds.csv"):
        assert rows(finished, name) == rows(unbroken, name)
        assert max(Counter(map(str, rows(finished, name))).values()) == 1
    assert without_times(finished.folder.rounds()) == without_times(unbroken.folder.rounds())
    events = [(e.round, e.site, e.epsilon) for e in finished.folder.events()]
    assert events == [(e.round, e.site, e.epsilon) for e in unbroken.folder.events()]


STOPS = {
    "before the first site is asked": Stop("query", "east", 1, after=False, by=KeyboardInterrupt),
    "while the first model is scored": Stop("evaluate", "south", 1, after=True, by=SystemExit),
    "before a site of round 1": Stop("train", "south", 1, after=False, by=KeyboardInterrupt),
    "before a site of round 2": Stop("train", "south", 2, after=False, by=KeyboardInterrupt),
    "after a site, before its reply arrives": Stop("train", "south", 2, after=True, by=SystemExit),
    "while round 2 is scored": Stop("evaluate", "east", 3, after=False, by=KeyboardInterrupt),
    "while the last round is scored": Stop("evaluate", "south", 4, after=True, by=SystemExit),
}


@pytest.mark.parametrize("point", STOPS)
def test_a_run_stopped_at_a_site_goes_on_to_the_same_model(
    point: str, federation: Any, unbroken: Finished
) -> None:
    study, stop = federation.study(**STUDY), STOPS[point]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        federation.run(study, sites(federation), fault=stop, run_id=RUN)
    finished = federation.run(study, sites(federation), resume=True, run_id=RUN)
    assert_same_run(finished, unbroken)
    assert [finished.charges(site) for site in SITES] == [3, 3]


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (FederationLedger, "record", 4),  # the reply is here, its event is not written
        (RunFolder, "append_round", 2),  # aggregated, nothing of it is written
        (RunFolder, "write_checkpoint", 3),  # the tables have the round, the model file is missing
        (RunFolder, "append_scores", 3),  # the model file is there, its scores are not
        (RunFolder, "write_state", 3),  # everything is there but the server's own checkpoint
    ],
)
def test_a_run_stopped_while_the_server_writes_goes_on_to_the_same_model(
    owner: type,
    name: str,
    call: int,
    federation: Any,
    unbroken: Finished,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study, calls = federation.study(**STUDY), 0
    original = getattr(owner, name)

    def stop_once(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop_once)
        with pytest.raises(KeyboardInterrupt):
            federation.run(study, sites(federation), run_id=RUN)
    finished = federation.run(study, sites(federation), resume=True, run_id=RUN)
    assert_same_run(finished, unbroken)
    # Sites that had answered sent the same bytes again.
    assert [finished.charges(site) for site in SITES] == [3, 3]


def test_a_run_goes_on_after_the_servers_disk_was_full(
    federation: Any, unbroken: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, writes = federation.study(**STUDY), 0
    original = RunFolder.write_state

    def full(self: RunFolder, *arguments: Any, **keywords: Any) -> None:
        nonlocal writes
        writes += 1
        if writes == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_state", full)
        with pytest.raises(OSError, match="No space left"):
            federation.run(study, sites(federation), run_id=RUN)
    finished = federation.run(study, sites(federation), resume=True, run_id=RUN)
    assert_same_run(finished, unbroken)
    assert [finished.charges(site) for site in SITES] == [3, 3]


@pytest.mark.parametrize(
    ("append", "file"),
    [
        ("append_declaration", "declarations.jsonl"),
        ("append_event", "federation_ledger.jsonl"),
        ("append_round", "rounds.jsonl"),
    ],
)
def test_a_run_goes_on_after_a_crash_has_torn_a_line(
    append: str, file: str, federation: Any, unbroken: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, calls = federation.study(**STUDY), 0
    original = getattr(RunFolder, append)

    def torn(self: RunFolder, *arguments: Any, **keywords: Any) -> None:
        nonlocal calls
        calls += 1
        original(self, *arguments, **keywords)
        if calls == 2:
            path = self.path / file
            path.write_bytes(path.read_bytes()[:-40])
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, append, torn)
        with pytest.raises(KeyboardInterrupt):
            federation.run(study, sites(federation), run_id=RUN)
    finished = federation.run(study, sites(federation), resume=True, run_id=RUN)
    assert_same_run(finished, unbroken)
    assert [finished.charges(site) for site in SITES] == [3, 3]


def test_a_checkpoint_older_than_the_ledgers_costs_nothing_twice(
    federation: Any, unbroken: Finished
) -> None:
    study = federation.study(**STUDY)
    states: list[bytes] = []

    def keep(site: str, message: Message, answer: Answer) -> Message:
        path = federation.scratch / "run" / "checkpoints" / "state.safetensors"
        if path.exists():
            states.append(path.read_bytes())
        return answer()

    finished = federation.run(study, sites(federation), fault=keep, run_id=RUN)
    # The backup of a server, from before the first round.
    (finished.path / "checkpoints" / "state.safetensors").write_bytes(states[0])
    again = federation.run(study, sites(federation), resume=True, run_id=RUN)
    for file in sorted((unbroken.path / "checkpoints").iterdir()):
        assert content(again.path / "checkpoints" / file.name) == content(file)
    assert [again.charges(site) for site in SITES] == [3, 3]
    # The server has not forgotten what was spent: the repeated rounds show all of it.
    spent = {row["epsilon"] for row in rows(again, "rounds.csv")}
    assert spent == {rows(unbroken, "rounds.csv")[-1]["epsilon"]}


def test_a_run_may_be_stopped_again_and_again(federation: Any, unbroken: Finished) -> None:
    study = federation.study(**STUDY)
    for number in range(4):
        stop = Stop("train", "south", 1, after=number % 2 == 0, by=KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            federation.run(study, sites(federation), fault=stop, resume=number > 0, run_id=RUN)
    finished = federation.run(study, sites(federation), resume=True, run_id=RUN)
    assert_same_run(finished, unbroken)


def test_a_finished_run_that_is_resumed_stays_as_it_is(federation: Any, unbroken: Finished) -> None:
    study = federation.study(**STUDY)
    federation.run(study, sites(federation), run_id=RUN)
    finished = federation.run(study, sites(federation), resume=True, run_id=RUN)
    assert_same_run(finished, unbroken)
    assert [finished.charges(site) for site in SITES] == [3, 3]


def test_a_hospitals_stopped_round_is_sent_again_and_not_charged_again(federation: Any) -> None:
    hospitals = [federation.hospital(name) for name in SITES]
    study = federation.study(privacy={"noise": "operating-system"})
    sent: list[dict[str, torch.Tensor]] = []

    def stop(site: str, message: Message, answer: Answer) -> Message:
        reply = answer()
        if message.metadata.message_type == "train" and site == "east":
            arrays = reply.content.array_records["arrays"]
            sent.append({k: torch.from_numpy(v.numpy()) for k, v in arrays.items()})
            if len(sent) == 1:
                raise KeyboardInterrupt
        return reply

    with pytest.raises(KeyboardInterrupt):
        federation.run(study, hospitals, fault=stop)
    federation.run(study, hospitals, fault=stop, resume=True)
    # Fresh noise would have changed every number.
    assert all(torch.equal(sent[0][name], sent[1][name]) for name in sent[0])
    from medfl.privacy.ledger.ledger import Ledger

    for hospital in hospitals:
        with Ledger.open(hospital.state / "ledger") as ledger:
            (run,) = ledger.spent().by_run
            assert (run.charges, run.released) == (2, 2)
            assert ledger.spent().wasted_epsilon == 0.0


def test_a_round_whose_stored_update_is_lost_is_computed_and_charged_again(
    federation: Any,
) -> None:
    study = federation.study(**STUDY)
    stop = Stop("train", "south", 2, after=True, by=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        federation.run(study, sites(federation), fault=stop, run_id=RUN)
    newest = max(
        (federation.scratch / "run" / "sites" / "east" / "outbox").glob("*.safetensors"),
        key=lambda path: path.stat().st_mtime_ns,
    )
    newest.unlink()
    finished = federation.run(study, sites(federation), resume=True, run_id=RUN)
    assert finished.charges("east") == 4
    assert finished.charges("south") == 3


def test_another_study_is_not_resumed_in_its_folder(federation: Any) -> None:
    study = federation.study(training={"rounds": 1})
    federation.run(study, sites(federation))
    with pytest.raises(ConfigError, match="expected a run of this very study to resume, found ano"):
        federation.run(federation.study(seed=5), sites(federation), resume=True)


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_that_does_not_fit_is_refused(resume: bool, federation: Any) -> None:
    out = federation.scratch / "out"
    if not resume:
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    expected = "found no run" if resume else "use --resume"
    with pytest.raises(ConfigError, match=expected):
        prepare_folder(out, study=federation.study(), resume=resume)
    assert resume or [file.name for file in out.iterdir()] == ["notes.txt"]


def test_a_damaged_checkpoint_is_named_and_nothing_is_trained(federation: Any) -> None:
    study = federation.study(training={"rounds": 1})
    finished = federation.run(study, sites(federation))
    state = finished.path / "checkpoints" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(FederationError, match=r"state.safetensors: expected a server checkpoint"):
        federation.run(study, sites(federation), resume=True)


def test_a_damaged_line_of_the_federation_ledger_is_named(federation: Any) -> None:
    study = federation.study(training={"rounds": 1})
    finished = federation.run(study, sites(federation))
    with (finished.path / "federation_ledger.jsonl").open("a") as file:
        file.write('{"sequence": 3, "rou\n')
    with pytest.raises(FederationError, match=r"federation_ledger.jsonl: expected JSON lines"):
        federation.run(study, sites(federation), resume=True)


def test_no_table_is_lost_when_a_resumed_run_is_stopped_while_it_cuts_them(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = federation.study(training={"rounds": 1}, evaluation=STUDY["evaluation"])
    finished = federation.run(study, sites(federation))
    before = {name: rows(finished, name) for name in ("rounds.csv", "metrics.csv")}
    replace, calls = Path.replace, 0

    def stop_at_the_second(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            RunFolder(finished.path).truncate_tables(after_round=1, variant="federated")
    assert {name: rows(finished, name) for name in before} == before
    assert json.loads((finished.path / "run.json").read_text())["run"]
