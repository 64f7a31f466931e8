"""`PathObserver`: what a site's round would add up, seen without noise.

Everything between the files and the release is what a round runs: member store, cache, crops,
network in training mode, permit, sampler, clipping, grid. Only secrets are scripted: the coins are
known and the noise is zero, and an optimizer that keeps gradients instead of moving weights shows
the sums. Nothing leaves, and nothing is charged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medfl.audit.released_integers import Int64Array, read_integers
from medfl.config import SiteConfig, StudyConfig
from medfl.data.cohort import Patient
from medfl.data.patient_store import PatientStore
from medfl.data.transforms import Frame
from medfl.privacy.accounting.charges import Charge
from medfl.privacy.engine import train_round
from medfl.privacy.ledger.permit import Permit
from medfl.privacy.mechanism import Mechanism, NoiseOrigin
from medfl.site.state import SiteState

NEVER = 1.0
"""A coin below no probability."""

Coins = Mapping[str, tuple[float, ...]]
"""A patient's coin at each step, by pseudonym."""


class PathObserver:
    """Runs worlds under one mechanism and reads their sums.

    Args:
        study: Its crops and its network.
        mechanism: Clipping, grid and sampling probability.
        round_number: Names the patients' randomness, with study and site.
    """

    def __init__(self, *, study: StudyConfig, mechanism: Mechanism, round_number: int) -> None:
        self._study = study
        self._mechanism = mechanism
        self._round = round_number
        self.off_grid = 0
        self.failures = 0

    def sums(self, site_state: SiteState, coins: Coins) -> Int64Array:
        """Integers of each step's sum, with these patients as the whole cohort.

        Args:
            site_state: Whose patients.
            coins: One for each step of each member; below the sampling probability, it draws.

        Returns:
            Shape (steps, weights).
        """
        mechanism, members = self._mechanism, frozenset(coins)
        steps = mechanism.local_steps
        torch.set_num_threads(site_state.site.threads)
        network = site_state.network(self._study)
        _, store = site_state.member_store(self._study, members=members)
        store.verify()  # as before every round
        patients = site_state.training_patients(
            self._study, network, round_number=self._round, members=members
        )
        optimizer = _KeepingSGD([p for p in network.parameters() if p.requires_grad])
        diagnostics = train_round(
            network,
            mechanism=mechanism,
            permit=Permit(Charge(mechanism=mechanism, steps=steps)),
            patients=patients,
            optimizer=optimizer,
            source=_KnownCoins([[coins[n][step] for n in patients.names] for step in range(steps)]),
            proximal_mu=0.0,
            on_step=lambda *_: None,
        )
        self.failures += len(diagnostics.failures) + diagnostics.discarded
        self.failures += abs(len(optimizer.kept) - steps)
        kept = np.zeros((steps, *optimizer.kept[0].shape), dtype=np.float32)
        kept[: len(optimizer.kept)] = optimizer.kept[:steps]
        read = read_integers(-kept, mechanism=mechanism, learning_rate=1.0)
        # Float32 holds these exactly; beyond, a lost bit would go unseen.
        self.off_grid += read.off_grid + int((np.abs(read.integers) >= 2**23).sum())
        return read.integers


class SparingState(SiteState):
    """A site whose prepared images find little room, so that they come and go.

    Args:
        site: Its file.
        folder: Where ledger and keys are.
        cache: Folder of prepared images.
        cache_bytes: Most that it may hold.
        memory_bytes: Most memory for the images used last.
    """

    def __init__(
        self, site: SiteConfig, *, folder: Path, cache: Path, cache_bytes: int, memory_bytes: int
    ) -> None:
        super().__init__(site, folder=folder)
        self._cache = cache
        self._cache_bytes = cache_bytes
        self._memory_bytes = memory_bytes

    def _store(self, patients: Sequence[Patient], frame: Frame) -> PatientStore:
        return PatientStore(
            patients,
            frame,
            self._cache,
            cache_bytes=self._cache_bytes,
            memory_bytes=self._memory_bytes,
        )


class _KnownCoins:
    """Chosen coins and no noise, in place of a site's secrets."""

    origin: NoiseOrigin = "operating-system"

    def __init__(self, coins: Sequence[Sequence[float]]) -> None:
        self._coins = iter(coins)

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """The coins of the next step."""
        coins = np.array(next(self._coins), dtype=np.float64)
        if len(coins) != count:
            raise ValueError(f"Expected a coin for each of {len(coins)} patients, found {count}.")
        return coins

    def rounded_normal(self, shape: Sequence[int], *, std: float) -> Tensor:  # noqa: ARG002
        """Zeros."""
        return torch.zeros(tuple(shape), dtype=torch.int64)


class _KeepingSGD(torch.optim.SGD):
    """Keeps every gradient and moves nothing."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters, lr=1.0)
        self.kept: list[npt.NDArray[np.float32]] = []

    def step(self, closure: object = None) -> None:  # type: ignore[override]  # noqa: ARG002
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        self.kept.append(torch.cat(gradients).numpy().copy())
