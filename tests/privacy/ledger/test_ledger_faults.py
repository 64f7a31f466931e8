"""What disks and versions do to a ledger: it refuses, or holds at least what was permitted.

Kills, damaged files and several processes stand in test_ledger.py and test_ledger_store.py; whole
rounds of a site under every fault in pipelines/ledger_faults.py.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from medfl.errors import BudgetExceeded, LedgerError
from medfl.privacy.accounting.accountant import Charge, epsilon, lifetime_epsilon
from medfl.privacy.ledger import ledger as module
from medfl.privacy.ledger.head import HEAD
from medfl.privacy.ledger.ledger import Agreement, Ledger, Permit
from medfl.privacy.ledger.store import DATABASE
from medfl.privacy.mechanism import Mechanism

DELTA = 1e-5
STEPS = 5
SECTOR = 512
NOBODY = 65534
MECHANISM: dict[str, Any] = {
    "sampling_prob": 0.3,
    "noise_multiplier": 2.0,
    "clip_norm": 1.0,
    "clipping": "fixed",
    "local_steps": STEPS,
    "declared_patients": 20,
}


def pay(ledger: Ledger, number: int = 1, *, run: str = "first") -> Permit:
    return ledger.charge(
        study="gliomas",
        run=run,
        round=number,
        message_id=f"{run}-{number}",
        mechanism=Mechanism(**MECHANISM),
    )


def agreed(ledger: Ledger, *runs: str, steps: int = 10**6) -> Ledger:
    """The same ledger, after the site agreed to these runs."""
    for run in runs or ("first",):
        ledger.agree(
            run,
            Agreement(
                study="gliomas",
                proposal="0" * 64,
                mechanism=Mechanism(**MECHANISM),
                members=frozenset({"a"}),
                steps=steps,
            ),
        )
    return ledger


def cost(rounds: int) -> float:
    charge = Charge(mechanism=Mechanism(**MECHANISM), steps=STEPS)
    return epsilon([charge] * rounds, delta=DELTA)


def charges(folder: Path) -> int:
    with Ledger.open(folder) as ledger:
        ledger.verify()
        return sum(row.charges for row in ledger.spent().by_run)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of a hospital's ledger with one charge."""
    path = tmp_path / "state" / "ledger"
    with Ledger.create(path, cohort="DU", epsilon=8.0, delta=DELTA) as ledger:
        pay(agreed(ledger))
    return path


def in_child(action: Callable[[], object]) -> int:
    """Run `action` in a process of its own; 4 where the ledger refused."""
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
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def watching(at: Callable[[str], object]) -> Iterator[None]:
    """Tell `at` before and after every write of a ledger: begin, inserted, committed, sync."""
    connect, fsync = sqlite3.connect, os.fsync

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql.startswith("BEGIN"):
                at("begin")
            cursor = super().execute(sql, *values)
            for word, point in (("INSERT", "inserted"), ("COMMIT", "committed")):
                if sql.startswith(word):
                    at(point)
            return cursor

    def watched(descriptor: int) -> None:
        at("sync")
        fsync(descriptor)
        at("sync")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Watched))
        patch.setattr(os, "fsync", watched)
        yield


# --- the disk


def test_a_database_without_room_refuses_and_keeps_every_charge_that_it_permitted(
    folder: Path,
) -> None:
    connect = sqlite3.connect

    def small(*arguments: Any, **keywords: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **keywords)
        connection.execute("PRAGMA max_page_count = 4")
        return connection

    permitted = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", small)
        with Ledger.open(folder) as ledger, pytest.raises(LedgerError, match="full") as refused:
            while permitted < 100:
                pay(ledger, permitted + 1)
                permitted += 1
    assert refused.value.code == "ledger"
    assert 1 < permitted < 100
    assert charges(folder) == permitted
    with Ledger.open(folder) as ledger:
        pay(ledger, 200)


