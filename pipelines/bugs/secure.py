"""Bugs of secure sums: a share that is too small, or a server that learns more than the sum."""

from __future__ import annotations

from typing import Any

import torch

from bugs.planting import Bug, Planting, edited, together
from medfl.privacy.engine import NORMALISING_OFFSET, PatientOptimizer
from medfl.privacy.noise_shares import largest_total
from medfl.secure_sum import masks, refusals
from medfl.secure_sum.party import Party
from medfl.site import agreement
from medfl.site.round import noise_source
from medfl.site.sum_state import SumState

_FIXED = "commitment(b'{}', terms='', site=state.site)"


def _sum_rounded(planting: Planting) -> None:
    accumulate, release = PatientOptimizer.clip_and_accumulate, PatientOptimizer.add_noise

    def clip_and_accumulate(self: Any) -> None:
        mechanism = self._mechanism
        if mechanism.trust != "secure" or len(self.grad_samples[0]) == 0:
            accumulate(self)
            return
        norm = float(torch.stack([part.double().norm() for part in self.grad_samples]).norm())
        if mechanism.clipping == "normalised":
            factor = mechanism.clip_norm / (norm + NORMALISING_OFFSET)
        else:
            factor = min(1.0, mechanism.clip_norm / norm) if norm else 1.0
        for parameter in self.params:
            part = parameter.grad_sample[0].double() * (factor / mechanism.grid)
            summed = getattr(parameter, "summed_grad", None)
            parameter.summed_grad = part if summed is None else summed + part

    def add_noise(self: Any) -> None:
        for parameter in self.params:
            parameter.summed_grad = parameter.summed_grad.double().round().to(torch.int64)
        release(self)

    planting.exchange(PatientOptimizer, "clip_and_accumulate", clip_and_accumulate)
    planting.exchange(PatientOptimizer, "add_noise", add_noise)


SECURE = (
    Bug(
        name="a share that is too small",
        group="secure",
        sentence="Each of h sites adds sigma C / h to the sum, not sigma C / sqrt(h).",
        plant=edited(
            PatientOptimizer.add_noise,
            (
                "std=self._mechanism.share_std / grid",
                "std=self._mechanism.noise_std / self._mechanism.honest_sites / grid",
            ),
        ),
    ),
    Bug(
        name="one share at two sites",
        group="secure",
        sentence="All sites of a simulation draw the same share of the noise.",
        plant=edited(
            noise_source, ("task.study.id, site, task.round", "task.study.id, task.round")
        ),
    ),
    Bug(
        name="a sum that is rounded",
        group="secure",
        sentence="A site's sum is rounded to the grid, not each patient's gradient.",
        plant=_sum_rounded,
    ),
    Bug(
        name="a modulus that is too small",
        group="secure",
        sentence="A sum of more than one patient's gradient may wrap around.",
        plant=edited(largest_total, ("patients * math.ceil(", "math.ceil(")),
    ),
    Bug(
        name="masks of the round before",
        group="secure",
        sentence="A site hides every round's vector behind the same masks.",
        plant=together(
            edited(
                Party.advertise,
                (
                    "state.mask_key = agreement.new_private_key()",
                    f"state.mask_key = {_FIXED.format('mask')}",
                ),
                ("secrets.token_bytes(_SEED_BYTES)", _FIXED.format("seed")),
            ),
            edited(
                masks.self_mask_key, ('encode("self mask", dealers, site)', 'encode("self", site)')
            ),
            edited(
                masks.add_pair_mask,
                ('encode("pair mask", dealers, lower, upper)', 'encode("pair", lower, upper)'),
            ),
        ),
    ),
    Bug(
        name="a threshold that is ignored",
        group="secure",
        sentence="A site answers for one site alone as it does for a threshold of them.",
        plant=edited(refusals.require_enough, ("count >= terms.threshold", "count >= 1")),
    ),
    Bug(
        name="a roster that nobody checks",
        group="secure",
        sentence="A hospital adds to a sum with whomever the server names.",
        plant=edited(
            agreement._require_known, ('if site.purpose == "open-data":', "if site.purpose:")
        ),
    ),
    Bug(
        name="a round that is begun twice",
        group="secure",
        sentence="A site makes new secrets for a round whose sum may be unmasked already.",
        plant=edited(SumState.begin, ("if number <= newest:", "if number < newest:")),
    ),
)
