"""One machine, one budget: the same patients are known again, and one run takes what was agreed."""

from __future__ import annotations

import gzip
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfl.config import SiteConfig
from medfl.data.cohort import pseudonym
from medfl.errors import DataError, LedgerError
from medfl.privacy.ledger.allowance import most_steps
from medfl.privacy.ledger.witness_lock import exclusive
from medfl.privacy.ledger.witness_place import witness_folder
from medfl.protocol.messages import (
    Declaration,
    Proposal,
    TrainTask,
    read_body,
    refusal_code,
    to_record,
)
from medfl.segmentation.networks import trainable_state
from medfl.server.progress import Silent
from medfl.site import known_patients
from medfl.site.filling import fill_cache
from medfl.site.round import train_update
from medfl.site.state import (
    create_ledger,
    hospital_state,
    simulated_state,
)
from medfl.study.baselines import threshold_scores
from medfl.study.simulation import prepare_folder, simulate

pytestmark = pytest.mark.slow

STUDY: dict[str, Any] = {
    "privacy": {"noise": "operating-system"},
    "aggregation": {"min_sites": 1},
}
ENDINGS = ("t1", "t1ce", "t2", "flair")


@pytest.fixture
def site(federation: Any) -> SiteConfig:
    """A hospital with four patients, whom its ledger pays for, and with budget to spare."""
    found: SiteConfig = federation.hospital("east", copy_patients=True, privacy={"epsilon": 100.0})
    return found


def names(site: SiteConfig) -> list[str]:
    return sorted(path.name for path in Path(site.data.root).iterdir())


def copied(source: Path, target: Path, change: Callable[[bytes], bytes]) -> None:
    """A case under another name, with every file's uncompressed content changed and packed anew."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        content = change(gzip.decompress(path.read_bytes()))
        new = target / path.name.replace(source.name, target.name)
        new.write_bytes(gzip.compress(content, 1))


def unchanged(content: bytes) -> bytes:
    return content


def described(content: bytes) -> bytes:
    return content[:148] + b"xxxx" + content[152:]


def elsewhere(federation: Any, site: SiteConfig, **changes: Any) -> SiteConfig:
    """A second cohort of the machine, with a state folder and images of its own."""
    data = site.data.model_copy(
        update={"root": federation.scratch / "second", **changes.pop("data", {})}
    )
    state = federation.scratch / "state" / "second"
    return site.model_copy(update={"name": "second", "state": state, "data": data, **changes})


@pytest.mark.parametrize(
    ("change", "modalities"),
    [
        (unchanged, ("t1c", "t2f")),
        (described, ("t1c", "t2f")),
        (unchanged, ("t2f",)),
        (described, ("t1n", "t2w")),
    ],
    ids=["renamed", "header", "other first modality", "other modalities and header"],
)
def test_a_cohort_in_disguise_gets_no_second_budget(
    change: Callable[[bytes], bytes],
    modalities: tuple[str, ...],
    federation: Any,
) -> None:
    site = federation.hospital("east", data={"modalities": ["t1c", "t2f"]})
    for number, name in enumerate(names(site)):
        copied(
            Path(site.data.root) / name,
            federation.scratch / "second" / f"BraTS2021_7777{number}",
            change,
        )
    second = elsewhere(federation, site, data={"modalities": modalities})
    with pytest.raises(LedgerError, match="pays for some of them") as caught:
        create_ledger(second, folder=second.state / "ledger")
    assert caught.value.code == "ledger-elsewhere"
    assert not (second.state / "ledger").exists()


def test_one_patient_in_disguise_who_joins_later_stops_the_run_before_it_begins(
    federation: Any, site: SiteConfig
) -> None:
    other = federation.site("south").data.root
    for name in names(federation.site("south"))[:2]:
        shutil.copytree(Path(other) / name, federation.scratch / "second" / name)
    second = elsewhere(federation, site, declared_patients=3)
    create_ledger(second, folder=second.state / "ledger").close()
    shutil.copytree(site.state / "keys", second.state / "keys")
    copied(
        Path(site.data.root) / names(site)[0],
        federation.scratch / "second" / "BraTS2021_77770",
        described,
    )
    assert declared(federation, hospital_state(second)) == "ledger-elsewhere"
    with hospital_state(second).open_ledger() as ledger:
        assert ledger.agreement("run") is None


def declared(federation: Any, site_state: Any, *, study: Any = None) -> str:
    """The code with which a site refuses a proposal; empty if it agrees."""
    proposal = Proposal(study=study or federation.study(**STUDY), run="run", private=True)
    found: str = refusal_code(federation.ask(site_state, to_record(proposal), kind="query"))
    return found


# --- open data


@pytest.fixture
def public(federation: Any, site: SiteConfig) -> SiteConfig:
    """The hospital's images under other names, called open data."""
    for number, name in enumerate(names(site)):
        copied(
            Path(site.data.root) / name,
            federation.scratch / "public" / f"BraTS2021_7777{number}",
            described,
        )
    found: SiteConfig = federation.site(
        "east",
        declared_patients=3,
        privacy={"share_metrics": True, "allow_baselines": True},
        data={"root": str(federation.scratch / "public"), "held_out": 0.25},
        state=str(federation.scratch / "public-state"),
    )
    return found


