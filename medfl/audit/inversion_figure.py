"""The picture of a gradient inversion: a patient beside what a server recovers of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from medfl.audit.inversion import FloatArray, Inversion
from medfl.durable import written_aside

_RESOLUTION = 160  # dots per inch
_INK = "#1f2933"


def draw(result: Inversion, path: Path) -> None:
    """Write one axial slice three times as PNG, in radiological view and with one grey scale.

    Args:
        result: What was recovered.
        path: The file; its folder is made if missing.
    """
    panels: list[tuple[FloatArray, str]] = [
        (result.patient_DHW, "patient\n(synthetic)"),
        (
            result.without_noise_DHW,
            f"recovered without noise\n(r = {_r(result.correlation_without_noise)})",
        ),
        (
            result.with_noise_DHW,
            f"recovered with noise, epsilon {result.epsilon:.3g}\n"
            f"(r = {_r(result.correlation_with_noise)})",
        ),
    ]
    brightest = float(np.percentile(result.patient_DHW[result.patient_DHW > 0], 99.5))
    right, anterior, _ = result.spacing_mm
    figure = Figure(figsize=(9.6, 4.5), layout="constrained")
    for axes, (volume_DHW, title) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        # Rows from anterior to posterior, columns from the patient's right to left.
        shades = volume_DHW[::-1, ::-1, result.axial_slice].T
        axes.imshow(shades, cmap="gray", vmin=0, vmax=brightest, aspect=anterior / right)
        axes.set_title(title, fontsize=13, color=_INK)
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as draft:
        figure.savefig(draft, dpi=_RESOLUTION, bbox_inches="tight", pad_inches=0.12)


def _r(value: float) -> str:
    """Two decimals without the leading zero, as correlations are written, and a true minus."""
    return f"{value:.2f}".replace("0.", ".").replace("-", "\N{MINUS SIGN}")
