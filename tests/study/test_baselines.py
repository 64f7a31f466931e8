"""What stands beside a federation: the same patients, the same start, one thing changed."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medfl.privacy.ledger.ledger import Ledger
from medfl.server.progress import Silent
from medfl.server.run_folder import RunFolder
from medfl.site.state import simulated_state
from medfl.study import baselines, home_baselines, pooled_baseline
from medfl.study.run import run_study

ALL = ("initial-only", "non-private", "local-only", "threshold")
STEPS = 2
OPEN: dict[str, Any] = {
    "privacy": {"share_metrics": True, "allow_baselines": True},
    "adapt": {"steps": STEPS},
}
SITES = ("east", "south")

pytestmark = pytest.mark.slow


def run(federation: Any, *, names: tuple[str, ...] = ALL, resume: bool = False) -> Path:
    out: Path = federation.scratch / "run"
    study = federation.study(training={"rounds": 1}, evaluation={"baselines": list(names)})
    run_study(
        study,
        federation.sites(*SITES, **OPEN),
        out=out,
        engine="inprocess",
        resume=resume,
        progress=Silent(),
    )
    return out


def scored(out: Path) -> dict[str, Counter[tuple[str, str, str]]]:
    """How often each patient's region was scored at the end, by variant."""
    found: dict[str, Counter[tuple[str, str, str]]] = {}
    for row in RunFolder(out).scores():
        if row.variant != "federated" or row.round == 1:
            key = (row.site, row.patient, row.region)
            found.setdefault(row.variant, Counter())[key] += 1
    return found


def test_every_baseline_is_scored_on_the_same_patients_once(federation: Any) -> None:
    out = run(federation)
    found = scored(out)
    assert set(found) == {"federated", *ALL}
    for variant, counts in found.items():
        expected = set(found["federated"])
        if variant == "threshold":
            expected = {key for key in expected if key[2] == "WT"}
        assert set(counts) == expected
        assert set(counts.values()) == {1}
    # Each final model has lesion-wise scores; the threshold's have no distances.
    for row in RunFolder(out).scores():
        if row.variant != "federated" or row.round == 1:
            assert row.lesion_dice is not None
            assert (row.lesion_hd95_mm is None) == (row.variant == "threshold")
    # All begin with the same model.
    start = load_file(out / "checkpoints" / "initial.safetensors")
    for part in ("non-private", "local-only-east", "local-only-south"):
        other = load_file(out / "baselines" / part / "checkpoints" / "initial.safetensors")
        assert all(torch.equal(start[name], other[name]) for name in start)
    # A baseline without noise is nowhere said to be private.
    (event, _) = RunFolder(out / "baselines" / "non-private").events()
    assert event.mechanism.noise_multiplier == 0.0
    assert event.epsilon == math.inf


def test_what_a_site_has_alone_and_what_it_gets_are_scored_on_its_own_patients(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone it chooses as it does after joining, from the start; nothing is charged or sent."""
    asked: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None, int, int]] = []
    adapt = home_baselines.adapt

    def noted(model: Any, store: Any, *, start: Any, recipe: Any, **named: Any) -> Any:
        asked.append((model, start, recipe.steps, len(store)))
        return adapt(model, store, start=start, recipe=recipe, **named)

    monkeypatch.setattr(home_baselines, "adapt", noted)
    out = run(federation, names=("alone", "adapted"))
    found = scored(out)
    assert set(found) == {"federated", "alone", "adapted"}
    assert set(found["alone"]) == set(found["adapted"]) == set(found["federated"])
    assert {row.lesion_dice is None for row in RunFolder(out).scores() if row.round == 1} == {False}
    initial, final = (
        load_file(out / "checkpoints" / f"{name}.safetensors") for name in ("initial", "final")
    )
    sites = federation.sites(*SITES, **OPEN)
    patients = [site.declared_patients for site in sites]
    assert [store for *_, store in asked] == patients * 2
    assert {steps for _, _, steps, _ in asked} == {STEPS}
    for model, start, *_ in asked[:2]:
        assert start is None
        assert all(torch.equal(model[name], initial[name]) for name in initial)
    for model, start, *_ in asked[2:]:
        assert start is not None
        assert all(torch.equal(model[name], final[name]) for name in final)
        assert all(torch.equal(start[name], initial[name]) for name in initial)
    assert not (out / "baselines").exists()
    for site in sites:
        with Ledger.open(out / "sites" / site.name / "ledger") as ledger:
            assert len([entry for entry in ledger.entries() if entry.kind == "charge"]) == 1


def test_all_patients_in_one_place_are_the_training_patients_of_all_sites(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the study's start, as many steps as the sites alone take together, nothing charged."""
    seen: list[tuple[set[str], int]] = []
    train = pooled_baseline.train_plainly

    def noted(network: Any, store: Any, *, among: Any, recipe: Any, **named: Any) -> None:
        assert list(among) == list(range(len(store)))
        stores = store.stores
        ids = {each.patient_id for part in stores for each in part._patients}
        seen.append((ids, recipe.steps))
        train(network, store, among=among, recipe=recipe, **named)

    monkeypatch.setattr(pooled_baseline, "train_plainly", noted)
    out = run(federation, names=("pooled",))
    sites = federation.sites(*SITES, **OPEN)
    states = [simulated_state(site, run_folder=out) for site in sites]
    training = {each.patient_id for state in states for each in state.patients.training}
    held_out = {each.patient_id for state in states for each in state.patients.held_out}
    assert seen == [(training, STEPS * len(sites))]
    assert held_out
    assert not training & held_out
    found = scored(out)
    assert set(found["pooled"]) == set(found["federated"])
    for site in sites:
        with Ledger.open(out / "sites" / site.name / "ledger") as ledger:
            assert len([entry for entry in ledger.entries() if entry.kind == "charge"]) == 1


def test_a_site_of_one_patient_has_nobody_to_choose_by_and_keeps_the_federated_model(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPEN, "declared_patients", 1)
    monkeypatch.setitem(OPEN, "data", {"held_out": 0.0})
    study = federation.study(training={"rounds": 1}, aggregation={"min_sites": 1})
    out = federation.scratch / "run"
    (site,) = federation.sites("west", **OPEN)
    run_study(study, [site], out=out, engine="inprocess", progress=Silent())
    start = load_file(out / "checkpoints" / "initial.safetensors")
    site_state = simulated_state(site, run_folder=out)
    federated = load_file(out / "checkpoints" / "final.safetensors")
    kept = home_baselines._chosen(
        site_state, study, model=federated, start=start, does="adapts", progress=Silent()
    )
    assert all(torch.equal(kept[name], federated[name]) for name in federated)


def test_a_baseline_that_was_stopped_half_way_is_finished_and_not_doubled(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate, calls = baselines.simulate, 0

    def stop_at_the_second(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return simulate(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(baselines, "simulate", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            run(federation, names=("local-only",))
    counts = scored(run(federation, names=("local-only",), resume=True))["local-only"]
    assert {site for site, _, _ in counts} == set(SITES)
    assert set(counts.values()) == {1}
