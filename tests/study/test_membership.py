"""Who joins or leaves a cohort in the middle of a study changes no public number of it.

A round can draw those who took part when the site agreed to the run and are still there. The
ledger pays for all of them, under whatever names and folders, and is never fresh.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from medfl.config import SiteConfig
from medfl.data.patient_store import PatientStore
from medfl.errors import LedgerError
from medfl.protocol.messages import (
    Declaration,
    Proposal,
    TrainTask,
    read_body,
    refusal_code,
    to_record,
)
from medfl.site import round as site_round
from medfl.site.state import create_ledger

pytestmark = pytest.mark.slow

Answer = Callable[[], Message]

STUDY: dict[str, Any] = {
    "privacy": {"noise": "operating-system", "epsilon": 3.0},
    "aggregation": {"min_sites": 1},
}
NEW = "BraTS2021_77777"


class Watched:
    """Who could be drawn in each round that is trained, and what was asked and declared."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drawable: list[set[str]] = []
        self.declared: list[Declaration] = []
        self.tasks: list[TrainTask] = []
        self._read: set[str] = set()
        prepared, trained = PatientStore._verified_case, site_round.train_round

        def prepare(store: PatientStore, case: Any, *rest: Any) -> Any:
            self._read.add(case.case_id)
            return prepared(store, case, *rest)

        def train(*arguments: Any, **keywords: Any) -> Any:
            self._read = set()
            patients = keywords["patients"]
            for index in range(len(patients)):
                patients.loss_of(index, torch.Generator())
            self.drawable.append(set(self._read))
            found = trained(*arguments, **keywords)
            assert self._read == self.drawable[-1]
            return found

        monkeypatch.setattr(PatientStore, "_verified_case", prepare)
        monkeypatch.setattr(site_round, "train_round", train)

    def __call__(self, _: str, message: Message, answer: Answer) -> Message:
        reply = answer()
        if message.metadata.message_type == "query":
            self.declared.append(read_body(reply.content, Declaration))
        if message.metadata.message_type == "train":
            self.tasks.append(read_body(message.content, TrainTask))
        return reply

    def until_round(self, number: int) -> Any:
        """The same, stopped before a round is asked for."""

        def fault(site: str, message: Message, answer: Answer) -> Message:
            if message.metadata.message_type == "train" and len(self.tasks) == number - 1:
                raise KeyboardInterrupt
            return self(site, message, answer)

        return fault


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


@pytest.fixture
def site(federation: Any) -> SiteConfig:
    """A hospital of four patients, whose folders a test may change."""
    found: SiteConfig = federation.hospital("east", copy_patients=True)
    return found


def names(site: SiteConfig) -> list[str]:
    return sorted(path.name for path in Path(site.data.root).iterdir())


def add(federation: Any, site: SiteConfig, name: str = NEW) -> None:
    """A patient of another hospital under a new name."""
    other = Path(federation.site("south").data.root)
    copy_as(sorted(other.iterdir())[0], Path(site.data.root) / name)


def copy_as(patient: Path, target: Path) -> None:
    shutil.copytree(patient, target)
    for file in sorted(target.iterdir()):
        file.rename(file.with_name(file.name.replace(patient.name, target.name)))


def spent(federation: Any, site: SiteConfig) -> Any:
    with federation.site_state(site).open_ledger() as ledger:
        return ledger.spent()


def ask(federation: Any, site: SiteConfig, study: Any, *, run: str) -> Any:
    proposal = Proposal(study=study, run=run, private=True)
    return federation.ask(federation.site_state(site), to_record(proposal), kind="query")


def stopped_before_round_2(federation: Any, site: SiteConfig, watched: Watched) -> None:
    with pytest.raises(KeyboardInterrupt):
        federation.run(federation.study(**STUDY), [site], fault=watched.until_round(2), run_id="r")


def test_who_withdraws_is_drawn_no_more_and_the_study_goes_on_as_agreed(
    federation: Any, site: SiteConfig, watched: Watched
) -> None:
    everybody = set(names(site))
    stopped_before_round_2(federation, site, watched)
    gone = names(site)[1]
    shutil.rmtree(Path(site.data.root) / gone)
    finished = federation.run(
        federation.study(**STUDY), [site], fault=watched, resume=True, run_id="r"
    )
    assert finished.outcomes(2) == {"east": ("admitted", "")}
    assert watched.drawable == [everybody, everybody - {gone}]
    # Sampling probability, divisor and noise are those of the agreement, the weight too.
    first, second = watched.tasks
    assert first.mechanism == second.mechanism
    assert second.mechanism.declared_patients == 4
    assert [found.weight for found in watched.declared] == [site.weight] * 2
    assert [found.declared_patients for found in watched.declared] == [4, 4]
    assert spent(federation, site).by_run[0].steps == 2


