"""The model of a study: what it takes and gives, and what its files say of themselves."""

from __future__ import annotations

from collections.abc import Mapping

from medfl.config import StudyConfig
from medfl.protocol.messages import Declaration, Participant, Weights
from medfl.segmentation.model_file import ModelSpec, model_bytes
from medfl.segmentation.networks import trained_names
from medfl.version import __version__


def model_spec(study: StudyConfig) -> ModelSpec:
    """What the study's network takes and gives."""
    return ModelSpec(
        network=study.network.name,
        arguments=study.network.arguments,
        modalities=study.input.modalities,
        regions=study.input.regions,
        spacing=study.input.spacing,
        crop_size=study.input.crop_size,
        window_size=study.input.window,
    )


def trained_parameters(study: StudyConfig) -> frozenset[str]:
    """The parameters that sites train and send; the others stay as the study starts.

    Raises:
        ModelError: If the network cannot be built or is unfit for DP training, or the study names
            parameters that it does not have.
    """
    return trained_names(model_spec(study).build(), study.training.trainable)


def study_model_bytes(
    weights: Weights,
    *,
    study: StudyConfig,
    round_number: int,
    declarations: Mapping[str, Declaration | Participant],
) -> bytes:
    """A model file of this study after a round, with what it cost."""
    synthetic = study.synthetic
    provenance = {
        "medfl": __version__,
        "study": study.id,
        "study_digest": study.digest,
        "round": round_number,
        "trainable": study.training.trainable,
        "missing_modality": study.input.missing_modality,
        "pretraining_steps": synthetic.pretraining_steps if synthetic else 0,
        "start_sha256": synthetic.start.sha256 if synthetic and synthetic.start else "",
        "start_collections": list(synthetic.collections) if synthetic else [],
        "label_schemes": sorted({d.label_scheme for d in declarations.values()}),
        "mechanisms": {site: d.mechanism.to_dict() for site, d in declarations.items()},
    }
    return model_bytes(weights, spec=model_spec(study), provenance=provenance)
