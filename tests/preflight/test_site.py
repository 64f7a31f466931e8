"""What a hospital's preflight finds in folders, keys, ledger, machine and one training step."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from medfl.config import SiteConfig, StudyConfig
from medfl.errors import LedgerError
from medfl.findings import Finding
from medfl.preflight.dry_run import dry_run
from medfl.preflight.machine import (
    OUTBOX_BYTES,
    Machine,
    Need,
    check_machine,
    need_of,
    resources,
    this_machine,
)
from medfl.preflight.site import (
    check_hook,
    check_keys,
    check_ledger,
    check_state,
    check_witness,
    preflight,
)
from medfl.privacy.accounting.planner import plan_site
from medfl.privacy.ledger.ledger import Agreement
from medfl.privacy.ledger.witness_place import witness_folder
from medfl.protocol.keys import SiteKeys
from medfl.segmentation.networks import trainable_state
from medfl.site.audit_log import AUDIT_LOG, AuditLog
from medfl.site.outbox import Outbox
from medfl.site.state import SiteState, hospital_state

LARGE = Machine(
    cores=8,
    memory_bytes=64_000_000_000,
    available_bytes=32_000_000_000,
    free_disk_bytes=1_000_000_000_000,
)
SMALL = Need(disk_bytes=1_000_000_000, memory_bytes=2_000_000_000)


@pytest.fixture
def hospital(federation: Any) -> SiteConfig:
    """A hospital with everything that it needs."""
    site: SiteConfig = federation.hospital("east")
    keys = site.state / "keys"
    SiteKeys.read(keys).write_public(site.state / "site.pub", folder=keys)
    assert hospital_state(site).key
    return site


@pytest.fixture
def site_state(hospital: SiteConfig) -> SiteState:
    return hospital_state(hospital)


@pytest.fixture
def study(federation: Any) -> StudyConfig:
    """A small study that fits the hospital."""
    found: StudyConfig = federation.study(privacy={"noise": "operating-system"})
    return found


def only(findings: list[Finding]) -> Finding:
    """The only finding, which says what to do."""
    (finding,) = findings
    assert finding.rule
    assert finding.value
    assert finding.fix
    return finding


def written(study: StudyConfig, path: Path) -> Path:
    """A study as a TOML file with just the keys that it needs."""
    path.write_text(
        f"""
        id = "{study.id}"
        [input]
        modalities = ["t1c", "t2f"]
        regions = ["WT", "ET"]
        crop_size = [16, 16, 16]
        [network]
        name = "SegResNet"
        arguments = {{ init_filters = 8, blocks_down = [1, 1], blocks_up = [1] }}
        [privacy]
        epsilon = 8.0
        sampling_prob = 0.5
        [training]
        rounds = 2
        local_steps = 1
        optimizer = "sgd"
        learning_rate = 0.5
        [aggregation]
        strategy = "fedavg"
        min_sites = 2
        """
    )
    return path


# ---- the whole


def test_a_sound_hospital_has_no_errors(
    hospital: SiteConfig, study: StudyConfig, tmp_path: Path
) -> None:
    found = preflight(hospital, study=written(study, tmp_path / "study.toml"))
    assert [finding for finding in found if finding.severity == "error"] == []
    notes = [finding.rule for finding in found if finding.severity == "note"]
    assert any("budget" in rule for rule in notes)
    assert any("nothing is charged" in rule for rule in notes)


def test_all_problems_are_found_in_one_pass_and_errors_come_first(
    federation: Any, tmp_path: Path
) -> None:
    site = federation.hospital("east", copy_patients=True, device="cuda:99", threads=1024)
    shutil.rmtree(site.state / "keys")
    shutil.rmtree(site.state / "ledger")
    site.state.chmod(0o755)
    next(site.data.root.rglob("*_t1.nii.gz")).write_bytes(b"")
    study = tmp_path / "study.toml"
    study.write_text("id = 5")
    found = preflight(site, study=study, server="nowhere", ca=None)
    names = " ".join(finding.name for finding in found)
    for part in (
        "_t1.nii.gz",
        "device",
        "threads",
        str(site.state),
        str(site.state / "keys"),
        str(site.state / "keys" / "node"),
        str(site.state / "site.pub"),
        str(site.state / "ledger"),
        str(study),
        "nowhere",
    ):
        assert part in names
    order = [("error", "warning", "note").index(finding.severity) for finding in found]
    assert order == sorted(order)
    assert all(finding.fix for finding in found)


def test_a_state_folder_that_cannot_be_made_stops_no_other_check(
    hospital: SiteConfig, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    site = hospital.model_copy(update={"state": tmp_path / "file" / "state"})
    names = [finding.name for finding in preflight(site)]
    assert str(site.state) in names
    assert str(site.state / "ledger") in names


def test_a_site_with_open_data_needs_neither_keys_nor_ledger(federation: Any) -> None:
    site = federation.site("east", state=str(federation.scratch / "none" / "yet"))
    found = preflight(site)
    assert [finding for finding in found if finding.severity == "error"] == []
    assert not site.state.exists()


# ---- state folder


@pytest.mark.parametrize(
    ("mode", "severities"),
    [
        (0o700, []),
        (0o750, ["error"]),
        (0o755, ["error"]),
        (0o770, ["error"]),
        (0o777, ["error"]),
    ],
)
def test_a_state_folder_is_for_its_owner_only(
    hospital: SiteConfig, mode: int, severities: list[str]
) -> None:
    hospital.state.chmod(mode)
    found = check_state(hospital)
    assert [finding.severity for finding in found] == severities
    assert all(f"mode {mode:04o}" in finding.value for finding in found)


def test_a_hook_that_others_can_write_is_an_error(hospital: SiteConfig, tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    settings = hospital.monitoring.model_copy(update={"hook": (str(hook),)})
    site = hospital.model_copy(update={"monitoring": settings})
    assert check_hook(hospital, file=None) == check_hook(site, file=None) == []
    hook.chmod(0o757)
    found = only(check_hook(site, file=tmp_path / "site.toml"))
    assert (found.severity, found.name) == ("error", str(hook))
    assert "mode 0757" in found.value


@pytest.mark.parametrize("name", ["ledger", "ledger/ledger.sqlite", "ledger/head.json", "outbox"])
def test_what_lies_in_the_state_folder_is_for_its_owner_only(
    hospital: SiteConfig, name: str
) -> None:
    assert hospital_state(hospital).outbox
    path = hospital.state / name
    path.chmod(path.stat().st_mode | 0o044)
    found = only(check_state(hospital))
    assert (found.severity, found.name) == ("error", str(path))
    assert f"chmod {'700' if path.is_dir() else '600'} {path}" in found.fix


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("name", ["ledger/ledger.sqlite", "keys/node", "keys", "."])
def test_what_belongs_to_another_account_is_an_error(hospital: SiteConfig, name: str) -> None:
    os.chown(hospital.state / name, 65534, -1)
    found = only([*check_state(hospital), *check_keys(hospital)])
    assert (found.severity, found.value) == ("error", "owner nobody")
    assert "Run medfl as nobody" in found.fix


def test_a_site_file_that_others_can_write_is_an_error(
    hospital: SiteConfig, tmp_path: Path
) -> None:
    file = tmp_path / "site.toml"
    file.touch(0o600)
    assert check_state(hospital, file) == []
    file.chmod(0o666)
    assert only(check_state(hospital, file)).value == "mode 0666"


@pytest.mark.parametrize("name", ["", "witness.key"])
def test_a_witness_that_others_can_read_is_an_error(hospital: SiteConfig, name: str) -> None:
    path = witness_folder() / name
    path.chmod(path.stat().st_mode | 0o044)
    found = only(check_witness(hospital_state(hospital)))
    assert (found.severity, found.name) == ("error", str(path))
    with pytest.raises(LedgerError, match=r"mode 0[67]44"):
        hospital_state(hospital).open_ledger()


def test_a_folder_of_open_data_may_be_seen(federation: Any, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert check_state(federation.site("east", state=str(tmp_path))) == []


def test_a_state_folder_that_cannot_be_written_is_an_error(federation: Any) -> None:
    # A folder in which even root can make no file.
    found = only(check_state(federation.site("east", state="/proc/self")))
    assert found.severity == "error"
    assert "write" in found.rule


def test_the_check_leaves_nothing_in_the_state_folder(hospital: SiteConfig) -> None:
    before = sorted(hospital.state.rglob("*"))
    check_state(hospital)
    assert sorted(hospital.state.rglob("*")) == before


# ---- keys


def test_sound_keys_are_no_finding(hospital: SiteConfig) -> None:
    assert check_keys(hospital) == []


def test_an_open_folder_of_keys_is_an_error(hospital: SiteConfig) -> None:
    (hospital.state / "keys").chmod(0o755)
    found = only(check_keys(hospital))
    assert (found.severity, found.value) == ("error", "mode 0755")
    assert found.fix == f"chmod 700 {hospital.state / 'keys'}"


@pytest.mark.parametrize("name", ["keys/event.json", "keys/node", "site.key"])
def test_a_key_that_others_can_read_is_an_error(hospital: SiteConfig, name: str) -> None:
    (hospital.state / name).chmod(0o640)
    found = only(check_keys(hospital))
    assert found.severity == "error"
    assert "0640" in found.value
    assert "chmod 600" in found.fix


@pytest.mark.parametrize("name", ["keys/event.json", "keys/node", "site.key"])
def test_a_missing_key_is_an_error(hospital: SiteConfig, name: str) -> None:
    (hospital.state / name).unlink()
    found = only(check_keys(hospital))
    assert found.severity == "error"
    assert "medfl site init" in found.fix


def test_a_damaged_key_is_an_error(hospital: SiteConfig) -> None:
    path = hospital.state / "keys" / "event.json"
    path.write_text("{}")
    assert "damaged" in only(check_keys(hospital)).value


def test_a_missing_public_file_is_a_warning(hospital: SiteConfig) -> None:
    (hospital.state / "site.pub").unlink()
    found = only(check_keys(hospital))
    assert (found.severity, found.name) == ("warning", str(hospital.state / "site.pub"))


def test_a_public_file_of_other_keys_is_a_warning(hospital: SiteConfig) -> None:
    folder = hospital.state / "keys"
    SiteKeys.read(folder).rotate(folder)
    assert only(check_keys(hospital)).value == "those of other keys"


# ---- ledger


def test_a_sound_ledger_leaves_a_note_of_what_is_left(site_state: SiteState) -> None:
    found = only(check_ledger(site_state))
    assert found.severity == "note"
    assert "epsilon 10.000 of 10 left" in found.value


def _damage(site_state: SiteState) -> None:
    path = site_state.ledger_folder / "ledger.sqlite"
    path.write_bytes(path.read_bytes()[:1000])


def _behead(site_state: SiteState) -> None:
    (site_state.ledger_folder / "head.json").unlink()


def _forget(site_state: SiteState) -> None:
    shutil.rmtree(witness_folder())


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (_damage, "ledger"),
        (_behead, "head"),
        (_forget, "witness knows, found an unknown one"),
    ],
)
def test_a_ledger_that_cannot_be_trusted_is_an_error(
    site_state: SiteState, spoil: Callable[[SiteState], None], part: str
) -> None:
    spoil(site_state)
    found = only(check_ledger(site_state))
    assert found.severity == "error"
    assert part in found.value


def test_a_missing_ledger_is_an_error_that_says_what_comes_first(site_state: SiteState) -> None:
    shutil.rmtree(site_state.ledger_folder)
    found = only(check_ledger(site_state))
    assert (found.severity, found.value) == ("error", "none")
    assert "Correct the other findings first" in found.fix
    assert "medfl ledger init" in found.fix


def test_a_damaged_audit_log_is_an_error(hospital: SiteConfig, site_state: SiteState) -> None:
    AuditLog(hospital.state).note("pause")
    (hospital.state / AUDIT_LOG / "log.sqlite").write_bytes(b"")
    found = only(check_ledger(site_state))
    assert found.severity == "error"
    assert "audit log" in found.value


def test_a_ledger_that_moved_with_its_folder_is_still_the_sites_own(
    hospital: SiteConfig, tmp_path: Path
) -> None:
    moved = hospital.model_copy(update={"state": tmp_path / "moved"})
    hospital.state.rename(moved.state)
    assert check_witness(hospital_state(moved)) == []


def test_a_lost_ledger_is_missed_where_it_was(hospital: SiteConfig) -> None:
    shutil.rmtree(hospital.state / "ledger")
    assert "medfl ledger acknowledge" in only(check_witness(hospital_state(hospital))).value


def test_a_ledger_made_for_another_budget_is_an_error(hospital: SiteConfig) -> None:
    privacy = hospital.privacy.model_copy(update={"epsilon": 11.0})
    site = hospital.model_copy(update={"privacy": privacy})
    assert "made for" in only(check_ledger(hospital_state(site))).value


@pytest.mark.parametrize("purpose", ["hospital", "open-data"])
def test_patients_of_another_ledger_are_an_error(purpose: str, hospital: SiteConfig) -> None:
    assert check_witness(hospital_state(hospital)) == []
    state = hospital.state.with_name("second")
    second = hospital.model_copy(update={"name": "second", "state": state, "purpose": purpose})
    found = only(check_witness(hospital_state(second)))
    assert found.severity == "error"
    assert str(hospital.state / "ledger") in found.value


@pytest.mark.slow
def test_a_budget_that_is_almost_spent_is_a_warning(federation: Any, site_state: SiteState) -> None:
    study = federation.study(privacy={"epsilon": 9.5, "noise": "operating-system"})
    with site_state.open_ledger() as ledger:
        mechanism = plan_site(study, site_state.site, history=(), private=True).mechanism
        agreement = Agreement(
            study=study.id,
            proposal=study.digest,
            mechanism=mechanism,
            members=frozenset(site_state.members),
            steps=study.total_steps,
        )
        ledger.agree("run", agreement)
        for number in range(1, study.training.rounds + 1):
            ledger.charge(
                study=study.id,
                run="run",
                round=number,
                message_id=f"run/{number}",
                mechanism=mechanism,
            )
    found = only(check_ledger(site_state))
    assert found.severity == "warning"
    assert 0.4 < float(found.value.split()[1]) < 0.6


# ---- machine


def test_a_large_machine_is_no_finding(site_state: SiteState) -> None:
    assert check_machine(site_state, machine=LARGE, need=SMALL) == []


@pytest.mark.parametrize(
    ("lack", "severity", "name"),
    [
        ({"free_disk_bytes": 999_999_999}, "error", "state"),
        ({"available_bytes": 1_999_999_999}, "warning", "memory"),
        ({"available_bytes": 1, "memory_bytes": 1_999_999_999}, "error", "memory"),
    ],
)
def test_what_a_machine_lacks_is_named(
    site_state: SiteState, lack: dict[str, int], severity: str, name: str
) -> None:
    found = only(check_machine(site_state, machine=replace(LARGE, **lack), need=SMALL))
    assert found.severity == severity
    assert name in found.name


@pytest.mark.parametrize(("cores", "names"), [(3, []), (2, ["threads"])])
def test_more_threads_than_cores_are_a_warning(
    federation: Any, cores: int, names: list[str]
) -> None:
    site_state = hospital_state(federation.site("east", threads=3))
    found = check_machine(site_state, machine=replace(LARGE, cores=cores), need=SMALL)
    assert [(finding.severity, finding.name) for finding in found] == [
        ("warning", name) for name in names
    ]


def test_a_device_that_is_not_there_is_an_error(federation: Any) -> None:
    site_state = hospital_state(federation.site("east", device="cuda:99"))
    found = only(check_machine(site_state, machine=LARGE, need=SMALL))
    assert (found.severity, found.name) == ("error", "device")
    assert "cuda:99" in found.value


def test_this_machine_is_what_another_library_says(tmp_path: Path) -> None:
    machine = this_machine(tmp_path / "not" / "there")
    memory = psutil.virtual_memory()
    assert machine.cores == len(psutil.Process().cpu_affinity())
    # A container may allow less than the machine has.
    assert 0 < machine.memory_bytes <= memory.total
    assert 0 < machine.available_bytes <= min(machine.memory_bytes, 1.25 * memory.available)
    assert machine.free_disk_bytes == pytest.approx(psutil.disk_usage(str(tmp_path)).free, rel=0.2)


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("", 4)]
)
def test_a_containers_share_of_time_counts_as_cores(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads beyond it are stopped for the rest of each period, and the others wait for them."""
    read = Path.read_text

    def of_container(path: Path, **named: Any) -> str:
        return quota if path == Path("/sys/fs/cgroup/cpu.max") else read(path, **named)

    monkeypatch.setattr(Path, "read_text", of_container)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert this_machine(tmp_path).cores == cores


