"""What a bundle does with its images; copied into each, and without any import of medfl."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch


def segment(
    dataset: Iterable[Mapping[str, Any]],
    *,
    network: torch.nn.Module,
    checkpoint: str,
    inferer: Callable[..., Any],
    postprocessing: Callable[[dict[str, Any]], Any],
    device: torch.device,
) -> int:
    """Segment and save every image; returns how many there were."""
    network.load_state_dict(torch.load(checkpoint, weights_only=True, map_location=device))
    network.eval()
    count = 0
    with torch.no_grad():
        for item in dataset:
            logits = inferer(item["image"][None].to(device), network)[0].cpu()
            postprocessing({**item, "pred": logits})
            count += 1
    return count
