"""Prepared cases on disk: private, checked, and gone when nobody reads them.

A cache of prepared cases is patient data: the folder has mode 0700, its files 0600, names are
hashes, and entries unread for 30 days are deleted. MONAI's `PersistentDataset` is not used: it
writes pickles with the process's usual file mode, keys entries by path rather than by the file's
size and time, and keeps them for ever.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

RETENTION_DAYS = 30
_SUFFIX = ".case"
_CHECKSUM_BYTES = 4


class TensorCache:
    """A folder of named tensor groups.

    Args:
        folder: Made with mode 0700 if missing; narrowed to 0700 if wider.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._folder = folder
        self._delete_unread()

    def read(self, key: str) -> dict[str, Tensor] | None:
        """The tensors stored under `key`, or None if there are none or they are damaged."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        body, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
        if zlib.crc32(body).to_bytes(_CHECKSUM_BYTES) != checksum:
            return None
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)  # the retention period starts anew
        try:
            return safetensors.torch.load(body)
        except SafetensorError:
            return None

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Store `tensors` under `key`; readers see the old entry or the new one, never a part."""
        body = safetensors.torch.save(dict(tensors))
        # mkstemp creates the file with mode 0600.
        handle, name = tempfile.mkstemp(dir=self._folder, suffix=".part")
        partial = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(body)
                stream.write(zlib.crc32(body).to_bytes(_CHECKSUM_BYTES))
            partial.replace(self._path(key))
        finally:
            partial.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"

    def _delete_unread(self) -> None:
        oldest = time.time() - RETENTION_DAYS * 24 * 3600
        for path in self._folder.iterdir():
            # Another process may delete the same entry at the same time.
            with contextlib.suppress(FileNotFoundError):
                if path.suffix in (_SUFFIX, ".part") and path.stat().st_mtime < oldest:
                    path.unlink()
