"""What the status of a site and of a server have in common, and how their schema is written down.

A status is read by programs of others, so its form is a promise: it has a version, which changes
when a key goes or means something else, and a JSON schema, which a test holds to the code.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

VERSION: Literal[1] = 1
"""Of the form of a status; keys may be added without a new one."""


class Part(BaseModel):
    """A part of a status."""

    model_config = ConfigDict(frozen=True)


class Health(Part):
    """Whether somebody should look.

    Attributes:
        status: ``ok``, or ``failing``.
        reasons: Why, by fixed words; empty where all is well.
    """

    status: Literal["ok", "failing"]
    reasons: tuple[str, ...]

    @classmethod
    def of(cls, *reasons: str) -> Health:
        """The health that these reasons make."""
        return cls(status="failing" if reasons else "ok", reasons=reasons)


class Status(Part):
    """The beginning of every status.

    Attributes:
        version: Of the form.
        health: Whether somebody should look.
        disk_free_bytes: Free where the state lies; null where nobody can tell.
    """

    version: Literal[1] = VERSION
    health: Health
    disk_free_bytes: Annotated[int, Field(ge=0)] | None


def free_bytes(*folders: Path) -> int | None:
    """The least that is free of the disks of some folders; None where nobody can tell."""
    found = []
    for folder in folders:
        with suppress(OSError):
            found.append(shutil.disk_usage(folder).free)
    return min(found, default=None)


def schema_text(status: type[Status]) -> str:
    """The JSON schema of a status, as its file holds it."""
    schema = status.model_json_schema(mode="serialization")
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return json.dumps(schema, indent=2) + "\n"
