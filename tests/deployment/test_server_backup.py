"""A server that comes back from its backup: who it is, whom it admits, and nothing under way."""

from __future__ import annotations

import stat
import tarfile
from pathlib import Path

import pytest

from medfl.deployment.admission import Bundle, read_bundle
from medfl.deployment.backup import read_backup, write_backup
from medfl.deployment.coordinator.backup import SERVER, backup_server, restore_server
from medfl.deployment.coordinator.server_folder import ServerFolder
from medfl.deployment.lock import exclusive
from medfl.errors import ConfigError, FederationError
from medfl.protocol.keys import SiteKeys

SECRETS = ("ca.key", "server.key", "superexec.secret", "control.secret")


@pytest.fixture
def server(tmp_path: Path) -> ServerFolder:
    folder = ServerFolder.create(tmp_path / "server", host="hospital.example", port=8443)
    folder.invite("south")
    folder.admit(bundle(tmp_path / "north"), name="north")
    return folder


@pytest.fixture
def kept(server: ServerFolder, tmp_path: Path) -> Path:
    backup_server(server.path, out=tmp_path / "kept")
    return tmp_path / "kept"


def bundle(folder: Path) -> Bundle:
    keys = SiteKeys.create(folder / "keys")
    keys.write_public(folder / "site.pub", folder=folder / "keys")
    return read_bundle(folder / "site.pub")


def test_a_server_comes_back_as_it_was(server: ServerFolder, kept: Path, tmp_path: Path) -> None:
    manifest, restored = restore_server(kept, to=tmp_path / "restored")
    assert (manifest.name, manifest.folder) == (server.federation, server.path)
    assert restored.path == tmp_path / "restored"
    assert (restored.address, restored.sites()) == (server.address, server.sites())
    assert [hospital.name for hospital in restored.roster()] == ["north", "south"]
    assert restored.authority.read_bytes() == server.authority.read_bytes()
    assert restored.require_usable_certificate().fits_key
    assert restored.renew_certificate().fits_key  # the authority's key came along
    for name in ("state", "jobs", "logs", "flower"):
        assert list((restored.path / name).iterdir()) == []
        assert stat.S_IMODE((restored.path / name).stat().st_mode) == 0o700
    for name in SECRETS:
        assert stat.S_IMODE((restored.path / name).stat().st_mode) == 0o600


def test_nothing_that_is_under_way_is_kept(server: ServerFolder, tmp_path: Path) -> None:
    mark = "EL1ZABETH"
    for name in ("state/flower.db", "jobs/1.json", "logs/superlink.log", "runs/first/weights"):
        (server.path / name).parent.mkdir(parents=True, exist_ok=True)
        (server.path / name).write_text(mark)
    server.renew_certificate()  # leaves the old key beside the new one
    backup_server(server.path, out=tmp_path / "kept")
    with tarfile.open(tmp_path / "kept") as archive:
        names = set(archive.getnames())
    assert names == {"manifest.json", "sites.json", "study.toml"} | SERVER.required
    assert mark.encode() not in (tmp_path / "kept").read_bytes()
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o600


def test_whoever_was_revoked_since_is_admitted_again(
    server: ServerFolder, kept: Path, tmp_path: Path
) -> None:
    """That cannot be known from the file, so the command says it."""
    server.revoke("north", reason="left")
    _, restored = restore_server(kept, to=tmp_path / "restored")
    assert list(restored.sites()) == ["north"]


def test_a_running_server_is_backed_up_and_not_restored_beside_itself(
    server: ServerFolder, tmp_path: Path
) -> None:
    with exclusive(server.path / "server.lock", noun="a server's folder"):
        backup_server(server.path, out=tmp_path / "kept")
        with pytest.raises(FederationError, match="this server is running"):
            restore_server(tmp_path / "kept", to=tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_another_server_in_the_same_place_is_none_of_its_business(
    server: ServerFolder, kept: Path, tmp_path: Path
) -> None:
    server.path.rename(tmp_path / "away")
    other = ServerFolder.create(server.path, host="localhost", port=8444)
    with exclusive(other.path / "server.lock", noun="a server's folder"):
        restore_server(kept, to=tmp_path / "restored")


def test_a_certificate_is_not_taken_between_two_halves(
    server: ServerFolder, tmp_path: Path
) -> None:
    server.certificate_key.write_bytes((server.path / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match="found another key's"):
        backup_server(server.path, out=tmp_path / "kept")
    with (
        exclusive(server.path / "sites.lock", noun="a list of sites"),
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(FederationError, match="a list of sites that no other process"),
    ):
        patch.setattr("medfl.deployment.coordinator.backup._PATIENCE_SECONDS", 0.2)
        backup_server(server.path, out=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("sites.json", b"{"),
        ("server.json", b"{}"),
        ("server.key", b"roses"),
        ("ca.crt", b"roses"),
    ],
)
def test_a_backup_whose_parts_do_not_fit_is_not_restored(
    part: str, content: bytes, kept: Path, tmp_path: Path
) -> None:
    """Its digests are right: somebody who had the file put it together."""
    read = read_backup(kept, kind=SERVER)
    write_backup(
        tmp_path / "forged",
        kind=SERVER,
        identity=read.manifest.identity,
        name=read.manifest.name,
        folder=read.manifest.folder,
        members={**read.members, part: content},
    )
    with pytest.raises(ConfigError, match="expected"):
        restore_server(tmp_path / "forged", to=tmp_path / "new")
    assert [path for path in tmp_path.iterdir() if "new" in path.name] == []


def test_a_site_is_no_server(server: ServerFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a server's folder"):
        backup_server(tmp_path, out=tmp_path / "kept")


def test_hospitals_that_came_or_changed_their_keys_since_are_admitted_again(
    server: ServerFolder, kept: Path, tmp_path: Path
) -> None:
    north, east = tmp_path / "north", tmp_path / "east"
    rotated = SiteKeys.read(north / "keys").rotate(north / "keys")
    rotated.write_public(north / "site.pub", folder=north / "keys")
    keys = SiteKeys.create(east / "keys")
    code = server.invite("east").code
    keys.write_public(east / "site.pub", folder=east / "keys", invitation=code)
    _, restored = restore_server(kept, to=tmp_path / "restored")
    restored.admit(read_bundle(north / "site.pub"), name="north")
    with pytest.raises(ConfigError, match="the newest invitation"):
        restored.admit(read_bundle(east / "site.pub"), name="east")
    rotated = keys.rotate(east / "keys")  # as `medfl site rotate` does
    rotated.write_public(east / "site.pub", folder=east / "keys")
    restored.admit(read_bundle(east / "site.pub"), name="east")
    assert list(restored.sites()) == ["east", "north"]
