"""`GridScores`: the tidy table of a grid of studies, ready to be asked for a model in a setting.

Everything is derived from the table's rows, so that figures can be drawn where the runs are not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from medfl.config.study_grid import BASE, Mode
from medfl.reporting.estimates import (
    Estimate,
    Measure,
    PatientKey,
    estimate_over_runs,
    paired_difference_over_runs,
)
from medfl.reporting.unfound import is_unfound
from medfl.runs.grid_records import GridScore
from medfl.runs.records import VARIANT_ORDER, Region, Variant

Values = dict[PatientKey, float]
_Place = tuple[str, str, float | None, Variant, Region, Measure]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a run has beside its seed.

    Attributes:
        epsilon: None where no noise is added.
    """

    trust: Mode
    epsilon: float | None
    variant: str = BASE

    def of(self, variant: str) -> Setting:
        """The same of another variant."""
        return replace(self, variant=variant)


class GridScores:
    """Scores by model, setting and seed.

    Args:
        rows: The table.

    Attributes:
        variants: In the order of the table, like all that follow but the epsilons.
        epsilons: Ascending.
        models: In the order of a run's report.
        patients: Held out, by site and pseudonym.
    """

    def __init__(self, rows: Iterable[GridScore]) -> None:
        self._values: defaultdict[_Place, dict[int, Values]] = defaultdict(dict)
        variants, trusts, sites, regions = (dict[str, None]() for _ in range(4))
        seeds, epsilons, models = dict[int, None](), set[float](), set[Variant]()
        patients = set[PatientKey]()
        for row in rows:
            place = (row.variant, row.trust, row.epsilon, row.model, row.region, row.measure)
            of_seed = self._values[place].setdefault(row.seed, {})
            of_seed[row.site, row.patient] = row.value
            variants[row.variant] = sites[row.site] = regions[row.region] = seeds[row.seed] = None
            models.add(row.model)
            patients.add((row.site, row.patient))
            if row.trust:
                trusts[row.trust] = None
            if row.epsilon is not None:
                epsilons.add(row.epsilon)
        self.variants: tuple[str, ...] = tuple(variants)
        self.trusts: tuple[Mode, ...] = tuple(trusts)  # type: ignore[arg-type]
        self.epsilons = tuple(sorted(epsilons))
        self.seeds = tuple(seeds)
        self.patients = frozenset(patients)
        self.sites = tuple(sites)
        self.regions: tuple[Region, ...] = tuple(regions)  # type: ignore[arg-type]
        self.models = tuple(model for model in VARIANT_ORDER if model in models)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Those with noise: variants, then trust modes, then epsilons from the largest on."""
        return tuple(
            Setting(variant=variant, trust=trust, epsilon=epsilon)
            for variant in self.variants
            for trust in self.trusts
            for epsilon in reversed(self.epsilons)
        )

    @property
    def found_regions(self) -> tuple[Region, ...]:
        """Regions in which any model overlaps with the truth; see `medfl.reporting.unfound`."""
        return tuple(region for region in self.regions if not self._is_unfound(region))

    def mean(
        self,
        model: Variant,
        setting: Setting,
        region: Region,
        *,
        site: str = "",
        measure: Measure = "dice",
    ) -> Estimate | None:
        """The mean over patients and seeds, with an interval over both.

        Args:
            model: A model; one that does not depend on a setting is the same in all of them.
            setting: The setting.
            region: Region.
            site: A site's name, or nothing for all.
            measure: What is averaged.

        Returns:
            None where a seed lacks it.
        """
        runs = self._runs(model, setting, region, site=site, measure=measure)
        return estimate_over_runs(runs) if runs else None

    def difference(
        self,
        model: Variant,
        reference: Variant,
        setting: Setting,
        region: Region,
        *,
        site: str = "",
        measure: Measure = "dice",
    ) -> Estimate | None:
        """The mean of one model minus another one's, paired by patient and seed."""
        one, other = (
            self._runs(each, setting, region, site=site, measure=measure)
            for each in (model, reference)
        )
        return paired_difference_over_runs(one, other) if one and other else None

    def gain(self, setting: Setting, region: Region, *, site: str = "") -> Estimate | None:
        """What joining brings over staying alone without noise."""
        return self.difference("adapted", "alone", setting, region, site=site)

    def least_gain(self, setting: Setting, region: Region) -> tuple[str, Estimate] | None:
        """The site that gains least, or loses most."""
        found = [(site, self.gain(setting, region, site=site)) for site in self.sites]
        return _lowest(found)

    def worst_site(
        self, model: Variant, setting: Setting, region: Region
    ) -> tuple[str, Estimate] | None:
        """The site where a model scores lowest."""
        return _lowest(
            [(site, self.mean(model, setting, region, site=site)) for site in self.sites]
        )

    def _runs(
        self, model: Variant, setting: Setting, region: Region, *, site: str, measure: Measure
    ) -> list[Values]:
        """A value for each patient, the same ones in every seed; nothing where a seed lacks it."""
        for trust, epsilon in ((setting.trust, setting.epsilon), ("", setting.epsilon), ("", None)):
            place = (setting.variant, trust, epsilon, model, region, measure)
            if place in self._values:
                by_seed = self._values[place]
                break
        else:
            return []
        if set(by_seed) != set(self.seeds):
            return []
        runs = [
            {key: value for key, value in by_seed[seed].items() if site in ("", key[0])}
            for seed in self.seeds
        ]
        shared = set(runs[0]).intersection(*runs[1:])
        return [{key: run[key] for key in sorted(shared)} for run in runs] if shared else []

    def _is_unfound(self, region: Region) -> bool:
        return is_unfound(
            value
            for place, by_seed in self._values.items()
            if place[-2:] == (region, "dice")
            for values in by_seed.values()
            for value in values.values()
        )


def _lowest(found: list[tuple[str, Estimate | None]]) -> tuple[str, Estimate] | None:
    known = [(site, estimate) for site, estimate in found if estimate is not None]
    return min(known, key=lambda pair: pair[1].value) if len(known) > 1 else None
