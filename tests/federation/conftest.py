"""Three small hospitals of synthetic patients, a study of two rounds, and a grid with faults.

Tests ask for the fixture `federation`. A whole run in this process takes about a second.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_to_proto
from flwr.serverapp import Grid, ServerApp
from safetensors.torch import load_file

from medfl.config import SiteConfig, StudyConfig, load_site
from medfl.data.synthetic_hospitals import write_hospitals
from medfl.federation.client_app import ignore_steps
from medfl.federation.exchange import ask
from medfl.federation.grid import InProcessGrid, run_in_process
from medfl.federation.messages import Declaration, SiteUpdate
from medfl.federation.pretraining import initial_weights
from medfl.federation.progress import Progress, Silent
from medfl.federation.run_folder import RunFolder
from medfl.federation.server_app import Run, make_server_app
from medfl.federation.simulation import client_app_of, nodes_of, prepare_folder
from medfl.federation.site_keys import SiteKeys
from medfl.federation.workplace import Workplace, create_ledger, simulated_workplace
from medfl.privacy.ledger import Ledger
from medfl.privacy.mechanism import Mechanism

SITES = ("east", "north", "south")
STUDY: dict[str, Any] = {
    "id": "tiny",
    "input": {"modalities": ["t1c", "t2f"], "regions": ["WT", "ET"], "crop_size": [16, 16, 16]},
    "network": {
        "name": "SegResNet",
        "arguments": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    },
    "privacy": {"epsilon": 8.0, "sampling_prob": 0.5, "noise": "seeded"},
    "training": {"rounds": 2, "local_steps": 1, "optimizer": "sgd", "learning_rate": 0.5},
    "aggregation": {"strategy": "fedavg", "min_sites": 2, "round_timeout_seconds": 60.0},
    "evaluation": {"every": 10, "pictures": 0},
}

Fault = Callable[[str, Message, Callable[[], Message]], Message | None]
"""Site, message, and the site's own answer when called: what the server gets instead."""


def honest(site: str, message: Message, answer: Callable[[], Message]) -> Message | None:
    """No fault."""
    return answer()


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables with some values replaced."""
    result = dict(values)
    for key, value in changes.items():
        inner = result.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        result[key] = changed(inner, value) if both else value
    return result


class FaultyGrid(InProcessGrid):
    """Lets a test stand between a site and the server, and keeps what leaves the sites."""

    def __init__(self, workplaces: list[Workplace], *, fault: Fault) -> None:
        nodes = nodes_of(workplaces)
        app = client_app_of(workplaces, observer_of=lambda _: ignore_steps)
        super().__init__(app, node_configs=nodes)
        names = [workplace.site.name for workplace in workplaces]
        self._sites = dict(zip(nodes, names, strict=True))
        self._fault = fault
        self.replies: list[bytes] = []

    def deliver(self, message: Message) -> Message | None:
        site = self._sites[message.metadata.dst_node_id]

        def answer() -> Message:
            reply = InProcessGrid.deliver(self, message)
            assert reply is not None
            self.replies.append(message_to_proto(reply).SerializeToString())
            return reply

        return self._fault(site, message, answer)


@dataclass
class Voice:
    """What one site says of its ledger, signed with its keys.

    Without changes the site was charged for one round after the other and nothing was lost: two
    rows of the ledger and one round's steps for each.
    """

    site: str
    keys: SiteKeys
    mechanism: Mechanism

    def declaration(self, **changes: Any) -> Declaration:
        """What it declares."""
        values: dict[str, Any] = {
            "site": self.site,
            "run": "run",
            "run_steps": 0,
            "event_key": self.keys.event_key,
            "rotations": self.keys.rotations,
            "purpose": "hospital",
            "declared_patients": self.mechanism.declared_patients,
            "weight": 20.0,
            "modalities": ("t2f",),
            "label_scheme": "brats",
            "delta": 1e-5,
            "epsilon_budget": 8.0,
            "epsilon": 7.5,
            "mechanism": self.mechanism,
            "ledger_sequence": 1,
            "ledger_hash": f"{1:064x}",
        }
        return Declaration(**{**values, **changes}).signed(self.keys)

    def update(self, number: int, **changes: Any) -> SiteUpdate:
        """Its update of a round."""
        values: dict[str, Any] = {
            "site": self.site,
            "run": "run",
            "round": number,
            "message_id": f"run/{number}/{self.site}",
            "mechanism": self.mechanism,
            "steps": self.mechanism.local_steps,
            "run_steps": number * self.mechanism.local_steps,
            "weights_digest": "0" * 64,
            "ledger_sequence": 2 * number,
            "ledger_hash": f"{2 * number:064x}",
        }
        return SiteUpdate(**{**values, **changes}).signed(self.keys)


@dataclass
class Finished:
    """A run folder and what left the sites on the way to it."""

    path: Path
    replies: list[bytes] = field(default_factory=list)

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.path)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The final model."""
        return load_file(self.path / "checkpoints" / "final.safetensors")

    def outcomes(self, round_number: int = 1) -> dict[str, tuple[str, str]]:
        """Outcome and code by site."""
        sites = self.folder.rounds()[round_number - 1]["sites"]
        return {name: (site["outcome"], site["code"]) for name, site in sites.items()}

    def state(self, site: str) -> Path:
        """Folder in which a site with open data keeps ledger, outbox and keys."""
        return self.path / "sites" / site

    def charges(self, site: str) -> int:
        """Rounds that a site's ledger was charged for."""
        with Ledger.open(self.state(site) / "ledger") as ledger:
            return sum(run.charges for run in ledger.spent().by_run)


