"""Choosing one of several files by what its name says: ``sub-01_acq-mprage_run-2_T1w``.

Entities are those of the Brain Imaging Data Structure 1.10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medfl.data.layouts.walk import Found, stem_of


def entities_of(found: Found) -> dict[str, str]:
    """Entity -> value in a file's name, but for those that name patient and session."""
    parts = (part.partition("-") for part in stem_of(found.path.name).split("_")[:-1])
    return {name: value for name, sign, value in parts if sign and name not in ("sub", "ses")}


def chosen(files: Sequence[Found], choice: Mapping[str, Sequence[str]]) -> list[Found]:
    """Those of several files that a site's choice leaves.

    A file whose value is not in the list is out. Of the others the first value in the list counts
    that any file has; those without the entity count where no file has one of the values.

    Args:
        files: Files of one kind.
        choice: Entity -> values in order of preference; an empty one is for files without the
            entity. Numbers are compared as numbers: ``1`` is ``01``.
    """
    left = list(files)
    for entity, values in choice.items():
        by_value = {
            value: [file for file in left if _same(entities_of(file).get(entity, ""), value)]
            for value in (*values, "")
        }
        left = next((met for met in by_value.values() if met), [])
    return left


def differing(files: Sequence[Found]) -> dict[str, set[str]]:
    """Entity -> its values, for the entities in which files differ; empty for a file without it."""
    told = [entities_of(file) for file in files]
    names = dict.fromkeys(name for entities in told for name in entities)
    values = {name: {entities.get(name, "") for entities in told} for name in names}
    return {name: met for name, met in values.items() if len(met) > 1}


def _same(one: str, other: str) -> bool:
    if one.isdecimal() and other.isdecimal():
        return int(one) == int(other)
    return one == other
