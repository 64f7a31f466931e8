"""A finished run as a MONAI bundle: a folder that `monai.bundle run` segments with, without medfl.

The bundle holds the weights, its preparation of images (as a copy of medfl's own function), and a
model card that says what the patients behind it were promised.
"""

from __future__ import annotations

import inspect
import json
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from medfl.data import intensity
from medfl.durable import write_atomically, written_aside
from medfl.errors import ConfigError, FederationError
from medfl.prediction import bundle_script
from medfl.segmentation.model_file import ModelSpec, read_model, read_provenance
from medfl.segmentation.networks import constructor_arguments
from medfl.segmentation.notice import NOTICE
from medfl.version import __version__

MODEL = Path("checkpoints") / "final.safetensors"
_FILES = {"t1n": "T1", "t1c": "T1 with contrast", "t2w": "T2", "t2f": "T2-FLAIR"}
_REGIONS = {"TC": "tumour core", "WT": "whole tumour", "ET": "enhancing tumour"}

_CARD = """\
# {study}: brain-tumour segmentation, trained {how}

{notice}

A MONAI {network} with {parameters:,} parameters, trained by {sites} site(s) over {rounds}
rounds with medfl {medfl}. It takes {channels} and gives {regions}.

## What the patients were promised

Each site clipped the contribution of every **patient** (all crops of all scans of a person
together), drew patients at random, added noise before anything left the site, and charged the
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

in this folder, with the files of one patient in this order, all on one grid. MONAI's command line
needs the package `fire`; from Python it is `monai.bundle.run(config_file=..., bundle_root='.',
datalist=[...])`. The masks land in `eval`, with one channel for each of: {names}.

## What it was not made for

Other diseases, other modalities, scanners unlike those of its sites, or any clinical use.
"""

_PRIVATE = "with patient-level differential privacy"
_PROMISE = """\
Whoever sees this model, and every update of a site on the way,
learns about any one patient no more than the epsilon of the site says (add or remove one):"""

_NOISY = "with the noise of medfl 0.1"
_WITHDRAWN = """\
**The epsilon that medfl 0.1 stated was
too small:** one patient changed what others contributed, and the low bits of an update can betray
who was drawn. Do not rely on it. What was stated:"""


