"""Hospitals come by invitation, change their keys by proof, and go for ever."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from medfl.deployment.admission import Bundle, read_bundle
from medfl.deployment.coordinator.server_folder import ServerFolder
from medfl.errors import ConfigError
from medfl.protocol.keys import KEYS, SiteKeys


class Site:
    """A hospital's own folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.keys = SiteKeys.create(folder / KEYS)

    def rotate(self) -> None:
        self.keys = self.keys.rotate(self.path / KEYS)

    def bundle(self, *, invitation: str = "") -> Bundle:
        """What it sends now."""
        path = self.path / "site.pub"
        self.keys.write_public(path, folder=self.path / KEYS, invitation=invitation)
        return read_bundle(path)


@pytest.fixture
def server(tmp_path: Path) -> ServerFolder:
    return ServerFolder.create(tmp_path / "server", host="hospital.example", port=8443)


@pytest.fixture
def north(tmp_path: Path) -> Site:
    return Site(tmp_path / "north")


@pytest.fixture
def south(tmp_path: Path) -> Site:
    return Site(tmp_path / "south")


# --- invitations


def test_an_invitation_reserves_a_name_and_lets_nobody_in(
    server: ServerFolder, north: Site
) -> None:
    invitation = server.invite("north")
    assert server.roster()["north"].state == "invited"
    assert server.sites() == {}
    hospital = server.admit(north.bundle(invitation=invitation.code), name="north")
    assert [entry.state for entry in hospital.history] == ["invited", "admitted"]
    assert hospital.history[1].code == invitation.code
    assert server.sites() == {"north": north.bundle().site}


def test_a_hospital_may_send_keys_that_name_no_invitation(
    server: ServerFolder, north: Site
) -> None:
    server.invite("north")
    assert server.admit(north.bundle(), name="north").state == "admitted"


def test_the_file_of_one_hospital_is_not_admitted_under_the_name_of_another(
    server: ServerFolder, south: Site
) -> None:
    server.invite("north")
    mixed_up = south.bundle(invitation=server.invite("south").code)
    for name in ("north", "somebody"):
        with pytest.raises(ConfigError, match="newest invitation"):
            server.admit(mixed_up, name=name)
    assert server.sites() == {}


def test_a_new_invitation_makes_the_earlier_one_void(server: ServerFolder, north: Site) -> None:
    first, second = server.invite("north"), server.invite("north")
    with pytest.raises(ConfigError, match="newest invitation"):
        server.admit(north.bundle(invitation=first.code), name="north")
    server.admit(north.bundle(invitation=second.code), name="north")


def test_a_fulfilled_invitation_admits_nobody_else(
    server: ServerFolder, north: Site, south: Site
) -> None:
    code = server.invite("north").code
    server.admit(north.bundle(invitation=code), name="north")
    with pytest.raises(ConfigError, match="proves neither"):
        server.admit(south.bundle(invitation=code), name="north")
    with pytest.raises(ConfigError, match="admitted already"):
        server.invite("north")


@pytest.mark.parametrize("name", ["", "two words", "../up", "-x", "x" * 41])
def test_a_name_that_no_site_can_have_is_not_reserved(name: str, server: ServerFolder) -> None:
    with pytest.raises(ConfigError, match="name of 1 to 40"):
        server.invite(name)


# --- rotations


def test_keys_that_the_old_ones_signed_take_their_place(server: ServerFolder, north: Site) -> None:
    old = north.bundle().site
    server.admit(north.bundle(), name="north")
    north.rotate()
    north.rotate()
    hospital = server.admit(north.bundle(), name="north")
    new = north.bundle().site
    assert server.sites() == {"north": new}
    assert (new.node_key, new.event_key) != (old.node_key, old.event_key)
    assert [entry.site for entry in hospital.admissions] == [old, new]


def test_keys_that_are_admitted_already_are_said_to_be(server: ServerFolder, north: Site) -> None:
    server.admit(north.bundle(), name="north")
    with pytest.raises(ConfigError, match="those that are admitted"):
        server.admit(north.bundle(), name="north")


