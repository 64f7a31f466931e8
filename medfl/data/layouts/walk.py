"""`Walk`: one way through each root of a site, along the paths that a layout gives."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medfl.config.site import Modality
from medfl.data.layouts.problems import (
    Problem,
    ambiguous_case,
    empty_patient,
    unknown_file,
    unknown_folder,
    unprintable,
    unreadable,
)
from medfl.data.layouts.rule import LayoutRule, stand_ins

_IMAGE_SUFFIXES = (".nii.gz", ".nii")
_NOT_PATIENTS = frozenset({"__MACOSX"})  # left behind by archives made on macOS


@dataclass(frozen=True, kw_only=True)
class _Branch:
    """What is left of a path below the folder that is looked at.

    Attributes:
        modality: Whose file it leads to; None for the mask.
        place: Which of the rule's paths for it this is.
        names: The rest of the path.
        known: What stand-ins were found to be so far.
    """

    modality: Modality | None
    place: int
    names: tuple[str, ...]
    known: Mapping[str, str]

    @property
    def tells_the_case(self) -> bool:
        """Whether the folders so far name a case, so that what else is in them is nobody's."""
        left = stand_ins("/".join(self.names)) - self.known.keys()
        return not left and bool(_identity(self.known))


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file, and which of the rule's paths leads to it."""

    path: Path
    place: int


@dataclass(kw_only=True)
class Draft:
    """The files of one case as they are found.

    Attributes:
        known: What the stand-ins of its paths are.
        roots: Folders of the site in which it lies.
        folders: Its own folders.
        readable: Whether all of them may be read.
    """

    known: Mapping[str, str]
    roots: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    images: dict[Modality, list[Found]] = field(default_factory=dict)
    masks: list[Found] = field(default_factory=list)
    readable: bool = True