def test_a_site_is_told_what_it_gets(federation: Any) -> None:
    text = resources(federation.site("east", threads=3), machine=LARGE)
    assert text == (
        f"east trains with 3 of {LARGE.cores} cores and {LARGE.available_bytes / 1e9:.1f} GB of "
        "memory, without a GPU."
    )
    missing = resources(federation.site("east", device="cuda:99"), machine=LARGE)
    assert missing == f"east trains with 1 of {LARGE.cores} cores."


def test_disk_is_needed_for_every_case_at_its_own_size(site_state: SiteState) -> None:
    # 4 cases of 32 x 32 x 24 voxels: four modalities in half precision, and a byte of regions.
    cases = 4 * (32 * 32 * 24 * 9 + 160_000)
    assert need_of(site_state, None).disk_bytes == OUTBOX_BYTES + cases


def test_prepared_cases_take_no_more_disk_than_was_said(
    site_state: SiteState, study: StudyConfig
) -> None:
    before = need_of(site_state, study).disk_bytes
    training, _ = site_state.stores(study)
    for index in range(len(training)):
        training.prepared(index)
    held = sum(path.stat().st_size for path in (site_state.site.state / "cache").glob("*.case"))
    assert held > 0
    # What is there already is not needed once more.
    assert need_of(site_state, study).disk_bytes == before - held
    voxels = 4 * 32 * 32 * 24 * 5
    assert voxels < held <= voxels + 4 * 160_000


