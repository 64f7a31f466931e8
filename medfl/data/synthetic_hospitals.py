"""Four synthetic hospitals with a site file each: the demo's patients, who belong to nobody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medfl.data.phantom import hospital_looks, write_hospital
from medfl.errors import DataError

HELD_OUT = 0.25

_SITE_FILE = """\
# A synthetic hospital. Its patients belong to nobody, so its purpose is open-data: for simulation
# only, with baselines and shared metrics. A real hospital's file says purpose = "hospital".
name = "{name}"
purpose = "open-data"
declared_patients = {training}     # public number of training patients, without those held out
weight = {training}.0              # public weight of the site's update in the global model
state = "state/{name}"
device = "cpu"
threads = 2

[data]
root = "{name}"
layout = "brats2021"
label_scheme = "brats"
modalities = ["t1n", "t1c", "t2w", "t2f"]
held_out = {held_out}

[privacy]                  # the site's own policy: weaker proposals are refused
epsilon = 10.0             # budget
delta = 1e-5
min_noise_multiplier = 0.5
max_clip_norm = 1.0
max_sampling_prob = 0.5
max_local_steps = 20
max_rounds = 200
share_metrics = true       # open data only
allow_baselines = true     # open data only
"""


def write_hospitals(
    out: Path,
    *,
    patients: tuple[int, int, int, int],
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    skull_stripped: bool,
    seed: int,
    on_patient: Callable[[], None],
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
        training = patients[number] - round(HELD_OUT * patients[number])
        file = out / f"{name}.toml"
        text = _SITE_FILE.format(name=name, training=training, held_out=HELD_OUT)
        file.write_text(text, encoding="utf-8")
        files.append(file)
    return files
