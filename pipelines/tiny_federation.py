"""A federation whose training takes next to nothing, of any number of sites and two payloads.

Each site has its own state. Sites with open data read the same few synthetic patients, hospitals
their own, since one ledger of a machine pays for a patient. Training must not hide what federating
costs: crops are tiny, and a round is one step.
"""

from __future__ import annotations

import os
from pathlib import Path

from medfl.config import SiteConfig, StudyConfig, load_site, load_study
from medfl.config.site import Purpose
from medfl.phantom.patient import hospital_looks, write_hospital
from medfl.protocol.keys import KEYS, PUBLIC, SiteKeys
from medfl.site.state import create_ledger

PATIENTS = 4
ROUNDS = 3
# Where a round takes long, one after the first has to do.
FEW_ROUNDS = 2
MANY_SITES = 32

# Megabytes of float32 by name, about: arguments of MONAI's SegResNet.
PAYLOADS = {
    1: "{ init_filters = 24, blocks_down = [1, 1], blocks_up = [1] }",
    20: "{ init_filters = 40, blocks_down = [1, 2, 2], blocks_up = [1, 1] }",
}

_STUDY = """
id = "overhead"

[input]
modalities = ["t1n", "t1c", "t2w", "t2f"]
regions = ["TC", "WT", "ET"]
crop_size = [8, 8, 8]

[network]
name = "SegResNet"
arguments = {network}

[privacy]
epsilon = 8.0
sampling_prob = 0.3

[training]
rounds = {rounds}
local_steps = 1
optimizer = "sgd"
learning_rate = 0.1

[aggregation]
strategy = "fedadam"
server_learning_rate = 1e-3
min_sites = {sites}
round_timeout_seconds = 600.0

[evaluation]
every = 1000
pictures = 0
"""

_SITE = """
name = "{name}"
purpose = "{purpose}"
declared_patients = {patients}
weight = {patients}.0
state = "{state}"
threads = 1

[data]
root = "{root}"
layout = "brats2021"
label_scheme = "brats"
modalities = ["t1n", "t1c", "t2w", "t2f"]
held_out = 0.0

[privacy]
epsilon = 10.0
delta = 1e-5
min_noise_multiplier = 0.1
"""


def write_study(path: Path, *, way: str, sites: int, payload: int) -> StudyConfig:
    """Write the study's file and read it.

    Args:
        path: The file.
        way: How it is run, as in `federation_scale.py`.
        sites: How many take part.
        payload: Key of `PAYLOADS`.
    """
    rounds = FEW_ROUNDS if way == "processes" or sites >= MANY_SITES else ROUNDS
    text = _STUDY.format(network=PAYLOADS[payload], rounds=rounds, sites=sites)
    path.write_text(text, encoding="utf-8")
    return load_study(path)


def write_sites(folder: Path, *, sites: int, purpose: Purpose) -> dict[Path, SiteConfig]:
    """Write patients and a file for each site; a hospital also gets keys and a ledger.

    The witness of hospitals lies in the folder too, for this process and those that it starts.

    Args:
        folder: Where everything goes.
        sites: How many.
        purpose: Of the sites.

    Returns:
        The sites by their file.
    """
    if purpose == "hospital":
        # What is measured here is nothing that this machine should remember.
        os.environ["XDG_STATE_HOME"] = str(folder / "xdg-state")
    written = {}
    for number in range(sites):
        name = f"site-{number:03d}"
        own = number if purpose == "hospital" else 0
        root = folder / "patients" / str(own)
        if not root.exists():
            _write_patients(root, first_number=own * PATIENTS)
        path = folder / f"{name}.toml"
        text = _SITE.format(
            name=name,
            purpose=purpose,
            patients=PATIENTS,
            state=folder / "state" / name,
            root=root,
        )
        path.write_text(text, encoding="utf-8")
        site = written[path] = load_site(path)
        if purpose == "hospital":
            keys = SiteKeys.create(site.state / KEYS)
            keys.write_public(site.state / PUBLIC, folder=site.state / KEYS)
            create_ledger(site, folder=site.state / "ledger").close()
    return written


def _write_patients(root: Path, *, first_number: int) -> None:
    write_hospital(
        root,
        patients=PATIENTS,
        shape=(32, 32, 24),
        spacing=(5.6, 5.6, 6.8),
        look=hospital_looks()["north"],
        skull_stripped=True,
        seed=7,
        first_number=first_number,
        on_patient=lambda _: None,
    )
