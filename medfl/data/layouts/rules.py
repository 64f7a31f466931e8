"""All known layouts by name, and the rule of a site's data.

What no value fits is written in the site's own file (`layout = "custom"`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from medfl.config.site import KNOWN_SCHEMES, MODALITY_ORDER, Layout, Modality, SiteData
from medfl.data.layouts.brats import BRATS
from medfl.data.layouts.glioma_collections import COLLECTIONS
from medfl.data.layouts.rule import LayoutRule as LayoutRule
from medfl.data.layouts.rule import placed

_DECATHLON_ORDER: Mapping[Modality, int] = {"t2f": 0, "t1n": 1, "t1c": 2, "t2w": 3}
_BIDS_ENDINGS: Mapping[Modality, str] = {
    "t1n": "{plain}_T1w",
    "t1c": "{enhanced}_T1w",
    "t2w": "{entities}_T2w",
    "t2f": "{entities}_FLAIR",
}
# What a mask may be of that is no tumour: the brain as skull stripping leaves it, tissues, parts of
# a template. Lesions are `label-lesion`, and a tumour may have any other name.
_NO_TUMOUR = (
    r"(?:brain|head|skull|scalp|bet|hdbet|synthstrip|robex|skullstrip\w*|gm|wm|csf|gray\w*|grey\w*|"
    r"white\w*|aseg\w*|aparc\w*|ventricle\w*|hemisphere\w*|cortex|ribbon|fov|eyes?)"
)
_NOT_TUMOURS = (
    rf"(?:^|_)(?:desc|label|atlas|res|seg)-{_NO_TUMOUR}(?=_|$)|_{_NO_TUMOUR}_(?:mask|dseg)$"
)
# Pipelines whose masks are of tissues or of the brain, and do not always say so in a file's name.
_OF_TISSUE = frozenset(
    {"fmriprep", "smriprep", "freesurfer", "fastsurfer", "mriqc", "qsiprep", "qsirecon"}
    | {"synthseg", "cat12", "fsl_anat"}
)
_BIDS_PLACES = (
    "{patient}/anat/{patient}",
    "{patient}/{session}/anat/{patient}_{session}",
)


def rule_of(data: SiteData) -> LayoutRule:
    """The rule of a site's data: a known layout's, or its own."""
    if data.custom is None:
        return LAYOUTS[data.layout]
    return LayoutRule(
        case=data.custom.case,
        patient=data.custom.patient,
        session=data.custom.session,
        images={modality: (path,) for modality, path in data.custom.images.items()},
        masks=(data.custom.mask,),
        ignored=frozenset(data.custom.ignored),
        label_schemes=KNOWN_SCHEMES,
    )


LAYOUTS: Mapping[Layout, LayoutRule] = MappingProxyType(
    {
        **BRATS,
        **COLLECTIONS,
        "msd": LayoutRule(
            case=r"(?P<patient>BRATS_\d+)",
            images=dict.fromkeys(MODALITY_ORDER, ("imagesTr/{case}",)),
            channels=_DECATHLON_ORDER,
            masks=("labelsTr/{case}",),
            numbers=_DECATHLON_ORDER,
            held_apart="imagesTs",
            ignored=frozenset({"imagesTs"}),
            label_schemes=("msd",),
        ),
        "nnunet": LayoutRule(
            # A case's name is the user's; timepoints of one person cannot be told from it.
            case=r"(?P<patient>[A-Za-z0-9._-]+?)",
            images=placed(
                {"t1n": "0000", "t1c": "0001", "t2w": "0002", "t2f": "0003"},
                ["imagesTr/{case}_#"],
            ),
            masks=("labelsTr/{case}",),
            numbers={"t1n": 0, "t1c": 1, "t2w": 2, "t2f": 3},
            held_apart="imagesTs",
            ignored=frozenset({"imagesTs", "labelsTs"}),
            label_schemes=("nnunet",),
        ),
        # The Brain Imaging Data Structure 1.10: masks are derivatives (dseg: discrete labels, mask:
        # one label), beside the registered images or in a folder of their own.
        "bids": LayoutRule(
            patient=r"sub-[A-Za-z0-9]+",
            session=r"ses-[A-Za-z0-9]+",
            images=placed(_BIDS_ENDINGS, [f"{place}#" for place in _BIDS_PLACES]),
            masks=tuple(
                f"{above}{place}{between}_{suffix}"
                for above in ("", "derivatives/", "derivatives/*/")
                for place in _BIDS_PLACES
                for between in ("", "_*")
                for suffix in ("dseg", "mask")
            ),
            predicted=tuple(f"derivatives/medfl/{place}_desc-medfl_dseg" for place in _BIDS_PLACES),
            other_masks=_NOT_TUMOURS,
            ignored=frozenset(
                {"derivatives", "sourcedata", "rawdata", "code", "phenotype", "stimuli", "fmap"}
                | {"func", "dwi", "perf"}
                | _OF_TISSUE
            ),
            label_schemes=KNOWN_SCHEMES,
        ),
    }
)
