"""Four synthetic hospitals with a site file each: the demo's patients, who belong to nobody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medfl.config.open_data_site import open_data_site
from medfl.config.site import MODALITY_ORDER
from medfl.durable import write_atomically
from medfl.errors import DataError
from medfl.phantom.patient import hospital_looks, write_hospital

HELD_OUT = 0.25
# Steps and folds of a hospital's own training: on a demo's small images, in a demo's time.
ADAPT = (25, 2)


def write_hospitals(
    out: str | Path,
    *,
    patients: tuple[int, int, int, int],
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    skull_stripped: bool = True,
    seed: int = 7,
    on_patient: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Write the cohorts of north, east, south and west, and a site file for each.

    Args:
        out: A new or empty folder.
        patients: Patients of each hospital, a quarter of them to be held out.
        shape: Voxels along right, anterior, superior.
        spacing: Millimetres per voxel.
        skull_stripped: False keeps skull and scalp.
        seed: Another seed gives other patients.
        on_patient: Called after each patient.

    Returns:
        The site files.

    Raises:
        DataError: If `out` holds files.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: expected a new or empty folder, found files.")
    files = []
    for number, (name, look) in enumerate(hospital_looks().items()):
        write_hospital(
            out / name,
            patients=patients[number],
            shape=shape,
            spacing=spacing,
            look=look,
            skull_stripped=skull_stripped,
            seed=seed + 1000 * number,
            first_number=sum(patients[:number]),
            on_patient=lambda _: on_patient(),
        )
        file = out / f"{name}.toml"
        text = open_data_site(
            name,
            about="A synthetic hospital. Its patients belong to nobody",
            root=name,
            layout="brats2021",
            label_scheme="brats",
            modalities=MODALITY_ORDER,
            patients=patients[number],
            held_out=HELD_OUT,
            adapt=ADAPT,
        )
        write_atomically(file, text.encode())
        files.append(file)
    return files
