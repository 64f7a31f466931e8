"""What all tests share: two threads, no calls home, no windows, and the way to the real cases."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch, Flower or matplotlib is imported: each reads its variables once.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["MPLBACKEND"] = "Agg"

# A small federation and made-up run folders, for tests of several rooms.
pytest_plugins = ("tests.federations", "tests.run_folders", "tests.grid_folders")

# A shared machine is slow now and then; a slow example is no failure.
settings.register_profile("medfl", deadline=None)
settings.load_profile("medfl")


@pytest.fixture(scope="session", autouse=True)
def flower_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of its own for what Flower writes, so that no test touches the user's."""
    folder = tmp_path_factory.mktemp("flower-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLWR_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def witness_of_all_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A memory of ledgers for fixtures that outlive a test, so that none touches the user's.

    Nor the machine's, in this process; processes of their own are told by `XDG_STATE_HOME` alone,
    and so no test starts one where an administrator has made the machine's.
    """
    from medfl.privacy.ledger import witness_place

    if witness_place.SYSTEM_FOLDER.exists():
        pytest.exit(f"Expected a machine without {witness_place.SYSTEM_FOLDER}, found one.", 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(witness_place, "SYSTEM_FOLDER", tmp_path_factory.mktemp("none") / "witness")
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("xdg-state")))
        yield


@pytest.fixture(autouse=True)
def witness_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory of ledgers of its own, so that no test meets another's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg-state"))


@pytest.fixture(autouse=True)
def same_threads_for_every_test() -> Iterator[None]:
    """Undo a change of torch's thread count: gradients depend on it in the last bits."""
    yield
    torch = sys.modules.get("torch")
    threads = int(os.environ["OMP_NUM_THREADS"])
    if torch is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture
def two_writers_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that write durably: neither goes on before both have written their draft."""
    both_wrote, synchronised = threading.Barrier(2, timeout=60), os.fsync

    def wait(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            both_wrote.wait()
        synchronised(descriptor)

    monkeypatch.setattr(os, "fsync", wait)


@pytest.fixture(scope="session")
def browser() -> str:
    """Chromium; a user may lack it, a machine that judges changes may not."""
    found = shutil.which("chromium")
    if found is None and os.environ.get("MEDFL_REQUIRE_BROWSER"):
        pytest.fail("Expected chromium, since MEDFL_REQUIRE_BROWSER is set, found none.")
    if found is None:
        pytest.skip("chromium is not installed")
    return found


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real cases that MEDFL_REAL_DATA names; without it the test is skipped."""
    name = os.environ.get("MEDFL_REAL_DATA", "")
    if not name:
        pytest.skip("MEDFL_REAL_DATA is not set")
    folder = Path(name)
    if not folder.is_dir():
        pytest.fail(f"Expected MEDFL_REAL_DATA to name a folder, found {name!r}.")
    return folder


@pytest.fixture(scope="session")
def tiny_study() -> str:
    """The text of a study of two rounds, which a site may join alone."""
    return """
id = "tiny"
[input]
modalities = ["t1c", "t2f"]
regions = ["WT", "ET"]
crop_size = [16, 16, 16]
[network]
name = "SegResNet"
arguments = { init_filters = 8, blocks_down = [1, 1], blocks_up = [1] }
[privacy]
epsilon = 8.0
sampling_prob = 0.5
[training]
rounds = 2
local_steps = 1
optimizer = "sgd"
learning_rate = 0.5
[aggregation]
strategy = "fedavg"
min_sites = 1
[evaluation]
pictures = 0
"""


@pytest.fixture(scope="session")
def pretraining_study(tiny_study: str) -> str:
    """The same with a pretraining; its last section is [synthetic]."""
    synthetic = """
[synthetic]
shape = [20, 20, 16]
spacing = [9.0, 9.0, 10.0]
skull_stripped = true
pretraining_patients = 2
pretraining_steps = 2
"""
    return f"{tiny_study}{synthetic}"
