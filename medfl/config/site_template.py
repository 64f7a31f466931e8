"""The commented site file that a new site starts from: what to fill in, and what each line means.

It loads as it stands, so that `medfl check` can tell everything that is still to be done at once:
its folder of images is not there, and one patient is never the declared number.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

SITE_FILE = "site.toml"

_TEMPLATE = """\
# One hospital's own file. Nothing in it is secret, and nothing that a server sends can change it.
# Edit what is marked EDIT, then run: medfl check site.toml

name = "{name}"                 # EDIT: public name, agreed with the coordinator
purpose = "hospital"            # the lifetime ledger is enforced; metrics and baselines are refused
declared_patients = 1           # EDIT: public number of training patients
weight = 1.0                    # EDIT: public weight of the update, usually the same number
state = "."                     # keys, ledger, outbox, cache: this folder, on a local disk
# A witness remembers the ledgers of this machine, so that a lost or restored one is noticed, and a
# second one for the same patients. No site chooses its place: /var/lib/medfl-witness if it exists
# (an administrator makes it, best on another disk), else ~/.local/state/medfl of the account.
device = "cpu"                  # or "cuda", "cuda:1"
threads = 2                     # CPU threads of one training process, at most the physical cores
cache_gigabytes = 60.0          # most disk for prepared images; `medfl cache clear` empties it

[data]
root = "/data/brats"            # EDIT: holds one folder per case; read, never written
layout = "brats2021"            # `medfl check site.toml --detect` proposes layout and label_scheme
# Known: brats2015, brats2018 to brats2021, brats2023, brats2024, fets2022, msd, nnunet, bids, lgg;
# any other folder is layout = "custom" with a table [data.custom], see the end of this file.
label_scheme = "brats"          # what mask values mean: brats (to 2021), brats2015, brats2023,
                                # brats2024, msd, nnunet or lgg; "custom" with the next line:
# labels = {{ 1 = "core", 2 = "edema", 3 = "enhancing" }}  # or "tumour": all of it; "background"
# Which part of a case's name is the person, where the layout cannot know (nnunet):
# patient = '(?P<patient>sub\\d+)_visit\\d+'
modalities = ["t1n", "t1c", "t2w", "t2f"]  # those that every case has, in this order
held_out = 0.0                  # share of patients that never train
# include = "cases.txt"         # names of the site's cases, one a line, if root holds others' too

[privacy]                       # the site's own policy: anything weaker is refused, never adapted
epsilon = 8.0                   # EDIT: lifetime budget of the patients, over all studies
delta = 1e-5                    # at most 1/(10 declared_patients)
# `medfl ledger init site.toml` fixes the two lines above; a ledger never changes its budget.
min_noise_multiplier = 0.5      # least noise, in units of the clip norm
max_clip_norm = 1.0             # most that one patient may move a step
max_sampling_prob = 0.3         # highest probability that a patient is drawn into a step
max_local_steps = 10            # steps in one round
max_rounds = 200                # rounds in one run
share_metrics = false           # a hospital's scores carry no guarantee, so they stay here
allow_baselines = false         # training without noise is for open data only
answer_seconds = 0.0            # above 0, updates leave at multiples of it, so that the time does
                                # not tell how many patients were drawn

# With layout = "custom": paths below root, without .nii.gz; {{case}} is the case's name, * any
# text within a name.
# [data.custom]
# case = '(?P<patient>P\\d+)_v\\d+'        # all cases of one patient are protected as one
# images = {{ t1n = "{{case}}/T1", t1c = "{{case}}/T1_C*", t2f = "{{case}}/FLAIR" }}
# mask = "masks/{{case}}"
# ignored = ["notes"]                     # folders that hold no patients
"""


def write_site_template(path: Path, *, name: str) -> bool:
    """Write the commented site file, unless there is a file already.

    Args:
        path: The new file (mode 0600); its folder is made if missing, and is the site's state.
        name: Name to begin with, for example that of the folder; signs that the name of a site
            cannot have become '-'.

    Returns:
        Whether it was written: a file that is there stays as it is.

    Raises:
        OSError: If it cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(_TEMPLATE.format(name=_site_name(name)))
    return True


def _site_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_")[:40] or "site"
