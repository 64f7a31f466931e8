"""What an administrator does with keys and ledgers, from the first day to the day after a loss."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfl.config import load_site
from medfl.privacy.ledger.ledger import Agreement
from medfl.privacy.mechanism import Mechanism
from medfl.site.state import hospital_state

MECHANISM = Mechanism(
    sampling_prob=0.3,
    noise_multiplier=4.0,
    clip_norm=1.0,
    clipping="fixed",
    local_steps=20,
    declared_patients=4,
)

AGREEMENT = Agreement(
    study="glioma", proposal="0" * 64, mechanism=MECHANISM, members=frozenset({"a"}), steps=40
)


def charge(file: Path, run: str) -> None:
    """One round of a run, as a study would charge it."""
    with hospital_state(load_site(file)).open_ledger() as ledger:
        ledger.agree(run, AGREEMENT)
        ledger.charge(study="glioma", run=run, round=1, message_id=run, mechanism=MECHANISM)
        ledger.mark_released(run, "ab" * 32)


def spent(medfl: Any, file: Path) -> float:
    """Epsilon as the budget command prints it."""
    return float(json.loads(medfl("budget", file, "--json").out)["epsilon"])


@pytest.fixture
def north(medfl: Any, hospital_file: Callable[..., Path]) -> Path:
    """A hospital with keys and a ledger that was charged for one run."""
    file = hospital_file("north")
    assert medfl("site", "init", load_site(file).state).code == 0
    assert medfl("ledger", "init", file).code == 0
    charge(file, "first")
    return file


@pytest.fixture
def ledger(north: Path) -> Path:
    """Its ledger's folder."""
    return load_site(north).state / "ledger"


@pytest.mark.slow
def test_keys_are_made_once_and_only_their_public_half_is_shown(medfl: Any, north: Path) -> None:
    state = load_site(north).state
    medfl("site", "init", state).refused(2, "never replaced")
    public = (state / "site.pub").read_text()
    assert "ecdsa-sha2-nistp384" in public
    for secret in (state / "keys").iterdir():
        assert secret.stat().st_mode & 0o077 == 0
        assert "PRIVATE" in secret.read_text()
    assert "PRIVATE" not in public


def test_an_exported_ledger_convinces_whoever_has_the_sites_public_key(
    medfl: Any, north: Path, tmp_path: Path
) -> None:
    state, file = load_site(north).state, tmp_path / "export.json"
    assert "Whole: 4 entries" in medfl("ledger", "verify", north).out
    assert medfl("ledger", "export", north, "--out", file).code == 0
    medfl("ledger", "export", north, "--out", file).refused(2, "expected a new file")
    checked = medfl("ledger", "check-export", file, "--key", state / "site.pub")
    assert (checked.code, "Whole: 4 entries" in checked.out) == (0, True)
    # The key that it was signed with is exchanged: the old export still counts.
    assert medfl("site", "rotate", state).code == 0
    assert medfl("ledger", "export", north, "--out", tmp_path / "second.json").code == 0
    (tmp_path / "old.pub").write_text(
        json.dumps({"event": json.loads(file.read_text())["event_key"]})
    )
    assert (
        medfl(
            "ledger", "check-export", tmp_path / "second.json", "--key", tmp_path / "old.pub"
        ).code
        == 0
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content["spent"].update(epsilon=0.1),
        lambda content: content["entries"].pop(),
        lambda content: content["terms"].update(epsilon=80.0),
        lambda content: content.update(signature="0" * 128),
        lambda content: content.update(format="another"),
        lambda content: content.pop("rotations"),
        lambda content: content.clear(),
    ],
)
def test_an_edited_export_convinces_nobody(
    edit: Callable[[Any], Any], medfl: Any, north: Path, tmp_path: Path
) -> None:
    file = tmp_path / "export.json"
    medfl("ledger", "export", north, "--out", file)
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    key = load_site(north).state / "site.pub"
    medfl("ledger", "check-export", file, "--key", key).refused(3, "Expected")


