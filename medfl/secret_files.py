"""Keys on disk: made once and whole, and for their owner only."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from medfl.durable import sync_folder, write_atomically
from medfl.errors import ConfigError

KEY_BYTES = 32


def secret_key(path: Path) -> bytes:
    """The key in a file, which gets a new random one at first use.

    Processes or threads that make it at the same time, or one that dies on the way, leave one
    whole key.

    Args:
        path: The file (mode 0600); its folder is made with mode 0700 if missing.

    Raises:
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
    return path.read_bytes()


def require_owner_only(path: Path) -> None:
    """Refuse a key that others may read.

    Raises:
        ConfigError: If they may.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigError(
            f"{path}: expected a key that only its owner can read (mode 0600), found mode "
            f"{mode:04o}."
        )
