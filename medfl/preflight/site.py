"""`preflight`: everything that would stop a site, found in one pass before a study depends on it.

Data, machine, state folder, keys, ledger, policy, one gradient of a study and the way to the server
are judged one after the other; whatever one check meets, the others still run. Nothing is charged
and nothing leaves the site.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from medfl.config import SiteConfig
from medfl.config.study import load_study
from medfl.data.checks import OnProgress, check_cohort
from medfl.deployment.hospital.private_files import key_files, private_files
from medfl.deployment.hospital.site_file import require_invited_name
from medfl.deployment.monitoring.hook import require_usable
from medfl.errors import ConfigError, DataError, LedgerError
from medfl.findings import Finding, Severity
from medfl.preflight.machine import (
    check_machine,
    nearest_existing,
    need_of,
    this_machine,
)
from medfl.preflight.network import check_server
from medfl.preflight.policy import check_policy
from medfl.privacy.ledger.store import LedgerStore
from medfl.privacy.ledger.witness import Witness
from medfl.privacy.ledger.witness_place import witness_folder
from medfl.protocol.keys import EVENT_KEY, KEYS, NODE_KEY, PUBLIC, SiteKeys, read_public
from medfl.secret_files import Exposure, changeable, exposures
from medfl.site.log_check import checked_log
from medfl.site.state import SiteState, hospital_state
from medfl.site.state_folder import SITE_KEY

LOW_BUDGET = 0.1
"""Part of a budget below which little of it is left."""


def preflight(
    site: SiteConfig,
    *,
    file: Path | None = None,
    study: Path | None = None,
    server: str = "",
    ca: Path | None = None,
    on_progress: OnProgress = lambda _part, _done, _total: None,
) -> list[Finding]:
    """Look at everything that a site needs for its next study.

    Args:
        site: The site.
        file: Where its file is, which others must not write.
        study: A study file, for a dry run of one patient and closer estimates.
        server: ``HOST:PORT`` of the server; empty leaves the network alone.
        ca: Certificate of the authority that signed the server's.
        on_progress: Who is told how far the images are read.

    Returns:
        All findings: errors, then warnings, then notes.
    """
    site_state = hospital_state(site)
    pseudonym_key(site)  # made at first use, and then there for its check
    findings = check_cohort(site, on_progress=on_progress)
    proposal = None
    if study is not None:
        try:
            proposal = load_study(study)
        except ConfigError as error:
            findings.append(_unreadable_study(study, error))
    findings += check_machine(
        site_state, machine=this_machine(site.state), need=need_of(site_state, proposal)
    )
    findings += check_state(site, *(path for path in (file, ca) if path is not None))
    if site.purpose == "hospital":
        findings += check_name(site)
        findings += check_hook(site, file=file)
        findings += check_keys(site)
        findings += check_ledger(site_state)
    findings += check_witness(site_state)
    if proposal is not None:
        findings += check_policy(site, proposal)
        from medfl.preflight.dry_run import dry_run  # torch is for a study only

        findings += dry_run(site_state, proposal)
    if server:
        findings += check_server(server, ca=ca)
    return sorted(findings, key=lambda finding: get_args(Severity).index(finding.severity))


def obstacles_to_ledger(site: SiteConfig, *, file: Path, on_progress: OnProgress) -> list[Finding]:
    """The errors that have to be gone before the terms of a hospital's ledger are fixed.

    Args:
        site: The hospital.
        file: Its file.
        on_progress: Who is told how far the images are read.
    """
    pseudonym_key(site)
    findings = check_cohort(site, on_progress=on_progress)
    findings += check_state(site, file)
    findings += check_name(site)
    findings += check_keys(site)
    return [finding for finding in findings if finding.severity == "error"]


def pseudonym_key(site: SiteConfig) -> bytes:
    """The key of a site's pseudonyms; empty where its state folder cannot hold one."""
    try:
        return hospital_state(site).key
    except (ConfigError, OSError):
        return b""


def check_state(site: SiteConfig, *public: Path) -> list[Finding]:
    """Whether the state folder can be written, and it and what it holds be seen by its owner only.

    Open data are public, so that only a hospital's folder has to be closed.

    Args:
        site: The site.
        public: Files outside that everybody may read, and nobody else write.
    """
    folder = site.state
    name = str(folder)
    try:
        # Deleted at once, and on most systems without ever having had a name.
        with tempfile.TemporaryFile(dir=nearest_existing(folder)):
            pass
    except OSError as error:
        return [
            _finding(
                "error",
                name,
                rule="a state folder that this user can write",
                value=error.strerror or str(error),
                fix=f"Make it for the user who runs medfl: install -d -m 700 -o USER {folder}",
            )
        ]
    if site.purpose == "open-data":
        return []
    return _exposed([*exposures(private_files(folder)), *changeable(public)])


def check_name(site: SiteConfig) -> list[Finding]:
    """Whether a hospital goes by the name under which it was invited."""
    try:
        require_invited_name(site)
    except ConfigError as error:
        return [
            _finding(
                "error",
                site.name,
                rule="the name that the coordinator invited",
                value=str(error),
                fix="Write that name into the site file, or ask for another invitation.",
            )
        ]
    return []


