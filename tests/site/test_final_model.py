"""The final model of a run at a hospital: looked at as any other, kept once, and answered alike."""

from __future__ import annotations

import hashlib
import logging
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from safetensors import safe_open
from safetensors.torch import load_file

from medfl.config import SiteConfig, StudyConfig
from medfl.privacy.ledger.ledger import Ledger
from medfl.protocol.messages import (
    FINISH,
    Declaration,
    Finished,
    FinishTask,
    Participant,
    Proposal,
    Weights,
    read_body,
    refusal_code,
    to_record,
)
from medfl.segmentation.model_file import read_provenance
from medfl.site.own_model import write_own_model
from medfl.site.run_models import RunModels, finished_runs, models_of
from medfl.site.state import hospital_state

# A hospital takes part in no study with seeded noise.
STUDY: dict[str, Any] = {"privacy": {"noise": "operating-system"}, "training": {"rounds": 1}}


class Run:
    """A finished run of three hospitals and the ways to send its final model again."""

    def __init__(self, federation: Any, **changes: Any) -> None:
        self.federation = federation
        self.hospitals: dict[str, SiteConfig] = {
            name: federation.hospital(name) for name in ("east", "north", "south")
        }
        self.study: StudyConfig = federation.study(**STUDY)
        self.finished = federation.run(self.study, list(self.hospitals.values()), **changes)
        declared = [declaration for _, declaration in self.finished.folder.declarations()]
        self.declarations: dict[str, Declaration] = {each.site: each for each in declared}

    @property
    def checkpoint(self) -> Path:
        path: Path = self.finished.path / "checkpoints" / "final.safetensors"
        return path

    def models(self, name: str) -> RunModels:
        return models_of(self.hospitals[name].state, run=self.finished.folder.run_id())

    def task(self, **changes: Any) -> FinishTask:
        values: dict[str, Any] = {
            "study": self.study,
            "run": self.finished.folder.run_id(),
            "sites": {
                site: Participant(label_scheme=said.label_scheme, mechanism=said.mechanism)
                for site, said in self.declarations.items()
            },
        }
        return FinishTask(**values | changes)

    def send(self, task: FinishTask, *, to: str = "north", weights: Weights | None = None) -> Any:
        """What a hospital answers."""
        record = to_record(task, weights=self.finished.weights if weights is None else weights)
        return self.federation.ask(hospital_state(self.hospitals[to]), record, kind=FINISH)


@pytest.fixture
def run(federation: Any) -> Run:
    return Run(federation)


def content(path: Path) -> Any:
    """What a model file holds; the order of its header's entries differs from file to file."""
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
        return weights, dict(sorted(file.metadata().items()))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_hospital_keeps_what_the_servers_file_holds(run: Run) -> None:
    assert run.finished.folder.undelivered() == {}
    for name, site in run.hospitals.items():
        kept = run.models(name).federated
        assert content(kept) == content(run.checkpoint)
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
        assert [found.run for found in finished_runs(site.state)] == [run.models(name).run]


def test_the_first_model_is_kept_as_what_nobody_has_trained(run: Run) -> None:
    initial = load_file(run.finished.path / "checkpoints" / "initial.safetensors")
    kept = run.models("north").start
    start = load_file(kept)
    assert start.keys() == initial.keys()
    assert all(torch.equal(start[name], initial[name]) for name in initial)
    assert read_provenance(kept)["mechanisms"] == {}
    assert read_provenance(run.models("north").federated)["mechanisms"] != {}
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_what_came_serves_to_make_the_hospitals_own_model(run: Run) -> None:
    models = run.models("north")
    made = write_own_model(
        hospital_state(run.hospitals["north"]),
        models.federated,
        out=models.own,
        start=models.start,
        steps=1,
        folds=2,
        seed=0,
        device="cpu",
        watch=lambda *_: None,
    )
    assert "alone" in {candidate.name for candidate in made.candidates}
    assert models.own.exists()


def test_open_data_is_not_asked_and_keeps_nothing(federation: Any) -> None:
    kinds: list[tuple[str, str]] = []

    def look(site: str, message: Message, answer: Any) -> Message:
        kinds.append((site, message.metadata.message_type))
        reply: Message = answer()
        return reply

    study = federation.study(**STUDY)
    sites = [federation.hospital("north"), *federation.sites("east", "south")]
    finished = federation.run(study, sites, fault=look)
    assert [site for site, kind in kinds if kind == FINISH] == ["north"]
    assert not any(finished_runs(site.state) for site in sites[1:])
    assert not list(finished.path.rglob("models"))


