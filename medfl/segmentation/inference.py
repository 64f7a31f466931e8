"""From a network that knows crops to probabilities of a whole image."""

from __future__ import annotations

import torch
from monai.inferers import SlidingWindowInferer
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from medfl.segmentation.networks import Size

_WINDOWS_AT_ONCE = 4


def segment(
    network: nn.Module,
    image_CDHW: Tensor,
    *,
    window_size: Size,
    device: torch.device | str,
    overlap: float = 0.5,
) -> Tensor:
    """Slide a window over one image and blend the logits.

    Overlapping windows are averaged with Gaussian weights. An image smaller than the window is
    padded with zeros, and the result is cut back.

    Args:
        network: Gives logits of shape KRDHW; it is moved to `device`.
        image_CDHW: Prepared image, of any size and on any device.
        window_size: Voxels of one window.
        device: Where the network runs.
        overlap: Fraction of a window that it shares with the next one, in [0, 1).

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
    was_training = network.training
    network.to(device).eval()

    def logits_of(windows_KCDHW: Tensor) -> Tensor:
        # A lone window goes in twice: at batch size 1 torch's CPU convolution is four times slower.
        alone = len(windows_KCDHW) == 1
        logits: Tensor = network(torch.cat([windows_KCDHW] * 2) if alone else windows_KCDHW)
        return logits[:1] if alone else logits

    try:
        with torch.no_grad():
            logits_RDHW: Tensor = inferer(image, logits_of)[0]
    finally:
        network.train(was_training)
    return torch.sigmoid(logits_RDHW)
