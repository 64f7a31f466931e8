"""Bugs on a patient's way to a gradient: it depends on more than this patient."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from bugs.planting import Bug, Planting, edited
from medfl.data import crops
from medfl.data.patient_store import PatientStore
from medfl.privacy.engine import PatientOptimizer, train_round
from medfl.privacy.patients import Patients
from medfl.segmentation.model_file import ModelSpec
from medfl.site import training_patients as site_patients

_MUCH = 1e-3  # by which a layer that counts changes its output from call to call


def _drop_the_same_modalities(planting: Planting) -> None:
    emptied = crops._emptied  # what a study's modality_dropout does
    prepare = site_patients.training_patients
    first: list[Tensor] = []

    def of_the_first(image_KCDHW: Tensor, **options: Any) -> Tensor:
        generator = options.pop("generator")
        if not first:
            first.append(generator.get_state())
        again = torch.Generator()
        again.set_state(first[0])
        return emptied(image_KCDHW, **options, generator=again)

    def new_round(*arguments: Any, **options: Any) -> Patients:
        first.clear()
        return prepare(*arguments, **options)

    planting.exchange(crops, "_emptied", of_the_first)
    planting.exchange(site_patients, "training_patients", new_round)


def _count_calls(planting: Planting) -> None:
    build = ModelSpec.build

    def build_counting(self: ModelSpec, *, seed: int = 0) -> nn.Module:
        network = build(self, seed=seed)
        calls = itertools.count()
        network.register_forward_hook(lambda *called: called[2] * (1 + _MUCH * next(calls)))
        return network

    planting.exchange(ModelSpec, "build", build_counting)


PATIENTS = (
    Bug(
        name="one generator a round",
        group="patients",
        sentence="All patients take their crops from one generator, as medfl 0.1 did.",
        plant=edited(
            Patients.randomness,
            (
                "yield torch.Generator().manual_seed(own)",
                "yield self.__dict__.setdefault('one', torch.Generator().manual_seed(1))",
            ),
        ),
    ),
    Bug(
        name="dropout by a global generator",
        group="patients",
        sentence="Layers take what torch's generator holds after the patients before.",
        plant=edited(
            Patients.randomness,
            ("with torch.random.fork_rng(devices=devices):", "if devices is not None:"),
            ("torch.default_generator.manual_seed(of_layers)", "pass"),
        ),
    ),
    Bug(
        name="seed by place in the list",
        group="patients",
        sentence="A patient's crops follow from how many patients stand before in the list.",
        plant=edited(Patients.randomness, ("self.names[index], step]", "index, step]")),
    ),
    Bug(
        name="seed by place in the batch",
        group="patients",
        sentence="A patient's crops follow from how many patients were drawn before.",
        plant=edited(
            train_round,
            (
                "patients.randomness(index, step=step)",
                "patients.randomness(batch.index(index), step=step)",
            ),
        ),
    ),
    Bug(
        name="cache key without contents",
        group="patients",
        sentence="All patients share one entry of the cache.",
        plant=edited(PatientStore._key, ('"contents": contents', '"contents": len(contents)')),
    ),
    Bug(
        name="store serves somebody else",
        group="patients",
        sentence="Whoever is read anew is served as the one who is longest in memory.",
        plant=edited(
            PatientStore._remembered,
            ("return prepared", "return next(iter(self._memory.values()), prepared)"),
        ),
    ),
    Bug(
        name="modality dropout once for all",
        group="patients",
        sentence="The first patient of a round decides which modalities all others lose.",
        plant=_drop_the_same_modalities,
    ),
    Bug(
        name="a layer that counts",
        group="patients",
        sentence="The network's output changes a little with every call.",
        plant=_count_calls,
    ),
    Bug(
        name="loss mixed with the one before",
        group="patients",
        sentence="A patient's loss is weighted with the loss of whoever was drawn before.",
        plant=edited(
            PatientOptimizer.add_patient,
            (
                "loss.backward()",
                "(loss * (1 + abs(getattr(self, 'before', 0.0)))).backward()\n"
                "        self.before = float(loss.detach())",
            ),
        ),
    ),
    Bug(
        name="a failure ends the round",
        group="patients",
        sentence="Whether a site answers tells whether a patient with a broken file was drawn.",
        plant=edited(train_round, ("failures.append(type(error).__name__)", "raise")),
    ),
)
