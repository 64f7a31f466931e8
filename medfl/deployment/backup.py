"""`Backup`: one file with what cannot be made again of a site or a server, and how to restore it.

The file is a tar archive without compression, so that any tool can look into it: first a manifest,
which names every member with its size and SHA-256, then the members. It holds private keys and is
written for its owner only. The digests reveal damage, not forgery: anyone who can write the file
has the keys as well, so guard it as you guard them.

A backup is read and checked as a whole before anything is restored, and is restored as a whole or
not at all: into a draft beside the new folder, which then takes the folder's name.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, ValidationError

from medfl.config.files import Section
from medfl.deployment.lock import is_held
from medfl.durable import sync_folder, write_atomically, written_aside
from medfl.errors import ConfigError, FederationError
from medfl.version import __version__

FORMAT = 1
"""Changes with what a backup holds and where that goes."""

MANIFEST = "manifest.json"
MAX_BYTES = 2**30
"""Of all members together; ledgers and rosters are some megabytes."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Member(Section):
    """One file of a backup."""

    size: Annotated[int, Field(ge=0, le=MAX_BYTES)]
    sha256: Sha256


class Manifest(Section):
    """What a backup says of itself.

    Attributes:
        format: `FORMAT` of the version that wrote it.
        kind: Whose it is.
        identity: What tells this site or server from every other one, for as long as it is used.
        name: What people call it.
        folder: Where it was.
        date: When it was made.
        medfl: By which version.
        members: Every file, by its path in the folder.
    """

    format: int
    kind: Literal["site", "server"]
    identity: Sha256
    name: str
    folder: Path
    date: AwareDatetime
    medfl: str
    members: dict[str, Member]

    @property
    def day(self) -> str:
        """When it was made, for people."""
        return f"{self.date:%Y-%m-%d %H:%M} UTC"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a backup of one kind holds.

    Attributes:
        name: Whose it is.
        required: Members without which it is none.
        optional: Members that it may have.
        lock: File in the folder that is held while it is in use.
    """

    name: Literal["site", "server"]
    required: frozenset[str]
    optional: frozenset[str]
    lock: str


@dataclass(frozen=True, kw_only=True)
class Backup:
    """A backup whose members are all there and whole."""

    path: Path
    manifest: Manifest
    members: Mapping[str, bytes]


def write_backup(
    path: Path,
    *,
    kind: Kind,
    identity: str,
    name: str,
    folder: Path,
    members: Mapping[str, bytes],
) -> Manifest:
    """Write a backup for its owner only, whole or not at all.

    Args:
        path: A new file.
        kind: Whose it is.
        identity: See `Manifest`.
        name: What people call it.
        folder: Where the members come from.
        members: Content by path.

    Raises:
        ConfigError: If the file exists, or the members are too many or too few.
        OSError: If it cannot be written.
    """
    require_new_file(path)
    total = sum(map(len, members.values()))
    if total > MAX_BYTES:
        raise ConfigError(f"{folder}: expected at most {MAX_BYTES} bytes to keep, found {total}.")
    _require_complete(members, kind=kind, where=folder)
    manifest = Manifest(
        format=FORMAT,
        kind=kind.name,
        identity=identity,
        name=name,
        folder=folder,
        date=datetime.now(UTC).replace(microsecond=0),
        medfl=__version__,
        members={
            name: Member(size=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in sorted(members.items())
        },
    )
    with written_aside(path) as draft:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with (
            os.fdopen(descriptor, "wb") as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            _add(archive, MANIFEST, manifest.model_dump_json(indent=1).encode(), manifest.date)
            for name in manifest.members:
                _add(archive, name, members[name], manifest.date)
    return manifest


def require_new_file(path: Path) -> None:
    """Refuse a name that something has already.

    Raises:
        ConfigError: If it has.
    """
    if os.path.lexists(path):
        raise ConfigError(f"{path}: expected a new file, found one that exists.")


def read_backup(path: Path, *, kind: Kind) -> Backup:
    """Read a backup and check all of it; nothing is written.

    Args:
        path: The file.
        kind: Whose it has to be.

    Raises:
        ConfigError: If it is none, of something else, of another format, or damaged, or if it holds
            anything but plain files under the names that such a backup has.
    """
    try:
        with tarfile.open(path, mode="r:") as archive:
            entries = iter(archive)
            manifest = _manifest(path, archive, next(entries, None), kind=kind)
            members: dict[str, bytes] = {}
            for entry in entries:
                members[entry.name] = _content(path, archive, entry, manifest, members)
    except (tarfile.TarError, OSError, EOFError) as error:
        # Files of other kinds end here too.
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: expected a backup, found: {reason}.") from None
    lost = sorted(manifest.members.keys() - members.keys())
    if lost:
        raise ConfigError(f"{path}: expected all members of its manifest, found no {lost[0]}.")
    _require_complete(members, kind=kind, where=path)
    return Backup(path=path, manifest=manifest, members=members)


@contextmanager
def restoring(backup: Backup, folder: Path) -> Iterator[Path]:
    """Restore into a draft, which becomes `folder` when the `with` block ends well.

    Args:
        backup: What is restored.
        folder: New or empty.

    Yields:
        The draft, with all members in it, to be looked at and completed.

    Raises:
        ConfigError: If there is something already, or the folder above cannot be written.
        OSError: If something cannot be written; nothing is left then.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder}: expected a new or empty folder, found files; they are never replaced."
        )
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}")
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(
            f"{folder}: expected a folder that this account can make, found: {error.strerror}. "
            "Restore as root and give the folder to medfl's account with chown, or restore into a "
            "new folder below one of its own."
        ) from None
    try:
        for name, content in backup.members.items():
            path = draft / name
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_atomically(path, content, mode=0o600)
        yield draft
        sync_folder(draft)
        os.rename(draft, folder)  # noqa: PTH104  fails unless `folder` is new or empty
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def require_not_running(folder: Path, *, kind: Kind) -> None:
    """Refuse to restore what runs on this machine; where nobody can know, nothing is refused.

    Args:
        folder: Where it was, or is.
        kind: What it is.

    Raises:
        FederationError: If it runs there.
    """
    with suppress(OSError):  # of another account, or of another machine
        if is_held(folder / kind.lock):
            raise FederationError(
                f"{folder}: this {kind.name} is running. Two copies of it must never run: stop "
                "this one first, or keep using it."
            )


