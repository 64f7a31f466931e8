"""A backup's file: secret, whole or refused, and restored as a whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfl.deployment import backup
from medfl.deployment.backup import (
    Kind,
    read_backup,
    require_not_running,
    restoring,
    write_backup,
)
from medfl.deployment.lock import exclusive
from medfl.errors import ConfigError, FederationError

KIND = Kind(
    name="site",
    required=frozenset({"a", "deep/b"}),
    optional=frozenset({"c"}),
    lock="site.lock",
)
MEMBERS = {"a": b"first", "deep/b": b"\x00second" * 1000}

Entries = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path = tmp_path / "kept.backup"
    write_backup(
        path, kind=KIND, identity="0" * 64, name="north", folder=tmp_path / "old", members=MEMBERS
    )
    return path


def entries(path: Path) -> Entries:
    with tarfile.open(path) as archive:
        return [(entry, archive.extractfile(entry).read()) for entry in archive]  # type: ignore[union-attr]


def rewrite(path: Path, change: Callable[[Entries], Any]) -> None:
    """Write an archive again, after a change."""
    found = entries(path)
    change(found)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for entry, content in found:
            if entry.isfile():
                entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def renamed(index: int, name: str) -> Callable[[Entries], Any]:
    """Give an entry another name, in the manifest as well."""

    def change(found: Entries) -> None:
        before = found[index][0].name
        found[index][0].name = name
        manifest = json.loads(found[0][1])
        manifest["members"][name] = manifest["members"].pop(before)
        found[0] = (found[0][0], json.dumps(manifest).encode())

    return change


def linked(kind: bytes) -> Callable[[Entries], Any]:
    def change(found: Entries) -> None:
        found[1][0].type = kind
        found[1][0].linkname = "/etc/passwd"
        found[1][0].size = 0

    return change


def stating(**values: Any) -> Callable[[Entries], Any]:
    """Change the manifest alone."""

    def change(found: Entries) -> None:
        manifest = json.loads(found[0][1]) | values
        found[0] = (found[0][0], json.dumps(manifest).encode())

    return change


def test_a_backup_comes_back_as_it_was(kept: Path, tmp_path: Path) -> None:
    read = read_backup(kept, kind=KIND)
    assert read.members == MEMBERS
    assert (read.manifest.name, read.manifest.folder) == ("north", tmp_path / "old")
    with restoring(read, tmp_path / "new"):
        pass
    files = {path: path.read_bytes() for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert files == {tmp_path / "new" / name: content for name, content in MEMBERS.items()}
    modes = {stat.S_IMODE(path.stat().st_mode) for path in files}
    assert modes == {0o600}
    for folder in (tmp_path / "new", tmp_path / "new" / "deep"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_only_its_owner_can_read_a_backup(kept: Path) -> None:
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_the_manifest_can_be_checked_without_medfl(kept: Path) -> None:
    (_, text), *others = entries(kept)
    manifest = json.loads(text)
    assert manifest["format"] == 1
    assert {entry.name: hashlib.sha256(content).hexdigest() for entry, content in others} == {
        name: member["sha256"] for name, member in manifest["members"].items()
    }


def test_a_backup_replaces_nothing(kept: Path, tmp_path: Path) -> None:
    before = kept.read_bytes()
    with pytest.raises(ConfigError, match="expected a new file"):
        write_backup(kept, kind=KIND, identity="0" * 64, name="", folder=tmp_path, members=MEMBERS)
    assert kept.read_bytes() == before


def test_a_backup_that_fails_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(OSError, match="No space"):
        write_backup(
            tmp_path / "new",
            kind=KIND,
            identity="0" * 64,
            name="",
            folder=tmp_path,
            members=MEMBERS,
        )
    assert list(tmp_path.iterdir()) == []


def test_what_lacks_a_part_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no deep/b"):
        write_backup(
            tmp_path / "new",
            kind=KIND,
            identity="0" * 64,
            name="",
            folder=tmp_path,
            members={"a": b""},
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (linked(tarfile.SYMTYPE), "of type b'2'"),
        (linked(tarfile.LNKTYPE), "of type b'1'"),
        (linked(tarfile.FIFOTYPE), "of type b'6'"),
        (renamed(1, "/a"), "'/a'"),
        (renamed(1, "../a"), "'../a'"),
        (renamed(1, "deep/../a"), "'deep/../a'"),
        (renamed(1, "outbox/x"), "'outbox/x'"),
        (lambda found: found.append(found[1]), "a second 'a'"),
        (lambda found: found.append((tarfile.TarInfo("c"), b"more")), "an unexpected 'c'"),
        (lambda found: found.pop(), "found no deep/b"),
        (lambda found: found.pop(0), "no manifest.json at its beginning"),
        (lambda found: found.reverse(), "no manifest.json at its beginning"),
        (lambda found: found.__setitem__(1, (found[1][0], b"firsT")), "found other bytes"),
        (lambda found: found.__setitem__(1, (found[1][0], b"longer than it was")), "other bytes"),
        (lambda found: found.__setitem__(0, (found[0][0], b"roses")), "format 1, found none"),
        (stating(format=2), "format 1, found 2"),
        (stating(format=2, unknown=True), "format 1, found 2"),
        (stating(kind="server"), "found one of a server"),
        (stating(members={}), "an unexpected 'a'"),
        (stating(identity="north"), "a damaged one"),
        (stating(more=1), "a damaged one"),
    ],
)
def test_anything_but_a_whole_backup_is_refused(
    change: Callable[[Entries], Any], found: str, kept: Path
) -> None:
    rewrite(kept, change)
    with pytest.raises(ConfigError) as refusal:
        read_backup(kept, kind=KIND)
    assert found in str(refusal.value)


def test_what_is_no_archive_is_refused(kept: Path, tmp_path: Path) -> None:
    content = kept.read_bytes()
    other = tmp_path / "other"
    for number, bytes_ in enumerate((b"", b"roses" * 1000, content[:700], content[:3000])):
        other.write_bytes(bytes_)
        with pytest.raises(ConfigError, match=r"expected (a backup|all members|a)"):
            read_backup(other, kind=KIND)
        assert number < 4
    with pytest.raises(ConfigError, match="No such file"):
        read_backup(tmp_path / "missing", kind=KIND)


def test_every_flipped_bit_of_a_member_is_noticed(kept: Path) -> None:
    content = bytearray(kept.read_bytes())
    at = content.index(b"\x00second")
    content[at + 3] ^= 1
    kept.write_bytes(content)
    with pytest.raises(ConfigError, match="found other bytes"):
        read_backup(kept, kind=KIND)


def test_a_bomb_is_not_unpacked(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "MAX_BYTES", 1000)
    with pytest.raises(ConfigError, match="at most 1000 bytes"):
        read_backup(kept, kind=KIND)


def test_a_folder_with_something_in_it_is_left_alone(kept: Path, tmp_path: Path) -> None:
    read = read_backup(kept, kind=KIND)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("here")
    for place in (taken, taken / "mine"):
        with pytest.raises(ConfigError, match="new or empty"), restoring(read, place):
            pass
    assert [path.name for path in taken.iterdir()] == ["mine"]


def test_an_empty_folder_is_taken(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(mode=0o755)
    with restoring(read_backup(kept, kind=KIND), tmp_path / "empty"):
        pass
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == ["a", "deep"]
    assert stat.S_IMODE((tmp_path / "empty").stat().st_mode) == 0o700


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ConfigError("refused")])
def test_nothing_is_half_restored(
    fault: BaseException | type[BaseException], kept: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    with (
        pytest.raises((KeyboardInterrupt, ConfigError)),
        restoring(read_backup(kept, kind=KIND), tmp_path / "new") as draft,
    ):
        assert (draft / "deep" / "b").read_bytes() == MEMBERS["deep/b"]
        assert not (tmp_path / "new").exists()
        raise fault
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_another_process_fills_meanwhile_is_left_alone(
    kept: Path, tmp_path: Path
) -> None:
    place = tmp_path / "new"
    with (
        pytest.raises(OSError, match="not empty"),
        restoring(read_backup(kept, kind=KIND), place),
    ):
        place.mkdir()
        (place / "mine").touch()
    assert [path.name for path in place.iterdir()] == ["mine"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.backup", "new"]


def test_a_folder_that_cannot_be_made_is_named(kept: Path, tmp_path: Path) -> None:
    place = tmp_path / "kept.backup" / "new"
    with (
        pytest.raises(ConfigError, match="that this account can make, found: "),
        restoring(read_backup(kept, kind=KIND), place),
    ):
        pass


def test_what_runs_is_not_restored_beside_itself(tmp_path: Path) -> None:
    require_not_running(tmp_path, kind=KIND)
    with (
        exclusive(tmp_path / "site.lock", noun="a site"),
        pytest.raises(FederationError, match="stop this one first"),
    ):
        require_not_running(tmp_path, kind=KIND)
    require_not_running(tmp_path, kind=KIND)
    require_not_running(tmp_path / "kept.backup" / "no folder", kind=KIND)
