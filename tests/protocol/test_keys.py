"""A site's keys: made once, read by nobody else, exchanged only by whoever held the old ones."""

from __future__ import annotations

import base64
import json
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from medfl.errors import ConfigError
from medfl.protocol.keys import Rotation, SiteKeys, is_successor
from medfl.signatures import is_signed

CONTENT = b"what a site says"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "keys"


@pytest.fixture
def keys(folder: Path) -> SiteKeys:
    return SiteKeys.create(folder)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keys_are_for_their_owner_only(keys: SiteKeys, folder: Path) -> None:
    assert mode(folder) == 0o700
    assert {path.name: mode(path) for path in folder.iterdir()} == {
        "event.json": 0o600,
        "node": 0o600,
    }


def test_two_sites_never_have_the_same_keys(keys: SiteKeys, folder: Path, tmp_path: Path) -> None:
    other = SiteKeys.create(tmp_path / "other")
    assert other.event_key != keys.event_key
    assert (tmp_path / "other" / "node").read_bytes() != (folder / "node").read_bytes()


def test_keys_are_never_replaced(keys: SiteKeys, folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="never replaced"):
        SiteKeys.create(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_keys_that_are_not_there_are_not_made(folder: Path) -> None:
    with pytest.raises(ConfigError, match="found none"):
        SiteKeys.read(folder)
    assert not folder.exists()


@pytest.mark.parametrize("permissions", [0o640, 0o604, 0o660, 0o610, 0o601])
def test_keys_that_others_may_use_are_refused(
    permissions: int, keys: SiteKeys, folder: Path
) -> None:
    (folder / "event.json").chmod(permissions)
    with pytest.raises(ConfigError, match=f"mode {permissions:04o}"):
        SiteKeys.read(folder)
    (folder / "event.json").chmod(0o400)
    assert SiteKeys.read(folder).event_key == keys.event_key


def test_a_signature_is_ed25519_over_exactly_these_bytes(keys: SiteKeys) -> None:
    signature = keys.sign(CONTENT)
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(keys.event_key))
    public.verify(bytes.fromhex(signature), CONTENT)  # raises if it is none
    assert is_signed(CONTENT, signature=signature, event_key=keys.event_key)
    assert not is_signed(CONTENT + b"!", signature=signature, event_key=keys.event_key)


@pytest.mark.parametrize(
    ("signature", "event_key"),
    [
        ("", None),
        ("zz" * 64, None),
        ("00" * 64, None),
        ("00" * 63, None),
        (None, ""),
        (None, "zz" * 32),
        (None, "00" * 31),
        (None, "00" * 32),
    ],
)
def test_what_is_no_signature_or_no_key_is_not_signed(
    signature: str | None, event_key: str | None, keys: SiteKeys
) -> None:
    given = keys.sign(CONTENT) if signature is None else signature
    of = keys.event_key if event_key is None else event_key
    assert not is_signed(CONTENT, signature=given, event_key=of)


def test_a_copy_out_of_the_backup_signs_the_same(
    keys: SiteKeys, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "backup")
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)
    restored = SiteKeys.read(folder)
    assert restored.event_key == keys.event_key
    assert restored.sign(CONTENT) == keys.sign(CONTENT)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        '{"private": 5, "public": "", "rotations": []}',
        '{"private": "", "public": "", "rotations": []}',
        '{"private": null, "public": "", "rotations": []}',
    ],
)
def test_a_damaged_file_is_refused(content: str, keys: SiteKeys, folder: Path) -> None:
    (folder / "event.json").write_text(content)
    with pytest.raises(ConfigError, match="damaged"):
        SiteKeys.read(folder)


@pytest.mark.parametrize("rotations", [5, [5], [{}], [{"old": "", "new": ""}]])
def test_damaged_rotations_are_refused(rotations: object, keys: SiteKeys, folder: Path) -> None:
    path = folder / "event.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rotations": rotations}))
    with pytest.raises(ConfigError, match="damaged"):
        SiteKeys.read(folder)


def test_a_flipped_bit_never_gives_another_key(keys: SiteKeys, folder: Path) -> None:
    path = folder / "event.json"
    content = path.read_bytes()
    refused = 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            found = SiteKeys.read(folder)
        except ConfigError:
            refused += 1
        else:
            assert found.sign(CONTENT) == keys.sign(CONTENT)
    assert refused > len(content) / 2