def _add(archive: tarfile.TarFile, name: str, content: bytes, date: datetime) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(content), 0o600, int(date.timestamp())
    archive.addfile(entry, io.BytesIO(content))


def _manifest(
    path: Path, archive: tarfile.TarFile, entry: tarfile.TarInfo | None, *, kind: Kind
) -> Manifest:
    if entry is None or entry.name != MANIFEST:
        raise ConfigError(f"{path}: expected a backup, found no {MANIFEST} at its beginning.")
    text = _read(path, archive, entry)
    try:
        # Alone and first: another format may have other keys.
        found = _Format.model_validate_json(text).format
    except ValidationError:
        found = 0
    if found != FORMAT:
        raise ConfigError(
            f"{path}: expected a backup of format {FORMAT}, found {found or 'none'}. Restore it "
            "with the version of medfl that made it."
        )
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError:
        raise ConfigError(f"{path}: expected a backup's manifest, found a damaged one.") from None
    if manifest.kind != kind.name:
        raise ConfigError(
            f"{path}: expected a backup of a {kind.name}, found one of a {manifest.kind}."
        )
    strange = sorted(manifest.members.keys() - kind.required - kind.optional)
    if strange:
        raise ConfigError(
            f"{path}: expected nothing but what a {kind.name}'s backup holds, found {strange[0]!r}."
        )
    return manifest


class _Format(Section):
    model_config = Section.model_config | {"extra": "ignore"}

    format: int


def _content(
    path: Path,
    archive: tarfile.TarFile,
    entry: tarfile.TarInfo,
    manifest: Manifest,
    members: Mapping[str, bytes],
) -> bytes:
    stated = manifest.members.get(entry.name)
    if stated is None or entry.name in members:
        noun = "a second" if stated else "an unexpected"
        raise ConfigError(
            f"{path}: expected each member of its manifest once, found {noun} {entry.name[:200]!r}."
        )
    content = _read(path, archive, entry)
    if len(content) != stated.size or hashlib.sha256(content).hexdigest() != stated.sha256:
        raise ConfigError(
            f"{path}: expected {entry.name} as its manifest states it, found other bytes; the file "
            "is damaged. Take another backup."
        )
    return content


def _read(path: Path, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    if entry.type != tarfile.REGTYPE or entry.size > MAX_BYTES:
        raise ConfigError(
            f"{path}: expected plain files of at most {MAX_BYTES} bytes, found {entry.name[:200]!r}"
            f" of type {entry.type!r} with {entry.size} bytes."
        )
    file = archive.extractfile(entry)
    return file.read() if file is not None else b""


def _require_complete(members: Mapping[str, bytes], *, kind: Kind, where: Path) -> None:
    missing = sorted(kind.required - members.keys())
    if missing:
        raise ConfigError(f"{where}: expected all that a {kind.name} needs, found no {missing[0]}.")
