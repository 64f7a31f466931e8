"""Which files of a hospital's site are its own account's alone, and a start that insists on it.

Keys and databases are looked at one by one, the wide folders (cache, outbox, logs) as folders:
nobody gets through a closed one. The site's file is no secret, but anyone who can write it decides
over the policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medfl.privacy.ledger.witness_place import witness_files
from medfl.protocol.keys import KEYS
from medfl.secret_files import changeable, exposures, refuse
from medfl.site.audit_log import AUDIT_LOG
from medfl.site.run_models import MODELS
from medfl.site.state_folder import CACHE, LEDGER, LOGS, OPEN_RUNS, OUTBOX, SITE_KEY, SUMS

FLOWER = "flower"
"""Flower's own folder in the state folder."""

_WHOLE = (LEDGER, AUDIT_LOG, SUMS, MODELS, OPEN_RUNS)
_CLOSED = (CACHE, OUTBOX, LOGS, FLOWER)


def key_files(state: Path) -> list[Path]:
    """The keys of a site and their folder."""
    return [*_below(state / KEYS), state / SITE_KEY]


def private_files(state: Path) -> list[Path]:
    """Everything else in a state folder that is secret or must not be exchanged, itself included.

    Args:
        state: The state folder.
    """
    whole = [path for name in _WHOLE for path in _below(state / name)]
    return [state, *whole, *(state / name for name in _CLOSED)]


def require_private(state: Path, *public: Path) -> None:
    """Refuse to start a site whose secrets, ledger, witness or policy are open to others.

    Args:
        state: The state folder.
        public: Files that anybody may read, and nobody else write.

    Raises:
        ConfigError: If one is open.
        LedgerError: If the witness cannot be used.
    """
    private = [*key_files(state), *private_files(state), *witness_files()]
    refuse(exposures(private) + changeable(public))


def _below(folder: Path) -> Iterator[Path]:
    yield folder
    if folder.is_dir():
        yield from sorted(folder.rglob("*"))
