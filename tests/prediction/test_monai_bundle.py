"""A bundle runs under MONAI alone, and does with a case what medfl does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from monai.bundle import verify_net_in_out

from medfl.config.site import Modality, SiteData
from medfl.errors import ConfigError, FederationError, PrivacyError
from medfl.prediction.cohort import predict_case, predict_cohort
from medfl.prediction.monai_bundle import export_bundle
from medfl.prediction.predictor import Predictor
from medfl.runs.files import FINAL_MODEL
from medfl.segmentation.model_file import STAYS, ModelSpec, model_bytes, read_model
from medfl.segmentation.networks import trainable_state
from tests.prediction.bundles import content, finished_run, run_bundle
from tests.prediction.conftest import SPEC

CASES = ("BraTS2021_00000", "BraTS2021_00001", "BraTS2021_00002")
ENDINGS = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}
PROGRAM = """
import json, sys
from monai.bundle import run
config = "configs/inference.json"
run(config_file=config, bundle_root=".", datalist=json.loads(sys.argv[1]))
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run, as far as a bundle looks at it."""
    return finished_run(tmp_path / "run")


@pytest.fixture
def bundle(run_dir: Path, tmp_path: Path) -> Path:
    return export_bundle(run_dir, tmp_path / "bundle")


def files(patients: Path, case: str, modalities: tuple[str, ...] = ("t1c", "t2f")) -> list[str]:
    return [str(patients / case / f"{case}_{ENDINGS[name]}.nii.gz") for name in modalities]


def written(folder: Path) -> dict[str, bytes]:
    """Name -> content of all masks below a folder."""
    return {path.name: content(path) for path in folder.rglob("*.nii.gz")}


def our_mask(
    run_dir: Path, patients: Path, data: SiteData, *, case: str = CASES[0], mirrored: bool = False
) -> bytes:
    """What `medfl predict` writes."""
    out = run_dir.parent / "ours" / "mask.nii.gz"
    shutil.rmtree(out.parent, ignore_errors=True)
    predict_case(
        Predictor(run_dir / FINAL_MODEL, mirrored=mirrored), patients / case, data=data, out=out
    )
    return content(out)


def test_the_card_says_what_every_site_promised(run_dir: Path, tmp_path: Path) -> None:
    out = export_bundle(run_dir, tmp_path / "bundle")
    card = (out / "docs" / "README.md").read_text()
    assert "| north | 8.00 | 1e-05 | 10 |" in card
    assert "| west | 3.20 | 1e-06 | 4 |" in card
    assert "not a medical device" in card
    assert "T1 with contrast, T2-FLAIR" in card
    assert "It began from random weights." in card


@pytest.mark.parametrize("old", [0, 1, 2])
def test_a_run_of_medfl_0_1_is_not_called_private(old: int, run_dir: Path, tmp_path: Path) -> None:
    entries = json.loads((run_dir / "privacy.json").read_text())
    for entry in entries[:old]:
        del entry["revision"]
    (run_dir / "privacy.json").write_text(json.dumps(entries))
    out = export_bundle(run_dir, tmp_path / "bundle")
    card = (out / "docs" / "README.md").read_text()
    described = json.loads((out / "configs" / "metadata.json").read_text())["description"]
    for text in (card, described):
        assert ("patient-level differential privacy" in text) == (old == 0)
        assert ("noise of medfl 0.1" in text) == (old > 0)
    assert ("Do not rely on it" in card) == (old > 0)
    assert ("learns about any one patient no more" in card) == (old == 0)


@pytest.fixture
def own_model(run_dir: Path) -> Path:
    """A run folder into which somebody has copied a hospital's own model."""
    spec, network = read_model(run_dir / FINAL_MODEL)
    provenance = {"privacy": STAYS, "site": "north", "medfl": "0"}
    weights = trainable_state(network)
    (run_dir / FINAL_MODEL).write_bytes(model_bytes(weights, spec=spec, provenance=provenance))
    return run_dir


@pytest.mark.parametrize("reason", ["", "  \n "])
def test_a_hospitals_own_model_is_refused_without_a_reason(
    own_model: Path, tmp_path: Path, reason: str
) -> None:
    with pytest.raises(PrivacyError, match="--although-it-stays"):
        export_bundle(own_model, tmp_path / "bundle", although_it_stays=reason)
    assert not (tmp_path / "bundle").exists()


def test_with_a_reason_the_bundle_says_what_it_is_and_why(own_model: Path, tmp_path: Path) -> None:
    reason = "For the hospital's\nown archive."
    out = export_bundle(own_model, tmp_path / "bundle", although_it_stays=reason)
    card = (out / "docs" / "README.md").read_text()
    metadata = json.loads((out / "configs" / "metadata.json").read_text())
    today = datetime.now(UTC).date().isoformat()
    assert "differential privacy" not in card.splitlines()[0]
    assert "**Not private: stays at this hospital.** This model was trained without noise" in card
    assert f"It was handed on all the same on {today}" in card
    assert "For the hospital's own archive." in card
    assert metadata["privacy"] == STAYS
    assert (metadata["handed_on"], metadata["handed_on_because"]) == (
        today,
        "For the hospital's own archive.",
    )
    assert "differential privacy" not in metadata["description"]


