"""Three small hospitals of synthetic patients, a study of two rounds, and a grid with faults.

Tests ask for the fixture `federation`. A whole run in this process takes about a second.
"""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_to_proto
from flwr.serverapp import Grid, ServerApp
from safetensors.torch import load_file

from medfl.config import SiteConfig, StudyConfig, load_site
from medfl.phantom.hospitals import write_hospitals
from medfl.privacy.ledger.ledger import Ledger
from medfl.privacy.mechanism import Mechanism
from medfl.protocol.keys import SiteKeys
from medfl.protocol.messages import Declaration, SiteUpdate
from medfl.server.ask import ask
from medfl.server.progress import Progress, Silent
from medfl.server.run import Run
from medfl.server.run_folder import RunFolder
from medfl.server.server_app import make_server_app
from medfl.site.client_app import ignore_steps
from medfl.site.state import SiteState, create_ledger, simulated_state
from medfl.study.in_process_grid import InProcessGrid, run_in_process
from medfl.study.pretraining import initial_weights
from medfl.study.simulation import client_app_of, nodes_of, prepare_folder

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

    def __init__(self, site_states: list[SiteState], *, fault: Fault) -> None:
        nodes = nodes_of(site_states)
        app = client_app_of(site_states, observer_of=lambda _: ignore_steps)
        super().__init__(app, node_configs=nodes)
        names = [site_state.site.name for site_state in site_states]
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
        sites = self.folder.rounds()[round_number - 1].sites
        return {name: (site.outcome, site.code) for name, site in sites.items()}

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
        grid = FaultyGrid([simulated_state(site, run_folder=out) for site in sites], fault=fault)
        run_in_process(make_server_app(run), grid)
        return Finished(path=out, replies=grid.replies)

    @staticmethod
    def before_training(action: Callable[[], object]) -> Fault:
        """A fault that happens once all sites have agreed, and before the first round."""
        waiting = [action]

        def fault(_: str, message: Message, answer: Callable[[], Message]) -> Message:
            if message.metadata.message_type == "train" and waiting:
                waiting.pop()()
            return answer()

        return fault

    def site_state(self, site: SiteConfig) -> SiteState:
        """Where a site works for this test."""
        return simulated_state(site, run_folder=self.scratch / "run")

    def ask(self, site_state: SiteState, question: RecordDict, *, kind: str) -> RecordDict:
        """One message from a server to one site, and its answer."""
        grid = FaultyGrid([site_state], fault=honest)
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


class Canary:
    """A patient's identifier, planted in the data of a hospital, and the search for it elsewhere.

    It is looked for as it is, in UTF-16, in base64 at any offset, as hexadecimal digits, and inside
    whatever zlib or gzip have compressed; in databases also row by row, since a long value is split
    over pages.
    """

    IDENTIFIER = "195001010777"
    PLACES = ("path", "file", "desc", "auxf", "dbna", "inte", "exte", "side")
    """Folder of the data, file names, five strings of a NIfTI header, and a sidecar in JSON."""

    def plant(self, root: Path, folder: Path) -> Path:
        """Copy the patients of a site with the identifier in every place, and return their root."""
        planted = folder / self._word("path") / "patients"
        for source in sorted(path for path in root.rglob("*") if path.is_file()):
            case = source.parent.name.replace("BraTS2021_", f"BraTS2021_{self.IDENTIFIER}")
            name = source.name.replace("BraTS2021_", f"BraTS2021_{self.IDENTIFIER}")
            target = planted / case / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.name.endswith(".nii.gz"):
                self._write_image(source, target)
                sidecar = target.with_name(name.replace(".nii.gz", ".json"))
                sidecar.write_text(json.dumps({"PatientName": self._word("side")}))
        return planted

    def found_in(self, *places: Path) -> list[str]:
        """Every file with the identifier in its name or content, and how it is written there."""
        found = []
        for place in places:
            for path in [place, *place.rglob("*")]:
                if self.IDENTIFIER in path.name:
                    found.append(f"{path}: name")
                if path.is_file():
                    found += [f"{path}: {form}" for form in self.forms_in(path.read_bytes())]
                    found += [f"{path}: {form} in a row" for form in self._forms_in_rows(path)]
        return found

    def forms_in(self, content: bytes) -> list[str]:
        """How the identifier is written in some bytes; nothing if it is not."""
        forms = [form for form, word in self._forms().items() if word in content]
        for inflated in _inflated(content):
            forms += [f"compressed {f}" for f, word in self._forms().items() if word in inflated]
        return forms

    def _word(self, place: str) -> str:
        return self.IDENTIFIER + place

    def _forms(self) -> dict[str, bytes]:
        word = self.IDENTIFIER.encode()
        # Characters at the edges depend on their neighbours.
        shifted = [base64.b64encode(bytes(shift) + word)[4:-4] for shift in range(3)]
        return {
            "plain": word,
            "UTF-16": self.IDENTIFIER.encode("utf-16-le")[:-1],
            "hexadecimal": word.hex().encode(),
            **{f"base64 at {shift}": text for shift, text in enumerate(shifted)},
        }

    def _forms_in_rows(self, path: Path) -> list[str]:
        if path.read_bytes()[:15] != b"SQLite format 3":
            return []
        forms = set()
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            database.text_factory = bytes
            tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            for (table,) in tables.fetchall():
                for row in database.execute(f'SELECT * FROM "{table.decode()}"'):  # noqa: S608
                    for value in row:
                        forms.update(self.forms_in(value) if isinstance(value, bytes) else ())
        return sorted(forms)

    def _write_image(self, source: Path, target: Path) -> None:
        image = nibabel.load(source)
        header = image.header
        for field_name, place in (("descrip", "desc"), ("aux_file", "auxf"), ("db_name", "dbna")):
            header[field_name] = self._word(place)
        header["intent_name"] = self._word("inte")
        comment = nibabel.nifti1.Nifti1Extension("comment", self._word("exte").encode())
        header.extensions.append(comment)
        nibabel.save(image, target)


def _inflated(content: bytes) -> Iterable[bytes]:
    """Whatever zlib or gzip can read at any place."""
    view = memoryview(content)
    for magic, window in ((b"\x78", 15), (b"\x1f\x8b\x08", 31)):
        start = content.find(magic)
        while start >= 0:
            if window == 31 or int.from_bytes(content[start : start + 2], "big") % 31 == 0:
                reader = zlib.decompressobj(window)
                with suppress(zlib.error):
                    yield reader.decompress(view[start:], 2**26)
            start = content.find(magic, start + 1)


@pytest.fixture(scope="session")
def canary() -> Canary:
    """A patient's identifier that may be found nowhere but in a hospital's own data."""
    return Canary()
