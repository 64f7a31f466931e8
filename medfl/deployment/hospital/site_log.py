"""A site's log: everything its processes say goes to a file of limited size, the rest to nobody.

One process writes, since a file cannot be rotated by several. What could identify a patient is
taken out of every line, whoever wrote it: `medfl check` names the files for who may see them. The
terminal, and so systemd's journal, shows warnings, errors and what medfl itself says.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

from medfl.config.site import SiteData
from medfl.data.layouts.rules import rule_of
from medfl.data.layouts.survey import survey_cohort
from medfl.deployment.flower.log_lines import CONNECTED, FORGOTTEN, OWN, UNCONNECTED
from medfl.site.state_folder import LOGS

FILE_BYTES = 10_000_000
OLD_FILES = 5

_ESSENTIAL = 25  # between logging's INFO and WARNING
_PATIENT = "[patient]"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LEVEL = re.compile(rf"(DEBUG|INFO|WARNING|ERROR|CRITICAL|{OWN})\b\s*:?\s*")


class SiteLog:
    """The log of one running site.

    Args:
        state: The site's state folder.
        data: Where its images are.

    Attributes:
        path: The file.
        redacted: Takes patients out of a text.
    """

    def __init__(self, state: Path, *, data: SiteData) -> None:
        folder = state / LOGS
        folder.mkdir(mode=0o700, exist_ok=True)
        self.path = folder / "site.log"
        self.redacted = Redaction(data)
        self._logger = logging.Logger("site")  # noqa: LOG001  one for each site, and of nobody else
        file = _PrivateFile(self.path, maxBytes=FILE_BYTES, backupCount=OLD_FILES)
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        terminal = logging.StreamHandler(sys.stderr)
        terminal.setLevel(_ESSENTIAL)
        self._logger.addHandler(file)
        self._logger.addHandler(terminal)

    def say(self, text: str) -> None:
        """Tell the person at the terminal."""
        self._logger.log(_ESSENTIAL, self.redacted(f"{OWN}: {text}"))

    def note(self, text: str) -> None:
        """Write to the file only."""
        self._logger.info(self.redacted(f"{OWN}: {text}"))

    def close(self) -> None:
        """Close the file."""
        for handler in self._logger.handlers:
            handler.close()

    def follow(
        self, lines: Iterable[str], *, notice: Callable[[str], None] = lambda _: None
    ) -> None:
        """Log the lines of a process until it ends; a line without a level goes on the last one.

        Args:
            lines: What it writes.
            notice: Is shown each line.
        """
        level = logging.INFO
        for line in lines:
            text = _COLOUR.sub("", line).rstrip()
            notice(text)
            found = _LEVEL.match(text)
            if found:
                level = logging.INFO if _is_usual(found[1], text) else _ESSENTIAL
            if text and not (found and found.end() == len(text)):
                self._logger.log(level, "%s", self.redacted(text))


def _is_usual(level: str, text: str) -> bool:
    if UNCONNECTED.search(text) or FORGOTTEN.search(text):
        return True  # the first is said with its reason; see `Way`
    return level in ("DEBUG", "INFO") and not CONNECTED.search(text)


class Redaction:
    """Takes patients out of a line of text.

    Args:
        data: Where the site's images are; the names of its folders are read once.
    """

    def __init__(self, data: SiteData) -> None:
        rule = rule_of(data)
        survey = survey_cohort(data)
        problems = (*survey.problems, *survey.left_out)
        names = {problem.patient_id for problem in problems if problem.patient_id}
        for patient in survey.patients:
            names |= {patient.patient_id, *(case.case_id for case in patient.cases)}
        # And folders that the layout does not know; its own, as `imagesTr`, are nobody.
        own = {name for path in rule.paths for name in path.split("/")}
        places = [place for root in data.roots for place in (root, *(root / n for n in own))]
        for parent in places:
            if os.access(parent, os.R_OK) and parent.is_dir():
                names |= {path.name for path in parent.iterdir() if path.is_dir()} - own
        # The longest first: a name may begin with another one.
        listed = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        patterns = [rf"(?<![A-Za-z0-9])(?:{listed})(?![A-Za-z0-9])"] if listed else []
        general = rule.case or rule.patient
        # A name that is any word or number cannot be told from one.
        if not any(re.fullmatch(general, word) for word in ("word", "7", "2026")):
            patterns.append(general)
        self._patients = re.compile("|".join(patterns) or r"(?!)")
        folders = {folder for root in data.roots for folder in (root, root.resolve())}
        roots = "|".join(re.escape(str(folder)) for folder in sorted(folders, reverse=True))
        self._files = re.compile(rf"({roots})/[^\s'\"]*")

    def __call__(self, line: str) -> str:
        """The line without patients: their names, and every path below the images."""
        return self._files.sub(r"\1/...", self._patients.sub(_PATIENT, line))


class _PrivateFile(RotatingFileHandler):
    """Files that only their owner reads."""

    def _open(self) -> TextIO:  # type: ignore[override]
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return os.fdopen(descriptor, "a", encoding="utf-8")
