"""Patients of several sites, counted through as those of one."""

from __future__ import annotations

from dataclasses import dataclass

from medfl.data.patient_store import PatientStore
from medfl.data.transforms import PreparedCase


@dataclass(frozen=True, kw_only=True, eq=False)
class PooledPatients:
    """The patients of several stores, by number.

    Attributes:
        stores: One a site.
    """

    stores: tuple[PatientStore, ...]

    def __len__(self) -> int:
        return sum(map(len, self.stores))

    def prepared(self, index: int) -> tuple[PreparedCase, ...]:
        """All cases of patient number `index`, counted over all sites.

        Raises:
            DataError: If a case cannot be prepared.
        """
        store, number = self._place(index)
        return store.prepared(number)

    def absent_channels(self, index: int) -> tuple[int, ...]:
        """Channels that this patient's site does not have."""
        store, number = self._place(index)
        return store.absent_channels(number)

    def _place(self, index: int) -> tuple[PatientStore, int]:
        for store in self.stores:
            if index < len(store):
                return store, index
            index -= len(store)
        raise IndexError(index)
