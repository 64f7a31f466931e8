"""A picture of the synthetic hospitals: one patient of each, as its scanner shows them.

    python pipelines/phantom_montage.py [OUT.png]

A row is a hospital; two of the rows are skull-stripped, two show the whole head. The last column
is what `medfl phantom` writes as the mask: necrotic core, oedema, enhancing tumour.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from medfl.config.site import MODALITY_ORDER
from medfl.phantom.lesion import ENHANCING_LABEL, NECROSIS_LABEL, OEDEMA_LABEL
from medfl.phantom.patient import PhantomPatient, hospital_looks, make_patient

OUT = Path(__file__).resolve().parents[1] / "notebooks" / "images" / "phantoms.png"
SPACING = (1.1, 1.1, 1.2)
# Brain alone, and whole head.
SHAPES = ((140, 176, 128), (164, 204, 150))
SEED = 40
BRIGHTEST = 99.5  # percentile of the voxels above 0 that is shown white

PARTS = {
    NECROSIS_LABEL: ("necrotic core", "#d1495b"),
    OEDEMA_LABEL: ("oedema", "#4f9d69"),
    ENHANCING_LABEL: ("enhancing", "#edae49"),
}
HEADS = {"t1n": "T1", "t1c": "T1 contrast", "t2w": "T2", "t2f": "T2-FLAIR"}


def main(out: Path) -> None:
    """Draw one patient of each hospital and write the picture."""
    looks = hospital_looks()
    figure = Figure(figsize=(9, 8.6), facecolor="black")
    rows = figure.subplots(len(looks), len(MODALITY_ORDER) + 1, squeeze=False)
    figure.subplots_adjust(left=0.03, right=1, top=0.96, bottom=0.04, wspace=0.02, hspace=0.02)
    for number, (axes, look) in enumerate(zip(rows, looks.values(), strict=True)):
        patient = make_patient(
            shape=SHAPES[number % 2],
            spacing=SPACING,
            look=look,
            skull_stripped=number % 2 == 0,
            seed=SEED + number,
        )
        _draw(list(axes), patient)
        axes[0].text(
            -0.04, 0.5, look.name, color="white", rotation=90, va="center", ha="right",
            transform=axes[0].transAxes,
        )  # fmt: skip
    for axis, modality in zip(rows[0], MODALITY_ORDER, strict=False):
        axis.set_title(HEADS[modality], color="white", fontsize=10)
    rows[0][-1].set_title("mask", color="white", fontsize=10)
    figure.legend(
        handles=[Patch(color=colour, label=name) for name, colour in PARTS.values()],
        loc="lower center",
        ncols=len(PARTS),
        frameon=False,
        labelcolor="white",
        fontsize=9,
    )
    figure.savefig(out, dpi=100)


def _draw(axes: list[Axes], patient: PhantomPatient) -> None:
    """The axial slice with most tumour, in every modality and with its mask."""
    height = int((patient.labels > 0).sum(axis=(0, 1)).argmax())
    for axis, modality in zip(axes, MODALITY_ORDER, strict=False):
        image = patient.images[modality]
        white = np.percentile(image[image > 0], BRIGHTEST)
        axis.imshow(_upright(image, height), cmap="gray", vmin=0, vmax=white)
    flair = patient.images["t2f"]
    axes[-1].imshow(_upright(flair, height), cmap="gray", vmin=0, vmax=2 * flair.max())
    mask = _upright(patient.labels, height)
    colours = ListedColormap([colour for _, colour in PARTS.values()])
    numbered = np.select([mask == label for label in PARTS], range(len(PARTS)), default=-1)
    axes[-1].imshow(
        np.ma.masked_less(numbered, 0), cmap=colours, vmin=0, vmax=len(PARTS) - 1, alpha=0.9
    )
    for axis in axes:
        axis.set_axis_off()


def _upright(volume: NDArray[Any], height: int) -> NDArray[Any]:
    """Radiological view: anterior up, the patient's right on the left."""
    return volume[:, :, height].T[::-1]


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
