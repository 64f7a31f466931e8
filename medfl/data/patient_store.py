"""`PatientStore`: the prepared cases of some patients, from disk, memory or their files.

What it serves of a patient never depends on what it has served of others: where a case comes from
may change with time, its values may not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import monai
import torch
from torch import Tensor

from medfl.data.cache import MAX_BYTES, TensorCache
from medfl.data.cohort import Case, Patient
from medfl.data.transforms import Frame, PreparedCase, prepare_case
from medfl.errors import DataError

# Part of every cache key: a change of the preparation must change this number.
_PREPARATION_VERSION = 3
_DEFAULT_MEMORY_BYTES = 256 * 2**20


class PatientStore:
    """The prepared cases of some patients, by number; cached on disk and, bounded, in memory.

    Args:
        patients: Whose cases to prepare; every case needs a mask.
        frame: The frame to bring them to.
        cache_dir: Folder of the disk cache; made private (mode 0700).
        memory_bytes: Most memory for the cases used last.
        cache_bytes: Most disk for prepared cases.
    """

    def __init__(
        self,
        patients: Sequence[Patient],
        frame: Frame,
        cache_dir: Path,
        *,
        memory_bytes: int = _DEFAULT_MEMORY_BYTES,
        cache_bytes: int = MAX_BYTES,
    ) -> None:
        self._patients = tuple(patients)
        self._frame = frame
        self._cache = TensorCache(cache_dir, max_bytes=cache_bytes)
        self._memory_bytes = memory_bytes
        self._memory: OrderedDict[str, PreparedCase] = OrderedDict()
        self._verified: dict[tuple[int, int], str] = {}
        self._held: frozenset[str] = frozenset()
        self._sizes: dict[int, int] = {}

    @property
    def frame(self) -> Frame:
        """The frame that the cases are brought to."""
        return self._frame

    def absent_channels(self, index: int) -> tuple[int, ...]:  # noqa: ARG002  the same for all
        """Channels that patient number `index` does not have."""
        return self._frame.absent_channels

    def __len__(self) -> int:
        return len(self._patients)

    def verify(self) -> None:
        """Look at every file of all patients, and prepare those not yet in the cache.

        From then on `prepared` serves what the files held now, or nothing. Where it comes from is
        decided here for each patient, before anybody is drawn: from the cache, which is neither
        written nor emptied until the next call, or, where it has no room for all, from the files,
        which must then stay as they are.

        Raises:
            DataError: If a case cannot be prepared.
            OSError: If a prepared case cannot be stored.
        """
        free = self._cache.free_bytes()
        for index, patient in enumerate(self._patients):
            self._sizes[index] = 0
            for number, case in enumerate(patient.cases):
                key = self._key(case)
                size = self._cache.size_of(key)
                # Known content could be prepared before; it waits until there is room for it.
                if size is None or (size <= free and not self._cache.holds(key)):
                    self._cache.write(key, self._packed_case(case, key))
                    size = self._cache.size_of(key) or 0
                    free -= size
                self._verified[index, number] = key
                self._sizes[index] += size
        self._held = frozenset(key for key in self._verified.values() if self._cache.holds(key))

    def largest(self) -> int:
        """The patient whose cases take most memory, by number; after `verify`."""
        return max(self._sizes, key=lambda index: self._sizes[index])

    def fill(self, index: int) -> None:
        """Prepare the cases of one patient that the disk cache does not hold.

        Several threads may do so at the same time, each for another patient.

        Raises:
            DataError: If a case cannot be prepared.
            OSError: If a prepared case cannot be stored.
        """
        for case in self._patients[index].cases:
            key = self._key(case)
            if not self._cache.holds(key):
                self._cache.write(key, self._packed_case(case, key))

    def holds(self, index: int) -> bool:
        """Whether the disk cache holds all cases of one patient.

        Raises:
            DataError: If a file cannot be read.
        """
        return all(self._cache.holds(self._key(case)) for case in self._patients[index].cases)

    def prepared(self, index: int) -> tuple[PreparedCase, ...]:
        """All cases of patient number `index`.

        Raises:
            DataError: If a case cannot be prepared, or is not what `verify` saw any more.
        """
        return tuple(
            self._verified_case(case, self._verified[index, number])
            if (index, number) in self._verified
            else self._prepared_case(case)
            for number, case in enumerate(self._patients[index].cases)
        )

    def _verified_case(self, case: Case, key: str) -> PreparedCase:
        """A case as it was verified; what other patients did to the memory changes nothing."""
        if key not in self._held and self._key(case) != key:
            raise DataError(
                f"{case.case_id}: expected files that stay as they are, found one that changed "
                "since it was verified; the cache has no room for it (cache_gigabytes)."
            )
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        packed = self._cache.read(key) if key in self._held else None
        if packed is None:
            packed = self._packed_case(case, key)
        return self._remembered(key, packed)

    def _prepared_case(self, case: Case) -> PreparedCase:
        key = self._key(case)
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        packed = self._cache.read(key)
        if packed is None:
            packed = self._packed_case(case, key)
            # On a full disk the case is prepared again when it is needed again.
            with contextlib.suppress(OSError):
                self._cache.write(key, packed)
        return self._remembered(key, packed)

    def _packed_case(self, case: Case, key: str) -> dict[str, Tensor]:
        """A case read from its files, which must still be those that `key` identifies."""
        packed = _packed(prepare_case(case, self._frame))
        if self._key(case) != key:
            raise DataError(
                f"{case.case_id}: expected files that stay as they are, found one that changed "
                "while it was read. Try again once nobody writes to the folder."
            )
        return packed

    def _key(self, case: Case) -> str:
        """A hash of everything that the prepared case depends on: contents, frame, preparation."""
        paths = [case.images[key] for key in self._frame.present if key in case.images]
        if case.mask is not None:
            paths.append(case.mask)
        try:
            contents = [self._cache.content_digest(path) for path in paths]
        except OSError as error:
            raise DataError(f"{case.case_id}: expected readable files, found: {error}") from None
        identity = {
            "preparation": [_PREPARATION_VERSION, monai.__version__],
            "frame": asdict(self._frame),
            "channels": dict(case.channels),
            "contents": contents,
        }
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def _remembered(self, key: str, packed: Mapping[str, Tensor]) -> PreparedCase:
        # Freshly prepared tensors are rounded like stored ones: both reads give the same values.
        prepared = self._memory[key] = _unpacked(packed, self._frame)
        while sum(case.nbytes for case in self._memory.values()) > self._memory_bytes:
            self._memory.popitem(last=False)
        return prepared


def _packed(case: PreparedCase) -> dict[str, Tensor]:
    """Small tensors for the disk: half precision, and all regions as bits of one byte."""
    bits = torch.tensor([1 << bit for bit in range(len(case.regions_RDHW))], dtype=torch.uint8)
    return {
        "image": case.image_CDHW.to(torch.float16),
        "regions": (case.regions_RDHW * bits[:, None, None, None]).sum(dim=0, dtype=torch.uint8),
        "foreground": case.foreground.to(torch.int32),
        "background": case.background.to(torch.int32),
        "spacing": torch.tensor(case.spacing_mm, dtype=torch.float64),
    }


def _unpacked(tensors: Mapping[str, Tensor], frame: Frame) -> PreparedCase:
    bits = torch.arange(len(frame.regions), dtype=torch.uint8)[:, None, None, None]
    right, anterior, superior = tensors["spacing"].tolist()
    return PreparedCase(
        image_CDHW=tensors["image"].to(torch.float32),
        regions_RDHW=(tensors["regions"][None] >> bits) & 1,
        foreground=tensors["foreground"].to(torch.int64),
        background=tensors["background"].to(torch.int64),
        spacing_mm=(right, anterior, superior),
    )
