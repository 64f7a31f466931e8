"""A site's log: of limited size, for its owner only, and without patients."""

from __future__ import annotations

import stat
from contextlib import closing
from pathlib import Path

import pytest

from medfl.config import load_site
from medfl.config.site import SiteData
from medfl.deployment.hospital import site_log
from medfl.deployment.hospital.site_log import OLD_FILES, Redaction, SiteLog


@pytest.fixture
def data(tmp_path: Path, hospital_files: dict[str, Path]) -> SiteData:
    """Images of which one folder has a name that no layout foresees."""
    root = tmp_path / "images"
    for name in ("BraTS2021_00001", "Hans Mueller", "Hans"):
        (root / name).mkdir(parents=True)
    site = load_site(hospital_files["north"])
    return site.data.model_copy(update={"root": root, "layout": "brats2021"})


def test_the_file_gets_everything_and_the_terminal_what_matters(
    tmp_path: Path, data: SiteData, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(SiteLog(tmp_path, data=data)) as log:
        log.say("started")
        log.note("for the file")
        log.follow(
            [
                "\x1b[92mINFO \x1b[0m:      Starting\n",
                "  more about that\n",
                "INFO :      \n",
                "\x1b[91mERROR \x1b[0m:     Exit Code: 305\n",
                "Failed to activate\n",
                "INFO :      SuperNode ID: 7\n",
                "INFO:     usual\n",
                "WARNING :   Connection attempt failed, retrying in 7.78 seconds\n",
                "ERROR :     [/v1/x][ApiError:1008] Runtime task-token authentication failed.\n",
                "ERROR :     Failed to push task output: Client error '401 Unauthorized'\n",
                "for url 'http://127.0.0.1/'\n",
                "medfl: own words\n",
            ]
        )
    written = [line.split(" ", 2)[2] for line in log.path.read_text().splitlines()]
    assert written == [
        "medfl: started",
        "medfl: for the file",
        "INFO :      Starting",
        "  more about that",
        "ERROR :     Exit Code: 305",
        "Failed to activate",
        "INFO :      SuperNode ID: 7",
        "INFO:     usual",
        "WARNING :   Connection attempt failed, retrying in 7.78 seconds",
        "ERROR :     [/v1/x][ApiError:1008] Runtime task-token authentication failed.",
        "ERROR :     Failed to push task output: Client error '401 Unauthorized'",
        "for url 'http://127.0.0.1/'",
        "medfl: own words",
    ]
    assert capsys.readouterr().err.splitlines() == [
        "medfl: started",
        "ERROR :     Exit Code: 305",
        "Failed to activate",
        "INFO :      SuperNode ID: 7",
        "medfl: own words",
    ]


def test_the_files_are_their_owners_and_never_grow_beyond_a_limit(
    tmp_path: Path, data: SiteData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_log, "FILE_BYTES", 2_000)
    with closing(SiteLog(tmp_path, data=data)) as log:
        log.follow(f"INFO :      line {number} {'x' * 80}\n" for number in range(400))
    files = sorted(log.path.parent.iterdir())
    assert len(files) == OLD_FILES + 1
    assert all(file.stat().st_size <= 2_000 for file in files)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(log.path.parent.stat().st_mode) == 0o700
    assert "line 399" in log.path.read_text()


@pytest.mark.parametrize(
    ("line", "redacted"),
    [
        ("BraTS2021_00001: expected a mask", "[patient]: expected a mask"),
        ("BraTS2021_77777_t1.nii.gz is new", "[patient]_t1.nii.gz is new"),
        ("no folder (Hans Mueller), found", "no folder ([patient]), found"),
        ("'{root}/elsewhere/x_y.nii.gz' is odd", "'{root}/...' is odd"),
        ("{root}/Hans Mueller/t1.nii.gz: odd", "{root}/... odd"),
        ("Hansen and round 1", "Hansen and round 1"),
    ],
    ids=["a case", "a new patient", "another name", "a path", "a name in a path", "other words"],
)
def test_no_line_names_a_patient(line: str, redacted: str, data: SiteData) -> None:
    assert Redaction(data)(line.format(root=data.root)) == redacted.format(root=data.root)


def test_every_writer_is_redacted(
    tmp_path: Path, data: SiteData, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(SiteLog(tmp_path, data=data)) as log:
        for write in (log.say, log.note):
            write(f"{data.root}/BraTS2021_00001")
        log.follow(["WARNING : BraTS2021_00001\n"])
    assert "BraTS2021" not in log.path.read_text() + capsys.readouterr().err
    assert len(log.path.read_text().splitlines()) == 3


def test_images_that_are_not_there_yet_stop_no_site(data: SiteData, tmp_path: Path) -> None:
    missing = data.model_copy(update={"root": tmp_path / "not mounted"})
    assert Redaction(missing)("BraTS2021_00001 and Hans") == "[patient] and Hans"
