"""A curious server recovers a patient from an update without noise, and not from one with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from medfl.audit.inversion import ITERATIONS, Inversion, invert_update, recover, released_sum
from medfl.audit.inversion_figure import draw
from medfl.privacy.mechanism import Mechanism
from medfl.privacy.noise import SecureNormal
from medfl.segmentation.losses import patient_loss

STEPS = 60
DELTA = 1e-5
SEED = 3


@pytest.fixture(scope="module")
def mechanism() -> Mechanism:
    """A site's mechanism of a study at epsilon 8, with noise that can be repeated."""
    return Mechanism(
        sampling_prob=0.3,
        noise_multiplier=1.6197,
        clip_norm=1.0,
        clipping="normalised",
        local_steps=1,
        declared_patients=27,
        noise_origin="seeded",
    )


def inverted(mechanism: Mechanism, *, iterations: int) -> Inversion:
    return invert_update(
        mechanism=mechanism,
        steps=STEPS,
        delta=DELTA,
        seed=SEED,
        iterations=iterations,
        advance=lambda *_: None,
    )


@pytest.fixture(scope="module")
def short(mechanism: Mechanism) -> Inversion:
    return inverted(mechanism, iterations=2)


def tiny_step() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    network = nn.Conv3d(1, 2, kernel_size=3, padding=1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    image = torch.rand((1, 1, 4, 4, 4), generator=generator)
    regions = (torch.rand((1, 2, 4, 4, 4), generator=generator) > 0.5).to(torch.uint8)
    return network, image, regions


def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def test_server_sees_the_clipped_gradient_where_there_is_no_noise(mechanism: Mechanism) -> None:
    network, image, regions = tiny_step()
    seen = released_sum(
        network,
        image,
        regions,
        mechanism=replace(mechanism, noise_multiplier=0.0, clip_norm=0.1, clipping="fixed"),
        source=SecureNormal.seeded(0),
    )
    gradient = flat(
        list(torch.autograd.grad(patient_loss(network(image), regions), network.parameters()))
    )
    expected = gradient * min(1.0, 0.1 / float(gradient.norm()))
    assert float(gradient.norm()) > 0.1
    torch.testing.assert_close(flat(seen), expected, atol=1e-5, rtol=1e-3)


def test_noise_of_the_mechanism_is_on_every_coordinate(mechanism: Mechanism) -> None:
    network = nn.Conv3d(1, 200, kernel_size=3, padding=1)
    image = torch.rand((1, 1, 4, 4, 4))
    regions = torch.zeros((1, 200, 4, 4, 4))
    with_noise, without = (
        flat(released_sum(network, image, regions, mechanism=each, source=SecureNormal.seeded(5)))
        for each in (mechanism, replace(mechanism, noise_multiplier=0.0))
    )
    noise = with_noise - without
    # The standard error of a standard deviation over 5600 values is 1 %.
    assert float(noise.std()) == pytest.approx(mechanism.noise_std, rel=0.04)
    assert float(noise.abs().min()) > 0


def test_attack_lowers_its_objective_on_a_network_of_one_layer() -> None:
    network, image, regions = tiny_step()
    update = list(torch.autograd.grad(patient_loss(network(image), regions), network.parameters()))

    def distance(guess: torch.Tensor) -> float:
        own = torch.autograd.grad(patient_loss(network(guess), regions), network.parameters())
        return 1 - float(torch.cosine_similarity(flat(list(own)), flat(update), dim=0))

    done: list[tuple[int, int]] = []
    recovered = recover(
        network,
        update,
        regions_KRDHW=regions,
        seed=1,
        iterations=60,
        on_iteration=lambda *progress: done.append(progress),
    )
    start = torch.rand(image.shape, generator=torch.Generator().manual_seed(1))
    assert distance(recovered) < distance(start) / 10
    assert recovered.shape == image.shape
    assert (done[0], done[-1]) == ((1, 60), (60, 60))


@pytest.mark.slow
def test_result_follows_from_its_arguments_and_not_from_torchs_seed(
    mechanism: Mechanism, short: Inversion
) -> None:
    torch.manual_seed(12345)
    again = inverted(mechanism, iterations=2)
    for name in ("patient_DHW", "without_noise_DHW", "with_noise_DHW"):
        assert np.array_equal(getattr(again, name), getattr(short, name))
    assert not np.array_equal(short.without_noise_DHW, short.with_noise_DHW)


def test_promise_and_noise_are_stated_beside_the_picture(short: Inversion) -> None:
    assert 7.9 < short.epsilon <= 8.0
    assert (short.delta, short.noise_origin) == (DELTA, "seeded")
    assert short.noise_over_signal > 100


def test_noise_of_the_operating_system_differs_each_time(
    mechanism: Mechanism, short: Inversion
) -> None:
    fresh = inverted(replace(mechanism, noise_origin="operating-system"), iterations=2)
    assert np.array_equal(fresh.without_noise_DHW, short.without_noise_DHW)
    assert not np.array_equal(fresh.with_noise_DHW, short.with_noise_DHW)


def test_picture_shows_three_panels(short: Inversion, tmp_path: Path) -> None:
    path = tmp_path / "figures" / "inversion.png"
    draw(short, path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[1] > 1000
    thirds = np.array_split(pixels[pixels.shape[0] // 4 :], 3, axis=1)
    assert all(len(np.unique(third)) > 20 for third in thirds)


@pytest.mark.slow
def test_patient_is_recovered_without_noise_and_not_with_it(mechanism: Mechanism) -> None:
    result = inverted(mechanism, iterations=ITERATIONS)
    assert result.correlation_without_noise > 0.9
    assert abs(result.correlation_with_noise) < 0.2
