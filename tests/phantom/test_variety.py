"""Synthetic patients of wide variety: giant, uneven tumours, on scans as collections have them."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from medfl.config.site import MODALITY_ORDER
from medfl.config.synthetic import Variety
from medfl.phantom.coverage import field_of_view, stripped
from medfl.phantom.grid import place_head
from medfl.phantom.lesion import plan_lesion
from medfl.phantom.patient import PhantomPatient, hospital_looks, make_patient, public_look

SHAPE, SPACING = (48, 56, 40), (3.5, 3.5, 4.0)
PLAIN = hospital_looks()["north"]
SEEDS = range(9)


@functools.cache
def patient(
    seed: int, *, variety: Variety = "wide", cortex: float = 0.0, cut: float = 0.0
) -> PhantomPatient:
    return make_patient(
        shape=SHAPE,
        spacing=SPACING,
        look=replace(PLAIN, cortex=cortex, cut=cut),
        skull_stripped=True,
        variety=variety,
        seed=seed,
    )


def shares(variety: Variety) -> list[float]:
    made = [patient(seed, variety=variety) for seed in SEEDS]
    return [float((one.labels > 0).sum() / (one.images["t1n"] > 0).sum()) for one in made]


@pytest.mark.slow
def test_tumours_take_up_to_a_sixth_of_the_brain_in_one_piece() -> None:
    wide, narrow = shares("wide"), shares("narrow")
    assert 0.009 <= min(wide) < 0.03
    assert 0.1 < max(wide) <= 0.161
    assert max(narrow) <= 0.081
    assert all(ndimage.label(patient(seed).labels > 0)[1] == 1 for seed in SEEDS)


@pytest.mark.slow
def test_parts_of_a_tumour_differ_more_in_brightness() -> None:
    def spread(variety: Variety) -> float:
        ratios = []
        for seed in SEEDS:
            made = patient(seed, variety=variety)
            flair = made.images["t2f"]
            ratios.append(np.median(flair[made.labels == 1]) / np.median(flair[made.labels == 2]))
        return float(np.std(ratios))

    assert spread("wide") > 1.5 * spread("narrow")


@pytest.mark.parametrize("seed", range(4))
def test_looks_differ_in_what_preparation_missed_only(seed: int) -> None:
    wide, narrow = public_look(seed, variety="wide"), public_look(seed)
    assert wide.cortex > 0
    assert wide.cut > 0
    assert replace(wide, cortex=0.0, remains=0.0, cut=0.0) == narrow
    assert public_look(seed, variety="wide") == wide


def test_random_looks_go_beyond_wide_ones_in_both_directions() -> None:
    random = [public_look(seed, variety="random") for seed in range(200)]
    wide = [public_look(seed, variety="wide") for seed in range(200)]
    for name in ("variation", "texture", "bias", "striping", "noise", "blur", "cortex"):
        assert max(getattr(look, name) for look in random) > 1.1 * max(
            getattr(look, name) for look in wide
        )
    gammas = [
        [c.gamma for look in looks for c in look.contrasts.values()] for looks in (random, wide)
    ]
    assert min(gammas[0]) < 0.9 * min(gammas[1])
    assert max(gammas[0]) > 1.1 * max(gammas[1])
    assert public_look(3, variety="random") == random[3]
    assert len({look.noise for look in random}) == 200


def test_random_tumours_are_wide_ones_with_less_restraint() -> None:
    wide = plan_lesion(np.random.default_rng(4), variety="wide")
    random = plan_lesion(np.random.default_rng(4), variety="random")
    assert random.centre == wide.centre
    assert random.fraction > wide.fraction
    assert random.ranges.largest > wide.ranges.largest
    assert random.ranges.contrast_spread > wide.ranges.contrast_spread


def test_hospitals_are_narrow() -> None:
    for look in hospital_looks().values():
        assert (look.cortex, look.remains, look.cut) == (0, 0, 0)


def test_an_uneven_cortex_leaves_white_matter_as_it_is() -> None:
    quiet = replace(PLAIN, bias=0.0, noise=0.0, texture=0.0)
    even, uneven = (
        make_patient(
            shape=SHAPE,
            spacing=SPACING,
            look=replace(quiet, cortex=cortex),
            skull_stripped=True,
            seed=0,
        ).images["t1n"]
        for cortex in (0.0, 0.2)
    )
    brain = even > 0
    change = np.abs(uneven[brain] / even[brain] - 1)
    assert 0.05 < (change > 0.1).mean() < 0.5
    assert (change < 1e-3).mean() > 0.1


def test_a_cut_head_keeps_half_of_the_tumour_and_nothing_beyond_the_cut() -> None:
    fewer = 0
    for seed in range(6):
        whole, cut = patient(seed), patient(seed, cut=1.0)
        brain, left = whole.images["t2f"] > 0, cut.images["t2f"] > 0
        assert not (left & ~brain).any()
        fewer += left.sum() < 0.97 * brain.sum()
        assert (cut.labels > 0).sum() >= 0.5 * (whole.labels > 0).sum()
        for modality in MODALITY_ORDER:
            assert np.array_equal(cut.images[modality] > 0, left)
        assert not cut.labels[~left].any()
    assert fewer >= 4


def test_remains_lie_around_the_brain() -> None:
    rng = np.random.default_rng(1)
    grid = place_head(shape=SHAPE, spacing=SPACING, whole_head=False, rng=rng)
    brain = np.linalg.norm(grid.points, axis=0) < 40
    kept = stripped(grid, brain, remains=4.0, rng=rng)
    beyond = ndimage.distance_transform_edt(~brain, sampling=grid.step)
    assert kept[brain].all()
    assert 0 < (kept & ~brain).sum() < 0.3 * brain.sum()
    assert beyond[kept].max() < 4 * 4.0
    assert stripped(grid, brain, remains=0, rng=rng) is brain


def test_nothing_is_drawn_where_nothing_is_asked_for() -> None:
    rng = np.random.default_rng(1)
    grid = place_head(shape=SHAPE, spacing=SPACING, whole_head=False, rng=rng)
    state = rng.bit_generator.state
    brain = np.ones(SHAPE, np.bool_)
    assert field_of_view(grid, brain, cut=0.0, rng=rng).all()
    stripped(grid, brain, remains=0.0, rng=rng)
    assert rng.bit_generator.state == state
