"""What leaves a site that fails is a code, and what its log says is one line that names nobody."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from flwr.app import Message

from medfl.cli.summary import print_summary
from medfl.data.patient_store import PatientStore
from medfl.errors import BudgetExceeded, ConfigError, DataError
from medfl.privacy import engine
from medfl.privacy.engine import PatientOptimizer
from medfl.protocol.failures import MAX_CHARACTERS, code_of, line_of
from medfl.protocol.messages import FINISH, Proposal, refusal_code, to_record
from medfl.server.progress import Silent
from medfl.site import round as site_round
from medfl.site.state import SiteState
from medfl.study.run import finish_run

pytestmark = pytest.mark.slow

PATIENT = "BraTS2021_00002"
SITE_LOG = "medfl.site.client_app"
BAD = "north"


def raised(action: Callable[[], Any]) -> Exception:
    """What an action raises."""
    try:
        action()
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError("Expected an exception, found none.")


def fails_with(error: Exception) -> Callable[..., Any]:
    """A function that always raises this."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


OUT_OF_MEMORY: dict[str, Callable[[], Any]] = {
    "python": fails_with(MemoryError()),
    "numpy": lambda: np.empty(2**50),
    "torch on a CPU": lambda: torch.empty(2**50),
    "torch on a GPU": fails_with(torch.OutOfMemoryError("CUDA out of memory.")),
    "cuDNN": fails_with(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")),
}


@pytest.mark.parametrize("where", OUT_OF_MEMORY)
def test_every_lack_of_memory_has_one_code_and_a_fix(where: str) -> None:
    error = raised(OUT_OF_MEMORY[where])
    assert code_of(error) == "out-of-memory"
    for fix in ("device = 'cpu'", "smaller patients at once", "what was charged stays"):
        assert fix in line_of(error)


def test_another_failure_of_torch_is_no_lack_of_memory() -> None:
    error = raised(lambda: torch.ones(2) @ torch.ones(3))
    assert isinstance(error, RuntimeError)
    assert code_of(error) == "internal"


@pytest.mark.parametrize(
    "error",
    [
        DataError(f"/images/{PATIENT}/{PATIENT}_flair.nii.gz: expected a scan, found none."),
        FileNotFoundError(2, "No such file", f"/images/{PATIENT}"),
        KeyError(PATIENT),
        ValueError(f"{PATIENT}\n  in the header"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_text_that_may_name_a_patient_is_not_told(error: Exception) -> None:
    line = line_of(raised(fails_with(error)))
    assert PATIENT not in line
    assert "/images" not in line
    assert line.isprintable()


def test_an_unforeseen_failure_is_told_by_its_kind_and_place() -> None:
    line = line_of(raised(fails_with(ZeroDivisionError("secret"))))
    assert line.startswith("Expected no failure, found ZeroDivisionError at ")
    assert "test_failures.py:" in line
    assert "secret" not in line


def test_a_rule_that_was_broken_is_told_in_full() -> None:
    text = "Expected a lifetime epsilon <= 8, found 8.1."
    assert line_of(BudgetExceeded(text)) == text


def test_a_text_that_a_server_chose_stays_short_and_on_one_line() -> None:
    line = line_of(ConfigError("Expected a\tword, found\n\x1b[2J\u202e'" + "x" * 100_000 + "'."))
    assert line.startswith("Expected a word, found [2J '")
    assert line.isprintable()
    assert len(line) == MAX_CHARACTERS


def first_round(site: str, message: Message) -> bool:
    """Whether this asks the bad site for the first update."""
    return (
        site == BAD
        and message.metadata.message_type == "train"
        and message.metadata.group_id == "1"
    )


def test_a_patient_who_does_not_fit_the_memory_shows_before_the_charge(
    federation: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever is drawn: else an answer would mean that nobody large was."""
    study = federation.study()
    tried: list[int] = []

    def full_device(store: PatientStore, index: int) -> Any:
        tried.append(index)
        raise torch.OutOfMemoryError(f"CUDA out of memory at {PATIENT}")

    def runs_out(site: str, message: Message, answer: Callable[[], Message]) -> Message:
        with monkeypatch.context() as patch:
            if first_round(site, message):
                patch.setattr(PatientStore, "prepared", full_device)
            return answer()

    finished = federation.run(study, federation.sites(), fault=runs_out)
    assert len(tried) == 1
    assert finished.outcomes(1)[BAD] == ("refused", "out-of-memory")
    assert finished.outcomes(2)[BAD] == ("admitted", "")
    assert finished.charges(BAD) == 1
    lines = [r.getMessage() for r in caplog.records if r.name == SITE_LOG]
    (line,) = [line for line in lines if "out-of-memory" in line]
    assert "device = 'cpu'" in line
    assert PATIENT not in line


def test_the_largest_patient_is_tried_once_for_a_study(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = federation.hospital(BAD, copy_patients=True)
    root = Path(site.data.root)
    largest = sorted(root.iterdir())[2]
    for file in largest.iterdir():
        image = nibabel.load(file)
        padded = np.pad(np.asarray(image.dataobj), [(0, 8)] * 3)
        nibabel.save(nibabel.Nifti1Image(padded, image.affine), file)
    tried: list[str] = []
    prepared = PatientStore.prepared

    def noted(store: PatientStore, index: int) -> Any:
        tried.append(store._patients[index].patient_id)
        return prepared(store, index)

    monkeypatch.setattr(PatientStore, "prepared", noted)
    monkeypatch.setattr(engine, "poisson_draw", lambda **_: [])
    study = federation.study(
        privacy={"noise": "operating-system"},
        training={"rounds": 3},
        aggregation={"min_sites": 1},
    )
    federation.run(study, [site])
    assert tried == [largest.name]


def test_a_patient_who_fails_in_a_step_contributes_zero_and_the_answer_comes(
    federation: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = federation.study(training={"rounds": 1, "local_steps": 2})
    train, add_patient = site_round.train_round, PatientOptimizer.add_patient
    calls = iter(range(1000))

    def full_device(self: PatientOptimizer, loss: torch.Tensor) -> bool:
        if next(calls) == 1:  # in the middle of a step: one patient is in the sum already
            raise torch.OutOfMemoryError(f"CUDA out of memory at {PATIENT}")
        return add_patient(self, loss)

    def runs_out(*arguments: Any, **keywords: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(PatientOptimizer, "add_patient", full_device)
            patch.setattr(engine, "poisson_draw", lambda *, population, **_: range(population))
            return train(*arguments, **keywords)

    def fault(site: str, message: Message, answer: Callable[[], Message]) -> Message:
        with monkeypatch.context() as patch:
            if first_round(site, message):
                patch.setattr(site_round, "train_round", runs_out)
            return answer()

    finished = federation.run(study, federation.sites(), fault=fault)
    assert next(calls) > 2
    assert finished.outcomes(1)[BAD] == ("admitted", "")
    assert finished.charges(BAD) == 1
    assert "1 patient gradients could not be computed (OutOfMemoryError)" in caplog.text
    assert PATIENT not in caplog.text


def test_a_site_out_of_memory_before_the_charge_pays_nothing(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site_state = federation.site_state(federation.hospital("east"))
    with site_state.open_ledger() as ledger:
        before = ledger.head()
    study = federation.study(privacy={"noise": "operating-system"})
    question = to_record(Proposal(study=study, run="first", private=True))
    with monkeypatch.context() as patch:
        failure = torch.OutOfMemoryError("CUDA out of memory")
        patch.setattr(SiteState, "network", fails_with(failure))
        reply = federation.ask(site_state, question, kind="query")
    assert refusal_code(reply) == "out-of-memory"
    with site_state.open_ledger() as ledger:
        assert ledger.head() == before
    assert refusal_code(federation.ask(site_state, question, kind="query")) == ""


def test_a_damaged_image_is_told_without_its_name(
    federation: Any, caplog: pytest.LogCaptureFixture
) -> None:
    hospital = federation.hospital(BAD, copy_patients=True)

    def damage() -> None:
        for file in Path(hospital.data.root).rglob("*_flair.nii.gz"):
            file.write_bytes(file.read_bytes()[:200])

    study = federation.study(privacy={"noise": "operating-system"}, training={"rounds": 1})
    finished = federation.run(
        study,
        [*federation.sites("east", "south"), hospital],
        fault=federation.before_training(damage),
    )
    assert finished.outcomes()[BAD] == ("refused", "data")
    lines = [r.getMessage() for r in caplog.records if r.name == SITE_LOG]
    (line,) = [line for line in lines if "code data" in line]
    assert "`medfl check` names the file" in line
    assert "BraTS2021" not in caplog.text
    assert str(hospital.data.root) not in caplog.text


@pytest.mark.slow
def test_a_site_s_time_begins_when_its_turn_comes(federation: Any) -> None:
    """In one process sites wait for each other, which is nobody's fault."""

    def slow(site: str, message: Message, answer: Callable[[], Message]) -> Message:
        reply = answer()
        if message.metadata.message_type == "train":
            time.sleep(2.5)
        return reply

    study = federation.study(
        training={"rounds": 1}, aggregation={"round_timeout_seconds": 2.0, "min_sites": 1}
    )
    finished = federation.run(study, federation.sites(), fault=slow)
    assert finished.outcomes() == dict.fromkeys(("east", "north", "south"), ("admitted", ""))


@pytest.mark.slow
def test_a_site_that_never_took_part_is_named_at_the_end(federation: Any, capsys: Any) -> None:
    def silent(site: str, message: Message, answer: Callable[[], Message]) -> Message | None:
        return None if site == "north" and message.metadata.message_type == "train" else answer()

    finished = federation.run(federation.study(), federation.sites(), fault=silent)
    summary = finish_run(
        finished.folder, federation.study(), minutes=1.0, command="", progress=Silent()
    )
    assert summary.idle == {"north": "silent"}
    print_summary(summary)
    assert "north took part in NO round" in " ".join(capsys.readouterr().out.split())


def test_a_hospital_without_the_final_model_is_named_at_the_end(
    federation: Any, capsys: Any
) -> None:
    study = federation.study(
        privacy={"noise": "operating-system"},
        training={"rounds": 1},
        aggregation={"round_timeout_seconds": 1.0},
    )
    sites = [federation.hospital(name) for name in ("east", "north", "south")]

    def silent(site: str, message: Message, answer: Callable[[], Message]) -> Message | None:
        return None if (site, message.metadata.message_type) == ("north", FINISH) else answer()

    finished = federation.run(study, sites, fault=silent)
    summary = finish_run(finished.folder, study, minutes=1.0, command="", progress=Silent())
    assert summary.undelivered == {"north": "silent"}
    print_summary(summary)
    told = " ".join(capsys.readouterr().out.split())
    assert "north does not have the final model (code 'silent')" in told