def test_the_export_of_another_site_does_not_pass_for_this_one(
    medfl: Any, north: Path, tmp_path: Path
) -> None:
    file = tmp_path / "export.json"
    medfl("ledger", "export", north, "--out", file)
    medfl("site", "init", tmp_path / "other")
    key = tmp_path / "other" / "site.pub"
    medfl("ledger", "check-export", file, "--key", key).refused(3, "signed by the key")
    medfl("ledger", "check-export", key, "--key", key).refused(3, "damaged file")
    medfl("ledger", "check-export", file, "--key", file).refused(2, "expected a site.pub")


def test_a_deleted_ledger_is_not_a_fresh_budget(medfl: Any, north: Path, ledger: Path) -> None:
    before = spent(medfl, north)
    shutil.rmtree(ledger)
    medfl("budget", north).refused(3, "expected the privacy ledger, found none")
    medfl("ledger", "init", north).refused(3, "never replaced", "medfl ledger acknowledge")
    done = medfl("ledger", "acknowledge", north, "--reason", "disk lost")
    assert done.code == 0, done.err
    assert spent(medfl, north) == pytest.approx(before)
    with hospital_state(load_site(north)).open_ledger() as opened:
        kinds = [entry.kind for entry in opened.entries()]
        assert opened.entries()[1].content["reason"] == "disk lost"
    assert kinds == ["init", "acknowledge", "carry"]
    assert medfl("ledger", "verify", north).code == 0


def test_a_restored_old_ledger_is_refused_until_the_difference_is_charged(
    medfl: Any, north: Path, ledger: Path, tmp_path: Path
) -> None:
    shutil.copytree(ledger, tmp_path / "backup")
    charge(north, "second")
    before = spent(medfl, north)
    shutil.rmtree(ledger)
    shutil.copytree(tmp_path / "backup", ledger)  # the head as well
    medfl("budget", north).refused(3, "restored old copy", "medfl ledger acknowledge")
    assert medfl("ledger", "acknowledge", north, "--reason", "restored").code == 0
    assert spent(medfl, north) == pytest.approx(before)


def test_a_second_ledger_for_the_same_patients_is_not_even_made(
    medfl: Any, north: Path, hospital_file: Callable[..., Path]
) -> None:
    second = hospital_file("north", state="elsewhere")
    ended = medfl("ledger", "init", second)
    ended.refused(3, "pays for some of them", load_site(north).state / "ledger")
    assert not hospital_state(load_site(second)).ledger_folder.exists()


def test_a_moved_ledger_is_refused_until_the_administrator_says_so(
    medfl: Any, north: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = spent(medfl, north)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    medfl("budget", north).refused(3, "witness", "unknown", "medfl ledger acknowledge")
    assert medfl("ledger", "acknowledge", north, "--reason", "new server").code == 0
    assert spent(medfl, north) == before
    medfl("ledger", "acknowledge", north, "--reason", "again").refused(3, "found the newest ledger")


def test_a_loss_that_nobody_remembers_is_no_loss(
    medfl: Any, hospital_file: Callable[..., Path]
) -> None:
    file = hospital_file("east")
    medfl("ledger", "acknowledge", file, "--reason", "?").refused(3, "medfl ledger init")


@pytest.mark.parametrize("inside", ["the state folder", "the witness"])
def test_witness_and_state_folder_lie_apart(
    inside: str,
    medfl: Any,
    hospital_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    if inside == "the witness":
        (tmp_path / "link").symlink_to(tmp_path)  # by whatever name
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "link"))
        file = hospital_file("east", state="medfl")
    else:
        file = hospital_file("east")
        monkeypatch.setenv("XDG_STATE_HOME", str(load_site(file).state))
    medfl("ledger", "init", file).refused(2, "east", "cannot bear witness")
    assert not (load_site(file).state / "ledger").exists()


def test_a_site_file_that_names_a_witness_is_told_where_it_lies(
    medfl: Any, hospital_file: Callable[..., Path], tmp_path: Path
) -> None:
    file = hospital_file("east")
    file.write_text(f'witness = "{tmp_path}/mine"\n' + file.read_text())
    medfl("ledger", "init", file).refused(
        2, file, "key witness", "cannot choose", "/var/lib/medfl-witness", "the key too", "mine"
    )
    assert not (tmp_path / "mine").exists()
