"""One small hospital, each of whose answers is given by a process that may be harmed on its way.

Its ledger is read from outside with SQLite alone, and what left it is counted on the wire, so that
the two sides of the comparison do not depend on the code under test. `ledger_faults.py` harms it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from medfl.config import SiteConfig, StudyConfig, load_site
from medfl.phantom.hospitals import write_hospitals
from medfl.privacy.accounting.accountant import Charge, epsilon
from medfl.privacy.accounting.planner import plan_site
from medfl.privacy.ledger.store import DATABASE
from medfl.privacy.ledger.witness import Witness
from medfl.privacy.mechanism import Mechanism
from medfl.protocol.keys import SiteKeys
from medfl.protocol.messages import Proposal, Weights, refusal_code, to_arrays, to_record
from medfl.server.ask import ask
from medfl.site.client_app import make_client_app
from medfl.site.outbox import Outbox
from medfl.site.state import KEYS, create_ledger, hospital_state
from medfl.study.in_process_grid import InProcessGrid, run_in_process
from medfl.study.pretraining import initial_weights

WENT_ON = "went on"
KILLED = "killed"
NODE = 2
STEPS = 2
PATIENTS = 4
NOISE_MULTIPLIER = 3.0
SAMPLING_PROB = 0.5
RUN = "first"
PAYS = ("charge", "carry")  # kinds of the ledger's entries that count steps
STUDY: dict[str, Any] = {
    "id": "faults",
    "input": {"modalities": ["t1c", "t2f"], "regions": ["WT", "ET"], "crop_size": [16, 16, 16]},
    "network": {
        "name": "SegResNet",
        "arguments": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    },
    "privacy": {"epsilon": 8.0, "sampling_prob": SAMPLING_PROB},
    "training": {"rounds": 5, "local_steps": STEPS, "optimizer": "sgd", "learning_rate": 0.5},
    "aggregation": {"strategy": "fedavg", "min_sites": 1},
}

Watcher = Callable[[str], None]
"""Told each point that the site's process reaches: asked, begin, inserted, committed, syncing,
synced, stepped, outbox, stored, sending, sent."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a fault came to.

    Attributes:
        answers: Message by message: `WENT_ON`, `KILLED` or the code of a refusal.
        charged: Noisy steps that stood in its ledger.
        released: Noisy steps whose result left it, in whole or in part.
    """

    answers: tuple[str, ...]
    charged: int
    released: int

    @property
    def balance(self) -> int:
        """Steps charged beyond those released; negative is a breach."""
        return self.charged - self.released


@dataclass(frozen=True, kw_only=True)
class Server:
    """What asks the hospital; a hostile one may ask for anything.

    Attributes:
        mechanism: The one that the hospital declares for the study.
    """

    study: StudyConfig
    weights: Weights
    mechanism: Mechanism

    def proposal(self, run: str, *, study: str = STUDY["id"]) -> RecordDict:
        """A request to take part in a run."""
        named = self.study.model_copy(update={"id": study})
        return to_record(Proposal(study=named, run=run, private=True))

    def task(self, number: int = 1, *, run: str = RUN, **mechanism: Any) -> RecordDict:
        """One round's request, with parts of its mechanism replaced."""
        body = {
            "study": self.study.model_dump(mode="json"),
            "run": run,
            "round": number,
            "message_id": f"{run}/{number}/east",
            "mechanism": {**self.mechanism.to_dict(), **mechanism},
        }
        return RecordDict(
            {"body": ConfigRecord({"json": json.dumps(body)}), "arrays": to_arrays(self.weights)}
        )


