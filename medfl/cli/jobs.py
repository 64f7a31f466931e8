"""How many sites of a simulation work side by side where nobody says."""

from __future__ import annotations

from collections.abc import Sequence

from medfl.config import SiteConfig


def default_jobs(sites: Sequence[SiteConfig], *, engine: str = "inprocess") -> int:
    """As many as there are cores; sites that share a GPU would also share its memory."""
    from medfl.preflight.machine import allowed_cores

    if engine == "ray" or any(site.device != "cpu" for site in sites):
        return 1
    return allowed_cores()