def test_the_answer_says_nothing_but_the_name_and_the_run(run: Run) -> None:
    answer = run.send(run.task())
    assert set(answer) == {"body"}
    assert read_body(answer, Finished) == Finished(site="north", run=run.task().run)
    assert set(Finished.model_fields) == {"site", "run"}


def test_asked_twice_it_keeps_the_file_and_pays_nothing(run: Run) -> None:
    kept = run.models("north").federated
    before, written = sha256(kept), kept.stat().st_mtime_ns
    with Ledger.open(run.hospitals["north"].state / "ledger") as ledger:
        head = ledger.head()
    first, second = run.send(run.task()), run.send(run.task())
    assert read_body(first, Finished) == read_body(second, Finished)
    assert (sha256(kept), kept.stat().st_mtime_ns) == (before, written)
    with Ledger.open(run.hospitals["north"].state / "ledger") as ledger:
        assert ledger.head() == head


def test_another_model_of_the_same_run_is_refused_and_the_first_one_stays(run: Run) -> None:
    kept = run.models("north").federated
    before = sha256(kept)
    other = {name: value + 1 for name, value in run.finished.weights.items()}
    assert refusal_code(run.send(run.task(), weights=other)) == "message-replayed"
    assert sha256(kept) == before


def test_a_damaged_file_is_not_taken_for_the_model(run: Run) -> None:
    kept = run.models("north").federated
    kept.write_bytes(kept.read_bytes()[:100])
    assert refusal_code(run.send(run.task())) == "models"
    kept.unlink()
    assert refusal_code(run.send(run.task())) == ""
    assert content(kept) == content(run.checkpoint)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda value: value * float("nan"), "model"),
        (lambda value: value + 1e9, "message-norm"),
        (lambda value: value[..., None], "model"),
    ],
)
def test_weights_that_are_no_model_are_refused(run: Run, change: Any, code: str) -> None:
    run.models("north").federated.unlink()
    weights = {name: change(value) for name, value in run.finished.weights.items()}
    assert refusal_code(run.send(run.task(), weights=weights)) == code
    assert not run.models("north").federated.exists()


def test_weights_of_other_names_are_refused(run: Run) -> None:
    run.models("north").federated.unlink()
    first, *others = run.finished.weights.items()
    for weights in (dict(others), dict([first, *others, ("more", first[1])])):
        assert refusal_code(run.send(run.task(), weights=weights)) == "model"
    assert not run.models("north").federated.exists()


def test_what_was_not_agreed_to_is_refused(run: Run, federation: Any) -> None:
    run.models("north").federated.unlink()
    other = federation.study(**STUDY, id="other")
    participants = run.task().sites
    strangers = {site: said for site, said in participants.items() if site != "north"}
    swapped = participants | {"north": participants["east"]}
    for change in (
        {"study": other},
        {"run": "another-run"},
        {"sites": strangers},
        {"sites": swapped},
    ):
        assert refusal_code(run.send(run.task(**change))) == "policy-not-agreed"
    assert finished_runs(run.hospitals["north"].state) == []


@pytest.mark.parametrize("name", ["../north", "a/b", "..", ".hidden", "a.b"])
def test_a_run_chooses_no_path(run: Run, name: str) -> None:
    proposal = to_record(Proposal(study=run.study, run=name, private=True))
    north = hospital_state(run.hospitals["north"])
    run.federation.ask(north, proposal, kind="query")
    before = sorted(run.federation.scratch.rglob("*.safetensors"))
    assert refusal_code(run.send(run.task(run=name))) == "message-run"
    assert sorted(run.federation.scratch.rglob("*.safetensors")) == before


def test_a_run_that_was_never_charged_leaves_nothing(run: Run) -> None:
    proposal = to_record(Proposal(study=run.study, run="free-of-charge", private=True))
    north = hospital_state(run.hospitals["north"])
    declared = read_body(run.federation.ask(north, proposal, kind="query"), Declaration)
    said = Participant(label_scheme="brats", mechanism=declared.mechanism)
    task = run.task(run="free-of-charge", sites={"north": said})
    assert refusal_code(run.send(task)) == "policy-not-trained"
    assert not models_of(north.site.state, run="free-of-charge").folder.exists()


def test_a_full_disk_is_a_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.models("north").federated.unlink()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medfl.site.run_models.write_atomically", full)
    assert refusal_code(run.send(run.task())) == "models"


def test_a_first_model_that_cannot_be_kept_spoils_no_round(
    federation: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medfl.site.run_models.write_atomically", full)
    with caplog.at_level(logging.WARNING, logger="medfl"):
        run = Run(federation)
    assert set(run.finished.outcomes().values()) == {("admitted", "")}
    assert set(run.finished.folder.undelivered().values()) == {"models"}
    assert caplog.text.count("The run's first model was not kept") == 3
