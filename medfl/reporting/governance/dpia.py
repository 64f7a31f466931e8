"""The annex to a data protection impact assessment that is made from a run.

Its parts are those of Article 35(7) of Regulation (EU) 2016/679 (GDPR), and of Annex 2 of the
Article 29 Working Party's guidelines WP 248 rev.01. What the run folder shows is filled in; where
the law asks for a judgement, or for what software cannot know, a blank says who has to write.
"""

from __future__ import annotations

from medfl.reporting import wording
from medfl.reporting.governance import dpia_balance, dpia_context, dpia_risks
from medfl.reporting.governance.content import Document, Section, count_blanks
from medfl.reporting.governance.evidence import Evidence, evidence
from medfl.reporting.governance.words import Case, doubt
from medfl.reporting.texts import Texts
from medfl.runs.results import RunResults

_SECTIONS = (
    dpia_context.about,
    dpia_context.why,
    dpia_context.roles,
    dpia_context.purposes,
    dpia_context.data,
    dpia_context.data_flows,
    dpia_context.retention,
    dpia_balance.necessity,
    dpia_balance.protection,
    dpia_balance.rights,
    dpia_risks.risks,
    dpia_balance.measures,
    dpia_risks.residual,
    dpia_risks.review,
)


def dpia(run: RunResults, texts: Texts) -> Document:
    """The annex in the reader's language."""
    found = evidence(run)
    case = Case(run=run, found=found, texts=texts)
    made = tuple(section(case) for section in _SECTIONS)
    sections = (*made, dpia_risks.where_to_find(made, texts))
    return Document(
        tag=texts.tag,
        tone=found.tone,
        kicker=texts("dpia.kicker"),
        title=run.study.id,
        when=texts("dpia.when", day=texts.day(run.environment.started)),
        verdict=_verdict(run, found, texts),
        reasons=_reasons(run, found, sections, texts),
        sections=sections,
        contents=texts("page.sections"),
        footer=texts("documents.footer", version=run.environment.medfl),
    )


def _verdict(run: RunResults, found: Evidence, texts: Texts) -> str:
    if not found.holds:
        return texts("dpia.verdict.doubt")
    return texts(
        "dpia.verdict.holds",
        epsilon=wording.at_most(run.federation.epsilon),
        delta=wording.power(run.federation.delta),
    )


def _reasons(
    run: RunResults, found: Evidence, sections: tuple[Section, ...], texts: Texts
) -> tuple[str, ...]:
    rounds = {"rounds": run.rounds[-1].round, "planned": run.study.training.rounds}
    doubts = [doubt(name, texts, **rounds) for name in found.doubts]
    shown = doubts or [texts("dpia.verdict.why")]
    return (
        *shown,
        texts.count("dpia.verdict.blanks", count_blanks(sections)),
        texts("dpia.verdict.internal"),
    )