@pytest.mark.parametrize("private", [True, False])
def test_a_hospitals_patients_are_no_open_data(
    federation: Any, public: SiteConfig, *, private: bool
) -> None:
    site_state = simulated_state(public, run_folder=federation.scratch / "run")
    proposal = Proposal(study=federation.study(**STUDY), run="run", private=private)
    reply = federation.ask(site_state, to_record(proposal), kind="query")
    assert refusal_code(reply) == "ledger-elsewhere"
    assert not site_state.ledger_folder.exists()


def test_a_simulation_with_a_hospitals_patients_computes_nothing(
    federation: Any, public: SiteConfig, caplog: pytest.LogCaptureFixture
) -> None:
    study, out = federation.study(**STUDY), federation.scratch / "run"
    prepare_folder(out, study=study, resume=False)
    with pytest.raises(Exception, match="ledger-elsewhere"):
        simulate(study, [public], out=out, engine="inprocess", progress=Silent())
    assert "purpose 'hospital'" in caplog.text
    assert not list(out.rglob("ledger.sqlite"))
    assert not list((public.state / "cache").glob("*.case"))


@pytest.mark.parametrize("which", ["threshold", "cache"])
def test_nothing_else_prepares_a_hospitals_patients_as_open_data(
    which: str, federation: Any, public: SiteConfig
) -> None:
    study, out = federation.study(**STUDY), federation.scratch / "run"
    with pytest.raises(LedgerError, match="Expected open data") as caught:
        if which == "threshold":
            threshold_scores(study, [public], out=out)
        else:
            site_state = simulated_state(public, run_folder=out)
            fill_cache(site_state, study, on_patient=lambda *_: None)
    assert caught.value.code == "ledger-elsewhere"
    assert not list((public.state / "cache").glob("*.case"))


def test_a_round_of_open_data_is_refused_once_a_hospital_pays_for_its_patients(
    federation: Any,
) -> None:
    open_data = federation.site("east", privacy={"share_metrics": False})
    site_state = simulated_state(open_data, run_folder=federation.scratch / "run")
    asked = task(federation, site_state, 1)
    federation.hospital("east")
    later = simulated_state(open_data, run_folder=federation.scratch / "run")
    assert train(federation, later, asked) == "ledger-elsewhere"
    with later.open_ledger() as ledger:
        assert ledger.steps(run="run") == 0


def test_a_machine_without_ledgers_reads_no_image_for_the_witness(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        known_patients, "patient_fingerprints", lambda *_, **__: pytest.fail("was asked")
    )
    finished = federation.run(federation.study(), federation.sites("east", "south"))
    assert finished.outcomes(1)["east"] == ("admitted", "")
    assert not witness_folder().exists()


def test_open_data_of_others_are_used_beside_a_hospital_and_not_remembered(
    federation: Any, site: SiteConfig
) -> None:
    kept = {path.name: path.read_bytes() for path in witness_folder().iterdir()}
    finished = federation.run(federation.study(**STUDY), federation.sites("south"))
    assert finished.outcomes(1) == {"south": ("admitted", "")}
    assert {path.name: path.read_bytes() for path in witness_folder().iterdir()} == kept


# --- one person, one name


