"""The patient-gradient engine: the only place where data becomes a noisy step.

For each drawn patient, one ordinary forward and backward over all of the patient's crops gives one
gradient. It is clipped as a whole and added to a sum of integers by Opacus' `DPOptimizer`; noise is
added to the sum once, and the sum is divided by a constant. No hooks are involved, so any network
works unchanged, and never more than one patient's gradient is held in memory.

What leaves is exactly a post-processing of the Gaussian mechanism. Let g be the mechanism's grid, a
power of two that depends on sigma C alone.

1.  A patient's clipped gradient is truncated toward zero to a multiple z g. No coordinate grows,
    and |z| g <= C is checked in integers, so a patient who is replaced by nothing moves the sum S
    of all z by one vector of norm C / g at most, exactly: integers have no rounding that a sum
    could share between patients.
2.  The noise is an integer as well, round(N) with N ~ N(0, (sigma C / g)^2), exact up to a total
    variation of 2^-100 a coordinate (see `SecureNormal.rounded_normal`).
3.  S is an integer, so S + round(N) = round(S + N). The right side is the Gaussian mechanism with
    noise multiplier sigma, and then a function that knows nothing of the data. With T steps and d
    weights, what is released is thus within T d 2^-100 in total variation of a post-processing of
    the mechanism that is accounted for.
4.  Only this integer is converted to float32, divided by the constant L and handed to the
    optimizer. Whatever weights the server sent, zeros included, the new weights are a function of
    them and of the released integers.

Where several sites share the noise of one sum (`noisy_sum`), step 3 holds for their total instead;
`medfl.privacy.noise_shares` has the proof. Peikert (CRYPTO 2010, theorem 3.1) and Canonne et al.
(arXiv 2004.00010) take the same view of discrete Gaussian noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from medfl.config.study import Optimizer
from medfl.errors import PrivacyError
from medfl.privacy.ledger.permit import Permit
from medfl.privacy.mechanism import REVISION, Mechanism, NoiseOrigin
from medfl.privacy.noise_shares import require_fine_grid
from medfl.privacy.patients import Patients
from medfl.privacy.sampling import poisson_draw

# Bu et al., arXiv 2206.07136, stability constant of automatic clipping.
NORMALISING_OFFSET = 0.01

# Far beyond what float64 rounds away when it scales a gradient, and far below what matters.
_SHRINK = 1 - 2.0**-40

StepObserver = Callable[[int, int], None]
"""Called after each step with the steps done and the steps of the round."""


class NoiseSource(Protocol):
    """Secret randomness; `medfl.privacy.noise.SecureNormal` everywhere but in an audit."""

    @property
    def origin(self) -> NoiseOrigin:
        """Where it comes from."""

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Independent values in [0, 1)."""

    def rounded_normal(self, shape: Sequence[int], *, std: float) -> Tensor:
        """Independent normal values, each rounded to the nearest integer; int64 on the CPU."""


@dataclass(frozen=True, kw_only=True)
class RoundDiagnostics:
    """What happened inside a round. Secret: it stays at the site.

    Attributes:
        drawn: Patients drawn at each step.
        discarded: Patient gradients that were not finite and contributed zero.
        failures: What kept others from being computed, by the name of its type; they contributed
            zero as well.
    """

    drawn: tuple[int, ...]
    discarded: int
    failures: tuple[str, ...] = ()


class PatientOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' `DPOptimizer`, fed one patient's gradient at a time, with a sum of integers.

    Everything private about it comes from one `Mechanism`; noise comes from `source` instead of
    torch's generator, which a global seed would make predictable. Make a new one each round: a sum
    left by an aborted step survives `zero_grad`.

    Args:
        optimizer: The optimizer of the network's trainable parameters.
        mechanism: Clip norm, noise, grid and divisor of one round.
        source: The noise.

    Raises:
        PrivacyError: If the mechanism is that of a whole run, whose clip norm changes.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, mechanism: Mechanism, source: NoiseSource
    ) -> None:
        if mechanism.clip_norm_schedule is not None:
            raise PrivacyError("Expected the mechanism of one round, found that of a whole run.")
        super().__init__(
            optimizer,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.clip_norm,
            expected_batch_size=mechanism.divisor,
            loss_reduction="mean",
        )
        self._mechanism = mechanism
        self._source = source

    def add_patient(self, loss: Tensor) -> bool:
        """Add one patient's clipped gradient to the sum.

        Args:
            loss: Scalar loss over all crops of one patient.

        Returns:
            False if the gradient was not finite; the patient then contributes zero.
        """
        self.zero_grad(set_to_none=True)
        loss.backward()
        for parameter in self.params:
            # A network that gives a parameter no gradient (an unused branch) gives it zero.
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad_sample = gradient.unsqueeze(0)
        # Before clipping: an infinite norm would turn the clipped gradient into NaN.
        if not math.isfinite(_norm(self.grad_samples)):
            return False
        self.signal_skip_step(True)
        self.step()
        return True

    def release(self) -> None:
        """Add noise to the sum, divide by the constant, and move the weights.

        An empty batch is a normal step: its sum is zero and it gets the same noise. Ending every
        step with an empty addition makes the two the same code.
        """
        self._step_skip_queue.clear()  # what a patient who failed midway may have left
        self.zero_grad(set_to_none=True)
        for parameter in self.params:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        self.step()
        self.zero_grad(set_to_none=True)

    def clip_and_accumulate(self) -> None:
        """Add the gradient, clipped and truncated to the grid, to ``p.summed_grad``.

        Replaces Opacus' sum of floating-point numbers by one of int64 multiples of the grid.
        """
        clipped = clip_to_grid(self.grad_samples, mechanism=self._mechanism)
        for parameter, addend in zip(self.params, clipped, strict=True):
            summed = getattr(parameter, "summed_grad", None)
            parameter.summed_grad = addend if summed is None else summed.add_(addend)

    def add_noise(self) -> None:
        """Put sum plus noise into ``p.grad``; from here on nothing knows the sum without noise."""
        grid = self._mechanism.grid
        for parameter in self.params:
            total = parameter.summed_grad
            if self._mechanism.is_private:
                noise = self._source.rounded_normal(
                    tuple(parameter.shape), std=self._mechanism.share_std / grid
                )
                total = total + noise.to(total.device)
            if self._mechanism.trust == "secure":
                parameter.noisy_sum = total.cpu()
            parameter.grad = (total.double() * grid).to(parameter.dtype)


def clip_to_grid(gradients: Sequence[Tensor], *, mechanism: Mechanism) -> list[Tensor]:
    """One patient's gradient, clipped as a whole and truncated toward zero to the grid.

    Args:
        gradients: Finite, of shape (1, ...) for each parameter, or (0, ...) for nobody.
        mechanism: Clip norm, clipping and grid.

    Returns:
        int64 multiples of the grid, of each parameter's shape, whose Euclidean norm over all
        parameters is at most C / grid exactly.
    """
    if len(gradients[0]) == 0:
        return [gradient.new_zeros(gradient.shape[1:], dtype=torch.int64) for gradient in gradients]
    grid, clip_norm = mechanism.grid, mechanism.clip_norm
    norm = _norm(gradients)
    if mechanism.clipping == "normalised":
        factor = clip_norm / (norm + NORMALISING_OFFSET)
    else:
        factor = min(1.0, clip_norm / norm) if norm else 1.0
    most = int(Fraction(clip_norm / grid) ** 2)
    while True:
        # Truncation only shrinks: a norm above C is float64's rounding of `factor`.
        truncated = [
            (gradient[0].double() * (factor / grid)).trunc().to(torch.int64)
            for gradient in gradients
        ]
        if sum(int(part.square().sum()) for part in truncated) <= most:
            return truncated
        factor *= _SHRINK


def _norm(gradients: Sequence[Tensor]) -> float:
    """Euclidean norm over all parameters; infinite or NaN if a value is."""
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def local_optimizer(
    network: nn.Module, *, kind: Optimizer, learning_rate: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """A fresh optimizer of the trainable parameters; its state never outlives a round.

    A weight decay of l takes h l w off the weights w in a step of learning rate h, beside the step
    that the noisy gradient asks for (Loshchilov and Hutter, "Decoupled Weight Decay
    Regularization", arXiv 1711.05101, algorithms 1 and 2). It is a function of weights that were
    released already, and so post-processing: no privacy is paid for it. As a penalty l |w|^2 / 2 in
    a patient's loss it would add l w to every patient's gradient before that is clipped: it would
    eat up the clip norm, and pull at the weights only in steps that draw somebody.

    Args:
        network: The network.
        kind: ``sgd``, ``adam`` or ``adamw``.
        learning_rate: h, of this round.
        weight_decay: l; with ``sgd`` and ``adamw`` only.

    Raises:
        ValueError: If there is a weight decay with ``adam``, which would send it through its
            moments.
    """
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if kind == "adamw":
        return torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=weight_decay)
    if kind == "sgd":
        # torch adds l w to the gradient that it is given, which is noisy by then. Without momentum
        # that is the decoupled decay.
        return torch.optim.SGD(trainable, lr=learning_rate, weight_decay=weight_decay)
    if weight_decay:
        raise ValueError(f"Expected no weight decay with 'adam', found {weight_decay:g}.")
    return torch.optim.Adam(trainable, lr=learning_rate)