def check_hook(site: SiteConfig, *, file: Path | None) -> list[Finding]:
    """Whether the program that a running site would tell of events can be used."""
    try:
        require_usable(site.monitoring.hook, where=file or Path(site.name))
    except ConfigError as error:
        return [
            _finding(
                "error",
                site.monitoring.hook[0],
                rule="a hook that nobody else can exchange",
                value=str(error),
                fix="Correct the program's mode or owner, or monitoring.hook; the site does not "
                "start with it.",
            )
        ]
    return []


def check_keys(site: SiteConfig) -> list[Finding]:
    """Whether a hospital's keys are there, for its owner only, and match its public file."""
    return list(_key_findings(site))


def check_ledger(site_state: SiteState) -> list[Finding]:
    """Whether a hospital's ledger and audit log are whole, and what is left of the budget."""
    folder = site_state.ledger_folder
    name = str(folder)
    if not LedgerStore.is_in(folder):
        return [
            _finding(
                "error",
                name,
                rule="a ledger, which pays for every study",
                value="none",
                fix="Correct the other findings first. Then `medfl ledger init SITE.toml` shows "
                "what it fixes permanently, and asks. If there was one, restore it, or go on with "
                "`medfl ledger acknowledge`.",
            )
        ]
    try:
        with site_state.open_ledger() as ledger:
            ledger.recount()
            checked_log(site_state.site, ledger=ledger.entries())
            spent = ledger.spent()
    except (ConfigError, LedgerError, OSError) as error:
        return [
            _finding(
                "error",
                name,
                rule="a whole ledger that the witness knows, and a whole audit log",
                value=str(error),
                fix="Do what the text says; nothing is computed without a ledger.",
            )
        ]
    low = spent.remaining < LOW_BUDGET * spent.budget
    return [
        _finding(
            "warning" if low else "note",
            name,
            rule="a budget for the next study",
            value=f"epsilon {spent.remaining:.3f} of {spent.budget:g} left at delta "
            f"{spent.delta:g}",
            fix="See with `medfl plan` whether a study still fits; a budget is never refilled."
            if low
            else "Nothing; `medfl plan` shows what a study would take.",
        )
    ]


def check_witness(site_state: SiteState) -> list[Finding]:
    """Whether the witness is closed and can be asked, and no other ledger pays for a patient."""
    try:
        found = _exposed(Witness(witness_folder()).exposures())
    except LedgerError:
        found = []  # told below
    if found:
        return found
    try:
        parts = site_state.patients
    except (ConfigError, DataError, OSError):
        return []  # the cohort's own findings tell
    used = parts.training
    if site_state.site.purpose == "open-data":
        used += parts.held_out
    try:
        site_state.require_unclaimed(used)
    except DataError:
        return []
    except LedgerError as error:
        return [
            _finding(
                "error",
                site_state.site.name,
                rule="patients whom no other ledger of this machine pays for",
                value=str(error),
                fix="Do what the text says; nothing is computed before.",
            )
        ]
    return []


def _exposed(found: Sequence[Exposure]) -> list[Finding]:
    return [
        _finding("error", str(each.path), rule=each.rule, value=each.value, fix=each.fix)
        for each in found
    ]


def _finding(severity: Severity, name: str, *, rule: str, value: str, fix: str) -> Finding:
    return Finding(
        severity=severity, patient="", name=name, rule=rule, value=value, fix=fix, names=True
    )


def _unreadable_study(path: Path, error: ConfigError) -> Finding:
    fix = "Correct the file, or ask the coordinator for it again."
    return _finding("error", str(path), rule="a study file", value=str(error), fix=fix)


def _key_findings(site: SiteConfig) -> Iterator[Finding]:
    folder = site.state / KEYS
    make = f"Make the keys once with `medfl site init {site.state}`, or restore them."
    event_key, exposed = "", exposures(key_files(site.state))
    yield from _exposed(exposed)
    try:
        event_key = SiteKeys.read(folder).event_key
    except (ConfigError, OSError) as error:
        if {each.path for each in exposed}.isdisjoint((folder, folder / EVENT_KEY)):
            there = os.access(folder / EVENT_KEY, os.F_OK)
            fix = "Restore it from its backup." if there else make
            yield _finding(
                "error", str(folder), rule="the site's event key", value=str(error), fix=fix
            )
    for path in (folder / NODE_KEY, site.state / SITE_KEY):
        try:
            path.stat()
        except OSError as error:
            rule, value = "a key", error.strerror or str(error)
            yield _finding("error", str(path), rule=rule, value=value, fix=make)
    yield from _public_findings(site, event_key=event_key)


def _public_findings(site: SiteConfig, *, event_key: str) -> Iterator[Finding]:
    path = site.state / PUBLIC
    try:
        stated = read_public(path)
    except ConfigError as error:
        value = str(error)
    else:
        if stated == event_key or not event_key:
            return
        value = "those of other keys"
    yield _finding(
        "warning",
        str(path),
        rule="the public halves of the site's keys, for the coordinator",
        value=value,
        fix=f"Restore the file, or write a new one with new keys: medfl site rotate {site.state}",
    )
