"""`Patients`: those who can be drawn in a round, and the randomness that belongs to each of them.

The accounting holds for a sum over patients in which nobody's term depends on anybody else. Crops,
flips and dropout are random, so each patient has a stream of their own for them: it is named after
the patient and the step, and never after a place in a list or in a batch.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

_SEED_BYTES = 8
_LARGEST_NUMPY_SEED = 2**32


class PatientLoss(Protocol):
    """Forward pass over all crops of one patient.

    What the engine promises rests on this: the loss, and so its gradient, is a function of the
    model's weights, of this patient's own data and of this patient's own randomness, and of nothing
    else. It must not depend on who else was drawn, in which order, or how often; on how many
    patients there are, or on who left; on what an earlier call left behind (a cache that answers
    differently when it is full, a layer that counts, a statistic that runs along). Everything
    random in it comes from `generator`, or from the global generators of torch, numpy and `random`,
    which are this patient's own while the loss and its gradient are computed.

    `medfl audit` measures this on a study's own network and a site's own images: it takes every
    drawn patient away in turn and asks that the other terms stay the same, bit for bit.
    """

    def __call__(self, index: int, generator: torch.Generator) -> Tensor:
        """A scalar loss of the patient with this index.

        Args:
            index: Place in `Patients.names`: finds the patient's data, must decide nothing else.
            generator: The patient's own, on the CPU, for crops and their variation.
        """


@dataclass(frozen=True, kw_only=True)
class Patients:
    """The patients of one round at one site.

    Attributes:
        names: Pseudonym of everybody who can be drawn.
        stream: Public name of the round: study, seed, site and number. With a pseudonym and a step
            it names a patient's randomness.
        loss_of: Loss of one of them.

    Raises:
        ValueError: If a pseudonym appears twice: two of them would share their randomness.
    """

    names: tuple[str, ...]
    stream: str
    loss_of: PatientLoss

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"Expected distinct pseudonyms, found {len(self.names)} with doubles.")

    def __len__(self) -> int:
        return len(self.names)

    @contextmanager
    def randomness(self, index: int, *, step: int) -> Iterator[torch.Generator]:
        """A patient's randomness in one step: a generator, and all global ones for its duration.

        The global generators are put back afterwards, so that a patient leaves no trace in them.

        Args:
            index: The patient.
            step: From 0 within the round.
        """
        label = json.dumps(["medfl patient stream", self.stream, self.names[index], step])
        digest = hashlib.sha256(label.encode()).digest()
        own, of_layers = (
            int.from_bytes(digest[start : start + _SEED_BYTES], "big") >> 1
            for start in (0, _SEED_BYTES)
        )
        on_gpu = torch.cuda.is_initialized()
        devices = list(range(torch.cuda.device_count())) if on_gpu else []
        of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        try:
            with torch.random.fork_rng(devices=devices):
                # Not `torch.manual_seed`, which formats stack traces for GPUs that nobody uses.
                torch.default_generator.manual_seed(of_layers)
                if on_gpu:
                    torch.cuda.manual_seed_all(of_layers)
                random.seed(of_layers)
                np.random.seed(of_layers % _LARGEST_NUMPY_SEED)  # noqa: NPY002
                yield torch.Generator().manual_seed(own)
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002
