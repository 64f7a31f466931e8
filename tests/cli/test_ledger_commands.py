"""What an administrator does with keys and ledgers, from the first day to the day after a loss."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfl.config import load_site
from medfl.site.audit_log import AuditLog
from medfl.site.state import hospital_state
from tests.cli.charged_sites import AGREEMENT, charge, charged, spent


@pytest.fixture
def north(medfl: Any, hospital_file: Callable[..., Path]) -> Path:
    """A hospital with keys and a ledger that was charged for one run."""
    return charged(medfl, hospital_file("north"))


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
    medfl("ledger", "init", north, "--yes").refused(3, "never replaced", "medfl ledger acknowledge")
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
    medfl("site", "init", load_site(second).state)
    ended = medfl("ledger", "init", second, "--yes")
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
    medfl("ledger", "init", file, "--yes").refused(2, "east", "cannot bear witness")
    assert not (load_site(file).state / "ledger").exists()


def test_a_site_file_that_names_a_witness_is_told_where_it_lies(
    medfl: Any, hospital_file: Callable[..., Path], tmp_path: Path
) -> None:
    file = hospital_file("east")
    file.write_text(f'witness = "{tmp_path}/mine"\n' + file.read_text())
    medfl("ledger", "init", file, "--yes").refused(
        2, file, "key witness", "cannot choose", "/var/lib/medfl-witness", "the key too", "mine"
    )
    assert not (tmp_path / "mine").exists()


# ---- a first ledger, and one that was made by mistake


@pytest.fixture
def fresh(medfl: Any, hospital_file: Callable[..., Path]) -> Path:
    """A hospital with keys and no ledger."""
    file = hospital_file("north")
    assert medfl("site", "init", load_site(file).state).code == 0
    return file


def edited(file: Path, old: str, new: str) -> Path:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    return file


def kinds(file: Path) -> list[str]:
    with hospital_state(load_site(file)).open_ledger() as opened:
        return [entry.kind for entry in opened.entries()]


def test_nothing_is_fixed_while_the_template_is_unedited(
    medfl: Any, synthetic_patients: Path, tmp_path: Path
) -> None:
    """All that a hurried administrator has filled in is where the images are."""
    state = tmp_path / "north"
    assert medfl("site", "init", state).code == 0
    file = edited(state / "site.toml", '/data/brats"   ', f'{synthetic_patients / "north"}"')
    ended = medfl("ledger", "init", file, "--yes")
    ended.refused(2, "found 1", "1 training patients, as declared", f"`medfl check {file}`")
    assert not (state / "ledger").exists()
    assert not (tmp_path / "xdg-state" / "medfl").exists()


@pytest.mark.parametrize("lack", ["keys", "open"])
def test_nothing_is_fixed_before_keys_and_folders_are_sound(
    lack: str, medfl: Any, fresh: Path
) -> None:
    state = load_site(fresh).state
    if lack == "keys":
        shutil.rmtree(state / "keys")
    else:
        state.chmod(0o755)
    medfl("ledger", "init", fresh, "--yes").refused(
        2, "before a budget is fixed permanently", state
    )
    assert not (state / "ledger").exists()


def test_what_will_be_fixed_is_shown_and_asked_for(
    medfl: Any, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = load_site(fresh).state / "ledger"
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    ended = medfl("ledger", "init", fresh)
    assert ended.code == 1
    for part in ("north", "8, all studies together", "1e-05", "4 training, 0 held out", folder):
        assert str(part) in ended.out
    assert not folder.exists()
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert medfl("ledger", "init", fresh).code == 0
    assert kinds(fresh) == ["init"]


def test_a_script_that_forgets_to_agree_makes_nothing(
    medfl: Any, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    ended = medfl("ledger", "init", fresh)
    assert ended.code == 1
    assert "--yes skips this question" in ended.out
    assert not (load_site(fresh).state / "ledger").exists()


def test_a_ledger_that_nothing_was_agreed_to_is_made_again(
    medfl: Any, fresh: Path, hospital_file: Callable[..., Path], synthetic_patients: Path
) -> None:
    """With another budget, and for the right patients: the wrong ones are free for their own."""
    right = synthetic_patients / "north"
    wrong = synthetic_patients / "east"
    edited(fresh, str(right), str(wrong))
    assert medfl("ledger", "init", fresh, "--yes").code == 0
    edited(fresh, str(wrong), str(right))
    edited(fresh, "epsilon = 8.0", "epsilon = 3.0")
    for command in (("budget", fresh), ("ledger", "init", fresh, "--yes")):
        medfl(*command).refused(3, "medfl ledger init SITE.toml --again")
    assert medfl("ledger", "init", fresh, "--again", "--yes").code == 0
    assert kinds(fresh) == ["init", "init"]
    assert json.loads(medfl("budget", fresh, "--json").out)["left"] == 3.0
    assert medfl("ledger", "verify", fresh).code == 0
    east = hospital_file("east")
    assert medfl("site", "init", load_site(east).state).code == 0
    assert medfl("ledger", "init", east, "--yes").code == 0
    edited(fresh, str(right), str(wrong))
    medfl("ledger", "init", fresh, "--again", "--yes").refused(3, "pays for some of them")


@pytest.mark.parametrize("use", ["agreed", "charged", "lost"])
def test_a_ledger_that_was_used_is_never_made_again(use: str, medfl: Any, fresh: Path) -> None:
    assert medfl("ledger", "init", fresh, "--yes").code == 0
    if use == "charged":
        charge(fresh, "first")
    elif use == "agreed":
        with hospital_state(load_site(fresh)).open_ledger() as opened:
            opened.agree("first", AGREEMENT)
    else:
        shutil.rmtree(load_site(fresh).state / "ledger")
        assert medfl("ledger", "acknowledge", fresh, "--reason", "disk lost").code == 0
    before = kinds(fresh)
    edited(fresh, "epsilon = 8.0", "epsilon = 80.0")
    ended = medfl("ledger", "init", fresh, "--again", "--yes")
    ended.refused(3, "nothing was agreed to or charged to", "what it was made for stays")
    medfl("budget", fresh).refused(3, "change the site's file back")
    edited(fresh, "epsilon = 80.0", "epsilon = 8.0")
    assert kinds(fresh) == before


def test_nothing_is_made_again_where_nothing_is(medfl: Any, fresh: Path) -> None:
    medfl("ledger", "init", fresh, "--again", "--yes").refused(2, "leave out --again")


# ---- a lost ledger under another folder


def moved(north: Path, tmp_path: Path) -> Path:
    """The site after its state folder moved and its ledger was lost on the way."""
    old, new = load_site(north).state, tmp_path / "moved"
    shutil.move(old, new)
    shutil.rmtree(new / "ledger")
    return edited(north, str(old), str(new))


def test_a_ledger_that_was_lost_when_its_folder_moved_is_not_a_fresh_budget(
    medfl: Any, north: Path, tmp_path: Path
) -> None:
    before = spent(medfl, north)
    assert before > 0
    file = moved(north, tmp_path)
    medfl("ledger", "init", file, "--yes").refused(3, "pays for some", "ledger acknowledge")
    assert medfl("ledger", "acknowledge", file, "--reason", "moved").code == 0
    assert spent(medfl, file) == pytest.approx(before)


def test_nor_is_it_one_for_those_whom_another_secret_would_have_held_out(
    medfl: Any, north: Path, tmp_path: Path
) -> None:
    """Without the old secret other patients train: nobody who did so before would be asked for."""
    state = load_site(north).state
    shutil.rmtree(state / "ledger")
    shutil.rmtree(tmp_path / "xdg-state")
    edited(north, "declared_patients = 4", "declared_patients = 2")
    edited(north, "[data]", "[data]\nheld_out = 0.5")
    assert medfl("ledger", "init", north, "--yes").code == 0
    charge(north, "first")
    before, trained = spent(medfl, north), set(ids(north))
    file = moved(north, tmp_path)
    while trained & set(ids(file)):
        (load_site(file).state / "site.key").unlink()
    medfl("ledger", "init", file, "--yes").refused(3, "pays for some", "ledger acknowledge")
    assert medfl("ledger", "acknowledge", file, "--reason", "moved").code == 0
    assert spent(medfl, file) == pytest.approx(before)


def ids(file: Path) -> list[str]:
    return [each.patient_id for each in hospital_state(load_site(file)).patients.training]


@pytest.mark.parametrize("command", ["budget", "ledger verify"])
def test_no_display_shows_a_budget_that_another_ledger_has_spent_from(
    command: str,
    medfl: Any,
    north: Path,
    hospital_file: Callable[..., Path],
    synthetic_patients: Path,
) -> None:
    """A ledger was made for others, and its site was then pointed at these patients."""
    east = hospital_file("east")
    assert medfl("site", "init", load_site(east).state).code == 0
    assert medfl("ledger", "init", east, "--yes").code == 0
    assert medfl(*command.split(), east).code == 0
    edited(east, str(synthetic_patients / "east"), str(synthetic_patients / "north"))
    ended = medfl(*command.split(), east)
    ended.refused(3, "pays for some of them", load_site(north).state)
    assert "left" not in ended.out


# ---- the audit log


def test_an_auditor_reads_who_did_what(medfl: Any, north: Path, tmp_path: Path) -> None:
    state, file = load_site(north).state, tmp_path / "export.json"
    assert medfl("site", "pause", north).code == 0
    assert medfl("site", "rotate", state).code == 0
    assert medfl("ledger", "export", north, "--out", file).code == 0
    expected = "1 begin, 1 init, 1 agree, 1 charge, 1 release, 1 pause, 1 keys."
    for command in (
        ("ledger", "check-export", file, "--key", state / "site.pub"),
        ("ledger", "verify", north),
    ):
        assert expected in medfl(*command).out
    content = json.loads(file.read_text())
    content["log"].pop(5)
    file.write_text(json.dumps(content))
    medfl("ledger", "check-export", file, "--key", state / "site.pub").refused(3, "signed by")


def test_an_invitation_is_the_first_thing_in_it(medfl: Any, tmp_path: Path) -> None:
    assert medfl("server", "init", tmp_path / "server").code == 0
    assert medfl("server", "invite", tmp_path / "server", "north", "-o", tmp_path).code == 0
    state = tmp_path / "north"
    assert medfl("site", "init", state, "--invite", tmp_path / "north.invite").code == 0
    first, second = AuditLog(state).entries()
    assert (first.kind, second.kind) == ("begin", "invitation")
    assert second.content["server"] == "localhost:8443"
    assert second.content["name"] == "north"


def test_a_damaged_log_has_one_clear_error(medfl: Any, north: Path, tmp_path: Path) -> None:
    folder = load_site(north).state / "audit-log"
    (folder / "log.sqlite").write_bytes(b"no database" * 100)
    for command in (
        ("ledger", "verify", north),
        ("ledger", "export", north, "--out", tmp_path / "export.json"),
    ):
        medfl(*command).refused(3, folder, "audit log", "The ledger is not touched")
    assert medfl("budget", north).code == 0
    folder.rename(tmp_path / "damaged")
    assert medfl("ledger", "export", north, "--out", tmp_path / "export.json").code == 0
    ended = medfl(
        *("ledger", "check-export", tmp_path / "export.json"),
        *("--key", load_site(north).state / "site.pub"),
    )
    assert "4 of the ledger's entries are older than the log" in ended.out