def test_one_person_under_two_names_is_refused(federation: Any, site: SiteConfig) -> None:
    first, second = names(site)[0], "BraTS2021_77770"
    copied(Path(site.data.root) / first, Path(site.data.root) / second, described)
    twice = site.model_copy(update={"declared_patients": 5})
    site_state = hospital_state(twice)
    assert declared(federation, site_state) == "doubled-patient"
    with site_state.open_ledger() as ledger:
        assert ledger.agreement("run") is None
    with pytest.raises(DataError, match="each person under one patient id") as caught:
        site_state.marks()
    for name in (first, second):
        assert name not in str(caught.value)
        assert pseudonym(name, key=site_state.key) in str(caught.value)


# --- one folder, whatever it is called


def test_a_second_name_of_a_state_folder_is_the_same_ledger(
    federation: Any, site: SiteConfig
) -> None:
    link = federation.scratch / "link"
    link.symlink_to(site.state)
    second = site.model_copy(update={"state": link})
    assert declared(federation, hospital_state(site)) == ""
    with (
        hospital_state(site).open_ledger() as one,
        hospital_state(second).open_ledger() as two,
    ):
        assert two.head() == one.head()
    with pytest.raises(LedgerError, match="never replaced"):
        create_ledger(second, folder=link / "ledger")


# --- no more than was agreed


def task(federation: Any, site_state: Any, number: int, message: str = "") -> TrainTask:
    study = federation.study(**STUDY)
    proposal = Proposal(study=study, run="run", private=True)
    reply = federation.ask(site_state, to_record(proposal), kind="query")
    return TrainTask(
        study=study,
        run="run",
        round=number,
        message_id=message or f"run/{number}",
        mechanism=read_body(reply, Declaration).mechanism,
    )


def train(federation: Any, site_state: Any, asked: TrainTask) -> str:
    weights = trainable_state(site_state.network(asked.study))
    reply = federation.ask(site_state, to_record(asked, weights=weights), kind="train")
    found: str = refusal_code(reply)
    return found


def steps(site_state: Any) -> int:
    with site_state.open_ledger() as ledger:
        found: int = ledger.steps(run="run")
    return found


def test_a_round_that_is_asked_for_again_under_new_names_is_computed_once(
    federation: Any, site: SiteConfig
) -> None:
    site_state = hospital_state(site)
    assert train(federation, site_state, task(federation, site_state, 1)) == ""
    for name in ("again", "once-more"):
        assert (
            train(federation, site_state, task(federation, site_state, 1, name)) == "policy-round"
        )
    assert steps(site_state) == 1


def test_a_round_whose_answer_is_lost_again_and_again_ends_at_the_allowance(
    federation: Any, site: SiteConfig
) -> None:
    site_state = hospital_state(site)
    study = federation.study(**STUDY)
    most = most_steps(rounds=study.training.rounds, local_steps=study.training.local_steps)
    assert most == 5
    for _ in range(most):
        assert train(federation, site_state, task(federation, site_state, 1)) == ""
        shutil.rmtree(site.state / "outbox")
    assert train(federation, site_state, task(federation, site_state, 1)) == "policy-steps"
    assert train(federation, site_state, task(federation, site_state, 2)) == "policy-steps"
    assert steps(site_state) == most


def test_the_witness_is_free_while_a_round_is_computed(federation: Any, site: SiteConfig) -> None:
    site_state, entered = hospital_state(site), []
    asked = task(federation, site_state, 1)

    def look(done: int, total: int) -> None:
        with exclusive(witness_folder() / "witness.lock", seconds=0):
            entered.append((done, total))

    train_update(
        site_state,
        asked,
        trainable_state(site_state.network(asked.study)),
        expires=time.time() + 60,
        on_step=look,
    )
    assert entered


def test_images_exchanged_after_the_agreement_are_known_again(
    federation: Any, site: SiteConfig
) -> None:
    """Another hospital's patients under names that the run has agreed to."""
    other = federation.hospital("south", copy_patients=True)
    site_state = hospital_state(site)
    asked = task(federation, site_state, 1)
    taken, stranger = (Path(each.data.root) / names(each)[0] for each in (site, other))
    shutil.rmtree(taken)
    copied(stranger, taken, described)
    later = hospital_state(site)
    assert train(federation, later, asked) == "ledger-elsewhere"
    assert steps(later) == 0
