"""Updates on disk: bit for bit what was admitted, private, and one tensor in memory at a time."""

from __future__ import annotations

import stat
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medfl.errors import FederationError
from medfl.server.spool import Spool
from medfl.server.strategy import Aggregator

SITES = tuple(f"site-{number:02d}" for number in range(24))
TENSORS, VALUES = 4, 100_000
UPDATE_BYTES = TENSORS * VALUES * 4


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layer-{number}": torch.randn(VALUES, generator=generator) for number in range(TENSORS)
    }


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    values = {
        "b": torch.tensor([[1.0, -0.0], [1e-40, 3.0]]).T,
        "a": torch.tensor(1 / 3),
        "c": torch.empty((0, 2)),
    }
    spool = Spool(tmp_path / "updates" / "1")
    spool.put("north", values)
    record = spool.updates["north"]
    assert list(record) == ["a", "b", "c"]
    for name, value in values.items():
        found = record[name].numpy()
        assert (found.dtype, found.shape) == (np.float32, tuple(value.shape))
        assert found.tobytes() == value.numpy().tobytes()


def test_nobody_else_may_read_the_updates(tmp_path: Path) -> None:
    Spool(tmp_path / "updates" / "1")
    assert stat.S_IMODE((tmp_path / "updates" / "1").stat().st_mode) == 0o700


def test_an_update_that_cannot_be_written_ends_the_round_with_a_code(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "1")
    (tmp_path / "1").rmdir()
    with pytest.raises(FederationError, match="the update of north could not be stored") as caught:
        spool.put("north", weights(0))
    assert caught.value.code == "spool"


@pytest.mark.usefixtures("as_server")
@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam"])
def test_memory_does_not_grow_with_the_number_of_updates(
    strategy: str, federation: Any, tmp_path: Path
) -> None:
    aggregator = Aggregator(federation.study(aggregation={"strategy": strategy}))
    peaks = {}
    for number, sites in enumerate((SITES[:3], SITES), start=1):
        spool = Spool(tmp_path / str(number))
        start = weights(0)
        tracemalloc.start()
        for index, site in enumerate(sites):
            spool.put(site, weights(index))
        aggregator.aggregate(
            spool.updates,
            start=start,
            site_weights=dict.fromkeys(sites, 1.0),
            round_number=number,
        )
        peaks[len(sites)] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[len(SITES)] < peaks[3] + UPDATE_BYTES
