"""Old updates may go; whatever is asked for afterwards is paid for again."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from medfl.errors import LedgerError
from medfl.protocol.messages import (
    Declaration,
    Proposal,
    SiteUpdate,
    TrainTask,
    read_body,
    read_weights,
    to_record,
)
from medfl.segmentation.networks import trainable_state
from medfl.site.outbox import Outbox

WEIGHTS = {"w": torch.ones(3)}
STUDY: dict[str, Any] = {"privacy": {"noise": "operating-system"}}


def age(folder: Path, *, days: float) -> None:
    """Let everything in a folder be older than it is."""
    then = time.time() - days * 24 * 3600
    for path in folder.iterdir():
        os.utime(path, (then, then))


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox")


def test_an_old_update_that_was_released_is_deleted(outbox: Outbox, tmp_path: Path) -> None:
    digest = outbox.put("run/1/east", request="r", body="{}", weights=WEIGHTS)
    age(tmp_path / "outbox", days=31)
    assert outbox.prune(released={digest}, older_than_days=30) == 1
    assert list((tmp_path / "outbox").iterdir()) == []
    assert outbox.get("run/1/east", request="r") is None
    assert outbox.prune(released={digest}, older_than_days=30) == 0


def test_an_update_that_never_left_is_kept_however_old(outbox: Outbox, tmp_path: Path) -> None:
    outbox.put("run/1/east", request="r", body="{}", weights=WEIGHTS)
    other = outbox.put("run/2/east", request="r", body="{}", weights=WEIGHTS)
    age(tmp_path / "outbox", days=9999)
    assert outbox.prune(released={other}, older_than_days=0) == 1
    assert outbox.get("run/1/east", request="r") is not None


def test_a_younger_update_is_kept(outbox: Outbox, tmp_path: Path) -> None:
    digest = outbox.put("run/1/east", request="r", body="{}", weights=WEIGHTS)
    age(tmp_path / "outbox", days=29.9)
    assert outbox.prune(released={digest}, older_than_days=30) == 0
    assert outbox.get("run/1/east", request="r") is not None


def test_only_updates_are_deleted(outbox: Outbox, tmp_path: Path) -> None:
    digest = outbox.put("run/1/east", request="r", body="{}", weights=WEIGHTS)
    (stored,) = (tmp_path / "outbox").iterdir()
    other = tmp_path / "outbox" / "note.txt"
    other.write_bytes(stored.read_bytes())
    age(tmp_path / "outbox", days=31)
    assert outbox.prune(released={digest}, older_than_days=30) == 1
    assert other.exists()


@pytest.mark.parametrize("days", [-1.0, -math.inf, math.inf, math.nan])
def test_an_age_out_of_range_is_refused(days: float, outbox: Outbox) -> None:
    with pytest.raises(ValueError, match="Expected an age >= 0 in days"):
        outbox.prune(released=(), older_than_days=days)


@pytest.fixture
def answered(federation: Any) -> tuple[Any, TrainTask]:
    """A hospital that has answered a round, and the round."""
    hospital = federation.site_state(federation.hospital("east"))
    study = federation.study(**STUDY)
    proposal = Proposal(study=study, run="first", private=True)
    declared = read_body(federation.ask(hospital, to_record(proposal), kind="query"), Declaration)
    task = TrainTask(
        study=study,
        run="first",
        round=1,
        message_id="first/1/east",
        mechanism=declared.mechanism,
    )
    train(federation, hospital, task)
    return hospital, task


def train(federation: Any, hospital: Any, task: TrainTask) -> Any:
    # The same weights each time: the network starts from the study's seed.
    weights = {
        name: torch.zeros_like(value)
        for name, value in trainable_state(hospital.network(task.study)).items()
    }
    return federation.ask(hospital, to_record(task, weights=weights), kind="train")


def charges(hospital: Any) -> tuple[int, int]:
    with hospital.open_ledger() as ledger:
        ledger.recount()
        (run,) = ledger.spent().by_run
    return run.charges, run.released


def test_what_is_asked_for_again_after_a_deletion_is_charged_again(
    answered: Any, federation: Any
) -> None:
    hospital, task = answered
    first = train(federation, hospital, task)
    assert charges(hospital) == (1, 1)
    age(Path(hospital.site.state, "outbox"), days=31)
    assert hospital.prune_outbox(older_than_days=30) == 1
    again = train(federation, hospital, task)
    # Another release with noise of its own, and its own charge.
    assert charges(hospital) == (2, 2)
    assert read_body(again, SiteUpdate).run_steps == 2
    one, other = read_weights(first), read_weights(again)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_an_update_between_outbox_and_ledger_is_kept(
    answered: Any, federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital, task = answered
    second = task.model_copy(update={"round": 2, "message_id": "first/2/east"})

    def crash(*_: Any, **__: Any) -> None:
        raise RuntimeError("crash")

    with monkeypatch.context() as patch:
        patch.setattr("medfl.privacy.ledger.ledger.Ledger.mark_released", crash)
        assert "error" in train(federation, hospital, second)
    assert charges(hospital) == (2, 1)
    age(Path(hospital.site.state, "outbox"), days=31)
    assert hospital.prune_outbox(older_than_days=30) == 1
    assert "error" not in train(federation, hospital, second)
    assert charges(hospital) == (2, 2)


def test_nothing_is_deleted_where_the_ledger_cannot_be_trusted(answered: Any) -> None:
    hospital, _ = answered
    outbox = Path(hospital.site.state, "outbox")
    age(outbox, days=31)
    hospital.ledger_folder.rename(hospital.ledger_folder.with_name("elsewhere"))
    with pytest.raises(LedgerError):
        hospital.prune_outbox(older_than_days=30)
    assert len(list(outbox.iterdir())) == 1
