"""The command line as tests run it: in this process, on a terminal of 80 columns."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from medfl.cli import main
from medfl.phantom.hospitals import write_hospitals


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, code: int, *parts: object) -> None:
        """Check for one sentence on standard error, with all of the parts, and no traceback."""
        assert self.code == code, self.err
        assert "Traceback" not in self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        for part in parts:
            assert str(part) in lines[0]


@pytest.fixture
def medfl(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Runs the command line."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["medfl", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "80")
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        seen = capsys.readouterr()
        code = end.value.code
        return Ended(code=code if isinstance(code, int) else 0, out=seen.out, err=seen.err)

    return run


@pytest.fixture(scope="session")
def synthetic_patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of the patients of four tiny hospitals, with a site file each."""
    folder = tmp_path_factory.mktemp("synthetic") / "hospitals"
    write_hospitals(
        folder,
        patients=(4, 4, 4, 4),
        shape=(32, 32, 24),
        spacing=(5.6, 5.6, 6.8),
        skull_stripped=True,
        seed=7,
        on_patient=lambda: None,
    )
    return folder


@pytest.fixture
def hospital_file(tmp_path: Path, synthetic_patients: Path) -> Callable[[str], Path]:
    """Writes the site file of a hospital whose ledger is enforced."""

    def write(name: str, *, state: str = "state") -> Path:
        file = tmp_path / f"{name}-{state}.toml"
        file.write_text(
            f"""
            name = "{name}"
            purpose = "hospital"
            declared_patients = 4
            weight = 4.0
            state = "{tmp_path / state / name}"
            threads = 1
            [data]
            root = "{synthetic_patients / name}"
            layout = "brats2021"
            label_scheme = "brats"
            modalities = ["t1n", "t1c", "t2w", "t2f"]
            [privacy]
            epsilon = 8.0
            """
        )
        return file

    return write


@pytest.fixture
def study(tiny_study: str, tmp_path: Path) -> Path:
    """The file of a tiny study."""
    path = tmp_path / "study.toml"
    path.write_text(tiny_study)
    return path
