"""Where the first global model comes from: random weights, or training on synthetic patients.

Synthetic patients belong to nobody, so this costs no privacy. They go through the same files,
transforms and crops as a hospital's, under looks and seeds that no synthetic hospital uses.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from medfl.config import StudyConfig
from medfl.config.site import MODALITY_ORDER, SiteData
from medfl.config.synthetic import StudySynthetic
from medfl.data.layouts.survey import read_cohort
from medfl.data.patient_store import PatientStore
from medfl.data.transforms import Frame
from medfl.phantom.patient import public_look, write_hospital
from medfl.protocol.messages import Weights
from medfl.protocol.study_model import model_spec
from medfl.segmentation.networks import load_trainable, trainable_state
from medfl.site.plain_training import Advance, Recipe, train_plainly
from medfl.study.public_patients import PublicPatients


def unwatched(done: int, total: int) -> None:
    """Progress that nobody watches."""


def initial_weights(
    study: StudyConfig, *, threads: int, advance: Advance, drawn: Advance = unwatched
) -> Weights:
    """Make the first global model: the same for the same study.

    Args:
        study: Its `synthetic` section decides between random and pretrained weights. A file that
            it may start from is not read, see `medfl.study.starting_point`.
        threads: CPU threads to use.
        advance: Progress of the training steps.
        drawn: Progress of the synthetic patients before that.
    """
    network = model_spec(study).build(seed=study.seed)
    synthetic = study.synthetic
    if synthetic is not None and synthetic.pretraining_steps > 0:
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory(prefix="medfl-synthetic-") as folder:
            store = synthetic_patients(
                study,
                synthetic,
                count=synthetic.pretraining_patients,
                folder=Path(folder),
                drawn=drawn,
            )
            train_plainly(
                network,
                store,
                among=range(len(store)),
                recipe=_recipe(study, synthetic),
                advance=advance,
            )
    return trainable_state(network)


def trained_on_patients(
    weights: Weights,
    patients: PublicPatients,
    study: StudyConfig,
    synthetic: StudySynthetic,
    *,
    threads: int,
    advance: Advance,
) -> Weights:
    """Train a pretrained model further on public patients, without noise.

    Args:
        weights: Of the pretrained model.
        patients: The patients.
        study: Its network, crops and seed.
        synthetic: How many steps, and how large ones.
        threads: CPU threads to use.
        advance: Progress of the training steps.

    Raises:
        DataError: If a patient cannot be prepared.
    """
    network = model_spec(study).build(seed=study.seed)
    load_trainable(network, weights)
    torch.set_num_threads(threads)
    recipe = replace(_recipe(study, synthetic), steps=synthetic.public_steps, randomise=False)
    train_plainly(network, patients, among=range(len(patients)), recipe=recipe, advance=advance)
    return trainable_state(network)


def _recipe(study: StudyConfig, synthetic: StudySynthetic) -> Recipe:
    return Recipe(
        steps=synthetic.pretraining_steps,
        learning_rate=synthetic.pretraining_learning_rate,
        crop_size=study.input.crop_size,
        crops_per_patient=study.input.crops_per_patient,
        dropout=study.input.modality_dropout,
        seed=synthetic.seed,
        randomise=synthetic.randomise,
        ema_decay=synthetic.ema_decay,
    )


def synthetic_patients(
    study: StudyConfig,
    synthetic: StudySynthetic,
    *,
    count: int,
    folder: Path,
    first_number: int = 0,
    drawn: Advance = unwatched,
) -> PatientStore:
    """Write synthetic patients to a folder, each with a scanner look of its own, and read them.

    Args:
        study: Its frame.
        synthetic: Shape, spacing and seed.
        count: Patients.
        folder: Where their files go.
        first_number: Number of the first patient; other numbers are other patients.
        drawn: Progress.
    """
    root = folder / "patients"
    for number in range(first_number, first_number + count):
        write_hospital(
            root,
            patients=1,
            shape=synthetic.shape,
            spacing=synthetic.spacing,
            look=public_look(synthetic.seed + number, variety=synthetic.variety),
            skull_stripped=synthetic.skull_stripped,
            variety=synthetic.variety,
            seed=synthetic.seed,
            first_number=number,
            on_patient=lambda _: None,
        )
        drawn(number - first_number + 1, count)
    data = SiteData(root=root, layout="brats2021", label_scheme="brats", modalities=MODALITY_ORDER)
    frame = Frame(
        modalities=study.input.modalities,
        regions=study.input.regions,
        spacing=study.input.spacing,
        label_scheme="brats",
    )
    return PatientStore(read_cohort(data).patients, frame, folder / "cache")
