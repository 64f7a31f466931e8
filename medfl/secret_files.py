"""Secrets on disk: made once and whole, and for the account that runs medfl only.

Who can read a key can speak for the site, and who can write a folder can exchange what lies in it.
Whatever medfl keeps for itself is therefore refused, and not merely warned about, where its mode or
its owner lets somebody else at it.
"""

from __future__ import annotations

import os
import pwd
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medfl.durable import sync_folder, write_atomically
from medfl.errors import ConfigError

KEY_BYTES = 32

_ROOT = 0
_OF_OTHERS = 0o077
_WRITTEN_BY_OTHERS = 0o022


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """What lets others at a file or folder.

    Attributes:
        path: The file or folder.
        rule: What was expected.
        value: Its mode, its owner, or both.
        fix: The command that closes it.
    """

    path: Path
    rule: str
    value: str
    fix: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.rule}, found {self.value}. {self.fix}"


def secret_key(path: Path) -> bytes:
    """The key in a file, which gets a new random one at first use.

    Processes or threads that make it at the same time, or one that dies on the way, leave one
    whole key.

    Args:
        path: The file (mode 0600); its folder is made with mode 0700 if missing.

    Raises:
        ConfigError: If others can read or exchange it.
        OSError: If it cannot be read or made.
    """
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        write_atomically(draft, os.urandom(KEY_BYTES), mode=0o600)
        try:
            os.link(draft, path)  # unlike a rename, it never replaces a key that is there
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        sync_folder(path.parent)
    require_owner_only(path)
    return path.read_bytes()


def exposures(paths: Iterable[Path]) -> list[Exposure]:
    """Which of these files and folders somebody else can read or write; missing ones are left out.

    Root can do so anyway, and what belongs to root is no exposure.
    """
    found = (_exposure(path, forbidden=_OF_OTHERS) for path in paths)
    return [each for each in found if each is not None]


def changeable(paths: Iterable[Path]) -> list[Exposure]:
    """The same of files that everybody may read and nobody else may write."""
    found = (_exposure(path, forbidden=_WRITTEN_BY_OTHERS) for path in paths)
    return [each for each in found if each is not None]


def require_owner_only(*paths: Path) -> None:
    """Refuse files and folders that others can read or write.

    Raises:
        ConfigError: If they can.
    """
    refuse(exposures(paths))


def refuse(found: list[Exposure]) -> None:
    """Refuse what is exposed.

    Raises:
        ConfigError: If anything is; it names the first and counts the others.
    """
    if found:
        more = f" ({len(found) - 1} more like it.)" if len(found) > 1 else ""
        raise ConfigError(f"{found[0]}{more}")


def _exposure(path: Path, *, forbidden: int) -> Exposure | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return Exposure(
            path=path,
            rule="a file or folder that this account can look at",
            value=error.strerror or type(error).__name__,
            fix="Run medfl under the account that owns it.",
        )
    noun = "folder" if stat.S_ISDIR(status.st_mode) else "file"
    mode, closed = stat.S_IMODE(status.st_mode), 0o700 if noun == "folder" else 0o600
    values, fixes = [], []
    if status.st_uid not in (os.geteuid(), _ROOT):
        owner = account_name(status.st_uid)
        values.append(f"owner {owner}")
        fixes.append(f"Run medfl as {owner}, or: chown {account_name(os.geteuid())} {path}")
    if mode & forbidden:
        values.append(f"mode {mode:04o}")
        wanted = f"{closed:o}" if forbidden == _OF_OTHERS else "go-w"
        fixes.append(f"chmod {wanted} {path}")
    if not values:
        return None
    rule = (
        f"a {noun} for medfl's account only (mode {closed:04o})"
        if forbidden == _OF_OTHERS
        else f"a {noun} that only medfl's account can write"
    )
    return Exposure(path=path, rule=rule, value=", ".join(values), fix=" && ".join(fixes))


def account_name(user: int) -> str:
    """What an account is called; its number where it has no name."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
