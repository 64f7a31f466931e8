"""Patients are taken away one by one: nothing else may change, and bugs before the engine show."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medfl.audit.path_federation import path_federation
from medfl.audit.sensitivity import PathSensitivity, SiteSensitivity, sensitivity_on_path
from medfl.config import SiteConfig, StudyConfig
from medfl.data.patient_store import PatientStore
from medfl.data.transforms import PreparedCase
from medfl.privacy import engine
from medfl.privacy.patients import Patients
from medfl.site import training_patients as in_training
from medfl.site.state import SiteState

Federation = tuple[StudyConfig, list[SiteConfig]]

_training_patients = in_training.training_patients
_network = SiteState.network
_prepared = PatientStore.prepared


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """The tiny federation of the audit, written once."""
    return path_federation(tmp_path_factory.mktemp("path") / "hospitals")


def look(federation: Federation, scratch: Path, *, draws: int = 1) -> PathSensitivity:
    """Audit the first of its sites."""
    study, sites = federation
    return sensitivity_on_path(
        study, sites[:1], scratch=scratch, draws=draws, patients=4, advance=lambda *_: None
    )


def test_nobody_moves_a_sum_by_more_than_c_or_anybody_else(
    federation: Federation, tmp_path: Path
) -> None:
    found = look(federation, tmp_path, draws=2)
    assert found.keeps_promise
    assert found.removals >= 4
    assert found.changed == found.off_grid == found.failures == 0
    # Normalised clipping brings every gradient close to C: the bound is reached.
    assert 0.9 < found.largest <= 1


@pytest.mark.slow
@pytest.mark.parametrize("clipping", ["fixed", "normalised"])
def test_sites_of_every_size_are_looked_at(
    clipping: str, federation: Federation, tmp_path: Path
) -> None:
    study, sites = federation
    values = json.loads(study.model_dump_json())
    values["privacy"]["clipping"] = clipping
    seen: list[tuple[int, int]] = []
    found = sensitivity_on_path(
        StudyConfig.model_validate_json(json.dumps(values)),
        sites,
        scratch=tmp_path,
        draws=4,
        patients=5,
        advance=lambda done, total: seen.append((done, total)),
    )
    assert found.keeps_promise
    assert [site.site for site in found.sites] == [site.name for site in sites]
    assert all(site.removals for site in found.sites)
    # The smaller of the two clip norms makes every gradient reach it.
    assert found.largest > 0.98
    assert seen[0] == (0, 8)
    assert seen[-1] == (8, 8)


def crops_from_one_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody who is drawn takes the next crops of the round."""

    def shared(*arguments: Any, **keywords: Any) -> Patients:
        right = _training_patients(*arguments, **keywords)
        generator = torch.Generator().manual_seed(5)
        return Patients(
            names=right.names,
            stream=right.stream,
            loss_of=lambda index, _: right.loss_of(index, generator),
        )

    monkeypatch.setattr(in_training, "training_patients", shared)


def dropout_of_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops are each patient's own, dropout runs on in torch's generator."""

    @contextmanager
    def only_crops(self: Patients, index: int, *, step: int) -> Iterator[torch.Generator]:
        number = sum(self.names[index].encode()) * 1000 + step
        yield torch.Generator().manual_seed(number)

    monkeypatch.setattr(Patients, "randomness", only_crops)


def named_by_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patient's randomness follows from the place in the list."""
    right = Patients.randomness

    @contextmanager
    def by_place(self: Patients, index: int, *, step: int) -> Iterator[torch.Generator]:
        places = Patients(
            names=tuple(str(place) for place in range(len(self))),
            stream=self.stream,
            loss_of=self.loss_of,
        )
        with right(places, index, step=step) as generator:
            yield generator

    monkeypatch.setattr(Patients, "randomness", by_place)


def named_by_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patient's randomness follows from how many were computed before in the round."""
    right = Patients.randomness
    turns: dict[int, int] = {}

    @contextmanager
    def by_turn(self: Patients, index: int, *, step: int) -> Iterator[torch.Generator]:
        turns[id(self)] = turns.get(id(self), 0) + 1
        with right(self, index, step=100 * step + turns[id(self)]) as generator:
            yield generator

    monkeypatch.setattr(Patients, "randomness", by_turn)