def export_bundle(run_dir: Path, out: Path) -> Path:
    """Write the final model of a run as a MONAI bundle.

    Args:
        run_dir: The folder of a finished run.
        out: A new or empty folder.

    Returns:
        The bundle's folder.

    Raises:
        ConfigError: If `out` holds files.
        FederationError: If the run is not finished or damaged.
        ModelError: If its model cannot be used.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: expected a new or empty folder, found files.")
    study, privacy = (_read(run_dir / name) for name in ("study.json", "privacy.json"))
    spec, network = read_model(run_dir / MODEL)
    provenance = read_provenance(run_dir / MODEL)
    for name in ("configs", "docs", "models", "scripts"):
        (out / name).mkdir(parents=True, exist_ok=True)
    with written_aside(out / "models" / "model.pt") as draft:
        torch.save(network.state_dict(), draft)
    write_atomically(out / "scripts" / "__init__.py", b"")
    for name, module in (("intensity", intensity), ("segmentation", bundle_script)):
        source = inspect.getsource(module)
        write_atomically(out / "scripts" / f"{name}.py", source.encode())
    kept = all(entry.get("revision", 1) > 1 for entry in privacy)  # medfl 0.1 wrote none
    card = _card(study, privacy, provenance, spec, parameters=_count(network), kept=kept)
    write_atomically(out / "docs" / "README.md", card.encode())
    _write_json(out / "configs" / "metadata.json", _metadata(study, spec, provenance, kept=kept))
    _write_json(out / "configs" / "inference.json", _inference(spec))
    return out


def _inference(spec: ModelSpec) -> dict[str, Any]:
    prepare: list[dict[str, Any]] = [
        # Channels are read as they are listed; a list of files becomes the channels.
        {"_target_": "LoadImaged", "keys": "image", "image_only": True},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
        {
            "_target_": "Lambdad",
            "keys": "image",
            "func": "$lambda image: type(image)(torch.stack([torch.from_numpy("
            "normalise_scan(numpy.asarray(channel, numpy.float32))) "
            "for channel in image]), meta=image.meta, applied_operations="
            "image.applied_operations)",
        },
    ]
    if spec.spacing != "native":
        prepare.append(
            {
                "_target_": "Spacingd",
                "keys": "image",
                "pixdim": list(spec.spacing),
                "mode": "bilinear",
                "padding_mode": "border",
            }
        )
    return {
        "imports": [
            "$import numpy",
            "$import torch",
            "$from scripts.intensity import normalise_scan",
            "$from scripts.segmentation import segment",
        ],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": [],
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": spec.network, **_keywords(spec)},
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": prepare},
        "dataset": {
            "_target_": "Dataset",
            "data": "$@datalist",
            "transform": "@preprocessing",
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(spec.window_size),
            "sw_batch_size": 4,
            "overlap": 0.5,
            "mode": "gaussian",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "seg",
                    "output_dtype": "$numpy.uint8",
                    "resample": False,
                },
            ],
        },
        "checkpoint": "$@bundle_root + '/models/model.pt'",
        # A few lines of its own, so that the bundle needs no further package such as ignite.
        "run": [
            "$segment(@dataset, network=@network, checkpoint=@checkpoint, "
            "inferer=@inferer, postprocessing=@postprocessing, device=@device)"
        ],
    }


def _keywords(spec: ModelSpec) -> dict[str, Any]:
    given = constructor_arguments(
        name=spec.network,
        arguments=spec.arguments,
        in_channels=len(spec.modalities),
        out_channels=len(spec.regions),
        crop_size=spec.crop_size,
    )
    # As JSON has them: lists in place of tuples.
    converted: dict[str, Any] = json.loads(json.dumps(given))
    return converted


def _metadata(
    study: dict[str, Any], spec: ModelSpec, provenance: dict[str, Any], *, kept: bool
) -> dict[str, Any]:
    def image(names: dict[int, str], *, kind: str) -> dict[str, Any]:
        return {
            "type": "image" if kind == "input" else "probabilities",
            "format": "magnitude" if kind == "input" else "segmentation",
            "modality": "MR",
            "num_channels": len(names),
            "spatial_shape": list(spec.window_size),
            "dtype": "float32",
            "value_range": [0, 1] if kind == "output" else [],
            "is_patch_data": True,
            "channel_def": {str(number): name for number, name in names.items()},
        }

    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": "as trained"},
        "monai_version": version("monai"),
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel")},
        "task": "brain-tumour segmentation",
        "name": study["id"],
        "description": f"Trained by medfl {provenance.get('medfl', __version__)} "
        f"{_PRIVATE if kept else _NOISY}.",
        "authors": "the sites of the study",
        "copyright": "the sites of the study",
        "intended_use": NOTICE,
        "created": datetime.now(UTC).date().isoformat(),
        "network_data_format": {
            "inputs": {
                "image": image(
                    {n: _FILES[name] for n, name in enumerate(spec.modalities)}, kind="input"
                )
            },
            "outputs": {
                "pred": image(
                    {n: _REGIONS[name] for n, name in enumerate(spec.regions)}, kind="output"
                )
            },
        },
    }


def _card(
    study: dict[str, Any],
    privacy: list[dict[str, Any]],
    provenance: dict[str, Any],
    spec: ModelSpec,
    *,
    parameters: int,
    kept: bool,
) -> str:
    rows = [
        f"| {entry['site']} | {float(entry['epsilon_pld']):.2f} | {float(entry['delta']):g} | "
        f"{float(entry['budget']):g} |"
        for entry in privacy
    ]
    steps = provenance.get("pretraining_steps", 0)
    return _CARD.format(
        study=study["id"],
        how=_PRIVATE if kept else _NOISY,
        promise=_PROMISE if kept else _WITHDRAWN,
        notice=NOTICE,
        network=spec.network,
        parameters=parameters,
        sites=len(privacy),
        rounds=study["training"]["rounds"],
        medfl=provenance.get("medfl", __version__),
        channels=", ".join(_FILES[name] for name in spec.modalities),
        regions=", ".join(_REGIONS[name] for name in spec.regions),
        privacy="\n".join(rows),
        pretraining=f"It began from {steps} steps on synthetic patients, who cost nothing."
        if steps
        else "It began from random weights.",
        files=", ".join(f"'{name}.nii.gz'" for name in spec.modalities),
        names=", ".join(spec.regions),
    )


def _count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise FederationError(f"{path}: expected a finished run, found no such file.") from None


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
