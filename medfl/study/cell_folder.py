"""The folder of one cell: begun once, gone on with after whatever stopped it, and then kept.

What a cell was begun as is written beside its run folder before anything is computed. So a grid
whose file has changed since is told in what a cell differs, and no result is taken for another's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfl.config.study import Baseline
from medfl.durable import write_atomically
from medfl.errors import ConfigError
from medfl.runs.files import STUDY, SUMMARY
from medfl.runs.grid_records import CELLS, CellDefinition, definition_of
from medfl.server.run_folder import RunFolder
from medfl.study.cells import Cell

_SHOWN = 6  # differences that an error names


@dataclass(frozen=True, kw_only=True)
class CellFolder:
    """Where a cell lies.

    Attributes:
        out: Folder of the grid.
        cell: Its name.
    """

    out: Path
    cell: str

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.out / CELLS / self.cell

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to compute."""
        return (self.run / SUMMARY.name).exists()

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        """What the cell that was begun here computes beside the federation; () if none was."""
        if not (self.run / STUDY.name).exists():
            return ()
        return STUDY.read(self.run).evaluation.baselines

    @property
    def seconds(self) -> float | None:
        """How long it took; None where nobody knows."""
        return self._file.read(self.out).seconds if self._is_defined else None

    def begin(self, cell: Cell) -> bool:
        """Write down what the cell is, or check that it still is what was begun here.

        Returns:
            Whether a run was begun here before, which goes on.

        Raises:
            ConfigError: If something else was.
        """
        wanted = _definition(cell)
        if not self._is_defined:
            if self.run.exists():
                raise ConfigError(
                    f"{self.run}: expected a new folder or a cell of this grid, found a folder "
                    "that no grid began. Take another --out."
                )
            self._write(wanted)
            return False
        found = self._file.read(self.out)
        changed = _differences({"study": found.study, "sites": found.sites}, _compared(wanted))
        if changed:
            more = len(changed) - _SHOWN
            raise ConfigError(
                f"{self.run}: expected what the grid file says now, found a cell that was begun "
                f"with {'; '.join(changed[:_SHOWN])}{f'; and {more} more' if more > 0 else ''}. "
                "Take another --out, or delete this folder to compute the cell again."
            )
        if self.run.exists() and not RunFolder(self.run).study_digest():
            shutil.rmtree(self.run)  # killed before it had a name: nothing was computed
        return self.run.exists()

    def finish(self, cell: Cell, *, seconds: float | None) -> None:
        """Note how long the cell took."""
        self._write(_definition(cell).model_copy(update={"seconds": seconds}))

    @property
    def _file(self) -> Any:
        return definition_of(self.cell)

    @property
    def _is_defined(self) -> bool:
        # Without the run folder there is nothing that the definition could be at odds with.
        return (self.out / self._file.name).exists() and self.run.exists()

    def _write(self, definition: CellDefinition) -> None:
        write_atomically(self.out / self._file.name, self._file.text(definition).encode())


def _definition(cell: Cell) -> CellDefinition:
    """What a cell's results follow from."""
    # Where a site keeps what it remembers, and what it shows, changes no result; nor do threads,
    # of which every simulated site has one.
    aside = {"state", "threads", "cache_gigabytes", "monitoring"}
    return CellDefinition(
        study=cell.study.model_dump(mode="json"),
        sites={site.name: site.model_dump(mode="json", exclude=aside) for site in cell.sites},
    )


def _compared(definition: CellDefinition) -> dict[str, Any]:
    # As it is read back: JSON knows lists only.
    found: dict[str, Any] = json.loads(
        json.dumps({"study": definition.study, "sites": definition.sites})
    )
    return found


def _differences(found: object, wanted: object, *, key: str = "") -> list[str]:
    """Where two values of JSON types differ, as ``key = found (now wanted)``."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        return [
            line
            for name in sorted({*found, *wanted})
            for line in _differences(
                found.get(name), wanted.get(name), key=f"{key}.{name}" if key else str(name)
            )
        ]
    return [] if found == wanted else [f"{key} = {_text(found)} (now {_text(wanted)})"]


def _text(value: object) -> str:
    return "nothing" if value is None else json.dumps(value)[:80]
