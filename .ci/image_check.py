"""Do what the image's Dockerfile does, and run what it starts, where no container runs.

    make bundle && sudo .venv/bin/python .ci/image_check.py build/bundle /usr/bin/python3

As the image is: a bare virtual environment that belongs to root, filled from the bundle alone by
the Dockerfile's own command, its own variables, and its own account, which owns nothing but a home.
As that account it plays a whole deployment with the entry point (`medfl rehearse`), and it makes
sure that nothing was written beside the packages. It needs root, a Python of the bundle's version
that every account may run, and no network.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DOCKERFILE = Path("site_configs", "compose", "Dockerfile")
REHEARSAL = ("rehearse", "--hospitals", "2")


def main() -> None:
    """Check the bundle with the interpreter; the command line names both."""
    bundle, base = Path(sys.argv[1]).resolve(), sys.argv[2]
    steps = _steps((bundle / DOCKERFILE).read_text(encoding="utf-8"))
    account = int(steps["USER"][0])
    entry = [word.strip('[]",') for word in steps["ENTRYPOINT"][0].split()]
    (install,) = [step for step in steps["RUN"] if "pip install" in step]
    variables = dict(pair.split("=", 1) for step in steps["ENV"] for pair in shlex.split(step))
    if os.geteuid() != 0:
        sys.exit("Expected root, which an image is built by, found another account.")
    with tempfile.TemporaryDirectory(prefix="medfl-image-") as scratch:
        root = Path(scratch)
        root.chmod(0o755)  # the account passes through, and reads the environment
        python, home = root / "python", root / "home"
        _say(f"installing from {bundle / 'wheels'}, as the Dockerfile says")
        _run([base, "-m", "venv", "--without-pip", str(python)])
        words = shlex.split(install.replace("/bundle", str(bundle)))
        pip = [sys.executable, "-m", "pip", "--python", str(python / "bin" / "python"), "--quiet"]
        _run([*pip, *words[words.index("pip") + 1 :]])
        before = _files(python)
        temporary = root / "tmp"  # in the image a file system of its own; torch leaves a folder
        for folder in (home, temporary):
            folder.mkdir(mode=0o700)
            os.chown(folder, account, account)
        environment = {
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{python / 'bin'}:{os.defpath}",
            **variables,
            "MPLCONFIGDIR": str(temporary / "matplotlib"),
        }
        for arguments in (("--version",), ("starts",), REHEARSAL):
            _say(f"as {account}: {shlex.join([*entry, *arguments])}")
            _run([*entry, *arguments], user=account, environment=environment, folder=home)
        added = sorted(str(path) for path in _files(python) - before)
        left = sorted(path.name for path in home.iterdir())
        if added or left:
            sys.exit(f"Expected nothing beside the packages and in {home}, found {added + left}.")
        _say("nothing was written beside the packages, and nothing is left")


def _steps(text: str) -> dict[str, list[str]]:
    """The arguments of each instruction, by its name."""
    steps: dict[str, list[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        match = re.match(r"([A-Z]+)\s+(.*)", line)
        if match is not None:
            steps.setdefault(match[1], []).append(match[2])
    return steps


def _run(
    command: list[str],
    *,
    user: int | None = None,
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
) -> None:
    done = subprocess.run(  # noqa: S603
        command,
        env=environment,
        cwd=folder,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"Expected `{shlex.join(command)}` to end with 0, found {done.returncode}.")


def _files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def _say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