class Walk:
    """One way through all folders below the roots, along the paths of a rule.

    Attributes:
        drafts: The cases by name.
        strays: Masks whose case has no image folder, by the case's name.
        problems: What contradicts the rule on the way.
    """

    def __init__(self, rule: LayoutRule, modalities: Sequence[Modality]) -> None:
        self._rule = rule
        self._paths: list[tuple[Modality | None, int, str]] = [
            (modality, place, path)
            for modality in modalities
            for place, path in enumerate(rule.images[modality])
        ]
        self._paths += [(None, place, path) for place, path in enumerate(rule.masks)]
        self.drafts: dict[str, Draft] = {}
        self.strays: dict[str, list[Path]] = {}
        self.problems: list[Problem] = []
        self._masks: dict[str, Draft] = {}
        self._root = Path()
        self._places = 0

    def look(self, root: Path) -> None:
        """Find everything below a root."""
        self._begin_root(root)
        self._look(
            root,
            [
                _Branch(modality=modality, place=place, names=tuple(path.split("/")), known={})
                for modality, place, path in self._paths
            ],
        )
        self._join_masks()

    def look_into_case(self, folder: Path, known: Mapping[str, str]) -> None:
        """Find the files of one case folder.

        Args:
            folder: The folder.
            known: What the stand-ins of its paths are.
        """
        self._begin_root(folder)
        # Where a case folder may lie at several places, its files are called the same.
        files: dict[tuple[Modality | None, str], int] = {}
        for modality, place, path in self._paths:
            files.setdefault((modality, path.split("/")[-1]), place)
        self._look(
            folder,
            [
                _Branch(modality=modality, place=place, names=(name,), known=known)
                for (modality, name), place in files.items()
            ],
        )
        self._join_masks()

    def _begin_root(self, root: Path) -> None:
        self._root = root
        self._masks = {}

    def _join_masks(self) -> None:
        """A mask belongs to a case of the same root: under another one, it may be a stranger's."""
        for case_id, found in self._masks.items():
            draft = self.drafts.get(case_id)
            if draft and self._root in draft.roots and _same_case(draft.known, found.known):
                draft.masks += found.masks
            else:
                self.strays.setdefault(case_id, []).extend(mask.path for mask in found.masks)

    def _look(self, folder: Path, branches: list[_Branch]) -> None:
        try:
            entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
            for entry in entries:
                entry.is_dir()  # fails where names may be listed and nothing may be opened
        except OSError as error:
            patient = next((b.known["patient"] for b in branches if "patient" in b.known), "")
            self.problems.append(unreadable(patient, folder, error))
            for branch in branches:
                self._begin(branch, folder, readable=False)
            return
        # Neither a screen nor a file of text could show such a name.
        self.problems += [
            unprintable(entry)
            for entry in entries
            if not entry.name.isprintable() and (_may_hold_patients(entry) or is_image(entry.name))
        ]
        entries = [entry for entry in entries if entry.name.isprintable()]
        files = [branch for branch in branches if len(branch.names) == 1]
        for branch in files:
            self._begin(branch, folder)
        if files:
            self._match_files(entries, files)
        deeper = [branch for branch in branches if len(branch.names) > 1]
        if deeper:
            for entry in entries:
                if _may_hold_patients(entry):
                    self._enter(entry, deeper)

    def _begin(self, branch: _Branch, folder: Path, *, readable: bool = True) -> None:
        """Note a case that a folder's name tells of, even if the folder is empty."""
        if branch.modality is not None and branch.tells_the_case:
            draft = self._draft(branch.known, folder)
            draft.readable = draft.readable and readable

    def _draft(self, known: Mapping[str, str], folder: Path) -> Draft:
        draft = self.drafts.setdefault(_identity(known), Draft(known=known))
        if not _same_case(draft.known, known):
            self.problems.append(ambiguous_case(_identity(known), folder))
        if self._root not in draft.roots:
            draft.roots.append(self._root)
        if folder not in draft.folders:
            draft.folders.append(folder)
            self._places += 1
        return draft

    def _match_files(self, entries: Sequence[Path], branches: Sequence[_Branch]) -> None:
        for stem, path in image_stems(entries):
            found = [self._match_file(stem, path, branch) for branch in branches]
            # Where folders name the cases, further files in them are nobody's business.
            if not any(found) and not any(branch.tells_the_case for branch in branches):
                self.problems.append(unknown_file(path, [b.names[0] for b in branches], self._rule))

    def _match_file(self, stem: str, path: Path, branch: _Branch) -> bool:
        pattern = self._rule.pattern(branch.names[0], known=branch.known, ignore_case=True)
        match = pattern.fullmatch(stem)
        if match is None:
            return False
        known = {**branch.known, **match.groupdict()}
        found = Found(path=path, place=branch.place)
        if branch.modality is None:
            if not self._rule.is_other_mask(stem):
                masks = self._masks.setdefault(_identity(known), Draft(known=known)).masks
                _add(masks, found)
            return True
        # Where files name the cases, the case is all that tells where a problem is.
        place = path.parent if branch.tells_the_case else path.parent / _identity(known)
        _add(self._draft(known, place).images.setdefault(branch.modality, []), found)
        return True

    def _enter(self, folder: Path, branches: Sequence[_Branch]) -> None:
        inside, fresh = [], []
        for branch in branches:
            if folder.name in self._rule.ignored and folder.name != branch.names[0]:
                continue
            pattern = self._rule.pattern(branch.names[0], known=branch.known, ignore_case=True)
            match = pattern.fullmatch(folder.name)
            if match is not None:
                known = {**branch.known, **match.groupdict()}
                inside.append(replace(branch, names=branch.names[1:], known=known))
                if branch.modality is not None and known and not branch.tells_the_case:
                    fresh.append(known)
        of_images = [branch for branch in branches if branch.modality is not None]
        if inside:
            before = self._places, len(self.problems)
            self._look(folder, inside)
            if fresh and before == (self._places, len(self.problems)):
                # A person's folder without a case is a problem, not nobody.
                self.problems.append(empty_patient(fresh[0]["patient"], folder))
        elif (
            of_images
            and folder.name not in self._rule.ignored
            and not any(branch.tells_the_case for branch in of_images)
        ):
            self.problems.append(
                unknown_folder(folder, [b.names[0] for b in of_images], self._rule)
            )


def _add(files: list[Found], found: Found) -> None:
    if found.path not in [other.path for other in files]:  # several paths may lead to one file
        files.append(found)


def _identity(known: Mapping[str, str]) -> str:
    """Name of a case."""
    if "case" in known:
        return known["case"]
    return "_".join(known[name] for name in ("patient", "session") if name in known)


def _same_case(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two cases of one name are one: `a_b` and `c` would be called as `a` and `b_c`."""
    return all(one.get(name) == other.get(name) for name in ("case", "patient", "session"))


def _may_hold_patients(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".") and entry.name not in _NOT_PATIENTS


def all_folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder from a root downwards, with the names of its files.

    Links are followed, and each folder is met once, so that links in a circle come to an end. What
    may not be read is passed over.
    """
    met: set[tuple[int, int]] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        try:
            status = Path(folder).stat()
        except OSError:  # gone since it was listed
            continue
        place = (status.st_dev, status.st_ino)
        if place in met:
            below.clear()
        else:
            met.add(place)
            yield Path(folder), names


def is_image(name: str) -> bool:
    """Whether a file of this name is an image; hidden ``._`` files are none."""
    return not name.startswith(".") and name.lower().endswith(_IMAGE_SUFFIXES)


def stem_of(name: str) -> str:
    """An image's name without ``.nii`` or ``.nii.gz``."""
    length = next(len(suffix) for suffix in _IMAGE_SUFFIXES if name.lower().endswith(suffix))
    return name[:-length]


def image_stems(entries: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """(name without suffix, path) of every image file."""
    for path in entries:
        if is_image(path.name) and path.is_file():
            yield stem_of(path.name), path
