"""A site file that may be deployed."""

from __future__ import annotations

from pathlib import Path

from medfl.config import SiteConfig, load_site
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
