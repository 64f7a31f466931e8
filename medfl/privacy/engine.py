"""The patient-gradient engine: the only place where data becomes a noisy step.

For each drawn patient, one ordinary forward and backward over all of the patient's crops gives one
gradient. It is clipped as a whole and summed by Opacus' `DPOptimizer`; noise is added to the sum
once, and the sum is divided by a constant. No hooks are involved, so any network works unchanged,
and never more than one patient's gradient is held in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from medfl.errors import PrivacyError
from medfl.privacy.mechanism import Mechanism
from medfl.privacy.noise import SecureNormal
from medfl.privacy.sampling import poisson_draw

# Bu et al., arXiv 2206.07136, stability constant of automatic clipping.
NORMALISING_OFFSET = 0.01

PatientLoss = Callable[[int], Tensor]
"""Forward pass over all crops of the patient with this index; returns a scalar loss."""

StepObserver = Callable[[int, int], None]
"""Called after each step with the steps done and the steps of the round."""


class Permit(Protocol):
    """A charge in the ledger, spent step by step."""

    def consume(self) -> None:
        """Spend one noisy step.

        Raises:
            PermitExhausted: If every charged step has been spent.
        """


@dataclass(frozen=True, kw_only=True)
class RoundDiagnostics:
    """What happened inside a round. Secret: it stays at the site.

    Attributes:
        drawn: Patients drawn at each step.
        discarded: Patient gradients that were not finite and contributed zero.
    """

    drawn: tuple[int, ...]
    discarded: int


class PatientOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' `DPOptimizer`, fed one patient's gradient at a time.

    Everything private about it comes from one `Mechanism`; noise comes from `source` instead of
    torch's generator, which a global seed would make predictable. Make a new one each round: a sum
    left by an aborted step survives `zero_grad`.

    Args:
        optimizer: The optimizer of the network's trainable parameters.
        mechanism: Clip norm, noise and divisor.
        source: The noise.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, mechanism: Mechanism, source: SecureNormal
    ) -> None:
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
        # A network that gives a parameter no gradient (an unused branch) gives it zero.
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        norm = torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
        )
        # Before clipping: an infinite norm would turn the clipped gradient into NaN.
        if not torch.isfinite(norm):
            return False
        scale = 1.0
        if self._mechanism.clipping == "normalised":
            scale = self._mechanism.clip_norm / (float(norm) + NORMALISING_OFFSET)
        for parameter, gradient in zip(self.params, gradients, strict=True):
            parameter.grad_sample = gradient.mul_(scale).unsqueeze(0)
        self.signal_skip_step(True)
        self.step()
        return True

    def release(self) -> None:
        """Add noise to the sum, divide by the constant, and move the weights.

        An empty batch is a normal step: its sum is zero and it gets the same noise. Ending every
        step with an empty addition makes the two the same code.
        """
        self.zero_grad(set_to_none=True)
        for parameter in self.params:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        self.step()
        self.zero_grad(set_to_none=True)

    def add_noise(self) -> None:
        """Put sum plus noise into ``p.grad`` (replaces Opacus' torch noise)."""
        for parameter in self.params:
            parameter.grad = parameter.summed_grad
            if self._mechanism.is_private:
                noise = self._source.normal(
                    tuple(parameter.shape), std=self._mechanism.noise_std, dtype=parameter.dtype
                )
                parameter.grad = parameter.grad + noise.to(parameter.device)


def local_optimizer(
    network: nn.Module, *, kind: Literal["sgd", "adam"], learning_rate: float
) -> torch.optim.Optimizer:
    """A fresh optimizer of the trainable parameters; its state never outlives a round."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if kind == "adam":
        return torch.optim.Adam(trainable, lr=learning_rate)
    return torch.optim.SGD(trainable, lr=learning_rate)


def train_round(
    network: nn.Module,
    *,
    mechanism: Mechanism,
    permit: Permit,
    population: int,
    loss_of: PatientLoss,
    optimizer: torch.optim.Optimizer,
    source: SecureNormal,
    proximal_mu: float,
    on_step: StepObserver,
) -> RoundDiagnostics:
    """Run one round's noisy steps on `network`, in place.

    Args:
        network: The network; only parameters of `optimizer` change.
        mechanism: Public parameters of every step.
        permit: One charge a step, taken before the step touches data.
        population: Patients that can be drawn.
        loss_of: Loss of one patient.
        optimizer: Fresh optimizer of the trainable parameters.
        source: Randomness of noise and of patient draws.
        proximal_mu: FedProx' mu (Li et al., arXiv 1812.06127, eq. 2), applied after the noise,
            where it depends on released weights only.
        on_step: Progress.

    Returns:
        Diagnostics that stay at the site.

    Raises:
        PermitExhausted: If the permit covers fewer steps; nothing was computed for that step.
        PrivacyError: If the noise does not come from where the mechanism says.
    """
    if source.origin != mechanism.noise_origin:
        raise PrivacyError(
            f"Expected noise from {mechanism.noise_origin!r}, found {source.origin!r}."
        )
    private = PatientOptimizer(optimizer, mechanism=mechanism, source=source)
    if proximal_mu > 0:
        private.attach_step_hook(_proximal_hook(private.params, mu=proximal_mu))
    network.train()
    drawn: list[int] = []
    discarded = 0
    for step in range(mechanism.local_steps):
        permit.consume()
        batch = poisson_draw(
            population=population, probability=mechanism.sampling_prob, source=source
        )
        discarded += sum(not private.add_patient(loss_of(index)) for index in batch)
        private.release()
        drawn.append(len(batch))
        on_step(step + 1, mechanism.local_steps)
    return RoundDiagnostics(drawn=tuple(drawn), discarded=discarded)


def _proximal_hook(parameters: Sequence[nn.Parameter], *, mu: float) -> Callable[..., None]:
    start = [parameter.detach().clone() for parameter in parameters]

    def pull_back(optimizer: DPOptimizer) -> None:
        for parameter, origin in zip(optimizer.params, start, strict=True):
            parameter.grad.add_(parameter.detach() - origin, alpha=mu)

    return pull_back
