"""What a fork of the site's fork server finds, and where it can be made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PROBE = """
import importlib
import json
import sys
from pathlib import Path

from medfl.deployment.flower import tasks
from medfl.deployment.hospital.task_processes import CLIENT_APP


def look(out: str) -> None:
    modules = sorted(sys.modules)

    from medfl.privacy.noise import SecureNormal

    noise = SecureNormal.from_operating_system().uniform(4)
    Path(out).write_text(json.dumps({"modules": modules, "noise": noise.tolist()}))


def fork(*outs: str) -> None:
    context = tasks.ForkedTasks(CLIENT_APP)._context
    for out in outs:
        process = context.Process(target=look, args=(out,))
        process.start()
        process.join()


def questions_about_gpus() -> list[str]:
    import torch

    asked = []
    for name in ("is_available", "device_count", "_lazy_init"):
        setattr(torch.cuda, name, lambda *_, name=name: asked.append(name))
    for name in (CLIENT_APP, tasks.__name__):
        importlib.import_module(name)
    return asked


def main() -> None:
    *outs, gpus = sys.argv[1:]
    fork(*outs)
    Path(gpus).write_text(json.dumps(questions_about_gpus()))
"""

FORK = """
import sys
import tempfile
from multiprocessing import util
from pathlib import Path

from medfl.deployment.flower.tasks import ForkedTasks

process = ForkedTasks("json")._context.Process(
    target=Path(sys.argv[1]).write_text, args=(tempfile.gettempdir(),)
)
process.start()
process.join()
print(util.get_temp_dir())
"""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the probe wrote."""

    forks: list[dict[str, Any]]
    gpus: list[str]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What two forks found, and what their server asked about GPUs."""
    folder = tmp_path_factory.mktemp("forks")
    (folder / "probe.py").write_text(PROBE)
    outs = [folder / name for name in ("first.json", "second.json", "gpus.json")]
    subprocess.run(
        [sys.executable, "-c", "import probe; probe.main()", *map(str, outs)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        check=True,
        timeout=120,
    )
    first, second, gpus = (json.loads(out.read_text()) for out in outs)
    return Seen(forks=[first, second], gpus=gpus)


def test_two_messages_draw_different_noise(seen: Seen) -> None:
    first, second = (fork["noise"] for fork in seen.forks)
    assert len(first) == len(second) == 4
    assert first != second


def test_a_fork_has_imported_all_that_a_message_needs(seen: Seen) -> None:
    needed = {"torch", "monai", "opacus", "medfl.deployment.hospital.client_component"}
    for fork in seen.forks:
        assert needed <= set(fork["modules"])


def test_the_fork_server_asks_about_no_gpu(seen: Seen) -> None:
    """Whoever has asked CUDA anything cannot use it in a fork."""
    assert seen.gpus == []


@pytest.mark.parametrize("length", [10, 71, 72, 90, 200])
def test_forks_are_made_however_long_the_path_of_temporary_files_is(
    length: int, tmp_path: Path
) -> None:
    """A socket's path may have about a hundred bytes; a folder with 71 leaves room for its own."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="f") as short:
        place = Path(short, "x" * max(1, length - len(short) - 1))
        place.mkdir()
        ended = subprocess.run(
            [sys.executable, "-c", FORK, str(tmp_path / "forked")],
            env={**os.environ, "TMPDIR": str(place)},
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (ended.returncode, ended.stderr) == (0, "")
        assert (tmp_path / "forked").read_text() == str(place)
        assert list(place.iterdir()) == []
    of_sockets = Path(ended.stdout.strip())
    assert len(bytes(of_sockets)) < 90
    assert not of_sockets.exists()