@dataclass
class Federation:
    """Site files on disk, and the ways to run studies over them."""

    files: dict[str, Path]
    scratch: Path

    def study(self, **changes: Any) -> StudyConfig:
        """The study's file with some values replaced."""
        return StudyConfig.model_validate_json(json.dumps(changed(STUDY, changes)))

    def site(self, name: str, **changes: Any) -> SiteConfig:
        """A site's file with some values replaced."""
        values = load_site(self.files[name]).model_dump(mode="json")
        values["privacy"]["share_metrics"] = False
        return SiteConfig.model_validate_json(json.dumps(changed(values, {"threads": 1} | changes)))

    def hospital(self, name: str, *, copy_patients: bool = False, **changes: Any) -> SiteConfig:
        """A site with a lifetime ledger of its own, under a state folder that no other test has."""
        state = self.scratch / "state" / name
        values: dict[str, Any] = {
            "purpose": "hospital",
            "state": str(state),
            "privacy": {"allow_baselines": False},
            # A secret key splits a hospital's patients, so nobody is held out here.
            "declared_patients": 5 if name == "north" else 4,
            "data": {"held_out": 0.0},
        }
        if copy_patients:
            root = self.scratch / "patients" / name
            shutil.copytree(self.site(name).data.root, root)
            values["data"]["root"] = str(root)
        site = self.site(name, **changed(values, changes))
        create_ledger(site, folder=state / "ledger").close()
        SiteKeys.create(state / "keys")
        return site

    def sites(self, *names: str, **changes: Any) -> list[SiteConfig]:
        """Several sites, all of them if none is named."""
        return [self.site(name, **changes) for name in names or SITES]

    def run(
        self,
        study: StudyConfig,
        sites: list[SiteConfig],
        *,
        name: str = "run",
        fault: Fault = honest,
        resume: bool = False,
        private: bool = True,
        progress: Progress | None = None,
        run_id: str = "",
    ) -> Finished:
        """Run a study, or go on with it, in this process."""
        out = self.scratch / name
        prepare_folder(out, study=study, resume=resume)
        folder = RunFolder(out)
        if run_id:
            folder.begin(run=run_id, study=study)
        run = Run(
            study=study,
            folder=folder,
            run=folder.run_id(),
            private=private,
            variant="federated",
            start=lambda: initial_weights(study, threads=1, advance=lambda *_: None),
            progress=progress or Silent(),
        )
        grid = FaultyGrid(
            [simulated_workplace(site, run_folder=out) for site in sites], fault=fault
        )
        run_in_process(make_server_app(run), grid)
        return Finished(path=out, replies=grid.replies)

    def workplace(self, site: SiteConfig) -> Workplace:
        """Where a site works for this test."""
        return simulated_workplace(site, run_folder=self.scratch / "run")

    def ask(self, workplace: Workplace, question: RecordDict, *, kind: str) -> RecordDict:
        """One message from a server to one site, and its answer."""
        grid = FaultyGrid([workplace], fault=honest)
        answers: dict[int, Message] = {}
        app = ServerApp()

        @app.main()
        def main(_: Grid, __: Context) -> None:
            answers.update(ask(grid, {2: question}, kind=kind, group="1", timeout=60.0))

        run_in_process(app, grid)
        return answers[2].content


@pytest.fixture(scope="session")
def voice_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Voice]:
    """Makes a site with new keys that can speak to a server."""

    def make(site: str, *, mechanism: Mechanism) -> Voice:
        keys = SiteKeys.create(tmp_path_factory.mktemp("keys") / site)
        return Voice(site=site, keys=keys, mechanism=mechanism)

    return make


@pytest.fixture
def as_server() -> None:
    """Lets a test make messages as a running server does."""
    app = ServerApp()

    @app.main()
    def main(_: Grid, __: Context) -> None:
        """Nothing; Flower has noted who is running."""

    run_in_process(app, InProcessGrid(ClientApp(), node_configs={}))


@pytest.fixture(scope="session")
def hospital_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Site files of the synthetic hospitals, which are written once."""
    files = write_hospitals(
        tmp_path_factory.mktemp("hospitals") / "all",
        patients=(5, 4, 4, 1),
        shape=(32, 32, 24),
        spacing=(5.6, 5.6, 6.8),
        skull_stripped=True,
        seed=7,
        on_patient=lambda: None,
    )
    return {file.stem: file for file in files}


@pytest.fixture
def federation(hospital_files: dict[str, Path], tmp_path: Path) -> Iterator[Federation]:
    """The hospitals, with a folder for what this test runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Federation(files=hospital_files, scratch=tmp_path)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared_federation(
    hospital_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Federation:
    """The same for runs that several tests compare with; each needs a name of its own."""
    return Federation(files=hospital_files, scratch=tmp_path_factory.mktemp("shared"))
