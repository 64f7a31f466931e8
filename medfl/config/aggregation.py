"""`StudyAggregation`: how the server turns the updates of the sites into the next global model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medfl.config.files import Section
from medfl.config.schedule import StudySchedule
from medfl.config.site import Count, Positive

# With fewer sites a rule says nothing: Yin et al., arXiv 1803.01498, definitions 1 and 2; Blanchard
# et al. 2017, arXiv 1703.02757, proposition 4.2.
_SITES_NEEDED: Mapping[str, Callable[[int], tuple[str, int]]] = {
    "median": lambda _: ("3", 3),
    "trimmed-mean": lambda faulty: (f"2 x faulty_sites + 1 = {2 * faulty + 1}", 2 * faulty + 1),
    "krum": lambda faulty: (f"2 x faulty_sites + 3 = {2 * faulty + 3}", 2 * faulty + 3),
}


class StudyAggregation(Section):
    """The strategy and its settings.

    ``median``, ``trimmed-mean`` and ``krum`` withstand updates that pass every check and are wrong
    all the same. They count every site once, whatever its weight, and keep more of the noise than
    an average does.

    Attributes:
        server_learning_rate: Of ``fedavgm`` and ``fedadam``; the largest of all rounds.
        server_learning_rate_schedule: Of the server's learning rate.
        faulty_sites: f, how many broken or hostile sites ``trimmed-mean`` and ``krum`` withstand.
    """

    strategy: Literal["fedavg", "fedprox", "fedavgm", "fedadam", "median", "trimmed-mean", "krum"]
    server_learning_rate: Positive = 1.0
    server_learning_rate_schedule: StudySchedule = StudySchedule()
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    second_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    adaptivity: Positive = 1e-3
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    faulty_sites: Annotated[int, Field(ge=0, le=1000)] = 0
    min_sites: Count
    round_timeout_seconds: Positive = 3600.0

    @property
    def is_robust(self) -> bool:
        """Whether updates are compared with each other, and not just averaged."""
        return self.strategy in _SITES_NEEDED

    def among(self, sites: int) -> Self:
        """The same for fewer sites than a study asks for; too few to compare are averaged."""
        changes: dict[str, object] = {"min_sites": min(self.min_sites, sites)}
        if self.is_robust and sites < _SITES_NEEDED[self.strategy](self.faulty_sites)[1]:
            changes |= {"strategy": "fedavg", "faulty_sites": 0}
        return self.model_copy(update=changes)

    @model_validator(mode="after")
    def _enough_sites_are_right(self) -> Self:
        if self.strategy in ("trimmed-mean", "krum") and not self.faulty_sites:
            raise ValueError(
                f"expected faulty_sites >= 1 with strategy = {self.strategy!r}, found 0"
            )
        if self.faulty_sites and self.strategy not in ("trimmed-mean", "krum"):
            raise ValueError(
                "expected strategy = 'trimmed-mean' or 'krum' with faulty_sites, found "
                f"{self.strategy!r}"
            )
        if self.is_robust:
            rule, needed = _SITES_NEEDED[self.strategy](self.faulty_sites)
            if self.min_sites < needed:
                raise ValueError(
                    f"expected min_sites >= {rule} with strategy = {self.strategy!r}, found "
                    f"{self.min_sites}"
                )
        return self

    @model_validator(mode="after")
    def _schedule_has_a_use(self) -> Self:
        has_rate = self.strategy in ("fedavgm", "fedadam")
        if not has_rate and not self.server_learning_rate_schedule.is_constant:
            raise ValueError(
                "expected strategy = 'fedavgm' or 'fedadam' with a server_learning_rate_schedule, "
                f"found {self.strategy!r}, which has no learning rate"
            )
        return self
