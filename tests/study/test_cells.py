"""The cells of a grid: what is computed in which, before anything is."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from medfl.config import SiteConfig, StudyConfig
from medfl.config.study_grid import StudyGrid, load_study_grid
from medfl.errors import ConfigError
from medfl.privacy.accounting.accountant import epsilon
from medfl.privacy.accounting.charges import Charge
from medfl.privacy.mechanism import Mechanism
from medfl.study.cells import INSISTED, Cell, cells_of
from tests.federations import Federation

TEXT = """
id = "grid"
study = "study.toml"
sites = ["site.toml"]
seeds = [1, 2]
trust = ["local", "hybrid"]
epsilons = ["none", 8, 3]
baselines = ["initial-only", "alone", "adapted", "local-only"]
"""
VARIANT = """
[[variants]]
name = "fast"
settings = { "training.learning_rate" = 0.9, "aggregation.ema_decay" = 0.5 }
"""
OPEN = {"share_metrics": True, "allow_baselines": True}
MakeGrid = Callable[..., StudyGrid]


@pytest.fixture
def grid_of(tmp_path: Path) -> MakeGrid:
    def make(text: str = TEXT, *, old: str = "", new: str = "") -> StudyGrid:
        path = tmp_path / "grid.toml"
        path.write_text(text.replace(old, new) if old else text)
        return load_study_grid(path)

    return make


def of(grid: StudyGrid, federation: Federation, **begun: Collection[Any]) -> dict[str, Cell]:
    study = federation.study(aggregation={"min_sites": 3})
    cells = cells_of(grid, study, sites(federation), begun=lambda name: begun.get(name, ()))
    return {cell.name: cell for cell in cells}


def sites(federation: Federation) -> list[SiteConfig]:
    return federation.sites(privacy=OPEN)


def test_every_combination_is_a_cell_and_a_seed_is_complete_before_the_next(
    grid_of: MakeGrid, federation: Federation
) -> None:
    assert list(of(grid_of(TEXT + VARIANT), federation)) == [
        f"{variant}{trust}-epsilon-{target}-seed-{seed}"
        for seed in (1, 2)
        for variant in ("", "fast-")
        for trust in ("local", "hybrid")
        for target in (8, 3)
    ]


def test_what_noise_does_not_change_is_computed_once_a_seed(
    grid_of: MakeGrid, federation: Federation
) -> None:
    found = {
        name: set(cell.study.evaluation.baselines)
        for name, cell in of(grid_of(), federation).items()
    }
    once, each = {"initial-only", "alone", "non-private"}, {"adapted"}
    for seed in (1, 2):
        assert found[f"local-epsilon-8-seed-{seed}"] == once | each | {"local-only"}
        assert found[f"local-epsilon-3-seed-{seed}"] == each | {"local-only"}
        for target in (8, 3):
            assert found[f"hybrid-epsilon-{target}-seed-{seed}"] == each


def test_it_stays_where_it_is_when_an_epsilon_is_added_in_front(
    grid_of: MakeGrid, federation: Federation
) -> None:
    begun = {
        "local-epsilon-8-seed-1": ("initial-only", "alone", "adapted", "local-only", "non-private")
    }
    cells = of(grid_of(old="8, 3", new="20, 8, 3"), federation, **begun)
    assert "alone" in cells["local-epsilon-8-seed-1"].study.evaluation.baselines
    assert "alone" not in cells["local-epsilon-20-seed-1"].study.evaluation.baselines
    assert "alone" in cells["local-epsilon-20-seed-2"].study.evaluation.baselines


def test_cells_differ_in_nothing_but_what_the_grid_says(
    grid_of: MakeGrid, federation: Federation
) -> None:
    cells = of(grid_of(TEXT + VARIANT), federation)
    one, other = cells["local-epsilon-8-seed-1"].study, cells["fast-hybrid-epsilon-3-seed-2"].study
    assert (other.seed, other.privacy.epsilon, other.privacy.trust) == (2, 3.0, "secure")
    assert (other.training.learning_rate, other.aggregation.ema_decay) == (0.9, 0.5)
    assert one.evaluation.every == one.training.rounds
    back = other.model_copy(
        update={
            "seed": one.seed,
            "privacy": other.privacy.model_copy(update={"epsilon": 8.0, "trust": "local"}),
            "evaluation": one.evaluation,
            "training": other.training.model_copy(update={"learning_rate": 0.5}),
            "aggregation": other.aggregation.model_copy(update={"ema_decay": 0.0}),
        }
    )
    assert back == one


def test_a_hybrid_site_keeps_its_patients_at_twice_the_target_if_all_others_collude(
    grid_of: MakeGrid, federation: Federation
) -> None:
    cells = of(grid_of(), federation)
    cell, study = cells["hybrid-epsilon-3-seed-1"], cells["hybrid-epsilon-3-seed-1"].study
    for site in cell.sites:
        share = site.privacy.min_share_noise_multiplier
        mechanism = Mechanism(
            sampling_prob=study.privacy.sampling_prob,
            noise_multiplier=share,
            clip_norm=study.privacy.clip_norm,
            clipping=study.privacy.clipping,
            local_steps=1,
            declared_patients=site.declared_patients,
        )
        charge = Charge(mechanism=mechanism, steps=study.total_steps)
        found = epsilon([charge], delta=site.privacy.delta)
        assert found == pytest.approx(INSISTED * 3.0, rel=0.01)
    assert all(
        site.privacy.min_share_noise_multiplier == 0
        for site in cells["local-epsilon-3-seed-1"].sites
    )


def test_a_mistake_in_one_cell_is_told_before_any_runs(
    grid_of: MakeGrid, federation: Federation
) -> None:
    study = federation.study(training={"local_steps": 2}, aggregation={"min_sites": 3})
    with pytest.raises(ConfigError, match=r"cell hybrid-epsilon-8-seed-1 .*local_steps = 1"):
        cells_of(grid_of(), study, sites(federation), begun=lambda _: ())
    wrong = grid_of(TEXT + VARIANT, old="learning_rate", new="learning_speed")
    with pytest.raises(ConfigError, match=r"cell fast-.*key training.learning_speed: unknown key"):
        of(wrong, federation)


def test_hospitals_and_silent_sites_are_refused(grid_of: MakeGrid, federation: Federation) -> None:
    study: StudyConfig = federation.study()
    for site, told in (
        (federation.hospital("north"), "open-data"),
        (federation.site("north"), "share_metrics"),
        (federation.site("north", privacy=OPEN | {"allow_baselines": False}), "allow_baselines"),
    ):
        with pytest.raises(ConfigError, match=f"{told}.*north"):
            cells_of(grid_of(), study, [site], begun=lambda _: ())
