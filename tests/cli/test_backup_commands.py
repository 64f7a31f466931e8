"""A site and a server that come back from their backups, and what does not come back with them."""

from __future__ import annotations

import shutil
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfl.config import load_site
from medfl.deployment.hospital import backup as site_backup
from medfl.deployment.hospital.participation import LOCK
from medfl.deployment.lock import exclusive
from medfl.errors import LedgerError
from medfl.privacy.ledger.witness import Witness
from medfl.protocol.keys import SiteKeys
from medfl.site.state import SITE_KEY, hospital_state
from tests.cli.charged_sites import charge, charged, spent

MEMBERS = {
    "manifest.json",
    "site.toml",
    "site.key",
    "site.pub",
    "keys/event.json",
    "keys/node",
    "ledger/ledger.sqlite",
    "ledger/head.json",
}
LOG = {"audit-log/log.sqlite", "audit-log/head.json"}
"""What is there once the site has done something that an auditor reads."""


def moved(file: Path, *, to: Path) -> Path:
    """The site file of a restored folder, after its state folder was edited."""
    text, old = (to / "site.toml").read_text(), load_site(file).state
    (to / "site.toml").write_text(text.replace(str(old), str(to)))
    return to / "site.toml"


def remembered() -> dict[str, bytes]:
    """Everything in the witness's folder."""
    folder = Witness.of_this_machine().folder
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def north(medfl: Any, hospital_file: Callable[..., Path]) -> Path:
    """A hospital with keys and a ledger that was charged for one run."""
    return charged(medfl, hospital_file("north"))


@pytest.fixture
def kept(medfl: Any, north: Path, tmp_path: Path) -> Path:
    """Its backup."""
    assert medfl("site", "backup", north, "-o", tmp_path / "north.backup").code == 0
    return tmp_path / "north.backup"


@pytest.mark.parametrize("place", ["a new folder", "the same folder"])
def test_what_was_spent_since_a_backup_is_charged_before_anything_is_computed(
    place: str, medfl: Any, north: Path, kept: Path, tmp_path: Path
) -> None:
    state = load_site(north).state
    charge(north, "second")
    before = spent(medfl, north)
    shutil.rmtree(state)  # the disk is lost
    to = state if place == "the same folder" else tmp_path / "restored"
    known = remembered()
    ended = medfl("site", "restore", kept, "--to", to)
    assert ended.code == 0, ended.err
    assert "medfl ledger acknowledge" in ended.out
    assert ("edit" in ended.out) == (to != state)
    assert remembered() == known  # the witness stays as it is
    file = moved(north, to=to)
    medfl("budget", file).refused(3, "restored old copy", "medfl ledger acknowledge")
    with pytest.raises(LedgerError, match="restored old copy"):
        charge(file, "third")
    medfl("site", "backup", file, "-o", tmp_path / "worse").refused(3, "restored old copy")
    assert medfl("ledger", "acknowledge", file, "--reason", "disk lost").code == 0
    assert spent(medfl, file) == pytest.approx(before)
    assert medfl("ledger", "verify", file).code == 0
    charge(file, "third")
    assert spent(medfl, file) > before


def test_a_backup_with_everything_in_it_goes_on_at_once(
    medfl: Any, north: Path, kept: Path, tmp_path: Path
) -> None:
    before = spent(medfl, north)
    shutil.rmtree(load_site(north).state)
    ended = medfl("site", "restore", kept, "--to", tmp_path / "restored")
    assert "medfl ledger acknowledge" not in ended.out
    file = moved(north, to=tmp_path / "restored")
    assert spent(medfl, file) == before
    assert medfl("ledger", "verify", file).code == 0
    (tmp_path / "export.json").unlink(missing_ok=True)
    assert medfl("ledger", "export", file, "-o", tmp_path / "export.json").code == 0


def test_two_copies_of_one_ledger_are_not_both_charged(
    medfl: Any, north: Path, kept: Path, tmp_path: Path
) -> None:
    ended = medfl("site", "restore", kept, "--to", tmp_path / "restored")
    assert f"the ledger is in {load_site(north).state} too" in ended.out.replace("\n", " ")
    file = moved(north, to=tmp_path / "restored")
    charge(file, "second")
    with pytest.raises(LedgerError, match="restored old copy"):
        charge(north, "third")


def test_an_old_backup_beside_the_newest_ledger_is_no_way_around_it(
    medfl: Any, north: Path, kept: Path, tmp_path: Path
) -> None:
    charge(north, "second")
    before = spent(medfl, north)
    assert medfl("site", "restore", kept, "--to", tmp_path / "restored").code == 0
    file = moved(north, to=tmp_path / "restored")
    medfl("budget", file).refused(3, "restored old copy")
    medfl("ledger", "acknowledge", file, "--reason", "?").refused(3, "Use or restore that one")
    assert spent(medfl, north) == before


