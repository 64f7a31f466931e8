"""Two hospitals make models of their own after a study; nothing of them is anywhere else.

Searched are all files outside of the two state folders and everything that any process of a site
has sent, for the bytes of every tensor, of parts of it, of its halves of the precision, and of the
file. That the search would find them is shown by sites that betray them.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from medfl.config import load_study
from medfl.deployment.coordinator.deployed_study import run_deployed_study
from medfl.errors import ModelError
from medfl.segmentation.model_file import STAYS, read_provenance
from medfl.server.progress import Silent
from medfl.server.run_folder import RunFolder
from medfl.site.own_model import table_of
from medfl.site.run_models import RunModels, models_of
from tests.federations import _inflated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECORDED = Path(__file__).parent / "recorded"
ADAPTING = ("east", "north")
WISH = """
[adapt]
after_study = true
steps = 2
folds = 2
"""
STUDY = "at-home"
WINDOW = 4096
LEAST = 16  # bytes that no chance repeats


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the sites' processes send."""
    return tmp_path_factory.mktemp("sent")


@pytest.fixture(scope="module", autouse=True)
def recorded_processes(
    request: pytest.FixtureRequest, sent: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Let the deployment's processes note what they send, and write no file where nobody looks."""
    conftest = str(Path(__file__).with_name("conftest.py"))
    plugins = request.config.pluginmanager.get_plugins()
    (module,) = [plugin for plugin in plugins if getattr(plugin, "__file__", "") == conftest]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SEEDED", RECORDED)
        patch.setenv("MEDFL_TEST_SENT", str(sent))
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("temporary")))
        yield


class Study:
    """A finished study, and where its files are."""

    def __init__(self, deployment: Any, sent: Path, temporary: Path, out: Path) -> None:
        self.deployment, self.out = deployment, out
        self.places = [deployment.scratch, sent, temporary]
        self.sent = sent

    def models(self, name: str) -> RunModels:
        state = self.deployment.site(name).state
        return models_of(state, run=RunFolder(self.out).run_id())

    def outside(self) -> list[Path]:
        """Every file that does not belong to one of the two hospitals alone."""
        home = [self.deployment.site(name).state for name in ADAPTING]
        return [
            path
            for place in self.places
            for path in sorted(place.rglob("*"))
            if path.is_file() and not any(path.is_relative_to(state) for state in home)
        ]

    def traces(self, name: str) -> list[str]:
        """Where something of a hospital's own model is, outside of the two hospitals."""
        models = self.models(name)
        known = models.federated.read_bytes() + models.start.read_bytes()
        needles = needles_of(models.own, known=known)
        return [
            f"{path}: {what}"
            for path in self.outside()
            for what in found_in(path.read_bytes(), needles)
        ]


def needles_of(own: Path, *, known: bytes) -> dict[bytes, str]:
    """What must be nowhere, with a word for it; without what the known models hold as well."""
    needles = {}
    for name, tensor in load_file(own).items():
        for form, values in (
            ("", tensor.numpy()),
            (" in half precision", tensor.half().numpy()),
            (" in double precision", tensor.double().numpy()),
        ):
            content = np.ascontiguousarray(values).tobytes()
            needles[content] = f"{name}{form}"
            for begin in range(0, len(content), WINDOW):
                needles[content[begin : begin + WINDOW]] = f"{name}{form} from byte {begin}"
    for file in (own, table_of(own)):
        content = file.read_bytes()
        digest = hashlib.sha256(content)
        needles |= {
            content[:WINDOW]: f"the begin of {file.name}",
            digest.hexdigest().encode(): f"SHA-256 of {file.name}",
            digest.digest(): f"SHA-256 of {file.name}",
        }
    return {
        needle: what
        for needle, what in needles.items()
        if len(needle) >= LEAST and needle not in known
    }


def found_in(content: bytes, needles: dict[bytes, str]) -> list[str]:
    """Which needles are in some bytes, as they are or compressed."""
    packed = (*_inflated(content), *unzipped(content))
    forms = [("", content), *((" (compressed)", inflated) for inflated in packed)]
    return [
        what + form for form, text in forms for needle, what in needles.items() if needle in text
    ]


def unzipped(content: bytes) -> Iterator[bytes]:
    """The parts of every zip archive that begins at any place, as that of a compressed npz file."""
    start = content.find(b"PK\x03\x04")
    while start >= 0:
        if start + 30 > len(content):
            return
        name, extra = struct.unpack_from("<HH", content, start + 26)
        with suppress(zlib.error):
            yield zlib.decompressobj(-15).decompress(content[start + 30 + name + extra :], 2**26)
        start = content.find(b"PK\x03\x04", start + 1)