@pytest.mark.parametrize(
    ("device", "flags"), [("/dev/full", os.O_RDWR), ("/dev/null", os.O_RDONLY)], ids=["full", "I/O"]
)
def test_a_disk_that_fails_at_the_charge_permits_nothing(
    folder: Path, device: str, flags: int
) -> None:
    def exchange_the_log(point: str) -> None:
        if point == "begin":
            for descriptor in list(Path("/proc/self/fd").iterdir()):
                with suppress(FileNotFoundError):
                    if str(descriptor.readlink()).endswith("-wal"):
                        os.dup2(os.open(device, flags), int(descriptor.name))

    def charge() -> None:
        with watching(exchange_the_log):
            pay(Ledger.open(folder), 2)

    assert in_child(charge) == 4
    assert charges(folder) == 1
    with Ledger.open(folder) as ledger:
        pay(ledger, 2)


def test_a_read_only_disk_refuses_before_anything_is_computed() -> None:
    # Not in pytest's folder, which another user could not even reach.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "ledger"
        with Ledger.create(folder, cohort="DU", epsilon=8.0, delta=DELTA) as ledger:
            pay(agreed(ledger))
        paths = [Path(name), folder, *folder.iterdir()]
        for path in paths:
            os.chown(path, NOBODY if os.geteuid() == 0 else -1, -1)
            path.chmod(0o500 if path.is_dir() else 0o400)

        def charge() -> None:
            if os.geteuid() == 0:  # whom no mode keeps from writing
                os.setuid(NOBODY)
            pay(Ledger.open(folder), 2)

        assert in_child(charge) == 4
        for path in paths:
            path.chmod(0o700 if path.is_dir() else 0o600)
        assert charges(folder) == 1


def replays(folder: Path, copies: Path) -> list[tuple[str, int, Path]]:
    """What the disk holds at each write of a charge and its release: point, releases, folder."""
    kept: list[tuple[str, int, Path]] = []
    released = 0

    def keep(point: str) -> None:
        target = copies / f"{len(kept)}-{point}"
        shutil.copytree(folder, target)
        kept.append((point, released, target))

    with watching(keep), Ledger.open(folder) as ledger:
        pay(ledger, 2)
        keep("computed")
        ledger.mark_released("first-2", "ab12")
        released = 1  # from here on the bytes may have left
        keep("sent")
    return kept


def test_power_lost_between_any_two_writes_leaves_no_release_without_a_charge(
    folder: Path, tmp_path: Path
) -> None:
    kept = replays(folder, tmp_path / "copies")
    assert [point for point, *_ in kept if point != "sync"] == [
        *("begin", "inserted", "committed", "computed"),
        *("begin", "inserted", "committed", "sent"),
    ]
    assert sum(point == "sync" for point, *_ in kept) >= 8
    for number, (_, released, copy) in enumerate(kept):
        found = charges(copy)
        assert found == (1 if number < 2 else 2)
        with Ledger.open(copy) as ledger:
            assert sum(row.released for row in ledger.spent().by_run) >= released
            pay(ledger, 3)


def test_power_lost_while_a_commit_is_written_leaves_all_of_it_or_nothing(
    folder: Path, tmp_path: Path
) -> None:
    points = {point: copy for point, _, copy in reversed(replays(folder, tmp_path / "copies"))}
    log = f"{DATABASE}-wal"
    written = (points["committed"] / log).read_bytes()
    assert len(written) > SECTOR
    seen = set()
    for size in [*range(0, len(written), SECTOR), len(written)]:
        torn = tmp_path / f"torn-{size}"
        shutil.copytree(points["inserted"], torn)
        (torn / log).write_bytes(written[:size])
        found = charges(torn)
        assert found == (2 if size == len(written) else 1)
        seen.add(found)
        with Ledger.open(torn) as ledger:
            pay(ledger, 3)
    assert seen == {1, 2}


