"""`rehearse`: what the guides tell a coordinator and the hospitals to do, from first to last."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from medfl.config.site import Trust
from medfl.config.site_template import SITE_FILE
from medfl.deployment.addresses import LOOPBACK
from medfl.deployment.admission import read_bundle
from medfl.deployment.processes import free_port
from medfl.rehearsal.stage import Stage, require_port

CONNECT_SECONDS = 300.0

Advance = Callable[[str, int, int], None]

_TRUST: Mapping[Trust, str] = {
    "local": 'trust = "local"',
    "secure": 'trust = "secure"\ncolluding_sites = 1',
}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is played.

    Attributes:
        patients: Of each hospital, synthetic.
        shape: Voxels of an image.
        spacing: Millimetres per voxel.
        rounds: Of the study.
        study: Its file, with places for ``rounds``, ``hospitals`` and the line ``trust``.
    """

    patients: int
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    rounds: int
    study: str


REHEARSAL = Scene(
    patients=4,
    shape=(32, 32, 24),
    spacing=(5.6, 5.6, 6.8),
    rounds=2,
    study="""\
# The study of a rehearsal: synthetic patients, a small network, as little time as possible.
id = "rehearsal"
seed = 1

[input]
modalities = ["t1c", "t2f"]
regions = ["WT"]
crop_size = [16, 16, 16]

[network]
name = "SegResNet"
arguments = {{ init_filters = 8, blocks_down = [1, 1], blocks_up = [1] }}

[privacy]
epsilon = 4.0
sampling_prob = 0.3
clip_norm = 1.0
{trust}

[training]
rounds = {rounds}
local_steps = 1
optimizer = "sgd"
learning_rate = 0.5

[aggregation]
strategy = "fedadam"
server_learning_rate = 0.01
min_sites = {hospitals}
round_timeout_seconds = 900.0

[evaluation]
every = {rounds}
pictures = 0
""",
)


@dataclass(frozen=True, kw_only=True)
class Account:
    """What one hospital's ledger says after the rehearsal."""

    site: str
    epsilon: float
    budget: float
    charges: int


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """How a rehearsal ended.

    Attributes:
        accounts: Of every hospital, in the order in which they joined.
        rounds: How many there were.
        report: The report; gone with the folder unless it is kept.
        seconds: How long it took.
    """

    accounts: tuple[Account, ...]
    rounds: int
    report: Path
    seconds: float


def rehearse(
    stage: Stage,
    *,
    hospitals: int,
    trust: Trust,
    port: int | None,
    advance: Advance,
    scene: Scene = REHEARSAL,
) -> Rehearsed:
    """Play a whole deployment.

    Args:
        stage: Where.
        hospitals: How many.
        trust: Whether each hospital adds all of the noise, or a share of a secure sum's.
        port: Of the server; None takes one that is free.
        advance: Told the part, what is done of it, and all of it.
        scene: Patients and study.

    Raises:
        ConfigError: If the port is taken.
        FederationError: If a command failed, or a process ended.
        Interrupted: If somebody stops it.
    """
    port = free_port() if port is None else port
    require_port(port)
    play = _Play(stage, hospitals=hospitals, trust=trust, port=port, advance=advance, scene=scene)
    return play.played()


