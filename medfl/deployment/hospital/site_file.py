"""A site file that may be deployed."""

from __future__ import annotations

from pathlib import Path

from medfl.config import SiteConfig, load_site
from medfl.deployment.invitation import KEPT, read_invitation
from medfl.errors import ConfigError


def load_hospital(path: Path) -> SiteConfig:
    """Read the file of a site that takes part in a deployment.

    Raises:
        ConfigError: If the file breaks a rule, or its purpose is not ``hospital``: open data make
            no lifetime claim, so their ledger would protect nobody.
    """
    site = load_site(path)
    if site.purpose != "hospital":
        raise ConfigError(
            f"{path}: expected purpose = 'hospital' in a deployment, found {site.purpose!r}."
        )
    return site


def require_invited_name(site: SiteConfig) -> None:
    """Refuse a site file with another name than the invitation, which no server would take.

    A site that was made without an invitation goes by what its coordinator told it.

    Raises:
        ConfigError: If it has one.
    """
    invitation = site.state / KEPT
    if not invitation.exists():
        return
    invited = read_invitation(invitation).name
    if site.name != invited:
        raise ConfigError(
            f"name: expected {invited!r}, as the coordinator's invitation says ({invitation}), "
            f"found {site.name!r}."
        )
