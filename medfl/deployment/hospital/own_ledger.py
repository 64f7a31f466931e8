"""What a running site has to know of its ledger, without the packages that compute with it."""

from __future__ import annotations

from pathlib import Path

from medfl.config import SiteConfig
from medfl.errors import ConfigError
from medfl.privacy.ledger.head import HEAD
from medfl.privacy.ledger.store import DATABASE, LedgerStore
from medfl.site.state_folder import LEDGER


def require_own_ledger(site: SiteConfig) -> None:
    """Refuse to start without a ledger, or with that of another name: every answer would fail.

    Raises:
        ConfigError: If there is none, or the site had another name when it was made.
        LedgerError: If it is damaged, edited, or older than its head.
    """
    folder = site.state / LEDGER
    if not LedgerStore.is_in(folder):
        raise ConfigError(
            f"{folder / DATABASE}: expected the site's privacy ledger, found none. If the site "
            "never had one, make it with `medfl ledger init SITE.toml`; if it had, restore the "
            "newest copy."
        )
    with LedgerStore.open(folder) as store:
        cohort = store.entries[0].content.get("cohort")
    if cohort != site.name:
        raise ConfigError(
            f"name: expected {cohort!r}, for which the ledger in {folder} was made, found "
            f"{site.name!r}. A site keeps its name; change the site file back."
        )


def last_written(state: Path) -> int:
    """When the ledger got its newest entry, in nanoseconds; 0 without one.

    By the head, which follows each entry: the database's own file may be written much later.

    Args:
        state: The site's state folder.
    """
    try:
        return (state / LEDGER / HEAD).stat().st_mtime_ns
    except FileNotFoundError:
        return 0
