"""Images in formats that medfl does not read, so that a folder of them is met with a way out.

Only NIfTI keeps what segmentation needs in one file a modality and is what every public collection
of brain tumours comes in today; converters for the others are well kept elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from medfl.data.layouts.problems import Problem
from medfl.data.layouts.walk import all_folders, is_image

_DICOM_FIX = (
    "Convert each series with dcm2niix, then bring a patient's modalities to one grid, without "
    "the skull if the study says so."
)
_VOLUME_FIX = (
    "Convert every file to .nii.gz, for example with SimpleITK's ReadImage and WriteImage."
)
_PAIR = "pairs of .hdr and .img (NIfTI or Analyze)"
_FIXES: Mapping[str, str] = {
    "DICOM": _DICOM_FIX,
    "MetaImage": _VOLUME_FIX,
    "NRRD": _VOLUME_FIX,
    _PAIR: "Convert every pair to a single .nii.gz, for example with fslchfiletype NIFTI_GZ.",
    "MGH": "Convert every file with FreeSurfer's mri_convert.",
    "TIFF": "Convert the slices of TCGA-LGG with `medfl import lgg`; others to .nii.gz.",
}
_SUFFIXES: Mapping[str, str] = {
    ".dcm": "DICOM",
    ".ima": "DICOM",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".img": _PAIR,
    ".mgz": "MGH",
    ".mgh": "MGH",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
# DICOM files often have no suffix, or numbers in its place: PS3.10, section 7.1.
_DICOM_MAGIC, _DICOM_MAGIC_AT = b"DICM", 128
_MAX_FILES = 20_000


def not_nifti(root: Path) -> Problem | None:
    """What a folder without NIfTI holds instead; None if any image is NIfTI, or none is known.

    Args:
        root: The folder, of which about 20,000 files are looked at; what may not be read in it is
            passed over.
    """
    met: Counter[str] = Counter()
    seen = 0
    for folder, names in all_folders(root):
        for name in names:
            if is_image(name):
                return None
            seen += 1
            if name.startswith("."):
                continue
            found = _SUFFIXES.get(Path(name).suffix.lower())
            if found is None and _is_dicom(folder / name):
                found = "DICOM"
            if found is not None:
                met[found] += 1
        if seen >= _MAX_FILES:
            break
    if not met:
        return None
    name, files = met.most_common(1)[0]
    return Problem(
        patient_id="",
        where=str(root),
        rule="images in NIfTI (.nii or .nii.gz)",
        value=f"{files} of {name} and none of NIfTI",
        fix=_FIXES[name],
    )


def _is_dicom(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            file.seek(_DICOM_MAGIC_AT)
            return file.read(len(_DICOM_MAGIC)) == _DICOM_MAGIC
    except OSError:
        return False