def test_a_head_that_survived_its_database_is_refused(folder: Path, tmp_path: Path) -> None:
    # A disk that lies about synchronisation: the head is there, the commit before it is not.
    shutil.copytree(folder, tmp_path / "before")
    with Ledger.open(folder) as ledger:
        pay(ledger, 2)
    shutil.copy(folder / HEAD, tmp_path / "before" / HEAD)
    with pytest.raises(LedgerError, match="restored old copy"):
        Ledger.open(tmp_path / "before")


# --- versions and names


def test_charges_of_another_accountant_are_counted_by_this_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda _: "0.5.0")
        with Ledger.open(folder) as ledger:
            pay(ledger, 2)
    with Ledger.open(folder) as ledger:
        pay(ledger, 3)
        assert ledger.spent().epsilon == cost(3)
    with sqlite3.connect(folder / DATABASE) as connection:
        rows = connection.execute("SELECT body FROM entries WHERE sequence > 2").fetchall()
    connection.close()
    assert ["dp-accounting 0.5.0" in body for (body,) in rows] == [False, True, False]


def test_an_accountant_that_finds_more_spent_than_the_budget_stops_the_ledger(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = module.lifetime_epsilon
    monkeypatch.setattr(module, "lifetime_epsilon", lambda *a, **k: 10 * former(*a, **k))
    with Ledger.open(folder) as ledger:
        head = ledger.head()
        with pytest.raises(BudgetExceeded):
            pay(ledger, 2)
        assert ledger.head() == head


def test_new_runs_share_what_the_cohort_has_left(tmp_path: Path) -> None:
    budget, one = 4.0, [Charge(mechanism=Mechanism(**MECHANISM), steps=STEPS)]
    names = [f"run-{number}" for number in range(20)]
    fitting = sum(
        lifetime_epsilon([one] * runs, delta=DELTA, budget=budget) <= budget
        for runs in range(1, len(names) + 1)
    )
    with Ledger.create(tmp_path / "l", cohort="DU", epsilon=budget, delta=DELTA) as ledger:
        agreed(ledger, *names, "another")
        for run in names[:fitting]:
            pay(ledger, run=run)
        for run in (names[0], names[fitting], "another"):
            with pytest.raises(BudgetExceeded):
                pay(ledger, run=run)
        assert [row.run for row in ledger.spent().by_run] == names[:fitting]
    assert 1 < fitting < len(names)


# --- amounts


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, math.inf, True, "1", None])
@pytest.mark.parametrize("name", ["sampling_prob", "noise_multiplier", "clip_norm"])
def test_an_impossible_amount_of_noise_never_reaches_the_ledger(name: str, value: Any) -> None:
    if (name, value) == ("noise_multiplier", 0.0):
        assert not Mechanism(**{**MECHANISM, name: value}).is_private  # refused by the ledger
        return
    with pytest.raises((ValueError, TypeError)):
        Mechanism(**{**MECHANISM, name: value})


@pytest.mark.parametrize("value", [-1, 0, 1.0, math.nan, math.inf, True, "1", None])
def test_an_impossible_number_of_steps_never_reaches_the_ledger(value: Any) -> None:
    mechanism = Mechanism(**MECHANISM)
    with pytest.raises((ValueError, TypeError)):
        Mechanism(**{**MECHANISM, "local_steps": value})
    with pytest.raises((ValueError, TypeError)):
        Charge(mechanism=mechanism, steps=value)


@pytest.mark.parametrize("value", ["", "x" * 201, "a\nb", 7, True, math.nan, None])
@pytest.mark.parametrize("name", ["message_id", "digest"])
def test_an_impossible_release_is_refused_and_writes_nothing(
    folder: Path, name: str, value: Any
) -> None:
    arguments = {"message_id": "first-1", "digest": "ab12", name: value}
    with Ledger.open(folder) as ledger:
        head = ledger.head()
        with pytest.raises(ValueError, match=f"Expected {name}"):
            ledger.mark_released(**arguments)
        assert ledger.head() == head
