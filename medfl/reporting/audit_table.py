"""The table of an audit: every attack beside its promise and its ceiling."""

from __future__ import annotations

from medfl.reporting import wording
from medfl.reporting.audit_words import finding, meaning, promise
from medfl.reporting.tables import NOTHING, Table
from medfl.reporting.texts import ENGLISH, Texts
from medfl.runs.audit_records import Audit, CanaryFindings, MembershipFindings, PathFindings

ATTACKED: dict[str, str] = {
    "federated": "audit.membership.federated",
    "non-private": "audit.membership.non-private",
}

Row = tuple[str, ...]


def audit_table(audit: Audit, texts: Texts = ENGLISH) -> Table:
    """Every attack: what is promised, what was found, and the most that it could have found."""
    paths = [(audit.path, texts("audit.where.tiny"))]
    if audit.path_of_run is not None:
        paths.append((audit.path_of_run, texts("audit.where.run")))
    return Table(
        caption=texts("audit.caption"),
        head=(
            texts("audit.attack"),
            texts("audit.promised"),
            texts("audit.found"),
            texts("audit.ceiling"),
            texts("audit.verdict"),
        ),
        rows=(
            *(
                (
                    meaning(figure, texts),
                    promise(figure),
                    finding(figure, texts),
                    NOTHING,
                    _verdict(figure.holds, texts),
                )
                for figure in audit.mechanism.figures
            ),
            *(row for path, where in paths for row in _path_rows(path, where, texts)),
            (
                texts("audit.off_grid", weights=texts.number(audit.update.weights)),
                "0",
                texts.number(audit.update.off_grid),
                NOTHING,
                _verdict(audit.update.keeps_promise, texts),
            ),
            *_canary_rows(audit.canaries, texts),
            *(_membership_row(attack, texts) for attack in audit.membership),
            (
                texts("audit.inversion"),
                NOTHING,
                f"{audit.inversion.correlation_with_noise:.2f}",
                texts(
                    "audit.without_noise",
                    value=f"{audit.inversion.correlation_without_noise:.2f}",
                ),
                NOTHING,
            ),
        ),
    )


def _canary_rows(canaries: CanaryFindings, texts: Texts) -> tuple[Row, ...]:
    estimate, verdict = canaries.estimate, _verdict(canaries.consistent, texts)
    return (
        (
            texts(
                "audit.canary_bound",
                canaries=texts.number(canaries.canaries),
                guessed=texts.number(canaries.guessed),
                correct=texts.number(canaries.correct),
            ),
            f"≤ {wording.at_most(canaries.claimed_epsilon)}",
            f"≥ {wording.at_least(canaries.shown.epsilon)}",
            wording.at_least(canaries.largest_showable.epsilon),
            verdict,
        ),
        (
            texts("audit.canary_mu"),
            f"≤ {wording.at_most(canaries.claimed_mu)}",
            f"≥ {wording.at_least(canaries.shown.mu)}",
            wording.at_least(canaries.largest_showable.mu),
            verdict,
        ),
        (
            texts("audit.canary_estimate"),
            f"≤ {wording.at_most(canaries.claimed_epsilon)}",
            texts(
                "number.interval",
                value=f"{estimate.epsilon:.2f}",
                low=f"{estimate.epsilon_low:.2f}",
                high=f"{estimate.epsilon_high:.2f}",
            ),
            NOTHING,
            NOTHING,
        ),
    )


def _membership_row(attack: MembershipFindings, texts: Texts) -> Row:
    rates, limited = attack.rates, attack.largest_tpr < 1
    return (
        texts(
            "audit.membership",
            model=texts(ATTACKED[attack.variant]),
            members=rates.members,
            others=rates.non_members,
        ),
        f"≤ {wording.percent_at_most(attack.largest_tpr, texts)}" if limited else NOTHING,
        texts(
            "audit.membership.found",
            rate=f"{100 * rates.tpr:.0f}",
            low=f"{100 * rates.tpr_low:.0f}",
            high=f"{100 * rates.tpr_high:.0f}",
            auc=f"{rates.auc:.2f}",
            auc_low=f"{rates.auc_low:.2f}",
            auc_high=f"{rates.auc_high:.2f}",
        ),
        texts("number.percent", number="100"),
        _verdict(attack.verdict == "consistent", texts) if limited else NOTHING,
    )


def _path_rows(path: PathFindings, where: str, texts: Texts) -> tuple[Row, ...]:
    kept = _verdict(path.keeps_promise, texts)
    return (
        (
            texts("audit.path.reach", where=where, removals=texts.number(path.removals)),
            "≤ 1",
            f"{path.largest:.4f}",
            NOTHING,
            kept,
        ),
        (
            texts("audit.path.others", where=where, worlds=texts.number(path.worlds)),
            "0",
            _changed(path, texts),
            NOTHING,
            kept,
        ),
    )


def _changed(path: PathFindings, texts: Texts) -> str:
    changed, unknown = texts.number(path.changed), path.off_grid + path.failures
    if not unknown:
        return changed
    return texts("audit.changed", changed=changed, unknown=texts.number(unknown))


def _verdict(holds: bool, texts: Texts) -> str:
    return texts("audit.holds" if holds else "audit.broken")
