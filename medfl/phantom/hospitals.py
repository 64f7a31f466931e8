"""Synthetic hospitals with a site file each: patients who belong to nobody, for demo and rehearsal.

For a simulation their purpose is open-data, and the same seed gives the same patients. What is to
be deployed needs ledgers, and a machine's witness never forgets the patients of a ledger, by name
and image: these have numbers that no real case has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from medfl.config.open_data_site import open_data_site
from medfl.config.site import MODALITY_ORDER, Purpose, SiteData
from medfl.config.site_template import site_file_for
from medfl.durable import write_atomically
from medfl.errors import DataError
from medfl.phantom.patient import hospital_looks, public_look, write_hospital
from medfl.phantom.scanner import ScannerLook

HELD_OUT = 0.25
# Steps and folds of a hospital's own training: on a demo's small images, in a demo's time.
ADAPT = (25, 2)

_FURTHER = ("northeast", "southeast", "southwest", "northwest")
# Far from the looks of public synthetic patients, whose seeds are numbers in a study.
_FIRST_LOOK = 0x40591A1
# The real collection numbers its patients by five digits.
_FIRST_NUMBER = 10**14
_NUMBERS = 10**13


def hospital_names(count: int) -> tuple[str, ...]:
    """Names of so many hospitals: the four of the demo, four more, then numbers."""
    named = (*hospital_looks(), *_FURTHER)
    return (*named, *(f"hospital-{number}" for number in range(len(named) + 1, count + 1)))[:count]


def write_hospitals(
    out: str | Path,
    *,
    patients: Sequence[int],
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    skull_stripped: bool = True,
    seed: int = 7,
    purpose: Purpose = "open-data",
    on_patient: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Write the cohort of each hospital, and a site file for it.

    Args:
        out: A new or empty folder.
        patients: Patients of each hospital. Of open data a quarter is held out.
        shape: Voxels along right, anterior, superior.
        spacing: Millimetres per voxel.
        skull_stripped: False keeps skull and scalp.
        seed: Another seed gives other patients.
        purpose: ``hospital`` writes files that can be deployed, each with a private state folder
            in `out` for keys and ledger.
        on_patient: Called after each patient.

    Returns:
        The site files.

    Raises:
        DataError: If `out` holds files.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: expected a new or empty folder, found files.")
    first = _first_number(seed) if purpose == "hospital" else 0
    files = []
    numbers = accumulate(patients, initial=first)
    for place, (name, count, number) in enumerate(
        zip(hospital_names(len(patients)), patients, numbers, strict=False)
    ):
        write_hospital(
            out / name,
            patients=count,
            shape=shape,
            spacing=spacing,
            look=_look_of(name, place=place),
            skull_stripped=skull_stripped,
            seed=seed + 1000 * place,
            first_number=number,
            on_patient=lambda _: on_patient(),
        )
        file = out / f"{name}.toml"
        if purpose == "hospital":
            text = _deployable(out.resolve(), name=name, patients=count)
        else:
            text = _simulated(name, patients=count)
        write_atomically(file, text.encode())
        files.append(file)
    return files


def _look_of(name: str, *, place: int) -> ScannerLook:
    looks = hospital_looks()
    # A modality that was filled in with another one would be no hospital's that scans all four.
    further = replace(public_look(_FIRST_LOOK + place), name=name, missing=())
    return looks.get(name, further)


def _first_number(seed: int) -> int:
    drawn = np.random.SeedSequence([seed]).generate_state(1, np.uint64)[0]
    return _FIRST_NUMBER + int(drawn) % _NUMBERS


def _simulated(name: str, *, patients: int) -> str:
    return open_data_site(
        name,
        about="A synthetic hospital. Its patients belong to nobody",
        root=name,
        layout="brats2021",
        label_scheme="brats",
        modalities=MODALITY_ORDER,
        patients=patients,
        held_out=HELD_OUT,
        adapt=ADAPT,
    )


def _deployable(out: Path, *, name: str, patients: int) -> str:
    """A site file like a real hospital's, which may be moved: all of its paths are absolute."""
    state = out / "state" / name
    state.parent.mkdir(mode=0o700, exist_ok=True)
    state.mkdir(mode=0o700)
    data = SiteData(
        root=out / name, layout="brats2021", label_scheme="brats", modalities=MODALITY_ORDER
    )
    return site_file_for(
        data,
        name=name,
        patients=patients,
        remarks=["A synthetic hospital, to try a deployment with: its patients belong to nobody."],
        state=state,
        threads=1,
        trust=("local", "secure"),
    )
