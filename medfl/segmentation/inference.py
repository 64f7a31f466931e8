"""From a network that knows crops to probabilities of a whole image.

Bundles carry a copy of this module.
"""

from __future__ import annotations

import torch
from monai.inferers import SlidingWindowInferer
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from medfl.segmentation.heads import main_head

_WINDOWS_AT_ONCE = 4
_RIGHT_AXIS = 1  # of a CDHW tensor: the only axis that training mirrors


def segment(
    network: nn.Module,
    image_CDHW: Tensor,
    *,
    window_size: tuple[int, int, int],
    device: torch.device | str,
    overlap: float = 0.5,
    mirrored: bool = False,
) -> Tensor:
    """Slide a window over one image and blend the logits.

    Overlapping windows are averaged with Gaussian weights. An image smaller than the window is
    padded with zeros, and the result is cut back.

    Args:
        network: Its main head gives logits of shape KRDHW; it is moved to `device`.
        image_CDHW: Prepared image, of any size and on any device.
        window_size: Voxels of one window.
        device: Where the network runs.
        overlap: Fraction of a window that it shares with the next one, in [0, 1).
        mirrored: Also segment the mirror image, left to right, and average both.

    Returns:
        Float32 probabilities of shape RDHW, on the CPU, without gradient.

    Raises:
        ValueError: If the image has no four axes, or `overlap` is out of range.
    """
    if image_CDHW.ndim != 4:
        raise ValueError(f"Expected an image of shape CDHW, found {tuple(image_CDHW.shape)}.")
    image = convert_to_tensor(image_CDHW, dtype=torch.float32, track_meta=False).unsqueeze(0)
    inferer = SlidingWindowInferer(
        roi_size=window_size,
        sw_batch_size=_WINDOWS_AT_ONCE,
        overlap=overlap,
        mode="gaussian",
        sw_device=device,
        device="cpu",
    )

    def logits_of(windows_KCDHW: Tensor) -> Tensor:
        # A lone window goes in twice: at batch size 1 torch's CPU convolution is four times slower.
        alone = len(windows_KCDHW) == 1
        output = network(torch.cat([windows_KCDHW] * 2) if alone else windows_KCDHW)
        logits = main_head(network, output)
        return logits[:1] if alone else logits

    def probabilities_of(image_KCDHW: Tensor) -> Tensor:
        logits_RDHW: Tensor = inferer(image_KCDHW, logits_of)[0]
        return torch.sigmoid(logits_RDHW)

    was_training = network.training
    network.to(device).eval()
    try:
        with torch.no_grad():
            probabilities_RDHW = probabilities_of(image)
            if mirrored:
                mirror_RDHW = probabilities_of(image.flip(1 + _RIGHT_AXIS)).flip(_RIGHT_AXIS)
                probabilities_RDHW = (probabilities_RDHW + mirror_RDHW) / 2
    finally:
        network.train(was_training)
    return probabilities_RDHW
