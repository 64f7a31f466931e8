"""Bugs of the noise: too little of it, of another shape, or not fresh."""

from __future__ import annotations

import hashlib
import math
import os
from typing import Any

import numpy as np
import torch
from opacus.optimizers import DPOptimizer

from bugs.planting import Bug, Planting, edited, together
from medfl.privacy.engine import NORMALISING_OFFSET, PatientOptimizer, train_round
from medfl.privacy.noise import SecureNormal
from medfl.site import round as site_round

_STD = "std=self._mechanism.share_std / grid"
_FRESH = """\
                noise = self._source.rounded_normal(
                    tuple(parameter.shape), std=self._mechanism.share_std / grid
                )
"""
_ROUNDED = "self._rounded_pairs(len(part) // 2, std=std).ravel()"
_RELEASE = "        private.release()\n"
_FIRST_DRAWN = (_RELEASE, "        private.first_drawn = int(0 in batch)\n" + _RELEASE)


def _share_between_sites(planting: Planting) -> None:
    secret = os.urandom(32)

    def of_the_round(task: Any, site: str) -> SecureNormal:  # noqa: ARG001  that is the bug
        key = hashlib.sha256(secret + str(task.round).encode()).digest()
        return SecureNormal(key, origin=task.mechanism.noise_origin)

    planting.exchange(site_round, "noise_source", of_the_round)


def _sum_in_float32(planting: Planting) -> None:
    def clip_and_accumulate(self: Any) -> None:
        if self._mechanism.clipping == "normalised":
            norms = [torch.linalg.vector_norm(gradient) for gradient in self.grad_samples]
            norm = float(torch.linalg.vector_norm(torch.stack(norms)))
            for parameter in self.params:
                scale = self._mechanism.clip_norm / (norm + NORMALISING_OFFSET)
                parameter.grad_sample = parameter.grad_sample * scale
        DPOptimizer.clip_and_accumulate(self)

    def add_noise(self: Any) -> None:
        for parameter in self.params:
            parameter.grad = parameter.summed_grad
            if self._mechanism.is_private:
                radius, angle = self._source.uniform(2 * parameter.numel()).reshape(2, -1)
                normal = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * math.pi * angle)
                noise = torch.from_numpy(normal * self._mechanism.noise_std).to(parameter.dtype)
                parameter.grad = parameter.grad + noise.reshape(parameter.shape)

    planting.exchange(PatientOptimizer, "clip_and_accumulate", clip_and_accumulate)
    planting.exchange(PatientOptimizer, "add_noise", add_noise)


NOISE = (
    Bug(
        name="no noise",
        group="noise",
        sentence="The sum is released as it is.",
        plant=edited(PatientOptimizer.add_noise, ("if self._mechanism.is_private:", "if False:")),
    ),
    Bug(
        name="half of the noise",
        group="noise",
        sentence="Sigma is half of what was promised.",
        plant=edited(PatientOptimizer.add_noise, (_STD, f"{_STD} / 2")),
    ),
    Bug(
        name="noise divided by the batch",
        group="noise",
        sentence="The noise is divided by the number of drawn patients.",
        plant=together(
            edited(train_round, (_RELEASE, "        private.drawn = len(batch)\n" + _RELEASE)),
            edited(
                PatientOptimizer.add_noise,
                (_STD, f"{_STD} / max(1, getattr(self, 'drawn', 1))"),
            ),
        ),
    ),
    Bug(
        name="same noise in every round",
        group="noise",
        sentence="Every stream begins with the same key, as under a global seed.",
        plant=edited(
            SecureNormal.from_operating_system, ("os.urandom(_KEY_BYTES)", "bytes(_KEY_BYTES)")
        ),
    ),
    Bug(
        name="same noise in every step",
        group="noise",
        sentence="The noise of a round is drawn once.",
        plant=edited(
            PatientOptimizer.add_noise,
            (
                _FRESH,
                _FRESH
                + "                kept = self.__dict__.setdefault('kept', {})\n"
                + "                noise = kept.setdefault(id(parameter), noise)\n",
            ),
        ),
    ),
    Bug(
        name="noise shared by two parameters",
        group="noise",
        sentence="The second parameter gets the noise of the first, as far as it goes.",
        plant=edited(
            PatientOptimizer.add_noise,
            (
                _FRESH,
                _FRESH
                + "                if parameter is self.params[0]:\n"
                + "                    first = noise.flatten()\n"
                + "                elif parameter is self.params[1]:\n"
                + "                    common = min(noise.numel(), first.numel())\n"
                + "                    noise.view(-1)[:common] = first[:common]\n",
            ),
        ),
    ),
    Bug(
        name="noise shared by two sites",
        group="noise",
        sentence="All sites of a simulation draw the noise of a round from one stream.",
        plant=_share_between_sites,
    ),
    Bug(
        name="noise missing on one parameter",
        group="noise",
        sentence="The last parameter is released without noise.",
        plant=edited(
            PatientOptimizer.add_noise,
            (
                "if self._mechanism.is_private:",
                "if self._mechanism.is_private and parameter is not self.params[-1]:",
            ),
        ),
    ),
    Bug(
        name="uniform noise",
        group="noise",
        sentence="The noise is uniform, with the promised standard deviation.",
        plant=edited(
            SecureNormal.rounded_normal,
            (_ROUNDED, "np.rint((self.uniform(len(part)) - 0.5) * std * math.sqrt(12))"),
        ),
    ),
    Bug(
        name="Laplace noise",
        group="noise",
        sentence="The noise follows Laplace's law, with the promised standard deviation.",
        plant=edited(
            SecureNormal.rounded_normal,
            (
                f"part[:] = {_ROUNDED}",
                "part[:] = np.rint(std / math.sqrt(2) * np.diff("
                "np.log1p(-self.uniform(2 * len(part))).reshape(-1, 2))[:, 0])",
            ),
        ),
    ),
    Bug(
        name="noise cut at 3 sigma",
        group="noise",
        sentence="No value of the noise lies beyond three standard deviations.",
        plant=edited(
            SecureNormal.rounded_normal, (_ROUNDED, f"{_ROUNDED}.clip(-3 * std, 3 * std)")
        ),
    ),
    Bug(
        name="noise shared by neighbours",
        group="noise",
        sentence="Two neighbouring coordinates get one value.",
        plant=edited(
            SecureNormal.rounded_normal,
            (f"part[:] = {_ROUNDED}", f"part[:] = {_ROUNDED}; part[1::2] = part[::2]"),
        ),
    ),
    Bug(
        name="a draw told by parity",
        group="noise",
        sentence="Released multiples of the grid are odd where the first patient was drawn.",
        plant=together(
            edited(train_round, _FIRST_DRAWN),
            edited(
                PatientOptimizer.add_noise,
                (
                    "(total.double() * grid)",
                    "((total - total % 2 + getattr(self, 'first_drawn', 0)).double() * grid)",
                ),
            ),
        ),
    ),
    Bug(
        name="a draw told below the grid",
        group="noise",
        sentence="A quarter of the grid is added where the first patient was drawn.",
        plant=together(
            edited(train_round, _FIRST_DRAWN),
            edited(
                PatientOptimizer.add_noise,
                (
                    "(total.double() * grid)",
                    "((total.double() + getattr(self, 'first_drawn', 0) / 4) * grid)",
                ),
            ),
        ),
    ),
    Bug(
        name="sum and noise in float32",
        group="noise",
        sentence="Gradients and noise are added in single precision, as medfl 0.1 did.",
        plant=_sum_in_float32,
    ),
)
