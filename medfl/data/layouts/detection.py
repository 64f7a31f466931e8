"""Which layout and label scheme a folder seems to follow, and how sure that is.

Every known layout is tried on the folder, and every label scheme on some masks. Nothing is decided:
values alone cannot tell some sources apart, so a person has to confirm what is proposed.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from medfl.config.site import LabelScheme, Layout, Modality, SiteData
from medfl.data.label_schemes import scheme_of, scheme_values
from medfl.data.labels import judge_labels
from medfl.data.layouts.dataset_json import described_scheme, read_description
from medfl.data.layouts.rules import LAYOUTS
from medfl.data.layouts.survey import Survey, survey_cohort
from medfl.data.layouts.walk import all_folders, is_image
from medfl.data.nifti.headers import FileFaults, read_header, read_voxels
from medfl.errors import DataError

Surety = Literal["certain", "likely", "a guess"]

MASKS_READ = 20
_EXPLAINED = 0.9
"""Part of the folders with images that a layout has to explain to be likely."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What a folder seems to hold.

    Attributes:
        layout: How its files are named.
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
    """

    layout: Layout
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


def detect(root: Path) -> list[Proposal]:
    """Try every known layout on a folder.

    Args:
        root: The folder.

    Returns:
        Proposals, the best first; none if no layout finds a case.

    Raises:
        DataError: If there is no such folder.
    """
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder, found none. Correct the path.")
    folders = {folder for folder, names in all_folders(root) if any(map(is_image, names))}
    if not folders:
        return []
    tried = [
        (_explained(survey, folders, ignored=LAYOUTS[layout].ignored), layout, survey)
        for layout in LAYOUTS
        for survey in [_survey(root, layout)]
        if _modalities(survey)
    ]
    tried.sort(key=lambda trial: (-trial[0], len(trial[2].problems)))
    proposals = [
        _proposal(root, layout, survey, explained=explained) for explained, layout, survey in tried
    ]
    # Layouts whose names are the same differ in what their masks hold.
    proposals.sort(key=lambda proposal: -round(proposal.explained, 2) + (not _fits(proposal)))
    return [_judged(proposal, proposals) for proposal in proposals]


def _survey(root: Path, layout: Layout) -> Survey:
    rule = LAYOUTS[layout]
    described = _named(root) if rule.numbers else ()
    data = SiteData(
        root=root,
        layout=layout,
        label_scheme=(*described, *rule.label_schemes)[0],
        modalities=rule.modalities,
    )
    return survey_cohort(data)


def _modalities(survey: Survey) -> tuple[Modality, ...]:
    cases = [case for patient in survey.patients for case in patient.cases]
    found = dict.fromkeys(modality for case in cases for modality in case.images)
    everywhere = [name for name in found if all(name in case.images for case in cases)]
    return tuple(everywhere or found)


def _explained(survey: Survey, folders: Set[Path], *, ignored: Set[str]) -> float:
    cases = [case for patient in survey.patients for case in patient.cases]
    files = [path for case in cases for path in (*case.images.values(), case.mask) if path]
    found = {path.parent for path in files}
    others = [folder for folder in folders - found if not ignored & set(folder.parts)]
    return len(found) / (len(found) + len(others))


def _named(root: Path) -> tuple[LabelScheme, ...]:
    """The schemes that the dataset's own words describe; none where there are no such words."""
    try:
        return described_scheme(read_description(root))
    except ValueError:
        return ()


def _proposal(root: Path, layout: Layout, survey: Survey, *, explained: float) -> Proposal:
    masks = [case.mask for p in survey.patients for case in p.cases if case.mask is not None]
    values = _values(masks)
    named = _named(root) if LAYOUTS[layout].numbers else None
    schemes = named or LAYOUTS[layout].label_schemes
    fitting = [scheme for scheme in schemes if set(values) <= scheme_values(scheme)]
    # The scheme with the fewest values that were not met says most about those that were; of two
    # with one meaning, the layout's own.
    usual = LAYOUTS[layout].label_schemes
    fitting.sort(key=lambda scheme: (len(scheme_values(scheme)), scheme not in usual))
    chosen = fitting[0] if fitting else schemes[0]
    return Proposal(
        layout=layout,
        label_scheme=chosen,
        other_schemes=tuple(s for s in fitting if scheme_of(s) != scheme_of(chosen)),
        modalities=_modalities(survey),
        patients=len(survey.patients),
        cases=sum(len(patient.cases) for patient in survey.patients),
        explained=explained,
        values=values,
        named=named is None or bool(named),
        surety="a guess",
        problems=len(survey.problems),
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
        values.update(whole.unique().tolist() if not wrong else np.unique(voxels)[:50].tolist())
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
        alone = not (rivals or proposal.other_schemes or proposal.problems) and proposal.named
        surety = "certain" if alone else "likely" if not rivals else "a guess"
    values = {**vars(proposal), "surety": surety}
    return Proposal(**values)
