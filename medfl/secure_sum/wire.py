"""Messages as JSON types, and back with every type and size checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medfl.errors import SecureSumError
from medfl.secure_sum.binding import DIGEST_BYTES, SIGNATURE_BYTES


def plain(value: object) -> object:
    """A value as JSON types; bytes as hexadecimal text."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def author(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of every signed message."""
    return {
        "site": field(content, "site", str),
        "terms": digest_text(content, "terms"),
        "signature": sized_bytes(content, "signature", SIGNATURE_BYTES).hex(),
    }


def digest_text(content: Mapping[str, Any], name: str) -> str:
    """A SHA-256 as hexadecimal text."""
    return sized_bytes(content, name, DIGEST_BYTES).hex()


def by_site(content: Mapping[str, Any], name: str, size: int) -> dict[str, bytes]:
    """Bytes of a fixed size by site."""
    values = field(content, name, dict)
    expect(all(is_name(site) for site in values), "names of sites")
    return {site: sized_bytes(values, site, size) for site in values}


def is_name(value: object) -> bool:
    """Whether a value may be a site's name."""
    # Half a surrogate pair, which JSON may hold, could not be encoded.
    return isinstance(value, str) and value.isprintable()


def sized_bytes(content: Mapping[str, Any], name: str, size: int) -> bytes:
    """Bytes of a fixed size."""
    text = field(content, name, str)
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    expect(len(found) == size, f"{size} bytes as hexadecimal text")
    return found


def field(content: Mapping[str, Any], name: str, kind: type) -> Any:
    """A field of one type."""
    value = content.get(name) if isinstance(content, Mapping) else None
    expect(isinstance(value, kind), f"a message with {name!r}")
    return value


def expect(holds: bool, rule: str) -> None:
    """Raise SecureSumError (secure-sum-message) unless a rule holds."""
    if not holds:
        raise SecureSumError(f"Expected {rule}.", code="secure-sum-message")
