"""The administrators' page: its commands exist, its ports and names are those of the code."""

from __future__ import annotations

import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.main import get_command

from medfl.cli.app import app
from medfl.config.monitoring import Monitoring
from medfl.deployment.addresses import loopback_socket
from medfl.deployment.coordinator import monitoring as coordinator
from medfl.deployment.coordinator import report
from medfl.deployment.coordinator.backup import SERVER
from medfl.deployment.coordinator.server_folder import FOLDERS, ServerFolder
from medfl.deployment.coordinator.superlink import arguments as superlink_arguments
from medfl.deployment.hospital import monitoring as hospital
from medfl.deployment.hospital import status as site_status
from medfl.deployment.hospital.backup import SITE
from medfl.deployment.monitoring import events, page
from medfl.deployment.monitoring.events import Code
from medfl.deployment.monitoring.page import HEALTH, METRICS, UNREADABLE
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
    yield from tables(heading)[0]


def tables(heading: str) -> list[list[list[str]]]:
    """The same of every table below a heading, in their order."""
    part = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"(?:^\|.*\n)+", part, flags=re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
        for table in found
    ]


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
    assert len(loopback) == 3
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


# Monitoring


def test_the_metrics_on_the_page_are_those_that_are_shown() -> None:
    _, _, site, server, _ = tables("Monitoring")
    for shown, metrics in ((site, hospital.METRICS), (server, coordinator.METRICS)):
        assert shown == [
            [f"`{metric.name}`", ", ".join(metric.labels) or "none", metric.help]
            for metric in metrics
        ]


def test_the_names_of_metrics_follow_the_conventions() -> None:
    for side, metrics in (("site", hospital.METRICS), ("server", coordinator.METRICS)):
        for metric in metrics:
            assert re.fullmatch(rf"medfl_{side}_[a-z]+(_[a-z]+)*", metric.name)
            assert metric.name.endswith("_total") == (metric.kind == "counter")
            assert metric.help.endswith(".")
            units = {"second": "_seconds", "byte": "_bytes", "Unix time": "_timestamp_seconds"}
            for word, suffix in units.items():
                assert metric.name.endswith(suffix) or word not in metric.help.lower()


def test_the_events_on_the_page_are_those_that_are_told() -> None:
    *_, table = tables("Monitoring")
    told: dict[str, set[str]] = {"site": set(), "server": set()}
    for code, side, _, _ in table:
        for each in told if side == "both" else (side,):
            told[each].add(code.strip("`"))
    both = {"certificate-expiring", "disk-low"}
    for side, module in (("site", hospital), ("server", coordinator)):
        own = set(re.findall(r'code="([a-z-]+)"', inspect.getsource(module)))
        assert told[side] == own | both
    assert told["site"] | told["server"] == set(get_args(Code))
    for code in both:
        assert f'code="{code}"' in inspect.getsource(events)


def test_the_settings_on_the_page_are_those_of_the_file_with_their_defaults() -> None:
    shown = tomllib.loads(re.search(r"^    \[monitoring\]\n(?:    .*\n)+", TEXT, re.M)[0])  # type: ignore[index]
    settings = shown["monitoring"]
    assert set(settings) == set(Monitoring.model_fields)
    of_nobody = {"port": None, "hook": ()}
    assert Monitoring() == Monitoring(**{**settings, **of_nobody})


def test_the_paths_and_reasons_of_the_page_are_those_that_are_answered() -> None:
    paths, reasons, *_ = tables("Monitoring")
    assert [row[0].strip("`") for row in paths] == [METRICS, HEALTH]
    sources = inspect.getsource(site_status) + inspect.getsource(report) + inspect.getsource(page)
    known = set(get_args(site_status.Reason)) | {UNREADABLE}
    assert {row[0].strip("`") for row in reasons} == known
    assert all(f'"{reason}"' in sources for reason in known)


def test_the_files_that_the_page_names_are_beside_it() -> None:
    for name in re.findall(r"`(monitoring/[a-z.-]+)`", TEXT):
        assert (PAGE.parent / name).is_file()
    for name in re.findall(r"`(medfl-[a-z-]+@?)(?:NAME)?(\.timer)`", TEXT):
        assert (PAGE.parent / "systemd" / "".join(name)).is_file()
