"""Risks with likelihood and severity, what is left of them, who accepts it, and until when.

GDPR, Article 35(7)(c), (2), (9), (11) and Article 36; WP 248 rev.01, Annex 2, third and fourth
part. A level is a suggestion by a rule that the annex states; the controller judges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from medfl.reporting import collusion, wording
from medfl.reporting.governance.content import (
    Block,
    Bullets,
    Cell,
    Grid,
    Notice,
    Paragraph,
    Section,
)
from medfl.reporting.governance.evidence import Evidence
from medfl.reporting.governance.words import Case, Level, cell, controller, level
from medfl.reporting.texts import Texts
from medfl.runs.results import RunResults

# Of how often the strongest attacker is right, from even odds.
_LOW, _MEDIUM = 0.6, 0.8

# By likelihood, then severity: a severe harm leaves no small risk.
_LEFT: dict[tuple[Level, Level], Level] = {
    ("low", "low"): "low",
    ("low", "medium"): "low",
    ("low", "high"): "medium",
    ("medium", "low"): "low",
    ("medium", "medium"): "medium",
    ("medium", "high"): "medium",
    ("high", "low"): "medium",
    ("high", "medium"): "high",
    ("high", "high"): "high",
}
_ORDER: tuple[Level, ...] = ("low", "medium", "high")


@dataclass(frozen=True, kw_only=True)
class Risk:
    """One thing that may happen to patients, with suggested levels.

    Attributes:
        name: What may happen.
        why: What the likelihood rests on, and what was done against it.
    """

    name: str
    likelihood: Level
    severity: Level
    why: str

    @property
    def left(self) -> Level:
        """What is left of it with the measures taken."""
        return _LEFT[self.likelihood, self.severity]


def found_risks(case: Case) -> tuple[Risk, ...]:
    """The risks that a run of this kind has, judged by what its folder shows."""
    return (
        *_of_learning(case),
        *_of_others(case),
        *_of_the_site(case.texts),
        *_of_open_data(case.run, case.texts),
    )


def largest(risks: Sequence[Risk]) -> Level:
    """The highest level that is left."""
    return max((risk.left for risk in risks), key=_ORDER.index)


def risks(case: Case) -> Section:
    """The table of risks."""
    texts = case.texts
    rows: list[tuple[Cell, ...]] = [
        (
            risk.name,
            level(risk.likelihood, texts),
            level(risk.severity, texts),
            risk.why,
            level(risk.left, texts),
        )
        for risk in found_risks(case)
    ]
    own = cell(texts, "dpia.risks.own")
    rows.append((texts("dpia.risks.further"), own, own, own, own))
    return Section(
        anchor="risks",
        title=texts("dpia.risks"),
        blocks=(
            Paragraph(
                text=texts(
                    "dpia.risks.text",
                    low=wording.percent_at_most(_LOW, texts),
                    medium=wording.percent_at_most(_MEDIUM, texts),
                )
            ),
            Grid(
                caption=texts("dpia.risks.caption"),
                head=(
                    texts("dpia.risks.risk"),
                    texts("dpia.risks.likelihood"),
                    texts("dpia.risks.severity"),
                    texts("dpia.risks.why"),
                    texts("dpia.risks.left"),
                ),
                rows=tuple(rows),
            ),
        ),
    )


def residual(case: Case) -> Section:
    """What is left, and who accepts it."""
    texts = case.texts
    left = largest(found_risks(case))
    blocks: list[Block] = [Paragraph(text=texts("dpia.residual.text", level=level(left, texts)))]
    if left == "high":
        blocks.append(Notice(text=texts("dpia.residual.consult")))
    blocks += [
        controller(texts, "dpia.residual.judgement"),
        controller(texts, "dpia.residual.accepted"),
        controller(texts, "dpia.residual.officer"),
        controller(texts, "dpia.residual.patients"),
    ]
    return Section(anchor="residual", title=texts("dpia.residual"), blocks=tuple(blocks))


def review(case: Case) -> Section:
    """When it has to be looked at again."""
    texts = case.texts
    return Section(
        anchor="review",
        title=texts("dpia.review"),
        blocks=(
            controller(texts, "dpia.review.date"),
            Paragraph(text=texts("dpia.review.text")),
            Bullets(
                items=(
                    texts("dpia.review.study"),
                    texts("dpia.review.sites"),
                    texts("dpia.review.software"),
                    texts("dpia.review.model"),
                    texts("dpia.review.incident"),
                )
            ),
        ),
    )


def where_to_find(sections: Sequence[Section], texts: Texts) -> Section:
    """Which part answers which requirement."""
    numbers = {section.anchor: str(number) for number, section in enumerate(sections, start=1)}
    wanted = (
        ("dpia.map.description", ("roles", "purposes", "data", "flows", "retention")),
        ("dpia.map.necessity", ("purposes", "necessity")),
        ("dpia.map.rights", ("rights",)),
        ("dpia.map.risks", ("risks",)),
        ("dpia.map.measures", ("protection", "measures")),
        ("dpia.map.parties", ("residual",)),
        ("dpia.map.due", ("why",)),
        ("dpia.map.review", ("review",)),
    )
    return Section(
        anchor="map",
        title=texts("dpia.map"),
        blocks=(
            Grid(
                caption=texts("dpia.map.caption"),
                head=(texts("dpia.map.requirement"), texts("dpia.map.section")),
                rows=tuple(
                    (texts(key), texts.listing([numbers[anchor] for anchor in anchors]))
                    for key, anchors in wanted
                ),
            ),
        ),
    )


def _of_learning(case: Case) -> Iterator[Risk]:
    """What somebody could learn of a patient from what left."""
    found, texts = case.found, case.texts
    guess = wording.percent_at_most(found.guesses, texts)
    shown = texts("dpia.risks.shown", guess=guess) if found.holds else texts("dpia.risks.doubt")
    yield Risk(
        name=texts("dpia.risks.membership"),
        likelihood=_by_guesses(found),
        severity="high",
        why=texts.sentences(found.limited and texts("dpia.risks.membership.why"), shown),
    )
    yield Risk(
        name=texts("dpia.risks.reconstruct"),
        likelihood="low" if found.holds else "high",
        severity="high",
        why=texts.sentences(found.limited and texts("dpia.risks.reconstruct.why"), shown),
    )


def _of_others(case: Case) -> Iterator[Risk]:
    """What depends on other hospitals and on the server."""
    run, found, texts = case.run, case.found, case.texts
    together, agreed = run.federation, run.federation.secure_sum
    pair = together.any_two_sites
    if not together.disjoint or pair is not None:
        epsilon = pair.epsilon if together.disjoint and pair else together.epsilon
        declared = texts(
            "dpia.risks.several.assumed" if together.disjoint else "dpia.risks.several.declared",
            epsilon=wording.at_most(epsilon),
        )
        yield Risk(
            name=texts("dpia.risks.several"),
            likelihood="high" if not found.limited else "medium" if together.disjoint else "low",
            severity="medium",
            why=declared if found.limited else texts("dpia.risks.doubt"),
        )
    if agreed is not None:
        worst = max(
            (
                epsilon
                for loss in run.privacy.values()
                for epsilon in loss.epsilon_colluding.values()
            ),
            default=float("inf"),
        )
        yield Risk(
            name=texts("dpia.risks.collusion"),
            likelihood="high"
            if not found.limited
            else "low"
            if agreed.colluding_sites
            else "medium",
            severity="high",
            why=texts(
                "dpia.risks.collusion.why",
                who=collusion.together(agreed.colluding_sites, texts),
                worst=wording.at_most(worst),
            )
            if found.limited
            else texts("dpia.risks.doubt"),
        )
    yield Risk(
        name=texts("dpia.risks.server"),
        likelihood="low",
        severity="high",
        why=texts("dpia.risks.server.why"),
    )
    yield Risk(
        name=texts("dpia.risks.presence"),
        likelihood="high",
        severity="low",
        why=texts("dpia.risks.presence.why"),
    )


def _of_the_site(texts: Texts) -> Iterator[Risk]:
    """What the run folder knows nothing of, and every run has."""
    yield Risk(
        name=texts("dpia.risks.site"),
        likelihood="medium",
        severity="high",
        why=texts("dpia.risks.site.why"),
    )
    yield Risk(
        name=texts("dpia.risks.ledger"),
        likelihood="low",
        severity="medium",
        why=texts("dpia.risks.ledger.why"),
    )
    yield Risk(
        name=texts("dpia.risks.own_model"),
        likelihood="medium",
        severity="high",
        why=texts("dpia.risks.own_model.why"),
    )
    yield Risk(
        name=texts("dpia.risks.care"),
        likelihood="medium",
        severity="high",
        why=texts("dpia.risks.care.why"),
    )


def _of_open_data(run: RunResults, texts: Texts) -> Iterator[Risk]:
    """What is not covered by any noise."""
    if run.scores:
        yield Risk(
            name=texts("dpia.risks.scores"),
            likelihood="high",
            severity="low",
            why=texts("dpia.risks.scores.why"),
        )
    start = run.study.synthetic
    if start is not None and start.pretraining_steps and start.collections:
        yield Risk(
            name=texts("dpia.risks.public_start"),
            likelihood="medium",
            severity="medium",
            why=texts("dpia.risks.public_start.why", names=texts.listing(start.collections)),
        )


def _by_guesses(found: Evidence) -> Level:
    if not found.holds or found.guesses > _MEDIUM:
        return "high"
    return "low" if found.guesses <= _LOW else "medium"
