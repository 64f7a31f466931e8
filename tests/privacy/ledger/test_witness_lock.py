"""Asking the witness, writing to a ledger and telling the witness are one act, for whoever comes.

Processes here are real ones, forked; where a test widens a gap, it does so in one of them only.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from medfl.errors import LedgerError
from medfl.privacy.accounting.charges import Charge
from medfl.privacy.ledger.ledger import Agreement, Ledger, Terms
from medfl.privacy.ledger.recovery import acknowledge_loss
from medfl.privacy.ledger.witness import Witness
from medfl.privacy.ledger.witness_lock import exclusive
from medfl.privacy.mechanism import Mechanism

MECHANISM = Mechanism(
    sampling_prob=0.1,
    noise_multiplier=4.0,
    clip_norm=1.0,
    clipping="fixed",
    local_steps=1,
    declared_patients=20,
)
TERMS = Terms(cohort="DU", epsilon=8.0, delta=1e-5, purpose="hospital")
WIDE = 1.0
"""Seconds for which a gap is held open."""


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(tmp_path / "witness")


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "lock"


def create(folder: Path, witness: Witness, *patients: str) -> Ledger:
    return Ledger.create(
        folder,
        cohort="DU",
        epsilon=8.0,
        delta=1e-5,
        witness=witness,
        patients=marks(witness, *patients),
    )


def marks(witness: Witness, *patients: str) -> frozenset[str]:
    return witness.marks(patients)


def agree(ledger: Ledger, run: str, *patients: str) -> None:
    agreement = Agreement(
        study="s", proposal="0" * 64, mechanism=MECHANISM, members=frozenset({"a"}), steps=1000
    )
    ledger.agree(run, agreement, patients=patients)


def pay(ledger: Ledger, number: int) -> None:
    ledger.charge(study="s", run="run", round=number, message_id=f"m{number}", mechanism=MECHANISM)


def begin(action: Callable[[], object]) -> int:
    """Run an action in a process of its own, which ends with 0, or 4 where the ledger refused."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            action()
            status = 0
        except LedgerError:
            status = 4
        finally:
            os._exit(status)
    return child


def end(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def together(*actions: Callable[[Callable[[], None]], object]) -> list[int]:
    """Let processes do something at the same moment; how each ended.

    Each action is given a function that returns once all have called it.
    """
    ready, told = os.pipe(), os.pipe()

    def meet() -> None:
        os.close(told[1])
        os.write(ready[1], b".")
        os.read(told[0], 1)

    children = [begin(partial(action, meet)) for action in actions]
    for _ in children:
        os.read(ready[0], 1)
    for descriptor in (*ready, *told):
        os.close(descriptor)
    return [end(child) for child in children]


@contextmanager
def meanwhile(how: str, action: Callable[[], object]) -> Iterator[None]:
    """Do something in another process or thread during the body; it has to succeed."""
    if how == "process":
        child = begin(action)
        yield
        assert end(child) == 0
        return
    failed: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    assert failed == []


def until(condition: Callable[[], bool], *, seconds: float) -> bool:
    last = time.monotonic() + seconds
    while time.monotonic() < last:
        if condition():
            return True
        time.sleep(0.005)
    return condition()


# --- the lock


def test_one_process_or_thread_holds_it(lock: Path) -> None:
    places = lock.parent / "inside"
    places.mkdir(parents=True)

    def enter(name: str, meet: Callable[[], None] = lambda: None) -> None:
        meet()
        for _ in range(50):
            with exclusive(lock):
                assert list(places.iterdir()) == []
                (places / name).touch()
                time.sleep(0.001)
                (places / name).unlink()

    with meanwhile("thread", lambda: enter("thread")), meanwhile("thread", lambda: enter("other")):
        assert together(partial(enter, "a"), partial(enter, "b")) == [0, 0]


def test_a_process_that_dies_gives_it_back(lock: Path) -> None:
    def die_inside() -> None:
        with exclusive(lock):
            os.kill(os.getpid(), signal.SIGKILL)

    assert end(begin(die_inside)) == -signal.SIGKILL
    with exclusive(lock, seconds=0):
        pass


def test_a_child_that_was_forked_meanwhile_does_not_keep_it(lock: Path) -> None:
    with exclusive(lock):
        child = begin(lambda: time.sleep(30))
    try:
        with exclusive(lock, seconds=0):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        end(child)


def test_whoever_waits_too_long_is_told(lock: Path) -> None:
    with exclusive(lock):
        begun = time.monotonic()
        with (
            pytest.raises(LedgerError, match="held by another process") as caught,
            exclusive(lock, seconds=0.2),
        ):
            pytest.fail("two were inside")
        assert 0.2 <= time.monotonic() - begun < 5
    assert caught.value.code == "ledger-busy"


def test_a_lock_that_was_deleted_while_it_was_waited_for_is_not_believed(lock: Path) -> None:
    """Whoever waits would get the lock of a file that nobody else can find any more."""
    entered = lock.parent / "entered"

    def wait() -> None:
        with exclusive(lock):
            entered.touch()
            with exclusive(lock, seconds=0):
                pass

    with exclusive(lock):
        child = begin(wait)
        time.sleep(0.2)
        lock.unlink()
    assert end(child) == 4  # the inner one, which meets the outer
    assert entered.exists()


@pytest.mark.parametrize("obstacle", ["a file for the folder", "a folder", "a link"])
def test_a_lock_that_cannot_be_had_is_an_error_of_the_ledger(obstacle: str, lock: Path) -> None:
    if obstacle == "a file for the folder":
        lock.parent.touch()
    else:
        lock.parent.mkdir()
        if obstacle == "a folder":
            lock.mkdir()
        else:
            lock.symlink_to(lock.parent / "elsewhere")
    with pytest.raises(LedgerError, match="this account can write"), exclusive(lock):
        pytest.fail("entered")


# --- what it holds together


def test_of_two_copies_that_are_charged_at_once_one_is_refused(
    witness: Witness, tmp_path: Path
) -> None:
    original, clone = tmp_path / "state" / "ledger", tmp_path / "clone" / "ledger"
    with create(original, witness, "Anna") as ledger:
        agree(ledger, "run")

    def charge(folder: Path, number: int, meet: Callable[[], None]) -> None:
        with Ledger.open(folder, witness=witness) as ledger:
            meet()  # both are open, and the newest, before either is charged
            pay(ledger, number)

    for number in range(1, 6):
        shutil.rmtree(clone, ignore_errors=True)
        shutil.copytree(original, clone)
        ended = together(partial(charge, original, number), partial(charge, clone, number))
        assert sorted(ended) == [0, 4]
        if ended == [4, 0]:
            original, clone = clone, original
        with Ledger.open(original, witness=witness) as ledger:
            assert ledger.steps(run="run") == number
        with pytest.raises(LedgerError, match="restored old copy"):
            Ledger.open(clone, witness=witness)


@pytest.mark.parametrize(
    "act",
    [
        lambda ledger: pay(ledger, 2),
        lambda ledger: agree(ledger, "second"),
        lambda ledger: ledger.admit("s", [Charge(mechanism=MECHANISM, steps=1)], run="second"),
        lambda ledger: ledger.mark_released("m1", "ab12"),
    ],
    ids=["charge", "agree", "admit", "release"],
)
def test_an_open_copy_writes_nothing_once_the_other_was_charged(
    act: Callable[[Ledger], Any], witness: Witness, tmp_path: Path
) -> None:
    original, clone = tmp_path / "state" / "ledger", tmp_path / "clone" / "ledger"
    with create(original, witness, "Anna") as ledger:
        agree(ledger, "run")
        pay(ledger, 1)
        shutil.copytree(original, clone)
        with Ledger.open(clone, witness=witness) as copy:
            head = copy.head()
            pay(ledger, 2)
            with pytest.raises(LedgerError, match="restored old copy"):
                act(copy)
            assert copy.head() == head
        pay(ledger, 3)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["process", "thread"])
