"""What the name of a label says, in the spellings that collections of brain tumours use.

A value says nothing by itself: 1 is necrosis in one source and edema in the next. A file that names
its labels settles it, provided that the names are understood; the rest is for a person to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from medfl.config.site import Region, Tissue
from medfl.data.label_schemes import TISSUES_OF

# In the order in which they are asked: "non-enhancing FLAIR hyperintensity" is edema, "necrotic and
# non-enhancing core" is core. Abbreviations are whole words.
_EDEMA = re.compile(r"o?edema|\b(ed|snfh)\b|flair hyperintens|hyperintens\w* flair|invaded")
_NOT_ENHANCING = re.compile(r"\bnon ?enhanc")
_ENHANCING = re.compile(r"enhanc|\b(et|at)\b|\bactive")
_CORE = re.compile(r"necro|cyst|\b(ncr|net|netc|cc)\b")
_NO_TUMOUR = re.compile(r"background|cavity|\b(bg|rc|brain|healthy|none|unlabell?ed)\b")
_WHOLE = re.compile(r"\bwt\b|\b(whole|complete)\b")
_TUMOUR_CORE = re.compile(r"\btc\b|\bcore\b")
# One name for all of it, where it is the only label beside the background.
_LESION = re.compile(r"tumou?r|lesion|glioma|abnormal")


@dataclass(frozen=True, kw_only=True)
class NamedLabels:
    """What a file says that its values mean.

    Attributes:
        regions: Value -> region -> whether the value is in it, as far as that is told.
        names: Value -> names that are given to it.
        unknown: Names that are not understood.
    """

    regions: Mapping[int, Mapping[Region, bool]] = field(default_factory=dict)
    names: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    @property
    def told(self) -> frozenset[Region]:
        """Regions of which the file says all values; none where a name is not understood."""
        known = [frozenset(inside) for value, inside in self.regions.items() if value]
        return frozenset.intersection(*known) if known and not self.unknown else frozenset()


def tissue_named(name: str) -> Tissue | None:
    """The tissue that a label's name means; None if it is not understood, or is a region."""
    text = _words(name)
    if _EDEMA.search(text):
        return "edema"
    if _NOT_ENHANCING.search(text):
        return "core"
    if _CORE.search(text):
        return None if _ENHANCING.search(text) else "core"  # both at once are neither
    if _ENHANCING.search(text):
        return "enhancing"
    return "background" if _NO_TUMOUR.search(text) else None


def _region_named(name: str) -> Region | None:
    text = _words(name)
    if tissue_named(name) is not None:
        return None
    if _WHOLE.search(text):
        return "WT"
    return "TC" if _TUMOUR_CORE.search(text) else None


def named_labels(content: Mapping[str, Any]) -> NamedLabels:
    """The labels of a `dataset.json`.

    Args:
        content: What the file says.

    Returns:
        Labels of one tissue each, or regions as lists of values; nothing where none are named.
    """
    stated = content.get("labels")
    if not isinstance(stated, Mapping):
        return NamedLabels()
    labels = list(_labels(stated))
    nested = any(_region_named(name) == "WT" for name, _ in labels)
    alone = sum(tissue_named(name) != "background" for name, _ in labels) == 1
    everything = {0, *(value for _, values in labels for value in values)}
    regions: dict[int, dict[Region, bool]] = {value: {} for value in everything}
    names: dict[int, tuple[str, ...]] = dict.fromkeys(everything, ())
    unknown = []
    for name, values in labels:
        for value in values:
            names[value] += (name,)
        region, tissue = _region_named(name), tissue_named(name)
        if region == "TC" and not nested:
            region, tissue = None, "core"  # beside an edema, and not around what enhances
        if nested and tissue == "enhancing":
            region = "ET"
        if region is None and tissue is None and alone and _LESION.search(_words(name)):
            region = "WT"
        if region is not None:
            for value in everything:
                regions[value][region] = value in values
        elif tissue is not None and not (nested and tissue == "background"):
            for value in values:
                regions[value] = {r: tissue in inside for r, inside in TISSUES_OF.items()}
        elif tissue is None:
            unknown.append(name)
    return NamedLabels(regions=regions, names=names, unknown=tuple(unknown))


def _labels(stated: Mapping[Any, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and values; the Decathlon maps values to names, nnU-Net names to values or lists."""
    for key, other in stated.items():
        name, values = (other, key) if str(key).isdigit() else (key, other)
        yield str(name), tuple(int(number) for number in re.findall(r"[0-9]+", str(values)))


def _words(name: str) -> str:
    """Lower case, with single blanks in place of all other signs: NCR/NET becomes ``ncr net``."""
    return " ".join(re.findall(r"[a-z]+", name.lower()))
