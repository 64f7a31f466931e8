"""What a site keeps to in the rounds of a secure sum, rule by rule and without training."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from medfl.config import StudyConfig
from medfl.errors import PolicyRefused, SecureSumRefused
from medfl.privacy.mechanism import Mechanism
from medfl.protocol.keys import SiteKeys
from medfl.protocol.secure_round import ConfirmTask, Member, RosterTask, round_terms
from medfl.secure_sum.collector import Collector
from medfl.secure_sum.messages import Confirmation, Delivery
from medfl.secure_sum.party import Party
from medfl.secure_sum.terms import RoundTerms
from medfl.site.agreement import join
from medfl.site.secure_round import confirm
from medfl.site.state import SiteState, hospital_state
from medfl.site.sum_state import SumState
from tests.federations import STUDY, Federation, changed
from tests.secure_sum.rounds import public_key, sign_as

SITES = ("east", "north", "south", "west")
LENGTH = 2000


def study() -> StudyConfig:
    """Four sites of which one may fall out."""
    secure = {"privacy": {"trust": "secure"}, "aggregation": {"min_sites": 3}}
    return StudyConfig.model_validate_json(json.dumps(changed(STUDY, secure)))


def members(*, declared_patients: int = 4) -> dict[str, Member]:
    """The roster."""
    return {
        name: Member(event_key=public_key(name), declared_patients=declared_patients)
        for name in SITES
    }


def terms(round_number: int = 1, **changes: Any) -> RoundTerms:
    """Of a round, as sites and server derive them."""
    mechanism = Mechanism(
        sampling_prob=0.5,
        noise_multiplier=1.0,
        clip_norm=1.0,
        clipping="fixed",
        local_steps=1,
        declared_patients=4,
        trust="secure",
        honest_sites=3,
    )
    values: dict[str, Any] = {
        "run": "run",
        "round_number": round_number,
        "members": members(),
        "mechanism": mechanism,
        "model_digest": "0" * 64,
        "length": LENGTH,
    }
    return round_terms(study(), **{**values, **changes})


def dealt(round_number: int = 1) -> tuple[dict[str, Party], dict[str, list[Delivery]]]:
    """All sites of a round once they have dealt shares, and what each of them was dealt."""
    found = terms(round_number)
    parties = {name: Party(found, site=name, sign=sign_as(name)) for name in SITES}
    server = Collector(found)
    for party in parties.values():
        server.take_advert(party.advertise())
    adverts = server.adverts()
    for party in parties.values():
        server.take_shares(party.share(adverts))
    return parties, {name: server.deliveries_for(name) for name in SITES}


def words(round_number: int, vector: Any) -> Any:
    """What the server sees of a site's vector in a round."""
    parties, deliveries = dealt(round_number)
    masked = parties["east"].mask(deliveries["east"], vector)
    return np.frombuffer(masked.vector, dtype="<u4")


def test_the_same_vector_is_hidden_behind_other_masks_in_every_round() -> None:
    vector = np.arange(LENGTH, dtype=np.int64)
    first, second = (words(number, vector) for number in (1, 2))
    assert len(first) == LENGTH
    assert np.count_nonzero(first == second) <= 2
    moved = np.unique(first - second)
    assert len(moved) > 0.99 * LENGTH


def test_fewer_sites_than_the_threshold_are_never_confirmed() -> None:
    parties, deliveries = dealt()
    parties["east"].mask(deliveries["east"], np.zeros(LENGTH, dtype=np.int64))
    for survivors in (("east",), ("east", "north")):
        with pytest.raises(SecureSumRefused) as caught:
            parties["east"].confirm(survivors)
        assert caught.value.code == "secure-sum-threshold"
    assert parties["east"].confirm(("east", "north", "south")).survivors


@pytest.mark.parametrize(("patients", "bits"), [(4, 32), (4_000, 40), (1_000_000, 48)])
def test_the_modulus_holds_the_largest_honest_total(patients: int, bits: int) -> None:
    found = terms(members=members(declared_patients=patients))
    signal = 4 * patients * 2**20  # all patients of all sites along one coordinate, C = 2^20 steps
    assert found.modulus_bits == bits
    assert signal < found.bound < 2 ** (bits - 2)


def test_a_round_is_begun_once_and_older_ones_never_again(tmp_path: Path) -> None:
    sums = SumState(tmp_path / "sums", run="run")
    sums.agree(members())

    def begin(number: int) -> None:
        party = Party(terms(number), site="east", sign=sign_as("east"))
        party.advertise()
        sums.begin(party)

    begin(2)
    for number in (1, 2):
        with pytest.raises(SecureSumRefused) as caught:
            begin(number)
        assert caught.value.code == "secure-sum-again"
    begin(3)
    assert [path.name for path in sorted(tmp_path.rglob("*.state"))] == ["round-0000003.state"]


def test_of_two_messages_at_once_one_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parties, deliveries = dealt()
    sums = SumState(tmp_path, run="run")
    sums.agree(members())
    parties["east"].mask(deliveries["east"], np.zeros(LENGTH, dtype=np.int64))
    sums.begin(parties["east"])
    both = threading.Barrier(2, timeout=30)
    answer = Party.confirm

    def confirm_together(party: Party, survivors: Sequence[str]) -> Confirmation:
        both.wait()  # both have read the state from which one answer may be made
        return answer(party, survivors)

    monkeypatch.setattr(Party, "confirm", confirm_together)
    at = SimpleNamespace(folder=tmp_path, keys=SimpleNamespace(sign=sign_as("east")))
    found: list[Confirmation | str] = []

    def ask(survivors: tuple[str, ...]) -> None:
        task = ConfirmTask(run="run", round=1, survivors=survivors)
        try:
            found.append(confirm(cast("SiteState", at), task))
        except SecureSumRefused as refusal:
            found.append(refusal.code)

    sets = (("east", "north", "south"), ("east", "north", "west"))
    askers = [threading.Thread(target=ask, args=(each,)) for each in sets]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert sorted(isinstance(each, Confirmation) for each in found) == [False, True]
    assert "secure-sum-again" in found


@pytest.mark.parametrize("known", [(), ("north", "south")])
def test_a_hospital_joins_nobody_whose_key_it_has_not_compared(
    known: tuple[str, ...], federation: Federation, tmp_path: Path
) -> None:
    site = federation.site(
        "east",
        purpose="hospital",
        state=str(tmp_path),
        weight=4.0,
        declared_patients=4,
        privacy={
            "trust": ["secure"],
            "allow_baselines": False,
            "peers": {name: public_key(name) for name in known},
        },
    )
    keys = SiteKeys.create(tmp_path / "keys")
    own = Member(event_key=keys.event_key, declared_patients=4)
    task = RosterTask(
        study=study(),
        run="run",
        private=True,
        members={**members(), "east": own},
        noise_multiplier=1.0,
    )
    with pytest.raises(PolicyRefused) as caught:
        join(hospital_state(site), task)
    assert caught.value.code == "policy-peers"
    assert not list(tmp_path.rglob("roster.json"))
