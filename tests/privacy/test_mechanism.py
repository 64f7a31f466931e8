import dataclasses
import json
import math
from typing import Any

import dp_accounting
import pytest

from medfl.privacy.mechanism import Mechanism

VALUES: dict[str, Any] = {
    "sampling_prob": 0.3,
    "noise_multiplier": 2.0,
    "clip_norm": 1.5,
    "clipping": "normalised",
    "local_steps": 4,
    "declared_patients": 20,
}


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
