"""A hospital pauses, resumes and leaves: what is refused, what is kept, and what is gone."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from medfl.cli import main
from medfl.config import SiteConfig, load_site
from medfl.deployment.certificates import write_certificates
from medfl.deployment.hospital import client_component, departure
from medfl.deployment.hospital.departure import LAST_EXPORT, leave
from medfl.deployment.hospital.own_ledger import last_written
from medfl.deployment.hospital.participation import (
    LOCK,
    Departure,
    pause,
    require_not_left,
    require_taking_part,
    resume,
)
from medfl.deployment.invitation import KEPT, Invitation
from medfl.deployment.lock import exclusive
from medfl.errors import ConfigError, FederationError, LedgerError
from medfl.privacy.ledger.store import LedgerStore
from medfl.protocol.keys import EVENT_KEY, KEYS, NODE_KEY, PUBLIC, SiteKeys
from medfl.site.audit_log import AUDIT_LOG, AuditLog
from medfl.site.state import hospital_state

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def medfl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line: its exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medfl", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        seen = capsys.readouterr()
        return end.value.code if isinstance(end.value.code, int) else 0, seen.out, seen.err

    return run


@pytest.fixture
def file(write_hospital: Any, tmp_path: Path) -> Path:
    """The file of a hospital with keys and a ledger."""
    path: Path = write_hospital(tmp_path, name="north", state=tmp_path / "state")
    return path


@pytest.fixture
def site(file: Path) -> SiteConfig:
    return load_site(file)


def context_of(file: Path) -> Context:
    """What Flower hands to a ClientApp of the site."""
    return Context(
        run_id=1,
        node_id=3,
        node_config={client_component.SITE_FILE: str(file)},
        state=RecordDict(),
        run_config={},
    )


def code_of(file: Path) -> str:
    """The code with which the site refuses every message; empty text if it does not."""
    try:
        client_component._state_of(context_of(file))
    except FederationError as error:
        return error.code
    return ""


def test_a_paused_site_refuses_every_message_until_it_resumes(
    file: Path, site: SiteConfig, medfl: Command
) -> None:
    assert code_of(file) == ""
    assert medfl("site", "pause", file)[0] == 0
    assert code_of(file) == "site-paused"
    assert medfl("site", "pause", file)[0] == 0
    assert medfl("site", "resume", file)[0] == 0
    assert code_of(file) == ""
    assert medfl("site", "resume", file)[0] == 0
    kinds = [entry.kind for entry in AuditLog(site.state).entries()]
    assert [kind for kind in kinds if kind in ("pause", "resume")] == [
        *("pause", "pause", "resume", "resume")
    ]


def test_a_site_pauses_although_it_cannot_be_written_down_and_does_not_resume(
    file: Path, site: SiteConfig, medfl: Command
) -> None:
    medfl("site", "pause", file)
    medfl("site", "resume", file)
    (site.state / AUDIT_LOG / "log.sqlite").write_bytes(b"")
    code, out, err = medfl("site", "pause", file)
    assert (code, out.split(":")[0]) == (3, "Paused")
    assert "audit log" in err
    assert code_of(file) == "site-paused"
    assert medfl("site", "resume", file)[0] == 3
    assert code_of(file) == "site-paused"


def test_an_edited_site_file_counts_from_the_next_message_on(file: Path) -> None:
    assert client_component._state_of(context_of(file)).site.privacy.max_rounds != 7
    file.write_text(file.read_text() + "max_rounds = 7\n")
    assert client_component._state_of(context_of(file)).site.privacy.max_rounds == 7


def test_a_site_that_leaves_loses_its_private_keys_and_keeps_its_ledger(
    file: Path, site: SiteConfig, medfl: Command
) -> None:
    keys = SiteKeys.read(site.state / KEYS)
    code, out, _ = medfl("site", "leave", file, "--reason", "the study is over", "--yes")
    assert (code, "deleted" in out) == (0, True)
    private = [path for path in site.state.rglob("*") if path.name in (NODE_KEY, EVENT_KEY)]
    assert private == []
    assert code_of(file) == "site-left"
    with hospital_state(site).open_ledger() as ledger:
        ledger.recount()
    assert medfl("budget", file)[0] == 0
    assert medfl("ledger", "verify", file)[0] == 0
    export = site.state / LAST_EXPORT
    assert stat.S_IMODE(export.stat().st_mode) == 0o600
    code, out, _ = medfl("ledger", "check-export", export, "--key", site.state / PUBLIC)
    assert (code, "Whole" in out) == (0, True)
    assert keys.event_key in export.read_text()


@pytest.mark.parametrize("command", ["init", "rotate", "pause", "resume", "leave", "start"])
def test_nothing_brings_a_site_back_that_has_left(
    command: str, file: Path, site: SiteConfig, medfl: Command
) -> None:
    leave(site, reason="moved to another town")
    more: dict[str, tuple[object, ...]] = {
        "init": (site.state,),
        "rotate": (site.state,),
        "leave": (file, "--reason", "again", "--yes"),
        "start": (file, "--server", "127.0.0.1:1", "--ca", file),
    }
    code, _, err = medfl("site", command, *more.get(command, (file,)))
    assert code == 2
    assert "left" in err
    assert not (site.state / KEYS).exists()


def test_nobody_leaves_without_being_asked(
    file: Path, site: SiteConfig, medfl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    assert medfl("site", "leave", file, "--reason", "by mistake")[0] == 1
    SiteKeys.read(site.state / KEYS)
    require_not_left(site.state)


def test_a_site_whose_ledger_cannot_be_exported_does_not_leave(site: SiteConfig) -> None:
    (site.state / "ledger").rename(site.state / "lost")
    with pytest.raises(LedgerError):
        leave(site, reason="in a hurry")
    SiteKeys.read(site.state / KEYS)
    require_taking_part(site.state)


def test_a_site_that_does_not_end_keeps_its_keys_and_can_leave_later(
    site: SiteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departure, "END_SECONDS", 0.2)
    with exclusive(site.state / LOCK, noun="a site"), pytest.raises(FederationError):
        leave(site, reason="first")
    assert (site.state / KEYS / EVENT_KEY).exists()
    with pytest.raises(FederationError, match="left"):
        require_taking_part(site.state)
    leave(site, reason="second")
    assert not (site.state / KEYS).exists()
    left = Departure.read(site.state)
    assert left is not None
    assert left.reason == "first"


def test_a_crash_between_the_two_keys_is_mended_by_leaving_again(site: SiteConfig) -> None:
    leave(site, reason="first")
    (site.state / KEYS).mkdir()
    (site.state / KEYS / NODE_KEY).write_text("what a crash left")
    leave(site, reason="again")
    assert not (site.state / KEYS).exists()


def test_a_damaged_mark_is_a_mark(site: SiteConfig) -> None:
    pause(site.state)
    resume(site.state)
    (site.state / "left.json").write_text("{}")
    with pytest.raises(FederationError, match="left"):
        require_taking_part(site.state)
    with pytest.raises(ConfigError, match="damaged"):
        require_not_left(site.state)


def start_alone(file: Path, medfl: Command) -> tuple[int, str]:
    """What `site start` says that does not come as far as the network."""
    code, _, err = medfl("site", "start", file, "--server", "127.0.0.1:1", "--ca", file)
    return code, err


def test_a_site_without_a_ledger_does_not_start(
    file: Path, site: SiteConfig, medfl: Command
) -> None:
    (site.state / "ledger").rename(site.state / "lost")
    code, err = start_alone(file, medfl)
    assert code == 2
    assert "ledger.sqlite: expected the site's privacy ledger, found none" in err
    assert "medfl ledger init" in err


def test_a_site_with_the_ledger_of_another_name_does_not_start(file: Path, medfl: Command) -> None:
    file.write_text(file.read_text().replace('name = "north"', 'name = "west"'))
    code, err = start_alone(file, medfl)
    assert code == 2
    assert "name: expected 'north', for which the ledger in" in err
    assert "found 'west'" in err


def test_a_running_site_sees_that_its_ledger_got_an_entry(site: SiteConfig, tmp_path: Path) -> None:
    assert last_written(tmp_path / "nowhere") == 0
    with LedgerStore.open(site.state / "ledger") as store:
        before = last_written(site.state)
        assert last_written(site.state) == before > 0
        with store.writing():
            store.append("charge", {})
        # Still open: SQLite has not put it into the database's own file yet.
        assert last_written(site.state) > before


def test_a_damaged_ledger_is_told_at_once(file: Path, site: SiteConfig, medfl: Command) -> None:
    (site.state / "ledger" / "ledger.sqlite").write_bytes(b"not a ledger at all")
    code, err = start_alone(file, medfl)
    assert code != 0
    assert "ledger" in err
    assert "Traceback" not in err


def test_a_site_starts_under_the_name_that_was_invited_only(
    tmp_path: Path, write_hospital: Any, medfl: Command
) -> None:
    certificates = tmp_path / "server"
    certificates.mkdir()
    write_certificates(
        host="localhost",
        authority=certificates / "ca.crt",
        server=certificates / "server.crt",
        authority_key=certificates / "ca.key",
        server_key=certificates / "server.key",
    )
    invitation = Invitation.of_this_version(
        federation="Gliomas",
        name="west",
        server="localhost:8443",
        code="ABCD-EFGH",
        certificate=(certificates / "ca.crt").read_text(),
    )
    sent = tmp_path / invitation.file_name
    sent.write_text(invitation.text)
    assert medfl("site", "init", tmp_path / "invited", "--invite", sent)[0] == 0
    assert (tmp_path / "invited" / KEPT).read_text() == invitation.text
    file = write_hospital(tmp_path, name="north", state=tmp_path / "state")
    (tmp_path / "state" / KEPT).write_text(invitation.text)
    code, err = start_alone(file, medfl)
    assert code == 2
    assert "name: expected 'west', as the coordinator's invitation says" in err
    assert "found 'north'" in err
    # Said before a ledger is made for that name, too.
    for command in (("check", file, "--json"), ("ledger", "init", file, "--again")):
        code, out, err = medfl(*command)
        assert code != 0
        assert "as the coordinator's invitation says" in out + err