def test_who_joins_waits_for_the_next_run(
    federation: Any, site: SiteConfig, watched: Watched
) -> None:
    everybody = set(names(site))
    stopped_before_round_2(federation, site, watched)
    add(federation, site)
    finished = federation.run(
        federation.study(**STUDY), [site], fault=watched, resume=True, run_id="r"
    )
    assert finished.outcomes(2) == {"east": ("admitted", "")}
    assert watched.drawable == [everybody, everybody]
    assert watched.tasks[0].mechanism == watched.tasks[1].mechanism
    assert [found.declared_patients for found in watched.declared] == [4, 4]
    used = spent(federation, site)
    assert 2.5 < used.epsilon <= 3.0

    # The next run is refused until the public number is right, and its budget is not fresh.
    later = federation.study(**STUDY, id="later")
    assert refusal_code(ask(federation, site, later, run="s")) == "declared-patients"
    assert spent(federation, site) == used
    right = site.model_copy(update={"declared_patients": 5})
    declared = read_body(ask(federation, right, later, run="s"), Declaration)
    assert declared.declared_patients == declared.mechanism.declared_patients == 5
    assert declared.epsilon > used.epsilon + 0.5
    with federation.site_state(right).open_ledger() as ledger:
        assert len(ledger.agreement("r").members) == 4
        assert len(ledger.agreement("s").members) == 5
        assert ledger.spent() == used


def test_who_joins_is_drawn_in_the_next_run(
    federation: Any, site: SiteConfig, watched: Watched
) -> None:
    add(federation, site)
    right = site.model_copy(update={"declared_patients": 5})
    federation.run(federation.study(**STUDY, training={"rounds": 1}), [right], fault=watched)
    assert watched.drawable == [set(names(site))]
    assert NEW in watched.drawable[0]


def test_one_who_leaves_and_one_who_joins_do_not_take_each_others_place(
    federation: Any, site: SiteConfig, watched: Watched
) -> None:
    """The number of patients is right, and the new one still was not there at the agreement."""
    everybody = set(names(site))
    stopped_before_round_2(federation, site, watched)
    gone = names(site)[0]
    shutil.rmtree(Path(site.data.root) / gone)
    add(federation, site)
    federation.run(federation.study(**STUDY), [site], fault=watched, resume=True, run_id="r")
    assert watched.drawable == [everybody, everybody - {gone}]


def test_a_run_goes_on_where_everybody_has_withdrawn_but_one(
    federation: Any, site: SiteConfig, watched: Watched
) -> None:
    stopped_before_round_2(federation, site, watched)
    for name in names(site)[1:]:
        shutil.rmtree(Path(site.data.root) / name)
    finished = federation.run(
        federation.study(**STUDY), [site], fault=watched, resume=True, run_id="r"
    )
    assert finished.outcomes(2) == {"east": ("admitted", "")}
    assert watched.drawable[1] == set(names(site))
    assert watched.tasks[1].mechanism.declared_patients == 4


def test_a_new_number_of_patients_does_not_change_a_run_that_was_agreed_to(
    federation: Any, site: SiteConfig, watched: Watched
) -> None:
    stopped_before_round_2(federation, site, watched)
    add(federation, site)
    changed = site.model_copy(update={"declared_patients": 5})
    used = spent(federation, changed)
    reply = ask(federation, changed, federation.study(**STUDY), run="r")
    assert refusal_code(reply) == "policy-declared-patients"
    assert spent(federation, changed) == used


# --- the ledger is that of the patients, whatever their folder is called


def test_data_that_moved_have_the_same_budget(
    federation: Any, site: SiteConfig, watched: Watched
) -> None:
    federation.run(federation.study(**STUDY), [site], fault=watched, name="first")
    used = spent(federation, site)
    root = Path(site.data.root)
    renamed = root.with_name("renamed")
    root.rename(renamed)
    copied = shutil.copytree(renamed, federation.scratch / "elsewhere")
    for place in (renamed, copied):
        moved = site.model_copy(update={"data": site.data.model_copy(update={"root": Path(place)})})
        assert spent(federation, moved) == used
        later = federation.study(**STUDY, id=f"in {place.name}".replace(" ", "-"))
        declared = read_body(ask(federation, moved, later, run=place.name), Declaration)
        assert declared.epsilon > used.epsilon + 0.5


@pytest.mark.parametrize("change", ["none", "renamed folders", "one new patient"])
def test_the_same_patients_get_no_second_ledger_elsewhere(
    change: str, federation: Any, site: SiteConfig, watched: Watched
) -> None:
    study = federation.study(**STUDY)
    federation.run(study, [site], fault=watched, name="first")
    used = spent(federation, site)
    root = federation.scratch / "second"
    for number, name in enumerate(names(site)):
        target = f"BraTS2021_5555{number}" if change == "renamed folders" else name
        copy_as(Path(site.data.root) / name, root / target)
    patients = 4
    second = site.model_copy(
        update={
            "name": "second",
            "state": federation.scratch / "state" / "second",
            "data": site.data.model_copy(update={"root": root}),
        }
    )
    if change == "one new patient":
        add(federation, second)
        patients = 5
    second = second.model_copy(update={"declared_patients": patients})
    try:
        create_ledger(second, folder=second.state / "ledger").close()
    except LedgerError as error:
        assert error.code == "ledger-elsewhere"
    else:
        shutil.copytree(site.state / "keys", second.state / "keys")
        reply = ask(federation, second, study, run="second")
        assert refusal_code(reply) == "ledger-elsewhere"
    assert spent(federation, site) == used