def test_an_update_takes_the_disk_that_was_said(
    federation: Any, site_state: SiteState, tmp_path: Path
) -> None:
    needs = [
        need_of(site_state, federation.study(training={"rounds": rounds})).disk_bytes
        for rounds in (1, 101)
    ]
    weights = trainable_state(site_state.network(federation.study()))
    Outbox(tmp_path / "outbox").put("message", request="", body="", weights=weights)
    (path,) = (tmp_path / "outbox").iterdir()
    assert (needs[1] - needs[0]) / 100 == pytest.approx(path.stat().st_size, rel=0.2)


def test_a_coarser_frame_needs_less(federation: Any, site_state: SiteState) -> None:
    # Twice the spacing along each axis: an eighth of the voxels.
    fine, coarse = (
        need_of(site_state, federation.study(input={"spacing": spacing})).memory_bytes
        for spacing in ([5.6, 5.6, 6.8], [11.2, 11.2, 13.6])
    )
    copies, float32, channels = 3, 4, 3
    assert fine - coarse == pytest.approx(
        32 * 32 * 24 * 7 / 8 * copies * float32 * channels, abs=100
    )


def test_larger_crops_need_more_memory(federation: Any, site_state: SiteState) -> None:
    small, large = (
        need_of(site_state, federation.study(input={"crop_size": [size] * 3})).memory_bytes
        for size in (16, 32)
    )
    assert large - small == 2 * (32**3 - 16**3) * 2000


