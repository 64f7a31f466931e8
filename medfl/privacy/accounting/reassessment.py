"""What charges of medfl 0.1 really promise: its engine, the first revision, kept less than it said.

All patients of a round took crops, flips and dropout from one generator under a public seed. Who
was drawn and who was not therefore changed the crops, and with them the clipped gradients, of all
who were drawn later in that round: a sum moved by more than the clip norm that the noise was meant
for. Besides, noise was added in float32. A reader of the low bits of a released value, as a
study's server can be, may tell exactly who was drawn, and against them no finite bound holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.stats import binom

from medfl.privacy.accounting.accountant import lifetime_epsilon
from medfl.privacy.accounting.charges import Charge, check_delta
from medfl.privacy.accounting.tradeoff import gaussian_epsilon
from medfl.privacy.ledger.spending import Record, by_run
from medfl.privacy.mechanism import FIRST_REVISION

_UNUSUAL = 0.5
"""Share of delta that pays for draws that are left out of a bound, at most."""


@dataclass(frozen=True, kw_only=True)
class Reassessment:
    """What the affected charges of a ledger were taken for, and what holds instead.

    Attributes:
        steps: Steps that an affected version was charged for; 0 where there is nothing to say.
        runs: Study and run of these charges, in the order of the ledger.
        released: Of the steps, those whose result left, or may have left, the site.
        stated: Epsilon that was promised for them.
        bound: Epsilon against anyone who knows the released values as real numbers only; None if
            there is none. Against a reader of their low bits there is none in any case.
        delta: Delta at which both are read.
    """

    steps: int
    runs: tuple[tuple[str, str], ...]
    released: int
    stated: float
    bound: float | None
    delta: float


def reassess(charged: Iterable[Record], *, budget: float, delta: float) -> Reassessment:
    """Say what the affected ones among a ledger's charges promise; see `real_number_bound`.

    Args:
        charged: All charges of a ledger.
        budget: Its lifetime epsilon.
        delta: Its delta.
    """
    affected = _affected(charged)
    stated = math.inf
    if all(record.is_private for record in affected):
        stated = lifetime_epsilon(by_run(affected), delta=delta, budget=budget)
    return Reassessment(
        steps=sum(record.charge.steps for record in affected),
        runs=tuple(dict.fromkeys((record.study, record.run) for record in affected)),
        released=sum(record.charge.steps for record in affected if record.digest),
        stated=stated,
        bound=real_number_bound([record.charge for record in affected], stated=stated, delta=delta),
        delta=delta,
    )


def affected_steps(charged: Iterable[Record]) -> int:
    """Steps that an affected version was charged for."""
    return sum(record.charge.steps for record in _affected(charged))


def real_number_bound(charges: Sequence[Charge], *, stated: float, delta: float) -> float | None:
    r"""Epsilon of steps of the first revision, against anyone who cannot read low bits.

    Fix all draws. Crops and dropout then follow from the data alone, and the sums of one step with
    and without a patient differ by at most C for that patient, if drawn, and 2 C for each of m
    others drawn whose crops have moved: (2 m + 1) C in all. They do not differ before the patient
    is drawn for the first time in a round, since every round began from a public seed. So a step
    that moves is (2 m + 1)/sigma-GDP, and all of them are mu-GDP with mu the root of the sum of
    squares, whatever later ones make of released values (Dong et al., arXiv 1905.02383, corollary
    3.3). Draws do not depend on data: what is seen with and without the patient is a mixture over
    the same draws with the same weights, and the hockey-stick divergence is jointly convex. Hence

        delta(epsilon) <= E[delta of mu(draws)-GDP] <= Pr[unusual draws] + delta of mu(usual)-GDP

    and `gaussian_epsilon` solves for epsilon. With q the sampling probability, the others of a step
    are Binomial(n - 1, q), and the rounds in which the patient is drawn at all Binomial(rounds,
    1 - (1 - q)^steps of a round); draws within a bound on each are usual. If all draws are taken
    for usual, this is a Gaussian mechanism of sensitivity (2 n - 1) C without any gain from
    sampling. Amplification by q for each step would be wrong where a round has several: a patient
    who was drawn before moves the others' crops also in steps that they are not drawn for.

    A patient without others moves nobody's crops, and the stated epsilon holds.

    Args:
        charges: Of the first revision. Their parameters are taken as if fixed in advance.
        stated: What was promised for them; a bound is never smaller.
        delta: In (0, 1).

    Returns:
        An upper bound; None where a step had no noise, or noise that can be computed again.
    """
    check_delta(delta)
    mechanisms = [charge.mechanism for charge in charges]
    if any(not each.is_private or each.noise_origin == "seeded" for each in mechanisms):
        return None
    if all(each.declared_patients == 1 for each in mechanisms):
        return stated
    share = _UNUSUAL * delta / len(charges)
    moved = [_usual(charge, share=share) for charge in charges]
    mu = math.sqrt(math.fsum(squared for squared, _ in moved))
    unusual = math.fsum(chance for _, chance in moved)
    return max(stated, gaussian_epsilon(mu, delta=delta - unusual))


def _usual(charge: Charge, *, share: float) -> tuple[float, float]:
    """The largest squared mu of usual draws, and the chance of any others, at most `share`."""
    mechanism = charge.mechanism
    q, steps = mechanism.sampling_prob, charge.steps
    rounds = math.ceil(steps / mechanism.local_steps)
    takes_part = -math.expm1(mechanism.local_steps * math.log1p(-q)) if q < 1 else 1.0
    # Any whole numbers would do: their tails are counted as they are.
    others = binom.isf(share / 2 / steps, mechanism.declared_patients - 1, q)
    most = binom.isf(share / 2, rounds, takes_part)
    unusual = steps * binom.sf(others, mechanism.declared_patients - 1, q)
    unusual += binom.sf(most, rounds, takes_part)
    moving = min(steps, most * mechanism.local_steps)
    return float(moving * ((2 * others + 1) / mechanism.noise_multiplier) ** 2), float(unusual)


def _affected(charged: Iterable[Record]) -> list[Record]:
    return [each for each in charged if each.charge.mechanism.revision == FIRST_REVISION]
