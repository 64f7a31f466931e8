"""The table of an audit: every attack beside its promise and its ceiling."""

from __future__ import annotations

from medfl.reporting import wording
from medfl.reporting.audit_words import finding, meaning, promise
from medfl.reporting.tables import NOTHING, Table
from medfl.runs.audit_records import Audit, MembershipFindings, PathFindings

ATTACKED: dict[str, str] = {
    "federated": "the final model",
    "non-private": "the model trained without noise",
}


def audit_table(audit: Audit) -> Table:
    """Every attack: what is promised, what was found, and the most that it could have found."""
    mechanism, canaries = audit.mechanism, audit.canaries
    estimate = canaries.estimate
    return Table(
        caption="Attacks on purpose, beside what is promised",
        head=("Attack", "Promised", "Found", "The most it could have found", "Verdict"),
        rows=(
            *(
                (meaning(figure), promise(figure), finding(figure), NOTHING, _verdict(figure.holds))
                for figure in mechanism.figures
            ),
            *_path_rows(audit.path, where="a tiny federation"),
            *(
                _path_rows(audit.path_of_run, where="this run's sites")
                if audit.path_of_run is not None
                else ()
            ),
            (
                f"Values off the grid in an update of {audit.update.weights:,} weights, asked for "
                "with weights at zero",
                "0",
                f"{audit.update.off_grid:,}",
                NOTHING,
                _verdict(audit.update.keeps_promise),
            ),
            (
                f"{canaries.canaries:,} canary patients, {canaries.guessed:,} guesses, "
                f"{canaries.correct:,} right: lower bound on ε",
                f"≤ {wording.at_most(canaries.claimed_epsilon)}",
                f"≥ {wording.at_least(canaries.shown.epsilon)}",
                wording.at_least(canaries.largest_showable.epsilon),
                _verdict(canaries.consistent),
            ),
            (
                "The same guesses: lower bound on μ",
                f"≤ {wording.at_most(canaries.claimed_mu)}",
                f"≥ {wording.at_least(canaries.shown.mu)}",
                wording.at_least(canaries.largest_showable.mu),
                _verdict(canaries.consistent),
            ),
            (
                "The same canaries: ε by their scores (an estimate, no bound)",
                f"≤ {wording.at_most(canaries.claimed_epsilon)}",
                f"{estimate.epsilon:.2f} ({estimate.epsilon_low:.2f} to "
                f"{estimate.epsilon_high:.2f})",
                NOTHING,
                NOTHING,
            ),
            *(_membership_row(attack) for attack in audit.membership),
            (
                "A synthetic patient recovered from one update: correlation with the true image",
                NOTHING,
                f"{audit.inversion.correlation_with_noise:.2f}",
                f"{audit.inversion.correlation_without_noise:.2f} (without noise)",
                NOTHING,
            ),
        ),
    )


def _membership_row(attack: MembershipFindings) -> tuple[str, ...]:
    rates = attack.rates
    promised = (
        f"≤ {wording.percent_at_most(attack.largest_tpr)}" if attack.largest_tpr < 1 else NOTHING
    )
    return (
        f"Patients found by their loss in {ATTACKED[attack.variant]} ({rates.members} trained on, "
        f"{rates.non_members} not), at 1 % false alarms or what so few can show",
        promised,
        f"{100 * rates.tpr:.0f} % ({100 * rates.tpr_low:.0f} to {100 * rates.tpr_high:.0f}); AUC "
        f"{rates.auc:.2f} ({rates.auc_low:.2f} to {rates.auc_high:.2f})",
        "100 %",
        _verdict(attack.verdict == "consistent") if attack.largest_tpr < 1 else NOTHING,
    )


def _path_rows(path: PathFindings, *, where: str) -> tuple[tuple[str, ...], ...]:
    kept = _verdict(path.keeps_promise)
    return (
        (
            f"How far one patient moves a step of {where}, from the files to the sum, over C "
            f"({path.removals:,} patients taken away in turn)",
            "≤ 1",
            f"{path.largest:.4f}",
            NOTHING,
            kept,
        ),
        (
            f"Rounds of {where} in which another patient's gradient changed, of {path.worlds:,}",
            "0",
            _changed(path),
            NOTHING,
            kept,
        ),
    )


def _changed(path: PathFindings) -> str:
    unknown = path.off_grid + path.failures
    return f"{path.changed:,}" + (f", and {unknown:,} values unknown" if unknown else "")


def _verdict(holds: bool) -> str:
    return "holds" if holds else "BROKEN"
