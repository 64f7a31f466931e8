"""Whether sites share patients, found out without telling anybody who the patients are.

Each site turns its patients' identifiers into tokens (HMAC-SHA256) under a study key that the sites
share among themselves and the server never sees. Anyone with the token files of several sites can
count the tokens that they share, and what is found is declared in the study file, so that the
losses of these sites are composed.

The check itself tells: how many patients each site has; how many of them two sites share; and to a
site that compares, which of its own they are. Anyone with the study key and a token file can test
guesses of identifiers, and all national numbers are quickly guessed: a token file goes to the other
sites only, over a channel that they trust, and is deleted afterwards together with the key. A
person who has different identifiers at two sites is not found, so nothing found proves nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import re
import secrets
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medfl.config.site import Name
from medfl.durable import write_atomically
from medfl.errors import ConfigError, DataError
from medfl.secret_files import require_owner_only
from medfl.text_files import read_table

COLUMNS = ("patient", "identifier")

_KEY_BYTES = 32
_MAX_BYTES = 100_000_000
_PATIENT = b"medfl overlap patient\0"
_CHECK = b"medfl overlap key check\0"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Tokens(BaseModel):
    """A token file: one site's patients, for the eyes of the other sites only.

    Attributes:
        site: Public name of the site.
        key_check: The same in all files made with one study key.
        tokens: One for each patient, sorted, so that their order tells nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["medfl overlap 1"] = "medfl overlap 1"
    site: Name
    key_check: Digest
    tokens: tuple[Digest, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _sorted(self) -> Self:
        if list(self.tokens) != sorted(set(self.tokens)):
            raise ValueError("expected distinct tokens in ascending order")
        return self


@dataclass(frozen=True, kw_only=True)
class SharedPatients:
    """How many patients two sites share."""

    sites: tuple[str, str]
    patients: int


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What a comparison found.

    Attributes:
        pairs: Every two sites, also those that share nobody.
        groups: The largest sets of sites at which one patient is: what a study file declares.
    """

    pairs: tuple[SharedPatients, ...]
    groups: tuple[tuple[str, ...], ...]


def create_key(path: Path) -> None:
    """Make a study key: 32 random bytes as hexadecimal text, which only the owner can read.

    Raises:
        ConfigError: If the file exists.
    """
    _require_new(path)
    write_atomically(path, f"{secrets.token_hex(_KEY_BYTES)}\n".encode(), mode=0o600)


def read_key(path: Path) -> bytes:
    """Read a study key.

    Returns:
        32 bytes.

    Raises:
        ConfigError: If it is missing or damaged, has another length, or others may read it.
    """
    if not path.is_file():
        raise ConfigError(
            f"{path}: expected a study key, found none. One site makes it with `medfl overlap key` "
            "and gives it to the others, never to the server."
        )
    require_owner_only(path)
    text = path.read_bytes().strip()
    if not re.fullmatch(rb"([0-9a-f]{2})*", text):
        raise ConfigError(f"{path}: expected a key in hexadecimal text, found a damaged file.")
    key = bytes.fromhex(text.decode("ascii"))
    if len(key) != _KEY_BYTES:
        raise ConfigError(f"{path}: expected a key of {_KEY_BYTES} bytes, found {len(key)}.")
    return key


def normalised(identifier: str) -> str:
    """An identifier as all sites write it: Unicode NFKC, upper case, letters and digits only."""
    # Upper case may take letters apart again, and a sign that goes may have parted what is one.
    upper = _composed(_composed(identifier).upper())
    return _composed("".join(character for character in upper if character.isalnum()))


def read_identifiers(path: Path) -> dict[str, str]:
    """Read a table that gives each patient of a site an identifier that other sites use too.

    Args:
        path: A table, as `read_table` reads it, with the columns ``patient`` and ``identifier``.

    Returns:
        Identifiers by patient.

    Raises:
        DataError: If it cannot be read or names a patient twice; the text quotes none of it.
    """
    try:
        body = [row for _, row in read_table(path, columns=COLUMNS)]
    except OSError as error:
        raise DataError(f"{path}: expected a readable file, found: {error.strerror}.") from None
    except ValueError as error:
        raise DataError(f"{path}: expected {error}, found something else.") from None
    _require_none(path, sum(len(row) != len(COLUMNS) for row in body), "lines of two values")
    found = {patient.strip(): identifier for patient, identifier in body}
    _require_none(path, len(body) - len(found), "one line a patient", found="more of them")
    return found


def make_tokens(
    *,
    site: str,
    patients: Iterable[str],
    key: bytes,
    identifiers: Mapping[str, str] | None = None,
) -> Tokens:
    """Turn a site's patients into tokens.

    Args:
        site: Public name of the site.
        patients: Names of all patients of the cohort.
        key: The study key.
        identifiers: By patient, also of others; None where the names themselves identify.

    Raises:
        DataError: If a patient has no identifier or an empty one, or if two share one; the text
            gives their number only.
    """
    names = list(patients)
    known = {name: name for name in names} if identifiers is None else identifiers
    missing = sum(name not in known for name in names)
    _require_none(site, missing, "an identifier for each patient", found="patients without one")
    used = [normalised(known[name]) for name in names]
    empty = used.count("")
    _require_none(site, empty, "identifiers with a letter or digit", found="without any")
    doubled = sum(count > 1 for count in Counter(used).values())
    _require_none(
        site, doubled, "an identifier of their own for each patient", found="that several share"
    )
    return Tokens(
        site=site,
        key_check=_hmac(key, _CHECK),
        tokens=tuple(sorted(_hmac(key, _PATIENT + identifier.encode()) for identifier in used)),
    )


def write_tokens(path: Path, tokens: Tokens) -> None:
    """Write a token file, which only the owner can read.

    Raises:
        ConfigError: If the file exists.
    """
    _require_new(path)
    write_atomically(path, f"{tokens.model_dump_json(indent=1)}\n".encode(), mode=0o600)


def read_tokens(path: Path) -> Tokens:
    """Read a token file.

    Raises:
        ConfigError: If it is missing, damaged or something else.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: expected a token file, found more than {_MAX_BYTES} bytes.")
        return Tokens.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: expected a token file, found: {error.strerror}.") from None
    except ValidationError:
        raise ConfigError(f"{path}: expected a token file, found a damaged one.") from None


def compare(files: Sequence[Tokens]) -> Overlap:
    """Count the patients whom sites share.

    Args:
        files: The tokens of two or more sites, made with one key.

    Raises:
        ConfigError: If there are fewer than two sites, one comes twice, or keys differ.
    """
    names = [file.site for file in files]
    if len(set(names)) < max(2, len(names)):
        raise ConfigError(f"Expected token files of two or more distinct sites, found {names}.")
    if len({file.key_check for file in files}) > 1:
        raise ConfigError(
            "Expected token files made with one study key, found several keys: no patient would "
            "be found in two of them."
        )
    sites_of: dict[str, set[str]] = defaultdict(set)
    for file in files:
        for token in file.tokens:
            sites_of[token].add(file.site)
    found = {frozenset(sites) for sites in sites_of.values() if len(sites) > 1}
    largest = [sites for sites in found if not any(sites < other for other in found)]
    return Overlap(
        pairs=tuple(
            SharedPatients(
                sites=(one.site, other.site), patients=len(set(one.tokens) & set(other.tokens))
            )
            for one, other in itertools.combinations(files, 2)
        ),
        groups=tuple(sorted(tuple(name for name in names if name in sites) for sites in largest)),
    )


def _composed(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _hmac(key: bytes, content: bytes) -> str:
    return hmac.new(key, content, hashlib.sha256).hexdigest()


def _require_new(path: Path) -> None:
    if path.exists():
        raise ConfigError(f"{path}: expected a new file, found one that exists.")


def _require_none(where: object, count: int, expected: str, *, found: str = "others") -> None:
    if count:
        raise DataError(f"{where}: expected {expected}, found {count} {found}.")