def train_round(
    network: nn.Module,
    *,
    mechanism: Mechanism,
    permit: Permit,
    patients: Patients,
    optimizer: torch.optim.Optimizer,
    source: NoiseSource,
    proximal_mu: float,
    on_step: StepObserver,
) -> RoundDiagnostics:
    """Run one round's noisy steps on `network`, in place.

    What `patients` must satisfy is said at `PatientLoss`. Once a step is paid for, nothing about a
    patient ends the round: a patient who cannot be computed contributes zero, so that whether there
    is an answer says nothing about who was drawn.

    Args:
        network: The network; only parameters of `optimizer` change.
        mechanism: Public parameters of every step of this round.
        permit: One charge a step, taken before the step touches data.
        patients: Those who can be drawn; nobody at all is a normal case.
        optimizer: Fresh optimizer of the trainable parameters.
        source: Randomness of noise and of patient draws.
        proximal_mu: FedProx' mu (Li et al., arXiv 1812.06127, eq. 2), applied after the noise,
            where it depends on released weights only.
        on_step: Progress.

    Returns:
        Diagnostics that stay at the site.

    Raises:
        PermitExhausted: If the permit covers fewer steps; nothing was computed for that step.
        PrivacyError: If the noise does not come from where the mechanism says, or the mechanism is
            one of another engine or of a whole run, or weights would move under a share of noise.
    """
    if source.origin != mechanism.noise_origin:
        raise PrivacyError(
            f"Expected noise from {mechanism.noise_origin!r}, found {source.origin!r}."
        )
    if mechanism.revision != REVISION:
        raise PrivacyError(
            f"Expected a mechanism of revision {REVISION}, found {mechanism.revision}."
        )
    if mechanism.trust == "secure" and any(group["lr"] for group in optimizer.param_groups):
        raise PrivacyError(
            "Expected weights that do not move with trust 'secure', found a learning rate: a share "
            "of the noise protects the sum of several sites, not a site's own weights."
        )
    private = PatientOptimizer(optimizer, mechanism=mechanism, source=source)
    if proximal_mu > 0:
        private.attach_step_hook(_proximal_hook(private.params, mu=proximal_mu))
    network.train()
    drawn: list[int] = []
    discarded = 0
    failures: list[str] = []
    for step in range(mechanism.local_steps):
        permit.consume()
        batch = poisson_draw(
            population=len(patients), probability=mechanism.sampling_prob, source=source
        )
        for index in batch:
            try:
                with patients.randomness(index, step=step) as generator:
                    discarded += not private.add_patient(patients.loss_of(index, generator))
            except Exception as error:  # noqa: BLE001  an answer must not depend on who was drawn
                failures.append(type(error).__name__)
        private.release()
        drawn.append(len(batch))
        on_step(step + 1, mechanism.local_steps)
    return RoundDiagnostics(drawn=tuple(drawn), discarded=discarded, failures=tuple(failures))


def noisy_sum(
    network: nn.Module,
    *,
    mechanism: Mechanism,
    permit: Permit,
    patients: Patients,
    source: NoiseSource,
    on_step: StepObserver,
) -> tuple[dict[str, Tensor], RoundDiagnostics]:
    """One step's sum of clipped gradients with this site's share of the noise, as integers.

    It protects nobody by itself: it may leave the site only where it is hidden among the sums of
    other sites. Patients are drawn, clipped and paid for by `train_round`, with weights that stay.

    Args:
        network: The network; its trainable parameters are summed over.
        mechanism: Public parameters of the round, of trust ``secure``.
        permit: The charge of the one step.
        patients: Those who can be drawn.
        source: Randomness of noise and of patient draws.
        on_step: Progress.

    Returns:
        Multiples of the mechanism's grid by parameter, int64 on the CPU, divided by nothing; and
        diagnostics that stay at the site.

    Raises:
        PermitExhausted: If the permit covers no step.
        PrivacyError: As for `train_round`; if the trust is another, or the shares of the noise are
            too small for the grid.
    """
    if mechanism.trust != "secure":
        raise PrivacyError(f"Expected a mechanism of trust 'secure', found {mechanism.trust!r}.")
    if mechanism.is_private:
        require_fine_grid(mechanism.share_std / mechanism.grid)
    trained = {name: each for name, each in network.named_parameters() if each.requires_grad}
    diagnostics = train_round(
        network,
        mechanism=mechanism,
        permit=permit,
        patients=patients,
        optimizer=torch.optim.SGD(trained.values(), lr=0.0),
        source=source,
        proximal_mu=0.0,
        on_step=on_step,
    )
    # Taken away, since the network outlives the round: a sum is never handed out twice.
    return {name: vars(each).pop("noisy_sum") for name, each in trained.items()}, diagnostics


def _proximal_hook(parameters: Sequence[nn.Parameter], *, mu: float) -> Callable[..., None]:
    start = [parameter.detach().clone() for parameter in parameters]

    def pull_back(optimizer: DPOptimizer) -> None:
        for parameter, origin in zip(optimizer.params, start, strict=True):
            parameter.grad.add_(parameter.detach() - origin, alpha=mu)

    return pull_back
