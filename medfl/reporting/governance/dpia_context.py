"""The description of the processing: who, why, of whom, what flows where, and for how long.

GDPR, Article 35(7)(a); WP 248 rev.01, Annex 2, first part.
"""

from __future__ import annotations

from medfl.reporting import wording
from medfl.reporting.governance.content import (
    Bullets,
    Cell,
    Facts,
    Grid,
    Notice,
    Paragraph,
    Section,
)
from medfl.reporting.governance.evidence import Origin
from medfl.reporting.governance.flows import flows
from medfl.reporting.governance.words import Case, cell, controller, modalities, regions
from medfl.runs.records import Purpose

_ORIGINS: dict[Origin, str] = {
    "deployment": "dpia.origin.deployment",
    "simulation": "dpia.origin.simulation",
    "unknown": "dpia.origin.unknown",
}
_PURPOSES: dict[Purpose, str] = {
    "hospital": "dpia.purpose.hospital",
    "open-data": "dpia.purpose.open_data",
}


def about(case: Case) -> Section:
    """What the annex is, of which run, and who wrote what."""
    run, found, texts = case.run, case.found, case.texts
    software = run.environment
    return Section(
        anchor="about",
        title=texts("dpia.about"),
        blocks=(
            Paragraph(text=texts("dpia.about.text")),
            Facts(
                rows=(
                    (texts("dpia.about.run"), run.study.id),
                    (texts("dpia.about.origin"), texts(_ORIGINS[found.origin])),
                    (
                        texts("dpia.about.software"),
                        f"medfl {software.medfl}, Python {software.python}, "
                        f"PyTorch {software.torch}, Opacus {software.opacus}, "
                        f"Flower {software.flwr}, dp-accounting {software.dp_accounting}",
                    ),
                    (texts("methods.digest"), software.config_digest),
                    (texts("dpia.about.author"), cell(texts, "dpia.about.author.ask")),
                    (texts("dpia.about.version"), cell(texts, "dpia.about.version.ask")),
                )
            ),
        ),
    )


def why(case: Case) -> Section:
    """The criteria by which an assessment is due."""
    run, texts = case.run, case.texts
    judged = cell(texts, "dpia.why.ask")
    opened = run.is_open_data
    patients = sum(site.declared_patients for site in run.sites)
    rows: tuple[tuple[str, str], ...] = (
        (
            texts("dpia.why.sensitive"),
            texts("dpia.why.sensitive.open") if opened else texts("dpia.why.sensitive.text"),
        ),
        (texts("dpia.why.vulnerable"), texts("dpia.why.vulnerable.text")),
        (
            texts("dpia.why.scale"),
            texts.count(
                "dpia.why.scale.text", patients, sites=texts.count("count.site", len(run.sites))
            ),
        ),
        (texts("dpia.why.technology"), texts("dpia.why.technology.text")),
        (
            texts("dpia.why.matching"),
            texts("dpia.why.matching.none")
            if run.federation.disjoint
            else texts("dpia.why.matching.declared"),
        ),
        (texts("dpia.why.decisions"), texts("dpia.why.decisions.text")),
    )
    return Section(
        anchor="why",
        title=texts("dpia.why"),
        blocks=(
            Paragraph(text=texts("dpia.why.text")),
            Grid(
                caption=texts("dpia.why.caption"),
                head=(
                    texts("dpia.why.criterion"),
                    texts("dpia.why.shown"),
                    texts("dpia.why.judgement"),
                ),
                rows=tuple((*row, judged) for row in rows),
            ),
        ),
    )


def roles(case: Case) -> Section:
    """Who takes part, and what each of them sees."""
    run, texts = case.run, case.texts
    legal = cell(texts, "dpia.roles.ask")
    secure = run.federation.secure_sum is not None
    names = texts.listing([site.name for site in run.sites])
    return Section(
        anchor="roles",
        title=texts("dpia.roles"),
        blocks=(
            Grid(
                caption=texts("dpia.roles.caption"),
                head=(texts("dpia.roles.who"), texts("dpia.roles.does"), texts("dpia.roles.legal")),
                rows=(
                    (
                        texts("dpia.roles.sites", names=names),
                        texts("dpia.roles.sites.does"),
                        legal,
                    ),
                    (
                        texts("dpia.roles.server"),
                        texts("dpia.roles.server.secure")
                        if secure
                        else texts("dpia.roles.server.local"),
                        legal,
                    ),
                    (texts("dpia.roles.patients"), texts("dpia.roles.patients.text"), "–"),
                    (texts("dpia.roles.model"), texts("dpia.roles.model.text"), legal),
                    (texts("dpia.roles.software"), texts("dpia.roles.software.text"), "–"),
                ),
            ),
            controller(texts, "dpia.roles.names"),
            controller(texts, "dpia.roles.arrangement"),
        ),
    )


