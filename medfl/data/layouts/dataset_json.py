"""What a `dataset.json` says of its images, against what the layout presumes.

The Decathlon and nnU-Net number their modalities, and nothing but this file tells which number is
which: a dataset made with another order would train on exchanged channels without a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from medfl.config.site import (
    KNOWN_SCHEMES,
    REGION_ORDER,
    LabelScheme,
    MaskScheme,
    Modality,
    Region,
)
from medfl.data.label_names import named_labels
from medfl.data.label_schemes import scheme_name, scheme_of, scheme_values

DATASET = "dataset.json"

_SPELLINGS: Mapping[str, Modality] = {
    **dict.fromkeys(("t1", "t1w", "t1n", "t1native"), "t1n"),
    **dict.fromkeys(("t1c", "t1ce", "t1gd", "t1wce", "t1wgd", "t1post", "t1contrast"), "t1c"),
    **dict.fromkeys(("t2", "t2w"), "t2w"),
    **dict.fromkeys(("flair", "t2f", "t2flair", "fla"), "t2f"),
}
_MAX_BYTES = 2**24


def read_description(root: Path) -> Mapping[str, Any]:
    """What the file of a dataset says; nothing where there is none.

    Args:
        root: The folder of the dataset.

    Raises:
        ValueError: If the file cannot be read, is no JSON object, or is larger than 16 MiB; the
            message is what was found.
    """
    path = root / DATASET
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ValueError(f"{size} bytes")
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ValueError(str(error.strerror)) from None
    try:
        content = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise ValueError("a file that is cut off or no JSON" if size else "an empty file") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"a JSON {type(content).__name__}")
    return content


def channel_contradictions(
    content: Mapping[str, Any], order: Mapping[Modality, int]
) -> Iterator[tuple[str, str]]:
    """Modalities that the file names at another number than the layout.

    Args:
        content: What the file says.
        order: Modality -> number of its channel in the layout.

    Yields:
        What was expected, and what was found. Names that are not understood are passed over.
    """
    stated = content.get("channel_names") or content.get("modality")
    if not isinstance(stated, Mapping):
        return
    expected = {str(number): modality for modality, number in order.items()}
    for number, name in stated.items():
        found = _SPELLINGS.get(re.sub(r"[^a-z0-9]", "", str(name).lower()))
        wanted = expected.get(number)
        if found is not None and wanted is not None and found != wanted:
            yield f"channel {number} to be {wanted}, as in this layout", f"{name!r}"


def label_contradictions(
    content: Mapping[str, Any], scheme: MaskScheme
) -> Iterator[tuple[str, str]]:
    """Labels that the file gives another meaning than the scheme.

    Args:
        content: What the file says.
        scheme: What the site says that the values mean.

    Yields:
        What was expected, and what was found. Names that are not understood are passed over.
    """
    named, rule = named_labels(content), scheme_of(scheme)
    for value, inside in sorted(named.regions.items()):
        told = [region for region in rule.regions if region in inside]
        expected = {region for region in told if value in rule.regions[region]}
        found = {region for region in told if inside[region]}
        if found != expected:
            yield (
                f"{value} to be {_shown(expected)}, as in label_scheme {scheme_name(scheme)!r}",
                f"{' and '.join(map(repr, named.names[value])) or 'no name'}, {_shown(found)}",
            )


def described_scheme(content: Mapping[str, Any]) -> tuple[LabelScheme, ...]:
    """The known schemes that say the same of every value that the file names.

    Args:
        content: What the file says; without understood names, no scheme does.
    """
    named = named_labels(content)
    values = set(named.regions)
    fitting = {
        scheme: len(scheme_values(scheme) - values)
        for scheme in KNOWN_SCHEMES
        if named.told == set(scheme_of(scheme).regions)
        and values <= scheme_values(scheme)
        and not list(label_contradictions(content, scheme))
    }
    # A year that has a further value would be called by its name.
    return tuple(s for s, further in fitting.items() if further == min(fitting.values()))


def _shown(regions: Collection[Region]) -> str:
    return " and ".join(region for region in REGION_ORDER if region in regions) or "no tumour"
