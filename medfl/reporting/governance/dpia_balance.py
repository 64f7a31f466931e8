"""Necessity and proportionality, what the run shows of protection, rights, and measures.

GDPR, Article 35(7)(b) and (d); WP 248 rev.01, Annex 2, second and third part.
"""

from __future__ import annotations

import math

from medfl.reporting import collusion, privacy_tables, utility_tables, wording
from medfl.reporting.governance.content import (
    Block,
    Bullets,
    Cell,
    Facts,
    Figures,
    Grid,
    Notice,
    Paragraph,
    Section,
)
from medfl.reporting.governance.words import Case, cell, controller
from medfl.reporting.texts import Texts
from medfl.runs.results import RunResults


def necessity(case: Case) -> Section:
    """What else could have been done, and why it was not."""
    run, texts = case.run, case.texts
    chosen = cell(texts, "dpia.necessity.ask")
    secure = run.federation.secure_sum is not None
    other = (
        ("dpia.necessity.local", "dpia.necessity.local.text")
        if secure
        else ("dpia.necessity.secure", "dpia.necessity.secure.text")
    )
    names = (
        ("dpia.necessity.pooled", "dpia.necessity.pooled.text"),
        ("dpia.necessity.bare", "dpia.necessity.bare.text"),
        ("dpia.necessity.alone", "dpia.necessity.alone.text"),
        ("dpia.necessity.synthetic", "dpia.necessity.synthetic.text"),
        other,
        ("dpia.necessity.stricter", "dpia.necessity.stricter.text"),
    )
    blocks: list[Block] = [
        Paragraph(text=texts("dpia.necessity.text")),
        Grid(
            caption=texts("dpia.necessity.caption"),
            head=(
                texts("dpia.necessity.alternative"),
                texts("dpia.necessity.meaning"),
                texts("dpia.necessity.chosen"),
            ),
            rows=tuple((texts(name), texts(meaning), chosen) for name, meaning in names),
        ),
    ]
    if run.scores_of("federated"):
        blocks += [
            Paragraph(text=texts("dpia.necessity.measured")),
            Figures(table=utility_tables.dice_table(run, texts)),
        ]
    blocks += [
        Bullets(items=(texts("dpia.necessity.minimal"), texts("dpia.necessity.accurate"))),
        controller(texts, "dpia.necessity.needed"),
        controller(texts, "dpia.necessity.epsilon"),
    ]
    return Section(anchor="necessity", title=texts("dpia.necessity"), blocks=tuple(blocks))


def protection(case: Case) -> Section:
    """What the folder shows of the promise, in figures."""
    run, found, texts = case.run, case.found, case.texts
    blocks: list[Block] = [Facts(rows=_facts(case))]
    if found.limited:
        blocks += [
            Figures(table=privacy_tables.meaning(run, texts), style="words meaning"),
            Figures(table=privacy_tables.privacy_losses(run, texts)),
            Figures(table=privacy_tables.several_sites(run, texts)),
        ]
    else:
        blocks.append(Notice(text=texts("dpia.protection.unlimited")))
    agreed = run.federation.secure_sum
    if agreed is not None and found.limited:
        blocks += [
            Bullets(items=collusion.who_sees_what(agreed, texts)),
            Figures(table=collusion.colluding_table(run, texts)),
        ]
    blocks.append(
        Bullets(
            items=tuple(
                texts(key)
                for key in (
                    "dpia.protection.settings",
                    "dpia.protection.lifetime",
                    "dpia.protection.not_covered",
                )
            )
        )
    )
    return Section(anchor="protection", title=texts("dpia.protection"), blocks=tuple(blocks))


