"""`sensitivity_on_path`: every drawn patient is taken away in turn, from the files to the sum.

The accounting holds for a sum in which each patient's term has a norm of C at most and depends on
nobody else. Here both are measured on the path that a site's data takes in a round, see
`medfl.audit.path_observer`. Sums are integers on the mechanism's grid and are compared exactly.

A patient's own term is what a world releases in which nobody else exists, with an empty cache and a
new network. In every other world the sum of a step must be the sum of its patients' own terms:
any dependence on order, on a place in a list, on how often somebody was drawn, or on what a cache
or a layer remembers, changes it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medfl.audit.path_observer import NEVER, Coins, PathObserver, SparingState
from medfl.audit.released_integers import Int64Array
from medfl.config import SiteConfig, StudyConfig
from medfl.config.study_privacy import MIN_CLIP_NORM
from medfl.privacy.mechanism import Mechanism
from medfl.privacy.noise import SecureNormal
from medfl.site.state import SiteState, simulated_state
from medfl.site.state_folder import CACHE

STEPS = 2
"""Of each draw: what a patient did in an earlier step must not show in a later one."""

# Half of a few patients in every step; with this divisor, a power of two, sums are read exactly.
_SAMPLING_PROB = 0.5
_DECLARED = 8
# The study's own clip norm, and one so small that every gradient is clipped.
_CLIP_FACTORS = (1.0, 2.0**-10)
_NO_CACHE = 1  # bytes
_PART = 2**14  # squares of 24 bits that int64 can add up

Batches = list[frozenset[str]]
"""Who was drawn at each step."""

Advance = Callable[[int, int], None]
"""Told the draws done and the draws in total."""


@dataclass(frozen=True, kw_only=True)
class SiteSensitivity:
    """What was measured at one site.

    Attributes:
        site: Its name.
        removals: Drawn patients that were taken away from a step.
        largest: Largest distance between sums with and without one patient, over C.
        worlds: Rounds that were compared with the patients' own terms.
        changed: Those in which another patient's gradient was not the same, bit for bit.
        off_grid: Values of a sum that were no integer.
        failures: Gradients that could not be computed, so that nothing is known of them.
    """

    site: str
    removals: int = 0
    largest: float = 0.0
    worlds: int = 0
    changed: int = 0
    off_grid: int = 0
    failures: int = 0


@dataclass(frozen=True, kw_only=True)
class PathSensitivity:
    """What was measured at all sites.

    Attributes:
        sites: Each by itself.
    """

    sites: tuple[SiteSensitivity, ...]

    @property
    def removals(self) -> int:
        """Drawn patients that were taken away from a step."""
        return sum(site.removals for site in self.sites)

    @property
    def largest(self) -> float:
        """Largest distance between sums with and without one patient, over C."""
        return max((site.largest for site in self.sites), default=0.0)

    @property
    def worlds(self) -> int:
        """Rounds that were compared with the patients' own terms."""
        return sum(site.worlds for site in self.sites)

    @property
    def changed(self) -> int:
        """Rounds in which another patient's gradient was not the same, bit for bit."""
        return sum(site.changed for site in self.sites)

    @property
    def off_grid(self) -> int:
        """Values of a sum that were no integer."""
        return sum(site.off_grid for site in self.sites)

    @property
    def failures(self) -> int:
        """Gradients that could not be computed."""
        return sum(site.failures for site in self.sites)

    @property
    def keeps_promise(self) -> bool:
        """Whether somebody was taken away, and nobody moved a sum by more than C or anybody else.

        What could not be computed or read is no evidence: it does not pass.
        """
        unknown = self.off_grid + self.failures
        return self.removals > 0 and self.largest <= 1 and self.changed == 0 and unknown == 0

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON types."""
        return {
            "removals": self.removals,
            "largest": self.largest,
            "worlds": self.worlds,
            "changed": self.changed,
            "off_grid": self.off_grid,
            "failures": self.failures,
            "sites": [asdict(site) for site in self.sites],
            "keeps_promise": self.keeps_promise,
        }


def sensitivity_on_path(
    study: StudyConfig,
    sites: Sequence[SiteConfig],
    *,
    scratch: Path,
    draws: int,
    patients: int,
    advance: Advance,
) -> PathSensitivity:
    """Take drawn patients away at every site.

    Gradients are computed on the CPU, where they repeat bit for bit.

    Args:
        study: Its crops, its network with first weights, its clipping.
        sites: Their files.
        scratch: Private folder for what is prepared a second time.
        draws: Rounds a site, of `STEPS` steps each. They alternate, from site to site as well,
            between the round's clip norm and a thousandth, under which every gradient is clipped.
        patients: Most patients that a draw chooses from, picked anew each time.
        advance: Progress.

    Raises:
        MedflError: If a site's files cannot be used.
    """
    total = draws * len(sites)
    found = []
    for number, site in enumerate(sites):
        audited = _Site(study, site, scratch=scratch / site.name)
        result = SiteSensitivity(site=site.name)
        for draw in range(draws):
            advance(number * draws + draw, total)
            factor = _CLIP_FACTORS[(number + draw) % len(_CLIP_FACTORS)]
            result = audited.draw(result, clip_factor=factor, patients=patients)
        found.append(result)
    advance(total, total)
    return PathSensitivity(sites=tuple(found))


class _Site:
    """One site under audit."""

    def __init__(self, study: StudyConfig, site: SiteConfig, *, scratch: Path) -> None:
        self._study = study
        self._site = site.model_copy(update={"device": "cpu"})
        self._scratch = scratch
        self._site_state = simulated_state(self._site, run_folder=scratch)
        self._random = random.SystemRandom()

    def draw(self, found: SiteSensitivity, *, clip_factor: float, patients: int) -> SiteSensitivity:
        """One draw, compared with the worlds in which somebody of it is missing."""
        everybody = sorted(self._site_state.members)
        names = sorted(self._random.sample(everybody, min(patients, len(everybody))))
        if not names:
            return found
        coins = _toss(names)
        batches = _drawn(coins)
        number = self._random.randint(1, self._study.training.rounds)
        mechanism = self._mechanism(self._study.clip_norm(number) * clip_factor)
        observer = PathObserver(study=self._study, mechanism=mechanism, round_number=number)
        own = self._own_terms(observer, coins)
        tight = self._with_little_memory(frozenset(names))
        with_all = observer.sums(self._site_state, coins)
        compared = [(with_all, batches), (observer.sums(tight, coins), batches)]
        largest, removals = 0, 0
        for site_state, fewer in self._worlds_with_fewer(tight, coins):
            without, left = observer.sums(site_state, fewer), _drawn(fewer)
            compared.append((without, left))
            for step in range(STEPS):
                if left[step] != batches[step]:
                    largest = max(largest, _squares(with_all[step] - without[step]))
                    removals += 1
        changed = sum(not _adds_up(sums, drawn, own) for sums, drawn in compared)
        return replace(
            found,
            removals=found.removals + removals,
            largest=max(found.largest, math.sqrt(largest) * mechanism.grid / mechanism.clip_norm),
            worlds=found.worlds + len(compared),
            changed=found.changed + changed,
            off_grid=found.off_grid + observer.off_grid,
            failures=found.failures + observer.failures,
        )

    def _own_terms(self, observer: PathObserver, coins: Coins) -> dict[str, Int64Array]:
        """What each drawn patient releases alone: no cache, a new network, nobody before them."""
        alone = {}
        for name in sorted(frozenset().union(*_drawn(coins))):
            site_state = self._sparing(
                cache=self._scratch / f"alone-{name}", cache_bytes=_NO_CACHE, memory_bytes=_NO_CACHE
            )
            alone[name] = observer.sums(site_state, {name: coins[name]})
        return alone

    def _worlds_with_fewer(self, tight: SiteState, coins: Coins) -> list[tuple[SiteState, Coins]]:
        """One patient less in every step, by a coin; and somebody who left the cohort for good."""
        batches = [sorted(batch) for batch in _drawn(coins)]
        worlds: list[tuple[SiteState, Coins]] = []
        for place in range(max(map(len, batches))):
            fewer = dict(coins)
            for step, batch in enumerate(batches):
                if place < len(batch):
                    fewer[batch[place]] = _with(fewer[batch[place]], step, NEVER)
            worlds.append((tight if place % 2 else self._site_state, fewer))
        drawn = sorted(frozenset().union(*batches))
        idle = sorted(coins.keys() - frozenset(drawn))
        # The first of the list, so that everybody else gets another place in it.
        worlds += [
            (self._site_state, {name: coins[name] for name in coins if name != gone})
            for gone in (*drawn[:1], *idle[:1])
        ]
        return [world for world in worlds if world[1]]

    def _with_little_memory(self, members: frozenset[str]) -> SiteState:
        """Room for one case and a half: the next patient drives the one before out."""
        _, store = self._site_state.member_store(self._study, members=members)
        sizes = [case.nbytes for place in range(len(store)) for case in store.prepared(place)]
        return self._sparing(
            cache=self._site.state / CACHE,
            cache_bytes=int(self._site.cache_gigabytes * 1e9),
            memory_bytes=3 * max(sizes) // 2,
        )

    def _sparing(self, *, cache: Path, cache_bytes: int, memory_bytes: int) -> SiteState:
        folder = (
            self._site.state
            if self._site.purpose == "hospital"
            else self._scratch / "sites" / self._site.name
        )
        return SparingState(
            self._site,
            folder=folder,
            cache=cache,
            cache_bytes=cache_bytes,
            memory_bytes=memory_bytes,
        )

    def _mechanism(self, clip_norm: float) -> Mechanism:
        """The study's, with draws of a few, and a grid on which sums stay small."""
        return Mechanism(
            sampling_prob=_SAMPLING_PROB,
            noise_multiplier=1.0,
            clip_norm=max(clip_norm, MIN_CLIP_NORM),
            clipping=self._study.privacy.clipping,
            local_steps=STEPS,
            declared_patients=_DECLARED,
        )


