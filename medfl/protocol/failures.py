"""What a failure at a site is called, and what the site's own log says of it.

The code may leave the site. The log stays there, but more people read it than the images: it gets
one short line a failure, and no text that may name a patient. Texts about images name files, and
those of unforeseen failures may hold anything, so both are left out; `medfl check` names the file.

A site never tries again by itself: that would be another charge, for what will most likely fail
again. The next round is the next try.
"""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

from medfl.errors import DataError, MedflError

OUT_OF_MEMORY = "out-of-memory"

MAX_CHARACTERS = 400
"""Of the text of one failure in a log; a server chooses parts of some."""

_PLACES = 3
# How torch says it where it has no class of its own for it: on a CPU, and inside cuDNN and cuBLAS.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


def code_of(error: Exception) -> str:
    """The word for a failure that may leave the site."""
    if isinstance(error, MedflError):
        return error.code
    return OUT_OF_MEMORY if _is_out_of_memory(error) else "internal"


def line_of(error: Exception) -> str:
    """A failure in one line for the site's own log, without control characters."""
    if isinstance(error, DataError):
        return "Expected images that can be used, found a fault; `medfl check` names the file."
    if isinstance(error, MedflError):
        return _one_line(str(error))
    if _is_out_of_memory(error):
        return (
            "Expected memory for one patient's crops, found too little; what was charged stays. "
            "End other programs on this device, set device = 'cpu' in the site's file, or ask the "
            "coordinator for smaller patients at once (input.crop_size, input.crops_per_patient)."
        )
    places = traceback.extract_tb(error.__traceback__)[-_PLACES:]
    way = ", ".join(f"{Path(place.filename).name}:{place.lineno}" for place in places)
    return _one_line(f"Expected no failure, found {type(error).__name__} at {way}.")


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def _one_line(text: str) -> str:
    line = "".join(sign if sign.isprintable() else " " for sign in text)
    line = " ".join(line.split())
    return line if len(line) <= MAX_CHARACTERS else f"{line[: MAX_CHARACTERS - 3]}..."
