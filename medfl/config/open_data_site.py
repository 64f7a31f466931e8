"""The site file of a cohort of open data: public or synthetic patients, for simulation only."""

from __future__ import annotations

import json
from collections.abc import Sequence

from medfl.config.site import LabelScheme, Layout, Modality

_SITE_FILE = """\
# {about}, so its purpose is open-data: for simulation
# only, with baselines and shared metrics. A real hospital's file says purpose = "hospital".
name = "{name}"
purpose = "open-data"
declared_patients = {training}     # public number of training patients, without those held out
weight = {training}.0              # public weight of the site's update in the global model
state = "state/{name}"
device = "cpu"
threads = 2

[data]
root = {root}
layout = "{layout}"
label_scheme = "{label_scheme}"
modalities = {modalities}
held_out = {held_out:g}
{include}
[privacy]                  # the site's own policy: weaker proposals are refused
epsilon = 10.0             # budget
delta = 1e-5
min_noise_multiplier = 0.5
max_clip_norm = 1.0
max_sampling_prob = 0.5
max_local_steps = 20
max_rounds = 200
trust = ["local", "secure"]  # noise of its own, or a share of the noise of a secure sum
share_metrics = true       # open data only
allow_baselines = true     # open data only
{adapt}"""

_ADAPT = """
[adapt]                    # how the site trains a model of its own, without noise
steps = {steps}
folds = {folds}
"""


def open_data_site(
    name: str,
    *,
    about: str,
    root: str,
    layout: Layout,
    label_scheme: LabelScheme,
    modalities: Sequence[Modality],
    patients: int,
    held_out: float,
    include: str = "",
    adapt: tuple[int, int] | None = None,
) -> str:
    """The text of a site file.

    Args:
        name: The site.
        about: Whose images these are, for the first line.
        root: Folder of the images, absolute or from the file's folder.
        layout: How its files are named.
        label_scheme: What the masks' values mean.
        modalities: Those that every case has.
        patients: All patients, those held out included.
        held_out: Share of patients that never train.
        include: File with the names of the site's cases, where a root holds several sites'.
        adapt: Steps and folds of `medfl adapt`, where they are not the usual ones.
    """
    return _SITE_FILE.format(
        name=name,
        about=about,
        training=patients - round(held_out * patients),
        root=json.dumps(root),
        layout=layout,
        label_scheme=label_scheme,
        modalities=json.dumps(list(modalities)),
        held_out=held_out,
        include=f"include = {json.dumps(include)}\n" if include else "",
        adapt=_ADAPT.format(steps=adapt[0], folds=adapt[1]) if adapt else "",
    )
