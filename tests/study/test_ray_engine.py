"""How a machine is shared among the sites of a simulation."""

from __future__ import annotations

from typing import Any

import pytest

from medfl.errors import ConfigError
from medfl.study.ray_engine import places_of


@pytest.mark.parametrize(
    ("cpus", "at_once", "turns"), [(1, 1, 3), (2, 2, 2), (3, 3, 1), (16, 3, 1)]
)
def test_as_many_sites_work_at_once_as_there_are_cpus_for(
    cpus: int, at_once: int, turns: int, federation: Any
) -> None:
    places = places_of(federation.sites(threads=2), cpus=cpus, gpus=0)
    assert (places.at_once, places.turns) == (at_once, turns)
    assert places.gpus_each == 0.0
    assert str(places) == f"sites at once: {at_once}, each with one CPU"


@pytest.mark.parametrize(("cpus", "gpus", "part"), [(16, 1, 1 / 3), (16, 2, 2 / 3), (1, 4, 1.0)])
def test_sites_that_ask_for_a_gpu_share_what_there_is(
    cpus: int, gpus: int, part: float, federation: Any
) -> None:
    sites = federation.sites(device="cuda")
    places = places_of(sites, cpus=cpus, gpus=gpus)
    assert places.gpus_each == pytest.approx(part)
    assert str(places).endswith(f"CPU and {part:.2g} GPU")


@pytest.mark.parametrize(
    ("device", "gpus", "rule"), [("cuda", 0, "found none"), ("cuda:1", 2, "a numbered one")]
)
def test_a_gpu_that_no_site_could_get_is_refused(
    device: str, gpus: int, rule: str, federation: Any
) -> None:
    with pytest.raises(ConfigError, match=rule):
        places_of(federation.sites(device=device), cpus=2, gpus=gpus)
