"""What the code in this process does in a secure sum, as numbers; see `behaviour`."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from medfl.privacy import engine
from medfl.privacy.accounting.charges import Charge
from medfl.privacy.ledger.permit import Permit
from medfl.privacy.mechanism import Mechanism
from medfl.privacy.noise import SecureNormal
from medfl.privacy.patients import Patients
from medfl.protocol import secure_round
from medfl.protocol.secure_round import Member
from medfl.secure_sum.collector import Collector
from medfl.secure_sum.party import Party
from medfl.secure_sum.terms import RoundTerms
from medfl.site import agreement
from medfl.site import round as site_round
from medfl.site.sum_state import SumState

_SITES = ("a", "b", "c")
_LENGTH = 20


def secure_sums() -> list[Any]:
    """A site's sum, what hides it, and what the site refuses."""
    sums = [_masked(number) for number in (1, 2)]
    return [
        _noisy_sum(),
        _same_noise(),
        _terms(1, patients=10**6).modulus_bits,
        sums[0][0] == sums[1][0],
        sums[0][1],
        _code(_begin_twice),
        _code(_join),
    ]


def _mechanism() -> Mechanism:
    return Mechanism(
        sampling_prob=1.0,
        noise_multiplier=0.7,
        clip_norm=0.5,
        clipping="fixed",
        local_steps=1,
        declared_patients=2,
        noise_origin="seeded",
        trust="secure",
        honest_sites=3,
    )


def _noisy_sum() -> list[int]:
    mechanism = _mechanism()
    network = nn.Linear(30, 1, bias=False)
    patients = Patients(
        names=("a", "b"),
        stream="secure behaviour",
        loss_of=lambda _, generator: network(torch.randn(30, generator=generator)).sum(),
    )
    try:
        # Through the module, where a bug may stand instead.
        totals, _ = engine.noisy_sum(
            network,
            mechanism=mechanism,
            permit=Permit(Charge(mechanism=mechanism, steps=1)),
            patients=patients,
            source=SecureNormal.seeded("secure behaviour"),
            on_step=lambda *_: None,
        )
    except KeyError:  # an engine that adds up no integers, as that of medfl 0.1
        return []
    found: list[int] = totals["weight"].ravel().tolist()
    return found


def _same_noise() -> bool:
    task: Any = SimpleNamespace(
        mechanism=_mechanism(), study=SimpleNamespace(id="study", seed=1), round=1
    )
    first, second = (site_round.noise_source(task, site).uniform(8).tolist() for site in "ab")
    return bool(first == second)


def _key(site: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(site.encode()).digest())


def _sign(site: str) -> Callable[[bytes], str]:
    return lambda content: _key(site).sign(content).hex()


def _members(patients: int = 2) -> dict[str, Member]:
    keys = {site: _key(site).public_key().public_bytes_raw().hex() for site in _SITES}
    return {site: Member(event_key=key, declared_patients=patients) for site, key in keys.items()}


def _terms(number: int, *, patients: int = 2) -> RoundTerms:
    study: Any = SimpleNamespace(
        privacy=SimpleNamespace(colluding_sites=0), aggregation=SimpleNamespace(min_sites=3)
    )
    return secure_round.round_terms(
        study,
        run="run",
        round_number=number,
        members=_members(patients),
        mechanism=_mechanism(),
        model_digest="0" * 64,
        length=_LENGTH,
    )


def _masked(number: int) -> tuple[bytes, str]:
    """One site's vector of zeros in a round, and what it says to a set of survivors of one."""
    terms = _terms(number)
    server = Collector(terms)
    parties = {site: Party(terms, site=site, sign=_sign(site)) for site in _SITES}
    for party in parties.values():
        server.take_advert(party.advertise())
    adverts = server.adverts()
    for party in parties.values():
        server.take_shares(party.share(adverts))
    masked = parties["a"].mask(server.deliveries_for("a"), np.zeros(_LENGTH, dtype=np.int64))
    return masked.vector, _code(lambda: parties["a"].confirm(("a",)))


def _begin_twice() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        sums = SumState(Path(scratch), run="run")
        for _ in range(2):
            party = Party(_terms(1), site="a", sign=_sign("a"))
            party.advertise()
            sums.begin(party)


def _join() -> None:
    """With sites whose keys nobody has compared; whoever goes on meets what is not there."""
    members: Any = _members()
    site = SimpleNamespace(
        name="a", declared_patients=2, purpose="hospital", privacy=SimpleNamespace(peers={})
    )
    study = SimpleNamespace(
        privacy=SimpleNamespace(trust="secure"), aggregation=SimpleNamespace(min_sites=3)
    )
    hospital: Any = SimpleNamespace(
        site=site, keys=SimpleNamespace(event_key=members["a"].event_key)
    )
    task: Any = SimpleNamespace(study=study, members=members)
    agreement.join(hospital, task)


def _code(work: Callable[[], object]) -> str:
    """With which code it is refused; otherwise, what happens instead."""
    try:
        work()
    except Exception as error:  # noqa: BLE001  a bug may raise anything
        return str(getattr(error, "code", type(error).__name__))
    return "done"
