"""The commented site file that a new site starts from: what to fill in, and what each line means.

It loads unedited, so that `medfl check` can list everything that is still to be done at once: its
folder of images is not there, and one patient is never the declared number.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from medfl.config.site import SiteData, Trust

SITE_FILE = "site.toml"

_USUAL = {"state": '"."', "threads": 2, "trust": '["local"]'}

_HEAD = """\
# One hospital's own file. Nothing in it is secret, and nothing that a server sends can change it.
# Edit what is marked EDIT, then run: medfl check site.toml

name = "{name}"                 # EDIT: public name, agreed with the coordinator
purpose = "hospital"            # the lifetime ledger is enforced; metrics and baselines are refused
declared_patients = {patients}           # EDIT: public number of training patients
weight = {patients}.0                    # EDIT: public weight of the update, usually that number
state = {state:<23} # keys, ledger, outbox, cache: this folder, on a local disk
# A witness remembers the ledgers of this machine, so that a lost or restored one is noticed, and a
# second one for the same patients. No site chooses its place: /var/lib/medfl-witness if it exists
# (an administrator makes it, best on another disk), else ~/.local/state/medfl of the account.
device = "cpu"                  # or "cuda", "cuda:1"
threads = {threads:<21} # CPU threads of one training process, at most the physical cores;
                                # a simulation gives each site one, and works at several at once
cache_gigabytes = 60.0          # most disk for prepared images; `medfl cache clear` empties it

"""
_NEW_DATA = """\
[data]
root = "/data/brats"            # EDIT: holds one folder per case; read, never written. Several
                                # folders of one site: root = ["/data/brats", "/archive/brats"]
layout = "brats2021"            # `medfl check FOLDER --detect` proposes layout and label_scheme
# Known: brats2015, brats2018 to brats2021, brats2023 to brats2025; their sister tasks brats-goat,
# brats-men, brats-men-rt, brats-met, brats-ped, brats-ssa; fets2022, ucsf-pdgm, upenn-gbm, lumiere,
# mu-glioma-post, msd, nnunet, bids, lgg; any other folder is layout = "custom" with a table
# [data.custom], see the end of this file.
label_scheme = "brats"          # what mask values mean: brats (to 2021), brats2015, brats2023,
                                # brats2024 (4 is a resection cavity), brats-ped, brats-men-rt,
                                # lumiere, msd, nnunet or lgg; "custom" with the next line:
# labels = {{ 1 = "core", 2 = "edema", 3 = "enhancing" }}  # or "tumour": all of it; "background"
# Which part of a case's name is the person, where the layout cannot know (nnunet):
# patient = '(?P<patient>sub\\d+)_visit\\d+'
modalities = ["t1n", "t1c", "t2w", "t2f"]  # those that every case has, in this order
held_out = 0.0                  # fraction of patients that is never trained on
# include = "cases.txt"         # names of the site's cases, one per line, if root holds others too
# With layout = "bids": which of several files counts, preferred values first; "" is for files
# without the entity.
# bids = {{ run = "1", acq = ["mprage", "space", ""] }}
# incomplete = "leave-out"      # leaves out cases that lack a mask or a modality; else "refuse"

"""
_PRIVACY = """\
[privacy]                       # the site's own policy: anything weaker is refused, never adapted
epsilon = 8.0                   # EDIT: lifetime budget of the patients, over all studies
delta = 1e-5                    # at most 1/(10 declared_patients)
# After `medfl check`, `medfl ledger init site.toml` fixes the name and these two lines permanently.
min_noise_multiplier = 0.5      # least noise, in units of the clip norm
max_clip_norm = 1.0             # most that one patient may move a step
max_sampling_prob = 0.3         # highest probability that a patient is drawn into a step
max_local_steps = 10            # steps in one round
max_rounds = 200                # rounds in one run
share_metrics = false           # a hospital's scores carry no guarantee, so they stay here
allow_baselines = false         # training without noise is for open data only
answer_seconds = 0.0            # above 0, updates leave at multiples of it, so that the time does
                                # not tell how many patients were drawn
trust = {trust:<23} # "secure" as well: studies whose server sees the sum of all sites
                                # only, to which each site adds a share of the noise