def test_an_agreement_during_another_ones_note_loses_nobody(
    how: str, witness: Witness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, inside, agreed = tmp_path / "state" / "ledger", tmp_path / "inside", tmp_path / "agreed"
    with create(folder, witness, "Anna") as ledger:
        agree(ledger, "run")

    def join() -> None:
        assert until(inside.exists, seconds=30)
        with Ledger.open(folder, witness=Witness(tmp_path / "witness")) as second:
            agree(second, "second", *marks(witness, "Dora"))
        agreed.touch()

    note = Witness.note

    def slowly(self: Witness, memory: Any) -> None:
        if not inside.exists():  # the first note only: it was read, and not yet written again
            inside.touch()
            until(agreed.exists, seconds=WIDE)
        note(self, memory)

    with meanwhile(how, join), Ledger.open(folder, witness=witness) as first:
        monkeypatch.setattr(Witness, "note", slowly)
        pay(first, 1)
    assert agreed.exists()
    with pytest.raises(LedgerError, match="pays for some of them"):
        create(tmp_path / "other" / "ledger", witness, "Dora")


def test_of_two_ledgers_made_at_once_for_a_patient_one_is_refused(
    witness: Witness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Witness.require_unshared

    def slowly(self: Witness, **asked: Any) -> None:
        ask(self, **asked)
        time.sleep(0.3)

    monkeypatch.setattr(Witness, "require_unshared", slowly)

    def make(name: str, patients: tuple[str, ...], meet: Callable[[], None]) -> None:
        meet()
        create(tmp_path / name / "ledger", witness, *patients)

    first, second = ("Anna", "Berta"), ("Berta", "Clara")
    ended = together(partial(make, "a", first), partial(make, "b", second))
    assert sorted(ended) == [0, 4]
    assert len(witness.memories()) == 1


def test_of_two_acknowledgements_at_once_one_is_refused(witness: Witness, tmp_path: Path) -> None:
    folder = tmp_path / "state" / "ledger"
    with create(folder, witness, "Anna") as ledger:
        agree(ledger, "run")
        pay(ledger, 1)
        before = ledger.spent().epsilon
    shutil.rmtree(folder)

    def go_on(meet: Callable[[], None]) -> None:
        meet()
        acknowledge_loss(
            folder, terms=TERMS, witness=witness, patients=marks(witness, "Anna"), reason="lost"
        )

    assert sorted(together(go_on, go_on)) == [0, 4]
    with Ledger.open(folder, witness=witness) as ledger:
        assert ledger.spent().epsilon == before
        assert [entry.kind for entry in ledger.entries()] == ["init", "acknowledge", "carry"]
