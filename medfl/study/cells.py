"""The cells of a grid of studies: one ordinary study for each combination, known before any runs.

What noise does not change is computed in one cell for each seed and variant, and what a trust mode
does not change in one for each epsilon as well: another cell would only repeat it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from medfl.config import SiteConfig, StudyConfig
from medfl.config.files import problems
from medfl.config.study import Baseline
from medfl.config.study_grid import BASE, GridVariant, Mode, StudyGrid
from medfl.errors import ConfigError
from medfl.privacy.accounting.accountant import noise_multiplier_for

WITHOUT_NOISE: tuple[Baseline, ...] = (
    "initial-only",
    "alone",
    "non-private",
    "pooled",
    "threshold",
)
"""Baselines that depend on neither epsilon nor trust mode."""

WITH_OWN_NOISE: tuple[Baseline, ...] = ("local-only",)
"""Baselines that depend on epsilon, and not on who adds up with whom."""

INSISTED = 2.0
"""Of a hybrid's epsilon against everybody else, over the target."""

Begun = Callable[[str], Collection[Baseline]]
"""The baselines of the cell that was begun under a name; none if there is no such cell."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One study of a grid.

    Attributes:
        epsilon: The target.
        study: With the baselines that are computed here.
        sites: With the policy that the trust mode needs.
    """

    variant: str
    trust: Mode
    epsilon: float
    seed: int
    study: StudyConfig
    sites: tuple[SiteConfig, ...]

    @property
    def name(self) -> str:
        """Of its folder."""
        return cell_name(self.variant, self.trust, self.epsilon, self.seed)


def cell_name(variant: str, trust: Mode, epsilon: float, seed: int) -> str:
    """What the folder of a cell is called."""
    beside = "" if variant == BASE else f"{variant}-"
    return f"{beside}{trust}-epsilon-{epsilon:g}-seed-{seed}"


def cells_of(
    grid: StudyGrid, study: StudyConfig, sites: Sequence[SiteConfig], *, begun: Begun
) -> list[Cell]:
    """Every cell, checked; a seed is complete before the next one begins.

    Args:
        grid: The grid.
        study: Its study.
        sites: Its sites.
        begun: Tells what earlier cells compute, which stays where it is when epsilons are added.

    Raises:
        ConfigError: If one of the studies breaks a rule, or a site is no open data.
    """
    _require_open_data(grid, sites)
    variants = [GridVariant(name=BASE), *grid.variants]
    return [
        cell
        for seed in grid.seeds
        for variant in variants
        for cell in _cells_of_seed(grid, study, sites, variant=variant, seed=seed, begun=begun)
    ]


def _cells_of_seed(
    grid: StudyGrid,
    study: StudyConfig,
    sites: Sequence[SiteConfig],
    *,
    variant: GridVariant,
    seed: int,
    begun: Begun,
) -> list[Cell]:
    settings = [(trust, epsilon) for trust in grid.trust for epsilon in grid.targets]
    names = {each: cell_name(variant.name, *each, seed) for each in settings}

    def place_of(kind: Collection[Baseline], among: Sequence[tuple[Mode, float]]) -> str:
        wanted = set(kind) & set(grid.wanted)
        held = [names[each] for each in among if wanted <= set(begun(names[each]))]
        return held[0] if held else names[among[0]]

    of_seed = place_of(WITHOUT_NOISE, settings)
    of_epsilon = {
        place_of(WITH_OWN_NOISE, [each for each in settings if each[1] == epsilon])
        for epsilon in grid.targets
    }
    made = []
    for trust, epsilon in settings:
        name = names[trust, epsilon]
        baselines = tuple(
            baseline
            for baseline in grid.wanted
            if (baseline not in WITHOUT_NOISE or name == of_seed)
            and (baseline not in WITH_OWN_NOISE or name in of_epsilon)
        )
        try:
            changed = study_in(
                study, trust=trust, epsilon=epsilon, seed=seed, baselines=baselines, variant=variant
            )
        except ValidationError as error:
            raise ConfigError(f"cell {name} of the grid: {problems(error)}") from None
        made.append(
            Cell(
                variant=variant.name,
                trust=trust,
                epsilon=epsilon,
                seed=seed,
                study=changed,
                sites=sites_in(sites, changed, trust=trust),
            )
        )
    return made