def test_a_cohort_without_readable_images_can_be_estimated(federation: Any) -> None:
    site = federation.hospital("east", copy_patients=True)
    for path in site.data.root.rglob("*.nii.gz"):
        path.write_bytes(b"")
    assert need_of(hospital_state(site), None).disk_bytes == OUTBOX_BYTES


# ---- dry run


def test_a_dry_run_tells_time_and_memory(site_state: SiteState, study: StudyConfig) -> None:
    found = only(dry_run(site_state, study))
    assert found.severity == "note"
    assert "nothing is charged" in found.rule
    peak = float(found.value.split(", ")[2].split()[0]) * 1e9
    # This process is at least as large as it is now, and no larger than the machine.
    assert 0.9 * psutil.Process().memory_info().rss < peak < psutil.virtual_memory().total


def test_a_dry_run_charges_and_leaves_nothing(federation: Any, site_state: SiteState) -> None:
    # Dropout draws from torch's global generator.
    study = federation.study(network={"arguments": {"dropout_prob": 0.5}})
    network = site_state.network(study)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    witness = {path: path.read_bytes() for path in witness_folder().iterdir()}
    with site_state.open_ledger() as ledger:
        before = ledger.entries()
    state = torch.get_rng_state()
    dry_run(site_state, study)
    assert torch.equal(torch.get_rng_state(), state)
    with site_state.open_ledger() as ledger:
        assert ledger.entries() == before
    assert not (site_state.site.state / "outbox").exists()
    assert {path: path.read_bytes() for path in witness_folder().iterdir()} == witness
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_dry_run_prepares_one_patient_only(site_state: SiteState, study: StudyConfig) -> None:
    dry_run(site_state, study)
    assert len(list((site_state.site.state / "cache").glob("*.case"))) == 1


