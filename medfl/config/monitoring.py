"""`Monitoring`: what a running site or server shows, and whom it calls when something is wrong.

Both sides have the same table, so that who looks after both learns it once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from medfl.config.files import Section

Port = Annotated[int, Field(ge=1, le=65535)]


class Monitoring(Section):
    """The table ``[monitoring]``; without it nothing listens and nothing is called.

    Attributes:
        port: TCP port of 127.0.0.1 for metrics and health; None for no page.
        hook: A program by its whole path, and its arguments; it is told of events and never goes
            through a shell. Empty for none.
        hook_seconds: How long it may take before it is ended.
        budget_left: Part of a budget; an event where less is left.
        certificate_days: Days; an event where a certificate ends sooner.
        disk_gigabytes: 10^9 bytes; an event where less is free.
    """

    port: Port | None = None
    hook: tuple[str, ...] = ()
    hook_seconds: Annotated[float, Field(gt=0, le=3600)] = 30.0
    budget_left: Annotated[float, Field(ge=0, le=1)] = 0.1
    certificate_days: Annotated[int, Field(ge=0, le=3650)] = 30
    disk_gigabytes: Annotated[float, Field(ge=0, le=1e6)] = 5.0

    @field_validator("hook")
    @classmethod
    def _hook_is_a_whole_path(cls, hook: tuple[str, ...]) -> tuple[str, ...]:
        # What a bare name means depends on the environment in which medfl is started.
        if hook and not Path(hook[0]).is_absolute():
            raise ValueError("expected a program by its whole path (/...), and its arguments")
        if any("\0" in word for word in hook):
            raise ValueError("expected a program and arguments without NUL characters")
        return hook
