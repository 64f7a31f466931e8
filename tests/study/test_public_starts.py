"""A start that has seen public patients: who may be in it, who has to be told, and who refuses."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medfl.cli import main
from medfl.config import SiteConfig, StudyConfig, load_study
from medfl.data.cohort import pseudonym
from medfl.deployment.coordinator import server_component
from medfl.deployment.coordinator.job import FOLDER_VARIABLE, ExpectedSite, Job
from medfl.errors import ConfigError, DataError, LedgerError, ModelError, PrivacyError
from medfl.protocol.keys import SiteKeys
from medfl.protocol.messages import MAX_SEEN_IMAGES, Proposal, refusal_code, to_record
from medfl.protocol.study_model import model_spec
from medfl.segmentation.model_file import model_bytes, read_model, read_provenance
from medfl.segmentation.networks import trainable_state
from medfl.server.progress import Silent
from medfl.server.run_folder import RunFolder
from medfl.site import seen_patients
from medfl.site.agreement import declare
from medfl.site.seen_patients import digests_of, list_digest
from medfl.site.state import CACHE, hospital_state, simulated_state
from medfl.study.in_process_grid import run_in_process
from medfl.study.pretraining import initial_weights
from medfl.study.run import run_study
from medfl.study.simulation import in_process_grid, prepare_folder, simulate
from medfl.study.starting_point import (
    FILE,
    PUBLIC_ORIGIN,
    StartingPoint,
    seen_by_start,
    write_starting_point,
)

SYNTHETIC: dict[str, Any] = {
    "shape": [20, 20, 16],
    "spacing": [9.0, 9.0, 10.0],
    "skull_stripped": True,
    "seed": 500,
    "pretraining_patients": 2,
    "pretraining_steps": 2,
    "public_steps": 2,
}
OPEN = {"allow_baselines": True}

Run = Callable[..., tuple[int, str, str]]


def unwatched(_done: int, _total: int) -> None:
    """Nobody looks."""


def made(study: StudyConfig, out: Path, *sites: SiteConfig) -> StartingPoint:
    return write_starting_point(
        study, out=out, threads=1, drawn=unwatched, advance=unwatched, sites=sites
    )


def public(federation: Any, name: str = "south", **changes: Any) -> SiteConfig:
    """A site with open data of whose patients none is held out."""
    site: SiteConfig = federation.site(
        name, **{"privacy": OPEN, "data": {"held_out": 0.0}, **changes}
    )
    return site


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def stated(file: Path) -> dict[str, Any]:
    """What a study has to say of a file."""
    provenance = read_provenance(file)
    return {
        "file": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "collections": list(provenance["collections"]),
        "seen_sha256": list_digest(provenance["seen"]),
    }


@pytest.fixture(scope="module")
def file(shared_federation: Any) -> Path:
    """A start that has seen everybody of `south`."""
    path: Path = shared_federation.scratch / "public.safetensors"
    made(shared_federation.study(synthetic=SYNTHETIC), path, public(shared_federation))
    return path


@pytest.fixture
def study(federation: Any, file: Path) -> StudyConfig:
    """Starts from the file, and says so."""
    started: StudyConfig = federation.study(
        synthetic={**SYNTHETIC, "start": stated(file)},
        privacy={"noise": "operating-system"},
        aggregation={"min_sites": 1},
    )
    return started


@pytest.fixture
def seen(file: Path) -> tuple[str, ...]:
    return tuple(read_provenance(file)["seen"])


@pytest.fixture
def medfl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line: exit code, output, and errors in one line."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medfl", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out, " ".join(told.err.split())

    return run


@pytest.fixture
def files(federation: Any, pretraining_study: str, tmp_path: Path) -> dict[str, Path]:
    """A study that describes a training on patients, and site files."""
    study = tmp_path / "study.toml"
    study.write_text(f"{pretraining_study}public_steps = 2\n")
    return {"study": study, **federation.files}


def with_purpose(path: Path, folder: Path, **changes: str) -> Path:
    """A copy of a site's file with some values replaced."""
    text = path.read_text().replace('root = "', f'root = "{path.parent}/')
    for key, value in changes.items():
        text, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
        assert count == 1, key
    copy = folder / f"changed-{path.name}"
    copy.write_text(text)
    return copy


