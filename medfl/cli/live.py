"""Live progress of a run: rounds, steps, and each site's epsilon against its budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from medfl.protocol.messages import Declaration, Scores
    from medfl.runs.attendance import Absence
    from medfl.runs.records import Round
    from medfl.runs.waiting import Waiting


class LiveProgress:
    """Bars on a terminal; one line a round anywhere else, so that a log file reads well.

    Args:
        console: Where to show it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}", justify="right"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._phase = self._bars.add_task("", total=None, shown="")
        self._sites: dict[str, TaskID] = {}
        self._epsilon: dict[str, str] = {}
        self._rounds = 0
        self._part = ""
        self._last_tenth = 0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def phase(self, name: str) -> None:
        """Name what is going on."""
        self._part, self._last_tenth = name, 0
        self._console.print(f"[bold]{name}[/bold]")
        for task in self._sites.values():
            self._bars.remove_task(task)
        self._sites.clear()
        self._bars.reset(self._phase, description=name, total=None, shown="")

    def awaited(self, waiting: Waiting) -> None:
        """Say who has connected and who has not."""
        missing = ", ".join(waiting.missing)
        until = "" if waiting.deadline else ", however long that takes"
        self._console.print(
            f"  {waiting.phase}: {len(waiting.answered)} of {len(waiting.asked)}"
            + (f"; waiting for {missing}{until}" if missing else ""),
            highlight=False,
            markup=False,
        )

    def left_out(self, absent: Mapping[str, Absence]) -> None:
        """Name every site that takes no part, and why."""
        for name, absence in absent.items():
            self._console.print(
                f"  {name} takes no part: {absence.reason}",
                style="bold red",
                highlight=False,
                markup=False,
            )

    def planned(self, declarations: Sequence[Declaration], *, rounds: int) -> None:
        """Say what was agreed."""
        self._rounds = rounds
        for declaration in declarations:
            mechanism = declaration.mechanism
            self._console.print(
                f"  {declaration.site}: {declaration.declared_patients} patients, "
                f"sigma {mechanism.noise_multiplier:.3f}, epsilon after the study "
                f"{declaration.epsilon:.2f} of {declaration.epsilon_budget:g}",
                highlight=False,
            )

    def advanced(self, done: int, total: int) -> None:
        """Move the bar of the phase."""
        self._bars.update(self._phase, completed=done, total=total, shown=f"{done}/{total} steps")
        tenth = 10 * done // total
        if not self._console.is_terminal and tenth > self._last_tenth:
            self._last_tenth = tenth
            self._console.print(f"  {self._part}: {done}/{total} steps", highlight=False)

    def stepped(self, site: str, done: int, total: int) -> None:
        """Move the bar of a site."""
        if site not in self._sites:
            self._sites[site] = self._bars.add_task(site, total=total, shown="")
        shown = f"step {done}/{total}  {self._epsilon.get(site, '')}"
        self._bars.update(self._sites[site], completed=done, total=total, shown=shown)

    def round_finished(self, record: Round) -> None:
        """Show every site's epsilon, and who was lost."""
        parts = []
        for site, outcome in record.sites.items():
            self._epsilon[site] = f"epsilon {outcome.epsilon:.2f}/{outcome.budget:g}"
            lost = "" if outcome.outcome == "admitted" else f" ({outcome.outcome}: {outcome.code})"
            parts.append(f"{site} {outcome.epsilon:.2f}/{outcome.budget:g}{lost}")
        self._bars.update(
            self._phase,
            completed=record.round,
            total=self._rounds,
            shown=f"round {record.round}/{self._rounds}",
        )
        if not self._console.is_terminal or any("(" in part for part in parts):
            self._console.print(
                f"  round {record.round}/{self._rounds}  {record.seconds:.1f} s  epsilon "
                + "  ".join(parts),
                highlight=False,
            )

    def scored(self, round_number: int, scores: Sequence[Scores]) -> None:
        """Show the mean Dice by region."""
        by_region: dict[str, list[float]] = {}
        for of_site in scores:
            for score in of_site.scores:
                by_region.setdefault(score.region, []).append(score.dice)
        if by_region:
            shown = "  ".join(f"{name} {fmean(dice):.3f}" for name, dice in by_region.items())
            self._console.print(
                f"  held-out Dice after round {round_number}: {shown}", highlight=False
            )