class Counting:
    """A layer that fades the more often it was used."""

    calls = 0

    def __call__(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        self.calls += 1
        return output * (1 + 1 / (10 + self.calls))


class Running:
    """A layer that follows the brightness of what it has seen."""

    level = 0.0

    def __call__(self, _: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        self.level = 0.9 * self.level + 0.1 * float(inputs[0].mean())
        return output + self.level


def _with_layer(layer: type[Counting | Running]) -> Callable[[pytest.MonkeyPatch], None]:
    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        hooked: set[int] = set()

        def network(self: SiteState, study: StudyConfig) -> nn.Module:
            built = _network(self, study)
            if id(built) not in hooked:
                built.register_forward_hook(layer())
                hooked.add(id(built))
            return built

        monkeypatch.setattr(SiteState, "network", network)

    return plant


def another_patients_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once something was driven out of the memory, the store serves what is left in it."""

    def prepared(self: PatientStore, index: int) -> tuple[PreparedCase, ...]:
        before = set(self._memory)
        right = _prepared(self, index)
        if before - set(self._memory) and self._memory_bytes > 1000:
            self._stale = getattr(self, "_stale", right)  # type: ignore[attr-defined]
            return tuple(self._stale)  # type: ignore[attr-defined]
        return right

    monkeypatch.setattr(PatientStore, "prepared", prepared)


def clipped_by_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each parameter's gradient is clipped to C by itself."""
    whole = engine.clip_to_grid
    monkeypatch.setattr(
        engine,
        "clip_to_grid",
        lambda gradients, *, mechanism: [whole([g], mechanism=mechanism)[0] for g in gradients],
    )


def clipped_by_who_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """C is shared among those who were drawn, as a mean would be."""
    whole = engine.clip_to_grid
    calls = [0]

    def shrinking(gradients: Any, *, mechanism: Any) -> list[Tensor]:
        calls[0] = calls[0] + 1 if len(gradients[0]) else 0
        return [part // max(calls[0], 1) for part in whole(gradients, mechanism=mechanism)]

    monkeypatch.setattr(engine, "clip_to_grid", shrinking)


BEFORE_THE_ENGINE: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "crops from one generator": crops_from_one_generator,
    "dropout of everybody": dropout_of_everybody,
    "named by place": named_by_place,
    "named by turn": named_by_turn,
    "a layer that counts": _with_layer(Counting),
    "a layer that remembers": _with_layer(Running),
    "another patient's case": another_patients_case,
    "clipped by who was before": clipped_by_who_was_before,
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", BEFORE_THE_ENGINE)
def test_who_depends_on_others_is_caught(
    bug: str, federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    BEFORE_THE_ENGINE[bug](monkeypatch)
    found = look(federation, tmp_path)
    assert found.failures == 0
    assert found.changed > 0
    assert not found.keeps_promise


@pytest.mark.slow
def test_a_shared_generator_moves_a_sum_beyond_c(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops_from_one_generator(monkeypatch)
    assert look(federation, tmp_path, draws=6).largest > 1.05


@pytest.mark.slow
@pytest.mark.parametrize("bug", ["clipped per crop", "never clipped", "gradients not cleared"])
def test_an_engine_with_a_planted_bug_is_caught_on_the_path(
    bug: str, federation: Federation, tmp_path: Path, plant: Callable[[str], None]
) -> None:
    plant(bug)
    found = look(federation, tmp_path, draws=2)
    assert not found.keeps_promise
    if bug == "gradients not cleared":
        assert found.changed > 0
    if bug == "clipped per crop":
        assert found.largest == pytest.approx(4, abs=0.2)


@pytest.mark.slow
def test_clipping_by_parameter_is_caught_on_the_path(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clipped_by_parameter(monkeypatch)
    found = look(federation, tmp_path)
    assert found.changed == 0  # everybody is by themselves, but too long
    assert found.largest > 2
    assert not found.keeps_promise


def test_gradients_that_cannot_be_computed_are_no_evidence(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: PatientStore, index: int) -> tuple[PreparedCase, ...]:
        if self._held or self._verified:
            raise RuntimeError("no memory")
        return _prepared(self, index)

    monkeypatch.setattr(PatientStore, "prepared", broken)
    found = look(federation, tmp_path)
    assert found.failures > 0
    assert found.changed == 0
    assert not found.keeps_promise


@pytest.mark.parametrize(
    "changes",
    [{"largest": 1.0000001}, {"changed": 1}, {"off_grid": 1}, {"failures": 1}, {"removals": 0}],
)
def test_every_part_of_the_promise_counts(changes: dict[str, Any]) -> None:
    right = {"site": "a", "removals": 3, "largest": 1.0, "worlds": 5}
    assert PathSensitivity(sites=(SiteSensitivity(**right),)).keeps_promise
    found = PathSensitivity(sites=(SiteSensitivity(**(right | changes)),))
    assert not found.keeps_promise
    assert json.loads(json.dumps(found.to_dict()))["keeps_promise"] is False