# Making one


def test_the_file_names_whom_it_has_seen_and_a_study_has_to_say_it(
    medfl: Run, files: dict[str, Path], federation: Any, tmp_path: Path
) -> None:
    out = tmp_path / "start.safetensors"
    code, told, errors = medfl("pretrain", files["study"], files["south"], files["east"], "-o", out)
    assert code == 0, errors
    provenance = read_provenance(out)
    training = {
        name: simulated_state(federation.site(name), run_folder=tmp_path).patients.training
        for name in ("east", "south")
    }
    assert provenance["origin"] == PUBLIC_ORIGIN
    assert provenance["collections"] == {name: len(them) for name, them in training.items()}
    assert provenance["synthetic"]["public_steps"] == 2
    assert provenance["mechanisms"] == {}
    expected: set[str] = set()
    for name, them in training.items():
        site = federation.site(name)
        expected |= digests_of(them, site=site, cache=site.state / CACHE)
    assert provenance["seen"] == sorted(expected)
    assert len(expected) == 4 * sum(map(len, training.values()))
    assert "public ones whom no guarantee covers: 3 of east, 3 of south" in told
    assert f'seen_lists = ["{list_digest(expected)}"]' in told
    (line,) = re.findall(r"^ *(start = .*)$", told, flags=re.MULTILINE)
    with files["study"].open("a") as text:
        text.write(line + "\n")
    started = load_study(files["study"])
    prepare_folder(tmp_path / "run", study=started, resume=False)
    assert seen_by_start(started, out=tmp_path / "run") == tuple(sorted(expected))
    assert started.synthetic is not None
    assert started.synthetic.collections == ("east", "south")


@pytest.mark.slow
def test_the_same_sites_give_the_same_file_in_any_order_and_held_out_patients_no_part(
    federation: Any, tmp_path: Path
) -> None:
    study = federation.study(synthetic=SYNTHETIC)
    sites = [federation.site(name, privacy=OPEN) for name in ("south", "east")]
    one, other = tmp_path / "one", tmp_path / "other"
    made(study, one, *sites)
    made(study, other, *reversed(sites))
    assert one.read_bytes() == other.read_bytes()
    synthetic_only = initial_weights(study, threads=1, advance=unwatched)
    assert not same(load_file(one), synthetic_only)
    # Whoever is held out may have any image.
    east = federation.site("east", privacy=OPEN)
    held_out = simulated_state(east, run_folder=tmp_path).patients.held_out
    assert held_out
    copy = tmp_path / "copied" / "east"
    shutil.copytree(east.data.root, copy)
    for case in held_out[0].cases:
        for image in case.images.values():
            (copy / Path(image).relative_to(Path(str(east.data.root)))).write_bytes(b"no image")
    changed = federation.site("east", privacy=OPEN, data={"root": str(copy)})
    made(study, tmp_path / "third", changed, sites[0])
    assert (tmp_path / "third").read_bytes() == one.read_bytes()


def test_without_site_files_nothing_is_seen_and_the_weights_are_as_ever(
    federation: Any, tmp_path: Path
) -> None:
    study = federation.study(synthetic={**SYNTHETIC, "public_steps": 0})
    point = made(study, tmp_path / "start")
    assert same(load_file(tmp_path / "start"), initial_weights(study, threads=1, advance=unwatched))
    assert (point.collections, point.seen_sha256) == ({}, None)
    assert not {"seen", "collections"} & read_provenance(tmp_path / "start").keys()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"purpose": '"hospital"', "share_metrics": "false", "allow_baselines": "false"},
         "expected purpose = 'open-data', found 'hospital'"),
        ({"allow_baselines": "false"}, "expected privacy.allow_baselines = true, found false"),
    ],
    ids=["hospital", "no training without noise"],
)  # fmt: skip
def test_patients_who_may_not_be_seen_are_refused(
    changes: dict[str, str], reason: str, medfl: Run, files: dict[str, Path], tmp_path: Path
) -> None:
    site, out = with_purpose(files["south"], tmp_path, **changes), tmp_path / "start"
    code, _, errors = medfl("pretrain", files["study"], files["east"], site, "-o", out)
    assert code == 3
    assert reason in errors
    assert not out.exists()


