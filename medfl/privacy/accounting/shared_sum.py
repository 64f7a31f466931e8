r"""One patient at several sites whose updates are added up in one secure sum.

With local noise such a patient's losses compose: each site adds noise of its own, and the releases
are independent. In a secure sum there is one noise for all, and the patient may be in the same sum
several times. With k sites, each of which draws the patient with probability q, nothing of the
patient is in the sum of a step with probability (1 - q)^k; else the sum moves by some vector of
norm k C at most. Hockey-stick divergences are jointly convex, so a mixture over such vectors is
never told apart from no patient more easily than the worst of them, and for a Gaussian that is one
of norm k C. This is a subsampled Gaussian with sampling probability 1 - (1 - q)^k and noise
multiplier sigma / k, which the ordinary accountant counts.

Composing the sites' charges would promise too much: two releases of shift C are worth one of shift
sqrt(2) C, and here it is 2 C.
"""

from __future__ import annotations

from dataclasses import replace

from medfl.privacy.accounting.charges import Charge
from medfl.privacy.mechanism import MIN_NOISE_MULTIPLIER, Mechanism


def charge_at_several_sites(mechanism: Mechanism, *, sites: int, steps: int) -> Charge:
    """What one patient pays who is at several sites of a secure sum.

    Args:
        mechanism: Of the sum, at any of its sites.
        sites: k, those that may have the patient.
        steps: Of the whole run: in none of its sums is the patient more than k times.

    Raises:
        ValueError: If a number is out of range.
    """
    if sites < 1:
        raise ValueError(f"Expected sites >= 1, found {sites!r}.")
    sigma = mechanism.noise_multiplier / sites
    several = replace(
        mechanism.as_counted,
        sampling_prob=1 - (1 - mechanism.sampling_prob) ** sites,
        noise_multiplier=sigma if sigma >= MIN_NOISE_MULTIPLIER else 0.0,
    )
    return Charge(mechanism=several, steps=steps)
