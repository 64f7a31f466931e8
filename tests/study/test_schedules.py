"""Numbers that change from round to round, in whole runs: sites, server and ledgers agree."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message
from safetensors import safe_open

from medfl.privacy.ledger.ledger import Ledger
from medfl.protocol.messages import TrainTask, Weights, read_body, read_weights
from medfl.reporting.report import write_report
from medfl.runs.results import read_run
from medfl.server.agreement import content_of
from medfl.server.progress import Silent
from medfl.site.ledger_export import check_export, export_ledger
from medfl.site.state import simulated_state
from medfl.study.run import finish_run

ROUNDS = 4
FALLING: dict[str, Any] = {"shape": "linear", "warmup_rounds": 1, "final_fraction": 0.01}
CLIP_NORMS = [0.5, 1.0, 0.505, 0.01]
STUDY: dict[str, Any] = {
    "privacy": {"clip_norm_schedule": FALLING},
    "training": {"rounds": ROUNDS},
}


class Listening:
    """Keeps what each site was asked and what it moved the weights by."""

    def __init__(self) -> None:
        self.tasks: list[TrainTask] = []
        self.starts: list[torch.Tensor] = []
        self.moved: list[torch.Tensor] = []

    def __call__(self, _: str, message: Message, answer: Any) -> Message:
        reply: Message = answer()
        if message.metadata.message_type == "train":
            self.tasks.append(read_body(message.content, TrainTask))
            start, new = read_weights(message.content), read_weights(content_of(reply))
            self.starts.append(_flat(start))
            self.moved.append(_flat(new) - _flat(start))
        return reply


def _flat(weights: Weights) -> torch.Tensor:
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


@pytest.mark.slow
def test_a_decay_takes_its_share_of_the_weights_at_the_rate_of_the_round(federation: Any) -> None:
    """With one seed noise and crops are alike, so that the decay is all of the difference."""
    moved = []
    for decay in (0.0, 0.25):
        heard, rates = Listening(), {"learning_rate_schedule": {"warmup_rounds": 1}}
        study = federation.study(training={"weight_decay": decay, **rates})
        sites = federation.sites("east", "south")
        federation.run(study, sites, fault=heard, name=f"decay {decay}")
        moved.append(heard)
    plain, decayed = moved
    for site in (0, 1):  # of the first round, whose start is the same
        difference = decayed.moved[site] - plain.moved[site]
        expected = -0.25 * 0.5 * 0.5 * plain.starts[site]
        torch.testing.assert_close(difference, expected, rtol=0, atol=1e-5)
        assert expected.norm() > 0.1


@pytest.mark.slow
def test_noise_follows_the_clip_norm_and_the_learning_rate_of_each_round(federation: Any) -> None:
    rates = {"learning_rate_schedule": {"shape": "linear", "final_fraction": 0.1}}
    study = federation.study(**{**STUDY, "training": {"rounds": ROUNDS, **rates}})
    heard = Listening()
    finished = federation.run(study, federation.sites("east", "south"), fault=heard)
    assert len(heard.tasks) == 2 * ROUNDS
    for task, moved in zip(heard.tasks, heard.moved, strict=True):
        mechanism = task.mechanism
        assert mechanism.clip_norm == pytest.approx(CLIP_NORMS[task.round - 1])
        rate = 0.5 * (1.0, 0.7, 0.4, 0.1)[task.round - 1]
        noise = rate * mechanism.noise_multiplier * mechanism.clip_norm / mechanism.divisor
        # Gradients of a few patients are lost in that of 20,000 weights.
        assert float(moved.std()) == pytest.approx(noise, rel=0.1)
    assert {outcome for n in (1, 2, 3, 4) for outcome in finished.outcomes(n).values()} == {
        ("admitted", "")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": "sgd", "learning_rate": 2.0, "weight_decay": 0.4},
        {"optimizer": "adam", "learning_rate": 0.05},
        {"optimizer": "adamw", "learning_rate": 0.05, "weight_decay": 5.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("falling", ["learning_rate_schedule", "clip_norm_schedule"])
def test_no_honest_round_is_refused(falling: str, training: Any, federation: Any) -> None:
    of_rate = {falling: FALLING} if falling == "learning_rate_schedule" else {}
    study = federation.study(
        privacy={"clip_norm_schedule": FALLING} if not of_rate else {},
        training={"rounds": ROUNDS, "local_steps": 3, **training, **of_rate},
    )
    finished = federation.run(study, federation.sites("east", "south"))
    for number in range(1, ROUNDS + 1):
        assert set(finished.outcomes(number).values()) == {("admitted", "")}


@pytest.mark.slow
def test_each_charge_states_the_clip_norm_of_its_round_and_epsilon_is_as_ever(
    federation: Any,
) -> None:
    finished = federation.run(federation.study(**STUDY), federation.sites("east", "south"))
    plain = federation.study(training={"rounds": ROUNDS})
    without = federation.run(plain, federation.sites("east", "south"), name="without")
    for site in ("east", "south"):
        with Ledger.open(finished.state(site) / "ledger") as ledger:
            ledger.recount()
            charged = [e.content["mechanism"] for e in ledger.entries() if e.kind == "charge"]
            (agreed,) = [e.content["mechanism"] for e in ledger.entries() if e.kind == "agree"]
            spent = ledger.spent()
        assert [entry["clip_norm"] for entry in charged] == pytest.approx(CLIP_NORMS)
        assert agreed["clip_norm"] == 1.0
        assert agreed["clip_norm_schedule"] == {**FALLING, "rounds": ROUNDS}
        with Ledger.open(without.state(site) / "ledger") as ledger:
            assert ledger.spent().epsilon == spent.epsilon
            assert ledger.spent().remaining == spent.remaining
    epsilons = [[event.epsilon for event in run.folder.events()] for run in (finished, without)]
    assert epsilons[0] == epsilons[1]
    assert all(math.isfinite(value) for value in epsilons[0])


def test_an_exported_ledger_with_a_schedule_can_be_checked(federation: Any) -> None:
    sites = federation.sites("east", "south")
    finished = federation.run(federation.study(**STUDY), sites)
    site_state = simulated_state(sites[0], run_folder=finished.path)
    with site_state.open_ledger() as ledger:
        content = json.loads(json.dumps(export_ledger(ledger, keys=site_state.keys)))
    assert check_export(content, event_key=site_state.keys.event_key).epsilon > 0


@pytest.mark.slow
def test_a_report_tells_the_schedules_and_accepts_every_event(federation: Any) -> None:
    study = federation.study(
        privacy={"clip_norm_schedule": FALLING},
        training={
            "rounds": ROUNDS,
            "learning_rate_schedule": {"warmup_rounds": 2},
            "weight_decay": 0.25,
        },
        aggregation={
            "strategy": "fedadam",
            "server_learning_rate": 1e-3,
            "server_learning_rate_schedule": {"shape": "cosine", "final_fraction": 0.2},
        },
    )
    sites = federation.sites("east", "south", privacy={"share_metrics": True})
    finished = federation.run(study, sites)
    finish_run(finished.folder, study, minutes=1.0, command="", progress=Silent())
    assert [e.mechanism.clip_norm for e in read_run(finished.path).events[::2]] == pytest.approx(
        CLIP_NORMS
    )
    page = write_report(finished.path).read_text()
    assert "learning rate 0.5 after 2 rounds of warm-up, weight decay 0.25 after the noise" in page
    assert "0.001, falling as a cosine to 0.2 of it in the last round" in page
    assert "1 after 1 round of warm-up, falling linearly to 0.01 of it in the last round" in page
    assert "The clip norm of each round was fixed before the first" in page


def test_a_model_file_keeps_what_was_agreed(federation: Any) -> None:
    study = federation.study(**STUDY)
    finished = federation.run(study, federation.sites("east", "south"))
    with safe_open(finished.path / "checkpoints" / "final.safetensors", framework="pt") as file:
        text = json.dumps(file.metadata())
    assert "clip_norm_schedule" in text


@pytest.mark.slow
def test_an_update_with_the_schedule_of_a_run_is_rejected_and_ends_nothing(
    federation: Any,
) -> None:
    """A site that answers with the mechanism of the whole run speaks of no round."""

    def confused(site: str, message: Message, answer: Any) -> Message:
        reply: Message = answer()
        if site == "north" and message.metadata.message_type == "train":
            body = json.loads(str(reply.content.config_records["body"]["json"]))
            body["mechanism"]["clip_norm_schedule"] = {**FALLING, "rounds": ROUNDS}
            reply.content["body"] = ConfigRecord({"json": json.dumps(body)})
        return reply

    finished = federation.run(federation.study(**STUDY), federation.sites(), fault=confused)
    outcomes = finished.outcomes(1)
    assert outcomes["north"] == ("rejected", "update-body")
    assert outcomes["east"] == outcomes["south"] == ("admitted", "")
