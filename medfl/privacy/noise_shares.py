r"""Noise that several sites add together: why rounded normal shares are as good as one Gaussian.

In a secure sum nobody sees a site's own integers, only their total. Each site then needs to add but
a share of the noise: with h shares of standard deviation s = sigma C / (g sqrt(h)), in units of the
grid g, the noise on the total has the standard deviation sigma C / g, which is what the Gaussian
mechanism with noise multiplier sigma asks for. But each site rounds its own share to an integer,
and a sum of rounded values is not a rounded sum. This module holds the proof that it may be treated
as one. It replaces discrete Gaussian shares (Canonne, Kamath and Steinke, arXiv 2004.00010;
Kairouz, Liu and Steinke, arXiv 2102.06387), which need a sampler and an accountant of their own.

**Claim.** Let N_1 .. N_h be independent, N(0, s^2) each, and S an integer that depends on the
patients (their truncated gradients, added up). Then the released total S + sum_i round(N_i) has a
law that lies, value by value, within a factor of 1 +- eta of a function of S + sum_i N_i that knows
nothing else, that is, of a post-processing of the Gaussian mechanism with standard deviation
s sqrt(h); and

    eta <= 2 h exp(-2 pi^2 s^2 (1 - 1/h)) (1 + 2^-50)        for s >= 4, h >= 2; 0 for h = 1.

**Proof.** Write Y = sum_i N_i and E_i = round(N_i) - N_i, in [-1/2, 1/2), so that the total is
S + Y + sum_i E_i. Given Y = y, the vector (N_1 .. N_h) is normal on the hyperplane of sum y, with
mean y/h in each place and covariance s^2 P, where P = I - 11'/h projects onto the vectors of sum 0.
The E_i are a function of the N_i modulo 1. So look at N modulo the lattice Z^h: it lies on the set
of points of the torus whose sum is y modulo 1. The integer vectors m that are not multiples of
(1, .., 1) are the characters of that set, two of them being the same where they differ by such a
multiple; the character's mean under the normal law has the absolute value
exp(-2 pi^2 s^2 |P m|^2). By Poisson's summation the density of N modulo 1, over the uniform density
on that set, lies within 1 +- eta with eta = sum exp(-2 pi^2 s^2 |P m|^2) over all classes m != 0.
|P m|^2 is least, 1 - 1/h, for the 2 h unit vectors and their negatives (h of them for h = 2), and
the sum over all others is smaller than 2^-50 of it for s >= 4 (|P m|^2 takes values j (h - j) / h
for 0-1 vectors with j ones, and grows with the square of larger entries).
Now replace that density by the uniform one: that costs the factor 1 +- eta. Under the uniform law
the distribution of sum_i E_i depends on y modulo 1 alone. So the total, S + y + sum_i E_i, is drawn
by a kernel that knows z = S + y only: since S is an integer, y and z are the same modulo 1, and the
total is z plus a variable whose law depends on z modulo 1. That kernel, applied to the Gaussian
mechanism's output z, is the post-processing of the claim. (For h = 1 the kernel is rounding.)

**What follows.** With T steps and d coordinates whose shares are independent, the joint law lies
within (1 +- eta)^(T d) of a post-processing of T Gaussian mechanisms, whose Poisson subsampling and
composition are accounted for as ever: epsilon grows by at most 2 T d eta, up to second order. The
grid makes s at least 2^20 / sqrt(h), so that eta < exp(-10^8) for any number of sites that can be
written down: `require_fine_grid` refuses s < 64, where eta is still below 10^-17,000, far below
the 2^-100 by which the sampler itself may be off. Shares of further sites are independent of
everything else and so post-processing: they cost nothing. Shares of colluding sites do not count
towards h, since they could be subtracted.
"""

from __future__ import annotations

import math

from medfl.errors import PrivacyError
from medfl.privacy.mechanism import Mechanism

LEAST_SHARE = 64.0
"""Units of the grid."""

_REACH = 20.0


def require_fine_grid(share_std: float) -> None:
    """Refuse shares that are so small that rounding them would show.

    Args:
        share_std: Standard deviation s of one site's share, in units of the grid.

    Raises:
        PrivacyError: If it is below `LEAST_SHARE`.
    """
    if not share_std >= LEAST_SHARE:
        raise PrivacyError(
            f"Expected noise shares of at least {LEAST_SHARE:g} units of the grid, found "
            f"{share_std:g}."
        )


def largest_total(mechanism: Mechanism, *, patients: int, sites: int) -> int:
    """How far a coordinate of a secure sum can be from 0.

    All patients drawn, all of their gradients along one coordinate, and noise of 20 standard
    deviations: a coordinate beyond has a probability below 2 exp(-200), far inside any delta, and
    then the round is void, which tells nothing that the noise would not.

    Args:
        mechanism: Of the round.
        patients: N, those that all sites declare.
        sites: K, whose shares of the noise there can be.

    Returns:
        Multiples of the mechanism's grid.
    """
    signal = patients * math.ceil(mechanism.clip_norm / mechanism.grid)
    noise = _REACH * mechanism.share_std / mechanism.grid * math.sqrt(sites)
    return signal + math.ceil(noise)
