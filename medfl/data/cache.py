"""Prepared cases on disk: private, checked, and gone when nobody reads them.

A cache of prepared cases is patient data: the folder has mode 0700, its files 0600, names are
hashes, entries unread for 30 days are deleted, and beyond a size the longest unread go first.
MONAI's `PersistentDataset` is not used: it writes pickles with the process's usual file mode, keys
entries by path rather than by content, and never deletes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

if TYPE_CHECKING:
    from torch import Tensor

RETENTION_DAYS = 30
MAX_BYTES = 60 * 10**9
"""500 BraTS cases of four modalities are 40 GB."""

_SUFFIX = ".case"
_KNOWN = ".known"
_DIGEST = ".sha256"
_PART = ".part"
_CHECKSUM_BYTES = 4
_DIGEST_LENGTH = 64


class TensorCache:
    """A folder of named tensor groups.

    Args:
        folder: Made with mode 0700 if missing; narrowed to 0700 if wider.
        max_bytes: Most that all entries may take.
    """

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._folder = folder
        self._max_bytes = max_bytes
        self._delete_unread()

    @property
    def nbytes(self) -> int:
        """Size of all stored tensors, which `max_bytes` limits."""
        return sum(size for _, size, _ in self._stored())

    def clear(self) -> int:
        """Delete every entry and return how many there were."""
        entries = self._entries()
        for path, _, _ in entries:
            path.unlink(missing_ok=True)
        return sum(path.suffix == _SUFFIX for path, _, _ in entries)

    def content_digest(self, path: Path) -> str:
        """SHA-256 of a file of images, as hexadecimal text.

        It is remembered under the file's path, size, and times of change of content and of status
        (which a copy that keeps the first cannot keep), so that a large cohort is hashed once, and
        not in every round.

        Raises:
            OSError: If the file cannot be read.
        """

        def compute() -> str:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

        return self.remembered(
            path, kind="", compute=compute, intact=lambda found: len(found) == _DIGEST_LENGTH
        )

    def remembered(
        self, path: Path, *, kind: str, compute: Callable[[], str], intact: Callable[[str], bool]
    ) -> str:
        """A text that follows from a file's content, computed once for as long as it is unchanged.

        Args:
            path: The file; see `content_digest` for what tells a change.
            kind: What the text is.
            compute: Makes it, reading the file.
            intact: Whether a remembered text is whole.

        Raises:
            OSError: If the file cannot be read.
        """
        status = path.stat()
        name = f"{path.absolute()}/{status.st_size}/{status.st_mtime_ns}/{status.st_ctime_ns}{kind}"
        remembered = self._folder / f"{hashlib.sha256(name.encode()).hexdigest()}{_DIGEST}"
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = remembered.read_text(encoding="ascii")
            if intact(text):
                os.utime(remembered)
                return text
        text = compute()
        with contextlib.suppress(OSError):  # on a full disk it is computed again next time
            self._replace(remembered, text.encode())
        return text

    def size_of(self, key: str) -> int | None:
        """Bytes that were stored under `key`, also where they had to make room since.

        None if nothing was ever stored, or if it was forgotten.
        """
        marker = self._folder / f"{key}{_KNOWN}"
        with contextlib.suppress(OSError, ValueError):
            size = int(marker.read_text(encoding="ascii"))
            os.utime(marker)  # the retention period starts anew
            return size
        with contextlib.suppress(OSError):
            return self._path(key).stat().st_size
        return None

    def free_bytes(self) -> int:
        """What can be stored before something else has to make room; below 0 if it is too full."""
        return self._max_bytes - self.nbytes

    def holds(self, key: str) -> bool:
        """Whether tensors are stored under `key`."""
        return self._path(key).exists()

    def read(self, key: str) -> dict[str, Tensor] | None:
        """The tensors stored under `key`, or None if there are none or they are damaged."""
        import safetensors.torch  # here, since to measure or empty a cache needs no torch

        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:  # none, or a disk that cannot read it any more
            return None
        body, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
        if zlib.crc32(body).to_bytes(_CHECKSUM_BYTES) != checksum:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the retention period starts anew
        try:
            return safetensors.torch.load(body)
        except SafetensorError:
            return None

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Store `tensors` under `key`; readers see the old entry or the new one, never a part.

        Raises:
            OSError: If the disk is full or cannot be written.
        """
        import safetensors.torch

        body = safetensors.torch.save(dict(tensors))
        self._make_room(len(body))
        self._replace(self._path(key), body, zlib.crc32(body).to_bytes(_CHECKSUM_BYTES))
        self._replace(self._folder / f"{key}{_KNOWN}", str(len(body)).encode())

    def _replace(self, path: Path, *content: bytes) -> None:
        # mkstemp creates the file with mode 0600.
        handle, name = tempfile.mkstemp(dir=self._folder, suffix=_PART)
        partial = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                for part in content:
                    stream.write(part)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _make_room(self, wanted: int) -> None:
        """Delete what was unread for longest until an entry of this size fits."""
        entries = sorted(self._stored(), key=lambda entry: entry[2])
        total = sum(size for _, size, _ in entries)
        for path, size, _ in entries:
            if total + wanted <= self._max_bytes:
                break
            if path.suffix == _PART:  # another thread or process is writing it
                continue
            path.unlink(missing_ok=True)
            total -= size

    def _stored(self) -> list[tuple[Path, int, float]]:
        """Of `_entries` those that take room."""
        return [entry for entry in self._entries() if entry[0].suffix not in (_KNOWN, _DIGEST)]

    def _entries(self) -> list[tuple[Path, int, float]]:
        """Path, size and last use of every file of the cache."""
        entries = []
        for path in self._folder.iterdir():
            # Another process may delete the same entry at the same time.
            with contextlib.suppress(FileNotFoundError):
                if path.suffix in (_SUFFIX, _KNOWN, _DIGEST, _PART):
                    status = path.stat()
                    entries.append((path, status.st_size, status.st_mtime))
        return entries

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"

    def _delete_unread(self) -> None:
        oldest = time.time() - RETENTION_DAYS * 24 * 3600
        for path, _, used in self._entries():
            if used < oldest:
                path.unlink(missing_ok=True)
