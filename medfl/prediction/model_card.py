"""The card of an exported model: what the patients were promised, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from medfl.segmentation.model_file import ModelSpec
from medfl.segmentation.notice import NOTICE
from medfl.version import __version__

FILES = {"t1n": "T1", "t1c": "T1 with contrast", "t2w": "T2", "t2f": "T2-FLAIR"}
"""Modality -> what people call it."""

REGIONS = {"TC": "tumour core", "WT": "whole tumour", "ET": "enhancing tumour"}
"""Region -> what people call it."""

_CARD = """\
# {study}: brain-tumour segmentation, trained {how}

{notice}
{mark}
A MONAI {network} with {parameters:,} parameters, trained by {sites} site(s) over {rounds}
rounds with medfl {medfl}. It takes {channels} and gives {regions}.

## What the patients were promised

Each site clipped the contribution of every **patient** (all crops of all scans of a person
together), drew patients at random, {noise}, and charged the
cost to its own ledger first. {promise}

| site | epsilon | delta | budget for life |
|---|---|---|---|
{privacy}

Epsilon counts the training of this run; sites that took part in other studies have spent more
in all. It does not cover hyper-parameters that were chosen by looking at private results.
{pretraining}

## How to use it

    python -m monai.bundle run --config_file configs/inference.json --bundle_root . --datalist \\
        "[{{'image': [{files}]}}]"

in this folder, with the files of one patient in this order, all on one grid. It needs Python 3.11
or newer on Linux or macOS, MONAI {monai}, {packages}, and no medfl. MONAI's command line also needs
the package `fire`; from Python it is `monai.bundle.run(config_file=..., bundle_root='.',
datalist=[...])`.

The mask of each case lands in `eval`, on the grid of the first file and under its name, or under
the case's own `'name'`. It is the mask that `medfl predict` writes, voxel for voxel and header for
header, if both run on one device with the same versions: `scripts` holds the same code. Files that
medfl refuses are refused here; a case that fails does not stop the others, and a mask that is
there already is kept.

- `--label_scheme` says what the mask's values mean; `brats` if not given. It is one of
  {schemes}.
- `{{'image': 'x.nii.gz', 'volumes': [...]}}` is a case in one 4-D file; `volumes` names all of its
  volumes in their order, and the model takes {names}.
- `--inferer#tta True` averages with the mirror image, left to right.
{lacking}
## What it was not made for

Other diseases, other modalities, scanners unlike those of its sites, or any clinical use.
"""

_LACKING = "- `None` in place of a file means that a patient does not have this scan.\n"

PLAIN = "without noise, for one hospital"
_MARK = """
> **{privacy}.** This model was trained without noise on the patients of {site}, and tells of them
> without limit: it is as private as their images. What is said of epsilon below holds for the
> federated model that it was made of, and not for them. It was handed on all the same on {date}:
> {reason}
"""

_NOISE = "added noise before anything left the site"
_NOISE_OF_SUM = """\
added its share of the noise, hid the result under masks before anything left
the site, so that the server saw nothing but the sum of all sites"""

PRIVATE = "with patient-level differential privacy"
_PROMISE = """\
Whoever sees this model, and every update of a site on the way,
learns about any one patient no more than the epsilon of the site says (add or remove one):"""
_PROMISE_OF_SUM = """\
Whoever sees this model, and the sum of every round on the way,
learns about any one patient no more than the epsilon of the site says (add or remove one). That
holds against the server {colluding}. With more of them less noise protects a
patient; the run's report says how much:"""

NOISY = "with the noise of medfl 0.1"
_WITHDRAWN = """\
**The epsilon that medfl 0.1 stated was
too small:** one patient changed what others contributed, and the low bits of an update can betray
who was drawn. Do not rely on it. What was stated:"""


def model_card(
    study: dict[str, Any],
    privacy: list[dict[str, Any]],
    provenance: dict[str, Any],
    spec: ModelSpec,
    *,
    parameters: int,
    packages: Sequence[str],
    schemes: Sequence[str],
    kept: bool,
    handed_on: Mapping[str, str],
) -> str:
    """The card as Markdown.

    Args:
        study: ``study.json`` of the run.
        privacy: ``privacy.json`` of the run.
        provenance: What the model file says of its origin.
        spec: What the model takes and gives.
        parameters: How many the network has.
        packages: What the bundle needs beside MONAI, torch and numpy.
        schemes: The label schemes that its masks can be written in.
        kept: Whether the promise to the patients holds.
        handed_on: For a model that should have stayed at its hospital: ``privacy``, and why
            (``handed_on_because``) and when (``handed_on``) it was handed on. Empty for others.
    """
    rows = [
        f"| {entry['site']} | {float(entry['epsilon_pld']):.2f} | {float(entry['delta']):g} | "
        f"{float(entry['budget']):g} |"
        for entry in privacy
    ]
    is_sum = study.get("privacy", {}).get("trust") == "secure"  # medfl 0.2 wrote none
    return _CARD.format(
        study=study["id"],
        how=NOISY if not kept else PLAIN if handed_on else PRIVATE,
        mark=_mark(handed_on, site=provenance.get("site", "a hospital")),
        noise=_NOISE_OF_SUM if is_sum else _NOISE,
        promise=_promise(study, is_sum=is_sum) if kept else _WITHDRAWN,
        notice=NOTICE,
        network=spec.network,
        parameters=parameters,
        sites=len(privacy),
        rounds=study["training"]["rounds"],
        medfl=provenance.get("medfl", __version__),
        channels=", ".join(FILES[name] for name in spec.modalities),
        regions=", ".join(REGIONS[name] for name in spec.regions),
        privacy="\n".join(rows),
        pretraining=_pretraining(provenance),
        files=", ".join(f"'{name}.nii.gz'" for name in spec.modalities),
        names=", ".join(spec.modalities),
        monai=".".join(version("monai").split(".")[:2]),
        packages=", ".join(packages),
        schemes=", ".join(f"`{name}`" for name in schemes),
        lacking=_LACKING if provenance.get("missing_modality") == "zero-fill" else "",
    )


def _promise(study: Mapping[str, Any], *, is_sum: bool) -> str:
    if not is_sum:
        return _PROMISE
    count = study["privacy"]["colluding_sites"]
    together = f"together with up to {count} other site(s)" if count else "without any other site"
    return _PROMISE_OF_SUM.format(colluding=together)


def _pretraining(provenance: Mapping[str, Any]) -> str:
    steps = provenance.get("pretraining_steps", 0)
    if not steps:
        return "It began from random weights."
    began = f"It began from {steps} steps on synthetic patients, who cost nothing."
    collections = ", ".join(provenance.get("start_collections", []))
    if not collections:
        return began
    return (
        f"{began} The starting model has also seen public patients, of these collections: "
        f"{collections}. **The guarantee does not cover them.**"
    )


def _mark(handed_on: Mapping[str, str], *, site: str) -> str:
    if not handed_on:
        return ""
    privacy = handed_on["privacy"]
    return _MARK.format(
        privacy=privacy[:1].upper() + privacy[1:],
        site=site,
        date=handed_on["handed_on"],
        reason=handed_on["handed_on_because"],
    )
