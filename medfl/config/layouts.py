"""How a site says where its files lie: the names of known layouts, and what it describes itself."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from medfl.config.files import Section

Modality = Literal["t1n", "t1c", "t2w", "t2f"]
MODALITY_ORDER: tuple[Modality, ...] = get_args(Modality)

Layout = Literal[
    "brats2015",
    "brats2018",
    "brats2019",
    "brats2020",
    "brats2021",
    "brats2023",
    "brats2024",
    "brats2025",
    "brats-goat",
    "brats-men",
    "brats-men-rt",
    "brats-met",
    "brats-ped",
    "brats-ssa",
    "fets2022",
    "ucsf-pdgm",
    "upenn-gbm",
    "lumiere",
    "mu-glioma-post",
    "msd",
    "nnunet",
    "bids",
    "lgg",
    "custom",
]

_STAND_INS = ("case", "patient", "session")
_STAND_IN = re.compile(r"\{([^{}]*)\}")
_IDENTITIES = ({"case"}, {"patient"}, {"patient", "session"})
_SUFFIX = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_ANY_NAME = ".+"


def _name_pattern(value: str) -> str:
    """A pattern that will be part of another one."""
    try:
        groups = re.compile(f"_(?P<case_>{value})").groupindex
    except re.error as error:
        raise ValueError(f"expected a regular expression: {error}") from None
    if set(groups) - {"case_", "patient"}:
        raise ValueError("expected no named group but (?P<patient>...)")
    return value


def case_pattern(value: str) -> str:
    """A pattern of a case's name, with a group for the person.

    Raises:
        ValueError: If it has no such group, or is no pattern.
    """
    if "(?P<patient>" not in _name_pattern(value):
        raise ValueError("expected a regular expression with a group (?P<patient>...)")
    return value


def _given_case(value: str) -> str:
    return value and case_pattern(value)


def _whole_pattern(value: str) -> str:
    if not value or "(?P<" in _name_pattern(value):
        raise ValueError("expected a regular expression of the whole name, without a named group")
    return value


def _path(value: str) -> str:
    """A path below the root, without the suffix of its file."""
    path = _SUFFIX.sub("", value)
    if any(name in ("", ".", "..") for name in path.split("/")) or "\\" in path:
        raise ValueError("expected a path below the root, as {patient}/{session}/T1")
    unknown = [name for name in _STAND_IN.findall(path) if name not in _STAND_INS]
    if unknown or re.search(r"[{}]", _STAND_IN.sub("", path)):
        raise ValueError("expected no braces but {case}, or {patient} and {session}")
    return path


class CustomLayout(Section):
    """Where the files of one case lie, for folders that no known layout describes.

    Paths are relative to the root, with or without ``.nii`` or ``.nii.gz`` at the end, since both
    are read. In them ``*`` means any text within one name. A case is told by one of:

    * ``{case}``, a name whose part is the person, by the pattern `case`;
    * ``{patient}``, a name that is the person, and, where people have several examinations,
      ``{session}``, the name of one of them. All sessions of a patient are one patient.

    Attributes:
        case: Pattern of ``{case}`` (regular expression); its group ``patient`` is the person.
        patient: Pattern of ``{patient}``; any name if not given.
        session: Pattern of ``{session}``; any name if not given.
        images: Path of each modality's file.
        mask: Path of the mask.
        ignored: Names of folders that hold no patients.
    """

    case: Annotated[str, AfterValidator(_given_case)] = ""
    patient: Annotated[str, AfterValidator(_whole_pattern)] = _ANY_NAME
    session: Annotated[str, AfterValidator(_whole_pattern)] = _ANY_NAME
    images: dict[Modality, Annotated[str, AfterValidator(_path)]] = Field(min_length=1)
    mask: Annotated[str, AfterValidator(_path)]
    ignored: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """All of its paths."""
        return (*self.images.values(), self.mask)

    @model_validator(mode="after")
    def _patients_can_be_told_apart(self) -> Self:
        """No template that makes two patients of one, or gives a case the mask of another."""
        told = {path: frozenset(_STAND_IN.findall(path)) for path in self.paths}
        for path, names in told.items():
            if names not in _IDENTITIES:
                raise ValueError(
                    "expected {case}, or {patient} with or without {session}, in every path of "
                    f"data.custom, found {path!r}: nothing else tells patients apart"
                )
            if names != told[self.mask]:
                raise ValueError(
                    "expected the same of {case}, {patient} and {session} in every path of "
                    f"data.custom, found {path!r} beside {self.mask!r}"
                )
        repeated = [path for path in self.paths if self.paths.count(path) > 1]
        if repeated:
            raise ValueError(
                f"expected a path of its own for every image and the mask, found {repeated[0]!r} "
                "more than once"
            )
        return self

    @model_validator(mode="after")
    def _patterns_are_of_what_the_paths_name(self) -> Self:
        used = {name for path in self.paths for name in _STAND_IN.findall(path)}
        # Not by what was set: a copy of a table sets everything.
        given = {name for name in _STAND_INS if getattr(self, name) not in ("", _ANY_NAME)}
        if "case" in used and not self.case:
            raise ValueError(
                "expected data.custom.case, a pattern with a group (?P<patient>...), for {case}: "
                "which part of it is the person?"
            )
        for name in sorted(given - used):
            raise ValueError(
                f"expected data.custom.{name} only where paths have {{{name}}}, found "
                f"{getattr(self, name)!r}"
            )
        for path in self.paths:
            # Where the person's name ends would be a guess.
            first = next((name for name in path.split("/") if "{patient}" in name), "")
            if re.search(r"\*|\{session\}", first) and "patient" not in given:
                raise ValueError(
                    "expected data.custom.patient, a pattern of the person's name, where {patient} "
                    f"shares a name with {{session}} or *, found none for {first!r}"
                )
        return self


def _choice(value: object) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not values:
        raise ValueError("expected a text in quotes, or a list of them in order of preference")
    for one in values:
        if not isinstance(one, str) or not re.fullmatch(r"[A-Za-z0-9+]*", one):
            raise ValueError(
                "expected texts of letters and digits, without the entity's own name; an empty one "
                f"is for files without the entity, found {one!r}"
            )
    return tuple(values)


def _entity(value: str) -> str:
    if value in ("sub", "ses"):
        raise ValueError(
            "expected an entity but sub and ses, which name patients and their examinations; "
            "choose those with data.include"
        )
    if not re.fullmatch(r"[a-z]+", value):
        raise ValueError("expected the short name of an entity, as run, acq, space or desc")
    return value


BidsChoice = dict[
    Annotated[str, AfterValidator(_entity)],
    Annotated[tuple[str, ...], PlainValidator(_choice)],
]
"""Entity of BIDS -> the values by which files are chosen, in order of preference."""
