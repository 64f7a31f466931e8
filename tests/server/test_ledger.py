"""The server's account: every release once, by the agreed mechanism, never by a site's word.

What a site says of its own ledger is signed, and it may only grow; what was asked for and never
came is presumed to have been paid for until the site speaks again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from medfl.config.schedule import RoundSchedule
from medfl.errors import MessageError
from medfl.privacy.mechanism import Mechanism
from medfl.protocol.keys import Rotation
from medfl.protocol.messages import SiteUpdate
from medfl.server.ledger import FederationLedger
from medfl.server.run_folder import RunFolder

Voice = Any  # of this folder's conftest

STEPS = 5
MECHANISM = Mechanism(
    sampling_prob=0.3,
    noise_multiplier=2.0,
    clip_norm=1.0,
    clipping="fixed",
    local_steps=STEPS,
    declared_patients=20,
)
OTHER = Mechanism(**{**MECHANISM.to_dict(), "noise_multiplier": 3.0})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def du(voice_of: Callable[..., Voice]) -> Voice:
    return voice_of("DU", mechanism=MECHANISM)


@pytest.fixture
def ht(voice_of: Callable[..., Voice]) -> Voice:
    return voice_of("HT", mechanism=MECHANISM)


@pytest.fixture
def ledger(folder: RunFolder, du: Voice, ht: Voice) -> FederationLedger:
    """A run that DU and HT have joined."""
    opened = FederationLedger(folder)
    opened.declare(du.declaration())
    opened.declare(ht.declaration())
    return opened


def expected(steps: int, *, noise: float = 2.0) -> float:
    """Epsilon by dp-accounting itself."""
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-3)
    step = dp_accounting.PoissonSampledDpEvent(0.3, dp_accounting.GaussianDpEvent(noise))
    accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
    return float(accountant.get_epsilon(1e-5))


def count(ledger: FederationLedger, given: SiteUpdate, number: int, *, site: str = "DU") -> float:
    return ledger.record(given, site=site, round_number=number, admitted=True)


def steps(ledger: FederationLedger, site: str = "DU") -> int:
    return sum(charge.steps for charge in ledger.charges(site))


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(MessageError) as caught:
        action()
    return caught.value.code


# --- what is released


def test_epsilon_is_recomputed_from_the_events(ledger: FederationLedger, du: Voice) -> None:
    assert ledger.epsilon("DU") == 0.0
    for number in (1, 2, 3):
        found = count(ledger, du.update(number), number)
        assert found == pytest.approx(expected(STEPS * number), rel=1e-9)
    assert ledger.epsilon("HT") == 0.0


def test_an_update_sent_again_is_counted_once(
    ledger: FederationLedger, folder: RunFolder, du: Voice
) -> None:
    first = count(ledger, du.update(1), 1)
    assert count(ledger, du.update(1), 1) == first
    assert count(FederationLedger(folder), du.update(1), 1) == first
    assert len(folder.events()) == 1


def test_an_update_sent_again_passes_the_screening(ledger: FederationLedger, du: Voice) -> None:
    count(ledger, du.update(1), 1)
    ledger.check(du.update(1), site="DU")


def test_a_round_computed_again_is_counted_again(ledger: FederationLedger, du: Voice) -> None:
    first = count(ledger, du.update(1), 1)
    again = du.update(1, ledger_sequence=9, run_steps=2 * STEPS)
    ledger.check(again, site="DU")
    second = count(ledger, again, 1)
    assert second == pytest.approx(expected(2 * STEPS))
    assert second > first


def test_a_ledger_sequence_that_stands_still_hides_nothing(
    ledger: FederationLedger, du: Voice
) -> None:
    first = count(ledger, du.update(1, ledger_sequence=2), 1)
    assert count(ledger, du.update(2, ledger_sequence=2), 2) > first


def test_what_was_rejected_counts_as_well(
    ledger: FederationLedger, folder: RunFolder, du: Voice
) -> None:
    ledger.record(du.update(1), site="DU", round_number=1, admitted=False)
    assert ledger.epsilon("DU") == pytest.approx(expected(STEPS))
    assert folder.events()[0].admitted is False


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 1},
        {"steps": 10**7},
        {"mechanism": Mechanism(**{**MECHANISM.to_dict(), "noise_multiplier": 1e6})},
        {"mechanism": Mechanism(**{**MECHANISM.to_dict(), "sampling_prob": 1e-6})},
        {"mechanism": Mechanism(**{**MECHANISM.to_dict(), "clip_norm": 0.5})},
    ],
)
def test_another_mechanism_than_agreed_counts_as_none(
    changes: dict[str, Any], ledger: FederationLedger, folder: RunFolder, du: Voice
) -> None:
    assert count(ledger, du.update(1, **changes), 1) == math.inf
    assert FederationLedger(folder).epsilon("DU") == math.inf


def test_the_site_that_was_asked_pays_whatever_name_it_gives(
    ledger: FederationLedger, du: Voice
) -> None:
    count(ledger, du.update(1, site="HT"), 1, site="DU")
    assert ledger.epsilon("DU") > 0
    assert ledger.epsilon("HT") == 0.0


def test_an_update_that_nobody_signed_is_refused_and_counts(
    ledger: FederationLedger, folder: RunFolder, du: Voice, ht: Voice
) -> None:
    # In the name of DU, by another site's key.
    forged = du.update(1).signed(ht.keys)
    assert refused(lambda: ledger.check(forged, site="DU")) == "update-signature"
    assert ledger.record(forged, site="DU", round_number=1, admitted=False) > 0
    assert ledger.newest("DU") == du.declaration()
    assert folder.events()[0].signed is False


# --- what never came


def test_a_silent_site_is_presumed_to_have_paid(
    ledger: FederationLedger, folder: RunFolder, du: Voice
) -> None:
    count(ledger, du.update(1), 1)
    found = ledger.presume("DU", round_number=2, code="silent")
    assert found == pytest.approx(expected(2 * STEPS))
    assert ledger.unseen_steps("DU") == STEPS
    assert ledger.unseen_steps("HT") == 0
    assert folder.events()[1].presumed == "silent"


def test_a_presumption_is_lifted_by_a_ledger_that_was_not_charged(
    ledger: FederationLedger, du: Voice
) -> None:
    count(ledger, du.update(1), 1)
    ledger.presume("DU", round_number=2, code="silent")
    # The question of round 2 had not arrived: in round 3 two rounds are charged in all.
    late = du.update(3, run_steps=2 * STEPS)
    ledger.check(late, site="DU")
    assert count(ledger, late, 3) == pytest.approx(expected(2 * STEPS))
    assert ledger.unseen_steps("DU") == 0


def test_a_presumption_is_confirmed_by_a_ledger_that_was_charged(
    ledger: FederationLedger, du: Voice
) -> None:
    count(ledger, du.update(1), 1)
    ledger.presume("DU", round_number=2, code="internal")
    # The answer of round 2 was lost on its way: in round 3 three rounds are charged in all.
    late = du.update(3)
    ledger.check(late, site="DU")
    assert count(ledger, late, 3) == pytest.approx(expected(3 * STEPS))
    assert ledger.unseen_steps("DU") == STEPS


@pytest.mark.parametrize("paid", [0, STEPS])
def test_a_presumption_is_settled_by_the_next_declaration_too(
    paid: int, ledger: FederationLedger, folder: RunFolder, du: Voice
) -> None:
    ledger.presume("DU", round_number=1, code="silent")
    ledger.declare(du.declaration(ledger_sequence=4, run_steps=paid))
    assert steps(ledger) == ledger.unseen_steps("DU") == paid
    assert FederationLedger(folder).epsilon("DU") == ledger.epsilon("DU")


@pytest.mark.parametrize(
    "code", ["budget-exceeded", "policy-not-agreed", "policy-rounds", "message-body", "message"]
)
def test_a_refusal_before_the_charge_presumes_nothing(
    code: str, ledger: FederationLedger, folder: RunFolder
) -> None:
    assert ledger.presume("DU", round_number=1, code=code) == 0.0
    assert folder.events() == []


@pytest.mark.parametrize(
    "code",
    # A failure after the charge, and words that only look like a refusal before it.
    ["internal", "out-of-memory", "node-error", "update-body", "refusal-code", "ledger", "budgets"],
)
def test_any_other_failure_is_presumed_to_have_been_paid(
    code: str, ledger: FederationLedger
) -> None:
    assert ledger.presume("DU", round_number=1, code=code) == pytest.approx(expected(STEPS))


def test_steps_that_the_server_never_saw_are_counted(ledger: FederationLedger, du: Voice) -> None:
    # A crash at the site: charged, never released, computed again under a second charge.
    gap = du.update(1, run_steps=3 * STEPS)
    ledger.check(gap, site="DU")
    assert count(ledger, gap, 1) == pytest.approx(expected(3 * STEPS))
    assert ledger.unseen_steps("DU") == 2 * STEPS


def test_what_was_charged_before_the_server_knew_the_site_is_counted(
    folder: RunFolder, du: Voice
) -> None:
    ledger = FederationLedger(folder)
    ledger.declare(du.declaration(run_steps=2 * STEPS))
    assert ledger.epsilon("DU") == pytest.approx(expected(2 * STEPS))


# --- ledgers that go back


def test_a_ledger_that_is_older_than_its_last_update_is_refused(
    ledger: FederationLedger, du: Voice
) -> None:
    for number in (1, 2):
        count(ledger, du.update(number), number)
    back = du.update(3, ledger_sequence=3)
    assert refused(lambda: ledger.check(back, site="DU")) == "ledger-rolled-back"
    same = du.update(3, ledger_sequence=4)
    assert refused(lambda: ledger.check(same, site="DU")) == "ledger-rolled-back"


def test_a_ledger_that_was_charged_for_less_than_was_released_is_refused(
    ledger: FederationLedger, du: Voice
) -> None:
    for number in (1, 2):
        count(ledger, du.update(number), number)
    # Grown by other entries past the sequence that the server knows.
    back = du.update(3, ledger_sequence=20, run_steps=3 * STEPS - 1)
    assert refused(lambda: ledger.check(back, site="DU")) == "ledger-rolled-back"
    ledger.check(du.update(3, ledger_sequence=20), site="DU")


@pytest.mark.parametrize(
    "changes",
    [
        {"ledger_sequence": 3, "run_steps": 2 * STEPS},
        {"ledger_sequence": 4, "run_steps": 2 * STEPS, "ledger_hash": "e" * 64},
        {"ledger_sequence": 9, "run_steps": 2 * STEPS - 1},
        {"ledger_sequence": 9, "run_steps": 0},
    ],
    ids=["by sequence", "by hash", "by steps", "by all steps"],
)
def test_a_site_that_comes_back_with_an_older_ledger_is_refused(
    changes: dict[str, Any], ledger: FederationLedger, folder: RunFolder, du: Voice
) -> None:
    for number in (1, 2):
        count(ledger, du.update(number), number)
    resumed = FederationLedger(folder)
    assert refused(lambda: resumed.declare(du.declaration(**changes))) == "ledger-rolled-back"
    assert resumed.epsilon("DU") == pytest.approx(expected(2 * STEPS))
    resumed.declare(du.declaration(ledger_sequence=4, run_steps=2 * STEPS, ledger_hash=f"{4:064x}"))


def test_a_site_that_comes_back_has_to_show_the_steps_that_were_lost(
    ledger: FederationLedger, folder: RunFolder, du: Voice
) -> None:
    count(ledger, du.update(1, run_steps=3 * STEPS), 1)
    resumed = FederationLedger(folder)
    short = du.declaration(ledger_sequence=9, run_steps=3 * STEPS - 1)
    assert refused(lambda: resumed.declare(short)) == "ledger-rolled-back"
    resumed.declare(du.declaration(ledger_sequence=9, run_steps=3 * STEPS))


@pytest.mark.parametrize(
    "changes",
    [
        {"ledger_sequence": 1, "run_steps": 5 * STEPS},
        {"ledger_sequence": 30, "run_steps": STEPS},
    ],
    ids=["by sequence", "by steps"],
)
def test_a_ledger_that_went_back_lifts_no_presumption(
    changes: dict[str, Any], ledger: FederationLedger, folder: RunFolder, du: Voice
) -> None:
    for number in (1, 2):
        count(ledger, du.update(number), number)
    ledger.presume("DU", round_number=3, code="silent")
    newest = ledger.newest("DU")
    back = du.update(4, **changes)
    assert refused(lambda: ledger.check(back, site="DU")) == "ledger-rolled-back"
    ledger.record(back, site="DU", round_number=4, admitted=False)
    assert steps(ledger) >= 4 * STEPS  # two admitted, one silent, one rejected
    assert ledger.newest("DU") == newest
    assert FederationLedger(folder).charges("DU") == ledger.charges("DU")


def test_an_update_out_of_the_outbox_does_not_hide_the_newer_ledger(
    ledger: FederationLedger, folder: RunFolder, du: Voice
) -> None:
    # The site was charged for round 1 and declared again before its stored answer arrived.
    newest = du.declaration(ledger_sequence=8, run_steps=STEPS)
    ledger.declare(newest)
    stored = du.update(1)
    ledger.check(stored, site="DU")
    count(ledger, stored, 1)
    assert ledger.newest("DU") == newest
    assert ledger.unseen_steps("DU") == 0
    old = du.declaration(ledger_sequence=7, run_steps=STEPS)
    assert refused(lambda: FederationLedger(folder).declare(old)) == "ledger-rolled-back"


# --- keys


def test_a_declaration_is_signed_by_the_key_that_it_names(
    folder: RunFolder, du: Voice, ht: Voice
) -> None:
    ledger = FederationLedger(folder)
    forged = du.declaration().signed(ht.keys)
    assert refused(lambda: ledger.declare(forged)) == "declaration-signature"
    changed = du.declaration().model_copy(update={"weight": 1e6})
    assert refused(lambda: ledger.declare(changed)) == "declaration-signature"
    assert ledger.declarations == {}
    assert folder.declarations() == []


def test_another_key_does_not_take_over_a_site(
    ledger: FederationLedger, folder: RunFolder, du: Voice, voice_of: Callable[..., Voice]
) -> None:
    stranger = voice_of("DU", mechanism=MECHANISM)
    later = {"ledger_sequence": 9, "run_steps": STEPS}
    resumed = FederationLedger(folder)
    code = refused(lambda: resumed.declare(stranger.declaration(**later)))
    assert code == "declaration-key"
    claimed = Rotation(old=du.keys.event_key, new=stranger.keys.event_key, signature="0" * 128)
    forged = stranger.declaration(**later, rotations=(claimed,))
    assert refused(lambda: resumed.declare(forged)) == "declaration-key"
    assert resumed.declarations["DU"] == du.declaration()


def test_a_rotated_key_is_followed_by_its_rotation_and_not_without(
    ledger: FederationLedger, folder: RunFolder, du: Voice, tmp_path: Path
) -> None:
    count(ledger, du.update(1), 1)
    old = du.keys
    du.keys = du.keys.rotate(tmp_path / "keys").rotate(tmp_path / "keys")
    resumed = FederationLedger(folder)
    later = {"ledger_sequence": 9, "run_steps": STEPS}
    without = du.declaration(**later, rotations=())
    assert refused(lambda: resumed.declare(without)) == "declaration-key"
    resumed.declare(du.declaration(**later))
    assert resumed.epsilon("DU") == pytest.approx(expected(STEPS))
    second = du.update(2, ledger_sequence=11)
    resumed.check(second, site="DU")
    by_old_key = second.signed(old)
    assert refused(lambda: resumed.check(by_old_key, site="DU")) == "update-signature"


# --- over restarts


def test_a_server_that_starts_again_knows_what_was_spent(
    ledger: FederationLedger, folder: RunFolder, du: Voice
) -> None:
    for number in (1, 2):
        count(ledger, du.update(number), number)
    again = FederationLedger(folder)
    assert again.epsilon("DU") == ledger.epsilon("DU")
    assert [charge.steps for charge in again.charges("DU")] == [STEPS, STEPS]
    count(again, du.update(3), 3)
    assert [event.sequence for event in folder.events()] == [1, 2, 3]


def test_every_state_on_the_way_reads_back_equal(
    ledger: FederationLedger, folder: RunFolder, du: Voice, ht: Voice
) -> None:
    """Releases, losses, rejections, gaps and a resume; live and replayed at every point."""
    later = {"ledger_sequence": 12, "run_steps": 6 * STEPS}
    story: list[Callable[[FederationLedger], object]] = [
        lambda it: count(it, du.update(1), 1),
        lambda it: it.presume("HT", round_number=1, code="silent"),
        lambda it: it.record(
            du.update(2, run_steps=4 * STEPS), site="DU", round_number=2, admitted=False
        ),
        lambda it: count(it, ht.update(2, run_steps=STEPS), 2, site="HT"),
        lambda it: it.presume("DU", round_number=3, code="internal"),
        lambda it: it.presume("HT", round_number=3, code="budget-exceeded"),
        lambda it: it.declare(du.declaration(**later)),
        lambda it: count(it, ht.update(4, steps=1), 4, site="HT"),
    ]
    seen = set()
    for step in story:
        step(ledger)
        again = FederationLedger(folder)
        for site in ("DU", "HT"):
            assert again.charges(site) == ledger.charges(site)
            assert again.unseen_steps(site) == ledger.unseen_steps(site)
            assert again.newest(site) == ledger.newest(site)
            assert again.epsilon(site) == ledger.epsilon(site)
        seen.add((ledger.epsilon("DU"), ledger.epsilon("HT")))
    assert len(seen) > 4
    assert ledger.epsilon("DU") == pytest.approx(expected(6 * STEPS))
    assert ledger.epsilon("HT") == math.inf


def test_another_mechanism_after_a_restart_leaves_older_events_as_they_were(
    ledger: FederationLedger, folder: RunFolder, du: Voice
) -> None:
    first = count(ledger, du.update(1), 1)
    resumed = FederationLedger(folder)
    du.mechanism = OTHER
    resumed.declare(du.declaration(ledger_sequence=5, run_steps=STEPS))
    assert resumed.epsilon("DU") == first
    assert first < count(resumed, du.update(2, ledger_sequence=7), 2) < math.inf
    assert [c.mechanism for c in FederationLedger(folder).charges("DU")] == [MECHANISM, OTHER]
    assert FederationLedger(folder).epsilon("DU") == resumed.epsilon("DU")


def test_a_site_that_is_gone_after_a_restart_stays_in_the_account(
    ledger: FederationLedger, folder: RunFolder, du: Voice, ht: Voice
) -> None:
    count(ledger, du.update(1), 1)
    count(ledger, ht.update(1), 1, site="HT")
    resumed = FederationLedger(folder)
    resumed.declare(ht.declaration(ledger_sequence=4, run_steps=STEPS))
    assert list(resumed.declarations) == ["DU", "HT"]
    assert resumed.epsilon("DU") == pytest.approx(expected(STEPS))


def test_an_update_of_another_run_says_nothing_of_this_ones_charges(
    ledger: FederationLedger, du: Voice
) -> None:
    other = du.update(40, run="other", message_id="other/40/DU")
    ledger.record(other, site="DU", round_number=1, admitted=False)
    # It counts as released, but its 200 steps are not this run's.
    assert ledger.epsilon("DU") == pytest.approx(expected(STEPS))
    assert ledger.newest("DU") == du.declaration()


# --- a clip norm that changes from round to round

COURSE = RoundSchedule(shape="linear", warmup_rounds=0, final_fraction=0.1, rounds=10)
WHOLE = Mechanism(**MECHANISM.to_dict(), clip_norm_schedule=COURSE)


@pytest.fixture
def scheduled(folder: RunFolder, voice_of: Callable[..., Voice]) -> tuple[FederationLedger, Voice]:
    """A run whose clip norm falls, with one site."""
    voice = voice_of("DU", mechanism=WHOLE)
    opened = FederationLedger(folder)
    opened.declare(voice.declaration())
    return opened, voice


def test_each_round_reports_the_clip_norm_of_its_own(
    scheduled: tuple[FederationLedger, Voice], folder: RunFolder
) -> None:
    ledger, du = scheduled
    for number in (1, 2, 3):
        update = du.update(number, mechanism=WHOLE.in_round(number))
        assert count(ledger, update, number) == pytest.approx(expected(STEPS * number))
    assert FederationLedger(folder).epsilon("DU") == ledger.epsilon("DU")


def test_the_clip_norm_of_another_round_is_not_what_was_agreed(
    scheduled: tuple[FederationLedger, Voice],
) -> None:
    ledger, du = scheduled
    assert count(ledger, du.update(2, mechanism=WHOLE.in_round(1)), 2) == math.inf


def test_a_round_that_the_study_does_not_have_is_not_what_was_agreed(
    scheduled: tuple[FederationLedger, Voice],
) -> None:
    ledger, du = scheduled
    assert count(ledger, du.update(11, mechanism=WHOLE.in_round(10)), 3) == math.inf


def test_an_answer_that_comes_a_round_too_late_is_one_to_its_own_round(
    scheduled: tuple[FederationLedger, Voice], folder: RunFolder
) -> None:
    ledger, du = scheduled
    late = du.update(1, mechanism=WHOLE.in_round(1))
    found = ledger.record(late, site="DU", round_number=2, admitted=False)
    assert found == pytest.approx(expected(STEPS))
    assert FederationLedger(folder).epsilon("DU") == found


def test_silence_is_presumed_to_have_cost_a_round_with_its_clip_norm(
    scheduled: tuple[FederationLedger, Voice], folder: RunFolder
) -> None:
    ledger, _ = scheduled
    assert ledger.presume("DU", round_number=6, code="silent") == pytest.approx(expected(STEPS))
    (event,) = folder.events()
    assert event.mechanism.clip_norm == pytest.approx(0.5)
