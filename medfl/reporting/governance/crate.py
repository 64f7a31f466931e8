"""`write_crate`: a run folder described as an RO-Crate, for archives that take research data.

One file of JSON-LD (RO-Crate 1.3, with the profile Process Run Crate 0.6) says with which software
the run was computed, from what, and what came out. It lists files by name, and no others: in a
simulation the folder also holds ledgers and keys of sites, which are not to be handed on. Nothing
is fetched or copied.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medfl.durable import write_atomically
from medfl.errors import ReportError
from medfl.runs import files, metrics_table
from medfl.runs.results import RunResults, read_run

FILE = "ro-crate-metadata.json"

_PROFILE = "https://w3id.org/ro/wfrun/process/0.6"
_LICENCE = "http://spdx.org/licenses/Apache-2.0"
_INPUTS = {
    files.STUDY.name: "The study: network, training, privacy and aggregation",
    files.SITES.name: "The sites as they declared themselves",
}
_OUTPUTS = {
    files.FINAL_MODEL.as_posix(): "The final model",
    files.PLAN.name: "The mechanism that was agreed with each site",
    files.ROUNDS.name: "What became of each round",
    files.EVENTS.name: "Every update that the server was told of, with its privacy loss",
    files.PRIVACY.name: "The privacy loss at each site",
    files.FEDERATION.name: "The privacy loss over all sites",
    files.ENVIRONMENT.name: "The software and the machine",
    files.SUMMARY.name: "The run in a few figures",
    files.AUDIT.name: "What attacks on purpose found",
    metrics_table.NAME: "Scores of held-out patients of open data",
    "report.html": "The report",
}
_LIBRARIES = ("python", "torch", "monai", "opacus", "flwr", "dp_accounting", "numpy", "nibabel")


def write_crate(folder: str | Path) -> Path:
    """Describe a finished run.

    Args:
        folder: A run folder as the federation wrote it.

    Returns:
        The path of the description, at the top of the folder, where archives look for it.

    Raises:
        ReportError: If rocrate is not installed, the folder is incomplete, damaged or
            contradictory, or is read-only.
    """
    folder = Path(folder)
    described = described_run(read_run(folder))
    path = folder / FILE
    try:
        write_atomically(path, (json.dumps(described, indent=2) + "\n").encode())
    except OSError as error:
        raise ReportError(f"{path}: expected a writable file, found: {error}") from None
    return path


def described_run(run: RunResults) -> Any:
    """The description as JSON-LD.

    Raises:
        ReportError: If rocrate is not installed.
    """
    try:
        from rocrate.model.softwareapplication import SoftwareApplication
        from rocrate.rocrate import ROCrate
    except ImportError as error:
        raise ReportError(
            f"--crate: expected the package rocrate (pip install rocrate), found: {error}."
        ) from None
    crate, made = ROCrate(), run.environment
    crate.name = f"Run of the study {run.study.id}"
    crate.description = (
        "A federated training for brain-tumour segmentation with patient-level differential "
        "privacy, or without it where the report says so. What the folder's other files hold, as "
        "ledgers and keys of simulated sites, is not part of this crate."
    )
    crate.datePublished = made.started.isoformat()
    crate.license = "To be completed: the licence under which these files are handed on"
    crate.root_dataset["conformsTo"] = {"@id": _PROFILE}
    libraries = [
        crate.add(
            SoftwareApplication(
                crate, f"#{name}", {"name": name, "softwareVersion": getattr(made, name)}
            )
        )
        for name in _LIBRARIES
        if getattr(made, name)
    ]
    properties = {"name": "medfl", "softwareVersion": made.medfl, "license": {"@id": _LICENCE}}
    software = crate.add(SoftwareApplication(crate, "#medfl", properties))
    software["softwareRequirements"] = libraries
    action = crate.add_action(
        software,
        identifier="#run",
        object=_listed(crate, run.folder, _INPUTS),
        result=_listed(crate, run.folder, _OUTPUTS),
        properties={
            "name": "Federated training",
            "description": made.command or "begun from Python",
            "startTime": made.started.isoformat(),
        },
    )
    crate.root_dataset["mentions"] = [action]
    return crate.metadata.generate()


def _listed(crate: Any, folder: Path, wanted: dict[str, str]) -> list[Any]:
    return [
        crate.add_file(folder / name, dest_path=name, properties={"name": said})
        for name, said in wanted.items()
        if (folder / name).is_file()
    ]