class _Play:
    def __init__(
        self,
        stage: Stage,
        *,
        hospitals: int,
        trust: Trust,
        port: int,
        advance: Advance,
        scene: Scene,
    ) -> None:
        self._stage = stage
        self._hospitals = hospitals
        self._trust = trust
        self._address = f"{LOOPBACK}:{port}"
        self._port = port
        self._advance = advance
        self._scene = scene
        self._server = stage.folder / "server"
        self._study = stage.folder / "study.toml"
        self._out = stage.folder / "run"
        self._states: dict[str, Path] = {}

    def played(self) -> Rehearsed:
        begin = time.monotonic()
        self._make_patients()
        self._open_server()
        self._each("hospitals join", self._join)
        self._introduce()
        self._each("ledgers", lambda name: self._command("ledger init", name, answer="y\n"))
        self._start_server()
        self._each("checks", self._check)
        self._connect()
        self._run_study()
        accounts = self._settle()
        return Rehearsed(
            accounts=accounts,
            rounds=self._scene.rounds,
            report=self._out / "report.html",
            seconds=time.monotonic() - begin,
        )

    def _each(self, part: str, do: Callable[[str], object]) -> None:
        self._advance(part, 0, len(self._states))
        for done, name in enumerate(self._states, start=1):
            do(name)
            self._advance(part, done, len(self._states))

    def _command(self, command: str, name: str, *options: object, answer: str = "") -> str:
        return self._stage.run(*command.split(), self._file(name), *options, answer=answer)

    def _file(self, name: str) -> Path:
        return self._states[name] / SITE_FILE

    def _make_patients(self) -> None:
        self._advance("synthetic patients", 0, self._hospitals)
        folder = self._stage.folder / "hospitals"
        printed = self._stage.run(
            *("phantom", folder, "--purpose", "hospital", "--hospitals", self._hospitals),
            *("--patients", *[self._scene.patients] * 4),
            *("--shape", *self._scene.shape, "--spacing", *self._scene.spacing),
        )
        for file in map(Path, printed.splitlines()):
            self._states[file.stem] = folder / "state" / file.stem
        self._advance("synthetic patients", self._hospitals, self._hospitals)

    def _open_server(self) -> None:
        self._advance("server", 0, 1)
        self._stage.run(
            *("server", "init", self._server, "--host", LOOPBACK, "--port", self._port),
            *("--name", "rehearsal"),
        )
        text = self._scene.study.format(
            trust=_TRUST[self._trust], rounds=self._scene.rounds, hospitals=self._hospitals
        )
        self._study.write_text(text, encoding="utf-8")
        self._advance("server", 1, 1)

    def _join(self, name: str) -> None:
        """Invitation, keys, the site's own file in place of the template, and admission."""
        state, mail = self._states[name], self._stage.folder / "mail"
        self._stage.run("server", "invite", self._server, name, "-o", mail)
        self._stage.run("site", "init", state, "--invite", mail / f"{name}.invite")
        shutil.copyfile(self._stage.folder / "hospitals" / f"{name}.toml", self._file(name))
        self._stage.run("server", "admit", self._server, state / "site.pub", name)

    def _introduce(self) -> None:
        """In a secure sum hospitals know each other's keys, which people compare by telephone."""
        if self._trust != "secure":
            return
        keys = {
            name: read_bundle(state / "site.pub").site.event_key
            for name, state in self._states.items()
        }
        for name in self._states:
            peers = ", ".join(f'{other} = "{key}"' for other, key in keys.items() if other != name)
            text = self._file(name).read_text(encoding="utf-8")
            text = text.replace("peers = {}", f"peers = {{ {peers} }}")
            self._file(name).write_text(text, encoding="utf-8")

    def _start_server(self) -> None:
        self._advance("server starts", 0, 1)
        self._stage.start("server", "server", "start", self._server)
        log = self._stage.log("server")

        def missing() -> str:
            serves = "Serving" in log.read_text(encoding="utf-8", errors="replace")
            return "" if serves else "a server that serves"

        self._stage.wait_until(missing, seconds=CONNECT_SECONDS)
        self._advance("server starts", 1, 1)

    def _reaching(self, name: str) -> tuple[object, ...]:
        return ("--server", self._address, "--ca", self._states[name] / "ca.crt")

    def _check(self, name: str) -> None:
        self._command("check", name, "--study", self._study, *self._reaching(name))

    def _connect(self) -> None:
        from medfl.deployment.coordinator.server_folder import ServerFolder
        from medfl.deployment.coordinator.status import read_status

        count = len(self._states)
        self._advance("hospitals connect", 0, count)
        for name in self._states:
            self._stage.start(name, "site", "start", self._file(name), *self._reaching(name))
        folder = ServerFolder(self._server)

        def missing() -> str:
            absent = [site.name for site in read_status(folder).sites if not site.connected]
            self._advance("hospitals connect", count - len(absent), count)
            return f"{', '.join(absent)} to connect" if absent else ""

        self._stage.wait_until(missing, seconds=CONNECT_SECONDS)
        self._stage.run("server", "status", self._server)

    def _run_study(self) -> None:
        part, rounds = "study, rounds", self._out / "rounds.jsonl"
        self._advance(part, 0, self._scene.rounds)
        shown = 0

        def show() -> None:
            nonlocal shown
            done = len(rounds.read_text(encoding="utf-8").splitlines()) if rounds.exists() else 0
            if done != shown:
                shown = done
                self._advance(part, done, self._scene.rounds)

        self._stage.run(
            *("server", "run", self._server, self._study, "--out", self._out), while_running=show
        )
        show()

    def _settle(self) -> tuple[Account, ...]:
        """Every ledger is counted again, and exported for an auditor with nothing but site.pub."""
        accounts = []

        def settle(name: str) -> None:
            export = self._stage.folder / f"{name}-ledger.json"
            self._command("ledger verify", name)
            self._command("ledger export", name, "-o", export)
            key = self._states[name] / "site.pub"
            self._stage.run("ledger", "check-export", export, "--key", key)
            spent = json.loads(self._command("budget", name, "--json"))
            accounts.append(
                Account(
                    site=name,
                    epsilon=spent["epsilon"],
                    budget=spent["budget"],
                    charges=sum(run["charges"] for run in spent["runs"]),
                )
            )

        self._each("accounts", settle)
        return tuple(accounts)
