"""`StudyGrid`: one study in many settings, as a file: seeds, trust modes, epsilons and variants.

Every combination of them is a run of its own. The file names its study and sites by path and says
in what the runs differ, so that whoever repeats an experiment has one file to look at.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from medfl.config.files import Section, load
from medfl.config.site import ExpandedPath, Name, Seed
from medfl.config.study import Baseline

Mode = Literal["local", "secure", "hybrid"]

BASE = "base"
"""Name of the variant that is the study as its file has it."""

NO_NOISE = "none"

_LARGEST_EPSILON = 1e6
# What the grid itself sets in every run.
_ITS_OWN = ("id", "seed", "privacy.epsilon", "privacy.trust", "evaluation")


def _epsilon(value: object) -> float | None:
    if value == NO_NOISE:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, or '{NO_NOISE}' for no noise")
    if not 0 < value <= _LARGEST_EPSILON:
        raise ValueError(f"expected a number above 0 and up to {_LARGEST_EPSILON:g}")
    return float(value)


def _distinct(values: Sequence[Hashable]) -> Sequence[Hashable]:
    if len(set(values)) < len(values):
        raise ValueError("expected each of them once")
    return values


def _key(value: str) -> str:
    for own in _ITS_OWN:
        if value == own or value.startswith(f"{own}.") or own.startswith(f"{value}."):
            raise ValueError(f"expected a key of the study that the grid does not set ({own})")
    return value


Once = AfterValidator(_distinct)
Key = Annotated[str, Field(pattern=r"^[a-z_]+(\.[A-Za-z0-9_]+)*$"), AfterValidator(_key)]


class GridVariant(Section):
    """The study with a few of its keys changed.

    Attributes:
        settings: Key (``aggregation.strategy``) -> value.
        without: Keys and tables that the variant does not have, such as ``synthetic``.
    """

    name: Name
    settings: dict[Key, Any] = Field(default_factory=dict)
    without: tuple[Key, ...] = ()


def _named_once(variants: tuple[GridVariant, ...]) -> tuple[GridVariant, ...]:
    names = [variant.name for variant in variants]
    if len({*names, BASE}) < len(names) + 1:
        raise ValueError(f"expected distinct names other than '{BASE}', which is the study itself")
    return variants


class StudyGrid(Section):
    """A grid of studies: each seed with each trust mode, epsilon and variant.

    Attributes:
        id: Of the grid, for its report.
        study: The study file, from the grid's file.
        sites: Site files of open data, from the grid's file.
        trust: ``local`` and ``secure`` as in a study; ``hybrid`` is a secure sum in which every
            site insists on noise of its own, see `medfl.study.cells`.
        epsilons: Targets of every site; None, written ``none``, is the same training without noise.
        baselines: As in a study. Those that noise does not change are run once for each seed.
        variants: Beside the study itself, which is always a part of the grid.
    """

    id: Name
    study: ExpandedPath
    sites: Annotated[tuple[ExpandedPath, ...], Field(min_length=1), Once]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=100), Once]
    trust: Annotated[tuple[Mode, ...], Field(min_length=1), Once] = ("local",)
    epsilons: Annotated[
        tuple[Annotated[float | None, PlainValidator(_epsilon)], ...], Field(min_length=1), Once
    ]
    baselines: Annotated[tuple[Baseline, ...], Once] = ()
    variants: Annotated[tuple[GridVariant, ...], AfterValidator(_named_once)] = ()

    @model_validator(mode="after")
    def _has_a_run(self) -> Self:
        if not self.targets:
            raise ValueError(
                f"expected a number in epsilons beside '{NO_NOISE}': training without noise is "
                "scored beside a run with noise"
            )
        return self

    @property
    def targets(self) -> tuple[float, ...]:
        """The epsilons with noise."""
        return tuple(epsilon for epsilon in self.epsilons if epsilon is not None)

    @property
    def wanted(self) -> tuple[Baseline, ...]:
        """The baselines, with the training without noise where `epsilons` asks for it."""
        extra: tuple[Baseline, ...] = ("non-private",) if None in self.epsilons else ()
        return tuple(dict.fromkeys((*self.baselines, *extra)))


def load_study_grid(path: str | Path) -> StudyGrid:
    """Read a grid file; relative paths in it are taken from the file's folder.

    Raises:
        ConfigError: If the file breaks a rule.
    """
    path = Path(path)
    grid = load(path, StudyGrid)
    base = path.resolve().parent
    return grid.model_copy(
        update={"study": base / grid.study, "sites": tuple(base / site for site in grid.sites)}
    )
