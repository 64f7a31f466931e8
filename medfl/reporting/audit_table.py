"""The table of an audit: every attack beside its promise and its ceiling."""

from __future__ import annotations

from medfl.reporting import wording
from medfl.reporting.audit_records import Audit, Measured, MembershipFindings
from medfl.reporting.tables import NOTHING, Table

ATTACKED: dict[str, str] = {
    "federated": "the final model",
    "non-private": "the model trained without noise",
}


def audit_table(audit: Audit) -> Table:
    """Every attack: what is promised, what was found, and the most that it could have found."""
    mechanism, canaries = audit.mechanism, audit.canaries
    kept = _verdict(mechanism.keeps_promise)
    estimate = canaries.estimate
    return Table(
        caption="Attacks on purpose, beside what is promised",
        head=("Attack", "Promised", "Found", "The most it could have found", "Verdict"),
        rows=(
            *(
                (name, f"{sign} {figure.promised:g}", _with_error(figure), NOTHING, kept)
                for name, sign, figure in (
                    ("How far one patient moves a step, over C", "≤", mechanism.sensitivity),
                    ("Noise of a step, over σ C", "≥", mechanism.noise_std),
                    (
                        "The same, where many steps draw nobody",
                        "≥",
                        mechanism.noise_std_of_small_batches,
                    ),
                    ("How often a patient is drawn", "≤", mechanism.inclusion),
                )
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


def _with_error(figure: Measured) -> str:
    return f"{figure.found:.3f} ± {figure.standard_error:.3f}"


def _verdict(holds: bool) -> str:
    return "holds" if holds else "BROKEN"
