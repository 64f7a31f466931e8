"""The administrators' page: its commands exist, its ports and names are those of the code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from medfl.cli.app import app
from medfl.deployment.addresses import loopback_socket
from medfl.deployment.coordinator.backup import SERVER
from medfl.deployment.coordinator.server_folder import FOLDERS, ServerFolder
from medfl.deployment.coordinator.superlink import arguments as superlink_arguments
from medfl.deployment.hospital.backup import SITE
from medfl.preflight.network import CLOCK_SECONDS
from medfl.privacy.ledger.witness_place import SYSTEM_FOLDER

PAGE = Path(__file__).resolve().parents[2] / "site_configs" / "OPERATIONS.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\n(.*?)```", TEXT, flags=re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]
INLINE = re.findall(r"`((?:medfl|site|server|ledger) [a-z][^`]*)`", re.sub(r"\s+", " ", TEXT))
# Of the networks around: DNS and NTP are nobody's choice.
OTHERS = {53, 123}


def parse(words: list[str]) -> Any:
    """A command with all of its arguments, as the command line takes it apart; it does not run."""
    command: Any = get_command(app)
    name = "medfl"
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name, *words = words
        command = command.commands[name]
    return command.make_context(name, words)


def rows(heading: str) -> Iterator[list[str]]:
    """The cells of the table below a heading, without its head."""
    part = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    for line in lines[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def default(path: str, option: str) -> Any:
    command: Any = get_command(app)
    for name in path.split():
        command = command.commands[name]
    (found,) = [each for each in command.params if option in each.opts]
    return found.default


@pytest.mark.parametrize("line", LINES)
def test_every_line_is_a_command_with_arguments_that_it_takes(line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "medfl"
    if words == ["--version"]:
        return  # it prints and ends
    parse(words)


@pytest.mark.parametrize("text", INLINE)
def test_every_command_in_the_text_exists(text: str) -> None:
    words = text.removeprefix("medfl ").split()
    command: Any = get_command(app)
    while words and hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands")


def test_the_page_shows_each_command_for_backups_and_moves() -> None:
    shown = " ".join(LINES)
    for name in ("site backup", "site restore", "server backup", "server restore", "server move"):
        assert f"medfl {name} " in shown


def test_the_ports_of_the_firewall_are_those_of_the_code(tmp_path: Path) -> None:
    ports = {int(port) for row in rows("Firewall") for port in re.findall(r"\b\d{2,5}\b", row[2])}
    assert ports == {default("server init", "--port")} | OTHERS
    for row in rows("Firewall"):
        for option in re.findall(r"--[a-z-]+", row[2]):
            default("server init", option)
    assert default("server init", "--listen-port") is None  # the same as --port


def test_what_talks_to_itself_listens_to_nobody_else(tmp_path: Path) -> None:
    loopback = [row for row in rows("Firewall") if row[4] == "loopback"]
    assert len(loopback) == 2
    assert all("127.0.0.1" in row[1] for row in loopback)
    with loopback_socket() as between:
        assert between.getsockname()[0] == "127.0.0.1"
    server = ServerFolder.create(tmp_path / "server", host="medfl.example.org", port=8443)
    assert server.local_address == "127.0.0.1:8443"
    assert str(server.listen_port) in superlink_arguments(server)


def test_nothing_is_let_in_at_a_hospital() -> None:
    assert {row[4] for row in rows("Firewall")} == {"out", "none", "loopback"}
    assert f"clocks within {CLOCK_SECONDS:g} s" in TEXT
    assert str(SYSTEM_FOLDER) in TEXT


def test_the_page_names_what_a_backup_holds_and_leaves_out() -> None:
    site, server = rows("Backup")
    for cells, kind in ((site, SITE), (server, SERVER)):
        assert cells[0] == kind.name
        named = set(re.findall(r"`([a-z_.-]+)`", cells[1]))
        assert {name for name in named if "." in name} <= kind.required | kind.optional
        left_out = set(re.findall(r"`([a-z_]+)`", cells[2]))
        assert not {name.split("/")[0] for name in kind.required | kind.optional} & left_out
    assert set(FOLDERS) - {"flower"} <= set(re.findall(r"`([a-z_]+)`", server[2]))
    assert {"secure_sums", "outbox", "cache", "models", "logs"} <= set(
        re.findall(r"`([a-z_]+)`", site[2])
    )
