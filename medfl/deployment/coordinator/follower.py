"""`Follower`: the progress of a run that another process works on, read off its folder."""

from __future__ import annotations

from medfl.errors import FederationError, ReportError
from medfl.runs.files import WAITING
from medfl.runs.waiting import Waiting
from medfl.server.progress import Progress
from medfl.server.run_folder import RunFolder
from medfl.study.pretraining_progress import read_progress

_LAST = "final model to the hospitals"


class Follower:
    """Tells a `Progress` what is new in a run folder.

    Args:
        folder: The run folder; what it holds already is not told again.
        rounds: Rounds of the study.
        progress: Who is told.
    """

    def __init__(self, folder: RunFolder, *, rounds: int, progress: Progress) -> None:
        self._folder = folder
        self._rounds = rounds
        self._progress = progress
        self._told = max((line.round for line in folder.rounds()), default=0)
        self._declared = len(folder.declarations())
        self._starts = len(folder.attendance())
        self._awaited = self._waiting()  # of an earlier start, if there is any
        self._phase = ""
        self._pretrained = read_progress(folder.path)

    def look(self) -> None:
        """Tell what came since the last look."""
        self._look_at_sites()
        try:
            declarations = self._folder.declarations()
            starts = self._folder.attendance()
            lines = self._folder.rounds()
        except FederationError:
            return  # a line is being written; the next look finds it whole
        new = [declaration for _, declaration in declarations[self._declared :]]
        if new:
            self._declared = len(declarations)
            self._progress.planned(new, rounds=self._rounds)
        for start in starts[self._starts :]:
            self._progress.left_out(start.absent)
        self._starts = len(starts)
        if (new or self._phase) and self._phase != _LAST:
            self._look_at_first_model()
        # A resumed run does again what came after its checkpoint.
        self._told = min(self._told, max((line.round for line in lines), default=0))
        for line in lines:
            if line.round > self._told:
                self._told = line.round
                self._progress.round_finished(line)
        if self._phase and (self._folder.path / "checkpoints" / "final.safetensors").exists():
            self._enter(_LAST)

    def _look_at_sites(self) -> None:
        """They are waited for before the first round of a start."""
        waiting = self._waiting()
        if waiting is not None and waiting.before_round and waiting != self._awaited:
            self._awaited = waiting
            self._progress.awaited(waiting)

    def _waiting(self) -> Waiting | None:
        try:
            return WAITING.read(self._folder.path)
        except ReportError:
            return None  # nobody is waited for

    def _look_at_first_model(self) -> None:
        """It is made when the sites have agreed, perhaps by a pretraining; then rounds begin."""
        if (self._folder.path / "checkpoints" / "initial.safetensors").exists():
            self._enter("rounds")
            return
        self._enter("first model")
        pretrained = read_progress(self._folder.path)
        if pretrained is not None and pretrained != self._pretrained:
            self._pretrained = pretrained
            self._progress.advanced(*pretrained)

    def _enter(self, phase: str) -> None:
        if phase != self._phase:
            self._phase = phase
            self._progress.phase(phase)
