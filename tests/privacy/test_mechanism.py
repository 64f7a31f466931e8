import dataclasses
import json
import math
from typing import Any

import dp_accounting
import numpy as np
import pytest

from medfl.config.schedule import RoundSchedule
from medfl.privacy.mechanism import Mechanism

VALUES: dict[str, Any] = {
    "sampling_prob": 0.3,
    "noise_multiplier": 2.0,
    "clip_norm": 1.5,
    "clipping": "normalised",
    "local_steps": 4,
    "declared_patients": 20,
}

FALLING = RoundSchedule(shape="linear", warmup_rounds=1, final_fraction=0.1, rounds=11)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("sampling_prob", value) for value in (0.0, -0.1, 1.1, math.nan, 1, True)),
        *(("noise_multiplier", value) for value in (-1.0, math.nan, math.inf, 2, False)),
        *(("clip_norm", value) for value in (0.0, -1.0, math.nan, math.inf, 1, True)),
        *(("local_steps", value) for value in (0, -3, 2.0, True)),
        *(("declared_patients", value) for value in (0, -1, 20.0, True)),
        ("clipping", "per-layer"),
        ("noise_origin", "torch"),
        ("adjacency", "replace-one"),
        *(("revision", value) for value in (0, 3, 2.0, True)),
        # What float32 cannot honour: at a clip norm of 7e-46 one patient's share was 1.75 C.
        *(("clip_norm", value) for value in (7e-46, 9e-7, 1.1e6, 1e30)),
        *(("noise_multiplier", value) for value in (5e-324, 9e-4, 1.1e6)),
        ("sampling_prob", 9e-7),
        ("local_steps", 10**7 + 1),
        ("declared_patients", 10**7 + 1),
        ("trust", "blind"),
        *(("honest_sites", value) for value in (0, 2, True, 1.0)),
    ],
)
def test_a_parameter_outside_its_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match="Expected"):
        Mechanism(**{**VALUES, name: value})


