"""Complete a folder of wheels for an installation without network.

    python .ci/bundle.py build/bundle

`wheels/` is there already. Beside it come `requirements.txt` (a pin with its hash for each wheel),
`sbom.cdx.json` (a bill of materials of those pins, CycloneDX 1.6) and `SHA256SUMS` (of every file).
All follow from the files alone, without clock or chance, so that two bundles can be compared.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

PRODUCT = "medfl_dp"
STRANGER = "medfl"
"""A package of that name on the public index is somebody else's, and would lie over our modules."""

_PIN = re.compile(r"(?P<name>[\w.-]+)==(?P<version>\S+)( --hash=sha256:(?P<sha256>[0-9a-f]{64}))?")


@dataclass(frozen=True, kw_only=True)
class Pin:
    """One package in one version.

    Attributes:
        name: As the package index calls it.
        version: Exact version.
        sha256: Of its wheel, as hexadecimal text; empty where the wheel is not known.
    """

    name: str
    version: str
    sha256: str = ""

    @property
    def purl(self) -> str:
        """Its package URL (https://github.com/package-url/purl-spec, type pypi)."""
        name = re.sub(r"[-_.]+", "-", self.name).lower()
        return f"pkg:pypi/{name}@{quote(self.version, safe='')}"

    @property
    def requirement(self) -> str:
        """Its line in a file of requirements."""
        return f"{self.name}=={self.version}" + (
            f" --hash=sha256:{self.sha256}" * bool(self.sha256)
        )


def read_pins(text: str) -> list[Pin]:
    """The pins of a file of requirements or constraints.

    Raises:
        ValueError: If a line is neither a comment nor an exact pin.
    """
    pins = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = _PIN.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"Expected name==version, perhaps with a hash, found {line!r}.")
        pins.append(Pin(**match.groupdict(default="")))
    return pins


def pins_of(wheels: Path) -> list[Pin]:
    """One pin for each wheel of a folder, in the order of their names.

    Raises:
        ValueError: If a file is no wheel, there is none of medfl, or one that
            only bears its name.
    """
    pins = []
    for path in sorted(wheels.iterdir()):
        parts = path.stem.split("-")  # name, version, perhaps a build, three tags
        if path.suffix != ".whl" or len(parts) not in (5, 6):
            raise ValueError(f"Expected wheels only, found {path.name!r}.")
        pins.append(Pin(name=parts[0], version=parts[1], sha256=_digest(path)))
    names = [pin.name for pin in pins]
    if PRODUCT not in names:
        raise ValueError(f"Expected a wheel of {PRODUCT}, found {len(pins)} others.")
    if STRANGER in names:
        raise ValueError(f"Expected no wheel of {STRANGER}, which is not ours, found one.")
    return pins


def bill_of_materials(pins: Sequence[Pin]) -> dict[str, Any]:
    """What medfl is installed from: a CycloneDX 1.6 document, medfl itself as its subject."""
    content = "\n".join(pin.requirement for pin in pins)
    subjects = [pin for pin in pins if pin.name == PRODUCT]
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}",
        "version": 1,
        "components": [_component(pin, kind="library") for pin in pins if pin.name != PRODUCT],
    }
    for pin in subjects:
        document["metadata"] = {"component": _component(pin, kind="application")}
    return document


def checksums(folder: Path) -> str:
    """A line for each file below `folder`, as ``sha256sum --check`` reads them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return "".join(f"{_digest(path)}  {path.relative_to(folder)}\n" for path in files)


def main(folder: Path) -> None:
    """Write the three files of a bundle."""
    sums = folder / "SHA256SUMS"
    sums.unlink(missing_ok=True)
    requirements = "".join(f"{pin.requirement}\n" for pin in pins_of(folder / "wheels"))
    (folder / "requirements.txt").write_text(requirements, encoding="utf-8")
    document = json.dumps(bill_of_materials(read_pins(requirements)), indent=2)
    (folder / "sbom.cdx.json").write_text(document + "\n", encoding="utf-8")
    sums.write_text(checksums(folder), encoding="utf-8")


def _component(pin: Pin, *, kind: str) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": kind,
        "bom-ref": pin.purl,
        "name": pin.name,
        "version": pin.version,
        "purl": pin.purl,
    }
    if pin.sha256:
        component["hashes"] = [{"alg": "SHA-256", "content": pin.sha256}]
    return component


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
