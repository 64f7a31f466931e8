"""Nothing that identifies a patient, a folder or a machine is in any reply of a site."""

from __future__ import annotations

import base64
import gzip
import logging
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from medfl.protocol.messages import refusal
from medfl.reporting.report import write_report
from medfl.server.progress import Silent
from medfl.site import round as site_round
from medfl.study.run import finish_run

pytestmark = pytest.mark.slow

Answer = Callable[[], Message]
BAD = "north"
HOSPITAL_NOISE: dict[str, Any] = {"privacy": {"noise": "operating-system"}}


def planted(federation: Any) -> list[bytes]:
    """What must not leave: ids and file names of all patients, and every folder on the way."""
    names = {"BraTS2021", "flair", "t1ce", "nii.gz", str(federation.scratch), "Traceback", ".py"}
    for site in federation.sites():
        names |= {str(site.data.root), str(site.state)}
        names |= {path.name for path in Path(site.data.root).iterdir()}
    return [name.encode() for name in sorted(names)]


def assert_clean(replies: list[bytes], federation: Any) -> None:
    assert replies
    for reply in replies:
        assert not [name for name in planted(federation) if name in reply]


def test_the_replies_of_a_sound_run_name_nobody(federation: Any) -> None:
    finished = federation.run(
        federation.study(evaluation={"every": 1}),
        federation.sites(privacy={"share_metrics": True}),
    )
    assert len(finished.replies) == 3 * (1 + 2 + 3)  # declarations, updates, scores
    assert_clean(finished.replies, federation)


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (RuntimeError("applying transform to BraTS2021_00002_flair.nii.gz"), "internal"),
        (FileNotFoundError(2, "No such file", "/hospital/patients/BraTS2021_00002"), "internal"),
        (KeyError("BraTS2021_00002"), "internal"),
        (MemoryError("BraTS2021_00002"), "out-of-memory"),
        (torch.OutOfMemoryError("CUDA out of memory at BraTS2021_00002"), "out-of-memory"),
        (RecursionError("BraTS2021_00002"), "internal"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_failing_site_answers_with_a_code_and_the_round_goes_on(
    failure: Exception, code: str, federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise failure

    def fault(site: str, message: Message, answer: Answer) -> Message:
        with monkeypatch.context() as patch:
            if site == BAD:
                patch.setattr(site_round, "train_round", fails)
            return answer()

    study = federation.study(training={"rounds": 1})
    finished = federation.run(study, federation.sites(), fault=fault)
    assert finished.outcomes() == {
        "east": ("admitted", ""),
        BAD: ("refused", code),
        "south": ("admitted", ""),
    }
    assert_clean(finished.replies, federation)
    # It failed after the charge: paid, although nothing was released.
    assert finished.charges(BAD) == 1


def test_a_patients_damaged_file_is_not_named_to_the_server(federation: Any) -> None:
    hospital = federation.hospital(BAD, copy_patients=True)

    def damage() -> None:
        for file in Path(hospital.data.root).rglob("*_flair.nii.gz"):
            file.write_bytes(file.read_bytes()[:200])

    study = federation.study(**HOSPITAL_NOISE, training={"rounds": 1})
    finished = federation.run(
        study,
        [*federation.sites("east", "south"), hospital],
        fault=federation.before_training(damage),
    )
    assert finished.outcomes()[BAD] == ("refused", "data")
    assert finished.outcomes()["east"] == ("admitted", "")
    assert_clean(finished.replies, federation)


def test_a_site_whose_cohort_cannot_be_read_refuses_with_a_code(federation: Any) -> None:
    missing = federation.site(BAD, data={"root": str(federation.scratch / "BraTS2021_gone")})
    wrong = federation.site("east", declared_patients=2)
    study = federation.study(aggregation={"min_sites": 1}, training={"rounds": 1})
    finished = federation.run(study, [missing, wrong, federation.site("south")])
    assert set(finished.outcomes()) == {"south"}
    assert_clean(finished.replies, federation)


def test_a_reply_holds_only_the_fields_of_its_schema(federation: Any) -> None:
    seen: dict[str, set[str]] = {}

    def look(site: str, message: Message, answer: Answer) -> Message:
        reply = answer()
        for record in reply.content.values():
            seen.setdefault(message.metadata.message_type, set()).update(record)
        return reply

    study = federation.study(training={"rounds": 1})
    finished = federation.run(study, federation.sites(privacy={"share_metrics": True}), fault=look)
    assert seen == {
        "query": {"json"},
        "train": {"json", *finished.weights},
        "evaluate": {"json"},
    }


def test_an_update_tells_neither_losses_nor_counts_nor_times(federation: Any) -> None:
    bodies: list[str] = []

    def look(site: str, message: Message, answer: Answer) -> Message:
        reply = answer()
        if message.metadata.message_type == "train":
            bodies.append(reply.content.config_records["body"]["json"])
        return reply

    federation.run(federation.study(training={"rounds": 1}), federation.sites(), fault=look)
    for body in bodies:
        for word in ("loss", "drawn", "discarded", "seconds", "time", "batch", 'norm"'):
            assert word not in body.replace("clip_norm", "").replace("declared", "")


def test_scores_of_a_hospital_stay_there(federation: Any) -> None:
    hospital = federation.hospital("east")
    study = federation.study(**HOSPITAL_NOISE, training={"rounds": 1})
    sites = [hospital, federation.site("south", privacy={"share_metrics": True})]
    finished = federation.run(study, sites)
    assert {row.site for row in finished.folder.scores()} == {"south"}


def test_a_damaged_image_header_is_not_told(federation: Any) -> None:
    hospital = federation.hospital(BAD, copy_patients=True)
    for file in Path(hospital.data.root).rglob("*_flair.nii.gz"):
        content = bytearray(gzip.decompress(file.read_bytes()))
        content[148:228] = b"MUELLER^ANNA 1950".ljust(80, b"\0")  # descrip
        file.write_bytes(gzip.compress(bytes(content)))
    study = federation.study(**HOSPITAL_NOISE, training={"rounds": 1})
    finished = federation.run(study, [*federation.sites("east", "south"), hospital])
    assert finished.outcomes()[BAD] == ("admitted", "")
    for content in finished.replies:
        assert b"MUELLER" not in content
    for file in finished.path.rglob("*"):
        assert not file.is_file() or b"MUELLER" not in file.read_bytes()


# --- an identifier in eight places


def sinks(finished: Any, *others: Path, log: str) -> list[Path]:
    """Everything that is written or sent somewhere, as files."""
    sent = finished.path.with_name("sent")
    sent.mkdir()
    (sent / "site.log").write_text(log)
    for number, reply in enumerate(finished.replies):
        (sent / str(number)).write_bytes(reply)
    return [finished.path, sent, *others]


def planted_sites(federation: Any, canary: Any) -> list[Any]:
    """A hospital and open data whose patients carry the identifier, and another site."""
    roots = {
        name: canary.plant(
            Path(federation.site(name).data.root), federation.scratch / "data" / name
        )
        for name in ("east", "north")
    }
    return [
        federation.hospital("east", data={"root": str(roots["east"])}),
        federation.site(
            "north", data={"root": str(roots["north"])}, privacy={"share_metrics": True}
        ),
        federation.site("south"),
    ]


def test_an_identifier_in_eight_places_reaches_nothing_that_a_simulation_writes_or_sends(
    federation: Any, canary: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sites = planted_sites(federation, canary)
    study = federation.study(**HOSPITAL_NOISE, evaluation={"every": 1})
    finished = federation.run(study, sites)
    assert {name for name, _ in finished.outcomes().values()} == {"admitted"}
    finish_run(finished.folder, study, minutes=1.0, command="", progress=Silent())
    write_report(finished.path)
    assert {row.site for row in finished.folder.scores()} == {"north"}
    assert canary.found_in(*sinks(finished, sites[0].state, log=caplog.text)) == []


@pytest.mark.parametrize("when", ["before the agreement", "before the round"])
def test_an_identifier_reaches_nothing_where_every_image_is_damaged(
    when: str, federation: Any, canary: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sites = planted_sites(federation, canary)

    def damage() -> None:
        for site in sites[:2]:
            for file in Path(site.data.root).rglob("*.nii.gz"):
                file.write_bytes(file.read_bytes()[:200])

    if when == "before the agreement":
        damage()
    study = federation.study(**HOSPITAL_NOISE, training={"rounds": 1}, aggregation={"min_sites": 1})
    finished = federation.run(study, sites, fault=federation.before_training(damage))
    # Who has nothing to train on does not even agree.
    expected = None if when == "before the agreement" else ("refused", "data")
    assert finished.outcomes().get("east") == expected
    assert canary.found_in(*sinks(finished, sites[0].state, log=caplog.text)) == []


def test_the_search_finds_the_identifier_in_all_eight_places(
    federation: Any, canary: Any, tmp_path: Path
) -> None:
    root = canary.plant(Path(federation.site("east").data.root), tmp_path)
    found = "\n".join(canary.found_in(tmp_path))
    assert "195001010777path: name" in found
    assert "_flair.nii.gz: name" in found
    assert "_flair.json: plain" in found
    (image, *_) = sorted(root.rglob("*_flair.nii.gz"))
    content = gzip.decompress(image.read_bytes())
    for place in ("desc", "auxf", "dbna", "inte", "exte"):
        assert b"195001010777" + place.encode() in content
    assert canary.forms_in(image.read_bytes()) == ["compressed plain"]


WRITTEN: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda word: b"ab" + word + b"cd",
    "UTF-16": lambda word: word.decode().encode("utf-16"),
    "UTF-16, big-endian": lambda word: word.decode().encode("utf-16-be"),
    "base64": lambda word: base64.b64encode(b"x" + word + b"y"),
    "base64, shifted": lambda word: base64.b64encode(b"xy" + word),
    "zlib": lambda word: b"ab" + zlib.compress(b"x" * 50 + word) + b"cd",
    "gzip": lambda word: gzip.compress(word),
    "cut off": lambda word: zlib.compress(b"x" * 50 + word + bytes(range(256)) * 9)[:-20],
}


@pytest.mark.parametrize("form", WRITTEN)
def test_the_search_finds_every_way_of_writing(form: str, canary: Any, tmp_path: Path) -> None:
    (tmp_path / "sink").write_bytes(WRITTEN[form](canary.IDENTIFIER.encode()))
    assert canary.found_in(tmp_path / "sink") != []
    (tmp_path / "other").write_bytes(WRITTEN[form](b"195001990777"))
    assert canary.found_in(tmp_path / "other") == []


def test_the_search_reads_a_database_row_by_row(canary: Any, tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE object (content BLOB)")
        for shift in range(20):  # some of them lie across the edge of a page
            value = b"x" * (4096 * 3 - 10 - shift) + canary.IDENTIFIER.encode() + b"x" * 4096
            database.execute("INSERT INTO object VALUES (?)", (value,))
    database.close()
    assert f"{path}: plain in a row" in canary.found_in(path)


def test_a_site_that_leaks_on_purpose_is_found_out(
    federation: Any, canary: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The search would see a leak: here a site puts a folder's name into a code."""
    sites = planted_sites(federation, canary)

    def leaks(site: str, message: Message, answer: Answer) -> Message:
        reply = answer()
        if site == BAD and message.metadata.message_type == "train":
            folder = Path(sites[1].data.root).parent.name
            reply.content = refusal(folder)
        return reply

    study = federation.study(**HOSPITAL_NOISE, training={"rounds": 1})
    finished = federation.run(study, sites, fault=leaks)
    found = canary.found_in(*sinks(finished, log=caplog.text))
    assert {line.rpartition("/")[2] for line in found} >= {
        "rounds.jsonl: plain",
        "federation_ledger.jsonl: plain",
    }
