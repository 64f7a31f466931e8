"""The audit log of a hospital: all that was done, in order, and nothing that could be taken out."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medfl.config import SiteConfig
from medfl.errors import LedgerError
from medfl.privacy.ledger.chain import Entry
from medfl.privacy.ledger.ledger import Agreement, Ledger
from medfl.privacy.mechanism import Mechanism
from medfl.protocol.keys import KEYS, SiteKeys
from medfl.site import audit_log as module
from medfl.site.audit_log import AUDIT_LOG, AuditLog, LogStore
from medfl.site.ledger_export import FORMAT, WITHOUT_LOG, _canonical, check_export, export_ledger
from medfl.site.log_check import checked_log
from medfl.site.state import hospital_state

MECHANISM = Mechanism(
    sampling_prob=0.3,
    noise_multiplier=4.0,
    clip_norm=1.0,
    clipping="fixed",
    local_steps=2,
    declared_patients=4,
)


@pytest.fixture
def site(federation: Any) -> SiteConfig:
    found: SiteConfig = federation.hospital("east")
    return found


@pytest.fixture
def log(site: SiteConfig) -> AuditLog:
    return AuditLog(site.state)


@pytest.fixture
def ledger(site: SiteConfig) -> Iterator[Ledger]:
    with hospital_state(site).open_ledger() as opened:
        yield opened


def agree(ledger: Ledger, run: str = "run") -> None:
    members = frozenset({"member"})
    agreed = Agreement(
        study="tiny", proposal="0" * 64, mechanism=MECHANISM, members=members, steps=20
    )
    ledger.agree(run, agreed)


def charge(ledger: Ledger, number: int = 1, run: str = "run") -> None:
    ledger.charge(
        study="tiny", run=run, round=number, message_id=f"{run}/{number}", mechanism=MECHANISM
    )


def kinds(log: AuditLog) -> list[str]:
    return [entry.kind for entry in log.entries()]


def exported(site: SiteConfig) -> dict[str, Any]:
    """The export as an auditor reads it."""
    site_state = hospital_state(site)
    with site_state.open_ledger() as opened:
        content = export_ledger(opened, keys=site_state.keys, log=AuditLog(site.state))
    found: dict[str, Any] = json.loads(json.dumps(content))
    return found


# ---- what stands in it


def test_all_that_is_done_at_a_site_stands_in_it_in_order(
    site: SiteConfig, log: AuditLog, ledger: Ledger
) -> None:
    log.note("pause")
    log.note("resume")
    agree(ledger)
    charge(ledger)
    ledger.mark_released("run/1", "ab" * 32)
    log.note_refusal("policy-noise", message="train")
    assert kinds(log) == [
        *("begin", "pause", "resume", "init", "agree", "charge", "release", "refusal"),
    ]
    charged = log.entries()[5].content
    assert charged["hash"] == ledger.entries()[2].hash
    assert (charged["run"], charged["round"], charged["steps"]) == ("run", 1, 2)
    assert all(entry.content["account"] and entry.time for entry in log.entries())


def test_no_patient_stands_in_it(federation: Any, site: SiteConfig, log: AuditLog) -> None:
    study = federation.study(privacy={"noise": "operating-system"}, aggregation={"min_sites": 1})
    finished = federation.run(study, [site])
    assert finished.outcomes(2)["east"] == ("admitted", "")
    text = "".join(entry.body for entry in log.entries())
    assert kinds(log).count("charge") == 2
    names = {path.name for path in Path(str(site.data.root)).iterdir()}
    for patient in (*names, *hospital_state(site).members, *hospital_state(site).marks()):
        assert patient not in text


def test_open_data_have_none(federation: Any) -> None:
    finished = federation.run(federation.study(), federation.sites("east", "south"))
    assert not list(finished.path.rglob(AUDIT_LOG))


def test_refusals_cannot_fill_the_disk(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSALS_A_DAY", 3)
    for _ in range(5):
        log.note_refusal("message-kind", message="unknown")
    found = [entry for entry in log.entries() if entry.kind == "refusal"]
    assert len(found) == 3
    assert "more" in found[2].content
    assert "more" not in found[1].content


# ---- where it cannot be written


def test_what_could_not_be_written_is_made_up_for_and_no_charge_is_lost(
    site: SiteConfig, log: AuditLog, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    agree(ledger)
    with monkeypatch.context() as patch:
        patch.setattr(AuditLog, "catch_up", fails)
        with pytest.raises(LedgerError, match="disk is full") as caught:
            charge(ledger)
    assert caught.value.code == "policy-log"
    assert ledger.steps(run="run") == 0  # refused before it, and so free of charge
    with monkeypatch.context() as patch:
        patch.setattr(AuditLog, "follow", lambda *_: None)  # it fails between the two
        charge(ledger)
    assert ledger.steps(run="run") == 2
    assert "charge" not in kinds(log)
    ledger.mark_released("run/1", "ab" * 32)
    assert kinds(log) == ["begin", "init", "agree", "charge", "release"]


def fails(*_: object) -> None:
    raise LedgerError("database or disk is full")


def test_a_full_disk_is_one_clear_error(
    site: SiteConfig, log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.note("pause")

    def no_room(*_: object, **__: object) -> None:
        with LogStore._as_ledger_error(site.state / AUDIT_LOG):
            raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(LogStore, "append", no_room)
    with pytest.raises(LedgerError, match="audit log, found: database or disk is full") as caught:
        log.note("resume")
    assert "The ledger is not touched" in str(caught.value)
    assert "medfl ledger acknowledge" not in str(caught.value)


def test_a_released_update_may_leave_whatever_became_of_the_log(
    site: SiteConfig, log: AuditLog, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    agree(ledger)
    charge(ledger)
    (site.state / AUDIT_LOG / LogStore.database).write_bytes(b"")
    ledger.mark_released("run/1", "ab" * 32)
    assert "could not be written into the audit log" in caplog.text
    with pytest.raises(LedgerError) as caught:
        charge(ledger, 2)
    assert caught.value.code == "policy-log"


def test_a_log_that_was_moved_away_begins_anew_and_says_when(
    site: SiteConfig, log: AuditLog, ledger: Ledger
) -> None:
    agree(ledger)
    shutil.rmtree(site.state / AUDIT_LOG)
    charge(ledger)
    entries = log.entries()
    assert [entry.kind for entry in entries] == ["begin", "init", "agree", "charge"]
    older = [entry.content["done"] < entries[0].time for entry in entries[1:]]
    assert older == [True, True, False]
    check_export(exported(site), event_key=hospital_state(site).keys.event_key)


# ---- damage on disk


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET body = replace(body, 'pause', 'leave') WHERE sequence = 2",
        "UPDATE entries SET sequence = 9 WHERE sequence = 2",
    ],
    ids=["changed", "moved"],
)
def test_a_log_that_was_edited_is_refused(statement: str, site: SiteConfig, log: AuditLog) -> None:
    log.note("pause")
    log.note("resume")
    folder = site.state / AUDIT_LOG
    with closing(sqlite3.connect(folder / LogStore.database)) as connection:
        connection.execute("DROP TRIGGER no_update")
        connection.execute("DROP TRIGGER no_delete")
        connection.execute(statement)
        connection.commit()
    with pytest.raises(LedgerError, match="audit log"):
        log.entries()
    with pytest.raises(LedgerError, match="audit log"):
        log.note("pause")


def test_a_log_whose_end_was_cut_off_is_refused(site: SiteConfig, log: AuditLog) -> None:
    log.note("pause")
    folder = site.state / AUDIT_LOG
    shutil.copy(folder / LogStore.database, folder.with_name("old"))
    log.note("resume")
    for left in folder.glob(f"{LogStore.database}*"):
        left.unlink()
    shutil.move(folder.with_name("old"), folder / LogStore.database)
    with pytest.raises(LedgerError, match="restored old copy") as caught:
        log.note("pause")
    assert "audit log" in str(caught.value)


def test_a_folder_without_its_file_is_no_log_that_was_never_begun(
    site: SiteConfig, log: AuditLog
) -> None:
    log.note("pause")
    for left in (site.state / AUDIT_LOG).glob(f"{LogStore.database}*"):
        left.unlink()
    with pytest.raises(LedgerError):
        log.note("resume")


def test_a_log_that_others_can_read_is_refused(site: SiteConfig, log: AuditLog) -> None:
    log.note("pause")
    (site.state / AUDIT_LOG).chmod(0o755)
    with pytest.raises(LedgerError, match="mode 0755"):
        log.note("resume")


# ---- the export, and its check


@pytest.fixture
def content(site: SiteConfig, log: AuditLog, ledger: Ledger) -> dict[str, Any]:
    """An export over an exchange of keys."""
    agree(ledger)
    charge(ledger)
    log.note("pause")
    SiteKeys.read(site.state / KEYS).rotate(site.state / KEYS)
    charge(ledger, 2)
    log.note_refusal("policy-noise", message="train")
    return exported(site)


def keys_of(site: SiteConfig) -> SiteKeys:
    return SiteKeys.read(site.state / KEYS)


def test_an_export_holds_the_log_over_an_exchange_of_keys(
    site: SiteConfig, content: dict[str, Any]
) -> None:
    assert content["format"] == FORMAT
    found = [json.loads(line["body"])["kind"] for line in content["log"]]
    assert found == ["begin", "init", "agree", "charge", "pause", "keys", "charge", "refusal"]
    signers = [json.loads(line["body"])["content"]["key"] for line in content["log"]]
    assert signers[0] == signers[4] != signers[5] == signers[7] == keys_of(site).event_key
    check_export(content, event_key=signers[0])
    check_export(content, event_key=signers[7])


def chained(entries: list[Entry]) -> list[dict[str, str]]:
    """Entries as a forger would chain them again, who has no key of the site."""
    found: list[Entry] = []
    for entry in entries:
        previous = found[-1].hash if found else "0" * 64
        found.append(replace(entry, sequence=len(found) + 1, previous=previous))
    return [{"body": entry.body, "hash": entry.hash} for entry in found]


def _removed(entries: list[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.kind != "pause"]


def _reordered(entries: list[Entry]) -> list[Entry]:
    return [*entries[:3], entries[4], entries[3], *entries[5:]]


def _changed(entries: list[Entry]) -> list[Entry]:
    other = replace(entries[3], content={**entries[3].content, "steps": 1})
    return [*entries[:3], other, *entries[4:]]


def _older(entries: list[Entry]) -> list[Entry]:
    return [replace(entries[0], time="2020-01-01T00:00:00.000+00:00"), *entries[1:]]


@pytest.mark.parametrize("forge", [_removed, _reordered, _changed, _older])
@pytest.mark.parametrize("again", [True, False], ids=["chained again", "as it is"])
def test_a_log_that_was_tampered_with_convinces_nobody(
    forge: Callable[[list[Entry]], list[Entry]],
    again: bool,
    site: SiteConfig,
    content: dict[str, Any],
) -> None:
    """Not even if the whole file is signed again, with the site's own key."""
    forged = forge([Entry(**json.loads(line["body"])) for line in content["log"]])
    plain = [{"body": entry.body, "hash": entry.hash} for entry in forged]
    content["log"] = chained(forged) if again else plain
    convinces_nobody(content, site, match="audit log")


