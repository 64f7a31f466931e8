"""The file that a hospital is invited with: complete, checked, and of no use to a stranger."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfl import __version__
from medfl.deployment.coordinator.server_folder import ServerFolder
from medfl.deployment.invitation import Invitation, flower_version, read_invitation
from medfl.deployment.thin_app import THIN_APP
from medfl.errors import ConfigError


@pytest.fixture
def server(tmp_path: Path) -> ServerFolder:
    return ServerFolder.create(
        tmp_path / "server", host="hospital.example", port=8443, federation="Gliomas 2027"
    )


@pytest.fixture
def invitation(server: ServerFolder) -> Invitation:
    return server.invite("north")


def test_the_file_says_all_that_a_hospital_needs(
    server: ServerFolder, invitation: Invitation, tmp_path: Path
) -> None:
    path = tmp_path / invitation.file_name
    path.write_text(invitation.text)
    read = read_invitation(path)
    assert read == invitation
    assert (read.federation, read.name, read.server) == (
        "Gliomas 2027",
        "north",
        "hospital.example:8443",
    )
    assert (read.medfl, read.flower, read.app) == (__version__, flower_version(), THIN_APP.digest)
    assert read.certificate.encode() == server.authority.read_bytes()


def test_both_sides_can_compare_the_certificate_by_telephone(
    invitation: Invitation, tmp_path: Path
) -> None:
    other = ServerFolder.create(tmp_path / "other", host="hospital.example", port=8443)
    said = invitation.authority_fingerprint
    assert said in invitation.text
    assert said != other.invite("north").authority_fingerprint


def test_a_mail_programs_line_ends_do_no_harm(invitation: Invitation, tmp_path: Path) -> None:
    path = tmp_path / "mailed.txt"
    path.write_bytes(b"\xef\xbb\xbf" + invitation.text.replace("\n", "\r\n").encode())
    assert read_invitation(path) == invitation


def test_it_holds_no_secret_of_the_server(server: ServerFolder, invitation: Invitation) -> None:
    secrets = [path for path in server.path.iterdir() if path.suffix in (".key", ".secret")]
    assert len(secrets) == 4
    for path in secrets:
        for line in path.read_text().splitlines():
            assert "PRIVATE" in line or line not in invitation.text
    assert "PRIVATE" not in invitation.text


def test_no_two_invitations_have_the_same_code(server: ServerFolder) -> None:
    assert len({server.invite(f"site-{number}").code for number in range(20)}) == 20


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("server = ", "# server = ", "server"),
        ("hospital.example:8443", "hospital.example", "server"),
        ("-----BEGIN CERTIFICATE-----", "-----BEGIN ROSES-----", "certificate"),
        ('name = "north"', 'name = "../north"', "name"),
        ('app = "', 'app = "x', "app"),
        ("federation = ", "surprise = 1\nfederation = ", "unknown key"),
    ],
    ids=["missing", "port", "certificate", "name", "app", "unknown"],
)
def test_a_changed_file_is_refused(
    old: str, new: str, problem: str, invitation: Invitation, tmp_path: Path
) -> None:
    assert old in invitation.text
    path = tmp_path / "north.invite"
    path.write_text(invitation.text.replace(old, new))
    with pytest.raises(ConfigError, match=problem):
        read_invitation(path)


def test_another_version_is_told_before_anything_is_installed(invitation: Invitation) -> None:
    invitation.require_same_versions()
    for change in ({"medfl": "9.9.9"}, {"flower": "9.9"}, {"app": "0" * 64}):
        other = invitation.model_copy(update=change)
        with pytest.raises(ConfigError, match=f"{next(iter(change))} .*found"):
            other.require_same_versions()
