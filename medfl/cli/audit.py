"""The command that attacks what medfl promises."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from medfl.cli.advance import shown_advance
from medfl.config import load_site
from medfl.errors import PrivacyError
from medfl.json_text import to_json
from medfl.reporting.audit_words import finding, meaning, promise

if TYPE_CHECKING:
    from medfl.audit.run_audit import Audit, InstallationAudit
    from medfl.audit.sensitivity import PathSensitivity


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(audit)


def audit(
    run_dir: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN_DIR]",
            help="The folder of a finished run. Without it only the installation is attacked.",
        ),
    ] = None,
    sites: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[SITE.toml...]",
            help="The run's site files (open data only): adds attacks on their patients.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Attack this installation and a finished run, and compare the findings with the promise.

    Measures the engine's noise and draws, removes patients one at a time to see what else changes,
    reads an update bit by bit, and looks for canary patients in a small federation, for members of
    the run in the losses of its model, and for a synthetic patient in one update. Each attack is
    printed with the most that it could have shown. The results are added to the run folder and its
    report. The exit code is 3 if one of them contradicts the promise.
    """
    files = [load_site(path) for path in sites or []]
    from medfl.audit.run_audit import audit_installation, audit_run
    from medfl.protocol.flower_log import quiet_flower
    from medfl.reporting.report import write_report

    quiet_flower()
    with shown_advance(transient=True) as advance:
        if run_dir is None:
            found = audit_installation(clipping="normalised", advance=advance)
        else:
            found = audit_run(run_dir, files, advance=advance)
    if as_json:
        typer.echo(to_json(found.to_dict(), indent=2))
    else:
        Console().print(_table(found))
    if run_dir is not None:
        page = write_report(run_dir)
        if not as_json:
            typer.echo(f"Report: {page}")
    if not found.passed:
        raise PrivacyError("Expected what is promised, found an attack that beats it.")


def _table(found: InstallationAudit) -> Table:
    from medfl.audit.run_audit import Audit

    table = Table(title="Audit", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("attack", "promised", "shown", "largest showable", ""):
        table.add_column(heading, justify="left" if heading in ("attack", "") else "right")
    rows = _rows(found)
    if isinstance(found, Audit):
        rows += _rows_of_run(found)
    for row in rows:
        table.add_row(*row)
    return table


def _rows(found: InstallationAudit) -> list[tuple[str, str, str, str, str]]:
    """Attack, promised, shown, largest showable, verdict."""
    canaries = found.canaries
    shown, most, estimate = canaries.shown, canaries.largest_showable, canaries.estimate
    verdict = _verdict(canaries.consistent)
    table = [
        (meaning(figure), promise(figure), finding(figure), "", _verdict(figure.holds))
        for figure in found.mechanism.figures
    ]
    table += _rows_of_path(found.path, where="tiny federation")
    table.append(
        (
            f"values off the grid in an update of {found.update.weights:,} weights",
            "0",
            f"{found.update.off_grid:,}",
            "",
            _verdict(found.update.keeps_promise),
        )
    )
    claimed = f"<= {canaries.claimed_epsilon:.2f}"
    table += [
        (
            "canaries, epsilon (one run)",
            claimed,
            _bound(shown.epsilon),
            _bound(most.epsilon),
            verdict,
        ),
        (
            "canaries, mu (f-DP, one run)",
            f"<= {canaries.claimed_mu:.2f}",
            _bound(shown.mu),
            _bound(most.mu),
            verdict,
        ),
        (
            "canaries, epsilon (an estimate)",
            claimed,
            f"{estimate.epsilon:.2f} ({estimate.epsilon_low:.2f} to {estimate.epsilon_high:.2f})",
            "no bound",
            "",
        ),
    ]
    return table


def _rows_of_path(path: PathSensitivity, *, where: str) -> list[tuple[str, str, str, str, str]]:
    verdict = _verdict(path.keeps_promise)
    unknown = path.off_grid + path.failures
    return [
        (
            f"one patient of {path.removals} taken away, {where}, / C",
            "<= 1",
            f"{path.largest:.4f}",
            "",
            verdict,
        ),
        (
            f"rounds of {path.worlds} in which others changed, {where}",
            "0",
            f"{path.changed}" + (f" ({unknown} values unknown)" if unknown else ""),
            "",
            verdict,
        ),
    ]


def _rows_of_run(found: Audit) -> list[tuple[str, str, str, str, str]]:
    table = _rows_of_path(found.path_of_run, where="this run") if found.path_of_run else []
    for attack in found.membership:
        rates, promised = attack.rates, attack.largest_tpr < 1
        table.append(
            (
                f"members by loss, {attack.variant}, at 1 % FPR",
                f"<= {attack.largest_tpr:.2f}" if promised else "nothing",
                f"{rates.tpr:.2f} ({rates.tpr_low:.2f} to {rates.tpr_high:.2f})",
                "1.00",
                _verdict(attack.verdict == "consistent") if promised else "",
            )
        )
    inversion = found.inversion
    table.append(
        (
            "patient recovered from an update, r",
            "",
            f"{inversion.correlation_with_noise:.2f}",
            f"{inversion.correlation_without_noise:.2f}",
            "",
        )
    )
    return table


def _bound(value: float) -> str:
    return f">= {value:.2f}"


def _verdict(holds: bool) -> str:
    return "holds" if holds else "BROKEN"
