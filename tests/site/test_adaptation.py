"""A hospital's own model: chosen on patients that it did not see, and kept at the hospital."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medfl.data.patient_store import PatientStore
from medfl.errors import ConfigError, DataError, ModelError, PrivacyError
from medfl.prediction.monai_bundle import export_bundle
from medfl.protocol.study_model import model_spec, study_model_bytes
from medfl.segmentation.model_file import STAYS, model_bytes, read_provenance
from medfl.segmentation.networks import trainable_state
from medfl.site import adaptation, own_model
from medfl.site.adaptation import ADAPTED, ALONE, FEDERATED, Adaptation
from medfl.site.frames import frame_of
from medfl.site.state import SiteState, hospital_state

STEPS = 2


def unwatched(_part: str, _done: int, _total: int) -> None:
    """Nobody looks."""


class Home:
    """A hospital that has received a model."""

    def __init__(self, federation: Any, **changes: Any) -> None:
        study = federation.study()
        self.federation = federation
        self.site = federation.hospital("north", **changes)
        self.spec = model_spec(study)
        self.model = federation.scratch / "federated.safetensors"
        federated = trainable_state(self.spec.build(seed=5))
        self.model.write_bytes(
            study_model_bytes(federated, study=study, round_number=2, declarations={})
        )
        self.start = federation.scratch / "start.safetensors"
        self.start.write_bytes(
            model_bytes(
                trainable_state(self.spec.build(seed=6)),
                spec=self.spec,
                provenance={"mechanisms": {}},
            )
        )
        self.out = self.site.state / "own.safetensors"

    @property
    def state(self) -> SiteState:
        return hospital_state(self.site)

    def adapt(self, **changes: Any) -> Adaptation:
        values: dict[str, Any] = {
            "out": self.out,
            "start": self.start,
            "steps": STEPS,
            "folds": 2,
            "seed": 0,
            "device": self.site.device,
            "watch": unwatched,
        }
        return own_model.write_own_model(self.state, self.model, **values | changes)


@pytest.fixture
def home(federation: Any) -> Home:
    return Home(federation)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[frozenset[int], int]]:
    """Whom the models of a fold were trained on, with each patient that they were scored on."""
    pairs: list[tuple[frozenset[int], int]] = []
    trained: list[frozenset[int]] = []
    train, dice = adaptation.train_plainly, adaptation._mean_dice

    def training(network: Any, store: Any, *, among: Any, **named: Any) -> None:
        trained.append(frozenset(among))
        train(network, store, among=among, **named)

    def scoring(network: Any, store: Any, index: int, **named: Any) -> float:
        pairs.append((trained[-1], index))
        return dice(network, store, index, **named)

    monkeypatch.setattr(adaptation, "train_plainly", training)
    monkeypatch.setattr(adaptation, "_mean_dice", scoring)
    return pairs


@pytest.mark.slow
def test_no_candidate_is_judged_by_a_patient_that_it_was_trained_on(
    home: Home, seen: list[tuple[frozenset[int], int]]
) -> None:
    found = home.adapt(folds=3)
    everybody = set(range(5))
    assert {index for _, index in seen} == everybody
    for trained, index in seen:
        assert index not in trained
        assert trained < everybody
    models = len(found.candidates)
    assert len(seen) == models * len(everybody)
    assert [len(candidate.dice) for candidate in found.candidates] == [5] * models


@pytest.fixture
def plain_numbers(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A federated model of zeros, which training makes one of ones, and a start of eights."""

    def filled(value: float) -> dict[str, torch.Tensor]:
        weights = trainable_state(home.spec.build())
        return {name: torch.full_like(tensor, value) for name, tensor in weights.items()}

    for file, value in ((home.model, 0.0), (home.start, 8.0)):
        provenance = {"mechanisms": {}}
        file.write_bytes(model_bytes(filled(value), spec=home.spec, provenance=provenance))

    def train(network: torch.nn.Module, *_: Any, **__: Any) -> None:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 1.0

    monkeypatch.setattr(adaptation, "train_plainly", train)


