"""The outbox gives back the very bytes that were stored, or says why it cannot."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch

from medfl.errors import FederationError
from medfl.site.outbox import Outbox, write_atomically

WEIGHTS = {"b": torch.tensor([1.0, -0.0, 3e-40]), "a": torch.zeros((2, 0))}


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "state" / "outbox")


def stored_file(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "state" / "outbox").iterdir()
    return file


def test_what_was_stored_comes_back_bit_for_bit(outbox: Outbox, tmp_path: Path) -> None:
    digest = outbox.put("run/1/east", request="r", body='{"x": 1}', weights=WEIGHTS)
    found = outbox.get("run/1/east", request="r")
    assert found is not None
    assert found.body == '{"x": 1}'
    assert found.weights.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        assert found.weights[name].numpy().tobytes() == value.numpy().tobytes()
    assert found.digest == digest
    assert digest == hashlib.sha256(stored_file(tmp_path).read_bytes()).hexdigest()


def test_nothing_is_stored_for_a_new_request(outbox: Outbox) -> None:
    outbox.put("run/1/east", request="r", body="{}", weights=WEIGHTS)
    assert outbox.get("run/2/east", request="r") is None


def test_another_request_under_the_same_id_is_refused(outbox: Outbox) -> None:
    outbox.put("run/1/east", request="first", body="{}", weights=WEIGHTS)
    with pytest.raises(FederationError) as caught:
        outbox.get("run/1/east", request="second")
    assert caught.value.code == "message-replayed"


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda content: content[:40],
        lambda content: content[:-1],
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content.replace(b"medfl", b"model"),
        lambda content: content.replace(b'\\"request\\"', b'\\"anybody\\"'),
        lambda content: content.replace(b'\\"body\\"', b'\\"bode\\"'),
        lambda _: b"not a model at all",
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(
    damage: object, outbox: Outbox, tmp_path: Path
) -> None:
    outbox.put("run/1/east", request="r", body="{}", weights=WEIGHTS)
    file = stored_file(tmp_path)
    assert callable(damage)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(FederationError, match="move it away") as caught:
        outbox.get("run/1/east", request="r")
    assert caught.value.code == "outbox"
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "a/../b", "x" * 200])
def test_an_id_from_the_server_never_chooses_a_path(
    name: str, outbox: Outbox, tmp_path: Path
) -> None:
    outbox.put(name, request="r", body="{}", weights=WEIGHTS)
    file = stored_file(tmp_path)
    assert file.parent == tmp_path / "state" / "outbox"
    assert file.stem == hashlib.sha256(name.encode()).hexdigest()
    assert outbox.get(name, request="r") is not None


def test_only_the_site_can_read_the_folder(outbox: Outbox, tmp_path: Path) -> None:
    assert (tmp_path / "state" / "outbox").stat().st_mode & 0o777 == 0o700


def test_a_crash_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.bin"
    write_atomically(path, b"old")

    def fails(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="No space"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_the_newest_updates_are_those_that_stay(outbox: Outbox, tmp_path: Path) -> None:
    def there() -> list[bool]:
        found = (outbox.get(f"run/{number}/east", request="r") for number in range(1, 6))
        return [update is not None for update in found]

    for number in range(1, 6):
        outbox.put(f"run/{number}/east", request="r", body="{}", weights=WEIGHTS)
    size = stored_size(tmp_path)
    outbox.keep_newest(2, max_bytes=3 * size)
    assert there() == [True] * 5
    outbox.keep_newest(2, max_bytes=size)
    assert there() == [False, False, True, True, True]
    outbox.keep_newest(2, max_bytes=0)
    assert there() == [False, False, False, True, True]


def stored_size(tmp_path: Path) -> int:
    return next((tmp_path / "state" / "outbox").iterdir()).stat().st_size
