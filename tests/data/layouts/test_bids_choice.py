"""BIDS where several files fit: nothing is guessed, and the site says which one counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medfl.config import load_site
from medfl.config.site import SiteData
from medfl.data.layouts.detection import detect
from medfl.data.layouts.survey import names_of_masks, read_cohort, survey_cohort
from medfl.errors import ConfigError, DataError
from tests.data.layouts.sources import ALL, write_mask, write_scan

ANAT = "sub-01/ses-a/anat/sub-01_ses-a"
PLAIN = ("T1w", "ce-gd_T1w", "T2w", "FLAIR")
MASK = f"derivatives/manual/{ANAT}_label-lesion_mask"


def add(root: Path, *endings: str, mask: str = MASK) -> None:
    for ending in endings:
        path = root / f"{ANAT}_{ending}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if mask:
        path = root / f"{mask}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def bids(root: Path, **choice: Any) -> SiteData:
    return SiteData(root=root, layout="bids", label_scheme="brats2023", modalities=ALL, bids=choice)


def chosen(data: SiteData) -> dict[str, str]:
    (patient,) = read_cohort(data).patients
    (case,) = patient.cases
    return {
        modality: path.name.removeprefix("sub-01_ses-a_").removesuffix(".nii.gz")
        for modality, path in case.images.items()
    }


def test_entities_alone_are_no_doubt(tmp_path: Path) -> None:
    endings = ("acq-mprage_run-1_T1w", "acq-se_ce-gd_run-01_T1w", "acq-tse_T2w", "rec-x_FLAIR")
    add(tmp_path, *endings)
    assert chosen(bids(tmp_path)) == dict(zip(ALL, endings, strict=True))


@pytest.mark.parametrize(
    ("endings", "entity", "values"),
    [
        (("run-1_T1w", "run-2_T1w"), "run", "'1', '2'"),
        (("acq-mprage_T1w", "acq-se_T1w"), "acq", "'mprage', 'se'"),
        (("T1w", "desc-brain_T1w"), "desc", "'', 'brain'"),
        (("space-orig_T1w", "space-SRI_T1w"), "space", "'SRI', 'orig'"),
    ],
)
def test_several_files_are_refused_with_entity_values_and_setting(
    endings: tuple[str, ...], entity: str, values: str, tmp_path: Path
) -> None:
    add(tmp_path, *endings, *PLAIN[1:])
    with pytest.raises(DataError) as error:
        read_cohort(bids(tmp_path))
    text = str(error.value)
    assert "expected one t1n image" in text
    assert f"which differ in {entity} {values}" in text
    assert f"[data.bids] with {entity} = " in text


@pytest.mark.parametrize(
    ("endings", "choice", "expected"),
    [
        (("run-1_T1w", "run-2_T1w"), {"run": "2"}, "run-2_T1w"),
        (("run-01_T1w", "run-02_T1w"), {"run": "1"}, "run-01_T1w"),
        (("acq-mprage_T1w", "acq-se_T1w"), {"acq": "mprage"}, "acq-mprage_T1w"),
        (("T1w", "acq-mprage_T1w"), {"acq": "mprage"}, "acq-mprage_T1w"),
        (("T1w", "acq-mprage_T1w"), {"acq": ""}, "T1w"),
        (("T1w",), {"acq": "mprage"}, "T1w"),  # nothing else is there to be preferred
        (("acq-a_T1w", "acq-b_T1w"), {"acq": ["c", "b", "a"]}, "acq-b_T1w"),
        (
            ("acq-a_run-1_T1w", "acq-a_run-2_T1w", "acq-b_run-1_T1w"),
            {"acq": "a", "run": "2"},
            "acq-a_run-2_T1w",
        ),
    ],
)
def test_a_site_chooses_by_entities(
    endings: tuple[str, ...], choice: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    add(tmp_path, *endings, *PLAIN[1:])
    found = chosen(bids(tmp_path, **choice))
    assert found == dict(zip(ALL, (expected, *PLAIN[1:]), strict=True))


def test_a_file_of_another_value_is_never_taken_for_the_chosen_one(tmp_path: Path) -> None:
    add(tmp_path, "acq-se_T1w", *PLAIN[1:])
    with pytest.raises(DataError, match="one t1n image") as error:
        read_cohort(bids(tmp_path, acq="mprage"))
    assert "by data.bids, acq = ['mprage'], found sub-01_ses-a_acq-se_T1w.nii.gz" in str(
        error.value
    )


def test_masks_are_chosen_by_the_same_entities(tmp_path: Path) -> None:
    add(tmp_path, *PLAIN)
    other = tmp_path / f"derivatives/manual/{ANAT}_label-necrosis_mask.nii.gz"
    other.touch()
    with pytest.raises(DataError, match=r"one mask .* label 'lesion', 'necrosis'"):
        read_cohort(bids(tmp_path))
    (patient,) = read_cohort(bids(tmp_path, label="necrosis")).patients
    assert patient.cases[0].mask == other


def test_masks_of_two_pipelines_are_told_by_their_folders(tmp_path: Path) -> None:
    add(tmp_path, *PLAIN)
    add(tmp_path, mask=MASK.replace("manual", "nnunet"))
    with pytest.raises(DataError, match="one mask") as error:
        read_cohort(bids(tmp_path))
    assert "derivatives/manual" in str(error.value)
    assert "derivatives/nnunet" in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        f"derivatives/fmriprep/{ANAT}_dseg",  # grey matter, white matter, fluid
        f"derivatives/freesurfer/{ANAT}_desc-lesion_mask",
        f"derivatives/other/{ANAT}_brain_mask",
        f"derivatives/other/{ANAT}_T1w_brain_mask",
        f"derivatives/other/{ANAT}_desc-brain_mask",
        f"derivatives/other/{ANAT}_brainmask",
        f"derivatives/other/{ANAT}_label-GM_probseg",
    ],
)
def test_a_mask_of_something_else_is_no_tumour(name: str, tmp_path: Path) -> None:
    add(tmp_path, *PLAIN, mask=name)
    with pytest.raises(DataError, match="one mask"):
        read_cohort(bids(tmp_path))
    add(tmp_path)
    (patient,) = read_cohort(bids(tmp_path)).patients
    assert patient.cases[0].mask == tmp_path / f"{MASK}.nii.gz"


def test_images_that_were_not_chosen_are_still_known(tmp_path: Path) -> None:
    add(tmp_path, "run-1_T1w", "run-2_T1w", *PLAIN[1:])
    (patient,) = read_cohort(bids(tmp_path, run="1")).patients
    assert [path.name for path in patient.cases[0].others] == ["sub-01_ses-a_run-2_T1w.nii.gz"]


def test_a_predicted_mask_is_a_derivative(tmp_path: Path) -> None:
    add(tmp_path, *PLAIN, mask="")
    for ending in PLAIN:
        path = tmp_path / f"sub-02/anat/sub-02_{ending}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    data = bids(tmp_path)
    patients = survey_cohort(data, masks_required=False).patients
    assert {str(path) for path in names_of_masks(patients, data=data).values()} == {
        f"derivatives/medfl/{ANAT}_desc-medfl_dseg.nii.gz",
        "derivatives/medfl/sub-02/anat/sub-02_desc-medfl_dseg.nii.gz",
    }


def test_a_proposal_names_every_value_to_choose_from(tmp_path: Path) -> None:
    for number, ending in enumerate(("run-1_T1w", "run-2_T1w", *PLAIN[1:])):
        write_scan(tmp_path / f"{ANAT}_{ending}.nii.gz", seed=number)
    write_mask(tmp_path / f"{MASK}.nii.gz", scheme="brats2024")
    best = detect(tmp_path)[0]
    assert (best.layout, best.problems, best.surety) == ("bids", 0, "likely")
    assert best.bids == {"run": ("1", "2", "")}
    assert chosen(best.data)["t1n"] == "run-1_T1w"


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("run = 1", "key data.bids.run: expected a text in quotes"),
        ("run = []", "key data.bids.run: expected a text in quotes"),
        ('run = "run-1"', "without the entity's own name.* found 'run-1'"),
        ('sub = "01"', "choose those with data.include"),
        ('ses = "a"', "choose those with data.include"),
        ('Run = "1"', "expected the short name of an entity"),
    ],
)
def test_a_mistake_in_the_choice_is_named(table: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    text = (
        'name = "a"\npurpose = "open-data"\ndeclared_patients = 1\nweight = 1.0\nstate = "s"\n'
        '[data]\nroot = "r"\nlayout = "{layout}"\nlabel_scheme = "brats"\nmodalities = ["t1n"]\n'
        "[data.bids]\n{table}\n[privacy]\nepsilon = 8.0\n"
    )
    file.write_text(text.format(layout="bids", table=table))
    with pytest.raises(ConfigError, match=expected):
        load_site(file)
    file.write_text(text.format(layout="brats2021", table='run = "1"'))
    with pytest.raises(ConfigError, match="for layout = 'bids' and no other"):
        load_site(file)
