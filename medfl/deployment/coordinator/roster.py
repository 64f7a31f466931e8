"""`Roster`: every hospital that was ever invited, admitted or revoked, and every key that it had.

A name stays reserved permanently, and so does a key: Flower accepts no key again after its node was
unregistered, and one hospital's key must never speak for another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from medfl.config.files import Section
from medfl.config.site import Name
from medfl.deployment.admission import AdmittedSite, Bundle
from medfl.durable import write_atomically
from medfl.errors import ConfigError
from medfl.protocol.keys import is_successor

State = Literal["invited", "admitted", "revoked"]


class Entry(Section):
    """One thing that happened to a hospital.

    Attributes:
        at: When.
        state: What it is since then; keys that were exchanged are admitted anew.
        node_key: Key that was admitted; empty for other entries.
        event_key: Likewise.
        code: Code of the invitation that was written, or that was fulfilled.
        reason: Why it was revoked.
    """

    at: datetime
    state: State
    node_key: str = ""
    event_key: str = ""
    code: str = ""
    reason: str = ""

    @property
    def site(self) -> AdmittedSite:
        """The keys that were admitted."""
        return AdmittedSite(node_key=self.node_key, event_key=self.event_key)


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """A hospital's name, and what happened to it, oldest first; never empty."""

    name: str
    history: tuple[Entry, ...]

    @property
    def state(self) -> State:
        """What it is now."""
        return self.history[-1].state

    @property
    def since(self) -> datetime:
        """Since when it is that."""
        return self.history[-1].at

    @property
    def admissions(self) -> tuple[Entry, ...]:
        """Every time that keys of it were admitted."""
        return tuple(entry for entry in self.history if entry.state == "admitted")

    @property
    def site(self) -> AdmittedSite | None:
        """Its newest keys, of a revoked hospital too; None before it has any."""
        return self.admissions[-1].site if self.admissions else None

    @property
    def invitation(self) -> Entry | None:
        """The newest invitation; None without one. A new one makes earlier ones void."""
        invited = [entry for entry in self.history if entry.state == "invited"]
        return invited[-1] if invited else None

    @property
    def reason(self) -> str:
        """Why it was revoked; empty if it was not."""
        return self.history[-1].reason

    def ever_had(self, site: AdmittedSite) -> bool:
        """Whether one of these keys is or was one of its own."""
        return any(
            site.node_key == entry.node_key or site.event_key == entry.event_key
            for entry in self.admissions
        )


