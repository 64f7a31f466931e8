"""Who would have to work together to learn more from a secure sum, as a table and in words."""

from __future__ import annotations

from medfl.reporting import wording
from medfl.reporting.tables import NOTHING, Table
from medfl.runs.records import SecureSum
from medfl.runs.results import RunResults


def colluding_table(run: RunResults) -> Table:
    """Per site, and for the worst one: epsilon against the server and so many other sites."""
    losses = [run.privacy[site.name] for site in run.sites if site.name in run.privacy]
    counts = sorted({count for loss in losses for count in loss.epsilon_colluding})
    worst = [
        max((loss.epsilon_colluding.get(count, 0.0) for loss in losses), default=0.0)
        for count in counts
    ]
    return Table(
        caption="Privacy loss (ε) of a site's patients, by who works together against them",
        head=("Site", *map(together, counts)),
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
            ("Worst site", *map(wording.at_most, worst)),
        ),
    )


def together(count: int, *, capital: bool = True) -> str:
    """``The server alone``, ``The server and 2 of the other sites``."""
    the_server = "The server" if capital else "the server"
    if not count:
        return f"{the_server} alone"
    return f"{the_server} and {count} of the other sites"


def who_sees_what(found: SecureSum) -> tuple[str, ...]:
    """What can be learnt by whom, from the least to the most, one sentence each.

    Args:
        found: Of the run.
    """
    others, broken = found.sites - 1, 2 * found.threshold - found.sites
    promised, beyond = found.colluding_sites, found.colluding_sites + 1
    holds = (
        f"{together(promised)} together see no more than sums of at least {found.threshold} sites, "
        f"with the noise of at least {found.honest_sites} sites that they do not control: for them "
        "the promise was made."
        if promised
        else f"The server alone sees no more than sums of at least {found.threshold} sites: "
        "against it the promise was made."
    )
    sentences = [holds]
    if beyond < min(broken, found.sites):
        sentences.append(
            f"{together(beyond)} together could take what they know themselves off a sum, their "
            "own noise too, so that less noise protects the rest."
        )
    if 0 < broken <= others:
        sentences.append(
            f"{together(broken)} together could unmask the update of a single site. Then only the "
            "share of the noise which that site added itself protects its patients."
        )
    else:
        sentences.append(
            f"{together(others)}, which are all others, together could take everything off a sum "
            "but the update of a single site. Then only the share of the noise which that site "
            "added itself protects its patients."
        )
    sentences.append("Sites without the server see the global models and nothing else.")
    return tuple(sentences)
