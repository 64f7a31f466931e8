"""`LayoutRule`: how one data source names its folders and files, as one frozen value.

A rule gives, for every modality and for the mask, where its file lies below the root.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medfl.config.site import MODALITY_ORDER, LabelScheme, Modality

_NAMES = re.compile(r"\{(case|patient|session|entities|plain|enhanced)\}|(\*)")
# What is between subject and suffix in BIDS; contrast medium is told by the entity `ce`.
_OTHER = r"(?:_(?!ce-)[A-Za-z]+-[A-Za-z0-9+]+)*"
_ENTITIES = {
    "entities": r"(?:_[A-Za-z]+-[A-Za-z0-9+]+)*",
    "plain": _OTHER,
    "enhanced": rf"{_OTHER}_ce-[A-Za-z0-9+]+{_OTHER}",
}


@dataclass(frozen=True, kw_only=True)
class LayoutRule:
    """How one data source names its folders and files.

    A path is written below the root, with ``/`` between names and without ``.nii`` or ``.nii.gz``.
    In it ``{case}``, ``{patient}`` and ``{session}`` stand for names that are the same in all of
    it, and ``*`` for any text within one name. In names of BIDS, ``{entities}`` stands for any
    entities, ``{plain}`` for those of an image without contrast medium, and ``{enhanced}`` for
    those of one with it. Where a file may lie at several places, each has a path of its own, and
    all images of one case lie at one of them.

    Attributes:
        patient: Pattern of a name that is a person: of ``{patient}``, or within ``{case}`` the
            group ``patient``, so that several timepoints of one person stay one patient. What the
            group found may occur further down a path as ``{patient}``.
        case: Pattern of ``{case}``, with a group ``patient``; empty where cases have no name of
            their own, but follow from patient and session.
        session: Pattern of ``{session}``; empty where there is none.
        images: Modality -> paths of its file.
        channels: Modality -> its volume in a 4-D file; empty where a file holds one modality.
        masks: Paths of the mask.
        in_order: Whether places are in order of preference, so that of several the first counts;
            otherwise a case at two places is doubled.
        predicted: Paths of a predicted mask, where `masks` leave a choice.
        other_masks: Pattern of what is in the names of masks that are not a tumour's.
        numbers: Modality -> its number where ``dataset.json`` names them by number.
        held_apart: Folder with images of a test set, whose cases must not train.
        ignored: Folders that hold no patients.
        label_schemes: What mask values can mean in this layout.
        schemes_disputed: Whether those who use the source say different things of its values.
    """

    patient: str = ""
    case: str = ""
    session: str = ""
    images: Mapping[Modality, tuple[str, ...]]
    channels: Mapping[Modality, int] = field(default_factory=dict)
    masks: tuple[str, ...]
    in_order: bool = False
    predicted: tuple[str, ...] = ()
    other_masks: str = ""
    numbers: Mapping[Modality, int] = field(default_factory=dict)
    held_apart: str = ""
    ignored: frozenset[str] = frozenset()
    label_schemes: tuple[LabelScheme, ...]
    schemes_disputed: bool = False

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those that the layout has, in the fixed order."""
        return tuple(modality for modality in MODALITY_ORDER if modality in self.images)

    @property
    def paths(self) -> tuple[str, ...]:
        """All of its paths."""
        return (*(path for paths in self.images.values() for path in paths), *self.masks)

    def is_other_mask(self, stem: str) -> bool:
        """Whether a file at a path of `masks` is called as something else than a tumour."""
        return bool(self.other_masks and re.search(self.other_masks, stem, re.IGNORECASE))

    def pattern(self, name: str, *, known: Mapping[str, str], ignore_case: bool) -> re.Pattern[str]:
        """A pattern of one name of a path.

        Args:
            name: Between two ``/`` of a path.
            known: What its stand-ins were found to be further up the path.
            ignore_case: Whether capital letters matter.
        """
        parts: list[str] = []
        met: set[str] = set()
        position = 0
        for match in _NAMES.finditer(name):
            parts.append(re.escape(name[position : match.start()]))
            position = match.end()
            stand_in = match[1]
            if stand_in is None:
                parts.append(".*")
            elif stand_in in _ENTITIES:
                parts.append(_ENTITIES[stand_in])
            elif stand_in in known:
                parts.append(re.escape(known[stand_in]))
            elif stand_in in met:
                parts.append(f"(?P={stand_in})")
            else:
                met.add(stand_in)
                parts.append(f"(?P<{stand_in}>{getattr(self, stand_in)})")
        parts.append(re.escape(name[position:]))
        return re.compile("".join(parts), re.IGNORECASE if ignore_case else 0)


def stand_ins(path: str) -> frozenset[str]:
    """The names of a case that a path, or a part of one, has stand-ins for."""
    return frozenset(match[1] for match in _NAMES.finditer(path) if match[1]) - _ENTITIES.keys()


def placed(
    endings: Mapping[Modality, str], places: Sequence[str]
) -> dict[Modality, tuple[str, ...]]:
    """Modality -> each place with the modality's ending in place of ``#``."""
    return {
        modality: tuple(place.replace("#", ending) for place in places)
        for modality, ending in endings.items()
    }