class Roster:
    """All hospitals by name; changes give a new roster.

    Args:
        hospitals: By name.
    """

    def __init__(self, hospitals: Mapping[str, Hospital]) -> None:
        self._hospitals = dict(sorted(hospitals.items()))

    @classmethod
    def read(cls, path: Path) -> Roster:
        """Read a roster; an empty one where there is no file.

        Raises:
            ConfigError: If the file is damaged.
        """
        if not path.exists():
            return cls({})
        try:
            histories = _HISTORIES.validate_json(path.read_bytes())
        except ValidationError:
            raise ConfigError(f"{path}: expected admitted sites, found a damaged file.") from None
        return cls(
            {name: Hospital(name=name, history=history) for name, history in histories.items()}
        )

    def write(self, path: Path) -> None:
        """Replace the file (mode 0600)."""
        histories = {hospital.name: hospital.history for hospital in self}
        text = _HISTORIES.dump_json(histories, indent=2, exclude_defaults=True)
        write_atomically(path, text + b"\n", mode=0o600)

    def __iter__(self) -> Iterator[Hospital]:
        return iter(self._hospitals.values())

    def __getitem__(self, name: str) -> Hospital:
        return self._hospitals[name]

    def admitted(self) -> dict[str, AdmittedSite]:
        """The newest keys of every site that may take part, by name."""
        return {
            hospital.name: hospital.admissions[-1].site
            for hospital in self
            if hospital.state == "admitted"
        }

    def invite(self, name: str, *, code: str) -> Roster:
        """Reserve a name for a hospital.

        Args:
            name: The hospital's name.
            code: What its `site.pub` will name.

        Raises:
            ConfigError: If no site can have the name, or if it is admitted or revoked already.
        """
        _require_name(name)
        known = self._hospitals.get(name)
        if known is not None and known.state != "invited":
            raise ConfigError(
                f"Expected a new name, found {name!r}, which is {known.state} already."
            )
        return self._with(name, Entry(at=_now(), state="invited", code=code))

    def admit(self, bundle: Bundle, *, name: str) -> Roster:
        """Bind keys to a hospital's name, or follow a rotation of the keys that it has.

        Args:
            bundle: The hospital's `site.pub`.
            name: The hospital's name.

        Raises:
            ConfigError: If the name or one of the keys is taken, if the hospital was revoked, if
                the keys answer another invitation, or if nothing proves that they follow from
                those that are admitted.
        """
        _require_name(name)
        known = self._hospitals.get(name)
        for other in self:
            if other.name != name and other.ever_had(bundle.site):
                raise ConfigError(
                    f"Expected keys of its own for {name!r}, found one of {other.name!r}: every "
                    "hospital makes its keys with `medfl site init`."
                )
        self._require_invited(bundle, name=name)
        if known is not None and known.state == "revoked":
            raise ConfigError(
                f"Expected a hospital that may take part, found {name!r}, revoked on "
                f"{known.since:%Y-%m-%d} ({known.reason}). The name stays reserved: admit the "
                "hospital under a new one, with new keys."
            )
        if known is not None and known.state == "admitted":
            _require_successor(bundle, known=known)
        entry = Entry(
            at=_now(),
            state="admitted",
            node_key=bundle.site.node_key,
            event_key=bundle.site.event_key,
            code=bundle.invitation,
        )
        return self._with(name, entry)

    def revoke(self, name: str, *, reason: str) -> Roster:
        """Shut out a hospital, or cancel an invitation, permanently.

        Args:
            name: The hospital's name.
            reason: For the record.

        Raises:
            ConfigError: If nobody has the name, if it was revoked already, or without a reason.
        """
        known = self._hospitals.get(name)
        if known is None or known.state == "revoked":
            names = [hospital.name for hospital in self if hospital.state != "revoked"]
            raise ConfigError(
                f"Expected one of {names}, found {name!r}"
                + (", which is revoked already." if known else ".")
            )
        if not reason.strip():
            raise ConfigError("Expected a reason, found none.")
        return self._with(name, Entry(at=_now(), state="revoked", reason=reason.strip()))

    def _with(self, name: str, entry: Entry) -> Roster:
        known = self._hospitals.get(name)
        history = (*(known.history if known else ()), entry)
        return Roster({**self._hospitals, name: Hospital(name=name, history=history)})

    def _require_invited(self, bundle: Bundle, *, name: str) -> None:
        """A code is no secret: it only shows when the file of one hospital got another's name."""
        if not bundle.invitation:
            return
        known = self._hospitals.get(name)
        if known and known.invitation and known.invitation.code == bundle.invitation:
            return
        raise ConfigError(
            f"Expected a site.pub that answers the newest invitation of {name!r}, or none, found "
            f"one that answers the invitation {bundle.invitation!r}."
        )


_HISTORIES = TypeAdapter(dict[str, Annotated[tuple[Entry, ...], Field(min_length=1)]])


def _require_name(name: str) -> None:
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise ConfigError(
            "Expected a site's name of 1 to 40 letters, digits, '-' or '_', starting with no sign, "
            f"found {name!r}."
        ) from None


def _require_successor(bundle: Bundle, *, known: Hospital) -> None:
    current, new = known.admissions[-1].site, bundle.site
    if new == current:
        raise ConfigError(f"Expected new keys, found those that are admitted as {known.name!r}.")
    followed = is_successor(new.event_key, of=current.event_key, rotations=bundle.rotations)
    # The event key that is known already beside another node key follows from nothing.
    if known.ever_had(new) or not followed:
        raise ConfigError(
            f"Expected a new name, or a site.pub whose keys follow from those of {known.name!r} "
            "(`medfl site rotate` signs the new ones with the old), found one that proves neither. "
            "A hospital that has lost its keys is revoked, and admitted under a new name."
        )


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
