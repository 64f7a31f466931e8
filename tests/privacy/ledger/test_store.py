import json
import os
import shutil
import signal
import sqlite3
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from medfl.errors import LedgerError
from medfl.privacy.ledger import store as ledger_store
from medfl.privacy.ledger.chain import GENESIS, Entry
from medfl.privacy.ledger.store import LedgerStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of three entries: one at creation, two added."""
    path = tmp_path / "state" / "ledger"
    with LedgerStore.create(path, kind="first", content={"steps": 5}) as store:
        add(store)
        add(store)
    return path


def add(store: LedgerStore, steps: int = 5) -> Entry:
    with store.writing():
        return store.append("next", {"steps": steps})


def in_child(action: Callable[[], object]) -> int:
    """Run `action` in a process of its own; its exit status, negative if a signal ended it."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:  # noqa: BLE001
            os._exit(99)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def edit(folder: Path, statement: str, values: tuple[object, ...] = ()) -> None:
    """What someone with SQLite's own tools could do: lift the triggers, edit, put them back."""
    connection = sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)
    triggers = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
    ).fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    connection.execute(statement, values)
    for _, sql in triggers:
        connection.execute(sql)
    connection.close()


def stored(folder: Path) -> list[tuple[int, str, str]]:
    connection = sqlite3.connect(folder / "ledger.sqlite")
    rows = connection.execute("SELECT * FROM entries ORDER BY sequence").fetchall()
    connection.close()
    return rows


def test_entries_come_back_as_they_were_written(folder: Path) -> None:
    with LedgerStore.open(folder) as store:
        assert [(e.sequence, e.kind, e.content) for e in store.entries] == [
            (1, "first", {"steps": 5}),
            (2, "next", {"steps": 5}),
            (3, "next", {"steps": 5}),
        ]


def test_every_entry_names_the_hash_before_it(folder: Path) -> None:
    previous = GENESIS
    for _, body, digest in stored(folder):
        assert json.loads(body)["previous"] == previous
        previous = digest
    assert json.loads((folder / "head.json").read_text()) == {"sequence": 3, "hash": previous}


def test_times_are_utc(folder: Path) -> None:
    for _, body, _ in stored(folder):
        age = datetime.now(UTC) - datetime.fromisoformat(json.loads(body)["time"])
        assert timedelta(seconds=-1) < age < timedelta(hours=1)


def test_a_clock_that_goes_backwards_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class YearsAgo(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2001, 1, 1, tzinfo=tz)

    monkeypatch.setattr(ledger_store, "datetime", YearsAgo)
    with LedgerStore.open(folder) as store:
        assert add(store).time.startswith("2001-01-01T00:00:00")
        store.verify()
        assert store.head.sequence == 4


# --- making one


