"""A crash in the middle of a rotation leaves a folder that works: the old pair or the new one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from medfl.protocol import keys as site_keys
from medfl.protocol.keys import SiteKeys, is_successor, is_vouched_for

STEPS = ["next node key", "event key", "node key"]


class Killed(BaseException):
    """The end of the process."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "keys"


@pytest.fixture
def keys(folder: Path) -> SiteKeys:
    return SiteKeys.create(folder)


def killed_before(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process end just before a step of a rotation."""
    write, take = site_keys.write_atomically, site_keys._take_next_node_key

    def writing(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name.startswith("node." if step == "next node key" else "event"):
            raise Killed
        write(path, *arguments, **options)

    def taking(*arguments: Any, **options: Any) -> None:
        raise Killed

    if step == "node key":
        monkeypatch.setattr(site_keys, "_take_next_node_key", taking)
    else:
        monkeypatch.setattr(site_keys, "write_atomically", writing)
    assert take is not taking


def pair(folder: Path) -> tuple[str, bytes]:
    """Event key and node key as a start of the site takes them."""
    return SiteKeys.read(folder).event_key, (folder / "node").read_bytes()


def attempt(step: str, keys: SiteKeys, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        killed_before(step, patch)
        with pytest.raises(Killed):
            keys.rotate(folder)


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_rotation_leaves_the_old_pair_or_the_new_one(
    step: str, keys: SiteKeys, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_event, old_node = pair(folder)
    attempt(step, keys, folder, monkeypatch)
    event, node = pair(folder)
    assert (event != old_event) is (node != old_node) is (step == "node key")
    assert pair(folder) == (event, node)


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_rotation_can_be_followed_by_another(
    step: str, keys: SiteKeys, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt(step, keys, folder, monkeypatch)
    rotated = SiteKeys.read(folder).rotate(folder)
    assert is_successor(rotated.event_key, of=keys.event_key, rotations=rotated.rotations)
    assert {path.name for path in folder.iterdir()} == {"node", "event.json"}


def public(folder: Path, write: Callable[[Path], None]) -> dict[str, Any]:
    write(folder / "site.pub")
    content: dict[str, Any] = json.loads((folder / "site.pub").read_text())
    return content


def test_the_event_key_vouches_for_the_node_key_that_is_in_use(
    keys: SiteKeys, folder: Path, tmp_path: Path
) -> None:
    rotated = keys.rotate(folder)
    content = public(tmp_path, lambda path: rotated.write_public(path, folder=folder))
    node = serialization.load_ssh_private_key((folder / "node").read_bytes(), password=None)
    text = (
        node.public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .decode()
    )
    signature = content["node_signature"]
    assert is_vouched_for(text, signature=signature, event_key=rotated.event_key)
    assert not is_vouched_for(text + "x", signature=signature, event_key=rotated.event_key)
    assert not is_vouched_for(text, signature=signature, event_key=keys.event_key)
    # A signature for one purpose is none for another.
    assert not is_vouched_for(
        text, signature=rotated.sign(text.encode()), event_key=rotated.event_key
    )


def test_an_invitation_is_named_only_where_there_is_one(
    keys: SiteKeys, folder: Path, tmp_path: Path
) -> None:
    assert "invitation" not in public(tmp_path, lambda path: keys.write_public(path, folder=folder))
    named = public(
        tmp_path, lambda path: keys.write_public(path, folder=folder, invitation="ABCD-EFGH")
    )
    assert named["invitation"] == "ABCD-EFGH"