@pytest.mark.parametrize("kind", ["agree", "charge", "keys"])
def test_the_end_of_a_log_cannot_be_cut_off_where_something_else_remembers_it(
    kind: str, site: SiteConfig, content: dict[str, Any]
) -> None:
    found = [json.loads(line["body"])["kind"] for line in content["log"]]
    content["log"] = content["log"][: found.index(kind)]
    convinces_nobody(content, site, match="audit log")


def test_an_export_cannot_pass_for_one_of_a_version_without_a_log(
    site: SiteConfig, content: dict[str, Any]
) -> None:
    del content["log"]
    convinces_nobody(content, site, match="damaged")


def convinces_nobody(content: dict[str, Any], site: SiteConfig, *, match: str) -> None:
    keys = keys_of(site)
    with pytest.raises(LedgerError, match="signed by the key"):
        check_export(content, event_key=keys.event_key)
    unsigned = {name: value for name, value in content.items() if name != "signature"}
    content["signature"] = keys.sign(_canonical(unsigned))
    with pytest.raises(LedgerError, match=match):
        check_export(content, event_key=keys.event_key)


def test_an_export_of_a_version_without_a_log_is_still_checked(
    site: SiteConfig, content: dict[str, Any]
) -> None:
    del content["log"], content["signature"]
    content["format"] = WITHOUT_LOG
    keys = keys_of(site)
    content["signature"] = keys.sign(_canonical(content))
    assert check_export(content, event_key=keys.event_key).private_epsilon > 0


def test_an_old_key_signs_nothing_after_its_exchange(
    site: SiteConfig, log: AuditLog, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever kept a copy of the old key cannot write on."""
    log.note("pause")
    old = keys_of(site)
    old.rotate(site.state / KEYS)
    log.note("resume")
    with monkeypatch.context() as patch:
        patch.setattr(SiteKeys, "read", lambda _: old)
        log.note("pause")
    with pytest.raises(LedgerError, match="signed by the site's key of its time"):
        checked_log(site, ledger=ledger.entries())
