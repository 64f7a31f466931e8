"""`look_at_update`: one update of a site that really runs, as a hostile server would look at it.

The server sends weights that are zero, so that nothing rounds away what the site adds to them. The
site does what it always does: policy, agreement, charge, training with its own noise, outbox. What
comes back may consist of integers on the mechanism's grid and of nothing else.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medfl.audit.figure import SHARE
from medfl.audit.released_integers import read_integers
from medfl.config import SiteConfig, StudyConfig
from medfl.errors import ConfigError
from medfl.protocol.messages import Proposal, TrainTask
from medfl.segmentation.networks import trainable_state
from medfl.site.agreement import declare
from medfl.site.round import train_update
from medfl.site.state import simulated_state

_RUN = "audit"


@dataclass(frozen=True, kw_only=True)
class ReleasedUpdate:
    """What was seen.

    Attributes:
        weights: Of the update.
        off_grid: Those that are not what their integer gives, bit for bit; none is promised.
        odd: How many integers are odd, a coin for each weight.
        noise_std: Standard deviation of the sum over sigma C. Gradients at zero weights are zero in
            almost all of them.
        odd_reach: How far `odd` may lie from half of the weights by chance.
        least_noise_std: The least `noise_std` that chance explains.
    """

    weights: int
    off_grid: int
    odd: int
    noise_std: float
    odd_reach: float
    least_noise_std: float

    @property
    def keeps_promise(self) -> bool:
        """Whether nothing but noisy integers was released."""
        fair = abs(self.odd - self.weights / 2) <= self.odd_reach
        return self.off_grid == 0 and fair and self.noise_std >= self.least_noise_std

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON types."""
        return {**asdict(self), "keeps_promise": self.keeps_promise}


def look_at_update(study: StudyConfig, site: SiteConfig, *, scratch: Path) -> ReleasedUpdate:
    """Ask one site for one update and read it.

    Args:
        study: With one plain gradient step a round, which shows the sum of that step.
        site: A site with open data; its ledger is kept in `scratch` and charged there.
        scratch: A new or empty folder.

    Raises:
        ConfigError: If study or site are not of that kind.
        MedflError: If the site refuses.
    """
    training = study.training
    if training.optimizer != "sgd" or training.local_steps != 1 or site.purpose != "open-data":
        raise ConfigError(
            "Expected one local step of training.optimizer = 'sgd' at a site with purpose "
            f"'open-data', found {training.local_steps} of {training.optimizer!r} at "
            f"{site.purpose!r}."
        )
    site_state = simulated_state(site, run_folder=scratch)
    declared = declare(site_state, Proposal(study=study, run=_RUN, private=True))
    mechanism = declared.mechanism.in_round(1)
    zeros = {
        name: torch.zeros_like(value, device="cpu")
        for name, value in trainable_state(site_state.network(study)).items()
    }
    task = TrainTask(
        study=study, run=_RUN, round=1, message_id=f"{_RUN}/1/{site.name}", mechanism=mechanism
    )
    _, released = train_update(
        site_state, task, zeros, expires=time.time() + 600, on_step=lambda *_: None
    )
    values = torch.cat([released[name].flatten() for name in sorted(released)]).numpy()
    read = read_integers(values, mechanism=mechanism, learning_rate=study.learning_rate(1))
    units = read.integers * (mechanism.grid / mechanism.noise_std)
    number = len(values)
    return ReleasedUpdate(
        weights=number,
        off_grid=read.off_grid,
        odd=int((read.integers & 1).sum()),
        noise_std=math.sqrt(float(np.square(units).mean())),
        # Hoeffding 1963, theorem 2.
        odd_reach=math.sqrt(number * math.log(2 / SHARE) / 2),
        # Laurent and Massart 2000, lemma 1: the chance of less is below SHARE; gradients add to it.
        least_noise_std=math.sqrt(max(0.0, 1 - 2 * math.sqrt(math.log(1 / SHARE) / number))),
    )
