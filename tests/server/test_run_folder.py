"""The files of a run: durable, readable, and cut back to the checkpoint without a gap."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from medfl.errors import FederationError
from medfl.protocol.messages import PatientScore, Scores
from medfl.runs.files import SUMMARY
from medfl.runs.records import Event, EventMechanism, Round, SiteRound, Spent, Summary
from medfl.server.run_folder import RunFolder, ServerState


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def record(number: int, *, epsilon: float = 1.5) -> Round:
    admitted = SiteRound(outcome="admitted", code="", epsilon=epsilon, budget=8.0, steps=5)
    silent = SiteRound(outcome="silent", code="silent", epsilon=0.0, budget=8.0, steps=0)
    return Round(round=number, seconds=1.23456, sites={"DU": admitted, "HT": silent})


def event(sequence: int, *, site: str) -> Event:
    mechanism = EventMechanism(
        sampling_prob=0.5,
        noise_multiplier=1.0,
        clip_norm=1.0,
        clipping="fixed",
        local_steps=1,
        declared_patients=4,
        noise_origin="seeded",
        adjacency="zero-out",
    )
    return Event(
        sequence=sequence,
        round=1,
        site=site,
        mechanism=mechanism,
        steps=1,
        admitted=False,
        epsilon=1.0,
        presumed="silent",
    )


def summary(*, epsilon: float) -> Summary:
    spent = {"DU": Spent(epsilon=epsilon, budget=8.0)}
    return Summary(study="tiny", minutes=1.5, sites=spent, dice={}, dice_by_site={})


def scores(dice: float) -> Scores:
    patient = "0123456789abcdef"
    return Scores(
        site="DU",
        scores=(
            PatientScore(
                patient=patient,
                region="WT",
                dice=dice,
                hd95_mm=4.0,
                lesion_dice=0.125,
                lesion_hd95_mm=190.5,
            ),
            PatientScore(patient=patient, region="ET", dice=dice, hd95_mm=None),
        ),
    )


def rows(folder: RunFolder, name: str) -> list[dict[str, str]]:
    with (folder.path / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_round_is_one_line_of_json_and_one_row_a_site(folder: RunFolder) -> None:
    folder.append_round(record(1))
    (line,) = folder.rounds()
    assert line.round == 1
    assert line.seconds == 1.235
    assert line.sites["HT"].model_dump() == {
        "outcome": "silent",
        "code": "silent",
        "epsilon": 0.0,
        "budget": 8.0,
        "steps": 0,
    }
    assert [row["site"] for row in rows(folder, "rounds.csv")] == ["DU", "HT"]


def test_scores_become_rows_with_a_blank_distance_where_none_was_measured(
    folder: RunFolder,
) -> None:
    assert folder.scores() == ()
    folder.append_scores([scores(0.25)], variant="federated", round_number=3)
    first, second = rows(folder, "metrics.csv")
    assert first == {
        "variant": "federated",
        "round": "3",
        "site": "DU",
        "patient": "0123456789abcdef",
        "region": "WT",
        "dice": "0.250000",
        "hd95_mm": "4.000",
        "lesion_dice": "0.125000",
        "lesion_hd95_mm": "190.500",
    }
    assert {second[name] for name in ("hd95_mm", "lesion_dice", "lesion_hd95_mm")} == {""}
    assert [score.lesion_dice for score in folder.scores()] == [0.125, None]
    assert [score.lesion_hd95_mm for score in folder.scores()] == [190.5, None]
    assert [(score.dice, score.hd95_mm) for score in folder.scores()] == [(0.25, 4.0), (0.25, None)]


def test_a_table_of_an_earlier_version_goes_on_in_the_columns_of_this_one(
    folder: RunFolder,
) -> None:
    old = "variant,round,site,patient,region,dice,hd95_mm\nfederated,1,DU,ab,WT,0.500000,7.000\n"
    (folder.path / "metrics.csv").write_text(old)
    folder.append_scores([scores(0.25)], variant="federated", round_number=3)
    found = folder.scores()
    assert [(one.round, one.dice, one.lesion_dice) for one in found] == [
        (1, 0.5, None),
        (3, 0.25, 0.125),
        (3, 0.25, None),
    ]
    (folder.path / "metrics.csv").write_text(old)
    folder.truncate_tables(after_round=1, variant="federated")
    folder.append_scores([scores(0.25)], variant="federated", round_number=3)
    assert folder.scores() == found


def test_an_infinite_epsilon_is_written_as_text_that_reads_back(folder: RunFolder) -> None:
    folder.append_round(record(1, epsilon=math.inf))
    folder.write(SUMMARY, summary(epsilon=math.inf))
    assert folder.rounds()[0].sites["DU"].epsilon == math.inf
    text = (folder.path / "summary.json").read_text()
    assert json.loads(text)["sites"]["DU"] == {"epsilon": "inf", "budget": 8.0}
    assert SUMMARY.read(folder.path) == summary(epsilon=math.inf)


def test_not_a_number_is_never_written(folder: RunFolder) -> None:
    damaged = summary(epsilon=1.0).model_copy(update={"minutes": math.nan})
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write(SUMMARY, damaged)


def test_tables_are_cut_back_to_the_checkpoint_and_other_variants_stay(folder: RunFolder) -> None:
    for number in (1, 2, 3):
        folder.append_round(record(number))
        folder.append_scores([scores(0.1)], variant="federated", round_number=number)
    folder.append_scores([scores(0.2)], variant="local-only", round_number=3)
    folder.truncate_tables(after_round=2, variant="federated")
    assert [line.round for line in folder.rounds()] == [1, 2]
    assert [row["round"] for row in rows(folder, "rounds.csv")] == ["1", "1", "2", "2"]
    kept = [(row.variant, row.round) for row in folder.scores()]
    assert kept == [("federated", 1)] * 2 + [("federated", 2)] * 2 + [("local-only", 3)] * 2
    folder.append_round(record(3))
    assert [row["round"] for row in rows(folder, "rounds.csv")] == [*"112233"]


def test_an_empty_folder_may_be_cut_back(folder: RunFolder) -> None:
    folder.truncate_tables(after_round=0, variant="federated")
    assert folder.rounds() == []


def tear(path: Path, *, keep: int) -> None:
    """Cut the last line, as a full disk or a power failure does."""
    content = path.read_bytes()
    begin = content[:-1].rfind(b"\n") + 1
    path.write_bytes(content[:begin] + content[begin:][:keep])


@pytest.mark.parametrize("keep", [1, 20, -1])
def test_a_torn_last_line_counts_as_not_written(keep: int, folder: RunFolder) -> None:
    for number in (1, 2):
        folder.append_event(event(number, site="DU"))
    tear(folder.path / "federation_ledger.jsonl", keep=keep)
    assert [event.sequence for event in folder.events()] == [1]
    folder.append_event(event(2, site="HT"))
    assert [event.site for event in folder.events()] == ["DU", "HT"]


def test_a_torn_row_is_cut_back_with_the_rest(folder: RunFolder) -> None:
    for number in (1, 12):
        folder.append_round(record(number))
    tear(folder.path / "rounds.csv", keep=1)  # of round 12, now looking like round 1
    tear(folder.path / "rounds.jsonl", keep=20)
    folder.truncate_tables(after_round=5, variant="federated")
    assert [line.round for line in folder.rounds()] == [1]
    assert [row["round"] for row in rows(folder, "rounds.csv")] == ["1", "1"]


def state(**changes: Any) -> ServerState:
    values: dict[str, Any] = {
        "run": "r",
        "round": 4,
        "weights": {"a.b": torch.tensor([1.0, -0.0]), "scalar": torch.tensor(3.0)},
        "average": {"a.b": torch.tensor([2.0, 1e-40]), "scalar": torch.tensor(4.0)},
        "moments": {"m.a.b": torch.tensor([1 / 3], dtype=torch.float64)},
    }
    return ServerState(**{**values, **changes})


def test_the_servers_state_comes_back_bit_for_bit(folder: RunFolder, federation: Any) -> None:
    study = federation.study()
    assert folder.read_state(study=study) is None
    folder.write_state(state(), study=study)
    found = folder.read_state(study=study)
    assert found is not None
    assert (found.run, found.round) == ("r", 4)
    for part in ("weights", "average", "moments"):
        one, other = getattr(found, part), getattr(state(), part)
        assert one.keys() == other.keys()
        for name, value in other.items():
            assert one[name].dtype == value.dtype
            assert one[name].numpy().tobytes() == value.numpy().tobytes()


def test_weights_and_average_may_be_the_same_tensors(folder: RunFolder, federation: Any) -> None:
    weights = state().weights
    folder.write_state(state(average=weights), study=federation.study())
    found = folder.read_state(study=federation.study())
    assert found is not None
    assert torch.equal(found.average["a.b"], weights["a.b"])


def test_a_checkpoint_of_another_study_is_refused(folder: RunFolder, federation: Any) -> None:
    folder.write_state(state(), study=federation.study())
    with pytest.raises(FederationError, match="expected the study file that this run began with"):
        folder.read_state(study=federation.study(seed=1))


@pytest.mark.parametrize("keep", [0, 7, 60, -1])
def test_a_damaged_checkpoint_is_named(keep: int, folder: RunFolder, federation: Any) -> None:
    folder.write_state(state(), study=federation.study())
    path = folder.path / "checkpoints" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FederationError, match="expected a server checkpoint") as caught:
        folder.read_state(study=federation.study())
    assert caught.value.code == "checkpoint"


def test_a_run_is_known_by_its_id_and_its_study(folder: RunFolder, federation: Any) -> None:
    assert folder.study_digest() == ""
    with pytest.raises(FederationError, match=r"run\.json"):
        folder.run_id()
    folder.begin(run="tiny-1", study=federation.study())
    assert folder.run_id() == "tiny-1"
    assert folder.study_digest() == federation.study().digest


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"run": "", "study": ""}'])
def test_a_damaged_run_file_is_no_run(text: str, folder: RunFolder) -> None:
    (folder.path / "run.json").write_text(text)
    with pytest.raises(FederationError, match=r"run\.json"):
        folder.run_id()


@pytest.mark.parametrize("name", ["rounds.jsonl", "federation_ledger.jsonl"])
def test_a_damaged_line_is_refused(name: str, folder: RunFolder) -> None:
    (folder.path / name).write_text('{"round": 1}\n{"rou\n{"round": 2}\n')
    with pytest.raises(FederationError, match=f"{name}: expected JSON lines"):
        folder.rounds() if name == "rounds.jsonl" else folder.events()