def test_only_the_owner_can_read_it(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with LedgerStore.open(folder) as store:
        add(store)
        files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert set(files) == {"ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm", "head.json"}
    assert set(files.values()) == {0o600}


def test_it_is_never_replaced(folder: Path) -> None:
    before = stored(folder)
    with pytest.raises(LedgerError, match="never replaced"):
        LedgerStore.create(folder, kind="first", content={})
    assert stored(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


def test_a_deleted_database_does_not_make_room_for_a_new_one(folder: Path) -> None:
    (folder / "ledger.sqlite").unlink()
    with pytest.raises(LedgerError, match="never replaced"):
        LedgerStore.create(folder, kind="first", content={})


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    LedgerStore.create(tmp_path, kind="first", content={}).close()
    LedgerStore.open(tmp_path).close()


def test_a_process_killed_while_making_one_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_store, "write_head", kill)
    path = tmp_path / "ledger"
    create = lambda: LedgerStore.create(path, kind="first", content={})  # noqa: E731
    assert in_child(create) == -signal.SIGKILL
    assert not path.exists()
    monkeypatch.undo()
    create().close()
    LedgerStore.open(path).close()


def test_opening_never_makes_one(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"medfl ledger init SITE\.toml"):
        LedgerStore.open(tmp_path / "ledger")
    assert list(tmp_path.iterdir()) == []


# --- tampering


@pytest.mark.parametrize(
    "statement", ["UPDATE entries SET body = ''", "DELETE FROM entries WHERE sequence = 2"]
)
def test_the_database_itself_refuses_to_change_the_past(folder: Path, statement: str) -> None:
    connection = sqlite3.connect(folder / "ledger.sqlite")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            """UPDATE entries SET body = replace(body, '"steps":5', '"steps":1')
            WHERE sequence = 2""",
            "entry 2 of the ledger as it was written",
        ),
        ("UPDATE entries SET hash = 'a' WHERE sequence = 3", "entry 3"),
        ("UPDATE entries SET body = 'null'", "entry 1"),
        ("UPDATE entries SET body = '{}'", "entry 1"),
        ("UPDATE entries SET body = x'ff00' WHERE sequence = 2", "entry 2"),
        ("UPDATE entries SET body = body || ' ' WHERE sequence = 2", "entry 2"),
        ("DELETE FROM entries WHERE sequence = 1", "entry 1"),
        ("DELETE FROM entries WHERE sequence = 2", "entry 2"),
        ("DELETE FROM entries WHERE sequence = 3", "restored old copy"),
        ("DELETE FROM entries", "restored old copy"),
        ("PRAGMA journal_mode = DELETE", "journal_mode"),
        ("PRAGMA user_version = 2", "user_version"),
        ("PRAGMA application_id = 0", "application_id"),
        ("CREATE TABLE notes (text)", "append-only triggers"),
    ],
)
def test_an_edited_database_is_not_opened(folder: Path, statement: str, message: str) -> None:
    edit(folder, statement)
    with pytest.raises(LedgerError, match=message) as refused:
        LedgerStore.open(folder)
    assert refused.value.code == "ledger"


@pytest.mark.parametrize("trigger", ["no_update", "no_delete"])
def test_a_missing_trigger_is_noticed(folder: Path, trigger: str) -> None:
    connection = sqlite3.connect(folder / "ledger.sqlite")
    connection.execute(f"DROP TRIGGER {trigger}")
    connection.close()
    with pytest.raises(LedgerError, match="append-only triggers"):
        LedgerStore.open(folder)


def test_an_edit_with_its_own_hash_made_to_fit_is_noticed_by_the_next_entry(folder: Path) -> None:
    body = stored(folder)[1][1]
    entry = Entry(**{**json.loads(body), "content": {"steps": 1}})
    edit(
        folder, "UPDATE entries SET body = ?, hash = ? WHERE sequence = 2", (entry.body, entry.hash)
    )
    with pytest.raises(LedgerError, match="entry 3"):
        LedgerStore.open(folder)


