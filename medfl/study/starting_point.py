"""The file of a pretraining, and a run's start from it.

A study may name such a file, so that a pretraining is paid for once and not in every run. Nothing
else changes by it: the file was made by the same steps on the same synthetic patients, and every
record of the run says so. It is known by its SHA-256, which is part of the study: sites agree to
this very start, and a run cannot be resumed from another.

What was trained on patients is refused. It has spent their privacy, and no ledger of the new study
would show it. The file's own word is taken for that: this guards against the wrong file, not
against who forges one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from medfl.config import StudyConfig
from medfl.config.synthetic import StudySynthetic
from medfl.durable import write_atomically
from medfl.errors import ConfigError, ModelError
from medfl.protocol.messages import Weights
from medfl.protocol.study_model import model_spec
from medfl.segmentation.model_file import (
    model_bytes,
    read_model,
    read_provenance,
    require_new_model_file,
)
from medfl.segmentation.networks import load_trainable, trainable_state
from medfl.site.plain_training import Advance
from medfl.study.pretraining import initial_weights
from medfl.study.shipped_starts import shipped_file
from medfl.version import __version__

FILE = "start.safetensors"
"""In the run folder: the file that the run starts from."""

ORIGIN = "synthetic patients only, no patient's data; epsilon 0"

_DEFAULTS = {
    name: field.default
    for name, field in StudySynthetic.model_fields.items()
    if not field.is_required()
}


def write_starting_point(
    study: StudyConfig, *, out: Path, threads: int, drawn: Advance, advance: Advance
) -> str:
    """Pretrain on a study's synthetic patients, and write the model file.

    Args:
        study: Its `synthetic` section says which patients, and how many steps.
        out: The file; must not exist.
        threads: CPU threads to use.
        drawn: Progress of the synthetic patients.
        advance: Progress of the training steps.

    Returns:
        SHA-256 of the file, as hexadecimal text.

    Raises:
        ConfigError: If the study has no pretraining, or `out` exists or cannot be written.
        ModelError: If the study's network cannot be built.
    """
    synthetic = study.synthetic
    if synthetic is None or synthetic.pretraining_steps == 0:
        found = "no such section" if synthetic is None else "0"
        raise ConfigError(
            f"Expected [synthetic] pretraining_steps >= 1 in the study, found {found}."
        )
    require_new_model_file(out)
    weights = initial_weights(study, threads=threads, advance=advance, drawn=drawn)
    provenance = {
        "medfl": __version__,
        "origin": ORIGIN,
        "study": study.id,
        "seed": study.seed,
        "synthetic": _described(synthetic),
        "missing_modality": study.input.missing_modality,
        "pretraining_steps": synthetic.pretraining_steps,
        "label_schemes": ["brats"],
        "mechanisms": {},
    }
    content = model_bytes(weights, spec=model_spec(study), provenance=provenance)
    write_atomically(out, content)
    return hashlib.sha256(content).hexdigest()


def keep_starting_point(study: StudyConfig, *, out: Path) -> None:
    """Keep the file that a new run starts from in the run folder, if the study names one.

    Args:
        study: As `load_study` gives it, which knows where the file is.
        out: The run folder.

    Raises:
        ModelError: If the file cannot be used; nothing is written then.
    """
    if study.synthetic is None or study.synthetic.start is None:
        return
    start = study.synthetic.start
    file = shipped_file(start.shipped or "") if start.file is None else start.file
    _read_start(study, study.synthetic, file, sha256=start.sha256)
    write_atomically(out / FILE, file.read_bytes())


def first_weights(study: StudyConfig, *, out: Path, threads: int, advance: Advance) -> Weights:
    """The first global model of a run: out of the file that its folder keeps, or made.

    Args:
        study: The study.
        out: The run folder.
        threads: CPU threads to use.
        advance: Progress of the training steps, if there are any.

    Raises:
        ModelError: If the study names a file, and the folder does not keep it.
    """
    if study.synthetic is None or study.synthetic.start is None:
        return initial_weights(study, threads=threads, advance=advance)
    return _read_start(study, study.synthetic, out / FILE, sha256=study.synthetic.start.sha256)


def _read_start(
    study: StudyConfig, synthetic: StudySynthetic, path: Path, *, sha256: str
) -> Weights:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(
            f"{path}: expected the file that [synthetic] start names, found: {error.strerror}. "
            "`medfl pretrain` makes one."
        ) from None
    provenance = read_provenance(path)
    if provenance.get("origin") != ORIGIN:
        raise ModelError(
            f"{path}: expected a file of `medfl pretrain`, found a model of another origin. One "
            "that was trained on patients has spent their privacy, and no ledger of this study "
            "would show it."
        )
    if found != sha256:
        raise ModelError(
            f"{path}: expected the file with SHA-256 {sha256[:12]}... that [synthetic] start "
            f"names, found {found[:12]}..."
        )
    spec, pretrained = read_model(path)
    _require_same(path, model_spec(study).shared, spec.shared, of="the study's model")
    # A file of an earlier version says nothing of a setting that had not been invented.
    told = {**_DEFAULTS, **provenance.get("synthetic", {})}
    _require_same(path, _described(synthetic), told, of="the study's [synthetic]")
    network = model_spec(study).build(seed=study.seed)
    load_trainable(network, trainable_state(pretrained))
    return trainable_state(network)


def _require_same(path: Path, wanted: dict[str, Any], found: dict[str, Any], *, of: str) -> None:
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ModelError(
                f"{path}: expected a start with the {name} of {of}, {value!r}, found "
                f"{found.get(name)!r}. Make one with `medfl pretrain`, or change the study."
            )


def _described(synthetic: StudySynthetic) -> dict[str, Any]:
    """All that the pretraining follows from, but for the study's network, crops and seed."""
    return synthetic.model_dump(mode="json", exclude={"start"})