class Hospital:
    """One site with a state of its own, and the wire on which its answers leave it.

    Args:
        site: The site's file.
        folder: Holds `state`, `wire` and what its machine remembers, in `xdg-state`.
        server: What it is asked.
    """

    def __init__(self, site: SiteConfig, *, folder: Path, server: Server) -> None:
        self.folder = folder
        self.site = site.model_copy(update={"state": folder / "state"})
        self.server = server
        self._charged = 0
        self._look()

    @classmethod
    def founded(cls, site: SiteConfig, *, folder: Path, server: Server) -> Self:
        """A hospital with new keys and a new ledger, and the cache of `site`."""
        (folder / "state").mkdir(parents=True)
        (folder / "wire").mkdir()
        (folder / "state" / "cache").symlink_to(site.state / "cache")
        hospital = cls(site, folder=folder, server=server)
        SiteKeys.create(hospital.site.state / KEYS)
        with hospital._machine():
            create_ledger(hospital.site, folder=hospital.ledger).close()
        return hospital

    @property
    def ledger(self) -> Path:
        """Folder of the ledger."""
        return hospital_state(self.site).ledger_folder

    @property
    def released(self) -> int:
        """Noisy steps whose result left; a message cut off is the same release as its whole."""
        sent = {path.read_bytes() for path in (self.folder / "wire").iterdir()}
        return STEPS * sum(
            not any(other != content and other.startswith(content) for other in sent)
            for content in sent
        )

    def seen(self, *answers: str) -> Outcome:
        """What there is to tell after these answers."""
        return Outcome(answers=answers, charged=self._charged, released=self.released)

    def ask(
        self,
        question: RecordDict | None = None,
        *,
        kind: str = "train",
        at: Watcher = lambda _: None,
    ) -> str:
        """Send one message, a task of round 1 by default; the site's answer in a word."""
        return self.finish(self.begin(question or self.server.task(), kind=kind, at=at))

    def begin(
        self, question: RecordDict, *, kind: str = "train", at: Watcher = lambda _: None
    ) -> tuple[int, int]:
        """Let a new process of the site receive one message: its id, and a pipe."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with self._machine():
                    os.write(writer, self._serve(question, kind=kind, at=at).encode())
                status = 0
            except BaseException:  # noqa: BLE001  a forked child must not go on as its parent
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writer)
        return child, reader

    def finish(self, process: tuple[int, int]) -> str:
        """Wait for a process of the site; its answer in a word."""
        child, reader = process
        with os.fdopen(reader) as pipe:
            answer = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        self._look()
        if status == -signal.SIGKILL:
            return KILLED
        if status:
            raise RuntimeError(f"Expected the site to answer, found exit status {status}.")
        return answer

    @contextmanager
    def _machine(self) -> Iterator[None]:
        """Be on the hospital's own machine: all have the same patients, and each its witness."""
        before = os.environ.get("XDG_STATE_HOME")
        os.environ["XDG_STATE_HOME"] = str(self.folder / "xdg-state")
        try:
            yield
        finally:
            if before is None:
                del os.environ["XDG_STATE_HOME"]
            else:
                os.environ["XDG_STATE_HOME"] = before

    def _look(self) -> None:
        # A charge once committed stays counted, whatever is done to the file. SQLite alone reads a
        # copy, so that looking changes nothing and does not depend on the code under test.
        with tempfile.TemporaryDirectory() as name:
            for file in self.ledger.glob(f"{DATABASE}*"):
                shutil.copy(file, name)
            with closing(sqlite3.connect(Path(name) / DATABASE)) as connection:
                try:
                    rows = connection.execute("SELECT body FROM entries").fetchall()
                    entries = [json.loads(body) for (body,) in rows]
                except (sqlite3.Error, ValueError):
                    return
        steps = sum(entry["content"]["steps"] for entry in entries if entry["kind"] in PAYS)
        self._charged = max(self._charged, steps)

    def _serve(self, question: RecordDict, *, kind: str, at: Watcher) -> str:
        torch.set_num_threads(1)
        _watch(at)
        at("asked")
        site_state = hospital_state(self.site)
        app = make_client_app(lambda _: site_state, observer_of=lambda _: lambda *_: at("stepped"))
        reply = _exchange(app, question, kind=kind)
        code = refusal_code(reply)
        if code:
            return code
        if kind == "train":
            self._send(reply, at=at)
        return WENT_ON

    def _send(self, reply: RecordDict, *, at: Watcher) -> None:
        body = str(reply.config_records["body"]["json"]).encode()
        content = body + b"".join(array.data for array in reply.array_records["arrays"].values())
        with (self.folder / "wire" / str(time.monotonic_ns())).open("wb", buffering=0) as wire:
            wire.write(content[: len(content) // 2])
            at("sending")
            wire.write(content[len(content) // 2 :])
        at("sent")


@dataclass(frozen=True, kw_only=True)
class Laboratory:
    """One hospital's patients, on which every fault starts afresh."""

    folder: Path
    site: SiteConfig
    study: StudyConfig
    weights: Weights

    @property
    def price(self) -> float:
        """Epsilon of one round with the least noise that the site accepts."""
        mechanism = Mechanism(
            sampling_prob=SAMPLING_PROB,
            noise_multiplier=NOISE_MULTIPLIER,
            clip_norm=self.study.privacy.clip_norm,
            clipping=self.study.privacy.clipping,
            local_steps=STEPS,
            declared_patients=PATIENTS,
        )
        charge = Charge(mechanism=mechanism, steps=STEPS)
        return epsilon([charge], delta=self.site.privacy.delta)

    def hospital(self, *, budget: float, rounds: int) -> Hospital:
        """A hospital with a new ledger, in a folder of its own, that has agreed to a run."""
        training = self.study.training.model_copy(update={"rounds": rounds})
        study = self.study.model_copy(update={"training": training})
        privacy = self.site.privacy.model_copy(update={"epsilon": budget})
        site = self.site.model_copy(update={"privacy": privacy})
        server = Server(
            study=study, weights=self.weights, mechanism=plan_site(study, site).mechanism
        )
        folder = Path(tempfile.mkdtemp(dir=self.folder)) / "hospital"
        hospital = Hospital.founded(site, folder=folder, server=server)
        answer = hospital.ask(server.proposal(RUN), kind="query")
        if answer != WENT_ON:
            raise RuntimeError(f"Expected the site to agree to the study, found {answer!r}.")
        return hospital


@contextmanager
def laboratory() -> Iterator[Laboratory]:
    """Synthetic patients in a temporary folder, prepared once."""
    study = StudyConfig.model_validate_json(json.dumps(STUDY))
    with tempfile.TemporaryDirectory(prefix="medfl-faults-") as name:
        folder = Path(name)
        files = write_hospitals(
            folder / "hospitals",
            patients=(1, PATIENTS, 1, 1),
            shape=(32, 32, 24),
            spacing=(5.6, 5.6, 6.8),
            skull_stripped=True,
            seed=7,
            on_patient=lambda: None,
        )
        values = next(site for site in map(load_site, files) if site.name == "east").model_dump(
            mode="json"
        )
        values |= {"purpose": "hospital", "declared_patients": PATIENTS, "threads": 1}
        values["data"] |= {"held_out": 0.0}
        values["privacy"] |= {
            "share_metrics": False,
            "allow_baselines": False,
            "min_noise_multiplier": NOISE_MULTIPLIER,
        }
        site = SiteConfig.model_validate_json(json.dumps(values))
        weights = initial_weights(study, threads=1, advance=lambda *_: None)
        found = Laboratory(folder=folder, site=site, study=study, weights=weights)
        site_state = hospital_state(site)
        for index in range(PATIENTS):
            site_state.stores(study)[0].prepared(index)
        yield found


def _exchange(app: ClientApp, question: RecordDict, *, kind: str) -> RecordDict:
    """One message through a real ServerApp, and the records of its answer."""
    grid = InProcessGrid(app, node_configs={NODE: {}})
    answers: dict[int, Message] = {}
    server = ServerApp()

    @server.main()
    def main(_: Grid, __: Context) -> None:
        answers.update(ask(grid, {NODE: question}, kind=kind, group="1", timeout=60.0))

    run_in_process(server, grid)
    return answers[NODE].content


def _watch(at: Watcher) -> None:
    """Tell `at` what this process does to its ledger and outbox, from now to its end."""
    connect, put, fsync, locked = sqlite3.connect, Outbox.put, os.fsync, Witness.locked

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql.startswith("BEGIN"):
                at("begin")
            cursor = super().execute(sql, *values)
            if sql.startswith("INSERT"):
                at("inserted")
            elif sql.startswith("COMMIT"):
                at("committed")
            return cursor

    def watched_put(self: Outbox, *arguments: Any, **keywords: Any) -> str:
        at("outbox")
        digest = put(self, *arguments, **keywords)
        at("stored")
        return digest

    def watched_lock(self: Witness) -> AbstractContextManager[None]:
        at("asking the witness")
        return locked(self)

    def watched_fsync(descriptor: int) -> None:
        at("syncing")
        fsync(descriptor)
        at("synced")

    sqlite3.connect = lambda *a, **k: connect(*a, **k, factory=Watched)
    Outbox.put = watched_put
    Witness.locked = watched_lock
    os.fsync = watched_fsync
