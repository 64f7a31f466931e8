"""Every fault that a privacy ledger has to survive, done for real to one small hospital.

    python pipelines/ledger_faults.py [--json]

Processes are killed, files damaged and messages forged. Each line of the table tells what the site
answered before and after, for how many noisy steps its ledger was charged, and the steps whose
result left it. Charged has to be at least released; the exit status is 1 where it is not.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import logging
import math
import multiprocessing
import os
import resource
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Self

import typer
from faulty_hospital import (
    Hospital,
    Laboratory,
    Outcome,
    Watcher,
    laboratory,
)
from rich.console import Console
from rich.table import Table

from medfl.privacy.ledger import store as ledger_store
from medfl.privacy.ledger.head import HEAD
from medfl.privacy.ledger.store import DATABASE

NOBODY = 65534
SECTOR = 512  # bytes, what a disk writes whole
PAGE = 4096  # bytes, SQLite's own unit
WIDTH = 112

Fault = Callable[[Hospital], Outcome]


def at_point(point: str, action: Callable[[], object]) -> Watcher:
    """Do something when a point is reached."""

    def at(reached: str) -> None:
        if reached == point:
            action()

    return at


def die() -> None:
    """What kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed(point: str) -> Fault:
    """Kill the site at a point of its round, then ask again."""
    return failing(at_point(point, die))


def failing(at: Watcher) -> Fault:
    """Ask while something fails, then ask again."""
    return lambda hospital: hospital.seen(hospital.ask(at=at), hospital.ask())


def after_a_round(damage: Callable[[Path], object]) -> Fault:
    """Do something to the ledger's folder between two rounds."""

    def happen(hospital: Hospital) -> Outcome:
        first = hospital.ask()
        damage(hospital.ledger)
        return hospital.seen(first, hospital.ask(hospital.server.task(2)))

    return happen


def statement(sql: str) -> Callable[[Path], None]:
    """Change the database with SQLite's own tools, past its triggers."""

    def damage(ledger: Path) -> None:
        with closing(sqlite3.connect(ledger / DATABASE, isolation_level=None)) as connection:
            triggers = connection.execute(
                "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
            ).fetchall()
            for name, _ in triggers:
                connection.execute(f"DROP TRIGGER {name}")
            connection.execute(sql)
            for _, trigger in triggers:
                connection.execute(trigger)

    return damage


def corrupt_page(ledger: Path) -> None:
    """Overwrite the page that holds the entries."""
    with (ledger / DATABASE).open("r+b") as file:
        file.seek(PAGE)
        file.write(b"\xa5" * PAGE)


def write_to(device: str, flags: int) -> Callable[[], None]:
    """Let SQLite's log be another device: what is written there fails."""

    def exchange() -> None:
        for descriptor in list(Path("/proc/self/fd").iterdir()):
            with suppress(FileNotFoundError):
                if str(descriptor.readlink()).endswith("-wal"):
                    os.dup2(os.open(device, flags), int(descriptor.name))

    return exchange


def no_room_in_the_outbox() -> None:
    """Let no file of this process grow from now on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def become_nobody() -> None:
    """Give up the rights of root, whom no file's mode keeps from writing."""
    if os.geteuid() == 0:
        os.setuid(NOBODY)


def read_only(hospital: Hospital) -> Outcome:
    """Take the right to write away, and give it back."""
    first = hospital.ask()
    second = hospital.server.task(2)
    state = [path for path in hospital.folder.rglob("*") if not path.is_symlink()]
    modes = {path: path.stat().st_mode for path in state}
    for path in state:
        path.chmod(0o500 if path.is_dir() else 0o400)
    _give_to(hospital, NOBODY)
    refused = hospital.ask(second, at=at_point("asked", become_nobody))
    _give_to(hospital, 0)
    for path, mode in modes.items():
        path.chmod(mode)
    return hospital.seen(first, refused, hospital.ask(second))


def _give_to(hospital: Hospital, user: int) -> None:
    """Let everything belong to an account; only root can, and nobody else has to."""
    if os.geteuid() == 0:
        root = hospital.folder.parents[1]
        for path in (root, *root.rglob("*")):
            os.chown(path, user, user, follow_symlinks=False)


def power_loss(hospital: Hospital) -> Outcome:
    """Keep what the disk holds at every write of a round, and go on from each; the worst of all."""
    replays = hospital.folder.parent / "replays"
    numbers = itertools.count()

    def keep(point: str) -> None:
        copy = replays / f"{next(numbers):03d}-{point}"
        shutil.copytree(hospital.folder, copy, symlinks=True)

    hospital.ask(at=keep)
    _tear_the_log(replays)
    different = {_content(folder): folder for folder in sorted(replays.iterdir())}
    outcomes = []
    for folder in different.values():
        replay = Hospital(hospital.site, folder=folder, server=hospital.server)
        outcomes.append(replay.seen(replay.ask()))
    worst = min(outcomes, key=lambda outcome: outcome.balance)
    answers = sorted({answer for outcome in outcomes for answer in outcome.answers})
    return Outcome(
        answers=(f"{len(outcomes)} replays", *answers),
        charged=worst.charged,
        released=worst.released,
    )


