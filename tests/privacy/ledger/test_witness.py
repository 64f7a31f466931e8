"""What this machine remembers of a ledger: no loss, no old copy and no second one forgives.

Patients are plain words here; the witness only ever sees and keeps their marks.
"""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from medfl.errors import LedgerError
from medfl.privacy.accounting.accountant import Charge, epsilon
from medfl.privacy.ledger import witness as module
from medfl.privacy.ledger.head import LedgerHead
from medfl.privacy.ledger.ledger import Agreement, Ledger, Permit, Terms
from medfl.privacy.ledger.recovery import acknowledge_loss
from medfl.privacy.ledger.witness import LedgerMemory, Witness
from medfl.privacy.mechanism import Mechanism

DELTA, BUDGET, STEPS = 1e-5, 8.0, 5
PATIENTS = ("Anna", "Berta", "Clara")
TERMS = Terms(cohort="DU", epsilon=BUDGET, delta=DELTA, purpose="hospital")
MECHANISM = Mechanism(
    sampling_prob=0.3,
    noise_multiplier=2.0,
    clip_norm=1.0,
    clipping="fixed",
    local_steps=STEPS,
    declared_patients=20,
)


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(tmp_path / "witness")


@pytest.fixture
def folder(tmp_path: Path, witness: Witness) -> Path:
    """A ledger that the witness knows and that has paid for two rounds."""
    path = tmp_path / "state" / "ledger"
    with create(path, witness) as ledger:
        for run in ("first", "paid before"):
            agree(ledger, run, marks(witness))
        pay(ledger, 1)
        pay(ledger, 2)
    return path


def marks(witness: Witness, patients: Iterable[str] = PATIENTS) -> list[str]:
    return [witness.mark(patient) for patient in patients]


def create(folder: Path, witness: Witness | None, patients: Iterable[str] = PATIENTS) -> Ledger:
    return Ledger.create(
        folder,
        cohort=TERMS.cohort,
        epsilon=TERMS.epsilon,
        delta=TERMS.delta,
        witness=witness,
        patients=[] if witness is None else marks(witness, patients),
    )


def agree(ledger: Ledger, run: str, patients: Iterable[str]) -> None:
    agreement = Agreement(
        study="gliomas",
        proposal="0" * 64,
        mechanism=MECHANISM,
        members=frozenset({"a"}),
        steps=10**6,
    )
    ledger.agree(run, agreement, patients=patients)


def pay(ledger: Ledger, number: int, **changes: Any) -> Permit:
    values: dict[str, Any] = {
        "study": "gliomas",
        "run": "first",
        "round": number,
        "message_id": f"message-{number}",
        "mechanism": MECHANISM,
    }
    return ledger.charge(**{**values, **changes})


def acknowledge(folder: Path, witness: Witness, patients: Iterable[str] = PATIENTS) -> Ledger:
    return acknowledge_loss(
        folder,
        terms=TERMS,
        witness=witness,
        patients=marks(witness, patients),
        reason="disk failed on 3 March",
    )


def cost(rounds: int) -> float:
    return epsilon([Charge(mechanism=MECHANISM, steps=STEPS * rounds)], delta=DELTA)


def spent(folder: Path, witness: Witness) -> float:
    with Ledger.open(folder, witness=witness) as ledger:
        return ledger.spent().epsilon


def copy(folder: Path, name: str) -> Path:
    """The whole ledger folder as a backup has it, head included."""
    return Path(shutil.copytree(folder, folder.parent / name))


