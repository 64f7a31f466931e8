"""The file of a pretraining, and a run's start from it.

A study may name such a file, so that a pretraining is paid for once and not in every run. Nothing
else changes by it: the file was made by the same steps on the same synthetic patients, and every
record of the run says so. It is known by its SHA-256, which is part of the study: sites agree to
this very start, and a run cannot be resumed from another.

A file may also have seen public patients, as `medfl.study.public_patients` describes. The study
then says whose, and their list is proposed to every site with it.

Whatever else was trained on patients is refused. It has spent their privacy, and no ledger of the
new study would show it. The file's own word is taken for that: this guards against the wrong file,
not against who forges one.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfl.config import SiteConfig, StudyConfig
from medfl.config.synthetic import StudyStart, StudySynthetic
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
from medfl.site.seen_patients import list_digest
from medfl.study.pretraining import initial_weights, trained_on_patients, unwatched
from medfl.study.public_patients import PublicPatients, read_public_patients
from medfl.study.shipped_starts import shipped_file
from medfl.version import __version__

FILE = "start.safetensors"
"""In the run folder: the file that the run starts from."""

ORIGIN = "synthetic patients only, no patient's data; epsilon 0"
PUBLIC_ORIGIN = "synthetic patients, then public patients without noise; no guarantee covers these"

_DEFAULTS = {
    name: field.default
    for name, field in StudySynthetic.model_fields.items()
    if not field.is_required()
}


@dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """What a study has to say of a file that it starts from.

    Attributes:
        sha256: Of the file.
        collections: Number of public patients that it has seen, by site.
        seen_sha256: Of the list of their images; None where it has seen nobody.
    """

    sha256: str
    collections: dict[str, int]
    seen_sha256: str | None

    @property
    def table(self) -> str:
        """Everything but the file's place, as the study's inline table states it."""
        text = f'sha256 = "{self.sha256}"'
        if self.seen_sha256 is not None:
            names = json.dumps(list(self.collections))
            text += f', collections = {names}, seen_sha256 = "{self.seen_sha256}"'
        return text


def write_starting_point(
    study: StudyConfig,
    *,
    out: Path,
    threads: int,
    drawn: Advance,
    advance: Advance,
    sites: Sequence[SiteConfig] = (),
    on_patients: Advance = unwatched,
) -> StartingPoint:
    """Pretrain on a study's synthetic patients, then on public ones if asked, and write the file.

    Args:
        study: Its `synthetic` section says which patients, and how many steps.
        out: The file; must not exist.
        threads: CPU threads to use.
        drawn: Progress of the synthetic patients.
        advance: Progress of the training steps.
        sites: Open data, on whose training patients the model is trained as well.
        on_patients: Progress of the training steps on them.

    Raises:
        ConfigError: If the study has no pretraining, asks for steps on patients and there are none
            or the other way round, or `out` exists or cannot be written.
        DataError: If a site's cohort cannot be read.
        ModelError: If the study's network cannot be built.
        PrivacyError: If a site is no open data, or one of its patients is a hospital's.
    """
    synthetic = _pretrained(study, with_patients=bool(sites))
    require_new_model_file(out)
    with tempfile.TemporaryDirectory(prefix="medfl-public-") as scratch:
        public = read_public_patients(study, sites, scratch=Path(scratch))
        weights = initial_weights(study, threads=threads, advance=advance, drawn=drawn)
        if sites:
            weights = trained_on_patients(
                weights, public, study, synthetic, threads=threads, advance=on_patients
            )
    provenance = {
        "medfl": __version__,
        "origin": PUBLIC_ORIGIN if sites else ORIGIN,
        "study": study.id,
        "seed": study.seed,
        "synthetic": _described(synthetic),
        "missing_modality": study.input.missing_modality,
        "pretraining_steps": synthetic.pretraining_steps,
        "label_schemes": sorted({"brats"} | public.label_schemes),
        "mechanisms": {},
        **_seen(public),
    }
    content = model_bytes(weights, spec=model_spec(study), provenance=provenance)
    write_atomically(out, content)
    return StartingPoint(
        sha256=hashlib.sha256(content).hexdigest(),
        collections=dict(public.collections),
        seen_sha256=list_digest(public.seen) if sites else None,
    )


def keep_starting_point(study: StudyConfig, *, out: Path) -> None:
    """Keep the file that a new run starts from in the run folder, if the study names one.

    Args:
        study: As `load_study` gives it, which knows where the file is.
        out: The run folder.

    Raises:
        ConfigError: If the study describes a training on patients, and names no file of it.
        ModelError: If the file cannot be used; nothing is written then.
    """
    synthetic = study.synthetic
    if synthetic is None:
        return
    if synthetic.start is None:
        if synthetic.public_steps:
            raise ConfigError(
                f"Expected [synthetic] start with public_steps = {synthetic.public_steps}, found "
                "none: only `medfl pretrain` trains on public patients."
            )
        return
    file = _file_of(synthetic.start)
    _read_start(study, synthetic, synthetic.start, file)
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
    return _read_start(study, study.synthetic, study.synthetic.start, out / FILE)


def seen_by_start(study: StudyConfig, *, out: Path) -> tuple[str, ...]:
    """Digests of the images of public patients that a study's start has seen.

    Args:
        study: The study; without such a start there are none.
        out: The run folder; where it does not keep the file yet, the file itself is read.

    Raises:
        ModelError: If the file is not the one that the study names.
    """
    start = study.synthetic.start if study.synthetic is not None else None
    if start is None or not start.collections:
        return ()
    kept = out / FILE
    seen = _checked(kept if kept.exists() else _file_of(start), start)["seen"]
    return tuple(map(str, seen))


def _pretrained(study: StudyConfig, *, with_patients: bool) -> StudySynthetic:
    """The section that describes a pretraining, if it does."""
    synthetic = study.synthetic
    if synthetic is None or synthetic.pretraining_steps == 0:
        found = "no such section" if synthetic is None else "0"
        raise ConfigError(
            f"Expected [synthetic] pretraining_steps >= 1 in the study, found {found}."
        )
    if with_patients and not synthetic.public_steps:
        raise ConfigError(
            "Expected [synthetic] public_steps >= 1 in the study with site files, found 0."
        )
    if synthetic.public_steps and not with_patients:
        raise ConfigError(
            "Expected site files of open data, since the study has [synthetic] public_steps = "
            f"{synthetic.public_steps}, found none."
        )
    return synthetic


def _seen(public: PublicPatients) -> dict[str, Any]:
    if not public.collections:
        return {}
    return {"collections": dict(public.collections), "seen": list(public.seen)}


def _file_of(start: StudyStart) -> Path:
    return shipped_file(start.shipped or "") if start.file is None else start.file


def _read_start(
    study: StudyConfig, synthetic: StudySynthetic, start: StudyStart, path: Path
) -> Weights:
    provenance = _checked(path, start)
    spec, pretrained = read_model(path)
    _require_same(path, model_spec(study).shared, spec.shared, of="the study's model")
    # A file of an earlier version says nothing of a setting that had not been invented.
    told = {**_DEFAULTS, **provenance.get("synthetic", {})}
    _require_same(path, _described(synthetic), told, of="the study's [synthetic]")
    network = model_spec(study).build(seed=study.seed)
    load_trainable(network, trainable_state(pretrained))
    return trainable_state(network)


def _checked(path: Path, start: StudyStart) -> dict[str, Any]:
    """What a file says of itself, if it is the one that the study names, and has seen as much."""
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(
            f"{path}: expected the file that [synthetic] start names, found: {error.strerror}. "
            "`medfl pretrain` makes one."
        ) from None
    provenance = read_provenance(path)
    if provenance.get("origin") not in (ORIGIN, PUBLIC_ORIGIN):
        raise ModelError(
            f"{path}: expected a file of `medfl pretrain`, found a model of another origin. One "
            "that was trained on patients has spent their privacy, and no ledger of this study "
            "would show it."
        )
    if found != start.sha256:
        raise ModelError(
            f"{path}: expected the file with SHA-256 {start.sha256[:12]}... that [synthetic] start "
            f"names, found {found[:12]}..."
        )
    _require_stated(path, provenance, start)
    return provenance


def _require_stated(path: Path, provenance: dict[str, Any], start: StudyStart) -> None:
    """Refuse a study that does not say whose patients its start has seen."""
    seen = provenance.get("seen", []) if provenance["origin"] == PUBLIC_ORIGIN else None
    point = StartingPoint(
        sha256=start.sha256,
        collections=provenance.get("collections", {}),
        seen_sha256=None if seen is None else list_digest(map(str, seen)),
    )
    if (tuple(point.collections), point.seen_sha256) != (start.collections, start.seen_sha256):
        raise ModelError(
            f"{path}: expected a start that has seen the public patients of "
            f"{list(start.collections)}, as the study says, found one that has seen those of "
            f"{list(point.collections)}. Everybody who agrees to the study has to be told: "
            f"[synthetic] start = {{ ..., {point.table} }}"
        )


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
