"""Where networks run: a device by name, or one clear error."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from medfl.config.site import DEVICE
from medfl.errors import ConfigError

if TYPE_CHECKING:
    import torch


def device_named(name: str, *, where: str) -> torch.device:
    """A device that is there.

    Args:
        name: ``cpu``, ``cuda`` or ``cuda:N``.
        where: File and key, or option, for the error.

    Raises:
        ConfigError: If the name is another, or the machine lacks the device.
    """
    if not re.fullmatch(DEVICE, name):
        raise ConfigError(f"{where}: expected 'cpu', 'cuda' or 'cuda:N', found {name!r}.")
    import torch

    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"{where}: expected a device of this machine ('cpu' and {torch.cuda.device_count()} "
            f"CUDA devices), found {name!r}.",
            code="device",
        )
    return device
