"""A server's folder: made once, readable by its owner only, with one hospital for every key."""

from __future__ import annotations

import ipaddress
import json
import re
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from medfl.deployment.admission import AdmittedSite, Bundle, read_bundle
from medfl.deployment.coordinator.server_folder import ServerFolder
from medfl.deployment.lock import exclusive
from medfl.errors import ConfigError
from medfl.protocol.keys import SiteKeys


@pytest.fixture
def server(tmp_path: Path) -> ServerFolder:
    return ServerFolder.create(tmp_path / "server", host="hospital.example", port=8443)


def bundle(folder: Path) -> Path:
    keys = SiteKeys.create(folder / "keys")
    keys.write_public(folder / "site.pub", folder=folder / "keys")
    return folder / "site.pub"


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_nobody_else_can_read_what_a_server_keeps_secret(server: ServerFolder) -> None:
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o700
    secret = [path for path in server.path.iterdir() if path.suffix in (".key", ".secret")]
    assert len(secret) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}


@pytest.mark.parametrize(
    "host", ["hospital.example", "localhost", "127.0.0.1", "10.1.2.3", "::1", "2001:db8::7"]
)
def test_the_authority_vouches_for_the_server_under_its_name(host: str, tmp_path: Path) -> None:
    server = ServerFolder.create(tmp_path / "server", host=host, port=8443)
    try:
        subject: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        subject = x509.DNSName(host)
    verifier = (
        PolicyBuilder().store(Store([certificate(server.authority)])).build_server_verifier(subject)
    )
    assert len(verifier.verify(certificate(server.certificate), [])) == 2


def test_another_authority_does_not_vouch_for_the_server(
    server: ServerFolder, tmp_path: Path
) -> None:
    other = ServerFolder.create(tmp_path / "other", host="hospital.example", port=8443)
    verifier = (
        PolicyBuilder()
        .store(Store([certificate(other.authority)]))
        .build_server_verifier(x509.DNSName("hospital.example"))
    )
    with pytest.raises(VerificationError):
        verifier.verify(certificate(server.certificate), [])


def test_the_server_certificate_is_good_for_nothing_else(server: ServerFolder) -> None:
    issued = certificate(server.certificate)
    usage = issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    key = issued.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"


def test_a_server_is_never_replaced(server: ServerFolder) -> None:
    before = {path.name: path.read_bytes() for path in server.path.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match="never replaced"):
        ServerFolder.create(server.path, host="localhost", port=1)
    after = {path.name: path.read_bytes() for path in server.path.iterdir() if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("two words", 1),
        ("", 1),
        ("h\u00f6st", 1),
        ("localhost", 0),
        ("fe80::1%eth0", 1),
        ("[x]", 1),
    ],
)
def test_a_server_that_nobody_could_reach_is_refused(host: str, port: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected"):
        ServerFolder.create(tmp_path / "server", host=host, port=port)
    with pytest.raises(ConfigError, match="expected a server's folder"):
        ServerFolder(tmp_path / "server")


def test_the_study_template_is_a_study(server: ServerFolder) -> None:
    from medfl.config import load_study

    assert load_study(server.path / "study.toml").id == "first-study"


def test_an_admitted_site_keeps_its_keys(server: ServerFolder, tmp_path: Path) -> None:
    path = bundle(tmp_path / "north")
    server.admit(read_bundle(path), name="north")
    (site,) = ServerFolder(server.path).sites().values()
    assert site.event_key == json.loads(path.read_text())["event"]
    assert site.node_key == json.loads(path.read_text())["node"]


@pytest.mark.parametrize("taken", ["name", "node_key", "event_key"])
def test_a_name_or_a_key_is_admitted_once(taken: str, server: ServerFolder, tmp_path: Path) -> None:
    north, south = (read_bundle(bundle(tmp_path / name)) for name in ("north", "south"))
    server.admit(north, name="north")
    keys = {"node_key": south.site.node_key, "event_key": south.site.event_key}
    if taken != "name":
        keys[taken] = getattr(north.site, taken)
    second = Bundle(site=AdmittedSite(**keys), rotations=(), invitation="")
    with pytest.raises(ConfigError, match=r"proves neither|one of 'north'"):
        server.admit(second, name="north" if taken == "name" else "south")
    assert server.sites() == {"north": north.site}


def test_a_key_under_another_comment_is_the_same_key(server: ServerFolder, tmp_path: Path) -> None:
    path = bundle(tmp_path / "north")
    server.admit(read_bundle(path), name="north")
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "node": values["node"] + " somebody@else"}))
    with pytest.raises(ConfigError, match="one of 'north'"):
        server.admit(read_bundle(path), name="south")


@pytest.mark.parametrize("name", ["", "two words", "../up", "-x", "x" * 41])
def test_a_name_that_no_site_can_have_is_refused(
    name: str, server: ServerFolder, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="name of 1 to 40"):
        server.admit(read_bundle(bundle(tmp_path / "north")), name=name)


@pytest.mark.parametrize(
    "change",
    [
        {"node": "no key"},
        {"node": 3},
        {"node": None},
        {"event": "0"},
        {"rotations": 3},
        {"rotations": [{"old": 1, "new": 2, "signature": 3}]},
        {"rotations": [{"old": ""}]},
    ],
    ids=["text", "number", "null", "event", "rotations", "numbers", "halves"],
)
def test_a_damaged_bundle_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    path = bundle(tmp_path / "north")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=r"expected a site\.pub"):
        read_bundle(path)


def test_a_node_key_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path, other = bundle(tmp_path / "north"), bundle(tmp_path / "thief")
    thief = json.loads(other.read_text())
    changes = (
        {"node": thief["node"]},
        {"node_signature": thief["node_signature"]},
        {"node_signature": None},
    )
    for change in changes:
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(ConfigError, match="has signed"):
            read_bundle(path)


def test_a_fingerprint_is_of_both_keys_and_easy_to_say(tmp_path: Path) -> None:
    north, south = (read_bundle(bundle(tmp_path / name)).site for name in ("north", "south"))
    mixed = AdmittedSite(node_key=south.node_key, event_key=north.event_key)
    assert len({north.fingerprint, south.fingerprint, mixed.fingerprint}) == 3
    assert re.fullmatch(r"([A-Z2-7]{4}-){3}[A-Z2-7]{4}", north.fingerprint)


def test_the_run_under_way_is_the_one_that_somebody_follows(
    server: ServerFolder, tmp_path: Path
) -> None:
    assert server.run_under_way() is None
    job = server.jobs / "17.json"
    job.write_text(json.dumps({"study": {}, "out": str(tmp_path / "run"), "sites": {}}))
    assert server.run_under_way() is None
    with exclusive(server.jobs / "17.lock", noun="a job"):
        assert server.run_under_way() == tmp_path / "run"
    assert server.run_under_way() is None


def test_the_last_run_is_remembered(server: ServerFolder, tmp_path: Path) -> None:
    assert server.last_run() is None
    for name in ("first", "second"):
        server.note_run(tmp_path / name)
        assert ServerFolder(server.path).last_run() == tmp_path / name
