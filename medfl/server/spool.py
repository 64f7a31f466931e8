"""`Spool`: the admitted updates of one round, on disk until they are averaged.

However many sites take part, memory holds one update while it is written and one tensor while it
is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from medfl.errors import FederationError
from medfl.protocol.messages import Weights


class Spool:
    """One file a site, in a folder that only the server's account can read.

    Nothing here is durable: a round that is interrupted is asked again.

    Args:
        folder: Made with mode 0700; the code that runs the round removes it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True)
        self._folder = folder
        self._updates: dict[str, ArrayRecord] = {}

    @property
    def updates(self) -> Mapping[str, ArrayRecord]:
        """What was put, by site: arrays that are read from their file each time they are used."""
        return self._updates

    def put(self, site: str, weights: Weights) -> None:
        """Write one site's weights.

        Args:
            site: Its name, which names the file.
            weights: The admitted weights.

        Raises:
            FederationError: If they cannot be written.
        """
        path = self._folder / f"{site}.safetensors"
        try:
            save_file({name: value.contiguous() for name, value in weights.items()}, path)
        except (OSError, SafetensorError) as error:
            raise FederationError(
                f"{path}: the update of {site} could not be stored: {error}.", code="spool"
            ) from None
        # Name by name: the record's constructor would copy the data out of every array.
        record = self._updates[site] = ArrayRecord()
        for name in sorted(weights):
            record[name] = _StoredArray(path, name=name, shape=tuple(weights[name].shape))


class _StoredArray(Array):
    """A Flower array whose values stay in a file; Flower's strategies ask for `numpy` only."""

    def __init__(self, path: Path, *, name: str, shape: tuple[int, ...]) -> None:
        super().__init__(dtype="float32", shape=shape, stype="numpy.ndarray", data=b"")
        self._path = path
        self._name = name

    def numpy(self) -> NDArray[Any]:
        """Read the values, float32."""
        with safe_open(self._path, framework="numpy") as file:
            return np.asarray(file.get_tensor(self._name))
