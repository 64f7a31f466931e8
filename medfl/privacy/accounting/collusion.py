r"""What is left of a guarantee when sites side with the server.

In ``local`` mode a site's own noise protects its patients from everybody, so nothing changes
however many of the others collude.

In ``secure`` mode the noise of a sum comes from several sites, and colluding ones can take theirs
away again. Let K sites be on the roster, t the threshold, h the shares that the noise multiplier
sigma was made for (each of standard deviation sigma C / sqrt(h)), and let c sites side with the
server against the patients of another one, of which they know everything but its patients and its
secrets.

**While t > (K + c) / 2.** A sum is unmasked only for a set of survivors that t sites have signed.
Two sets would need 2 t signatures; an honest site signs one set a round and c colluding ones may
sign both, K + c at most, so there is one set. It has t members or more (an honest site reveals
nothing for a smaller one), at most c of them collude, and so the sum holds the shares of at least
t - c honest sites. This site is one of them, or nothing of it is in the sum. Since
2 c < K + c < 2 t, t - c is at least 1. The patients are then protected by noise of standard
deviation sigma C sqrt((t - c) / h).

**With more colluding sites** nothing keeps the server from showing an honest site one set and
the colluding ones another, and from asking for both of a site's secrets. Then its masked input can
be read, but not what it added before masking: its own share, sigma C / sqrt(h).

Sums of rounded shares are as good as one Gaussian of their total variance, see
`medfl.privacy.noise_shares`, and a rounded share alone is post-processing of one. So epsilon
against c colluding sites is that of the ordinary subsampled Gaussian mechanism with the noise
multiplier sigma sqrt(shares / h). For the tolerated c, min_sites - c = h and t >= min_sites: the
noise is at least what was planned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from medfl.privacy.accounting.accountant import Accuracy, epsilon
from medfl.privacy.accounting.charges import Charge
from medfl.privacy.mechanism import MAX_NOISE_MULTIPLIER, MIN_NOISE_MULTIPLIER, Mechanism

MOST_COUNTS = 6
"""Numbers of colluding sites that are shown beside each other."""


def remaining_shares(*, sites: int, threshold: int, colluding_sites: int) -> int:
    """Shares of noise that are sure to protect a site's patients; the module says why.

    Args:
        sites: K, all on the roster.
        threshold: t, sites that have to stay.
        colluding_sites: c, other sites that side with the server, 0 to K - 1.

    Returns:
        t - c while t > (K + c) / 2, else 1: the site's own.

    Raises:
        ValueError: If a number is out of range.
    """
    if not 0 < threshold <= sites:
        raise ValueError(f"Expected a threshold in [1, {sites}], found {threshold!r}.")
    if not 0 <= colluding_sites < sites:
        raise ValueError(f"Expected colluding_sites in [0, {sites - 1}], found {colluding_sites}.")
    return threshold - colluding_sites if 2 * threshold > sites + colluding_sites else 1


def epsilon_against(
    charges: Iterable[Charge],
    *,
    sites: int,
    threshold: int,
    colluding_sites: int,
    delta: float,
    accuracy: Accuracy = "budget",
) -> float:
    """Epsilon of one site's patients against the server together with c of the other sites.

    Args:
        charges: Of the site; parameters fixed in advance, as for `epsilon`.
        sites: K, all on the roster.
        threshold: t, sites that have to stay; without meaning where the noise is ``local``.
        colluding_sites: c, 0 to K - 1.
        delta: In (0, 1).
        accuracy: As for `epsilon`.

    Returns:
        An upper bound; infinite without noise.

    Raises:
        ValueError: If a number is out of range.
    """
    shares = remaining_shares(sites=sites, threshold=threshold, colluding_sites=colluding_sites)
    left = [
        Charge(mechanism=_with_shares(charge.mechanism, shares).as_counted, steps=charge.steps)
        for charge in charges
    ]
    return epsilon(left, delta=delta, accuracy=accuracy)


def collusion_counts(*, sites: int, threshold: int, tolerated: int) -> tuple[int, ...]:
    """The numbers of colluding sites worth showing, at most `MOST_COUNTS`, ascending.

    Args:
        sites: K; all of 0 to K - 1 where they are few.
        threshold: t.
        tolerated: Colluding sites that the promise allows for.

    Returns:
        Else 0 and 1, the tolerated number, the last one with which the protocol holds and the
        first with which it does not, and K - 1.
    """
    if sites <= MOST_COUNTS:
        return tuple(range(sites))
    broken = 2 * threshold - sites
    worth = {0, 1, tolerated, broken - 1, broken, sites - 1}
    return tuple(sorted(count for count in worth if 0 <= count < sites))


def _with_shares(mechanism: Mechanism, shares: int) -> Mechanism:
    """The mechanism that protects by so many shares alone; ``local`` noise is there in any case."""
    if mechanism.trust == "local":
        return mechanism
    left = mechanism.noise_multiplier * math.sqrt(shares / mechanism.honest_sites)
    # Outside of what a mechanism may have: less noise than there is bounds epsilon from above.
    left = min(left, MAX_NOISE_MULTIPLIER) if left >= MIN_NOISE_MULTIPLIER else 0.0
    return replace(mechanism, noise_multiplier=left)
