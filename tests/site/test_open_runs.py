"""How many studies a hospital is in at once: its own file decides, whatever a server says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from medfl.config import SiteConfig
from medfl.errors import PolicyRefused
from medfl.protocol.messages import (
    FINISH,
    Declaration,
    FinishTask,
    Participant,
    Proposal,
    TrainTask,
    read_body,
    refusal_code,
    to_record,
)
from medfl.runs.attendance import STUDIES_AT_ONCE
from medfl.segmentation.networks import trainable_state
from medfl.site.open_runs import LEAST_SILENCE_SECONDS, UNUSABLE, OpenRuns
from medfl.site.state import hospital_state

STUDY: dict[str, Any] = {"privacy": {"noise": "operating-system"}, "training": {"rounds": 2}}


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def runs_of(federation: Any, clock: Clock) -> Callable[..., OpenRuns]:
    def make(limit: int = 1, *, purpose: str = "hospital") -> OpenRuns:
        site = federation.site(
            "east",
            purpose=purpose,
            state=str(federation.scratch / "east"),
            privacy={"allow_baselines": False, "studies_at_once": limit},
        )
        return OpenRuns(site, clock=clock)

    return make


@pytest.fixture
def proposal(federation: Any) -> Callable[..., Proposal]:
    def make(run: str, *beside: str, timeout: float = 60.0) -> Proposal:
        study = federation.study(**STUDY, aggregation={"round_timeout_seconds": timeout})
        return Proposal(study=study, run=run, private=True, beside=beside)

    return make


@contextmanager
def refused(code: str = STUDIES_AT_ONCE) -> Iterator[None]:
    with pytest.raises(PolicyRefused) as caught:
        yield
    assert caught.value.code == code


def test_a_run_beyond_the_limit_is_refused_by_name_until_one_has_ended(
    runs_of: Callable[..., OpenRuns], proposal: Callable[..., Proposal]
) -> None:
    runs = runs_of()
    with runs.entering(proposal("first")):
        pass
    told = r"at most 1 study at once .* in first \(study tiny\)"
    with pytest.raises(PolicyRefused, match=told), runs.entering(proposal("second", "first")):
        pytest.fail("agreed to a second study")
    assert runs.names() == ("first",)
    with runs.entering(proposal("first")):  # it goes on
        pass
    runs.close("first")
    with runs.entering(proposal("second")):
        pass
    assert runs.names() == ("second",)


def test_as_many_runs_are_open_as_the_file_allows(
    runs_of: Callable[..., OpenRuns], proposal: Callable[..., Proposal]
) -> None:
    runs = runs_of(2)
    for name, beside in (("first", ()), ("second", ("first",))):
        with runs.entering(proposal(name, *beside)):
            pass
    with refused(), runs.entering(proposal("third", "first", "second")):
        pytest.fail("agreed to a third study")
    assert runs.names() == ("first", "second")


def test_what_a_site_does_not_agree_to_is_not_open(
    runs_of: Callable[..., OpenRuns], proposal: Callable[..., Proposal]
) -> None:
    runs = runs_of()
    with runs.entering(proposal("first")):
        pass
    with pytest.raises(KeyError), runs.entering(proposal("second")):
        raise KeyError
    assert runs.names() == ("first",)


def test_a_run_that_its_server_does_not_name_any_more_holds_up_nobody(
    runs_of: Callable[..., OpenRuns], proposal: Callable[..., Proposal]
) -> None:
    """It was stopped, or its server crashed: nobody will say so to the site."""
    runs = runs_of()
    with runs.entering(proposal("stopped")):
        pass
    with runs.entering(proposal("next", "of-another-site")):
        pass
    assert runs.names() == ("next",)
    # It goes on when there is room again.
    with refused(), runs.entering(proposal("stopped", "next")):
        pass
    runs.close("next")
    with runs.entering(proposal("stopped")):
        pass
    assert runs.names() == ("stopped",)


def test_a_run_that_was_said_to_have_ended_is_answered_in_no_round(
    runs_of: Callable[..., OpenRuns], proposal: Callable[..., Proposal], clock: Clock
) -> None:
    runs = runs_of()
    with runs.entering(proposal("first", timeout=1.0)):
        pass
    study = proposal("first").study
    runs.require_open("first", study=study)
    with runs.entering(proposal("second", timeout=1.0)):  # a lie: the first one goes on
        pass
    for passed in (0.0, 2.0, LEAST_SILENCE_SECONDS - 10):
        clock.now += passed
        with refused():
            runs.require_open("first", study=study)
        runs.require_open("second", study=study)
    # A server that is gone for good says nothing; then its run gives way after a time.
    clock.now += LEAST_SILENCE_SECONDS + 1
    runs.require_open("first", study=study)
    with refused():
        runs.require_open("second", study=study)


def test_a_look_for_room_leaves_no_trace(
    runs_of: Callable[..., OpenRuns], proposal: Callable[..., Proposal], clock: Clock
) -> None:
    runs = runs_of()
    with runs.entering(proposal("first", timeout=1.0)):
        pass
    (path,) = Path(runs._folder).glob("*.json")
    before = path.read_bytes()
    clock.now += 2.0
    runs.require_room("first")
    with refused():
        runs.require_room("second")
    clock.now += LEAST_SILENCE_SECONDS
    runs.require_room("second")  # the first one has been silent for long enough
    assert path.read_bytes() == before


def test_a_long_time_limit_of_a_study_is_kept(
    runs_of: Callable[..., OpenRuns], proposal: Callable[..., Proposal], clock: Clock
) -> None:
    runs, day = runs_of(), 24 * 3600.0
    with runs.entering(proposal("slow", timeout=day)):
        pass
    clock.now += day - 1
    with refused():
        runs.require_open("other", study=proposal("other").study)
    clock.now += 2
    runs.require_open("other", study=proposal("other").study)


def test_a_lower_limit_ends_no_run_that_is_open(
    runs_of: Callable[..., OpenRuns], proposal: Callable[..., Proposal]
) -> None:
    with runs_of(2).entering(proposal("first")):
        pass
    with runs_of(2).entering(proposal("second", "first")):
        pass
    runs = runs_of(1)
    runs.require_open("first", study=proposal("first").study)
    runs.require_open("second", study=proposal("second").study)


def test_a_damaged_list_is_named_and_refuses(
    runs_of: Callable[..., OpenRuns], proposal: Callable[..., Proposal]
) -> None:
    runs = runs_of()
    with runs.entering(proposal("first")):
        pass
    (path,) = Path(runs._folder).glob("*.json")
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    path.write_text("[]")
    with pytest.raises(PolicyRefused, match=rf"{path}: expected .* delete it"):
        runs.names()
    with refused(UNUSABLE):
        runs.require_open("first", study=proposal("first").study)
    path.unlink()
    runs.require_open("first", study=proposal("first").study)
    assert json.loads(path.read_text())["first"]["study"] == "tiny"


def test_open_data_have_no_limit(
    runs_of: Callable[..., OpenRuns], proposal: Callable[..., Proposal]
) -> None:
    runs = runs_of(purpose="open-data")
    for name in ("first", "second"):
        with runs.entering(proposal(name, "first", "second")):
            pass
        runs.require_open(name, study=proposal(name).study)
    runs.close("first")
    assert not Path(runs._folder).exists()


class Room:
    """A server, hostile or not, in front of one hospital."""

    def __init__(self, federation: Any, site: SiteConfig, **study: Any) -> None:
        self.federation = federation
        self.site = site
        self.study = federation.study(**STUDY | study)
        self.mechanisms: dict[str, Any] = {}

    def ask(self, question: Any, *, kind: str) -> Any:
        return self.federation.ask(hospital_state(self.site), question, kind=kind)

    def propose(self, run: str, *beside: str) -> str:
        """The code of a refusal; empty text if the site agrees."""
        question = Proposal(study=self.study, run=run, private=True, beside=beside)
        answer = self.ask(to_record(question), kind="query")
        if not refusal_code(answer):
            self.mechanisms[run] = read_body(answer, Declaration).mechanism
        return refusal_code(answer)

    @property
    def weights(self) -> Any:
        return trainable_state(hospital_state(self.site).network(self.study))

    def train(self, run: str, number: int) -> str:
        """The code of a refusal; empty text for an update."""
        task = TrainTask(
            study=self.study,
            run=run,
            round=number,
            message_id=f"{run}/{number}/{self.site.name}",
            mechanism=self.mechanisms[run],
        )
        return refusal_code(self.ask(to_record(task, weights=self.weights), kind="train"))

    def finish(self, run: str) -> str:
        """The code of a refusal; empty text if the site has the final model."""
        said = Participant(label_scheme=self.site.data.label_scheme, mechanism=self.mechanisms[run])
        task = FinishTask(study=self.study, run=run, sites={self.site.name: said})
        return refusal_code(self.ask(to_record(task, weights=self.weights), kind=FINISH))

    def charges(self) -> dict[str, int]:
        with hospital_state(self.site).open_ledger() as ledger:
            return {run.run: run.charges for run in ledger.spent().by_run}


@pytest.fixture
def room(federation: Any) -> Room:
    return Room(federation, federation.hospital("east"))


def test_a_site_agrees_to_the_next_study_when_the_final_model_has_come(room: Room) -> None:
    assert room.propose("first") == ""
    assert room.train("first", 1) == ""
    assert room.propose("second", "first") == STUDIES_AT_ONCE
    with hospital_state(room.site).open_ledger() as ledger:
        assert ledger.agreement("second") is None
    assert room.train("first", 2) == ""
    assert room.finish("first") == ""
    assert room.propose("second") == ""
    assert room.train("second", 1) == ""
    assert room.charges() == {"first": 2, "second": 1}


def test_no_claim_of_an_end_and_no_new_name_gives_a_server_two_runs_at_once(room: Room) -> None:
    assert room.propose("first") == ""
    assert room.train("first", 1) == ""
    # Only what was agreed to and charged can be ended by a final model.
    room.mechanisms["made-up"] = room.mechanisms["first"]
    assert room.finish("made-up") == "policy-not-agreed"
    assert room.propose("second", "first") == STUDIES_AT_ONCE
    # The end is claimed, by a list without the run or by a final model: then it has ended.
    assert room.propose("second") == ""
    assert room.train("first", 2) == STUDIES_AT_ONCE
    assert room.train("second", 1) == ""
    assert room.finish("second") == ""
    assert room.propose("third") == ""
    assert room.train("second", 2) == STUDIES_AT_ONCE
    assert room.train("first", 2) == STUDIES_AT_ONCE
    # What was paid for is sent again, whatever is open.
    assert room.train("first", 1) == ""
    assert room.charges() == {"first": 1, "second": 1}


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")])
def test_two_studies_at_once_spend_one_budget_and_nobody_overspends(
    order: tuple[str, str], federation: Any
) -> None:
    privacy = {"studies_at_once": 2, "epsilon": 4.0}
    site = federation.hospital("east", privacy=privacy)
    room = Room(federation, site, privacy={"noise": "operating-system", "epsilon": 3.9})
    # Each of them fits what is left as long as the other has spent nothing.
    assert [room.propose("first"), room.propose("second", "first")] == ["", ""]
    codes = [room.train(run, number) for number in (1, 2) for run in order]
    assert codes[0] == ""
    assert codes[-1] == "budget-exceeded"
    with hospital_state(site).open_ledger() as ledger:
        ledger.recount()
        spent = ledger.spent()
    assert 0 < spent.private_epsilon <= 4.0
    assert sum(run.charges for run in spent.by_run) == codes.count("")
