"""Which layout and label scheme a folder seems to follow, and how sure that is.

Every known layout is tried on the folder, and every label scheme on some masks. Nothing is decided:
values alone cannot tell some sources apart, so a person has to confirm what is proposed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from medfl.config.site import KNOWN_SCHEMES, LabelScheme, Layout, Modality, SiteData
from medfl.data.label_schemes import scheme_of, scheme_values
from medfl.data.label_values import judge_labels
from medfl.data.layouts.bids_entities import differing, entities_of
from medfl.data.layouts.dataset_json import described_scheme, read_description
from medfl.data.layouts.rules import LAYOUTS
from medfl.data.layouts.survey import Survey, survey_cohort
from medfl.data.layouts.walk import Walk, all_folders, is_image
from medfl.data.nifti.headers import FileFaults, read_header, read_voxels
from medfl.errors import DataError

Surety = Literal["certain", "likely", "a guess"]

MASKS_READ = 20
_EXPLAINED = 0.9
"""Part of the folders with images that a layout has to explain to be likely."""

_DEEPEST = 2
"""Folders below the given one in which cases are looked for, if there are none in itself."""

_MOST_ROOTS = 20
"""Folders of one site that are proposed: more of them are patients in a layout of their own."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What a folder seems to hold.

    Attributes:
        roots: The folders that hold the cases: the given ones, or some below.
        layout: How its files are named.
        alike: Further layouts that read the same out of it.
        label_scheme: What its masks' values seem to mean.
        other_schemes: Those that the values fit just as well.
        modalities: Those that every case has.
        patients: People found.
        cases: Imaging timepoints found.
        explained: Part of the folders with images in which the layout finds some.
        values: Values in the masks that were read.
        named: Whether the dataset names its labels in words that are understood.
        surety: ``certain`` if one layout explains everything, one scheme fits, and the meaning of
            the values is known from the source or was read; ``likely`` if one layout does, but
            schemes cannot be told apart, labels have no names, or some files are left over.
        problems: What contradicts the layout.
        incomplete: Cases without a mask.
        bids: Entities by which files would have to be chosen, with all values met.
    """

    roots: tuple[str, ...] = field(compare=False)  # the same data may lie elsewhere
    layout: Layout
    alike: tuple[Layout, ...]
    label_scheme: LabelScheme
    other_schemes: tuple[LabelScheme, ...]
    modalities: tuple[Modality, ...]
    patients: int
    cases: int
    explained: float
    values: tuple[float, ...]
    named: bool
    surety: Surety
    problems: int
    incomplete: int
    bids: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def data(self) -> SiteData:
        """The site's `[data]` table."""
        roots = tuple(map(Path, self.roots))
        return SiteData(
            root=roots if len(roots) > 1 else roots[0],
            layout=self.layout,
            label_scheme=self.label_scheme,
            modalities=self.modalities,
            incomplete="leave-out" if self.incomplete else "refuse",
            bids=dict(self.bids),
        )


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """One layout on the folders."""

    data: SiteData
    survey: Survey
    explained: float

    @property
    def reading(self) -> object:
        """What is taken for whose, but for the meaning of values."""
        return [
            (patient.patient_id, [(case.images, case.mask) for case in patient.cases])
            for patient in self.survey.patients
        ]


def detect(*roots: Path) -> list[Proposal]:
    """Try every known layout on a folder, or on several folders of one site.

    Args:
        roots: The folders. If a single one has no case that a layout knows, those below it are
            taken for several folders of one site.

    Returns:
        Proposals, the best first; none if no layout finds a case.

    Raises:
        DataError: If there is no such folder.
    """
    for root in roots:
        if not root.is_dir():
            raise DataError(f"{root}: expected a folder, found none. Correct the path.")
    proposals: list[Proposal] = []
    for _ in range(_DEEPEST + 1):
        proposals = _proposals(roots) if roots else []
        if proposals:
            break
        roots = tuple(_below(roots))
        if len(roots) > _MOST_ROOTS:
            break
    return proposals


def _below(roots: Sequence[Path]) -> Iterator[Path]:
    """The folders within folders that hold images, however deep."""
    for root in roots:
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            if any(any(map(is_image, names)) for _, names in all_folders(folder)):
                yield folder


def _proposals(roots: Sequence[Path]) -> list[Proposal]:
    folders = {
        folder for root in roots for folder, names in all_folders(root) if any(map(is_image, names))
    }
    if not folders:
        return []
    trials = [
        trial
        for layout in LAYOUTS
        for trial in [_trial(roots, layout, folders)]
        if _modalities(trial.survey)
    ]
    trials.sort(key=lambda trial: (-trial.explained, len(trial.survey.problems)))
    proposals: list[Proposal] = []
    readings: list[tuple[object, object]] = []
    for trial in trials:
        proposal = _proposal(trial)
        reading = trial.reading, scheme_of(proposal.label_scheme)
        if reading in readings:
            place = readings.index(reading)
            first = proposals[place]
            proposals[place] = replace(first, alike=(*first.alike, proposal.layout))
            continue
        proposals.append(proposal)
        readings.append(reading)
    # Layouts whose names are the same differ in what their masks hold.
    proposals.sort(key=lambda proposal: -round(proposal.explained, 2) + (not _fits(proposal)))
    return [_judged(proposal, proposals) for proposal in proposals]