def restore(folder: Path, backup: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(backup, folder)


def kinds(ledger: Ledger) -> list[str]:
    return [entry.kind for entry in ledger._store.entries]


# --- what it keeps


def test_a_patient_is_known_by_a_keyed_hash(witness: Witness, folder: Path, tmp_path: Path) -> None:
    assert witness.mark("Anna") == Witness(tmp_path / "witness").mark("Anna")
    assert witness.mark("Anna") != witness.mark("Berta")
    assert witness.mark("Anna") != Witness(tmp_path / "another").mark("Anna")
    for path in (tmp_path / "witness").iterdir():
        assert not [name for name in PATIENTS if name.encode() in path.read_bytes()]


def test_what_it_keeps_is_for_its_owner_only(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "witness"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept.iterdir()} == {0o600}
    assert len(list(kept.iterdir())) == 3  # the key, the lock and one ledger


def test_it_remembers_head_and_charges_as_the_ledger_has_them(
    witness: Witness, folder: Path
) -> None:
    with Ledger.open(folder, witness=witness) as ledger:
        memory = witness.sharing(patients=marks(witness, ["Berta"]), folder=Path("/nowhere"))
        assert memory is not None
        assert memory.head == ledger.head()
    assert memory == witness.recall(memory.ledger)
    assert memory.folder == str(folder.resolve())
    assert memory.patients == frozenset(marks(witness))
    (charged,) = memory.charged
    assert (charged.study, charged.charge) == (
        "gliomas",
        Charge(mechanism=MECHANISM, steps=2 * STEPS),
    )


def test_a_ledger_is_known_by_its_folder_as_well(witness: Witness, folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    for path in (folder, folder / ".." / "ledger", link):
        assert witness.sharing(patients=[], folder=path) is not None
    assert witness.sharing(patients=[], folder=folder.parent) is None
    assert witness.sharing(patients=marks(witness, ["Dora"]), folder=folder.parent) is None


def test_a_ledger_without_a_witness_leaves_nothing_behind(tmp_path: Path) -> None:
    with create(tmp_path / "open" / "ledger", None) as ledger:
        agree(ledger, "first", [])
        pay(ledger, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["open"]


# --- one budget, whatever happens to the data


def test_a_patient_who_joins_gets_no_fresh_budget(witness: Witness, folder: Path) -> None:
    with Ledger.open(folder, witness=witness) as ledger:
        agree(ledger, "second", marks(witness, [*PATIENTS, "Dora"]))
        assert ledger.spent().epsilon == cost(2)
        assert ledger.history() == ((Charge(mechanism=MECHANISM, steps=2 * STEPS),),)
    # From then on she belongs to this ledger.
    with pytest.raises(LedgerError, match="pays for some of them"):
        create(folder.parent / "other", witness, ["Dora"])


def test_a_patient_who_withdrew_still_belongs_to_the_ledger(witness: Witness, folder: Path) -> None:
    with Ledger.open(folder, witness=witness) as ledger:
        agree(ledger, "second", marks(witness, ["Anna"]))
    with pytest.raises(LedgerError, match="pays for some of them"):
        create(folder.parent / "other", witness, ["Clara"])


@pytest.mark.parametrize("patients", [PATIENTS, ("Berta",), ("Dora", "Clara")])
def test_a_second_ledger_for_one_of_the_patients_is_refused(
    patients: tuple[str, ...], witness: Witness, folder: Path
) -> None:
    other = folder.parent / "other"
    with pytest.raises(LedgerError, match="pays for some of them") as caught:
        create(other, witness, patients)
    assert caught.value.code == "ledger-elsewhere"
    assert not other.exists()
    create(other, witness, ["Dora"]).close()


def test_a_run_on_another_ledgers_patients_is_refused_and_not_recorded(
    witness: Witness, folder: Path
) -> None:
    with create(folder.parent / "other", witness, ["Dora"]) as other:
        head = other.head()
        with pytest.raises(LedgerError, match="pays for some of them"):
            agree(other, "second", marks(witness, ["Dora", "Anna"]))
        assert other.head() == head
        assert other.agreement("second") is None


# --- loss


def test_a_deleted_ledger_is_neither_opened_nor_made_anew(witness: Witness, folder: Path) -> None:
    shutil.rmtree(folder)
    with pytest.raises(LedgerError, match="found none"):
        Ledger.open(folder, witness=witness)
    with pytest.raises(LedgerError) as caught:
        create(folder, witness)
    assert caught.value.code == "ledger-elsewhere"
    # Not for other patients either: the folder alone is enough.
    with pytest.raises(LedgerError):
        create(folder, witness, ["Dora"])
    assert not folder.exists()


def test_a_lost_ledger_begins_again_with_everything_spent(witness: Witness, folder: Path) -> None:
    with Ledger.open(folder, witness=witness) as ledger:
        pay(ledger, 1, study="metastases", run="paid before")
        before = ledger.spent()
        history = sorted(ledger.history(), key=str)
        lost = ledger.head()
    shutil.rmtree(folder)
    with acknowledge(folder, witness) as ledger:
        after = ledger.spent()
        assert sorted(ledger.history(), key=str) == history
        entries = ledger._store.entries
        assert kinds(ledger) == ["init", "acknowledge", "carry", "carry"]
        assert entries[1].content["reason"] == "disk failed on 3 March"
        assert entries[1].content["lost"][0]["sequence"] == lost.sequence
        assert entries[1].content["lost"][0]["hash"] == lost.hash
    assert after.epsilon == before.epsilon > cost(2)
    assert after.remaining == before.remaining
    assert spent(folder, witness) == before.epsilon
    with Ledger.open(folder, witness=witness) as ledger:
        agree(ledger, "third", marks(witness))
        pay(ledger, 1, run="third")
        assert ledger.spent().epsilon > before.epsilon


def test_the_steps_of_a_run_are_known_after_its_ledger_was_lost(
    witness: Witness, folder: Path
) -> None:
    with Ledger.open(folder, witness=witness) as ledger:
        pay(ledger, 1, run="paid before")
    shutil.rmtree(folder)
    with acknowledge(folder, witness) as ledger:
        # What is carried over may only be counted more, never less.
        assert ledger.steps(run="first") >= 2 * STEPS
        assert ledger.steps(run="paid before") >= STEPS


def test_a_lost_ledger_may_go_on_elsewhere_and_the_old_one_is_dead(
    witness: Witness, folder: Path
) -> None:
    backup, elsewhere = copy(folder, "backup"), folder.parent / "elsewhere"
    shutil.rmtree(folder)
    acknowledge(elsewhere, witness).close()
    assert spent(elsewhere, witness) == cost(2)
    shutil.copytree(backup, folder)
    with pytest.raises(LedgerError, match="an unknown one"):
        Ledger.open(folder, witness=witness)


def test_an_old_copy_of_the_whole_folder_is_refused(witness: Witness, folder: Path) -> None:
    backup = copy(folder, "backup")
    with Ledger.open(folder, witness=witness) as ledger:
        pay(ledger, 3)
    restore(folder, backup)
    with pytest.raises(LedgerError, match="restored old copy"):
        Ledger.open(folder, witness=witness)
    # The ledger alone has no way to tell.
    with Ledger.open(folder) as blind:
        assert blind.spent().epsilon == cost(2)


def test_an_old_copy_that_went_on_by_itself_is_refused(witness: Witness, folder: Path) -> None:
    backup = copy(folder, "backup")
    with Ledger.open(folder, witness=witness) as ledger:
        pay(ledger, 3)
    restore(folder, backup)
    with Ledger.open(folder) as blind:  # as long as the true one, with another content
        for number in (3, 4):
            pay(blind, number, message_id="other")
    with pytest.raises(LedgerError, match="restored old copy"):
        Ledger.open(folder, witness=witness)


def test_an_old_copy_goes_on_with_what_it_lacked(witness: Witness, folder: Path) -> None:
    backup = copy(folder, "backup")
    with Ledger.open(folder, witness=witness) as ledger:
        pay(ledger, 3)
        pay(ledger, 1, study="metastases", run="paid before")
        before = ledger.spent().epsilon
    restore(folder, backup)
    with acknowledge(folder, witness) as ledger:
        assert ledger.spent().epsilon == before
        carried = [entry.content for entry in ledger._store.entries if entry.kind == "carry"]
        assert [(c["study"], c["steps"]) for c in carried] == [
            ("gliomas", STEPS),
            ("metastases", STEPS),
        ]
    assert spent(folder, witness) == before


@pytest.mark.parametrize("lost", ["deleted", "restored"])
def test_a_loss_that_is_acknowledged_twice_counts_once(
    lost: str, witness: Witness, folder: Path
) -> None:
    backup = copy(folder, "backup")
    with Ledger.open(folder, witness=witness) as ledger:
        pay(ledger, 3)
    for _ in range(2):
        if lost == "deleted":
            shutil.rmtree(folder)
        else:
            restore(folder, backup)
        acknowledge(folder, witness).close()
        assert spent(folder, witness) == cost(3)
        with pytest.raises(LedgerError, match="expected a loss to acknowledge"):
            acknowledge(folder, witness)
        assert spent(folder, witness) == cost(3)


def test_a_ledger_that_was_moved_to_this_machine_is_refused_until_it_is_acknowledged(
    folder: Path, tmp_path: Path
) -> None:
    here = Witness(tmp_path / "here")
    with pytest.raises(LedgerError, match="an unknown one"):
        Ledger.open(folder, witness=here)
    with acknowledge(folder, here) as ledger:
        assert kinds(ledger)[-1] == "acknowledge"
        assert ledger.spent().epsilon == cost(2)
    assert spent(folder, here) == cost(2)
    with pytest.raises(LedgerError, match="pays for some of them"):
        create(folder.parent / "other", here, ["Anna"])


def test_where_nothing_is_wrong_there_is_nothing_to_acknowledge(
    witness: Witness, folder: Path
) -> None:
    with Ledger.open(folder, witness=witness) as ledger:
        head = ledger.head()
    with pytest.raises(LedgerError, match="found the newest ledger"):
        acknowledge(folder, witness)
    with Ledger.open(folder, witness=witness) as ledger:
        assert ledger.head() == head


def test_where_there_never_was_a_ledger_none_is_made(witness: Witness, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="found neither"):
        acknowledge(tmp_path / "ledger", witness)
    assert not (tmp_path / "ledger").exists()


@pytest.mark.parametrize("reason", ["", "two\nlines", "x" * 201, "\x1b[2J"])
def test_a_reason_is_given_in_words(reason: str, witness: Witness, folder: Path) -> None:
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="reason"):
        acknowledge_loss(
            folder, terms=TERMS, witness=witness, patients=marks(witness), reason=reason
        )
    assert not folder.exists()


def test_an_edited_ledger_cannot_be_acknowledged(witness: Witness, folder: Path) -> None:
    content = (folder / "ledger.sqlite").read_bytes()
    place = content.index(b"gliomas")
    (folder / "ledger.sqlite").write_bytes(content[:place] + b"g" + b"L" + content[place + 2 :])
    with pytest.raises(LedgerError):
        acknowledge(folder, witness)


# --- a witness that fails


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "",
        lambda text: text[:-10],
        lambda _: "[]",
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "patients"}),
        lambda text: json.dumps(json.loads(text) | {"charged": [{}]}),
        lambda text: json.dumps(json.loads(text) | {"charged": [{"steps": "5"}]}),
    ],
)
def test_a_damaged_memory_permits_nothing(damage: Any, witness: Witness, folder: Path) -> None:
    (memory,) = (folder.parent.parent / "witness").glob("*.json")
    memory.write_text(damage(memory.read_text()))
    for action in (
        lambda: Ledger.open(folder, witness=witness),
        lambda: create(folder.parent / "other", witness, ["Dora"]),
        lambda: acknowledge(folder, witness),
    ):
        with pytest.raises(LedgerError, match="damaged"):
            action()


