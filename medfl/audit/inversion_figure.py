"""The picture of a gradient inversion: a patient beside what a server recovers of them.

There are no words on it: the report says what it shows, in the language of its reader.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from medfl.audit.inversion import FloatArray, Inversion
from medfl.durable import written_aside

_RESOLUTION = 160  # dots per inch


def draw(result: Inversion, path: Path) -> None:
    """Write one axial slice three times as PNG, in radiological view and with one grey scale.

    Args:
        result: What was recovered.
        path: The file; its folder is made if missing.
    """
    panels: list[FloatArray] = [
        result.patient_DHW,
        result.without_noise_DHW,
        result.with_noise_DHW,
    ]
    brightest = float(np.percentile(result.patient_DHW[result.patient_DHW > 0], 99.5))
    right, anterior, _ = result.spacing_mm
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    for axes, volume_DHW in zip(figure.subplots(1, len(panels)), panels, strict=True):
        # Rows from anterior to posterior, columns from the patient's right to left.
        shades = volume_DHW[::-1, ::-1, result.axial_slice].T
        axes.imshow(shades, cmap="gray", vmin=0, vmax=brightest, aspect=anterior / right)
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as draft:
        figure.savefig(draft, dpi=_RESOLUTION, bbox_inches="tight", pad_inches=0.12)