def test_a_reason_says_nothing_of_a_model_that_may_leave(run_dir: Path, tmp_path: Path) -> None:
    out = export_bundle(run_dir, tmp_path / "bundle", although_it_stays="no need")
    assert "no need" not in (out / "docs" / "README.md").read_text()
    assert "privacy" not in json.loads((out / "configs" / "metadata.json").read_text())


@pytest.mark.parametrize(("colluding", "words"), [(0, "without any other"), (2, "with up to 2")])
def test_the_card_of_a_secure_sum_says_what_it_relies_on(
    run_dir: Path, tmp_path: Path, colluding: int, words: str
) -> None:
    study = json.loads((run_dir / "study.json").read_text())
    study["privacy"] = {"trust": "secure", "colluding_sites": colluding}
    (run_dir / "study.json").write_text(json.dumps(study))
    out = export_bundle(run_dir, tmp_path / "bundle")
    card = " ".join((out / "docs" / "README.md").read_text().split())
    assert "added its share of the noise, hid the result under masks" in card
    assert "Whoever sees this model, and the sum of every round" in card
    assert words in card
    assert "every update of a site" not in card


def test_nothing_is_overwritten_and_an_unfinished_run_is_refused(
    run_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="new or empty folder"):
        export_bundle(run_dir, run_dir)
    (run_dir / "privacy.json").unlink()
    with pytest.raises(FederationError, match=r"privacy\.json: expected a finished run"):
        export_bundle(run_dir, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_monai_alone_gives_the_same_masks_and_says_which_case_failed(
    run_dir: Path, bundle: Path, patients: Path, data: SiteData, tmp_path: Path
) -> None:
    root = tmp_path / "images"
    shutil.copytree(patients, root)
    broken = Path(files(root, CASES[1])[1])
    broken.write_bytes(broken.read_bytes()[:5000])
    # No medfl in sight: an import of it would fail.
    hide = tmp_path / "hide" / "medfl"
    hide.mkdir(parents=True)
    (hide / "__init__.py").write_text("raise ImportError('the bundle needs medfl')\n")
    ended = subprocess.run(
        [
            *(sys.executable, "-c", PROGRAM),
            json.dumps([{"image": files(root, case)} for case in CASES]),
        ],
        cwd=bundle,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(hide.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert f"2 of 3: failed: {broken}: expected intact gzip data" in ended.stderr
    assert "error: expected a mask of every case, 1 of 3 failed." in ended.stderr
    here = data.model_copy(update={"root": root})
    (failed,) = predict_cohort(Predictor(run_dir / FINAL_MODEL), here, out=tmp_path / "ours")
    assert failed.reason in ended.stderr
    ours = written(tmp_path / "ours")
    assert len(ours) == 2
    assert list(ours.values()) == list(written(bundle / "eval").values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "modalities"),
    [
        (replace(SPEC, modalities=("t2f",)), ("t2f",)),
        (
            replace(
                SPEC,
                network="BasicUNetPlusPlus",
                arguments={"features": [4] * 6, "deep_supervision": True},
                crop_size=(32, 32, 32),
                window_size=(32, 32, 32),
            ),
            ("t1c", "t2f"),
        ),
    ],
    ids=["one modality", "many heads"],
)
def test_whatever_a_model_takes_and_gives_its_bundle_gives_the_same_mask(
    spec: ModelSpec,
    modalities: tuple[Modality, ...],
    patients: Path,
    data: SiteData,
    tmp_path: Path,
) -> None:
    run_dir = finished_run(tmp_path / "run", spec=spec)
    bundle = export_bundle(run_dir, tmp_path / "bundle")
    datalist = [{"image": files(patients, CASES[0], modalities)}]
    assert run_bundle(bundle, datalist, out=tmp_path / "theirs") == ""
    here = data.model_copy(update={"modalities": modalities})
    (theirs,) = written(tmp_path / "theirs").values()
    assert theirs == our_mask(run_dir, patients, here)


def test_a_file_of_several_volumes_is_taken_apart_by_their_names(
    run_dir: Path, bundle: Path, patients: Path, data: SiteData, tmp_path: Path
) -> None:
    order = ("t2f", "t1n", "t1c", "t2w")  # as the Decathlon has them
    images = [nibabel.load(path) for path in files(patients, CASES[0], order)]
    stacked = np.stack([image.get_fdata(dtype=np.float32) for image in images], axis=-1)
    path = tmp_path / "msd" / "imagesTr" / "BRATS_001.nii.gz"
    path.parent.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(stacked, images[0].affine), path)
    msd = SiteData(
        root=path.parents[1], layout="msd", label_scheme="msd", modalities=data.modalities
    )
    assert predict_cohort(Predictor(run_dir / FINAL_MODEL), msd, out=tmp_path / "ours") == []
    case = {"image": str(path), "volumes": list(order), "name": "one"}
    assert run_bundle(bundle, [case], out=tmp_path / "theirs", label_scheme="msd") == ""
    assert written(tmp_path / "theirs") == {
        "one_seg.nii.gz": written(tmp_path / "ours")["BRATS_001.nii.gz"]
    }
    # Another number of volumes is no file of these modalities.
    case = {"image": str(path), "volumes": ["t2f", "t1c"], "name": "two"}
    assert "1 of 1 failed" in run_bundle(bundle, [case], out=tmp_path / "theirs")


def test_a_missing_scan_is_air_if_the_model_knows_that(
    bundle: Path, patients: Path, data: SiteData, tmp_path: Path
) -> None:
    run_dir = finished_run(tmp_path / "filling", missing="zero-fill")
    filling = export_bundle(run_dir, tmp_path / "filling-bundle")
    case = {"image": [None, files(patients, CASES[0])[1]]}
    assert run_bundle(filling, [case], out=tmp_path / "theirs") == ""
    flair = data.model_copy(update={"modalities": ("t2f",)})
    assert written(tmp_path / "theirs") == {
        f"{CASES[0]}_flair_seg.nii.gz": our_mask(run_dir, patients, flair)
    }
    assert "`None` in place of a file" in (filling / "docs" / "README.md").read_text()
    assert "1 of 1 failed" in run_bundle(bundle, [case], out=tmp_path / "refused")
    assert "`None`" not in (bundle / "docs" / "README.md").read_text()


def test_the_mirror_image_helps_as_it_does_in_medfl(
    run_dir: Path, bundle: Path, patients: Path, data: SiteData, tmp_path: Path
) -> None:
    case = {"image": files(patients, CASES[0])}
    assert run_bundle(bundle, [case], out=tmp_path / "theirs", **{"inferer#tta": True}) == ""
    (mask,) = written(tmp_path / "theirs").values()
    assert mask == our_mask(run_dir, patients, data, mirrored=True)
    assert mask != our_mask(run_dir, patients, data)


def test_masks_are_written_in_the_labels_that_were_asked_for(
    run_dir: Path, bundle: Path, patients: Path, data: SiteData, tmp_path: Path
) -> None:
    case = {"image": files(patients, CASES[0])}
    assert run_bundle(bundle, [case], out=tmp_path / "out", label_scheme="brats2023") == ""
    (mask,) = written(tmp_path / "out").values()
    other = data.model_copy(update={"label_scheme": "brats2023"})
    assert mask == our_mask(run_dir, patients, other)
    # WT alone: the model also shows ET.
    ended = run_bundle(bundle, [case], out=tmp_path / "no", label_scheme="lgg")
    assert ended.startswith("error: label_scheme: expected one of ['brats',")
    ended = run_bundle(
        bundle,
        [case],
        out=tmp_path / "no",
        label_scheme="own",
        label_schemes={"own": [["WT", 7]]},
    )
    assert ended.startswith("error: label_scheme 'own': expected a label for each of ['WT', 'ET']")
    assert not (tmp_path / "no").exists()


def test_cases_with_files_of_one_name_need_names_of_their_own(
    bundle: Path, patients: Path, tmp_path: Path
) -> None:
    cases: list[dict[str, Any]] = []
    for case in CASES[:2]:
        folder = tmp_path / case
        folder.mkdir()
        for path, name in zip(files(patients, case), ("t1c", "t2f"), strict=True):
            shutil.copy(path, folder / f"{name}.nii.gz")
        cases.append({"image": [str(folder / f"{name}.nii.gz") for name in ("t1c", "t2f")]})
    ended = run_bundle(bundle, cases, out=tmp_path / "out")
    assert ended.startswith("error: datalist: expected a path of its own for every mask")
    assert not (tmp_path / "out").exists()
    named = [{**case, "name": name} for case, name in zip(cases, ("a", "b"), strict=True)]
    assert run_bundle(bundle, named, out=tmp_path / "out") == ""
    assert sorted(written(tmp_path / "out")) == ["a_seg.nii.gz", "b_seg.nii.gz"]


def test_a_mask_that_is_there_is_kept(bundle: Path, patients: Path, tmp_path: Path) -> None:
    place = tmp_path / "out" / "one" / "one_seg.nii.gz"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"kept")
    cases = [{"image": files(patients, CASES[0]), "name": name} for name in ("one", "two")]
    assert run_bundle(bundle, cases, out=tmp_path / "out") == ""
    assert place.read_bytes() == b"kept"
    assert (tmp_path / "out" / "two" / "two_seg.nii.gz").exists()