def test_a_key_of_another_length_is_refused(witness: Witness, folder: Path) -> None:
    key = folder.parent.parent / "witness" / "witness.key"
    key.write_bytes(key.read_bytes()[:31])
    with pytest.raises(LedgerError, match="expected 32 bytes, found 31"):
        witness.mark("Anna")


@pytest.mark.parametrize("key", ["gone", "another"])
def test_without_the_right_key_nobody_is_known_again_and_nothing_is_permitted(
    key: str, witness: Witness, folder: Path
) -> None:
    path = folder.parent.parent / "witness" / "witness.key"
    path.unlink()
    if key == "another":
        path.write_bytes(b"k" * 32)
        path.chmod(0o600)
    for action in (
        lambda: Ledger.open(folder, witness=witness),
        lambda: create(folder.parent / "other", witness, PATIENTS),
        lambda: acknowledge(folder, witness),
    ):
        with pytest.raises(LedgerError, match="restore it"):
            action()
    assert not (folder.parent / "other").exists()


def test_a_memory_of_a_version_that_noted_no_key_is_believed(
    witness: Witness, folder: Path
) -> None:
    (memory,) = (folder.parent.parent / "witness").glob("*.json")
    content = json.loads(memory.read_text())
    del content["key"]
    memory.write_text(json.dumps(content))
    assert spent(folder, witness) == cost(2)