def test_keys_that_nothing_leads_to_are_refused(
    server: ServerFolder, north: Site, south: Site
) -> None:
    server.admit(north.bundle(), name="north")
    before = (server.path / "sites.json").read_bytes()
    south.rotate()
    stolen = north.bundle()
    north.rotate()
    forged = [
        south.bundle(),  # a chain of its own
        Bundle(site=south.bundle().site, rotations=north.keys.rotations, invitation=""),
        Bundle(site=north.bundle().site, rotations=(), invitation=""),
        Bundle(  # somebody else's node beside the event key that is known
            site=type(stolen.site)(
                node_key=south.bundle().site.node_key, event_key=stolen.site.event_key
            ),
            rotations=(),
            invitation="",
        ),
    ]
    for bundle in forged:
        with pytest.raises(ConfigError, match="proves neither"):
            server.admit(bundle, name="north")
    assert (server.path / "sites.json").read_bytes() == before


def test_an_older_pair_of_keys_never_comes_back(server: ServerFolder, north: Site) -> None:
    first = north.bundle()
    server.admit(first, name="north")
    north.rotate()
    server.admit(north.bundle(), name="north")
    with pytest.raises(ConfigError, match="proves neither"):
        server.admit(first, name="north")
    with pytest.raises(ConfigError, match="one of 'north'"):
        server.admit(first, name="south")


def test_a_rotation_never_takes_the_keys_of_another_hospital(
    server: ServerFolder, north: Site, south: Site
) -> None:
    server.admit(north.bundle(), name="north")
    server.admit(south.bundle(), name="south")
    north.rotate()
    for key in ("node_key", "event_key"):
        mixed = {**vars(north.bundle().site), key: getattr(south.bundle().site, key)}
        bundle = Bundle(
            site=type(north.bundle().site)(**mixed),
            rotations=north.keys.rotations,
            invitation="",
        )
        with pytest.raises(ConfigError, match="one of 'south'"):
            server.admit(bundle, name="north")


# --- revocation


def test_a_revoked_hospital_is_out_and_its_name_and_history_stay(
    server: ServerFolder, north: Site, south: Site
) -> None:
    server.admit(north.bundle(), name="north")
    hospital = server.revoke("north", reason=" a laptop was stolen ")
    assert (hospital.state, hospital.reason) == ("revoked", "a laptop was stolen")
    assert server.sites() == {}
    assert [entry.state for entry in server.roster()["north"].history] == ["admitted", "revoked"]
    for action in (
        lambda: server.admit(south.bundle(), name="north"),
        lambda: server.invite("north"),
        lambda: server.revoke("north", reason="again"),
    ):
        with pytest.raises(ConfigError, match="revoked"):
            action()


def test_a_thief_cannot_rotate_a_revoked_hospital_back(server: ServerFolder, north: Site) -> None:
    server.admit(north.bundle(), name="north")
    server.revoke("north", reason="its keys were stolen")
    north.rotate()
    with pytest.raises(ConfigError, match="its keys were stolen"):
        server.admit(north.bundle(), name="north")


def test_the_keys_of_a_revoked_hospital_are_nobodys(server: ServerFolder, north: Site) -> None:
    server.admit(north.bundle(), name="north")
    server.revoke("north", reason="left")
    with pytest.raises(ConfigError, match="one of 'north'"):
        server.admit(north.bundle(), name="north-2")


def test_an_invitation_can_be_taken_back(server: ServerFolder, north: Site) -> None:
    code = server.invite("north").code
    server.revoke("north", reason="changed their mind")
    with pytest.raises(ConfigError, match="changed their mind"):
        server.admit(north.bundle(invitation=code), name="north")


@pytest.mark.parametrize(("name", "reason"), [("nobody", "x"), ("north", ""), ("north", "  ")])
def test_a_revocation_names_a_hospital_and_a_reason(
    name: str, reason: str, server: ServerFolder, north: Site
) -> None:
    server.admit(north.bundle(), name="north")
    with pytest.raises(ConfigError, match="Expected"):
        server.revoke(name, reason=reason)
    assert set(server.sites()) == {"north"}


# --- the file


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"north": []}', '{"north": [{"state": "admitted"}]}', '{"north": {}}'],
)
def test_a_damaged_list_is_refused(content: str, server: ServerFolder) -> None:
    (server.path / "sites.json").write_text(content)
    with pytest.raises(ConfigError, match="damaged"):
        server.sites()


def test_the_list_is_for_its_owner_only_and_holds_nothing_secret(
    server: ServerFolder, north: Site
) -> None:
    server.admit(north.bundle(), name="north")
    path = server.path / "sites.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (entry,) = json.loads(path.read_text())["north"]
    assert set(entry) == {"at", "state", "node_key", "event_key"}
