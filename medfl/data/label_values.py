"""Whether the values of a mask are its scheme's, by NumPy alone: a check needs no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medfl.config.site import MaskScheme
from medfl.data.label_schemes import scheme_values

# How far a stored value may be from a whole number: some BraTS masks carry a scale factor a hair
# under 1, which turns 4 into 3.9999998.
LABEL_TOLERANCE = 1e-2


def judge_labels(
    label_DHW: NDArray[np.generic], *, scheme: MaskScheme
) -> tuple[NDArray[np.uint8], list[float]]:
    """Round label values, and name up to five that are fractional, not finite or not in the scheme.

    Returns:
        uint8 label_DHW, meaningless where a value is wrong, and the wrong values.
    """
    labels = np.ascontiguousarray(label_DHW, dtype=np.float32)
    with np.errstate(invalid="ignore"):  # of what no byte can hold, and infinity less itself
        rounded = np.rint(labels)
        whole = rounded.astype(np.uint8)
        # False for NaN, infinity, and what does not fit into a byte.
        sound = (np.abs(labels - rounded) <= LABEL_TOLERANCE) & (whole == rounded)
    present = np.flatnonzero(np.bincount(whole[sound], minlength=256)).tolist()
    allowed = scheme_values(scheme)
    wrong = [float(value) for value in present if value not in allowed]
    wrong += np.unique(labels[~sound]).tolist()  # sorting is slow: done for wrong values only
    return whole, wrong[:5]