def purposes(case: Case) -> Section:
    """What for, and on which legal ground."""
    run, texts = case.run, case.texts
    return Section(
        anchor="purposes",
        title=texts("dpia.purposes"),
        blocks=(
            Paragraph(
                text=texts(
                    "dpia.purposes.text",
                    regions=regions(run.study.input.regions, texts),
                    modalities=modalities(run.study.input.modalities, texts),
                )
            ),
            controller(texts, "dpia.purposes.why"),
            controller(texts, "dpia.purposes.ground"),
            controller(texts, "dpia.purposes.compatible"),
        ),
    )


def data(case: Case) -> Section:
    """Whose data, which, and how many."""
    run, texts = case.run, case.texts
    rows: list[tuple[Cell, ...]] = [
        (
            site.name,
            texts(_PURPOSES[site.purpose]),
            texts.number(site.declared_patients),
            texts.listing([wording.modality_name(name, texts) for name in site.modalities]),
            f"ε {wording.at_least(site.policy.epsilon)}, δ {wording.power(site.policy.delta)}",
        )
        for site in run.sites
    ]
    return Section(
        anchor="data",
        title=texts("dpia.data"),
        blocks=(
            Paragraph(text=texts("dpia.data.text")),
            Grid(
                caption=texts("dpia.data.caption"),
                head=(
                    texts("table.site"),
                    texts("dpia.data.purpose"),
                    texts("mechanism.patients"),
                    texts("dpia.data.modalities"),
                    texts("losses.budget"),
                ),
                rows=tuple(rows),
            ),
            Paragraph(text=texts("dpia.data.held_out")),
            controller(texts, "dpia.data.who"),
            controller(texts, "dpia.data.source"),
        ),
    )


def data_flows(case: Case) -> Section:
    """What crosses from whom to whom."""
    run, found, texts = case.run, case.found, case.texts
    if run.un_noised_sites:
        update = texts("dpia.flows.update.bare")
    elif not found.limited:
        update = texts("dpia.flows.update.weak")
    elif run.federation.secure_sum:
        update = texts("dpia.flows.update.secure")
    else:
        update = texts("dpia.flows.update.local")
    out, back = texts("dpia.flows.out"), texts("dpia.flows.back")
    rows: list[tuple[Cell, ...]] = [
        (texts("dpia.flows.images"), texts("dpia.flows.nowhere"), texts("dpia.flows.images.text")),
        (texts("dpia.flows.update"), out, update),
        (texts("dpia.flows.statements"), out, texts("dpia.flows.statements.text")),
        (texts("dpia.flows.declared"), out, texts("dpia.flows.declared.text")),
        (texts("dpia.flows.codes"), out, texts("dpia.flows.codes.text")),
    ]
    if run.scores:
        rows.append((texts("dpia.flows.scores"), out, texts("dpia.flows.scores.text")))
    rows += [
        (texts("dpia.flows.model"), back, texts("dpia.flows.model.text")),
        (texts("dpia.flows.final"), back, texts("dpia.flows.final.text")),
    ]
    return Section(
        anchor="flows",
        title=texts("dpia.flows"),
        blocks=(
            flows(run, texts, limited=found.limited),
            Grid(
                caption=texts("dpia.flows.caption"),
                head=(
                    texts("dpia.flows.what"),
                    texts("dpia.flows.way"),
                    texts("dpia.flows.protected"),
                ),
                rows=tuple(rows),
            ),
            Notice(text=texts("dpia.flows.side")),
            controller(texts, "dpia.flows.recipients"),
            controller(texts, "dpia.flows.transfer"),
        ),
    )


def retention(case: Case) -> Section:
    """How long what is kept, by the software and by rule."""
    found, texts = case.found, case.texts
    rule = cell(texts, "dpia.retention.ask")
    names = (
        ("dpia.retention.images", "dpia.retention.images.text"),
        ("dpia.retention.cache", "dpia.retention.cache.text"),
        ("dpia.retention.outbox", "dpia.retention.outbox.text"),
        ("dpia.retention.logs", "dpia.retention.logs.text"),
        ("dpia.retention.server", "dpia.retention.server.text"),
        ("dpia.retention.models", "dpia.retention.models.text"),
        ("dpia.retention.run", "dpia.retention.run.text"),
    )
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (texts(name), texts(kept), rule) for name, kept in names
    )
    ledger: tuple[Cell, ...] = (
        texts("dpia.retention.ledger"),
        texts("dpia.retention.ledger.text"),
        texts("dpia.retention.ledger.rule"),
    )
    return Section(
        anchor="retention",
        title=texts("dpia.retention"),
        blocks=(
            Grid(
                caption=texts("dpia.retention.caption"),
                head=(
                    texts("dpia.retention.what"),
                    texts("dpia.retention.software"),
                    texts("dpia.retention.rule"),
                ),
                rows=(ledger, *rows),
            ),
            Bullets(
                items=(
                    texts("dpia.retention.why")
                    if found.limited
                    else texts("dpia.retention.call_back"),
                    texts("dpia.retention.backups"),
                )
            ),
        ),
    )