def test_a_hospitals_patients_are_refused_under_any_other_name(
    federation: Any, tmp_path: Path
) -> None:
    federation.hospital("south")
    with pytest.raises(LedgerError, match="they are a hospital's"):
        made(federation.study(synthetic=SYNTHETIC), tmp_path / "start", public(federation))


def test_steps_on_patients_and_site_files_belong_together(
    medfl: Run, files: dict[str, Path], federation: Any, tmp_path: Path
) -> None:
    out = tmp_path / "start"
    code, _, errors = medfl("pretrain", files["study"], "-o", out)
    assert code == 2
    assert "site files of open data, since the study has [synthetic] public_steps = 2" in errors
    code, _, errors = medfl("pretrain", files["study"], files["east"], files["east"], "-o", out)
    assert code == 2
    assert "several of east" in errors
    code, _, errors = medfl("simulate", files["study"], files["east"], "--out", tmp_path / "run")
    assert code == 2
    assert "only `medfl pretrain` trains on public patients" in errors
    files["study"].write_text(files["study"].read_text().replace("public_steps = 2", ""))
    code, _, errors = medfl("pretrain", files["study"], files["east"], "-o", out)
    assert code == 2
    assert "public_steps >= 1 in the study with site files, found 0" in errors
    assert not out.exists()
    assert not (tmp_path / "run").exists()


def test_a_missing_modality_follows_the_studys_rule(federation: Any, tmp_path: Path) -> None:
    site = public(federation, data={"held_out": 0.0, "modalities": ["t2f"]})
    with pytest.raises(ConfigError, match=r"data\.modalities with all of the study's"):
        made(federation.study(synthetic=SYNTHETIC), tmp_path / "start", site)
    fills = federation.study(synthetic=SYNTHETIC, input={"missing_modality": "zero-fill"})
    made(fills, tmp_path / "start", site, public(federation, "east"))
    # A hospital with the other modalities of a patient has that patient all the same.
    assert len(read_provenance(tmp_path / "start")["seen"]) == 2 * 4 * 4


def test_a_patient_whom_nobody_could_recognise_is_refused(
    federation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        seen_patients,
        "images_of",
        lambda *_, **__: {"P1": frozenset(["ab"]), "P2": frozenset()},
    )
    with pytest.raises(DataError, match="can be told from others, found none of P2"):
        made(federation.study(synthetic=SYNTHETIC), tmp_path / "start", public(federation))


# Starting from one


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        ({"collections": []}, "expected collections and seen_sha256 together"),
        ({"seen_sha256": None}, "expected collections and seen_sha256 together"),
        ({"collections": ["south", "east"]}, "distinct collections in alphabetical order"),
        ({"collections": [], "seen_sha256": None}, "public_steps >= 1 where start names"),
    ],
    ids=["nobody named", "no list", "out of order", "steps on nobody"],
)
def test_a_study_that_contradicts_itself_is_refused(
    start: dict[str, Any], reason: str, federation: Any, file: Path
) -> None:
    with pytest.raises(ValueError, match=reason):
        federation.study(synthetic={**SYNTHETIC, "start": stated(file) | start})


