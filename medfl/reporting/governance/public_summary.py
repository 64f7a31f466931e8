"""A summary of a run for everybody, patients first: in plain words, without a name or a size.

It is made from `PublicFacts` alone, which hold neither.
"""

from __future__ import annotations

from medfl.reporting import collusion, wording
from medfl.reporting.governance.content import (
    Block,
    Bullets,
    Cell,
    Document,
    Facts,
    Notice,
    Paragraph,
    Section,
)
from medfl.reporting.governance.public_facts import PublicFacts
from medfl.reporting.governance.words import controller, doubt, modalities, regions
from medfl.reporting.texts import Texts


def public_summary(facts: PublicFacts, texts: Texts) -> Document:
    """The summary in the reader's language."""
    return Document(
        tag=texts.tag,
        tone=facts.found.tone,
        kicker=texts("public.kicker"),
        title=texts("public.title" if facts.shown else "public.title.trial"),
        when=texts("page.when", day=texts.day(facts.started)),
        verdict=texts("public.verdict.holds", guess=_guess(facts, texts))
        if facts.found.holds
        else texts("public.verdict.doubt"),
        reasons=_reasons(facts, texts),
        sections=(
            _done(facts, texts),
            _left(facts, texts),
            _promised(facts, texts),
            _not_promised(facts, texts),
            _rights(facts, texts),
            _about(texts),
        ),
        contents=texts("page.sections"),
        footer=texts("documents.footer", version=facts.version),
    )


def _reasons(facts: PublicFacts, texts: Texts) -> tuple[str, ...]:
    rounds = {"rounds": facts.rounds, "planned": facts.planned}
    doubts = [doubt(name, texts, **rounds) for name in facts.doubts]
    return (*doubts, texts("public.verdict.images")) if facts.shown else tuple(doubts)


def _done(facts: PublicFacts, texts: Texts) -> Section:
    return Section(
        anchor="done",
        title=texts("public.done"),
        blocks=(
            Paragraph(
                text=texts(
                    "public.done.text" if facts.shown else "public.done.trial",
                    regions=regions(facts.regions, texts),
                    modalities=modalities(facts.modalities, texts),
                )
            ),
            controller(texts, "public.done.who"),
            controller(texts, "public.done.why"),
        ),
    )


def _left(facts: PublicFacts, texts: Texts) -> Section:
    if "none" in facts.doubts:
        update = texts("public.left.bare")
    elif "seeded" in facts.doubts:
        update = texts("public.left.seeded")
    elif not facts.found.limited:
        update = texts("public.left.weak")
    else:
        update = texts("public.left.secure") if facts.secure else texts("public.left.local")
    items = [texts("public.left.images"), update, texts("public.left.statements")]
    if facts.scores:
        items.append(texts("public.left.scores"))
    trial = () if facts.shown else (Notice(text=texts("public.left.trial")),)
    return Section(
        anchor="left", title=texts("public.left"), blocks=(*trial, Bullets(items=tuple(items)))
    )


def _promised(facts: PublicFacts, texts: Texts) -> Section:
    blocks: list[Block] = []
    if not facts.found.holds:
        blocks.append(Notice(text=texts("public.promised.doubt")))
    if facts.found.limited:
        blocks += [
            Facts(rows=_figures(facts, texts)),
            Paragraph(text=texts("public.promised.means")),
        ]
    return Section(anchor="promised", title=texts("public.promised"), blocks=tuple(blocks))


def _figures(facts: PublicFacts, texts: Texts) -> tuple[tuple[str, Cell], ...]:
    epsilon, delta = wording.at_most(facts.epsilon), wording.power(facts.delta)
    rows: list[tuple[str, Cell]] = [
        (texts("dpia.protection.unit"), texts("public.promised.unit")),
        (
            texts("dpia.protection.attack"),
            texts("public.promised.attack", guess=_guess(facts, texts)),
        ),
        (
            texts("public.promised.loss"),
            texts("public.promised.loss.text", epsilon=epsilon, delta=delta),
        ),
    ]
    if facts.secure:
        rows.append(
            (
                texts("dpia.protection.colluding"),
                collusion.together(facts.colluding, texts),
            )
        )
    audited = {
        "no": "public.audit.none",
        "passed": "dpia.protection.audit.passed",
        "failed": "dpia.protection.audit.failed",
    }
    rows.append((texts("dpia.protection.audit"), texts(audited[facts.audited])))
    return tuple(rows)


def _not_promised(facts: PublicFacts, texts: Texts) -> Section:
    items = [
        texts("public.not_promised.group"),
        texts("public.not_promised.declared")
        if facts.overlaps
        else texts("public.not_promised.several"),
        texts("public.not_promised.studies"),
    ]
    if facts.public_start:
        items.append(texts("public.not_promised.start"))
    items.append(texts("public.not_promised.device"))
    return Section(
        anchor="not-promised",
        title=texts("public.not_promised"),
        blocks=(Bullets(items=tuple(items)),),
    )


def _rights(facts: PublicFacts, texts: Texts) -> Section:
    past = "public.rights.past" if facts.found.limited else "public.rights.unlimited"
    return Section(
        anchor="rights",
        title=texts("public.rights"),
        blocks=(
            Bullets(items=(texts("public.rights.object"), texts(past))),
            controller(texts, "public.rights.contact"),
        ),
    )


def _about(texts: Texts) -> Section:
    return Section(
        anchor="about",
        title=texts("public.about"),
        blocks=(Paragraph(text=texts("public.about.text")),),
    )


def _guess(facts: PublicFacts, texts: Texts) -> str:
    return wording.percent_at_most(facts.found.guesses, texts)