def _trial(roots: Sequence[Path], layout: Layout, folders: Set[Path]) -> _Trial:
    rule = LAYOUTS[layout]
    described = _named(roots) if rule.numbers else ()
    data = SiteData(
        root=tuple(roots),
        layout=layout,
        label_scheme=(*described, *rule.label_schemes)[0],
        modalities=rule.modalities,
        bids=_choice(roots) if layout == "bids" else {},
    )
    survey = survey_cohort(data)
    cases = [case for patient in survey.patients for case in patient.cases]
    files = [p for case in cases for p in (*case.images.values(), *case.others, case.mask) if p]
    found = {path.parent for path in files}
    others = [folder for folder in folders - found if not rule.ignored & set(folder.parts)]
    explained = len(found) / max(1, len(found) + len(others))
    return _Trial(data=data, survey=survey, explained=explained)


def _choice(roots: Sequence[Path]) -> dict[str, tuple[str, ...]]:
    """Entities in which several files of one kind differ, each with the values that it has."""
    rule = LAYOUTS["bids"]
    walk = Walk(rule, rule.modalities)
    for root in roots:
        walk.look(root)
    kinds = [
        files for draft in walk.drafts.values() for files in (*draft.images.values(), draft.masks)
    ]
    doubtful = {entity for files in kinds for entity in differing(files)}
    told = [entities_of(file) for files in kinds for file in files]
    met = {name: {entities.get(name, "") for entities in told} for name in sorted(doubtful)}
    # Files without the entity last: one that says more about itself was made for a purpose.
    return {name: tuple(sorted(values, key=lambda v: (not v, v))) for name, values in met.items()}


def _modalities(survey: Survey) -> tuple[Modality, ...]:
    cases = [case for patient in survey.patients for case in patient.cases]
    found = dict.fromkeys(modality for case in cases for modality in case.images)
    everywhere = [name for name in found if all(name in case.images for case in cases)]
    return tuple(everywhere or found)


def _named(roots: Sequence[Path]) -> tuple[LabelScheme, ...]:
    """The schemes that all datasets' own words describe; none where there are no such words."""
    try:
        told = [described_scheme(read_description(root)) for root in roots]
    except ValueError:
        return ()
    return tuple(scheme for scheme in told[0] if all(scheme in schemes for schemes in told))


def _proposal(trial: _Trial) -> Proposal:
    data, survey = trial.data, trial.survey
    rule = LAYOUTS[data.layout]
    cases = [case for patient in survey.patients for case in patient.cases]
    values = _values([case.mask for case in cases if case.mask is not None])
    named = _named(data.roots) if rule.numbers else None
    schemes = named or rule.label_schemes
    fitting = [scheme for scheme in schemes if set(values) <= scheme_values(scheme)]
    # The scheme with the fewest values that were not met says most about those that were; of two
    # with one meaning, the layout's own.
    fitting.sort(key=lambda scheme: (len(scheme_values(scheme)), scheme not in rule.label_schemes))
    chosen = fitting[0] if fitting else schemes[0]
    return Proposal(
        roots=tuple(map(str, data.roots)),
        layout=data.layout,
        alike=(),
        label_scheme=chosen,
        other_schemes=tuple(s for s in fitting if scheme_of(s) != scheme_of(chosen)),
        modalities=_modalities(survey),
        patients=len(survey.patients),
        cases=len(cases),
        explained=trial.explained,
        values=values,
        named=named is None or bool(named),
        surety="a guess",
        problems=len(survey.problems),
        incomplete=sum(case.mask is None for case in cases),
        bids=data.bids,
    )


def _values(masks: Sequence[Path]) -> tuple[float, ...]:
    """Rounded values in some masks, evenly chosen; damaged ones are for the preflight to name."""
    chosen = np.linspace(0, len(masks) - 1, min(MASKS_READ, len(masks))).round().astype(int)
    values: set[float] = set()
    for number in dict.fromkeys(chosen.tolist()):
        try:
            voxels = read_voxels(masks[number], read_header(masks[number]))
        except FileFaults:
            continue
        whole, wrong = judge_labels(voxels, scheme="brats2015")
        values.update(np.unique(whole).tolist() if not wrong else np.unique(voxels)[:50].tolist())
    return tuple(sorted(values))


def _fits(proposal: Proposal) -> bool:
    return set(proposal.values) <= scheme_values(proposal.label_scheme)


def _judged(proposal: Proposal, all_proposals: Sequence[Proposal]) -> Proposal:
    rivals = [
        other
        for other in all_proposals
        if other is not proposal and _fits(other) and other.explained >= _EXPLAINED
    ]
    surety: Surety = "a guess"
    if proposal.explained >= _EXPLAINED and _fits(proposal) and proposal.values:
        doubts = (
            *rivals,
            *proposal.other_schemes,
            *_closer_schemes(proposal),
        )
        source = LAYOUTS[proposal.layout]
        told = proposal.named and not source.schemes_disputed
        alone = told and not (doubts or proposal.problems)
        surety = "certain" if alone else "likely" if not rivals else "a guess"
    return replace(proposal, surety=surety)


def _closer_schemes(proposal: Proposal) -> list[LabelScheme]:
    """Known schemes of which fewer values are missing: the masks may have been converted to one."""
    met = set(proposal.values)
    missing = len(scheme_values(proposal.label_scheme) - met)
    return [
        scheme
        for scheme in KNOWN_SCHEMES
        if met <= scheme_values(scheme)
        and len(scheme_values(scheme) - met) < missing
        and scheme_of(scheme) != scheme_of(proposal.label_scheme)
    ]
