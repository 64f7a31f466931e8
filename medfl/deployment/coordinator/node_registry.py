"""The nodes that a SuperLink knows, brought in line with the admitted sites.

Whatever is not admitted is let go, so a revoked hospital and an exchanged key are shut out at once,
and also where the server did not run when the coordinator decided it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from medfl.deployment.admission import AdmittedSite


class NodeRegistry(Protocol):
    """Where nodes are registered: the SuperLink's control path."""

    def nodes(self) -> dict[bytes, int]:
        """Identifiers of the registered nodes by their public key (PEM)."""

    def register(self, site: AdmittedSite, *, name: str) -> None:
        """Let the node of a site join."""

    def unregister(self, node: int) -> None:
        """Shut a node out permanently."""


def align_nodes(sites: Mapping[str, AdmittedSite], registry: NodeRegistry) -> None:
    """Register the node of every admitted site, and unregister every other one.

    Args:
        sites: The admitted sites by name.
        registry: What the SuperLink knows.
    """
    known = registry.nodes()
    admitted = {site.node_key_pem for site in sites.values()}
    for key, node in known.items():
        if key not in admitted:
            registry.unregister(node)
    for name, site in sites.items():
        if site.node_key_pem not in known:
            registry.register(site, name=name)
