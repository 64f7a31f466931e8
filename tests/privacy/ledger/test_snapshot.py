"""A copy of a ledger that another process writes to: one moment of it, and never an old one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medfl.errors import LedgerError
from medfl.privacy.ledger.snapshot import check_copy, copy_ledger
from medfl.privacy.ledger.store import DATABASE, LedgerStore
from medfl.privacy.ledger.testimony import Testimony as Bond
from medfl.privacy.ledger.witness import Witness

CONTENT = {"cohort": "north", "epsilon": 8.0, "delta": 1e-5, "purpose": "hospital"}

WRITER = """
import sys
from pathlib import Path
from medfl.privacy.ledger.store import LedgerStore
from medfl.privacy.ledger.testimony import Testimony
from medfl.privacy.ledger.witness import Witness

with LedgerStore.open(Path(sys.argv[1])) as store:
    bond = Testimony(store=store, witness=Witness(Path(sys.argv[2])))
    while True:
        with bond.writing():
            store.append("release", {"charge": "x" * 2000, "digest": ""})
        print(store.head.sequence, flush=True)
"""


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(tmp_path / "witness")


@pytest.fixture
def ledger(tmp_path: Path, witness: Witness) -> Path:
    folder = tmp_path / "ledger"
    with LedgerStore.create(folder, kind="init", content=CONTENT) as store, witness.locked():
        Bond(store=store, witness=witness).note()
    return folder


def grow(folder: Path, witness: Witness) -> None:
    with LedgerStore.open(folder) as store, Bond(store=store, witness=witness).writing():
        store.append("release", {"charge": "", "digest": ""})


def test_a_copy_is_the_ledger(ledger: Path, witness: Witness, tmp_path: Path) -> None:
    grow(ledger, witness)
    name, head = copy_ledger(ledger, to=tmp_path / "copy", witness=witness)
    assert head.sequence == 2
    assert check_copy(tmp_path / "copy") == (name, head)
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "head.json",
        "ledger.sqlite",
    ]
    with LedgerStore.open(ledger) as first, LedgerStore.open(tmp_path / "copy") as second:
        assert first.entries == second.entries


def test_a_copy_is_whole_although_another_process_writes(
    ledger: Path, witness: Witness, tmp_path: Path
) -> None:
    heads = []
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(ledger), str(witness.folder)],
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        try:
            assert writer.stdout is not None
            for number in range(8):
                written = int(writer.stdout.readline())  # so that each copy meets a newer ledger
                place = tmp_path / str(number)
                name, head = copy_ledger(ledger, to=place, witness=witness)
                assert check_copy(place) == (name, head)
                assert head.sequence >= written
                heads.append(head.sequence)
            assert writer.poll() is None
        finally:
            writer.kill()
    assert heads == sorted(heads)
    assert heads[-1] > heads[0]


def test_a_ledger_that_could_not_be_charged_is_not_copied(
    ledger: Path, witness: Witness, tmp_path: Path
) -> None:
    shutil.copytree(ledger, tmp_path / "old")
    grow(ledger, witness)
    with pytest.raises(LedgerError, match="restored old copy"):
        copy_ledger(tmp_path / "old", to=tmp_path / "copy", witness=witness)
    with pytest.raises(LedgerError, match="an unknown one"):
        copy_ledger(ledger, to=tmp_path / "copy", witness=Witness(tmp_path / "another"))
    with pytest.raises(LedgerError, match="found none"):
        copy_ledger(tmp_path / "none", to=tmp_path / "copy", witness=witness)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("fault", ["head", "page"])
def test_a_copy_that_was_changed_is_noticed(
    fault: str, ledger: Path, witness: Witness, tmp_path: Path
) -> None:
    grow(ledger, witness)
    copy = tmp_path / "copy"
    copy_ledger(ledger, to=copy, witness=witness)
    if fault == "head":
        shutil.copy(ledger / "head.json", copy)
        grow(ledger, witness)
        shutil.copy(ledger / "head.json", copy)
    else:
        content = (copy / DATABASE).read_bytes()
        (copy / DATABASE).write_bytes(content.replace(b"release", b"relEase"))
    with pytest.raises(LedgerError):
        check_copy(copy)