def test_a_dry_run_really_goes_backward(
    site_state: SiteState, study: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    network = site_state.network(study)
    for parameter in network.parameters():
        parameter.register_hook(lambda gradient: seen.append(float(gradient.abs().sum())))
    dry_run(site_state, study)
    assert sum(seen) > 0


def test_a_study_that_the_site_cannot_join_is_an_error(federation: Any, study: StudyConfig) -> None:
    site = federation.hospital("east", data={"modalities": ["t1c", "t2w"]})
    found = only(dry_run(hospital_state(site), study))
    assert found.severity == "error"
    assert "t2f" in found.value


def test_a_network_that_cannot_be_built_is_an_error(federation: Any, site_state: SiteState) -> None:
    study = federation.study(network={"name": "SegResNett"})
    assert "SegResNett" in only(dry_run(site_state, study)).value
    assert need_of(site_state, study).memory_bytes > 0


def test_a_gradient_that_is_not_finite_is_an_error(
    site_state: SiteState, study: StudyConfig
) -> None:
    with torch.no_grad():
        for parameter in site_state.network(study).parameters():
            parameter.fill_(np.nan)
    assert "finite" in only(dry_run(site_state, study)).value


def test_memory_that_runs_out_is_an_error(
    site_state: SiteState, study: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    site_state.network(study).register_forward_pre_hook(exhausted)
    assert only(dry_run(site_state, study)).value == "out of memory"


def test_images_that_cannot_be_read_are_an_error(federation: Any, study: StudyConfig) -> None:
    site = federation.hospital("east", copy_patients=True)
    for path in site.data.root.rglob("*.nii.gz"):
        path.write_bytes(b"")
    assert only(dry_run(hospital_state(site), study)).severity == "error"


def test_a_cohort_without_training_patients_is_an_error(
    federation: Any, study: StudyConfig
) -> None:
    site = federation.hospital("east", data={"held_out": 0.99})
    assert "training patient" in only(dry_run(hospital_state(site), study)).value
