"""Who would have to work together to learn more from a secure sum, as a table and in words."""

from __future__ import annotations

from medfl.reporting import wording
from medfl.reporting.tables import NOTHING, Table
from medfl.reporting.texts import ENGLISH, Texts
from medfl.runs.records import SecureSum
from medfl.runs.results import RunResults


def colluding_table(run: RunResults, texts: Texts = ENGLISH) -> Table:
    """Per site, and for the worst one: epsilon against the server and so many other sites."""
    losses = [run.privacy[site.name] for site in run.sites if site.name in run.privacy]
    counts = sorted({count for loss in losses for count in loss.epsilon_colluding})
    worst = [
        max((loss.epsilon_colluding.get(count, 0.0) for loss in losses), default=0.0)
        for count in counts
    ]
    return Table(
        caption=texts("collusion.table"),
        head=(texts("table.site"), *(together(count, texts) for count in counts)),
        rows=(
            *(
                (
                    loss.site,
                    *(
                        wording.at_most(loss.epsilon_colluding[count])
                        if count in loss.epsilon_colluding
                        else NOTHING
                        for count in counts
                    ),
                )
                for loss in losses
            ),
            (texts("collusion.worst"), *map(wording.at_most, worst)),
        ),
    )


def together(count: int, texts: Texts = ENGLISH) -> str:
    """``The server alone``, ``The server and 2 of the other sites``."""
    if not count:
        return texts("collusion.server_alone")
    return texts.count("collusion.server_and", count)


def who_sees_what(found: SecureSum, texts: Texts = ENGLISH) -> tuple[str, ...]:
    """What can be learnt by whom, from the least to the most, one sentence each.

    Args:
        found: Of the run.
        texts: Of the reader's language.
    """
    others, broken = found.sites - 1, 2 * found.threshold - found.sites
    promised, beyond = found.colluding_sites, found.colluding_sites + 1
    holds = (
        texts(
            "collusion.sees.promised",
            who=together(promised, texts),
            threshold=found.threshold,
            honest=found.honest_sites,
        )
        if promised
        else texts("collusion.sees.alone", threshold=found.threshold)
    )
    sentences = [holds]
    if beyond < min(broken, found.sites):
        sentences.append(texts("collusion.sees.beyond", who=together(beyond, texts)))
    if 0 < broken <= others:
        sentences.append(texts("collusion.sees.unmask", who=together(broken, texts)))
    else:
        sentences.append(texts("collusion.sees.all_others", who=together(others, texts)))
    sentences.append(texts("collusion.sees.sites"))
    return tuple(sentences)