def rights(case: Case) -> Section:
    """What a patient may ask for, and what erasure means for what was spent."""
    found, texts = case.found, case.texts
    names = (
        ("dpia.rights.access", "dpia.rights.access.text"),
        ("dpia.rights.rectify", "dpia.rights.rectify.text"),
        ("dpia.rights.erase", "dpia.rights.erase.text"),
        (
            "dpia.rights.spent",
            "dpia.rights.spent.text" if found.limited else "dpia.rights.spent.unlimited",
        ),
        ("dpia.rights.retrain", "dpia.rights.retrain.text"),
        ("dpia.rights.object", "dpia.rights.object.text"),
        ("dpia.rights.leave", "dpia.rights.leave.text"),
    )
    return Section(
        anchor="rights",
        title=texts("dpia.rights"),
        blocks=(
            Grid(
                caption=texts("dpia.rights.caption"),
                head=(texts("dpia.rights.right"), texts("dpia.rights.here")),
                rows=tuple((texts(name), texts(meaning)) for name, meaning in names),
            ),
            controller(texts, "dpia.rights.inform"),
            controller(texts, "dpia.rights.contact"),
        ),
    )


def measures(case: Case) -> Section:
    """What the software does, and what people have to do."""
    run, texts = case.run, case.texts
    noise = (
        texts("dpia.measures.no_noise")
        if run.un_noised_sites
        else texts("dpia.measures.seeded")
        if run.has_seeded_noise
        else texts("dpia.measures.noise")
    )
    names = [
        "dpia.measures.charged",
        "dpia.measures.policy",
        "dpia.measures.witness",
        "dpia.measures.keys",
        "dpia.measures.network",
        "dpia.measures.log",
        "dpia.measures.names",
    ]
    if run.federation.secure_sum is not None:
        names.append("dpia.measures.secure")
    return Section(
        anchor="measures",
        title=texts("dpia.measures"),
        blocks=(
            Paragraph(text=texts("dpia.measures.text")),
            Bullets(items=(noise, *map(texts, names))),
            controller(texts, "dpia.measures.technical"),
            controller(texts, "dpia.measures.people"),
            controller(texts, "dpia.measures.breach"),
        ),
    )


def _facts(case: Case) -> tuple[tuple[str, Cell], ...]:
    run, found, texts = case.run, case.found, case.texts
    together, agreed = run.federation, run.federation.secure_sum
    training = run.study.training
    loss = {"epsilon": wording.at_most(together.epsilon), "delta": wording.power(together.delta)}
    said = texts("dpia.protection.loss.text", **loss)
    if not found.limited or math.isinf(together.epsilon):
        said = texts("dpia.protection.loss.none")
    rows: list[tuple[str, Cell]] = [
        (texts("dpia.protection.loss"), said),
        (
            texts("dpia.protection.attack"),
            texts(
                "dpia.protection.attack.text",
                guess=wording.percent_at_most(found.guesses, texts),
                coin=wording.percent_at_most(0.5, texts),
            )
            if found.limited
            else texts("dpia.protection.attack.none"),
        ),
        (texts("dpia.protection.unit"), texts("dpia.protection.unit.text")),
        (
            texts("dpia.protection.trust"),
            texts("dpia.protection.trust.nobody")
            if not found.limited
            else texts("dpia.protection.trust.local")
            if agreed is None
            else texts(
                "dpia.protection.trust.secure",
                honest=agreed.honest_sites,
                sites=agreed.sites,
                threshold=agreed.threshold,
            ),
        ),
    ]
    if agreed is not None and found.limited:
        rows.append(
            (
                texts("dpia.protection.colluding"),
                collusion.together(agreed.colluding_sites, texts),
            )
        )
    noise = (
        texts("dpia.protection.noise.none")
        if run.un_noised_sites
        else texts("dpia.protection.noise.seeded")
        if run.has_seeded_noise
        else texts("dpia.protection.noise.secret")
    )
    done = {"done": texts.number(run.rounds[-1].round), "planned": texts.number(training.rounds)}
    rows += [
        (texts("dpia.protection.noise"), noise),
        (
            texts("dpia.protection.rounds"),
            texts(
                "dpia.protection.rounds.text",
                steps=texts.count("count.local_step", training.local_steps),
                **done,
            ),
        ),
        (texts("methods.network"), run.study.network.name),
        (
            texts("dpia.protection.audit"),
            _audit(run, texts),
        ),
    ]
    return tuple(rows)


def _audit(run: RunResults, texts: Texts) -> str:
    if run.audit is None:
        return texts("dpia.protection.audit.none")
    passed = run.audit.passed
    return texts("dpia.protection.audit.passed" if passed else "dpia.protection.audit.failed")
