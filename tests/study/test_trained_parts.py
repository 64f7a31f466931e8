"""A study that trains a part of its network: the rest stays as it started, and leaves no site."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from medfl.errors import ModelError
from medfl.protocol.messages import Declaration, Proposal, TrainTask, read_body, to_record
from medfl.protocol.study_model import model_spec, trained_parameters
from medfl.segmentation.networks import only_trained, trainable_state, trained_names
from medfl.site.round import train_update
from medfl.study.plan import plan_study


def partly(federation: Any, *patterns: str, **changes: Any) -> Any:
    return federation.study(training={"trainable": list(patterns)}, **changes)


def start(study: Any) -> dict[str, torch.Tensor]:
    return trainable_state(model_spec(study).build(seed=study.seed))


def test_norms_are_the_scales_and_shifts_of_every_normalisation_layer(federation: Any) -> None:
    network = model_spec(federation.study()).build()
    names = trained_names(network, ["norms"])
    assert names
    found = {
        name
        for path, module in network.named_modules()
        if type(module).__name__ == "GroupNorm"
        for name in (f"{path}.weight", f"{path}.bias")
    }
    assert names == found


def test_patterns_add_up_and_a_star_is_everything(federation: Any) -> None:
    network = model_spec(federation.study()).build()
    everything = set(trainable_state(network))
    assert trained_names(network, ["*"]) == everything
    both = trained_names(network, ["norms", "conv_final.*"])
    norms, head = (trained_names(network, [one]) for one in ("norms", "conv_final.*"))
    assert both == norms | head
    assert head < everything


@pytest.mark.parametrize("pattern", ["decoder", "norm", "CONV_FINAL.*", ""])
def test_a_pattern_that_names_nothing_is_refused(pattern: str, federation: Any) -> None:
    network = model_spec(federation.study()).build()
    with pytest.raises(ModelError, match=re.escape("training.trainable: expected 'norms' or a")):
        trained_names(network, ["norms", pattern])


def test_outside_of_its_context_the_network_is_whole(federation: Any) -> None:
    network = model_spec(federation.study()).build()
    everything = set(trainable_state(network))
    with pytest.raises(RuntimeError, match="stop"), only_trained(network, {"convInit.conv.weight"}):
        assert set(trainable_state(network)) == {"convInit.conv.weight"}
        raise RuntimeError("stop")
    assert set(trainable_state(network)) == everything


def test_a_site_sends_what_it_trains_and_nothing_else(federation: Any) -> None:
    study = partly(federation, "norms")
    site_state = federation.site_state(federation.site("east"))
    weights = start(study)
    answer = federation.ask(
        site_state, to_record(Proposal(study=study, run="first", private=True)), kind="query"
    )
    mechanism = read_body(answer, Declaration).mechanism
    task = TrainTask(
        study=study, run="first", round=1, message_id="first/1/east", mechanism=mechanism
    )
    _, released = train_update(site_state, task, weights, expires=2e9, on_step=lambda *_: None)
    assert set(released) == trained_parameters(study)
    assert all(not torch.equal(released[name], weights[name]) for name in released)


def test_what_is_not_trained_keeps_its_bits_over_a_whole_run(federation: Any) -> None:
    study = partly(federation, "norms", "conv_final.*", aggregation={"ema_decay": 0.9})
    run = federation.run(study, federation.sites())
    before, after = start(study), run.weights
    trained = trained_parameters(study)
    assert set(after) == set(before)
    for name in before:
        assert torch.equal(after[name], before[name]) == (name not in trained), name


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam"])
def test_a_run_of_parts_goes_on_after_a_stop_with_the_same_bits(
    strategy: str, federation: Any
) -> None:
    study = partly(
        federation,
        "norms",
        aggregation={
            "strategy": strategy,
            "server_learning_rate": 0.1 if strategy != "fedavg" else 1,
        },
    )
    whole = federation.run(study, federation.sites(), name="whole", run_id="same")

    def stop(site: str, message: Any, answer: Any) -> Any:
        if message.metadata.message_type == "train" and message.metadata.group_id == "2":
            raise KeyboardInterrupt
        return answer()

    with pytest.raises(KeyboardInterrupt):
        federation.run(study, federation.sites(), name="stopped", run_id="same", fault=stop)
    resumed = federation.run(study, federation.sites(), name="stopped", resume=True)
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)


def test_an_update_with_more_than_was_asked_for_is_rejected(federation: Any) -> None:
    """A site of another version that sends its whole network: nothing of it is averaged."""
    whole, parts = federation.study(), partly(federation, "norms")
    assert trained_parameters(parts) < trained_parameters(whole)

    def everything(site: str, message: Any, answer: Any) -> Any:
        reply = answer()
        if message.metadata.message_type == "train" and site == "east":
            sent, received = reply.content["arrays"], message.content["arrays"]
            reply.content["arrays"] = type(sent)({**dict(received), **dict(sent)})
        return reply

    run = federation.run(parts, federation.sites(), fault=everything)
    assert run.outcomes()["east"] == ("rejected", "update-keys")
    assert run.outcomes()["north"] == ("admitted", "")


def test_the_plan_counts_what_gets_noise(federation: Any) -> None:
    sites = federation.sites()
    whole, parts = (
        plan_study(study, sites) for study in (federation.study(), partly(federation, "norms"))
    )
    names = trained_parameters(parts.study)
    assert parts.parameters == sum(start(parts.study)[name].numel() for name in names)
    assert parts.federation.noise_to_signal < whole.federation.noise_to_signal / 5
    assert [plan.mechanism for plan in parts.sites] == [plan.mechanism for plan in whole.sites]
