"""The main job on four synthetic hospitals: what `make demo` runs.

Every step is a command that a hospital or a researcher would type; each is shown before it runs.
"""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from medfl.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT / "site_configs" / "demo" / "study.toml"
SITES = ("north", "east", "south", "west")


def main() -> None:
    """Write hospitals, check them, plan, simulate, and say where the report is."""
    begin = time.monotonic()
    folder = _new_folder(Path("runs"))
    hospitals = folder / "hospitals"
    files = [str(hospitals / f"{name}.toml") for name in SITES]
    _run("phantom", str(hospitals))
    for file in files:
        _run("check", file)
    study = str(STUDY.relative_to(Path.cwd()) if STUDY.is_relative_to(Path.cwd()) else STUDY)
    _run("plan", study, *files)
    _run("simulate", study, *files, "--out", str(folder / "run"))
    Console().print(f"Done in {(time.monotonic() - begin) / 60:.1f} minutes.", highlight=False)


def _run(*arguments: str) -> None:
    Console().print(f"\n[bold]$ medfl {' '.join(arguments)}[/bold]", highlight=False)
    app(list(arguments), standalone_mode=False)


def _new_folder(root: Path) -> Path:
    """The first of demo, demo-2, demo-3... that does not exist: an earlier demo is kept."""
    number = 1
    while (folder := root / ("demo" if number == 1 else f"demo-{number}")).exists():
        number += 1
    return folder


if __name__ == "__main__":
    main()