@pytest.mark.parametrize(
    ("synthetic", "start", "reason"),
    [
        ({"public_steps": 0}, {"collections": [], "seen_sha256": None}, "seen those of ['south']"),
        ({}, {"collections": ["north"]}, "public patients of ['north'], as the study says"),
        ({}, {"seen_sha256": "0" * 64}, "Everybody who agrees to the study has to be told"),
        ({"public_steps": 3}, {}, "the public_steps of the study's [synthetic], 3, found 2"),
    ],
    ids=["not said", "others", "other images", "more steps"],
)
def test_a_study_has_to_say_whom_its_start_has_seen(
    synthetic: dict[str, Any],
    start: dict[str, Any],
    reason: str,
    federation: Any,
    file: Path,
    tmp_path: Path,
) -> None:
    said = {**SYNTHETIC, **synthetic, "start": stated(file) | start}
    with pytest.raises(ModelError) as caught:
        prepare_folder(tmp_path / "run", study=federation.study(synthetic=said), resume=False)
    assert reason in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_error_says_what_the_study_has_to_say(
    federation: Any, file: Path, tmp_path: Path
) -> None:
    silent = {"file": str(file), "sha256": stated(file)["sha256"]}
    study = federation.study(synthetic={**SYNTHETIC, "public_steps": 0, "start": silent})
    with pytest.raises(ModelError) as caught:
        prepare_folder(tmp_path / "run", study=study, resume=False)
    told = stated(file)
    assert f'collections = ["south"], seen_sha256 = "{told["seen_sha256"]}"' in str(caught.value)