@pytest.mark.usefixtures("plain_numbers")
@pytest.mark.parametrize(
    ("best", "name"),
    [
        (0.0, FEDERATED),
        (1.0, ADAPTED),
        (9.0, ALONE),
        (0.5, "average of federated and adapted"),
        (5.0, "average of alone and adapted"),
    ],
)
def test_the_best_on_unseen_patients_is_chosen_and_written(
    best: float, name: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closeness(network: torch.nn.Module, *_: Any, **__: Any) -> float:
        return 1 / (1 + abs(next(network.parameters()).flatten()[0].item() - best))

    monkeypatch.setattr(adaptation, "_mean_dice", closeness)
    assert home.adapt().chosen.name == name
    assert all((tensor == best).all() for tensor in load_file(home.out).values())


@pytest.mark.usefixtures("plain_numbers")
def test_where_nothing_is_better_the_federated_model_stays(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptation, "_mean_dice", lambda *_, **__: 0.5)
    assert home.adapt().chosen.name == FEDERATED


@pytest.mark.slow
def test_candidates_without_a_start_are_the_federated_and_the_adapted_model(home: Home) -> None:
    with_start = [each.name for each in home.adapt().candidates]
    without = [
        each.name
        for each in home.adapt(start=None, out=home.out.with_name("second.safetensors")).candidates
    ]
    assert without[:2] == [FEDERATED, ADAPTED]
    assert not any(ALONE in name for name in without)
    assert with_start[:3] == [FEDERATED, ADAPTED, ALONE]


@pytest.mark.slow
def test_held_out_patients_have_no_say(federation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(federation, data={"held_out": 0.4}, declared_patients=3)
    _, held_out = home.state.stores_in(
        frame_of(home.state.site, home.spec, fills=False, of="model")
    )
    assert len(held_out) > 0
    cases = {case.case_id for patient in held_out._patients for case in patient.cases}
    prepared = PatientStore.prepared
    read: set[str] = set()

    def noted(store: PatientStore, index: int) -> Any:
        read.update(case.case_id for case in store._patients[index].cases)
        return prepared(store, index)

    monkeypatch.setattr(PatientStore, "prepared", noted)
    home.adapt()
    assert read
    assert not read & cases


def test_the_file_is_its_owners_and_says_that_it_stays(home: Home) -> None:
    found = home.adapt()
    table = own_model.table_of(home.out)
    for file in (home.out, table):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    tried = json.loads(table.read_text())
    assert tried["privacy"] == STAYS
    assert {each["name"]: tuple(each["dice"]) for each in tried["candidates"]} == {
        each.name: each.dice for each in found.candidates
    }
    provenance = read_provenance(home.out)
    assert provenance["privacy"] == STAYS
    assert provenance["chosen"] == found.chosen.name
    stored = load_file(home.out)
    assert all(torch.equal(stored[name], found.weights[name]) for name in stored)
    with home.state.open_ledger() as ledger:
        assert [entry.kind for entry in ledger.entries() if entry.kind == "charge"] == []


@pytest.mark.slow
def test_the_same_seed_makes_the_same_model(home: Home) -> None:
    other = home.out.with_name("again.safetensors")
    one, two = home.adapt(), home.adapt(out=other)
    assert one.candidates == two.candidates
    first, second = load_file(home.out), load_file(other)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_is_written_nowhere_but_in_the_sites_folder(home: Home, tmp_path: Path) -> None:
    link = home.site.state / "link"
    link.symlink_to(tmp_path)
    for place in (tmp_path / "own.safetensors", link / "own.safetensors"):
        with pytest.raises(ConfigError, match="may not leave"):
            home.adapt(out=place)
        assert not place.exists()


def test_nothing_is_overwritten(home: Home) -> None:
    home.out.write_bytes(b"something else")
    with pytest.raises(ConfigError, match="expected a new file"):
        home.adapt()
    assert home.out.read_bytes() == b"something else"


def test_a_file_that_cannot_be_written_is_refused_before_the_training(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: Any, **__: Any) -> None:
        raise AssertionError("trained for nothing")

    monkeypatch.setattr(adaptation, "train_plainly", train)
    (home.site.state / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="expected a file that can be written"):
        home.adapt(out=home.site.state / "file" / "own.safetensors")


@pytest.mark.slow
def test_a_model_that_stays_is_not_exported(home: Home, tmp_path: Path) -> None:
    home.adapt()
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(home.out, run / "checkpoints" / "final.safetensors")
    for name in ("study.json", "privacy.json"):
        (run / name).write_text("{}")
    with pytest.raises(PrivacyError, match="stays at this hospital"):
        export_bundle(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["federated", "own"])
def test_a_start_that_was_trained_on_patients_is_refused(home: Home, which: str) -> None:
    own = home.out.with_name("first.safetensors")
    home.adapt(out=own)
    if which == "federated":
        provenance = {"mechanisms": {"DU": {}}}
        weights = trainable_state(home.spec.build())
        own.write_bytes(model_bytes(weights, spec=home.spec, provenance=provenance))
    with pytest.raises(PrivacyError, match="no patient has trained"):
        home.adapt(start=own)


def test_a_start_of_another_network_is_refused(home: Home) -> None:
    spec = model_spec(home.federation.study(input={"modalities": ["t1n", "t2f"]}))
    assert spec.modalities != home.spec.modalities
    weights = trainable_state(spec.build())
    home.start.write_bytes(model_bytes(weights, spec=spec, provenance={"mechanisms": {}}))
    with pytest.raises(ModelError, match="expected the modalities"):
        home.adapt()


def test_fewer_patients_than_folds_are_refused(home: Home) -> None:
    with pytest.raises(DataError, match=r"folds \(6\), found 5"):
        home.adapt(folds=6)
    assert not home.out.exists()
