"""A server's certificate: renewed under the same authority, and never used after its end."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from medfl.deployment import certificates
from medfl.deployment.coordinator.server_folder import ServerFolder
from medfl.errors import ConfigError


@pytest.fixture
def server(tmp_path: Path) -> ServerFolder:
    return ServerFolder.create(tmp_path / "server", host="hospital.example", port=8443)


def server_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **days: int) -> ServerFolder:
    """A server whose certificates last as many days as given."""
    with monkeypatch.context() as patch:
        for name, value in days.items():
            patch.setattr(certificates, name, value)
        return ServerFolder.create(tmp_path / "short", host="hospital.example", port=8443)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def accepted(server: ServerFolder, shown: Path) -> bool:
    """Whether a hospital that has only the authority accepts what the server shows."""
    verifier = (
        PolicyBuilder()
        .store(Store([certificate(server.authority)]))
        .build_server_verifier(x509.DNSName("hospital.example"))
    )
    return len(verifier.verify(certificate(shown), [])) == 2


def test_a_hospital_notices_nothing_of_a_renewal(server: ServerFolder) -> None:
    authority = server.authority.read_bytes()
    old, old_key = server.certificate.read_bytes(), server.certificate_key.read_bytes()
    renewed = server.renew_certificate()
    assert server.authority.read_bytes() == authority
    assert server.certificate.read_bytes() != old
    assert server.certificate_key.read_bytes() != old_key
    assert accepted(server, server.certificate)
    assert renewed.fits_key
    assert renewed.days_left in (729, 730)
    assert (server.path / "server.crt.old").read_bytes() == old
    assert (server.path / "server.key.old").read_bytes() == old_key
    for name in ("server.key", "server.key.old"):
        assert stat.S_IMODE((server.path / name).stat().st_mode) == 0o600


@pytest.mark.parametrize(("days", "soon"), [(29, True), (32, False)])
def test_an_end_within_thirty_days_is_warned_about(
    days: int, soon: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = server_of(tmp_path, monkeypatch, SERVER_DAYS=days)
    found = server.require_usable_certificate()
    assert found.expires_soon is soon
    assert found.days_left in (days - 1, days)


def test_a_certificate_after_its_end_is_refused_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Valid since an hour before it was made, and until a moment before now.
    monkeypatch.setattr(
        certificates, "_in_days", lambda days: datetime.now(UTC) + timedelta(days=days, seconds=-2)
    )
    server = server_of(tmp_path, monkeypatch, SERVER_DAYS=0)
    with pytest.raises(ConfigError, match="medfl server renew"):
        server.require_usable_certificate()
    server.renew_certificate()
    assert not server.require_usable_certificate().expires_soon


def test_a_crash_between_key_and_certificate_is_noticed_and_mended(
    server: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = certificates.write_atomically

    def killed(path: Path, *arguments: Any, **options: Any) -> None:
        if path == server.certificate:
            raise KeyboardInterrupt
        write(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(certificates, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            server.renew_certificate()
    with pytest.raises(ConfigError, match=r"another key's.*medfl server renew"):
        server.require_usable_certificate()
    server.renew_certificate()
    assert server.require_usable_certificate().fits_key
    assert accepted(server, server.certificate)


def test_nothing_is_valid_for_longer_than_its_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = server_of(tmp_path, monkeypatch, AUTHORITY_DAYS=100)
    end = certificate(server.authority).not_valid_after_utc
    assert certificate(server.certificate).not_valid_after_utc == end
    assert server.renew_certificate().end == end


def test_an_authority_at_its_end_renews_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = server_of(tmp_path, monkeypatch, AUTHORITY_DAYS=20)
    before = server.certificate.read_bytes()
    with pytest.raises(ConfigError, match="medfl server init"):
        server.renew_certificate()
    assert server.certificate.read_bytes() == before


@pytest.mark.parametrize("name", ["server.crt", "server.key"])
def test_a_damaged_certificate_is_refused(name: str, server: ServerFolder) -> None:
    (server.path / name).write_text("roses")
    with pytest.raises(ConfigError, match="damaged"):
        server.require_usable_certificate()
    server.renew_certificate()
    assert server.require_usable_certificate().fits_key
