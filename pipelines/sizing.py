"""What a deployment takes: memory of the processes, disk a patient and a round, seconds a round.

    python pipelines/sizing.py                    # all sizes; a quarter of an hour on idle cores
    python pipelines/sizing.py --size small

Plays the commands of a server and two hospitals as real processes with synthetic patients, as
`medfl rehearse` does, and watches them: the memory is the proportional set size (what processes
share is divided among them; Linux only), each process has one thread. It prints a row of Markdown
for each size.
"""

from __future__ import annotations

import json
import os
import statistics
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil
import typer

from medfl.cli.advance import shown_advance
from medfl.rehearsal.play import Scene, rehearse
from medfl.rehearsal.stage import Stage, staged
from medfl.site.audit_log import AUDIT_LOG
from medfl.site.state_folder import CACHE, LEDGER

COLUMNS = (
    *("images, network", "site waits, GB", "site trains, GB", "server waits, GB"),
    *("server runs, GB", "cache a patient, MB", "ledger a round, KB", "run folder a round, MB"),
    "a round, s",
)
SECONDS = 0.3
HOSPITALS = 2

_STUDY = """\
id = "sizing"
seed = 1

[input]
modalities = ["t1n", "t1c", "t2w", "t2f"]
regions = ["TC", "WT", "ET"]
crop_size = {crop}

[network]
name = "SegResNet"
arguments = {network}

[privacy]
epsilon = 8.0
sampling_prob = 0.3
clip_norm = 1.0
{{trust}}

[training]
rounds = {{rounds}}
local_steps = 1
optimizer = "sgd"
learning_rate = 0.1

[aggregation]
strategy = "fedavgm"
server_learning_rate = 0.2
min_sites = {{hospitals}}
round_timeout_seconds = 3600.0

[evaluation]
every = {{rounds}}
pictures = 0
"""


def _scene(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    *,
    crop: int,
    network: str,
    rounds: int,
) -> Scene:
    study = _STUDY.format(crop=[crop] * 3, network="{{ " + network + " }}")
    return Scene(patients=6, shape=shape, spacing=spacing, rounds=rounds, study=study)


SMALL = "init_filters = 8, blocks_down = [1, 1, 1], blocks_up = [1, 1]"
LARGE = "init_filters = 16, blocks_down = [1, 2, 2, 4], blocks_up = [1, 1, 1]"
SIZES = {
    "small": (
        "64 x 64 x 48, crops of 24^3, 0.2 M parameters",
        _scene((64, 64, 48), (2.8, 2.8, 3.4), crop=24, network=SMALL, rounds=4),
    ),
    "brats": (
        "240 x 240 x 155, crops of 64^3, 4.7 M parameters",
        _scene((240, 240, 155), (1.0, 1.0, 1.0), crop=64, network=LARGE, rounds=3),
    ),
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What one deployment took.

    Attributes:
        waiting: Bytes of memory of a site that waits for a study, and of the server.
        at_most: The most that each held while the study ran.
        patient: Bytes of a patient in the cache of prepared images.
        ledger: Bytes of a site's ledger and audit log, a round.
        run_folder: Bytes of the server's run folder, a round.
        seconds: Of a round.
    """

    waiting: tuple[int, int]
    at_most: tuple[int, int]
    patient: float
    ledger: float
    run_folder: float
    seconds: float

    @property
    def cells(self) -> list[str]:
        """Of the columns after the first."""
        memory = (self.waiting[0], self.at_most[0], self.waiting[1], self.at_most[1])
        return [
            *(f"{value / 1e9:.1f}" for value in memory),
            f"{self.patient / 1e6:.1f}",
            f"{self.ledger / 1e3:.0f}",
            f"{self.run_folder / 1e6:.1f}",
            f"{self.seconds:.1f}",
        ]


@app.command()
def main(
    size: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(SIZES)}; several times.")
    ] = None,
) -> None:
    """Measure one size after the other."""
    names = size or list(SIZES)
    if unknown := sorted(set(names) - set(SIZES)):
        raise typer.BadParameter(f"Expected sizes of {', '.join(SIZES)}, found {unknown[0]!r}.")
    for row in (COLUMNS, ["---"] * len(COLUMNS)):
        _print(row)
    for name in names:
        label, scene = SIZES[name]
        _print([label, *measured(scene).cells])


def _print(row: Sequence[str]) -> None:
    typer.echo(f"| {' | '.join(row)} |")


def measured(scene: Scene) -> Taken:
    """Play a scene, and watch what it takes."""
    with shown_advance() as advance, staged(None, hospitals=HOSPITALS) as stage:
        watch = _Watch(stage)
        begun: list[tuple[int, int]] = []
        ledger_before = 0
        site, run = stage.folder / "hospitals" / "state" / "north", stage.folder / "run"
        ledger = (site / LEDGER, site / AUDIT_LOG)

        def see(part: str, done: int, total: int) -> None:
            nonlocal ledger_before
            if part.startswith("study") and not begun:
                begun.append(watch.begin_anew())
                ledger_before = _bytes_in(*ledger)
            advance(part, done, total)

        with watch:
            rehearse(stage, hospitals=HOSPITALS, trust="local", port=None, advance=see, scene=scene)
        lines = (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
        # Images are prepared in the first round.
        seconds = [json.loads(line)["seconds"] for line in lines[1:]]
        return Taken(
            waiting=begun[0],
            at_most=watch.at_most,
            patient=_bytes_in(site / CACHE) / scene.patients,
            ledger=(_bytes_in(*ledger) - ledger_before) / scene.rounds,
            run_folder=_bytes_in(run) / scene.rounds,
            seconds=statistics.median(seconds),
        )


class _Watch:
    """Looks at the memory of one site and of the server until its block ends."""

    def __init__(self, stage: Stage) -> None:
        self._site = str(stage.folder / "hospitals" / "state" / "north")
        self._server = str(stage.folder / "server")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.at_most = (0, 0)

    def begin_anew(self) -> tuple[int, int]:
        """Forget the most so far, and say what is held now."""
        self.at_most = now = self._now()
        return now

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(SECONDS):
            now = self._now()
            self.at_most = (max(self.at_most[0], now[0]), max(self.at_most[1], now[1]))

    def _now(self) -> tuple[int, int]:
        return _memory(self._site), _memory(self._server)


def _memory(folder: str) -> int:
    """Bytes of the processes whose commands name a folder, and of all that they started."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(word.startswith(folder) for word in process.cmdline()):
                found.update([process, *process.children(recursive=True)])
    held = 0
    for process in found:
        with suppress(psutil.Error):
            held += process.memory_full_info().pss
    return held


def _bytes_in(*folders: Path) -> int:
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files)


if __name__ == "__main__":
    # One thread for each process, this one's included: they share the machine.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    app()
