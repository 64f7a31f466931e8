"""The file of a hospital's own model: in the site's folder, for its owner only, and marked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medfl.durable import write_atomically
from medfl.errors import ConfigError, ModelError, PrivacyError
from medfl.json_text import to_json
from medfl.segmentation.devices import device_named
from medfl.segmentation.model_file import (
    STAYS,
    ModelSpec,
    fills_missing,
    model_bytes,
    read_model,
    read_provenance,
    require_new_model_file,
)
from medfl.segmentation.networks import trainable_state
from medfl.site.adaptation import Adaptation, Watch, Weights, adapt
from medfl.site.frames import frame_of
from medfl.site.plain_training import Recipe
from medfl.site.seen_patients import require_unseen
from medfl.site.state import SiteState
from medfl.version import __version__

LEARNING_RATE = 2e-3
CROPS_PER_PATIENT = 2


def home_recipe(spec: ModelSpec, *, steps: int, seed: int) -> Recipe:
    """How a hospital trains for itself, without noise."""
    return Recipe(
        steps=steps,
        learning_rate=LEARNING_RATE,
        crop_size=spec.crop_size,
        crops_per_patient=CROPS_PER_PATIENT,
        seed=seed,
    )


def write_own_model(
    site_state: SiteState,
    model: Path,
    *,
    out: Path,
    start: Path | None,
    steps: int,
    folds: int,
    seed: int,
    device: str,
    watch: Watch,
) -> Adaptation:
    """Adapt a federated model on a site's training patients; see `medfl.site.adaptation`.

    Nothing is charged to the ledger, since nothing leaves.

    Args:
        site_state: The site.
        model: A model file.
        out: A new file in the site's state folder; mode 0600. Beside it lies what was tried, with
            every patient's Dice, under its name and ".json".
        start: A model file that the hospital could train from if it were alone, such as that of
            `medfl pretrain`.
        steps: Steps of each training.
        folds: Parts of the cross-validation.
        seed: Of patients, crops and folds.
        device: Where to train.
        watch: Progress.

    Returns:
        What was tried, and what was chosen.

    Raises:
        ConfigError: If `out` exists, cannot be written or lies outside of the state folder, or the
            site lacks a modality or the device.
        DataError: If the patients are too few, or one cannot be prepared.
        ModelError: If a model file cannot be used, or the two do not fit each other.
        PrivacyError: If `start` has been trained on patients, but for public ones who are not
            among the site's.
    """
    site = site_state.site
    folder = site.state.resolve()
    if not out.resolve().is_relative_to(folder):
        raise ConfigError(
            f"{out}: expected a file in the site's state folder {folder}, since it may not leave, "
            "found one outside of it."
        )
    require_new_model_file(out)
    device_named(device, where=f"Site {site.name}: device of the adaptation")
    spec, network = read_model(model)
    fills = fills_missing(model)
    training, _ = site_state.stores_in(frame_of(site_state.site, spec, fills=fills, of="model"))
    adaptation = adapt(
        trainable_state(network),
        training,
        spec=spec,
        start=None if start is None else _start(start, site_state, spec=spec, model=model),
        recipe=home_recipe(spec, steps=steps, seed=seed),
        folds=folds,
        device=device,
        watch=watch,
    )
    source = read_provenance(model)
    provenance = {
        "medfl": __version__,
        "privacy": STAYS,
        "site": site.name,
        "study": source.get("study", ""),
        "federated_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "chosen": adaptation.chosen.name,
        "mean_dice": {each.name: each.mean for each in adaptation.candidates},
        "patients": len(training),
        "steps": steps,
        "folds": folds,
        "seed": seed,
        "missing_modality": "zero-fill" if fills else "refuse",
        "label_schemes": source.get("label_schemes", []),
    }
    # The table first, so that where the model is, the table is too.
    write_atomically(table_of(out), _table(adaptation, provenance).encode(), mode=0o600)
    content = model_bytes(adaptation.weights, spec=spec, provenance=provenance)
    write_atomically(out, content, mode=0o600)
    return adaptation


def table_of(model: Path) -> Path:
    """The file beside a hospital's own model that says what was tried."""
    return model.with_name(f"{model.name}.json")


def _table(adaptation: Adaptation, provenance: Mapping[str, Any]) -> str:
    candidates = [asdict(each) | {"mean": each.mean} for each in adaptation.candidates]
    return to_json({**provenance, "candidates": candidates}, indent=2) + "\n"


def _start(path: Path, site_state: SiteState, *, spec: ModelSpec, model: Path) -> Weights:
    provenance = read_provenance(path)
    if provenance.get("mechanisms") != {}:
        raise PrivacyError(
            f"{path}: expected a start that no patient has trained, such as that of `medfl "
            "pretrain`, found another model."
        )
    # Whom it knows already would speak for it when the candidates are compared.
    require_unseen(site_state, [str(each) for each in provenance.get("seen", [])])
    found, network = read_model(path)
    for name, value in spec.shared.items():
        if found.shared[name] != value:
            raise ModelError(
                f"{path}: expected the {name} of {model}, {value!r}, found {found.shared[name]!r}."
            )
    return trainable_state(network)
