"""The witness lies where the system or the account says, and nowhere else."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from medfl.errors import LedgerError
from medfl.privacy.ledger import witness_place as module
from medfl.privacy.ledger.witness import Witness
from medfl.privacy.ledger.witness_place import witness_folder

NOBODY = 65534


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the machine's witness would be; not there yet."""
    folder = tmp_path / "var" / "medfl-witness"
    folder.parent.mkdir()
    monkeypatch.setattr(module, "SYSTEM_FOLDER", folder)
    return folder


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "medfl"


def test_tests_never_see_the_machines_own() -> None:
    assert Path("/var/lib/medfl-witness") != module.SYSTEM_FOLDER
    assert witness_folder().is_relative_to(tempfile.gettempdir())


def test_the_machines_comes_before_the_accounts(system: Path, account: Path) -> None:
    assert Witness.of_this_machine().folder == account
    system.mkdir(0o700)
    assert Witness.of_this_machine().folder == system


def test_the_machines_may_be_a_link_to_another_disk(system: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    system.symlink_to(tmp_path / "disk")
    assert witness_folder() == system


@pytest.mark.parametrize("value", ["", "state", "./state", None])
def test_a_state_home_that_depends_on_the_working_folder_counts_as_absent(
    value: str | None, system: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_STATE_HOME")
    if value is not None:
        monkeypatch.setenv("XDG_STATE_HOME", value)
    assert witness_folder() == tmp_path / "home" / ".local" / "state" / "medfl"


def nothing_behind_the_link(system: Path) -> None:
    system.symlink_to(system.parent / "unmounted")


def a_file(system: Path) -> None:
    system.touch()


@pytest.mark.parametrize("make", [nothing_behind_the_link, a_file])
def test_a_machines_witness_that_is_no_folder_is_refused(
    make: Callable[[Path], None], system: Path
) -> None:
    make(system)
    with pytest.raises(LedgerError, match="chown medfl"):
        witness_folder()


@pytest.mark.parametrize("mode", [0o000, 0o500, 0o600])
def test_a_machines_witness_that_this_account_cannot_use_is_refused(
    mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not in pytest's folder, which another user could not even reach.
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "witness"
        folder.mkdir()
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        folder.chmod(mode)
        monkeypatch.setattr(module, "SYSTEM_FOLDER", folder)
        child = os.fork()
        if child == 0:
            status = 99
            try:
                if os.geteuid() == 0:  # whom no mode keeps out
                    os.setuid(NOBODY)
                witness_folder()
                status = 0
            except LedgerError:
                status = 4
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
        folder.chmod(0o700)


def test_what_the_account_remembered_has_to_move_with_its_key(system: Path, account: Path) -> None:
    account.mkdir(parents=True)
    (account / "ledger.json").write_text("{}")
    (account / "witness.key").write_bytes(b"k" * 32)
    system.mkdir()
    with pytest.raises(LedgerError, match="the key too: mv "):
        witness_folder()
    for path in account.iterdir():
        path.rename(system / path.name)
    assert witness_folder() == system


def test_the_machines_may_be_a_link_to_the_accounts(system: Path, account: Path) -> None:
    account.mkdir(parents=True)
    (account / "ledger.json").write_text("{}")
    system.symlink_to(account)
    assert witness_folder() == system


def test_an_account_without_a_home_needs_the_machines(
    system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(LedgerError, match="install -d"):
        witness_folder()
    system.mkdir()
    assert witness_folder() == system
