"""From the files that were found for a case to the `Case`, and what is wrong or missing in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from medfl.config.site import Modality, SiteData
from medfl.data.cohort import Case
from medfl.data.layouts.bids_entities import chosen, differing
from medfl.data.layouts.problems import (
    Problem,
    doubled_case,
    no_patient_in,
    not_chosen,
    undecided,
    wrong_count,
)
from medfl.data.layouts.rule import LayoutRule, stand_ins
from medfl.data.layouts.walk import Draft, Found


def finished_case(
    case_id: str,
    draft: Draft,
    patient_id: str,
    data: SiteData,
    rule: LayoutRule,
    *,
    masks_required: bool,
) -> tuple[Case, list[Problem], list[Problem]]:
    """Decide which of the files that were found are the case's.

    Args:
        case_id: Its name.
        draft: What was found.
        patient_id: Whose it is, for messages.
        data: The site's settings.
        rule: Its layout.
        masks_required: Whether a case without a mask is incomplete.

    Returns:
        The case with the files that are beyond doubt, what is wrong with it, and what it lacks.
    """
    where = draft.folders[0] if draft.folders else draft.roots[0]
    wrong: list[Problem] = []
    lacking: list[Problem] = []
    if data.patient and not re.fullmatch(data.patient, case_id):
        wrong.append(no_patient_in(case_id, where, data.patient))
    doubled = _two_places(draft, rule)
    if doubled:
        wrong.append(doubled_case(patient_id, *doubled))
    # Of a doubled or unreadable case, nothing more is worth a line.
    judged = draft.readable and not doubled

    def single(found: Sequence[Found], what: str, *, required: bool) -> Path | None:
        files = chosen(found, data.bids)
        paths = [file.path for file in files]
        if judged and found and not files:
            wrong.append(
                not_chosen(patient_id, where, what, [file.path for file in found], data.bids)
            )
        elif judged and len(files) > 1:
            values = differing(files) if data.layout == "bids" else {}
            wrong.append(
                undecided(patient_id, where, what, paths, values)
                if values
                else wrong_count(patient_id, where, what, paths)
            )
        elif judged and required and not files:
            lacking.append(wrong_count(patient_id, where, what, paths))
        return paths[0] if len(paths) == 1 else None

    place = _first_place(draft) if rule.in_order else None
    images: dict[Modality, Path] = {}
    # Halves of two examinations, or of two people, make no case.
    for modality in data.modalities if judged else ():
        what = f"one {modality} image ({_shown(rule.images[modality])})"
        found = draft.images.get(modality, [])
        if place is not None:
            found = [file for file in found if file.place == place]
        path = single(found, what, required=True)
        if path is not None:
            images[modality] = path
    masks = draft.masks
    if rule.in_order and masks:
        first = min(mask.place for mask in masks)
        masks = [mask for mask in masks if mask.place == first]
    mask = single(masks, f"one mask ({_shown(rule.masks)})", required=masks_required)
    found_images = {file.path for files in draft.images.values() for file in files}
    case = Case(
        case_id=case_id,
        images=MappingProxyType(images),
        mask=mask,
        channels=MappingProxyType(
            {name: rule.channels[name] for name in images if name in rule.channels}
        ),
        volumes=max(1, len(rule.channels)),
        others=tuple(sorted(found_images - set(images.values()))),
        mask_path=_mask_path(draft, rule),
    )
    return case, wrong, lacking


def _two_places(draft: Draft, rule: LayoutRule) -> tuple[Path, Path] | None:
    """Two folders of a case, where it should lie in one."""
    if len(draft.roots) > 1:
        first, second = draft.roots[:2]
        within = [
            next((folder for folder in draft.folders if folder.is_relative_to(root)), root)
            for root in (first, second)
        ]
        return within[0], within[1]
    folders: dict[int, Path] = {}
    for files in draft.images.values():
        own: dict[int, Path] = {}
        for file in files:
            folder = file.path.parent
            other = own.setdefault(file.place, folder)
            if other != folder and not rule.in_order:
                return other, folder
            folders.setdefault(file.place, folder)
    if len(folders) > 1 and not rule.in_order:
        first, second = list(folders.values())[:2]
        return first, second
    return None


def _first_place(draft: Draft) -> int | None:
    """The most preferred place where a case has any image."""
    return min((file.place for files in draft.images.values() for file in files), default=None)


def _mask_path(draft: Draft, rule: LayoutRule) -> Path:
    """Where the layout would have the case's mask, as a path below some root.

    It has the suffix ``.nii.gz``; wherever the layout leaves a choice, it is medfl's own.
    """
    paths = rule.predicted or rule.masks
    place = _first_place(draft) or 0
    if len(rule.masks) == len(next(iter(rule.images.values()))):
        paths = (paths[place], *paths)
    fitting = [path for path in paths if stand_ins(path) <= draft.known.keys()]
    exact = [
        path for path in fitting if ("session" in stand_ins(path)) == ("session" in draft.known)
    ]
    *above, last = (exact or fitting or paths)[0].split("/")
    if any("*" in name for name in above):
        root = draft.roots[0]
        images = [file.path for files in draft.images.values() for file in files]
        folders = [path.parent for path in images if path.is_relative_to(root)]
        # Nobody can tell what was there.
        within = (folders or draft.folders)[0].relative_to(root)
    else:
        within = Path(*(_filled(name, draft.known) for name in above))
    return within / f"{_filled(last, draft.known)}.nii.gz"


def _filled(name: str, known: Mapping[str, str]) -> str:
    for stand_in, value in known.items():
        name = name.replace(f"{{{stand_in}}}", value)
    return name.replace("*", "medfl")


def _shown(paths: Sequence[str]) -> str:
    """The ways that a file may be called, for a message."""
    names = [path.split("/")[-1] for path in paths]
    names = [re.sub(r"\{(?:entities|plain|enhanced)\}", "", name) for name in names]
    names = [re.sub(r"(\{\w+\})(_\{\w+\})?", "*", name) for name in names]
    return ", ".join(dict.fromkeys(names))