def test_what_the_witness_cannot_note_counts_and_permits_nothing(
    witness: Witness, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with Ledger.open(folder, witness=witness) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(module, "write_atomically", full)
            with pytest.raises(LedgerError, match="No space left"):
                pay(ledger, 3)
        assert ledger.spent().epsilon == cost(3)
    assert spent(folder, witness) == cost(3)
    # Noted with the next entry at the latest.
    with Ledger.open(folder, witness=witness) as ledger:
        pay(ledger, 4)
    shutil.rmtree(folder)
    acknowledge(folder, witness).close()
    assert spent(folder, witness) == cost(4)


def test_a_memory_comes_back_equal(witness: Witness, tmp_path: Path) -> None:
    memory = LedgerMemory(
        ledger="a" * 64,
        folder=str(tmp_path),
        head=LedgerHead(sequence=7, hash="b" * 64),
        charged=(),
        patients=frozenset({"c" * 64}),
    )
    assert witness.recall(memory.ledger) is None
    witness.note(memory)
    assert witness.recall(memory.ledger) == memory
    witness.forget(memory.ledger)
    assert witness.recall(memory.ledger) is None


@pytest.mark.parametrize("stop", ["note", "forget"])
def test_an_acknowledgement_that_is_interrupted_can_be_repeated_and_counts_once(
    stop: str, witness: Witness, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    shutil.rmtree(folder)
    with monkeypatch.context() as patch:
        patch.setattr(Witness, stop, interrupt)
        with pytest.raises(KeyboardInterrupt):
            acknowledge(folder, witness)
    acknowledge(folder, witness).close()
    assert spent(folder, witness) == cost(2)
    with pytest.raises(LedgerError, match="expected a loss to acknowledge"):
        acknowledge(folder, witness)


# --- several ledgers on one machine


def test_a_loss_takes_nothing_over_from_a_ledger_that_is_still_there(
    witness: Witness, folder: Path
) -> None:
    """A patient of the lost cohort's data folder may belong to another ledger by now."""
    other = folder.parent / "other"
    with create(other, witness, ["Dora"]) as ledger:
        agree(ledger, "second", marks(witness, ["Dora"]))
        pay(ledger, 1, study="metastases", run="second")
    for lost, alive, patients in (
        (folder, other, [*PATIENTS, "Dora"]),
        (other, folder, ["Dora", "Anna"]),
    ):
        before = spent(alive, witness)
        backup = copy(lost, f"backup of {lost.name}")
        shutil.rmtree(lost)
        with pytest.raises(LedgerError, match="pays for some of them"):
            acknowledge(lost, witness, patients)
        assert not lost.exists()
        assert spent(alive, witness) == before
        shutil.copytree(backup, lost)


def test_two_lost_ledgers_are_both_taken_over(witness: Witness, folder: Path) -> None:
    other = folder.parent / "other"
    with create(other, witness, ["Dora"]) as ledger:
        agree(ledger, "second", marks(witness, ["Dora"]))
        pay(ledger, 1, study="metastases", run="second")
        alone = ledger.spent().epsilon
    shutil.rmtree(folder)
    shutil.rmtree(other)
    acknowledge(folder, witness, [*PATIENTS, "Dora"]).close()
    assert spent(folder, witness) > max(cost(2), alone)
    with pytest.raises(LedgerError, match="pays for some of them"):
        create(folder.parent / "third", witness, ["Dora"])


def test_an_unknown_ledger_in_the_place_of_a_remembered_one_is_charged_for_it(
    witness: Witness, folder: Path, tmp_path: Path
) -> None:
    """A fresh ledger out of another machine, put into the place of one that has spent."""
    fresh = tmp_path / "fresh"
    create(fresh, Witness(tmp_path / "elsewhere")).close()
    restore(folder, fresh)
    with pytest.raises(LedgerError, match="an unknown one"):
        Ledger.open(folder, witness=witness)
    acknowledge(folder, witness).close()
    assert spent(folder, witness) == cost(2)
