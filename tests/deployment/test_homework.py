"""What a running site does with final models that lie in its state folder."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from medfl.config import load_site
from medfl.deployment.hospital.homework import Homework
from medfl.deployment.hospital.site_log import SiteLog
from medfl.protocol.study_model import model_spec, study_model_bytes
from medfl.segmentation.model_file import STAYS, read_provenance
from medfl.segmentation.networks import trainable_state
from medfl.site.first_model import keep_start
from medfl.site.own_model import table_of
from medfl.site.run_models import RunModels, models_of, write_model

RUN = "tiny-20260101-0123456789ab"


class Site:
    """A hospital without a server."""

    def __init__(self, federation: Any, write_hospital: Any, folder: Path) -> None:
        self.federation = federation
        self.state = folder / "state"
        self.file: Path = write_hospital(folder, name="north", state=self.state)
        self.log = SiteLog(self.state, data=load_site(self.file).data)

    def say(self, **adapt: Any) -> None:
        """What the site's file says of adaptation."""
        text = self.file.read_text().partition("[adapt]")[0]
        lines = [f"{key} = {json.dumps(value)}" for key, value in adapt.items()]
        self.file.write_text("\n".join([text, "[adapt]", *lines, ""]))

    def receive(self, run: str = RUN) -> RunModels:
        """A final model has come."""
        study = self.federation.study()
        models = models_of(self.state, run=run)
        weights = trainable_state(model_spec(study).build(seed=5))
        content = study_model_bytes(weights, study=study, round_number=2, declarations={})
        write_model(models.federated, content)
        start = trainable_state(model_spec(study).build(seed=6))
        keep_start(self.state, start, study=study, run=run)
        return models

    def homework(self, **changes: Any) -> Homework:
        return Homework(site_file=self.file, state=self.state, log=self.log, **changes)

    def lines(self) -> list[str]:
        return [line.split(" ", 2)[2] for line in self.log.path.read_text().splitlines()]


@pytest.fixture
def site(
    federation: Any, write_hospital: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = Site(federation, write_hospital, tmp_path)
    with closing(found.log):
        yield found


def work(homework: Homework, *, seconds: float = 120.0) -> None:
    """Look as a running site does, until nothing is under way."""
    end = time.monotonic() + seconds
    homework.look()
    while homework._at_work is not None:
        assert time.monotonic() < end
        time.sleep(0.1)
        homework.look()


def module(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that does the work in place of the real one."""
    lines = ["from medfl.deployment.parent import read_secret", "def main():", "    read_secret()"]
    (folder / "stand_in.py").write_text("\n".join([*lines, f"    {text}", ""]))
    paths = [str(folder), os.environ.get("PYTHONPATH", ""), str(Path(__file__).parents[2])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return "stand_in"


@pytest.mark.slow
def test_the_hospitals_own_model_is_made_and_kept(site: Site) -> None:
    site.say(after_study=True, steps=1, folds=2)
    models = site.receive()
    with closing(site.homework()) as homework:
        work(homework)
    assert read_provenance(models.own)["privacy"] == STAYS
    for file in (models.own, table_of(models.own)):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    tried = {each["name"] for each in json.loads(table_of(models.own).read_text())["candidates"]}
    assert {"federated", "adapted", "alone"} <= tried
    assert load_file(models.own).keys() == load_file(models.federated).keys()
    told = "\n".join(site.lines())
    assert f"{RUN}: fold 1 of 2: adapted: 1/1" in told
    assert f"own model of {RUN} is in {models.own} ({STAYS})" in told
    assert "Dice" not in told


def test_without_the_wish_the_command_is_told_once(site: Site) -> None:
    with closing(site.homework()) as homework:
        homework.look()
        models = site.receive()
        for _ in range(3):
            homework.look()
    (line,) = site.lines()
    command = f"medfl adapt {site.file} {models.federated} -o {models.own} --start {models.start}"
    assert line.endswith(command)
    assert not models.own.exists()


def test_what_came_before_the_start_is_no_news_unless_it_was_left_undone(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.receive()
    done = site.receive("done")
    done.own.write_bytes(b"a model")
    with closing(site.homework()) as homework:
        homework.look()
    assert site.lines() == []
    site.say(after_study=True)
    with closing(site.homework(module=module(tmp_path, "print('worked')", monkeypatch))) as again:
        work(again)
    assert [line for line in site.lines() if "is now being made from it" in line] == [
        f"medfl: The final model of {RUN} is in {models_of(site.state, run=RUN).federated}. The "
        "hospital's own model is now being made from it, at the lowest priority."
    ]
    assert site.lines()[-1] == "worked"
    assert done.own.read_bytes() == b"a model"


def test_the_file_is_read_again_for_each_model(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module(tmp_path, "import sys; print(*sys.argv[1:])", monkeypatch)
    with closing(site.homework(module=name)) as homework:
        site.receive("first")
        work(homework)
        site.say(after_study=True)
        site.receive("second")
        work(homework)
    assert ["medfl adapt" in line for line in site.lines()] == [True, False, False]
    assert site.lines()[-1] == f"{site.file} second"


def test_several_models_are_made_one_after_the_other(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.say(after_study=True)
    text = "import time; print('begin', flush=True); time.sleep(0.3); print('end')"
    name = module(tmp_path, text, monkeypatch)
    for run in ("first", "second"):
        site.receive(run)
    with closing(site.homework(module=name)) as homework:
        work(homework)
    told = [line.split()[0] for line in site.lines() if line.split()[0] in ("begin", "end")]
    assert told == ["begin", "end", "begin", "end"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import os; os.kill(os.getpid(), 9)", "its process ended with exit code -9"),
        ("raise SystemExit(3)", "its process ended with exit code 3"),
    ],
)
def test_a_failure_is_one_line_and_is_not_tried_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    site.say(after_study=True)
    site.receive()
    with closing(site.homework(module=module(tmp_path, text, monkeypatch))) as homework:
        for _ in range(2):
            work(homework)
    assert len(site.lines()) == 2
    assert told in site.lines()[1]


@pytest.mark.slow
def test_what_goes_wrong_with_images_names_no_patient(site: Site, tmp_path: Path) -> None:
    site.say(after_study=True, steps=1, folds=2)
    models = site.receive()
    models.federated.write_bytes(b"no model")
    with closing(site.homework()) as homework:
        work(homework)
    assert len(site.lines()) == 2
    assert "medfl: No model of the hospital's own was made" in site.lines()[1]
    assert not models.own.exists()


def test_a_site_file_that_cannot_be_read_ends_nothing(site: Site) -> None:
    site.file.write_text("nonsense")
    with closing(site.homework()) as homework:
        site.receive()
        work(homework)
    assert "expected" in site.lines()[0]


def test_no_process_at_all_is_a_line(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("medfl.deployment.hospital.homework.start_child", none)
    site.say(after_study=True)
    site.receive()
    with closing(site.homework()) as homework:
        work(homework)
    assert "its process could not be started: Resource temporarily unavailable" in site.lines()[-1]


def test_the_process_gives_way_and_ends_with_the_site(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.say(after_study=True)
    models = site.receive()
    name = module(tmp_path, "import time; time.sleep(300)", monkeypatch)
    with closing(site.homework(module=name)) as homework:
        homework.look()
        assert homework._at_work is not None
        process = psutil.Process(homework._at_work.child.process.pid)
        assert process.nice() == 19
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "1000"
    assert not process.is_running()
    assert not models.own.exists()
