"""Bugs of clipping: one patient moves the sum further than the clip norm."""

from __future__ import annotations

from typing import Any

from bugs.planting import Bug, Planting, edited
from medfl.privacy import engine
from medfl.privacy.engine import PatientOptimizer, clip_to_grid

_FIXED = "factor = min(1.0, clip_norm / norm) if norm else 1.0"
_NORMALISED = "factor = clip_norm / (norm + NORMALISING_OFFSET)"
_WITHIN = "if sum(int(part.square().sum()) for part in truncated) <= most:"


def _clip_the_sum(planting: Planting) -> None:
    def clip_and_accumulate(self: Any) -> None:
        for parameter in self.params:
            gradient = parameter.grad_sample.double().sum(dim=0)
            summed = getattr(parameter, "summed_grad", None)
            parameter.summed_grad = gradient if summed is None else summed + gradient
        if len(self.params[0].grad_sample) == 0:  # the step is complete
            whole = [parameter.summed_grad[None] for parameter in self.params]
            clipped = engine.clip_to_grid(whole, mechanism=self._mechanism)
            for parameter, part in zip(self.params, clipped, strict=True):
                parameter.summed_grad = part

    planting.exchange(PatientOptimizer, "clip_and_accumulate", clip_and_accumulate)


CLIPPING = (
    Bug(
        name="never clipped",
        group="clipping",
        sentence="Gradients are added as long as they are.",
        plant=edited(
            clip_to_grid,
            (_FIXED, "factor = 1.0"),
            (_NORMALISED, "factor = 1.0"),
            (_WITHIN, "if True:"),
        ),
    ),
    Bug(
        name="clipped per crop",
        group="clipping",
        # Of crops that are all alike, as a canary's are, the sum is four times one of them.
        sentence="Each of four crops is clipped by itself and added, not each patient.",
        plant=edited(clip_to_grid, ("return truncated", "return [4 * part for part in truncated]")),
    ),
    Bug(
        name="clipped per parameter",
        group="clipping",
        sentence="Each parameter's gradient is clipped to C by itself.",
        plant=edited(
            PatientOptimizer.clip_and_accumulate,
            (
                "clip_to_grid(self.grad_samples, mechanism=self._mechanism)",
                "[clip_to_grid([g], mechanism=self._mechanism)[0] for g in self.grad_samples]",
            ),
        ),
    ),
    Bug(
        name="clipped to 2 C",
        group="clipping",
        sentence="The bound is twice the clip norm.",
        plant=edited(
            clip_to_grid,
            (
                "mechanism.grid, mechanism.clip_norm",
                "mechanism.grid, 2 * mechanism.clip_norm",
            ),
        ),
    ),
    Bug(
        name="clipped after the sum",
        group="clipping",
        sentence="The sum over patients is clipped, not each patient's gradient.",
        plant=_clip_the_sum,
    ),
    Bug(
        name="normalised but not clipped",
        group="clipping",
        sentence="Normalised clipping forgets to normalise, fixed clipping is right.",
        plant=edited(
            clip_to_grid,
            (_NORMALISED, "factor = 1.0"),
            (_WITHIN, f"if mechanism.clipping == 'normalised' or{_WITHIN[2:]}"),
        ),
    ),
    Bug(
        name="gradient not cleared",
        group="clipping",
        sentence="A patient's gradient holds those of the patients drawn before.",
        plant=edited(
            PatientOptimizer.add_patient,
            ("self.zero_grad(set_to_none=True)", "pass"),
        ),
    ),
)
