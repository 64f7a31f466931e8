"""Sliding windows: a network that looks at single voxels must not notice them."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from medfl.segmentation.inference import segment

CROP = (8, 8, 8)


class VoxelwiseNetwork(nn.Module):
    """Weighs the modalities of each voxel by itself, and records what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 0.25], [-1.0, 3.0]]))
        self.seen: list[tuple[torch.Size, bool]] = []

    def forward(self, crops: Tensor) -> Tensor:
        self.seen.append((crops.shape, self.training))
        return torch.einsum("rc,kcdhw->krdhw", self.weight, crops)


def image(*size: int) -> Tensor:
    return torch.randn(2, *size, generator=torch.Generator().manual_seed(1))


def expected(network: VoxelwiseNetwork, image_CDHW: Tensor) -> Tensor:
    return torch.sigmoid(torch.einsum("rc,cdhw->rdhw", network.weight.detach(), image_CDHW))


@pytest.mark.parametrize(
    "size",
    [(8, 8, 8), (16, 8, 24), (13, 9, 21), (5, 8, 11), (3, 2, 7), (1, 1, 1)],
    ids=str,
)
def test_result_has_the_image_size_and_no_seams(size: tuple[int, int, int]) -> None:
    network = VoxelwiseNetwork()
    probabilities = segment(network, image(*size), window_size=CROP, device="cpu")
    torch.testing.assert_close(probabilities, expected(network, image(*size)))


@pytest.mark.parametrize("size", [(8, 8, 8), (4, 8, 8), (20, 8, 8), (24, 8, 8)])
def test_every_window_has_the_crop_size_and_company(size: tuple[int, int, int]) -> None:
    network = VoxelwiseNetwork()
    segment(network, image(*size), window_size=CROP, device="cpu")
    shapes = [shape for shape, _ in network.seen]
    assert all(shape[0] >= 2 and tuple(shape[2:]) == CROP for shape in shapes)


def test_a_mirrored_image_is_turned_back_before_both_are_averaged() -> None:
    class Ramp(nn.Module):
        """Believes in the brightness more, the further right it is."""

        def forward(self, crops: Tensor) -> Tensor:
            return crops * torch.arange(CROP[0])[:, None, None]

    seen = image(*CROP)
    right, left = (
        segment(Ramp(), one, window_size=CROP, device="cpu") for one in (seen, seen.flip(1))
    )
    both = segment(Ramp(), seen, window_size=CROP, device="cpu", mirrored=True)
    assert not torch.equal(right, left.flip(1))
    torch.testing.assert_close(both, (right + left.flip(1)) / 2)


def test_network_is_asked_in_evaluation_mode_and_given_back_in_training_mode() -> None:
    network = VoxelwiseNetwork().train()
    segment(network, image(8, 8, 8), window_size=CROP, device="cpu")
    assert not any(training for _, training in network.seen)
    assert network.training


def test_training_mode_returns_even_if_the_network_fails() -> None:
    class Failing(VoxelwiseNetwork):
        def forward(self, crops: Tensor) -> Tensor:
            raise RuntimeError(f"no {crops.ndim} axes")

    network = Failing().train()
    with pytest.raises(RuntimeError, match="no"):
        segment(network, image(8, 8, 8), window_size=CROP, device="cpu")
    assert network.training


def test_probabilities_are_plain_float32_without_gradient() -> None:
    source = MetaTensor(image(9, 8, 8).double())
    probabilities = segment(VoxelwiseNetwork(), source, window_size=CROP, device="cpu")
    assert type(probabilities) is Tensor
    assert probabilities.dtype == torch.float32
    assert not probabilities.requires_grad
    assert ((probabilities >= 0) & (probabilities <= 1)).all()


def test_image_is_left_as_it_was() -> None:
    source = image(5, 9, 8)
    segment(VoxelwiseNetwork(), source, window_size=CROP, device="cpu")
    assert torch.equal(source, image(5, 9, 8))


def test_middle_of_a_window_outweighs_the_rim_of_its_neighbour() -> None:
    class RimAlarm(nn.Module):
        def forward(self, crops: Tensor) -> Tensor:
            logits = torch.zeros_like(crops[:, :1])
            logits[:, :, :2] = 10.0
            return logits

    # Windows start at 0, 4 and 8; the second one's rim is the middle of the first.
    probabilities = segment(RimAlarm(), image(16, 8, 8), window_size=CROP, device="cpu")
    blended = torch.logit(probabilities[0, 4, 4, 4])
    assert 0 < float(blended) < 1  # equal weights would give 5


def test_image_without_a_modality_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="CDHW"):
        segment(VoxelwiseNetwork(), torch.zeros(8, 8, 8), window_size=CROP, device="cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_same_probabilities_on_the_cpu() -> None:
    network = VoxelwiseNetwork()
    wanted = expected(network, image(13, 9, 21))
    probabilities = segment(network, image(13, 9, 21), window_size=CROP, device="cuda")
    assert probabilities.device.type == "cpu"
    torch.testing.assert_close(probabilities, wanted, rtol=1e-3, atol=1e-4)


class ManyHeads(VoxelwiseNetwork):
    """Its main head and two that must not be asked."""

    def forward(self, crops: Tensor) -> list[Tensor]:  # type: ignore[override]
        logits = super().forward(crops)
        return [logits, -logits, logits[..., ::2, ::2, ::2]]


@pytest.mark.parametrize("size", [(8, 8, 8), (13, 9, 21)])
def test_the_main_head_segments(size: tuple[int, int, int]) -> None:
    network = ManyHeads()
    probabilities = segment(network, image(*size), window_size=CROP, device="cpu")
    torch.testing.assert_close(probabilities, expected(network, image(*size)))