# What is wrong with an entry, the entry, and what is said of it; A and B are files that are there.
BAD_ENTRIES: dict[str, tuple[Any, str]] = {
    "no table": (["A", "B"], "'image' with the files of ['t1c', 't2f']"),
    "no image": ({"t1c": "A"}, "'image' with the files of"),
    "too few files": ({"image": ["A"]}, "'image' with the files of"),
    "no names of files": ({"image": [1, 2]}, "names of files in 'image'"),
    "no such file": ({"image": ["/nowhere/a.nii.gz", "B"]}, "a readable file"),
    "a folder": ({"image": ["/", "B"], "name": "a"}, "a readable file"),
    "volumes of two files": ({"image": ["A", "B"], "volumes": ["t1c", "t2f"]}, "its 'volumes'"),
    "volumes without names": ({"image": "A", "volumes": 2}, "a name of its own for each volume"),
    "a volume twice": ({"image": "A", "volumes": ["t1c", "t1c", "t2f"]}, "a name of its own"),
    "other volumes": ({"image": "A", "volumes": ["adc", "dwi"]}, "the model's modalities"),
    "two volumes of one": ({"image": "A"}, "4 dimensions with 2 volumes"),
    "a missing scan": ({"image": ["A", None]}, "the model's modalities"),
    "a name with folders": ({"image": ["A", "B"], "name": "a/b"}, "a plain file name as 'name'"),
    "a hidden name": ({"image": ["A", "B"], "name": ".a"}, "a plain file name as 'name'"),
    "an empty name": ({"image": ["A", "B"], "name": ""}, "a plain file name as 'name'"),
    "no name": ({"image": ["A", "B"], "name": 3}, "a plain file name as 'name'"),
}


