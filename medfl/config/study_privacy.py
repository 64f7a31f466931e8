"""`StudyPrivacy`: the mechanism that a study proposes, and whom it protects from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medfl.config.files import Section
from medfl.config.schedule import StudySchedule
from medfl.config.site import Positive, Trust

MIN_CLIP_NORM = 1e-6
"""What float32 can honour; see `medfl.privacy.mechanism`."""


class StudyPrivacy(Section):
    """The mechanism that is proposed; sigma follows from epsilon, the steps and delta.

    Sampling probability and clip norm have bounds, which float32 can honour with room to spare.

    Attributes:
        clip_norm_schedule: Of the clip norm. The noise follows it, so that epsilon does not change.
        trust: Whom the noise protects from. ``local``: everybody, the server included, sees an
            update that its own hospital has made noisy enough. ``secure``: the server sees nothing
            but the sum of a round, to which each hospital adds a share of the noise.
        colluding_sites: With ``secure``, how many hospitals may side with the server without
            breaking the promise. Their shares of the noise are not counted.
    """

    epsilon: Positive
    sampling_prob: Annotated[float, Field(ge=1e-6, le=1)]
    clip_norm: Annotated[float, Field(ge=MIN_CLIP_NORM, le=1e6)] = 1.0
    clip_norm_schedule: StudySchedule = StudySchedule()
    clipping: Literal["fixed", "normalised"] = "normalised"
    noise: Literal["operating-system", "seeded"] = "operating-system"
    trust: Trust = "local"
    colluding_sites: Annotated[int, Field(ge=0, le=1000)] = 0

    @model_validator(mode="after")
    def _collusion_has_a_meaning(self) -> Self:
        if self.trust == "local" and self.colluding_sites:
            raise ValueError(
                f"expected colluding_sites = 0 with trust = 'local', found {self.colluding_sites}: "
                "a hospital's own noise protects from all of them"
            )
        return self
