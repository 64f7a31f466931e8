"""A finished run as a MONAI bundle: a folder that `monai.bundle run` segments with, without medfl.

The bundle holds the weights, a copy of the code that reads, segments and writes images, and a model
card that says what the patients behind it were promised.
"""

from __future__ import annotations

import inspect
import json
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from medfl.data.label_schemes import SCHEMES
from medfl.durable import write_atomically, written_aside
from medfl.errors import ConfigError, FederationError, PrivacyError
from medfl.prediction import bundle_script
from medfl.prediction.carried_code import SCRIPTS, carried_code
from medfl.prediction.model_card import FILES, NOISY, PLAIN, PRIVATE, REGIONS, model_card
from medfl.runs.files import FINAL_MODEL
from medfl.segmentation.model_file import (
    STAYS,
    ModelSpec,
    fills_missing,
    read_model,
    read_provenance,
    stays,
)
from medfl.segmentation.networks import constructor_arguments
from medfl.segmentation.notice import NOTICE
from medfl.version import __version__

_STEPS = bundle_script.__name__.replace("medfl", SCRIPTS, 1)


def export_bundle(run_dir: Path, out: Path, *, although_it_stays: str = "") -> Path:
    """Write the final model of a run as a MONAI bundle.

    Args:
        run_dir: The folder of a finished run.
        out: A new or empty folder.
        although_it_stays: Why a model that a hospital made for itself is handed on all the same;
            the bundle states it. Such a model is refused without a reason.

    Returns:
        The bundle's folder.

    Raises:
        ConfigError: If `out` holds files.
        FederationError: If the run is not finished or damaged.
        ModelError: If its model cannot be used.
        PrivacyError: If its model is one that stays at a hospital, and no reason is given.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: expected a new or empty folder, found files.")
    study, privacy = (_read(run_dir / name) for name in ("study.json", "privacy.json"))
    handed_on = _handed_on(run_dir / FINAL_MODEL, reason=" ".join(although_it_stays.split()))
    spec, network = read_model(run_dir / FINAL_MODEL)
    provenance = read_provenance(run_dir / FINAL_MODEL)
    (out / "models").mkdir(parents=True, exist_ok=True)
    with written_aside(out / "models" / "model.pt") as draft:
        torch.save(network.state_dict(), draft)
    for path, source in carried_code(bundle_script.__name__).items():
        write_atomically(out / path, source.encode())
    kept = all(entry.get("revision", 1) > 1 for entry in privacy)  # medfl 0.1 wrote none
    packages = _packages(network)
    inference = _inference(spec, fills=fills_missing(run_dir / FINAL_MODEL))
    card = model_card(
        study,
        privacy,
        provenance,
        spec,
        parameters=_count(network),
        packages=tuple(packages),
        schemes=tuple(inference["label_schemes"]),
        kept=kept,
        handed_on=handed_on,
    )
    write_atomically(out / "docs" / "README.md", card.encode())
    how = NOISY if not kept else PLAIN if handed_on else PRIVATE
    metadata = _metadata(study, spec, provenance, packages=packages, how=how)
    _write_json(out / "configs" / "metadata.json", metadata | handed_on)
    _write_json(out / "configs" / "inference.json", inference)
    return out


def _handed_on(model: Path, *, reason: str) -> dict[str, str]:
    """What a bundle says of a model that should have stayed; nothing for any other one.

    Raises:
        ModelError: If the file cannot be read.
        PrivacyError: If there is no reason to hand it on.
    """
    if not stays(model):
        return {}
    if not reason:
        raise PrivacyError(
            f"{model}: expected a model whose training kept its promise to the patients, found one "
            f"that is {STAYS!r}. Where it has to go all the same, say why with "
            "--although-it-stays; the bundle will state it.",
            code="model-stays",
        )
    return {
        "privacy": STAYS,
        "handed_on_because": reason,
        "handed_on": datetime.now(UTC).date().isoformat(),
    }


def _inference(spec: ModelSpec, *, fills: bool) -> dict[str, Any]:
    return {
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": [],
        "label_scheme": "brats",
        "label_schemes": {
            name: [list(pair) for pair in scheme.written]
            for name, scheme in SCHEMES.items()
            if set(spec.regions) <= scheme.regions.keys()
        },
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": spec.network, **_keywords(spec)},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": f"{_STEPS}.Preparation",
            "modalities": list(spec.modalities),
            "spacing": spec.spacing if spec.spacing == "native" else list(spec.spacing),
            "may_lack": fills,
        },
        "dataset": {
            "_target_": f"{_STEPS}.Cases",
            "entries": "$@datalist",
            "preparation": "@preprocessing",
        },
        "inferer": {
            "_target_": f"{_STEPS}.Windows",
            "window_size": list(spec.window_size),
            "device": "@device",
            "tta": False,
        },
        "postprocessing": {
            "_target_": f"{_STEPS}.MaskWriter",
            "regions": list(spec.regions),
            "label_scheme": "@label_scheme",
            "label_schemes": "@label_schemes",
            "output_dir": "@output_dir",
        },
        "checkpoint": "$@bundle_root + '/models/model.pt'",
        # A few lines of its own, so that the bundle needs no further package such as ignite.
        "imports": ["$import torch", f"$from {_STEPS} import segment_cases"],
        "run": [
            "$segment_cases(@dataset, network=@network, checkpoint=@checkpoint, "
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
    study: dict[str, Any],
    spec: ModelSpec,
    provenance: dict[str, Any],
    *,
    packages: dict[str, str],
    how: str,
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
        "required_packages_version": packages,
        "task": "brain-tumour segmentation",
        "name": study["id"],
        "description": f"Trained by medfl {provenance.get('medfl', __version__)} {how}.",
        "authors": "the sites of the study",
        "copyright": "the sites of the study",
        "intended_use": NOTICE,
        "created": datetime.now(UTC).date().isoformat(),
        "network_data_format": {
            "inputs": {
                "image": image(
                    {n: FILES[name] for n, name in enumerate(spec.modalities)}, kind="input"
                )
            },
            "outputs": {
                "pred": image(
                    {n: REGIONS[name] for n, name in enumerate(spec.regions)}, kind="output"
                )
            },
        },
    }


def _packages(network: torch.nn.Module) -> dict[str, str]:
    """What the bundle imports beside MONAI, torch and numpy -> the version of it here."""
    modules = {sys.modules[type(part).__module__] for part in network.modules()}
    needed = any("einops" in inspect.getsource(module) for module in modules)
    # UNETR and its kin: MONAI itself does without.
    wanted = ("nibabel", "einops") if needed else ("nibabel",)
    return {name: version(name) for name in wanted}


def _count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise FederationError(f"{path}: expected a finished run, found no such file.") from None


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