@pytest.fixture(scope="module")
def study(
    deployment: Any, wait_for: Any, sent: Path, tmp_path_factory: pytest.TempPathFactory
) -> Study:
    for name in ADAPTING:
        with deployment.sites[name].open("a") as file:
            file.write(WISH)
    out = deployment.scratch / "run"
    written = deployment.study(STUDY, rounds=2, timeout=120.0)
    deployment.start("run", "server", "run", deployment.server.path, written, "--out", out)
    code = deployment.finished("run", seconds=300)
    assert code == 0, deployment.log("run").read_text()[-3000:]
    temporary = next(tmp_path_factory.getbasetemp().glob("temporary*"))
    found = Study(deployment, sent, temporary, out)
    for name in ADAPTING:
        wait_for(found.models(name).own.exists, seconds=240, what=f"the own model of {name}")
    return found


def test_every_hospital_has_the_final_model(study: Study) -> None:
    final = load_file(study.out / "checkpoints" / "final.safetensors")
    for name in (*ADAPTING, "south"):
        kept = load_file(study.models(name).federated)
        assert kept.keys() == final.keys()
        assert all((kept[key] == final[key]).all() for key in final)
    assert RunFolder(study.out).undelivered() == {}


def test_the_own_models_are_at_the_hospitals_that_wished_for_them(study: Study) -> None:
    for name in ADAPTING:
        models = study.models(name)
        for file in (models.own, table_of(models.own)):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert read_provenance(models.own)["privacy"] == STAYS
        tried = json.loads(table_of(models.own).read_text())["candidates"]
        assert {"federated", "adapted", "alone"} <= {each["name"] for each in tried}
        federated = load_file(models.federated)
        own = load_file(models.own)
        assert not any(
            (own[key] == federated[key]).all() for key in own if own[key].numel() > LEAST
        )
        assert STAYS in study.deployment.log(name).read_text()
        # Two rounds were charged, and the model of its own cost nothing.
        assert study.deployment.run_of(name, study=STUDY).charges == 2
    assert not study.models("south").own.exists()
    assert f"-o {study.models('south').own}" in study.deployment.log("south").read_text()


def test_nothing_of_them_is_anywhere_else(study: Study) -> None:
    kinds = {path.name.partition("-")[0] for path in study.sent.iterdir()}
    assert kinds == {"request", "answer", "array"}
    assert len(study.outside()) > 100
    for name in ADAPTING:
        assert study.traces(name) == []


def test_the_search_would_find_them(study: Study, tmp_path: Path) -> None:
    models = study.models("north")
    needles = needles_of(models.own, known=models.federated.read_bytes())
    assert found_in(models.own.read_bytes(), needles)
    weights = {key: value.numpy() for key, value in load_file(models.own).items()}
    for kind in (np.float16, np.float32, np.float64):
        packed = io.BytesIO()
        np.savez_compressed(packed, **{key: value.astype(kind) for key, value in weights.items()})
        assert found_in(packed.getvalue(), needles), kind


def test_a_deployed_study_does_not_start_from_one(
    study: Study, pretraining_study: str, tmp_path: Path
) -> None:
    copy = tmp_path / "start.safetensors"
    shutil.copy(study.models("north").own, copy)
    text = (study.deployment.scratch / f"{STUDY}.toml").read_text().replace(STUDY, "next")
    digest = hashlib.sha256(copy.read_bytes()).hexdigest()
    file = tmp_path / "next.toml"
    synthetic = pretraining_study[pretraining_study.index("[synthetic]") :]
    start = f'start = {{ file = "{copy}", sha256 = "{digest}" }}'
    file.write_text(f"{text}\n{synthetic}\n{start}\n")
    with pytest.raises(ModelError, match="found a model of another origin"):
        run_deployed_study(
            load_study(file),
            folder=study.deployment.server,
            out=tmp_path / "run",
            resume=False,
            progress=Silent(),
        )
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_site_that_betrays_its_own_model_is_found_out(study: Study) -> None:
    """The last test of this module, since it spoils what the others look at."""
    deployment = study.deployment
    (study.sent / "betray").touch()
    written = deployment.scratch / f"{STUDY}.toml"
    command = ("server", "run", deployment.server.path, written, "--out", study.out, "--resume")
    deployment.start("again", *command)
    code = deployment.finished("again", seconds=300)
    assert code == 0, deployment.log("again").read_text()[-3000:]
    for name in ADAPTING:
        traces = study.traces(name)
        kinds = {Path(trace.partition(":")[0]).name.partition("-")[0] for trace in traces}
        # In the answer, and in what the node uploads to the server.
        assert {"array", "request"} <= kinds
    # Asked again, the hospitals kept their files, and nobody was charged anew.
    assert {deployment.run_of(name, study=STUDY).charges for name in ADAPTING} == {2}