@pytest.mark.parametrize("bad", BAD_ENTRIES)
def test_an_entry_that_cannot_be_used_is_one_sentence_and_does_not_stop_the_others(
    bad: str, bundle: Path, patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry, expected = BAD_ENTRIES[bad]
    there = dict(zip(("A", "B"), files(patients, CASES[1]), strict=True))
    named = json.dumps(entry)
    for name, path in there.items():
        named = named.replace(f'"{name}"', json.dumps(path))
    cases = [json.loads(named), {"image": files(patients, CASES[0])}]
    ended = run_bundle(bundle, cases, out=tmp_path / "out")
    assert ended == "error: expected a mask of every case, 1 of 2 failed."
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "failed" in line]
    assert said.startswith("1 of 2: failed: ")
    assert expected in said
    assert list(written(tmp_path / "out")) == [f"{CASES[0]}_t1ce_seg.nii.gz"]


@pytest.mark.parametrize("datalist", [[], {"image": ["a.nii.gz", "b.nii.gz"]}, "a.nii.gz"])
def test_what_is_no_list_of_cases_is_refused(datalist: Any, bundle: Path, tmp_path: Path) -> None:
    ended = run_bundle(bundle, datalist, out=tmp_path / "out")
    assert ended == f"error: datalist: expected a list of cases, found {datalist!r}."


def test_its_metadata_has_what_monai_asks_for(run_dir: Path, tmp_path: Path) -> None:
    out = export_bundle(run_dir, tmp_path / "bundle")
    metadata = json.loads((out / "configs" / "metadata.json").read_text())
    for key in ("version", "changelog", "monai_version", "pytorch_version", "network_data_format"):
        assert metadata[key]


@pytest.mark.parametrize("network", ["SegResNet", "UNETR"])
def test_networks_go_through_monai_s_own_check_and_give_medfl_s_mask(
    network: str, patients: Path, data: SiteData, tmp_path: Path
) -> None:
    arguments = {"feature_size": 2, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2}
    spec = SPEC if network == "SegResNet" else replace(SPEC, network=network, arguments=arguments)
    run_dir = finished_run(tmp_path / "run", spec=spec)
    out = export_bundle(run_dir, tmp_path / "bundle")
    configs = out / "configs"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="parsing config_file")
        verify_net_in_out(
            net_id="network_def",
            meta_file=str(configs / "metadata.json"),
            config_file=str(configs / "inference.json"),
            device="cpu",
        )
    assert run_bundle(out, [{"image": files(patients, CASES[0])}], out=tmp_path / "theirs") == ""
    (mask,) = written(tmp_path / "theirs").values()
    assert mask == our_mask(run_dir, patients, data)
    packages = json.loads((configs / "metadata.json").read_text())["required_packages_version"]
    assert ("einops" in packages) == (network == "UNETR")
    assert ("einops" in (out / "docs" / "README.md").read_text()) == (network == "UNETR")