min_share_noise_multiplier = 0.0  # least share of one's own in such a sum, over the clip norm
peers = {{}}                      # the other sites of such a sum: name = "event key", compared by
                                # telephone; a hospital joins no sum with anybody else
studies_at_once = 1             # how many studies it is in at the same time; a study beyond is
                                # refused until one has ended; all of them spend the one budget
seen_lists = []                 # SHA-256 of lists of public images that starting models have seen;
                                # a study may ask whether a patient here is on one of these
"""
_ADAPT = """\

# [adapt]                       # the hospital's own model, trained without noise: it stays here
# after_study = true            # made by the running site once a study's final model arrives;
                                # without this line the log says which command makes it
# steps = 100                   # of each training run
# folds = 3                     # parts of the cross-validation that chooses the best candidate
# seed = 0                      # of patients, crops and folds
# device = "cpu"                # of the running site's work; the next round may need a whole GPU
"""
_MONITORING = """\

# [monitoring]                  # what the running site shows on this machine, and whom it calls
# port = 9464                   # metrics and /health on 127.0.0.1; else nothing listens
# hook = ["/opt/medfl-hook.sh"] # a program by its whole path, told once of each event; no shell
# hook_seconds = 30.0           # then it is ended
# budget_left = 0.1             # part of the budget below which it is told
# certificate_days = 30         # days before the end of the authority's certificate
# disk_gigabytes = 5.0          # free disk below which it is told
"""
_CUSTOM = """\

# With layout = "custom": paths below root; * is any text within a name. {{patient}} is a person's
# name, {{session}} that of an examination; all sessions of a patient are protected as one.
# [data.custom]
# images = {{ t1n = "{{patient}}/{{session}}/T1", t2f = "{{patient}}/{{session}}/FLAIR*" }}
# mask = "{{patient}}/{{session}}/tumour"
# patient = 'P\\d+'               # pattern of the name; any name if not given, and so for session
# ignored = ["notes"]             # folders that hold no patients
# Or {{case}}, a name of which a part is the person:
# case = '(?P<patient>P\\d+)_v\\d+'
# images = {{ t1n = "{{case}}/T1", t1c = "{{case}}/T1_C*", t2f = "{{case}}/FLAIR" }}
# mask = "masks/{{case}}"
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
        text = _HEAD + _NEW_DATA + _PRIVACY + _ADAPT + _MONITORING + _CUSTOM
        file.write(text.format(name=_site_name(name), patients=1, **_USUAL))
    return True


def site_file_for(
    data: SiteData,
    *,
    name: str,
    patients: int,
    remarks: Sequence[str] = (),
    state: Path | None = None,
    threads: int = 2,
    trust: Sequence[Trust] = ("local",),
) -> str:
    """The text of a site file for images that were looked at.

    Args:
        data: Where the images are, and how they are written; absolute folders.
        name: Name to begin with.
        patients: How many train.
        remarks: What to say above the table of the images.
        state: The state folder; the one that the file lies in if not given.
        threads: CPU threads of one training process.
        trust: The trust modes of studies that the site takes part in.
    """
    roots = [str(root) for root in data.roots]
    table = {
        "root": roots if len(roots) > 1 else roots[0],
        "layout": data.layout,
        "label_scheme": data.label_scheme,
        "modalities": list(data.modalities),
        "incomplete": data.incomplete,
    }
    if data.incomplete == "refuse":
        del table["incomplete"]
    # A text or a list of texts is written alike in JSON and TOML.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()]
    lines = [*(f"# {remark}" for remark in remarks), "[data]", *lines, ""]
    if data.bids:
        choice = [f"{key} = {json.dumps(list(values))}" for key, values in data.bids.items()]
        lines += ["[data.bids]                     # EDIT: preferred values first", *choice, ""]
    own = {
        "state": json.dumps(str(state or "."), ensure_ascii=False),
        "threads": threads,
        "trust": json.dumps(list(trust)),
    }
    head, end = (
        text.format(name=_site_name(name), patients=patients, **own)
        for text in (_HEAD, _PRIVACY + _ADAPT + _MONITORING)
    )
    return "\n".join([head + lines[0], *lines[1:], end])


def _site_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_")[:40] or "site"
