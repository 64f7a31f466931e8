"""A picture of synthetic patients: the true outline beside the predicted one.

Each patient is shown on the axial slice that holds most of the tumour, in radiological view (the
patient's right is on the left). Real patients' images never come here: they never leave a
site, so a run folder has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from nibabel.filebasedimages import ImageFileError

from medfl.errors import ReportError
from medfl.reporting import wording
from medfl.reporting.texts import ENGLISH, Texts
from medfl.runs.records import Region
from medfl.runs.results import Prediction, RunResults

MAX_PATIENTS = 4
MAX_VOXELS = 2**26

# BraTS labels of each region; the whole tumour is every label, so that it fits all schemes.
REGION_LABELS: dict[Region, tuple[int, ...]] = {"TC": (1, 4), "ET": (4,)}
OUTLINES: dict[Region, tuple[str, Literal["solid", "dashed"]]] = {
    "WT": ("#56b4e9", "solid"),
    "TC": ("#f0e442", "solid"),
    "ET": ("#ff7bac", "dashed"),
}
_WINDOW = (1, 99.5)  # percentiles of the head: a few bright voxels must not dim the rest
_MARGIN = 3  # voxels of background around the head

Array = npt.NDArray[Any]


def draw_montage(run: RunResults, texts: Texts = ENGLISH) -> Figure:
    """Up to four patients, truth above and prediction below.

    Raises:
        ReportError: If an image cannot be read, or the three of a patient do not fit together.
    """
    shown = run.predictions[:MAX_PATIENTS]
    regions: list[Region] = [region for region in OUTLINES if region in run.study.input.regions]
    figure = Figure(figsize=(2.4 * max(2, len(shown)), 5.6), layout="constrained")
    panels = figure.subplots(2, len(shown), squeeze=False)
    for column, prediction in enumerate(shown):
        shades, truth, segmentation, aspect = _slices(prediction)
        panels[0, column].set_title(texts("figure.montage.patient", number=column + 1))
        for panel, labels in zip(panels[:, column], (truth, segmentation), strict=True):
            _draw(panel, shades, labels, regions=regions, aspect=aspect)
    titles = (texts("figure.montage.truth"), texts("figure.montage.prediction"))
    for panel, title in zip(panels[:, 0], titles, strict=True):
        panel.set_ylabel(title, fontweight="bold")
    names = [wording.region_name(region, texts) for region in regions]
    marks = [
        Line2D([], [], color=OUTLINES[region][0], linestyle=OUTLINES[region][1], linewidth=3)
        for region in regions
    ]
    legend = figure.legend(marks, names, loc="outside lower center", ncols=len(names))
    legend.get_frame().set(facecolor="#2b333a", alpha=1)
    legend.set_frame_on(True)
    for text in legend.get_texts():
        text.set_color("white")
    return figure


def _slices(prediction: Prediction) -> tuple[Array, Array, Array, float]:
    """Grey values, true labels and predicted labels of one slice, and its voxels' aspect."""
    scan, spacing = _volume(prediction.image)
    truth, _ = _volume(prediction.truth)
    segmentation, _ = _volume(prediction.segmentation)
    for path, volume in ((prediction.truth, truth), (prediction.segmentation, segmentation)):
        if volume.shape != scan.shape:
            raise ReportError(f"{path}: expected the shape {scan.shape}, found {volume.shape}")
    depth = int(np.argmax((truth > 0).sum(axis=(0, 1))))
    image = scan[:, :, depth]
    head = image != image[0, 0]  # a corner is background, also where intensities are centred on 0
    kept = _around_head(head)
    shades, true, predicted = (
        _radiological(plane[kept])
        for plane in (_shades(image, head), truth[:, :, depth], segmentation[:, :, depth])
    )
    return shades, true, predicted, spacing[1] / spacing[0]


def _volume(path: Path) -> tuple[Array, tuple[float, ...]]:
    """Voxels along right, anterior, superior, and their spacing in mm."""
    try:
        image: Any = nib.load(path)
        if len(image.shape) != 3 or not 0 < np.prod(image.shape) <= MAX_VOXELS:
            raise ReportError(
                f"{path}: expected three axes and at most {MAX_VOXELS} voxels, found {image.shape}"
            )
        image = nib.as_closest_canonical(image)
        voxels = np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32))
    except (OSError, EOFError, ValueError, ImageFileError) as error:
        raise ReportError(f"{path}: expected a NIfTI image, found: {error}") from None
    return voxels, tuple(float(mm) for mm in image.header.get_zooms())


def _around_head(head: Array) -> tuple[slice, slice]:
    """Bounds of the part of a slice that is not background."""
    bounds = []
    for length, used in zip(head.shape, (head.any(axis=1), head.any(axis=0)), strict=True):
        inside = np.flatnonzero(used) if used.any() else np.arange(length)
        bounds.append(slice(max(0, int(inside[0]) - _MARGIN), int(inside[-1]) + _MARGIN + 1))
    return bounds[0], bounds[1]


def _radiological(image: Array) -> Array:
    """Rows from anterior to posterior, columns from the patient's right to left."""
    return image[::-1, ::-1].T


def _shades(image: Array, head: Array) -> Array:
    """Grey values in [0, 1]; the background is black whatever the intensities' origin."""
    tissue = image[head] if head.any() else image
    low, high = np.percentile(tissue, _WINDOW)
    span = max(float(high - low), 1e-6)
    # Head room on both sides: dark tissue differs from background, bright tumour is not flat.
    return np.where(head, np.clip((image - low + 0.3 * span) / (1.5 * span), 0, 1), 0)


def _draw(
    panel: Axes, shades: Array, labels: Array, *, regions: Sequence[Region], aspect: float
) -> None:
    panel.imshow(shades, cmap="gray", vmin=0, vmax=1, aspect=aspect, interpolation="bilinear")
    for region in regions:
        colour, style = OUTLINES[region]
        inside = np.isin(labels, REGION_LABELS[region]) if region != "WT" else labels > 0
        if inside.any() and not inside.all():
            panel.contour(
                inside.astype(float),
                levels=[0.5],
                colors=[colour],
                linestyles=[style],
                linewidths=1.8,
            )
    panel.set(xticks=[], yticks=[])
    panel.grid(visible=False)
    for spine in panel.spines.values():
        spine.set_visible(False)