def _content(folder: Path) -> frozenset[tuple[Path, bytes]]:
    return frozenset(
        (path.relative_to(folder), path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    )


def _tear_the_log(replays: Path) -> None:
    """Add what the disk may hold while a commit is written: the log up to any sector."""
    log = Path("state", "ledger", f"{DATABASE}-wal")
    (before, *_), (after, *_) = (
        sorted(replays.glob(f"*-{point}")) for point in ("inserted", "committed")
    )
    written = (after / log).read_bytes()
    for size in range(0, len(written), SECTOR):
        torn = replays / f"torn-{size}"
        shutil.copytree(before, torn, symlinks=True)
        (torn / log).write_bytes(written[:size])


def rolled_back(*names: str) -> Fault:
    """Restore a copy of some files of the ledger, older than the newest round."""

    def happen(hospital: Hospital) -> Outcome:
        server = hospital.server
        answers = [hospital.ask(server.task(1))]
        copy = hospital.folder / "copy"
        shutil.copytree(hospital.ledger, copy)
        answers.append(hospital.ask(server.task(2)))
        for name in names:
            shutil.copy(copy / name, hospital.ledger / name)
        answers.append(hospital.ask(server.task(3)))
        return hospital.seen(*answers)

    return happen


def log_deleted(hospital: Hospital) -> Outcome:
    """Delete SQLite's log, which holds the newest charge of a process that was killed."""
    first = hospital.ask(at=at_point("stepped", die))
    (hospital.ledger / f"{DATABASE}-wal").unlink()
    return hospital.seen(first, hospital.ask())


def two_processes(hospital: Hospital) -> Outcome:
    """Ask two processes of the site for the same round, with budget for one."""
    both = multiprocessing.Barrier(2)
    waited: list[str] = []

    def at(point: str) -> None:
        # Neither charges before the other has found the outbox empty.
        if point == "asking the witness" and not waited:
            waited.append(point)
            both.wait(timeout=60)

    running = [hospital.begin(hospital.server.task(), at=at) for _ in range(2)]
    return hospital.seen(*sorted(hospital.finish(process) for process in running))


def clock_backwards() -> None:
    """Let the ledger's clock go back for years."""

    class YearsAgo(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Self:
            return cls(2001, 1, 1, tzinfo=tz)

    ledger_store.datetime = YearsAgo


def older_accountant() -> None:
    """Let this process charge by another version of the accountant."""
    importlib.metadata.version = lambda _: "0.5.0"


def amount(steps: Any, noise: Any) -> Fault:
    """Ask for steps, and for noise, of an impossible amount."""

    def happen(hospital: Hospital) -> Outcome:
        tasks = (
            hospital.server.task(local_steps=steps),
            hospital.server.task(noise_multiplier=noise),
        )
        return hospital.seen(*(hospital.ask(task) for task in tasks))

    return happen


def doubled(hospital: Hospital) -> Outcome:
    """Ask twice for the same."""
    return hospital.seen(hospital.ask(), hospital.ask())


def new_run(hospital: Hospital) -> Outcome:
    """Ask for a round again under the name of another run, first agreed to and then not."""
    server = hospital.server
    return hospital.seen(
        hospital.ask(),
        hospital.ask(server.proposal("second"), kind="query"),
        hospital.ask(server.task(run="second")),
    )


def other_delta(hospital: Hospital) -> Outcome:
    """Change delta in the site's file after the ledger was made."""
    first = hospital.ask()
    privacy = hospital.site.privacy.model_copy(update={"delta": 1e-6})
    hospital.site = hospital.site.model_copy(update={"privacy": privacy})
    return hospital.seen(first, hospital.ask(hospital.server.task(2)))


def other_accountant(hospital: Hospital) -> Outcome:
    """Charge a round by another version of the accountant, and go on with this one."""
    first = hospital.ask(at=at_point("asked", older_accountant))
    return hospital.seen(first, hospital.ask(hospital.server.task(2)))


def unaffordable_plan(hospital: Hospital) -> Outcome:
    """Propose a study for which the budget has nothing left."""
    later = hospital.server.proposal("second", study="later")
    return hospital.seen(hospital.ask(), hospital.ask(later, kind="query"))


@dataclass(frozen=True, kw_only=True)
class Room:
    """The rounds of the study, and the lifetime budget for a given price of one round."""

    rounds: int
    budget: Callable[[float], float]


ROOMY = Room(rounds=5, budget=lambda price: 10 * price)
TIGHT = Room(rounds=1, budget=lambda price: price)
ULP_BELOW = Room(rounds=1, budget=lambda price: math.nextafter(price, math.inf))
ULP_ABOVE = Room(rounds=1, budget=lambda price: math.nextafter(price, 0.0))

FAULTS: dict[str, tuple[Fault, Room]] = {
    "killed before BEGIN": (killed("begin"), ROOMY),
    "killed, insert not committed": (killed("inserted"), ROOMY),
    "killed, committed": (killed("committed"), ROOMY),
    "killed in mid-training": (killed("stepped"), ROOMY),
    "killed before the outbox": (killed("outbox"), ROOMY),
    "killed after the outbox": (killed("stored"), ROOMY),
    "killed in mid-send": (killed("sending"), ROOMY),
    "killed before the acknowledgement": (killed("sent"), ROOMY),
    "power loss": (power_loss, ROOMY),
    "disk full": (failing(at_point("begin", write_to("/dev/full", os.O_RDWR))), ROOMY),
    "disk full at the outbox": (failing(at_point("outbox", no_room_in_the_outbox)), ROOMY),
    "I/O error": (failing(at_point("begin", write_to("/dev/null", os.O_RDONLY))), ROOMY),
    "read-only disk": (read_only, ROOMY),
    "corrupt page": (after_a_round(corrupt_page), ROOMY),
    "log deleted": (log_deleted, ROOMY),
    "file missing": (after_a_round(lambda ledger: (ledger / DATABASE).unlink()), ROOMY),
    "database rolled back": (rolled_back(DATABASE), ROOMY),
    "database and head rolled back": (rolled_back(DATABASE, HEAD), ROOMY),
    "broken chain": (
        after_a_round(
            statement("""UPDATE entries SET body = replace(body, '"steps":2', '"steps":1')""")
        ),
        ROOMY,
    ),
    "two processes": (two_processes, TIGHT),
    "doubled message": (doubled, ROOMY),
    "clock backwards": (failing(at_point("asked", clock_backwards)), ROOMY),
    "negative amount": (amount(-1, -1.0), ROOMY),
    "zero amount": (amount(0, 0.0), ROOMY),
    "NaN amount": (amount(math.nan, math.nan), ROOMY),
    "infinite amount": (amount(math.inf, math.inf), ROOMY),
    "boolean amount": (amount(True, True), ROOMY),
    "text amount": (amount("2", "3.0"), ROOMY),
    # The plan fits exactly; what a killed process was charged leaves nothing for a second try.
    "at the budget": (killed("stepped"), TIGHT),
    "one ulp below the budget": (killed("stepped"), ULP_BELOW),
    "one ulp above the budget": (killed("stepped"), ULP_ABOVE),
    "migration": (after_a_round(statement("PRAGMA user_version = 2")), ROOMY),
    "delta mismatch": (other_delta, ROOMY),
    "changed accountant": (other_accountant, ROOMY),
    "new run id": (new_run, TIGHT),
    "unaffordable plan": (unaffordable_plan, TIGHT),
}


def run(fault: str, lab: Laboratory) -> Outcome:
    """Let one of `FAULTS` happen to a new hospital."""
    happen, room = FAULTS[fault]
    return happen(lab.hospital(budget=room.budget(lab.price), rounds=room.rounds))


def main(
    *, as_json: Annotated[bool, typer.Option("--json", help="One JSON line a fault.")] = False
) -> None:
    """Let every fault happen once; exit status 1 where more was released than charged."""
    for name in ("medfl", "flwr"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with laboratory() as lab:
        outcomes = {fault: run(fault, lab) for fault in FAULTS}
    if as_json:
        for fault, outcome in outcomes.items():
            typer.echo(json.dumps({"fault": fault, **vars(outcome), "balance": outcome.balance}))
    else:
        _print(outcomes)
    if any(outcome.balance < 0 for outcome in outcomes.values()):
        raise typer.Exit(1)


def _print(outcomes: dict[str, Outcome]) -> None:
    table = Table(title="Noisy steps charged and released")
    table.add_column("fault", no_wrap=True)
    table.add_column("answers; a code refuses")
    for heading in ("charged", "released", "difference"):
        table.add_column(heading, justify="right")
    for fault, outcome in outcomes.items():
        numbers = (outcome.charged, outcome.released, outcome.balance)
        table.add_row(fault, ", ".join(outcome.answers), *map(str, numbers))
    console = Console()
    console.width = max(console.width, WIDTH)  # codes are not cut where there is no terminal
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