def study_in(
    study: StudyConfig,
    *,
    trust: Mode,
    epsilon: float,
    seed: int,
    baselines: tuple[Baseline, ...] = (),
    variant: GridVariant | None = None,
) -> StudyConfig:
    """The study in one setting, scored at its start and its end, without pictures.

    Raises:
        ValidationError: If the setting breaks a rule of a study.
    """
    values = study.model_dump(mode="json")
    for key, value in variant.settings.items() if variant else ():
        _set(values, key.split("."), value)
    for key in variant.without if variant else ():
        _drop(values, key.split("."))
    privacy: dict[str, Any] = {
        "epsilon": epsilon,
        "trust": "local" if trust == "local" else "secure",
    }
    if trust == "local":
        privacy["colluding_sites"] = 0
    values["seed"] = seed
    values["privacy"] |= privacy
    made = _with_file(StudyConfig.model_validate_json(json.dumps(values)), study)
    scored = {"baselines": baselines, "every": made.training.rounds, "pictures": 0}
    return made.model_copy(update={"evaluation": made.evaluation.model_copy(update=scored)})


def sites_in(
    sites: Sequence[SiteConfig], study: StudyConfig, *, trust: Mode
) -> tuple[SiteConfig, ...]:
    """The sites with the policy that a trust mode needs.

    In ``hybrid`` every site insists on a share of the noise that keeps its patients at `INSISTED`
    times the target epsilon if all others side with the server.
    """

    def floor(site: SiteConfig) -> float:
        return _insisted_noise(site, study) if trust == "hybrid" else 0.0

    return tuple(
        site.model_copy(
            update={
                "privacy": site.privacy.model_copy(
                    update={
                        "trust": ("local", "secure"),
                        "min_share_noise_multiplier": floor(site),
                        # The patients are public: a larger budget is no promise to anybody.
                        "epsilon": max(site.privacy.epsilon, study.privacy.epsilon),
                    }
                )
            }
        )
        for site in sites
    )


def _insisted_noise(site: SiteConfig, study: StudyConfig) -> float:
    return noise_multiplier_for(
        epsilon=INSISTED * study.privacy.epsilon,
        delta=site.privacy.delta,
        sampling_prob=study.privacy.sampling_prob,
        steps=study.total_steps,
    )


def _set(values: dict[str, Any], key: Sequence[str], value: object) -> None:
    for part in key[:-1]:
        inner = values.get(part)
        values[part] = inner if isinstance(inner, dict) else {}
        values = values[part]
    values[key[-1]] = value


def _drop(values: dict[str, Any], key: Sequence[str]) -> None:
    for part in key[:-1]:
        inner = values.get(part)
        if not isinstance(inner, dict):
            return
        values = inner
    values.pop(key[-1], None)


def _with_file(made: StudyConfig, study: StudyConfig) -> StudyConfig:
    """A start's file has its name only in what is written down: it lies where the study says."""
    told, synthetic = study.synthetic, made.synthetic
    if synthetic is None or synthetic.start is None or synthetic.start.file is None:
        return made
    known = told.start.file if told is not None and told.start is not None else None
    if known is None or known.name != synthetic.start.file.name:
        raise ConfigError(
            "Expected a variant that starts from the file of the study, or from one that comes "
            f"with medfl (start.shipped), found {str(synthetic.start.file)!r}."
        )
    start = synthetic.start.model_copy(update={"file": known})
    return made.model_copy(update={"synthetic": synthetic.model_copy(update={"start": start})})


def _require_open_data(grid: StudyGrid, sites: Sequence[SiteConfig]) -> None:
    """A grid is many runs, each of which would cost a hospital's patients their budget."""
    for site in sites:
        if site.purpose != "open-data":
            raise ConfigError(
                f"Expected sites with purpose = 'open-data' in a grid, found {site.purpose!r} at "
                f"{site.name}: every cell would be charged to its patients."
            )
        if not site.privacy.share_metrics:
            raise ConfigError(
                "Expected sites with privacy.share_metrics = true in a grid, whose table is made "
                f"of their scores, found false at {site.name}."
            )
        if grid.wanted and not site.privacy.allow_baselines:
            raise ConfigError(
                "Expected sites with privacy.allow_baselines = true in a grid with baselines, "
                f"found false at {site.name}."
            )