@pytest.mark.parametrize("name", ["sampling_prob", "noise_multiplier", "clip_norm", "local_steps"])
def test_text_is_refused_where_a_number_is_expected(name: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        Mechanism(**{**VALUES, name: "1"})


def test_a_mechanism_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Mechanism(**VALUES).noise_multiplier = 0.1


def test_divisor_and_noise_follow_from_the_public_constants() -> None:
    mechanism = Mechanism(**VALUES)
    assert mechanism.divisor == pytest.approx(6.0)
    assert mechanism.noise_std == pytest.approx(3.0)


@pytest.mark.parametrize("clip_norm", [1e-6, 1e6])
@pytest.mark.parametrize("noise_multiplier", [0.0, 1e-3, 1e6])
@pytest.mark.parametrize(("q", "n"), [(1e-6, 1), (1.0, 10**7)])
def test_within_the_bounds_every_step_of_the_grid_is_a_normal_float32_number(
    clip_norm: float, noise_multiplier: float, q: float, n: int
) -> None:
    mechanism = Mechanism(
        **{
            **VALUES,
            "clip_norm": clip_norm,
            "noise_multiplier": noise_multiplier,
            "sampling_prob": q,
            "declared_patients": n,
        }
    )
    limits = np.finfo(np.float32)
    assert mechanism.grid / mechanism.divisor > limits.tiny / limits.eps
    largest = n * clip_norm + 10 * mechanism.noise_std
    assert largest / mechanism.divisor < limits.max * limits.eps


def test_the_grid_is_a_power_of_two_just_below_a_millionth_of_the_noise() -> None:
    assert Mechanism(**VALUES).grid == 2.0 / 2**20  # of sigma C = 3
    assert Mechanism(**{**VALUES, "noise_multiplier": 0.0}).grid == 1.0 / 2**20  # of C = 1.5
    exact = Mechanism(**{**VALUES, "noise_multiplier": 4.0, "clip_norm": 1.0})
    assert exact.grid == 4.0 / 2**20


def test_a_charge_from_before_revisions_is_of_the_first_and_read_as_it_is() -> None:
    values = Mechanism(**VALUES).to_dict() | {"clip_norm": 7e-46}
    del values["revision"]
    old = Mechanism.from_dict(values)
    assert (old.revision, old.clip_norm) == (1, 7e-46)
    assert old != Mechanism(**VALUES)


def test_the_event_is_the_subsampled_gaussian_of_the_same_parameters() -> None:
    step = dp_accounting.PoissonSampledDpEvent(0.3, dp_accounting.GaussianDpEvent(2.0))
    assert Mechanism(**VALUES).event(steps=7) == dp_accounting.SelfComposedDpEvent(step, 7)


def test_no_noise_is_recorded_as_no_privacy() -> None:
    baseline = Mechanism(**{**VALUES, "noise_multiplier": 0.0})
    assert not baseline.is_private
    assert baseline.event(steps=1) == dp_accounting.NonPrivateDpEvent()


def test_a_mechanism_survives_json() -> None:
    mechanism = Mechanism(**{**VALUES, "noise_multiplier": 2.6813, "noise_origin": "seeded"})
    assert Mechanism.from_dict(json.loads(json.dumps(mechanism.to_dict()))) == mechanism


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_a_dictionary_with_other_keys_is_refused(change: str) -> None:
    values = Mechanism(**VALUES).to_dict()
    if change == "missing":
        del values["noise_multiplier"]
    else:
        values["secure"] = True
    with pytest.raises(ValueError, match="Expected the mechanism's keys"):
        Mechanism.from_dict(values)


def test_a_round_has_its_own_clip_norm_noise_and_grid_and_the_same_privacy_loss() -> None:
    whole = Mechanism(**VALUES, clip_norm_schedule=FALLING)
    assert [whole.in_round(number).clip_norm for number in (1, 2, 11)] == [0.75, 1.5, 1.5 * 0.1]
    for number in range(1, 12):
        of_round = whole.in_round(number)
        assert of_round.clip_norm_schedule is None
        assert of_round.noise_std == 2.0 * of_round.clip_norm
        assert 2**20 * of_round.grid <= of_round.noise_std < 2**21 * of_round.grid
        assert of_round.event(steps=3) == whole.event(steps=3)
        assert dataclasses.replace(of_round, clip_norm=1.5, clip_norm_schedule=FALLING) == whole
    for number in (0, 12):
        with pytest.raises(ValueError, match="a round in"):
            whole.in_round(number)


def test_without_a_schedule_every_round_is_alike_and_written_as_ever() -> None:
    plain = Mechanism(**VALUES)
    assert plain.in_round(1) is plain.in_round(10**6) is plain
    assert "clip_norm_schedule" not in plain.to_dict()


def test_a_schedule_survives_json_and_a_damaged_one_is_refused() -> None:
    whole = Mechanism(**VALUES, clip_norm_schedule=FALLING)
    values = json.loads(json.dumps(whole.to_dict()))
    assert Mechanism.from_dict(values) == whole
    assert hash(Mechanism.from_dict(values)) == hash(whole)
    course = values["clip_norm_schedule"]
    for wrong in (
        {**course, "rounds": 0},
        {**course, "final_fraction": 1.5},
        {**course, "warmup_rounds": "1"},
        {**course, "power": 2},
        {"shape": "linear"},
        "linear",
        7,
    ):
        with pytest.raises(ValueError, match=r"(?i)expected"):
            Mechanism.from_dict({**values, "clip_norm_schedule": wrong})


def test_no_round_may_have_a_clip_norm_that_float32_cannot_honour() -> None:
    with pytest.raises(ValueError, match=r"clip_norm >= 1e-06 in all rounds"):
        Mechanism(**{**VALUES, "clip_norm": 5e-6}, clip_norm_schedule=FALLING)


SECURE: dict[str, Any] = {**VALUES, "local_steps": 1, "trust": "secure", "honest_sites": 4}


@pytest.mark.parametrize(
    ("name", "value"), [("local_steps", 2), ("honest_sites", 0), ("honest_sites", 10_001)]
)
def test_a_secure_sum_has_one_step_and_shares(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        Mechanism(**{**SECURE, name: value})


def test_a_site_adds_a_share_and_all_shares_are_the_noise_that_is_counted() -> None:
    secure = Mechanism(**SECURE)
    local = dataclasses.replace(secure, trust="local", honest_sites=1)
    assert secure.share_std * math.sqrt(4) == pytest.approx(secure.noise_std) == 3.0
    assert (local.share_std, local.noise_std) == (3.0, 3.0)
    # Sites whose integers are added must have one grid, however many they are.
    assert secure.grid == local.grid
    assert secure.event(steps=7) == local.event(steps=7)
    assert secure.as_counted == local.as_counted


def test_old_words_of_a_mechanism_stay_as_they_were() -> None:
    """Ledgers and signatures cover them."""
    local = Mechanism(**VALUES)
    assert {"trust", "honest_sites"}.isdisjoint(local.to_dict())
    secure = Mechanism(**SECURE)
    assert Mechanism.from_dict(json.loads(json.dumps(secure.to_dict()))) == secure
    assert Mechanism.from_dict(local.to_dict()) == local
