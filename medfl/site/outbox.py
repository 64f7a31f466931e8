"""The outbox: updates that were paid for and may be sent again without a new charge.

An update is written here, whole and durable, before it is sent. The same request later gets the
same bytes; anything computed again would be a new charge.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from medfl.durable import sync_folder, write_atomically
from medfl.errors import FederationError

if TYPE_CHECKING:
    import torch

_SECONDS_A_DAY = 24 * 3600
_SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class StoredUpdate:
    """An update as it was stored.

    Attributes:
        body: The message's JSON body.
        weights: The noisy weights.
        digest: SHA-256 of the stored bytes, as hexadecimal text.
    """

    body: str
    weights: dict[str, torch.Tensor]
    digest: str


class Outbox:
    """One file an update, in a folder that only the site can read.

    Args:
        folder: Made with mode 0700 if missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def put(
        self, message_id: str, *, request: str, body: str, weights: Mapping[str, torch.Tensor]
    ) -> str:
        """Store an update.

        Args:
            message_id: Names the request that it answers.
            request: Digest of the request; a later one that differs is refused.
            body: The message's JSON body.
            weights: The noisy weights.

        Returns:
            SHA-256 of what was stored, as hexadecimal text.

        Raises:
            FederationError: If it cannot be stored.
        """
        from safetensors.torch import save  # here, since deleting old updates needs no torch

        metadata = {"message_id": message_id, "request": request, "body": body}
        content = save(dict(weights), metadata={"medfl": json.dumps(metadata)})
        path = self._path(message_id)
        try:
            write_atomically(path, content)
        except OSError as error:
            raise FederationError(
                f"{path}: the update could not be stored: {error}.", code="outbox"
            ) from None
        return hashlib.sha256(content).hexdigest()

    def get(self, message_id: str, *, request: str) -> StoredUpdate | None:
        """The update stored for a request, or None if there is none.

        Raises:
            FederationError: If the stored file is damaged, or another request has this id.
        """
        path = self._path(message_id)
        if not path.exists():
            return None
        try:
            content = path.read_bytes()
            with safe_open(path, framework="pt") as file:
                metadata = json.loads(file.metadata()["medfl"])
                body, stored_request = metadata["body"], metadata["request"]
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, TypeError, ValueError):
            raise FederationError(
                f"{path}: expected a stored update, found a damaged file; move it away, and the "
                "round will be computed and charged again.",
                code="outbox",
            ) from None
        if stored_request != request:
            raise FederationError(
                f"Expected the request first made as {message_id}, found another under its name.",
                code="message-replayed",
            )
        return StoredUpdate(body=body, weights=weights, digest=hashlib.sha256(content).hexdigest())

    def prune(self, *, released: Collection[str], older_than_days: float) -> int:
        """Delete old updates, which a server asks for again only when it resumes a run.

        A site is not told when a run has ended, so age decides. If a deleted update is asked for
        after all, the round is computed and charged anew: deleting costs budget, never privacy.

        Args:
            released: Digests of the updates that the ledger knows as released; any other one is
                kept, since it was paid for and never left.
            older_than_days: Least age in days, at least 0, counted from when it was stored.

        Returns:
            The number of deleted updates.

        Raises:
            ValueError: If the age is negative or not finite.
        """
        if not 0 <= older_than_days < math.inf:
            raise ValueError(f"Expected an age >= 0 in days, found {older_than_days!r}.")
        oldest = time.time() - older_than_days * _SECONDS_A_DAY
        deleted = 0
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            # Another process may delete the same one at the same time.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime <= oldest and _digest(path) in released:
                    path.unlink()
                    deleted += 1
        sync_folder(self._folder)
        return deleted

    def keep_newest(self, count: int, *, max_bytes: int) -> None:
        """Delete the oldest updates beyond a size, whatever became of them.

        For open data, whose ledger lives and dies with its run: a network of 60 million parameters
        leaves a quarter of a gigabyte a round. A resumed run asks for the round that was under way;
        who goes back to an older checkpoint pays again for what is gone.

        Args:
            count: How many stay in any case, those stored last.
            max_bytes: How much stays beside them.
        """
        stored = sorted(
            self._folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime_ns, reverse=True
        )
        kept = 0
        for path in stored[count:]:
            kept += path.stat().st_size
            if kept > max_bytes:
                path.unlink()

    def _path(self, message_id: str) -> Path:
        # Hashed, since the id comes from the server and must not choose a path.
        return self._folder / f"{hashlib.sha256(message_id.encode()).hexdigest()}{_SUFFIX}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
