"""A model of the hospital's own: the federated model, adapted at home, where no noise is owed.

What a hospital sends is (epsilon, delta)-differentially private for each of its patients, and so is
whatever others make of it: the federated model that comes back, too. A hospital that trains on with
its own patients and keeps the result shows nobody anything more. This is joint differential privacy
(Kearns, Pai, Roth and Ullman, "Mechanism design in large games", arXiv 1207.4084): what one party
gets may depend on its own data without limit, as long as what all others get does not. A shared
private part and a local one in federated learning are those of Bietti et al., "Personalization
improves privacy-accuracy tradeoffs in federated learning", arXiv 2202.05318.

The promise lasts for as long as the file stays: it is patient data from the moment it is written.

Which model serves the hospital best is decided on patients that it did not see. The candidates are
the federated model, a model that the hospital could have made alone, the adapted one, and averages
of weights (Wortsman et al., arXiv 2109.01903). Each is scored by cross-validation on the training
patients. Held-out patients have no say, so that they can still judge the outcome.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch
from torch import Tensor, nn

from medfl.data.patient_store import PatientStore
from medfl.errors import DataError
from medfl.segmentation.inference import segment
from medfl.segmentation.metrics import score
from medfl.segmentation.model_file import ModelSpec
from medfl.segmentation.networks import load_trainable, trainable_state
from medfl.site.plain_training import Recipe, train_plainly

Weights = Mapping[str, Tensor]

FEDERATED, ADAPTED, ALONE = "federated", "adapted", "alone"

Watch = Callable[[str, int, int], None]
"""Told the part of the work, what is done of it, and all of it."""

# Half of each: the more candidates a few patients choose from, the more the choice is luck.
_SHARE = 0.5
# Of a window with the next one. Candidates are ranked by it alike, at a third of the time.
_OVERLAP = 0.25


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that was tried.

    Attributes:
        name: What it is.
        dice: Of each training patient, by a model that did not train on that patient: the mean over
            regions and cases.
    """

    name: str
    dice: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over patients."""
        return fmean(self.dice)


@dataclass(frozen=True, kw_only=True, eq=False)
class Adaptation:
    """What was tried, what was chosen, and the model.

    Attributes:
        candidates: All of them, in a fixed order; the federated model first.
        chosen: The one with the highest mean.
        weights: Of the chosen one, trained on all training patients.
    """

    candidates: tuple[Candidate, ...]
    chosen: Candidate
    weights: Weights


@dataclass(frozen=True, kw_only=True)
class _Model:
    """A candidate before it is made: an average of two models.

    Attributes:
        name: What it is called.
        of: The two models.
        share: Of the second one.
    """

    name: str
    of: tuple[str, str]
    share: float

    def weights(self, made: Mapping[str, Weights]) -> Weights:
        first, second = (made[name] for name in self.of)
        return {name: torch.lerp(first[name], second[name], self.share) for name in first}


def adapt(
    federated: Weights,
    store: PatientStore,
    *,
    spec: ModelSpec,
    start: Weights | None,
    recipe: Recipe,
    folds: int,
    device: str,
    watch: Watch,
) -> Adaptation:
    """Make a hospital's own model.

    Args:
        federated: The federated model.
        store: The hospital's training patients; nobody else's.
        spec: What the model takes and gives.
        start: What the hospital would train from if it were alone; without it that candidate is
            left out.
        recipe: How to train, without noise.
        folds: Parts of the cross-validation, at least 2.
        device: Where to train.
        watch: Progress.

    Returns:
        The outcome.

    Raises:
        DataError: If there are fewer training patients than folds, or one cannot be prepared.
    """
    if len(store) < folds:
        raise DataError(
            f"Expected at least as many training patients as folds ({folds}), found {len(store)}."
        )
    starts = {ADAPTED: federated} | ({} if start is None else {ALONE: start})
    models = _models(with_alone=start is not None)
    network = spec.build().to(device)

    def train(among: Sequence[int], part: str, *, wanted: Collection[str]) -> dict[str, Weights]:
        made: dict[str, Weights] = {FEDERATED: federated}
        for name in starts.keys() & wanted:
            load_trainable(network, starts[name])
            train_plainly(
                network,
                store,
                among=among,
                recipe=recipe,
                device=device,
                advance=partial(watch, f"{part}: {name}"),
            )
            made[name] = trainable_state(network)
        return made

    order = torch.randperm(
        len(store), generator=torch.Generator().manual_seed(recipe.seed)
    ).tolist()
    dice: dict[str, dict[int, float]] = defaultdict(dict)
    for fold in range(folds):
        part = f"fold {fold + 1} of {folds}"
        unseen = order[fold::folds]
        made = train(sorted(set(order) - set(unseen)), part, wanted=starts)
        for number, model in enumerate(models, start=1):
            load_trainable(network, model.weights(made))
            for index in unseen:
                dice[model.name][index] = _mean_dice(
                    network, store, index, spec=spec, device=device
                )
            watch(f"{part}: scoring", number, len(models))
    candidates = tuple(
        Candidate(name=model.name, dice=tuple(dice[model.name][index] for index in sorted(order)))
        for model in models
    )
    chosen = max(candidates, key=lambda candidate: candidate.mean)
    model = next(model for model in models if model.name == chosen.name)
    made = train(sorted(order), "all training patients", wanted=model.of)
    return Adaptation(candidates=candidates, chosen=chosen, weights=model.weights(made))


def _models(*, with_alone: bool) -> list[_Model]:
    pairs = [(FEDERATED, ADAPTED), *([(ALONE, ADAPTED)] if with_alone else [])]
    models = [
        _Model(name=name, of=(name, name), share=0.0)
        for name in (FEDERATED, ADAPTED, *([ALONE] if with_alone else []))
    ]
    models += [
        _Model(name=f"average of {first} and {second}", of=(first, second), share=_SHARE)
        for first, second in pairs
    ]
    return models


def _mean_dice(
    network: nn.Module, store: PatientStore, index: int, *, spec: ModelSpec, device: str
) -> float:
    """Of one patient: over regions and cases."""
    return fmean(
        of_region.dice
        for case in store.prepared(index)
        for of_region in score(
            segment(
                network,
                case.image_CDHW,
                window_size=spec.window_size,
                overlap=_OVERLAP,
                device=device,
            )
            > 0.5,
            case.regions_RDHW,
            regions=spec.regions,
            spacing_mm=case.spacing_mm,
            with_hd95=False,
        )
    )