def _toss(names: Sequence[str]) -> Coins:
    """Coins from the operating system, again until two patients meet in a step."""
    source = SecureNormal.from_operating_system()
    while True:
        table = source.uniform(STEPS * len(names)).reshape(STEPS, len(names))
        coins = {name: tuple(table[:, place].tolist()) for place, name in enumerate(names)}
        if max(map(len, _drawn(coins))) >= min(2, len(names)):
            return coins


def _drawn(coins: Coins) -> Batches:
    return [
        frozenset(name for name, of_patient in coins.items() if of_patient[step] < _SAMPLING_PROB)
        for step in range(STEPS)
    ]


def _with(coins: tuple[float, ...], step: int, value: float) -> tuple[float, ...]:
    return (*coins[:step], value, *coins[step + 1 :])


def _adds_up(sums: Int64Array, drawn: Batches, own: Mapping[str, Int64Array]) -> bool:
    """Whether every step's sum is that of its patients' own terms."""
    expected = np.zeros_like(sums)
    for step, batch in enumerate(drawn):
        for name in batch:
            expected[step] += own[name][step]
    return bool(np.array_equal(sums, expected))


def _squares(difference: Int64Array) -> int:
    """Squared norm in integers: parts that int64 holds, added up by Python, whose have no end."""
    parts = range(0, len(difference), _PART)
    return sum(int(np.square(difference[part : part + _PART]).sum()) for part in parts)