def test_a_key_of_another_kind_is_refused(keys: SiteKeys, folder: Path) -> None:
    # The node's key in the place of the event key.
    content = {"private": (folder / "node").read_text(), "public": keys.event_key, "rotations": []}
    (folder / "event.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="expected an Ed25519 key"):
        SiteKeys.read(folder)


def test_the_nodes_key_is_what_flower_asks_for(keys: SiteKeys, folder: Path) -> None:
    content = (folder / "node").read_bytes()
    assert content.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    node = serialization.load_ssh_private_key(content, password=None)
    assert isinstance(node, ec.EllipticCurvePrivateKey)
    assert node.curve.name == "secp384r1"


# --- rotation


def test_a_rotation_replaces_both_keys_and_keeps_their_modes(keys: SiteKeys, folder: Path) -> None:
    before = (folder / "node").read_bytes()
    rotated = keys.rotate(folder)
    assert rotated.event_key != keys.event_key
    assert SiteKeys.read(folder).event_key == rotated.event_key
    assert SiteKeys.read(folder).rotations == rotated.rotations
    assert (folder / "node").read_bytes() != before
    assert {mode(path) for path in folder.iterdir()} == {0o600}


def test_what_the_old_key_signed_can_still_be_verified(keys: SiteKeys, folder: Path) -> None:
    signature = keys.sign(CONTENT)
    rotated = keys.rotate(folder)
    assert is_signed(CONTENT, signature=signature, event_key=keys.event_key)
    assert not is_signed(CONTENT, signature=signature, event_key=rotated.event_key)
    assert not is_signed(CONTENT, signature=rotated.sign(CONTENT), event_key=keys.event_key)


def test_the_old_private_key_is_gone(keys: SiteKeys, folder: Path) -> None:
    secret = private_bytes(folder)
    keys.rotate(folder)
    assert private_bytes(folder) != secret
    for path in folder.iterdir():
        assert secret.hex().encode() not in path.read_bytes()
        assert base64.b64encode(secret) not in path.read_bytes()


def private_bytes(folder: Path) -> bytes:
    """The secret 32 bytes of the event key."""
    text = json.loads((folder / "event.json").read_text())["private"]
    key = serialization.load_ssh_private_key(text.encode(), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    return key.private_bytes_raw()


def test_a_chain_of_rotations_leads_to_the_newest_key(keys: SiteKeys, folder: Path) -> None:
    second = keys.rotate(folder)
    third = second.rotate(folder)
    chain = third.rotations
    assert [rotation.holds() for rotation in chain] == [True, True]
    for known in (keys, second, third):
        assert is_successor(third.event_key, of=known.event_key, rotations=chain)
    # A missing link, a way back, and no link at all.
    assert not is_successor(third.event_key, of=keys.event_key, rotations=chain[1:])
    assert not is_successor(keys.event_key, of=third.event_key, rotations=chain)
    assert not is_successor(keys.event_key, of=keys.event_key, rotations=chain)
    assert not is_successor(third.event_key, of=keys.event_key, rotations=())
    assert is_successor(keys.event_key, of=keys.event_key, rotations=())


def test_a_forged_rotation_is_no_succession(keys: SiteKeys, folder: Path, tmp_path: Path) -> None:
    rotated = keys.rotate(folder)
    (sound,) = rotated.rotations
    thief = SiteKeys.create(tmp_path / "thief")
    forged = [
        replace(sound, new=thief.event_key),
        replace(sound, new=thief.event_key, signature=thief.sign(thief.event_key.encode())),
        # Signed by the old key, but not as a rotation.
        replace(sound, new=thief.event_key, signature=keys.sign(thief.event_key.encode())),
        replace(sound, new=thief.event_key, signature=""),
        Rotation(old=thief.event_key, new=thief.event_key, signature=sound.signature),
    ]
    for rotation in forged:
        assert not rotation.holds()
        assert not is_successor(thief.event_key, of=keys.event_key, rotations=[rotation])
        assert not is_successor(thief.event_key, of=keys.event_key, rotations=[sound, rotation])


# --- what a coordinator gets


def test_the_public_file_holds_nothing_secret(keys: SiteKeys, folder: Path, tmp_path: Path) -> None:
    rotated = keys.rotate(folder)
    path = tmp_path / "site.pub"
    rotated.write_public(path, folder=folder)
    content = json.loads(path.read_text())
    assert set(content) == {"node", "event", "node_signature", "rotations"}
    assert content["event"] == rotated.event_key
    assert [Rotation(**rotation) for rotation in content["rotations"]] == [*rotated.rotations]
    node = serialization.load_ssh_private_key((folder / "node").read_bytes(), password=None)
    assert isinstance(node, ec.EllipticCurvePrivateKey)
    public = serialization.load_ssh_public_key(content["node"].encode())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert public.public_numbers() == node.public_key().public_numbers()
    text = path.read_text()
    secrets = [private_bytes(folder), node.private_numbers().private_value.to_bytes(48, "big")]
    for secret in secrets:
        assert secret.hex() not in text
        # In base64 the bytes may begin at any of three places of a group.
        for shift in range(3):
            assert base64.b64encode(secret[shift : shift + 27]).decode() not in text
    assert "PRIVATE" not in text
