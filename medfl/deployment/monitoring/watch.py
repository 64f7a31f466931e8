"""`monitored`: a page and a hook beside a running site or server, as its file asks for them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Generic, TypeVar

from medfl.config.monitoring import Monitoring
from medfl.deployment.addresses import LOOPBACK
from medfl.deployment.monitoring.events import Happenings, Told
from medfl.deployment.monitoring.hook import Hook
from medfl.deployment.monitoring.metrics import Metric, Readings, Sample
from medfl.deployment.monitoring.page import HEALTH, METRICS, Page
from medfl.deployment.monitoring.report import Health

LOOK_SECONDS = 10.0
"""How often events are looked for."""

TOLD = "events-told.json"
"""What the hook was told, in the folder of the site or server."""

_END_SECONDS = 5.0

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Watched(Generic[T]):
    """What is watched.

    Attributes:
        side: ``site`` or ``server``.
        name: Of the site, or of the federation.
        metrics: The families of its numbers.
        read: How it is now.
        health: Whether that is well.
        samples: The numbers in it.
        events: What of it, and of what happened since a moment, is to be told.
    """

    side: str
    name: str
    metrics: tuple[Metric, ...]
    read: Callable[[], T]
    health: Callable[[T], Health]
    samples: Callable[[T], Iterable[Sample]]
    events: Callable[[T, datetime], Happenings]


@contextmanager
def monitored(
    watched: Watched[T], *, settings: Monitoring, folder: Path, say: Callable[[str], None]
) -> Iterator[None]:
    """Serve the page and look for events within a `with` block; nothing where nothing is asked.

    Args:
        watched: The site or server.
        settings: What its file asks for.
        folder: Where is kept what was told.
        say: Tells the person at the terminal, or the log.

    Raises:
        ConfigError: If the page cannot listen.
    """
    with ExitStack() as stack:
        if settings.port is not None:
            readings = Readings(watched.metrics, read=lambda: watched.samples(watched.read()))
            page = Page(
                settings.port, readings=readings, health=lambda: watched.health(watched.read())
            )
            stack.enter_context(closing(page))
            say(
                f"Monitoring on this machine only: http://{LOOPBACK}:{page.port}{METRICS} and "
                f"{HEALTH}."
            )
        if settings.hook:
            stack.enter_context(closing(_Watch(watched, settings=settings, folder=folder, say=say)))
        yield


class _Watch(Generic[T]):
    """Looks for events, in a thread of its own, and tells the hook."""

    def __init__(
        self,
        watched: Watched[T],
        *,
        settings: Monitoring,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._watched = watched
        self._say = say
        self._told = Told(folder / TOLD)
        self._hook = Hook(settings, side=watched.side, name=watched.name)
        self._closed = threading.Event()
        self._trouble = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more; a hook that runs is ended."""
        self._closed.set()
        self._hook.close()
        self._thread.join(timeout=_END_SECONDS)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._look()
                self._trouble = ""
            except Exception as error:  # noqa: BLE001  whatever it is, training goes on
                trouble = type(error).__name__
                if trouble != self._trouble:
                    self._say(f"Monitoring cannot look for events now: {trouble}: {error}")
                self._trouble = trouble
            self._closed.wait(LOOK_SECONDS)

    def _look(self) -> None:
        now = self._watched.events(self._watched.read(), self._told.began)
        for event in self._told.news(now):
            if self._closed.is_set():
                return
            self._told.note(event)
            failure = self._hook.tell(event)
            if failure:
                self._say(f"The monitoring hook could not be told of {event.code}: {failure}.")
