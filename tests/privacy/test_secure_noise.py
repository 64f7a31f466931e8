"""The noise of a secure sum: each site's share, and what is left of it on the averaged update."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from safetensors.torch import load_file
from scipy.stats import chi2
from torch import Tensor, nn

from medfl.privacy.accounting.accountant import Charge
from medfl.privacy.engine import noisy_sum
from medfl.privacy.ledger.permit import Permit
from medfl.privacy.mechanism import Mechanism
from medfl.privacy.noise import SecureNormal
from medfl.privacy.noise_shares import largest_total
from medfl.privacy.patients import Patients
from medfl.protocol.secure_round import ADD
from medfl.site.round import noise_source
from tests.federations import Federation, Finished
from tests.study.test_secure_sums import secure, silent

FALSE_ALARM = 1e-10
FIVE = ("center", "east", "north", "south", "west")
SIGMA = 100.0
"""So large that a patient's gradient is lost in the noise of thousands of parameters."""


def mechanism(**changes: Any) -> Mechanism:
    """Everybody is drawn."""
    values: dict[str, Any] = {
        "sampling_prob": 1.0,
        "noise_multiplier": 0.7,
        "clip_norm": 0.5,
        "clipping": "fixed",
        "local_steps": 1,
        "declared_patients": 5,
        "noise_origin": "seeded",
        "trust": "secure",
        "honest_sites": 4,
    }
    return Mechanism(**{**values, **changes})


class Vector(nn.Module):
    """One parameter."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(size, dtype=torch.float64))


def sum_of(used: Mechanism, gradients: list[Tensor], *, source: SecureNormal) -> Tensor:
    """A site's noisy sum of such gradients."""
    network = Vector(len(gradients[0]))
    totals, _ = noisy_sum(
        network,
        mechanism=used,
        permit=Permit(Charge(mechanism=used, steps=1)),
        patients=Patients(
            names=tuple(f"patient {number}" for number in range(len(gradients))),
            stream="secure noise",
            loss_of=lambda index, _: network.value @ gradients[index],
        ),
        source=source,
        on_step=lambda *_: None,
    )
    return totals["value"]


def assert_std(values: np.ndarray[Any, Any], expected: float) -> None:
    """Normal values of mean 0 have this standard deviation, but for a false alarm in 10^10."""
    found = float(np.square(values.astype(np.float64)).sum()) / expected**2
    low, high = (chi2.ppf(FALSE_ALARM, values.size), chi2.isf(FALSE_ALARM, values.size))
    assert low < found < high, math.sqrt(found / values.size)


def source_of(site: str, *, used: Mechanism) -> SecureNormal:
    """What a site of a seeded study draws from."""
    study = SimpleNamespace(id="study", seed=3)
    task: Any = SimpleNamespace(mechanism=used, study=study, round=1)
    return noise_source(task, site)


@pytest.mark.parametrize("honest_sites", [1, 2, 3, 9])
def test_a_site_adds_its_share_before_anything_is_masked(honest_sites: int) -> None:
    used = mechanism(honest_sites=honest_sites)
    found = sum_of(used, [torch.zeros(40_000)], source=source_of("east", used=used)).numpy()
    assert_std(found * used.grid, 0.7 * 0.5 / math.sqrt(honest_sites))


def test_two_sites_add_different_shares() -> None:
    used = mechanism()
    shares = [
        sum_of(used, [torch.zeros(40_000)], source=source_of(site, used=used)).numpy()
        for site in ("east", "north")
    ]
    assert_std((shares[0] + shares[1]) * used.grid, 0.7 * 0.5 * math.sqrt(2 / 4))
    assert_std((shares[0] - shares[1]) * used.grid, 0.7 * 0.5 * math.sqrt(2 / 4))


def test_every_patient_s_gradient_is_cut_to_the_grid_and_not_their_sum() -> None:
    """Cut alone each of them gives nothing; together they would give three and more."""
    used = mechanism(noise_multiplier=0.0)
    parts = [torch.full((8,), sign * 0.7 * used.grid) for sign in (1.0, 1.0, 1.0, 1.0, 1.0)]
    found = sum_of(used, [part.double() for part in parts], source=source_of("east", used=used))
    assert found.dtype == torch.int64
    assert found.tolist() == [0] * 8


@pytest.mark.parametrize(("sites", "patients"), [(3, 13), (128, 12_800)])
def test_no_honest_total_is_beyond_the_bound(sites: int, patients: int) -> None:
    used = mechanism(noise_multiplier=0.5)
    signal = patients * 0.5 / used.grid
    noise = 0.5 * 0.5 * math.sqrt(sites / 4) / used.grid
    bound = largest_total(used, patients=patients, sites=sites)
    assert signal + 15 * noise < bound < signal + 30 * noise


def five_sites(federation: Federation) -> list[Any]:
    """Small hospitals, one of them under a second name, whose rules ask for much noise."""
    sites = [
        federation.site(
            file,
            weight=float(federation.site(file).declared_patients),
            privacy={"trust": ["secure"], "min_noise_multiplier": SIGMA},
        )
        for file in ("east", *FIVE[1:])
    ]
    return [site.model_copy(update={"name": name}) for name, site in zip(FIVE, sites, strict=True)]


def noise_of(finished: Finished, *, survivors: tuple[str, ...]) -> tuple[Any, Mechanism]:
    """Noise on the survivors' sum over the clip norm, from the update that everybody gets."""
    (round_one,) = finished.folder.rounds()
    admitted = tuple(site for site, was in round_one.sites.items() if was.outcome == "admitted")
    assert admitted == survivors
    said = {each.site: each.mechanism for _, each in finished.folder.declarations()}
    used = said[survivors[0]]
    patients = sum(said[site].declared_patients for site in survivors)
    before = load_file(finished.path / "checkpoints" / "initial.safetensors")
    moved = np.concatenate(
        [(finished.weights[name] - before[name]).double().numpy().ravel() for name in before]
    )
    return -moved / 0.5 * (used.sampling_prob * patients) / used.clip_norm, used


@pytest.mark.slow
@pytest.mark.parametrize(
    ("min_sites", "colluding", "dropouts"), [(3, 0, 0), (3, 0, 1), (3, 0, 2), (4, 1, 0), (4, 1, 1)]
)
def test_the_averaged_update_has_the_noise_of_the_formula(
    min_sites: int, colluding: int, dropouts: int, federation: Federation
) -> None:
    """Standard deviation sigma C sqrt(s / h) / (q N): s stay, h are sure, N are theirs."""
    gone = FIVE[len(FIVE) - dropouts :]

    def fault(site: str, message: Message, answer: Any) -> Message | None:
        return silent(site, ADD)(site, message, answer) if site in gone else answer()

    study = secure(
        federation,
        privacy={"colluding_sites": colluding},
        training={"rounds": 1},
        aggregation={"min_sites": min_sites, "ema_decay": 0.0},
    )
    finished = federation.run(study, five_sites(federation), fault=fault)
    survivors = FIVE[: len(FIVE) - dropouts]
    found, used = noise_of(finished, survivors=survivors)
    assert used.honest_sites == min_sites - colluding
    assert used.noise_multiplier == SIGMA
    assert found.size > 5_000
    assert_std(found, SIGMA * math.sqrt(len(survivors) / (min_sites - colluding)))
