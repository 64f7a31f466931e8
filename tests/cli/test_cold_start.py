"""Commands that compute nothing do not import torch: it takes seconds, and most of their time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medfl.cli.examples import EXAMPLES
from medfl.config import load_site

TORCH = {"torch", "monai", "opacus", "flwr"}

# What trains, segments or judges with networks; `check` does with a study.
COMPUTING = {
    *("adapt", "audit", "cache fill", "evaluate", "export bundle", "plan", "predict"),
    *("pretrain", "server run", "simulate", "starts", "study run"),
}
# What serves or waits for a server; `tests/test_architecture.py` looks at these.
SERVING = {"dashboard", "rehearse", "server start", "server status", "site start"}
# Needs files that are not made here; they share their modules with commands that are run.
SIMILAR = {
    *("documents", "import lgg", "ledger acknowledge", "overlap compare", "report"),
    *("server logs", "server stop", "sites from-fets"),
}

# One process runs all commands, each after a look at what the one before has left.
SCRIPT = """
import json, sys
from medfl.cli import main

for arguments in json.loads(sys.argv[1]):
    sys.argv = ["medfl", *arguments]
    try:
        main()
    except SystemExit as end:
        if end.code:
            sys.exit(f"{arguments} ended with {end.code}")
    found = sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv_heavy))
    if found:
        sys.exit(f"{arguments} imported {found}")
"""
ANSWER = "y\n"  # where `ledger init` asks


@pytest.mark.slow
def test_commands_that_compute_nothing_import_no_torch(
    hospital_file: Callable[[str], Path], tmp_path: Path
) -> None:
    site = str(hospital_file("north"))
    folder = load_site(site).data.root
    state, server = str(tmp_path / "state" / "north"), str(tmp_path / "server")
    export = str(tmp_path / "export.json")
    commands = [
        [
            "phantom",
            str(tmp_path / "phantoms"),
            "--patients",
            "1",
            "1",
            "1",
            "1",
            "--shape",
            "16",
            "16",
            "16",
        ],
        ["site", "init", state],
        ["ledger", "init", site],
        ["check", site],
        ["check", str(folder), "--detect"],
        ["budget", site],
        ["ledger", "verify", site],
        ["ledger", "export", site, "-o", export],
        ["ledger", "check-export", export, "--key", f"{state}/site.pub"],
        ["cache", "size", site],
        ["cache", "clear", site],
        ["site", "status", site],
        ["site", "pause", site],
        ["site", "resume", site],
        ["site", "clean", site],
        ["site", "backup", site, "-o", f"{tmp_path}/site.backup"],
        ["site", "restore", f"{tmp_path}/site.backup", "--to", f"{tmp_path}/restored-site"],
        ["server", "init", server, "--host", "localhost"],
        ["server", "invite", server, "north", "-o", str(tmp_path)],
        ["server", "admit", server, f"{state}/site.pub", "north"],
        ["server", "revoke", server, "north", "--reason", "a test"],
        ["server", "renew", server],
        ["server", "move", server, "--host", "127.0.0.1"],
        ["server", "runs", server],
        ["server", "backup", server, "-o", f"{tmp_path}/server.backup"],
        ["server", "restore", f"{tmp_path}/server.backup", "--to", f"{tmp_path}/restored-server"],
        ["overlap", "key", str(tmp_path / "overlap.key")],
        ["overlap", "tokens", site, "--key", f"{tmp_path}/overlap.key", "-o", f"{tmp_path}/t.json"],
        ["site", "rotate", state],
        ["site", "leave", site, "--reason", "a test", "--yes"],
    ]
    script = SCRIPT.replace("sys.argv_heavy", repr(sorted(TORCH)))
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        input=ANSWER,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    names = {" ".join(words[:2]) for words in commands} | {words[0] for words in commands}
    assert set(EXAMPLES) - COMPUTING - SERVING - SIMILAR <= names


@pytest.mark.parametrize(
    "module",
    ["medfl.site.ledger_export", "medfl.site.lost_ledger", "medfl.reporting.governance.write"],
)
def test_reading_what_is_on_disk_imports_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert not {name.partition(".")[0] for name in done.stdout.split()} & TORCH