def test_a_synthetic_start_cannot_claim_patients(federation: Any, tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    made(federation.study(synthetic={**SYNTHETIC, "public_steps": 0}), path)
    claim = {"collections": ["south"], "seen_sha256": list_digest(())}
    start = {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **claim}
    with pytest.raises(ModelError, match=r"found one that has seen those of \[\]"):
        prepare_folder(
            tmp_path / "run",
            study=federation.study(synthetic={**SYNTHETIC, "start": start}),
            resume=False,
        )


@pytest.mark.slow
def test_a_run_over_other_patients_names_the_collections_everywhere(
    medfl: Run, federation: Any, study: StudyConfig, file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run_study(study, federation.sites("north", "east", privacy=OPEN), out=out)
    assert same(load_file(out / "checkpoints" / "initial.safetensors"), load_file(file))
    final = read_provenance(out / "checkpoints" / "final.safetensors")
    assert final["start_collections"] == ["south"]
    code, _, errors = medfl("report", out)
    assert code == 0, errors
    page = " ".join(re.sub(r"<[^>]*>", " ", (out / "report.html").read_text()).split())
    assert "starting model has seen the patients of south, which are public" in page
    assert "of south: the guarantee does not cover them" in page
    assert "then 2 steps on the public patients of south, outside of the guarantee" in page
    bundle = tmp_path / "bundle"
    code, _, errors = medfl("export", "bundle", out, "-o", bundle)
    assert code == 0, errors
    card = " ".join((bundle / "docs" / "README.md").read_text().split())
    assert "of these collections: south. **The guarantee does not cover them.**" in card


def test_a_plan_names_the_collections(
    medfl: Run, files: dict[str, Path], file: Path, tmp_path: Path
) -> None:
    told = stated(file)
    line = (
        f'start = {{ file = "{file}", sha256 = "{told["sha256"]}", collections = ["south"], '
        f'seen_sha256 = "{told["seen_sha256"]}" }}\n'
    )
    files["study"].write_text(files["study"].read_text() + line)
    code, out, errors = medfl("plan", files["study"], files["east"])
    assert code == 0, errors
    words = " ".join(out.split())
    assert "has seen public patients, of south; the guarantee does not cover them" in words
    code, out, _ = medfl("plan", files["study"], files["east"], "--json")
    assert json.loads(out)["start_collections"] == ["south"]


# Refusing


def proposed(study: StudyConfig, seen: tuple[str, ...]) -> Proposal:
    return Proposal(study=study, run="first", private=True, seen=seen)


def asked(federation: Any, site_state: Any, proposal: Proposal) -> str:
    """The code that a site answers."""
    return str(refusal_code(federation.ask(site_state, to_record(proposal), kind="query")))


def kept(site: SiteConfig) -> dict[str, bytes]:
    """Every file of a ledger, but for the log's index, which readers write too."""
    files = (site.state / "ledger").iterdir()
    return {file.name: file.read_bytes() for file in files if not file.name.endswith("-shm")}


@pytest.fixture
def listed(study: StudyConfig) -> dict[str, Any]:
    """The part of a hospital's file that lets it be asked about the list."""
    assert study.synthetic is not None
    assert study.synthetic.start is not None
    return {"allow_baselines": False, "seen_lists": [study.synthetic.start.seen_sha256]}


def test_a_hospital_whose_patients_were_seen_refuses_before_anything_is_charged(
    federation: Any, study: StudyConfig, seen: tuple[str, ...], listed: dict[str, Any], caplog: Any
) -> None:
    site = federation.hospital("south", privacy=listed)
    state = hospital_state(site)
    before = kept(site)
    assert asked(federation, state, proposed(study, seen)) == "start-seen"
    assert kept(site) == before
    name = pseudonym(state.patients.training[0].patient_id, key=state.key)
    assert "found 4 whom it has" in caplog.text
    assert name in caplog.text
    other = hospital_state(federation.hospital("east", privacy=listed))
    assert declare(other, proposed(study, seen)).site == "east"


def test_one_held_out_patient_who_was_seen_is_enough_whatever_the_files_are_called(
    federation: Any, study: StudyConfig, seen: tuple[str, ...], listed: dict[str, Any]
) -> None:
    root = federation.scratch / "cohort"
    shutil.copytree(federation.site("east").data.root, root)
    stranger = sorted(Path(federation.site("south").data.root).iterdir())[0]
    copy = root / "BraTS2021_09999"
    copy.mkdir()
    for image in stranger.iterdir():
        (copy / image.name.replace(stranger.name, copy.name)).write_bytes(image.read_bytes())
    for held_out, patients in ((0.9, 1), (0.0, 5)):
        site = federation.site(
            "east", data={"root": str(root), "held_out": held_out}, declared_patients=patients
        )
        with pytest.raises(PrivacyError, match="found 1 whom it has") as caught:
            declare(federation.site_state(site), proposed(study, seen))
        assert caught.value.code == "start-seen"


def test_a_hospital_compares_with_no_list_that_it_does_not_name(
    federation: Any, study: StudyConfig, seen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a coordinator could ask for one person after the other."""

    def look(*_: object, **__: object) -> None:
        pytest.fail("Expected nobody's images to be compared.")

    site = federation.hospital("south", privacy={"seen_lists": ["0" * 64]})
    before = kept(site)
    monkeypatch.setattr(seen_patients, "images_of", look)
    assert asked(federation, hospital_state(site), proposed(study, seen)) == "policy-start"
    assert asked(federation, hospital_state(site), proposed(study, ())) == "policy-start"
    assert kept(site) == before


@pytest.mark.parametrize("fault", ["missing", "one less", "one more", "none agreed"])
def test_a_list_that_was_not_agreed_to_is_refused(
    fault: str,
    federation: Any,
    study: StudyConfig,
    seen: tuple[str, ...],
    listed: dict[str, Any],
) -> None:
    sent = {"missing": (), "one less": seen[1:], "one more": (*seen, "0" * 32)}.get(fault, seen)
    if fault == "none agreed":
        study = federation.study(privacy={"noise": "operating-system"})
    site = federation.hospital("east", privacy=listed)
    before = kept(site)
    assert asked(federation, hospital_state(site), proposed(study, sent)) == "start-list"
    assert kept(site) == before


@pytest.mark.parametrize(
    "sent",
    [["0" * 31], ["g" * 32], ["0" * 64], [f"{n:032x}" for n in range(MAX_SEEN_IMAGES + 1)], "all"],
    ids=["short", "no hex", "long", "too many", "no list"],
)
def test_a_malformed_list_is_refused(sent: Any, federation: Any, study: StudyConfig) -> None:
    record = to_record(proposed(study, ()))
    body = record.config_records["body"]
    body["json"] = json.dumps({**json.loads(str(body["json"])), "seen": sent})
    state = federation.site_state(federation.site("east"))
    answer = federation.ask(state, record, kind="query")
    assert refusal_code(answer) == "message-body"


def test_the_longest_list_fits_into_a_message(federation: Any, study: StudyConfig) -> None:
    longest = tuple(f"{n:032x}" for n in range(MAX_SEEN_IMAGES))
    state = federation.site_state(federation.site("east"))
    assert asked(federation, state, proposed(study, longest)) == "start-list"


def test_a_simulation_with_a_site_that_was_seen_is_refused(
    medfl: Run, files: dict[str, Path], file: Path, tmp_path: Path
) -> None:
    told = stated(file)
    line = (
        f'start = {{ file = "{file}", sha256 = "{told["sha256"]}", collections = ["south"], '
        f'seen_sha256 = "{told["seen_sha256"]}" }}\n'
    )
    study = files["study"]
    text = study.read_text().replace("[synthetic]\n", "[synthetic]\nseed = 500\n")
    study.write_text(text + line)
    out = tmp_path / "run"
    code, _, errors = medfl("simulate", study, files["east"], files["south"], "--out", out)
    assert code == 3
    assert "Site south: expected patients whom the starting model has not seen" in errors
    assert not out.exists()


@pytest.mark.slow
def test_a_site_that_was_seen_is_left_out_of_the_federation(
    federation: Any, study: StudyConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    prepare_folder(out, study=study, resume=False)
    simulate(study, federation.sites(), out=out, engine="inprocess", progress=Silent())
    assert "start-seen" in caplog.text
    assert set(RunFolder(out).rounds()[0].sites) == {"east", "north"}
    assert not (out / "sites" / "south" / "ledger").exists()


@pytest.mark.slow
def test_a_deployed_server_sends_the_list(
    federation: Any,
    study: StudyConfig,
    listed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out, jobs = tmp_path / "run", tmp_path / "jobs"
    jobs.mkdir()
    prepare_folder(out, study=study, resume=False)
    sites = [federation.hospital(name, privacy=listed) for name in ("east", "south")]
    expected = {
        site.name: ExpectedSite(node=node, event_key=SiteKeys.read(site.state / "keys").event_key)
        for node, site in enumerate(sites, start=2)
    }
    job = Job(run="first", study=study, out=out, sites=expected)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    grid = in_process_grid([hospital_state(site) for site in sites], progress=Silent())
    with job.posted(jobs, run=1):
        run_in_process(server_component.app, grid)
    assert set(RunFolder(out).rounds()[0].sites) == {"east"}
    assert "start-seen" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("south", 3), ("east", 0)])
def test_a_hospital_adapts_with_a_start_that_has_seen_none_of_its_patients(
    name: str, code: int, medfl: Run, federation: Any, file: Path, tmp_path: Path
) -> None:
    site = federation.hospital(name)
    site_file = tmp_path / "site.toml"
    values = site.model_dump(mode="json")
    site_file.write_text(toml(values))
    study = federation.study()
    model = tmp_path / "federated.safetensors"
    model.write_bytes(
        model_bytes(
            trainable_state(model_spec(study).build(seed=5)),
            spec=model_spec(study),
            provenance={"study": "tiny", "label_schemes": ["brats"], "mechanisms": {}},
        )
    )
    out = site.state / "own.safetensors"
    ended, _, errors = medfl(
        "adapt", site_file, model, "-o", out, "--start", file, "--steps", 1, "--folds", 2
    )
    assert ended == code, errors
    assert out.exists() == (code == 0)
    if code:
        assert "found 4 whom it has" in errors


def toml(values: dict[str, Any]) -> str:
    """A site as a file: JSON's values in inline tables, without those that are empty."""

    def inline(value: Any) -> str:
        if isinstance(value, dict):
            inner = ", ".join(
                f"{k} = {inline(v)}" for k, v in value.items() if v not in (None, {}, "")
            )
            return f"{{ {inner} }}"
        return json.dumps(value)

    return "".join(f"{key} = {inline(value)}\n" for key, value in values.items())


def test_the_run_folder_keeps_the_list(
    federation: Any, study: StudyConfig, file: Path, seen: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert seen_by_start(study, out=out) == seen
    prepare_folder(out, study=study, resume=False)
    assert (out / FILE).read_bytes() == file.read_bytes()
    spec, network = read_model(out / FILE)
    forged = read_provenance(out / FILE) | {"seen": []}
    (out / FILE).write_bytes(model_bytes(trainable_state(network), spec=spec, provenance=forged))
    with pytest.raises(ModelError, match="SHA-256"):
        seen_by_start(study, out=out)
