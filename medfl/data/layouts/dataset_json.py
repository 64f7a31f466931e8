"""What a `dataset.json` says of its images, against what the layout presumes.

The Decathlon and nnU-Net number their modalities, and nothing but this file tells which number is
which: a dataset made with another order would train on exchanged channels without a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medfl.config.site import LabelScheme, Modality
from medfl.data.label_schemes import scheme_labels

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
    content: Mapping[str, Any], scheme: LabelScheme
) -> Iterator[tuple[str, str]]:
    """Labels that the file gives another meaning than the scheme.

    Args:
        content: What the file says.
        scheme: What the site says that the values mean.

    Yields:
        What was expected, and what was found.
    """
    stated = content.get("labels")
    if not isinstance(stated, Mapping):
        return
    enhancing, edema = scheme_labels(scheme)
    for key, other in stated.items():
        # The Decathlon maps values to names, nnU-Net names to values.
        name, values = (other, key) if str(key).isdigit() else (key, other)
        numbers = set(re.findall(r"[0-9]+", str(values)))
        text = str(name).lower()
        wanted = None
        if "enhancing" in text and "non" not in text:
            wanted = enhancing
        elif "edema" in text or "oedema" in text:
            wanted = edema
        if wanted and numbers and not numbers.intersection(map(str, wanted)):
            shown = " or ".join(map(str, sorted(wanted)))
            yield f"{name!r} to be {shown}, as in label_scheme {scheme!r}", f"{values!r}"
