"""A site's keys: the node key with which it joins Flower, and the key that signs its events.

Both are made at the site and only their public halves, `site.pub`, ever leave it. Anyone who holds
a copy of the folder can speak for the site, so a backup belongs where the ledger's does. A rotation
replaces both keys; the old event key signs the new one, so that a server which knew the old one can
follow, and is then forgotten: what it signed can still be verified. The event key also vouches for
the node key, so that nobody can put another one beside it in a `site.pub` on its way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from medfl.durable import sync_folder, write_atomically
from medfl.errors import ConfigError
from medfl.secret_files import require_owner_only
from medfl.signatures import is_signed

KEYS = "keys"
"""Folder of the keys in a site's state folder."""

NODE_KEY = "node"
EVENT_KEY = "event.json"
PUBLIC = "site.pub"

_ROTATION = b"medfl rotation\0"
_NODE = b"medfl node\0"


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """One exchange of the event key.

    Attributes:
        old: Public key before, as hexadecimal text.
        new: Public key after.
        signature: By the old key over the new one.
    """

    old: str
    new: str
    signature: str

    def holds(self) -> bool:
        """Whether the old key's holder named the new one."""
        content = _ROTATION + self.new.encode()
        return is_signed(content, signature=self.signature, event_key=self.old)


class SiteKeys:
    """The event key of a site, in memory."""

    def __init__(self, event: Ed25519PrivateKey, *, rotations: Sequence[Rotation]) -> None:
        self._event = event
        self.rotations = tuple(rotations)

    @classmethod
    def create(cls, folder: Path) -> Self:
        """Make the keys of a site in a new folder (mode 0700).

        Raises:
            ConfigError: If there are keys already; they are never replaced.
        """
        if (folder / EVENT_KEY).exists():
            raise ConfigError(f"{folder}: expected no keys, found some; they are never replaced.")
        # `parents` would make the state folder with the umask's mode.
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        _write_node_key(folder / NODE_KEY)
        keys = cls(Ed25519PrivateKey.generate(), rotations=())
        keys._write(folder)
        return keys

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the keys of a site, and finish a rotation that a crash cut short.

        Raises:
            ConfigError: If they are missing or damaged, or if others may read them.
        """
        path = folder / EVENT_KEY
        if not path.is_file():
            raise ConfigError(
                f"{path}: expected the site's keys, found none. Make them once with `medfl site "
                "init`, or restore them from their backup."
            )
        require_owner_only(folder, path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            event = serialization.load_ssh_private_key(content["private"].encode(), password=None)
            rotations = [Rotation(**rotation) for rotation in content["rotations"]]
            public = content["public"]
        except (AttributeError, KeyError, TypeError, ValueError, UnsupportedAlgorithm):
            event = None
        # A damaged OpenSSH file may load as a key, but of another public half.
        if not isinstance(event, Ed25519PrivateKey) or _hex(event.public_key()) != public:
            raise ConfigError(f"{path}: expected an Ed25519 key, found a damaged file.")
        _take_next_node_key(folder, event_key=public)
        return cls(event, rotations=rotations)

    @property
    def event_key(self) -> str:
        """The public half of the event key, as hexadecimal text."""
        return _hex(self._event.public_key())

    def sign(self, content: bytes) -> str:
        """Sign with the event key; hexadecimal text."""
        return self._event.sign(content).hex()

    def rotate(self, folder: Path) -> SiteKeys:
        """Replace both keys in `folder` and return the new ones.

        The new event key is the turning point: a crash before it leaves the old pair, and one after
        it the new pair, whose node key `read` then puts into its place.
        """
        for left in folder.glob(f"{NODE_KEY}.*"):
            left.unlink()
        event = Ed25519PrivateKey.generate()
        new = _hex(event.public_key())
        rotation = Rotation(
            old=self.event_key, new=new, signature=self.sign(_ROTATION + new.encode())
        )
        keys = SiteKeys(event, rotations=[*self.rotations, rotation])
        _write_node_key(_next_node_key(folder, event_key=new))
        keys._write(folder)
        _take_next_node_key(folder, event_key=new)
        return keys

    def write_public(self, path: Path, *, folder: Path, invitation: str = "") -> None:
        """Write `site.pub`: what a coordinator registers, and nothing secret.

        Args:
            path: Where to.
            folder: Folder of the keys.
            invitation: Code of the coordinator's invitation that this answers; empty for none.

        Raises:
            ConfigError: If others can read the node key.
        """
        require_owner_only(folder / NODE_KEY)
        node = serialization.load_ssh_private_key((folder / NODE_KEY).read_bytes(), password=None)
        public = node.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        bundle = {
            "node": public.decode(),
            "event": self.event_key,
            "node_signature": self.sign(_NODE + public),
            "rotations": [asdict(rotation) for rotation in self.rotations],
        }
        if invitation:
            bundle["invitation"] = invitation
        write_atomically(path, (json.dumps(bundle, indent=2) + "\n").encode())

    def _write(self, folder: Path) -> None:
        content = {
            "private": _openssh(self._event).decode(),
            "public": self.event_key,
            "rotations": [asdict(rotation) for rotation in self.rotations],
        }
        write_atomically(folder / EVENT_KEY, json.dumps(content).encode(), mode=0o600)


def read_public(path: Path) -> str:
    """The event key in a `site.pub`, as hexadecimal text.

    Raises:
        ConfigError: If the file is missing or something else.
    """
    try:
        event_key = json.loads(path.read_text(encoding="utf-8"))["event"]
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(event_key))
    except (OSError, KeyError, TypeError, ValueError):
        raise ConfigError(f"{path}: expected a site.pub, found none or a damaged one.") from None
    return str(event_key)


def is_successor(new: str, *, of: str, rotations: Sequence[Rotation]) -> bool:
    """Whether a chain of valid rotations leads from one event key to another, or they are equal."""
    current = of
    for rotation in rotations:
        if rotation.old == current and rotation.holds():
            current = rotation.new
    return current == new


def is_vouched_for(node_key: str, *, signature: str, event_key: str) -> bool:
    """Whether the holder of an event key signed this node key as its own.

    Args:
        node_key: Public key as OpenSSH text without a comment.
        signature: Hexadecimal text.
        event_key: Public key, hexadecimal text.
    """
    return is_signed(_NODE + node_key.encode(), signature=signature, event_key=event_key)


def _write_node_key(path: Path) -> None:
    # The curve that Flower's node authentication asks for.
    key = ec.generate_private_key(ec.SECP384R1())
    write_atomically(path, _openssh(key), mode=0o600)


def _next_node_key(folder: Path, *, event_key: str) -> Path:
    """Where the node key waits until the event key that it belongs to is in its place."""
    return folder / f"{NODE_KEY}.{event_key}"


def _take_next_node_key(folder: Path, *, event_key: str) -> None:
    # Another process that reads the keys may have been faster.
    with suppress(FileNotFoundError):
        _next_node_key(folder, event_key=event_key).replace(folder / NODE_KEY)
        sync_folder(folder)


def _openssh(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )


def _hex(key: Ed25519PublicKey) -> str:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex()
