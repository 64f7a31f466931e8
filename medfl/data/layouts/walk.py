"""`Walk`: one way through the folders of a site, along the paths that a layout gives."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medfl.config.site import Modality
from medfl.data.layouts.problems import (
    Problem,
    empty_patient,
    unknown_file,
    unknown_folder,
    unprintable,
    unreadable,
)
from medfl.data.layouts.rules import LayoutRule

_IMAGE_SUFFIXES = (".nii.gz", ".nii")
_NOT_PATIENTS = frozenset({"__MACOSX"})  # left behind by archives made on macOS


@dataclass(frozen=True, kw_only=True)
class _Branch:
    """What is left of a path below the folder that is looked at.

    Attributes:
        modality: Whose file it leads to; None for the mask.
        names: The rest of the path.
        known: What stand-ins were found to be so far.
    """

    modality: Modality | None
    names: tuple[str, ...]
    known: Mapping[str, str]


@dataclass(kw_only=True)
class Draft:
    """The files of one case as they are found."""

    known: Mapping[str, str]
    folders: list[Path] = field(default_factory=list)
    images: dict[Modality, list[Path]] = field(default_factory=dict)
    masks: list[Path] = field(default_factory=list)


class Walk:
    """One way through all folders below a root, along the paths of a rule.

    Attributes:
        drafts: The cases by name.
        strays: Masks whose case has no image folder, by the case's name.
        problems: What contradicts the rule on the way.
    """

    def __init__(self, rule: LayoutRule, modalities: Sequence[Modality]) -> None:
        self._rule = rule
        self._paths: list[tuple[Modality | None, str]] = [
            (modality, path) for modality in modalities for path in rule.images[modality]
        ]
        self._paths += [(None, path) for path in rule.masks]
        self.drafts: dict[str, Draft] = {}
        self.strays: dict[str, list[Path]] = {}
        self.problems: list[Problem] = []
        self._places = 0

    def look(self, root: Path) -> None:
        """Find everything below a root."""
        self._look(
            root,
            [
                _Branch(modality=modality, names=tuple(path.split("/")), known={})
                for modality, path in self._paths
            ],
        )
        self._join_masks()

    def look_into_case(self, folder: Path) -> None:
        """Find the files of one case folder, whatever it is called."""
        known = {"case": folder.name, "patient": folder.name}
        # Where a case folder may lie at several places, its files are called the same.
        files = dict.fromkeys((modality, path.split("/")[-1]) for modality, path in self._paths)
        self._look(
            folder,
            [_Branch(modality=modality, names=(name,), known=known) for modality, name in files],
        )
        self._join_masks()

    def _join_masks(self) -> None:
        for case_id in [name for name in self.strays if name in self.drafts]:
            self.drafts[case_id].masks += self.strays.pop(case_id)

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
        if branch.modality is None:
            return
        unknown = set(re.findall(r"\{(\w+)\}", branch.names[-1])) - set(branch.known)
        if not unknown and _identity(branch.known):
            draft = self._draft(branch.known, folder)
            if not readable:
                # Said once; every missing image besides would be noise.
                draft.folders.clear()

    def _draft(self, known: Mapping[str, str], folder: Path) -> Draft:
        draft = self.drafts.setdefault(_identity(known), Draft(known=known))
        if folder not in draft.folders:
            draft.folders.append(folder)
            self._places += 1
        return draft

    def _match_files(self, entries: Sequence[Path], branches: Sequence[_Branch]) -> None:
        for stem, path in image_stems(entries):
            found = [self._match_file(stem, path, branch) for branch in branches]
            # Where folders name the cases, further files in them are nobody's business.
            if not any(found) and not any(_identity(branch.known) for branch in branches):
                self.problems.append(unknown_file(path, [b.names[0] for b in branches], self._rule))

    def _match_file(self, stem: str, path: Path, branch: _Branch) -> bool:
        pattern = self._rule.pattern(branch.names[0], known=branch.known, ignore_case=True)
        match = pattern.fullmatch(stem)
        if match is None:
            return False
        known = {**branch.known, **match.groupdict()}
        if branch.modality is None:
            if not self._rule.is_other_mask(stem):
                self._add_mask(known, path)
            return True
        # Where files name the cases, the case is all that tells where a problem is.
        place = path.parent if _identity(branch.known) else path.parent / _identity(known)
        images = self._draft(known, place).images.setdefault(branch.modality, [])
        if path not in images:
            images.append(path)
        return True

    def _add_mask(self, known: Mapping[str, str], path: Path) -> None:
        masks = self.strays.setdefault(_identity(known), [])
        if path not in masks:  # several paths of a rule may lead to one file
            masks.append(path)

    def _enter(self, folder: Path, branches: Sequence[_Branch]) -> None:
        inside = []
        for branch in branches:
            pattern = self._rule.pattern(branch.names[0], known=branch.known, ignore_case=False)
            match = pattern.fullmatch(folder.name)
            if match is not None:
                known = {**branch.known, **match.groupdict()}
                inside.append(
                    _Branch(modality=branch.modality, names=branch.names[1:], known=known)
                )
        of_images = [branch for branch in branches if branch.modality is not None]
        if inside:
            before = self._places, len(self.problems)
            self._look(folder, inside)
            named = [branch for branch in inside if branch.modality is not None and branch.known]
            if named and before == (self._places, len(self.problems)):
                # A person's folder without a case is a problem, not nobody.
                self.problems.append(empty_patient(named[0].known["patient"], folder))
        elif of_images and folder.name not in self._rule.ignored:
            self.problems.append(
                unknown_folder(folder, [b.names[0] for b in of_images], self._rule)
            )


def _identity(known: Mapping[str, str]) -> str:
    """Name of a case."""
    if "case" in known:
        return known["case"]
    return "_".join(known[name] for name in ("patient", "session") if name in known)


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


def image_stems(entries: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """(name without suffix, path) of every image file."""
    for path in entries:
        if is_image(path.name) and path.is_file():
            length = next(len(s) for s in _IMAGE_SUFFIXES if path.name.lower().endswith(s))
            yield path.name[:-length], path
