"""What a site's ledger holds of medfl 0.1 is told to the server, and stands in ``privacy.json``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from medfl.privacy.ledger.store import LedgerStore
from medfl.privacy.mechanism import Mechanism
from medfl.protocol.messages import Declaration, Proposal
from medfl.server.account import privacy_summary
from medfl.server.ledger import FederationLedger
from medfl.server.run_folder import RunFolder
from medfl.site.agreement import declare

STEPS, ROUNDS = 5, 3
MECHANISM = Mechanism(
    sampling_prob=0.3,
    noise_multiplier=8.0,
    clip_norm=1.0,
    clipping="fixed",
    local_steps=STEPS,
    declared_patients=20,
)


def charge_as_then(folder: Path) -> None:
    """Rounds of a run as medfl 0.1 wrote them into a ledger."""
    values = {name: value for name, value in MECHANISM.to_dict().items() if name != "revision"}
    store = LedgerStore.open(folder)
    with store.writing():
        for number in range(ROUNDS):
            content = {"study": "s", "run": "old", "message_id": f"old/{number}", "steps": STEPS}
            store.append("charge", content | {"mechanism": values})
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
def test_a_hospital_declares_the_steps_that_an_affected_version_charged(
    old: bool, federation: Any
) -> None:
    site_state = federation.site_state(federation.hospital("east"))
    if old:
        charge_as_then(site_state.ledger_folder)
    study = federation.study(privacy={"noise": "operating-system"})
    found: Declaration = declare(site_state, Proposal(study=study, run="new", private=True))
    assert found.affected_steps == (ROUNDS * STEPS if old else 0)
    # The new run itself is not affected.
    assert found.mechanism.revision == 2


def test_the_declared_steps_stand_in_the_account_of_each_site(
    tmp_path: Path, voice_of: Callable[..., Any]
) -> None:
    folder = RunFolder(tmp_path / "run")
    ledger = FederationLedger(folder)
    for name, steps in (("DU", 15), ("HT", 0)):
        voice = voice_of(name, mechanism=MECHANISM)
        ledger.declare(voice.declaration(affected_steps=steps))
        ledger.record(voice.update(1), site=name, round_number=1, admitted=True)
    found = {entry.site: entry for entry in privacy_summary(folder)}
    assert [found[name].affected_steps for name in ("DU", "HT")] == [15, 0]
    assert {entry.revision for entry in found.values()} == {2}


def test_a_run_of_an_affected_version_says_so_in_its_account(
    tmp_path: Path, voice_of: Callable[..., Any]
) -> None:
    folder = RunFolder(tmp_path / "run")
    then = Mechanism(**{**MECHANISM.to_dict(), "revision": 1})
    voice = voice_of("DU", mechanism=then)
    ledger = FederationLedger(folder)
    ledger.declare(voice.declaration())
    ledger.record(voice.update(1), site="DU", round_number=1, admitted=True)
    (entry,) = privacy_summary(folder)
    assert (entry.revision, entry.steps) == (1, STEPS)


@pytest.mark.parametrize("steps", [-1, 1_000_000_001, 2.5])
def test_no_absurd_number_of_affected_steps_is_taken(
    steps: Any, voice_of: Callable[..., Any]
) -> None:
    with pytest.raises(ValidationError, match="affected_steps"):
        voice_of("DU", mechanism=MECHANISM).declaration(affected_steps=steps)