def test_another_machine_has_to_be_told_of_a_ledger(
    medfl: Any, north: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = spent(medfl, north)
    shutil.rmtree(load_site(north).state)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    ended = medfl("site", "restore", kept, "--to", tmp_path / "restored")
    assert "witness does not know it" in ended.out.replace("\n", " ")
    file = moved(north, to=tmp_path / "restored")
    medfl("budget", file).refused(3, "unknown", "medfl ledger acknowledge")
    assert medfl("ledger", "acknowledge", file, "--reason", "new machine").code == 0
    assert spent(medfl, file) == before


def test_a_backup_holds_what_cannot_be_made_again_and_nothing_else(
    medfl: Any, north: Path, tmp_path: Path
) -> None:
    state, secret = load_site(north).state, "EL1ZABETH"
    for name in ("outbox", "secure_sums/run", "cache", "models/run", "logs", "flower"):
        (state / name).mkdir(parents=True, exist_ok=True)
        (state / name / "file").write_text(secret)
    (state / "own.safetensors").write_text(secret)
    assert medfl("site", "pause", north).code == 0
    ended = medfl("site", "backup", north, "-o", tmp_path / "kept")
    assert "private keys" in ended.out
    with tarfile.open(tmp_path / "kept") as archive:
        assert set(archive.getnames()) == MEMBERS | LOG | {"paused.json"}
    content = (tmp_path / "kept").read_bytes()
    assert secret.encode() not in content
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o600
    assert not [path for path in state.iterdir() if path.name.startswith(".")]
    medfl("site", "backup", north, "-o", tmp_path / "kept").refused(2, "expected a new file")
    assert (tmp_path / "kept").read_bytes() == content
    shutil.rmtree(state)
    assert medfl("site", "restore", tmp_path / "kept", "--to", state).code == 0
    assert (state / "paused.json").exists()
    names = {str(path.relative_to(state)) for path in state.rglob("*") if path.is_file()}
    assert names == MEMBERS - {"manifest.json"} | LOG | {"paused.json"}


def test_the_names_in_a_backup_are_those_of_the_state_folder(north: Path) -> None:
    state = load_site(north).state
    assert hospital_state(load_site(north)).ledger_folder == state / site_backup.LEDGER
    assert site_backup.SITE_KEY == SITE_KEY


def test_a_running_site_is_backed_up_and_not_restored_beside_itself(
    medfl: Any, north: Path, tmp_path: Path
) -> None:
    with exclusive(load_site(north).state / LOCK, noun="a site"):
        assert medfl("site", "backup", north, "-o", tmp_path / "kept").code == 0
        ended = medfl("site", "restore", tmp_path / "kept", "--to", tmp_path / "restored")
        ended.refused(1, "this site is running")
    assert not (tmp_path / "restored").exists()


def test_a_site_that_left_does_not_come_back(
    medfl: Any, north: Path, kept: Path, tmp_path: Path
) -> None:
    assert medfl("site", "leave", north, "--reason", "over", "--yes").code == 0
    medfl("site", "restore", kept, "--to", tmp_path / "back").refused(2, "left for good")
    assert not (tmp_path / "back").exists()
    assert medfl("site", "backup", north, "-o", tmp_path / "record").code == 0
    with tarfile.open(tmp_path / "record") as archive:
        names = set(archive.getnames())
    assert {"left.json", "last-export.json", "ledger/ledger.sqlite"} <= names
    assert not {name for name in names if name.startswith("keys/")}
    ended = medfl("site", "restore", tmp_path / "record", "--to", tmp_path / "again")
    assert "not a site that can be started" in ended.out.replace("\n", " ")
    file = moved(north, to=tmp_path / "again")
    medfl("site", "pause", file).refused(2, "left for good")


@pytest.mark.parametrize("lost", ["keys", "site.key", "ledger"])
def test_what_is_no_whole_site_is_not_backed_up(
    lost: str, medfl: Any, north: Path, tmp_path: Path
) -> None:
    path = load_site(north).state / lost
    path.rename(tmp_path / "away")
    ended = medfl("site", "backup", north, "-o", tmp_path / "kept")
    ended.refused(3 if lost == "ledger" else 2, "expected", "found none")
    assert not (tmp_path / "kept").exists()


def test_keys_that_are_exchanged_meanwhile_belong_together(
    medfl: Any, north: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, read, exchanged = load_site(north).state / "keys", site_backup._required, []

    def exchange_first(path: Path) -> bytes:
        if path.name == "node" and not exchanged:
            exchanged.append(SiteKeys.read(keys).rotate(keys))
        return read(path)

    monkeypatch.setattr(site_backup, "_required", exchange_first)
    assert medfl("site", "backup", north, "-o", tmp_path / "kept").code == 0
    assert exchanged
    with tarfile.open(tmp_path / "kept") as archive:
        for name in ("event.json", "node"):
            kept = archive.extractfile(f"keys/{name}")
            assert kept is not None
            assert kept.read() == (keys / name).read_bytes()


@pytest.mark.parametrize("part", ["ledger/ledger.sqlite", "keys/event.json"])
def test_a_backup_whose_parts_do_not_fit_is_not_restored(
    part: str, medfl: Any, north: Path, kept: Path, tmp_path: Path
) -> None:
    """Its digests are right: somebody who had the file put it together."""
    from medfl.deployment.backup import read_backup, write_backup

    read = read_backup(kept, kind=site_backup.SITE)
    content = read.members[part].replace(b"first", b"fi4st")
    if part.startswith("keys"):
        content = b"{}"
    manifest = read.manifest
    write_backup(
        tmp_path / "forged",
        kind=site_backup.SITE,
        identity=manifest.identity,
        name=manifest.name,
        folder=manifest.folder,
        members={**read.members, part: content},
    )
    ended = medfl("site", "restore", tmp_path / "forged", "--to", tmp_path / "new")
    ended.refused(2 if part.startswith("keys") else 3, "xpected")
    assert [path for path in tmp_path.iterdir() if "new" in path.name] == []
