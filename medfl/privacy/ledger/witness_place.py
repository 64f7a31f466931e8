"""Where the witness of a machine lies: a matter of the system or the account, never of a site.

A site that could choose its own witness would get a fresh budget by naming an empty folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from medfl.errors import LedgerError

SYSTEM_FOLDER = Path("/var/lib/medfl-witness")
"""The witness of the whole machine, where an administrator has made it."""


def witness_folder() -> Path:
    """The folder of this machine's witness, which need not exist yet.

    It is `SYSTEM_FOLDER` if there is one, else ``medfl`` in the account's own state folder
    (``$XDG_STATE_HOME``, or ``~/.local/state``).

    Raises:
        LedgerError: If the system's folder is there but this account cannot use it, if the account
            still has a memory of its own beside it, or if the account has no home.
    """
    if not _is_there(SYSTEM_FOLDER):
        return _of_this_account()
    if not SYSTEM_FOLDER.is_dir() or not os.access(SYSTEM_FOLDER, os.R_OK | os.W_OK | os.X_OK):
        raise LedgerError(
            f"{SYSTEM_FOLDER}: expected the witness of this machine, a folder that this account "
            "can read and write, found another. Run medfl under the account that owns it, or give "
            f"it to medfl's account: chown medfl {SYSTEM_FOLDER} && chmod 700 {SYSTEM_FOLDER}"
        )
    _require_moved()
    return SYSTEM_FOLDER


def witness_files(folder: Path | None = None) -> list[Path]:
    """The witness's folder and all that lies in it.

    Args:
        folder: A witness's; that of this machine if not given.

    Raises:
        LedgerError: If it cannot be used.
    """
    folder = folder or witness_folder()
    # Not by `glob`, which takes a folder that cannot be read for an empty one.
    try:
        return [folder, *sorted(folder.iterdir())]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LedgerError(
            f"{folder}: expected a witness that this account can read, found: {error.strerror}. "
            "Let medfl's account own the folder (mode 0700)."
        ) from None


def _require_moved() -> None:
    """Refuse two memories: patients known to the older one alone would get a second budget."""
    try:
        account = _of_this_account()
    except LedgerError:  # without a home there is nothing to move
        return
    if any(account.glob("*.json")) and not account.samefile(SYSTEM_FOLDER):
        raise LedgerError(
            f"{account}: expected one witness, {SYSTEM_FOLDER}, found what this account remembered "
            f"before it was made. Move all of it, the key too: mv {account}/* {SYSTEM_FOLDER}/"
        )


def _is_there(folder: Path) -> bool:
    try:
        folder.lstat()  # a link that leads nowhere is there too: its disk may be missing
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise LedgerError(
            f"{folder}: expected to see whether the machine's witness is there, found: "
            f"{error.strerror}."
        ) from None
    return True


def _of_this_account() -> Path:
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    if base.is_absolute():  # by its standard any other value counts as absent
        return base / "medfl"
    try:
        return Path.home() / ".local" / "state" / "medfl"
    except RuntimeError:
        raise LedgerError(
            "Expected an account with a home for the witness, found none. Let an administrator "
            f"make the machine's: install -d -m 700 -o medfl {SYSTEM_FOLDER}"
        ) from None