@pytest.mark.parametrize("sequence", [1, 2, 3])
def test_an_edit_with_all_hashes_made_to_fit_is_noticed_by_the_head(
    folder: Path, sequence: int
) -> None:
    previous = GENESIS
    for number, body, _ in stored(folder):
        values = {**json.loads(body), "previous": previous}
        if number == sequence:
            values["content"] = {"steps": 1}
        entry = Entry(**values)
        previous = entry.hash
        edit(
            folder,
            "UPDATE entries SET body = ?, hash = ? WHERE sequence = ?",
            (entry.body, entry.hash, number),
        )
    with pytest.raises(LedgerError, match="edited or exchanged"):
        LedgerStore.open(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sequence": 3}', '{"sequence": 0, "hash": ""}'])
def test_a_damaged_head_is_refused(folder: Path, text: str) -> None:
    (folder / "head.json").write_text(text)
    with pytest.raises(LedgerError, match="expected the head of the chain"):
        LedgerStore.open(folder)


def test_a_missing_head_is_refused(folder: Path) -> None:
    (folder / "head.json").unlink()
    with pytest.raises(LedgerError, match="expected the head of the chain"):
        LedgerStore.open(folder)


@pytest.mark.parametrize("content", [b"", b"no database" * 99])
def test_something_else_in_its_place_is_refused(folder: Path, content: bytes) -> None:
    (folder / "ledger.sqlite").write_bytes(content)
    with pytest.raises(LedgerError):
        LedgerStore.open(folder)


@pytest.mark.parametrize("size", [50, 4096, 6000])
def test_a_truncated_file_is_refused(folder: Path, size: int) -> None:
    content = (folder / "ledger.sqlite").read_bytes()
    (folder / "ledger.sqlite").write_bytes(content[:size])
    with pytest.raises(LedgerError):
        LedgerStore.open(folder)


def test_a_page_of_noise_is_refused(folder: Path) -> None:
    content = bytearray((folder / "ledger.sqlite").read_bytes())
    content[4096:8192] = b"\xa5" * 4096
    (folder / "ledger.sqlite").write_bytes(bytes(content))
    with pytest.raises(LedgerError):
        LedgerStore.open(folder)


def test_a_restored_old_copy_is_noticed(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "ledger.sqlite", tmp_path / "backup")
    with LedgerStore.open(folder) as store:
        add(store)
    shutil.copy(tmp_path / "backup", folder / "ledger.sqlite")
    with pytest.raises(LedgerError, match="restored old copy"):
        LedgerStore.open(folder)


def test_the_ledger_of_another_cohort_is_noticed(folder: Path, tmp_path: Path) -> None:
    with LedgerStore.create(tmp_path / "other", kind="first", content={}) as store:
        for _ in range(5):
            add(store)
    shutil.copy(tmp_path / "other" / "ledger.sqlite", folder / "ledger.sqlite")
    with pytest.raises(LedgerError, match="edited or exchanged"):
        LedgerStore.open(folder)


def test_a_deleted_write_ahead_log_is_noticed(folder: Path) -> None:
    # The newest entry is only in the log when its process is killed.
    assert in_child(lambda: (add(LedgerStore.open(folder)), kill())) == -signal.SIGKILL
    (folder / "ledger.sqlite-wal").unlink()
    with pytest.raises(LedgerError, match="restored old copy"):
        LedgerStore.open(folder)


def test_entries_that_vanish_under_an_open_store_are_noticed(folder: Path) -> None:
    with LedgerStore.open(folder) as store:
        edit(folder, "DELETE FROM entries WHERE sequence = 3")
        (folder / "head.json").write_text(
            json.dumps({"sequence": 2, "hash": store.entries[1].hash})
        )
        for question in (store.refresh, store.verify, lambda: add(store)):
            with pytest.raises(LedgerError, match="restored old copy"):
                question()


def test_verify_finds_what_was_edited_since_opening(folder: Path) -> None:
    with LedgerStore.open(folder) as store:
        store.verify()
        edit(folder, "UPDATE entries SET body = replace(body, '5', '1') WHERE sequence = 2")
        with pytest.raises(LedgerError, match="entry 2"):
            store.verify()


# --- crashes


@pytest.mark.parametrize(("point", "entries"), [("inserted", 3), ("committed", 4)])
def test_a_process_killed_inside_a_write_leaves_all_of_it_or_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, point: str, entries: int
) -> None:
    def write() -> None:
        with LedgerStore.open(folder) as store, store.writing():
            store.append("next", {})
            if point == "inserted":
                kill()

    with monkeypatch.context() as patch:
        if point == "committed":
            patch.setattr(ledger_store, "write_head", kill)
        assert in_child(write) == -signal.SIGKILL
    assert json.loads((folder / "head.json").read_text())["sequence"] == 3
    with LedgerStore.open(folder) as store:
        store.verify()
        assert len(store.entries) == entries
        # A head that a crash left behind is brought up to date.
        assert json.loads((folder / "head.json").read_text())["sequence"] == entries
        add(store)


def test_an_exception_inside_a_write_leaves_nothing(folder: Path) -> None:
    with LedgerStore.open(folder) as store:
        before = store.head
        with pytest.raises(KeyError), store.writing():
            store.append("next", {})
            raise KeyError
        assert store.head == before
        assert len(stored(folder)) == 3
        assert add(store).sequence == 4


def test_a_store_locked_for_too_long_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_store, "_BUSY_SECONDS", 0.05)
    blocker = sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with LedgerStore.open(folder) as store, pytest.raises(LedgerError, match="locked"):
        add(store)
    blocker.execute("ROLLBACK")
    blocker.close()


def test_full_synchronisation_is_asserted(folder: Path) -> None:
    with LedgerStore.open(folder) as store:
        store._connection.execute("PRAGMA synchronous = NORMAL")
        with pytest.raises(LedgerError, match="synchronous"):
            store.verify()
