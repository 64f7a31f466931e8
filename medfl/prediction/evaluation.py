"""Segmentations against masks drawn by hand: scores by case, region and patient, and a picture.

A region may be absent. Both absent is a perfect answer: Dice and surface Dice 1, distance 0. One
absent is the worst: Dice and surface Dice 0, and as distance the diagonal of the image. For
lesion-wise scores see `medfl.segmentation.lesions`. A patient with several cases counts once, by
the mean over the cases.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from medfl.config.site import Region, SiteData
from medfl.data.cohort import Case
from medfl.data.label_schemes import scheme_regions
from medfl.data.labels import regions_of
from medfl.data.layouts.survey import names_of_masks, survey_cohort
from medfl.data.nifti.geometry import voxel_sizes
from medfl.data.nifti.headers import FileFaults, Header, read_header, read_voxels
from medfl.durable import write_atomically, written_aside
from medfl.errors import ConfigError, DataError
from medfl.json_text import to_json
from medfl.segmentation.lesions import GLIOMA, PENALTY_MM, LesionRule, score_lesions
from medfl.segmentation.metrics import score, surface_dices, volumes_ml

CASES, PATIENTS = "cases.csv", "patients.csv"
SUMMARY, PICTURE = "summary.json", "evaluation.png"
TOLERANCE_MM = 1.0


@dataclass(frozen=True, kw_only=True)
class CaseScore:
    """One region of one case.

    Attributes:
        dice: In [0, 1].
        hd95_mm: 95th percentile of the Hausdorff distance.
        lesion_dice: Mean over lesions, missed and false ones at 0.
        lesion_hd95_mm: Mean over lesions, missed and false ones at 374 mm.
        lesions_found: Lesions as drawn that something was segmented for.
        lesions_missed: Lesions as drawn that nothing was segmented for.
        lesions_false: Parts that were segmented where there is no lesion.
        surface_dice: In [0, 1], at the tolerance.
        truth_ml: Volume of the region as drawn.
        predicted_ml: Volume as segmented.
    """

    patient: str
    case: str
    region: Region
    dice: float
    hd95_mm: float
    lesion_dice: float
    lesion_hd95_mm: float
    lesions_found: int
    lesions_missed: int
    lesions_false: int
    surface_dice: float
    truth_ml: float
    predicted_ml: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came of it.

    Attributes:
        scores: One for each case and region.
        left_out: Cases that could not be scored, and why.
        tolerance_mm: Of the surface Dice.
        lesion_rule: What counted as one lesion.
    """

    scores: tuple[CaseScore, ...]
    left_out: tuple[tuple[str, str], ...]
    tolerance_mm: float
    lesion_rule: LesionRule

    def by_patient(self) -> list[dict[str, str | float]]:
        """One row a patient and region: means over the patient's cases."""
        grouped: dict[tuple[str, Region], list[CaseScore]] = defaultdict(list)
        for one in self.scores:
            grouped[one.patient, one.region].append(one)
        return [
            {
                "patient": patient,
                "region": region,
                "cases": len(scores),
                **{name: fmean(getattr(one, name) for one in scores) for name in _MEASURES},
            }
            for (patient, region), scores in grouped.items()
        ]

    def summary(self) -> list[dict[str, str | float]]:
        """One row a region: over patients, the mean of each measure, and the median Dice."""
        rows = self.by_patient()
        regions = list(dict.fromkeys(one.region for one in self.scores))
        return [
            {
                "region": region,
                "patients": len(mine),
                "median_dice": median(float(row["dice"]) for row in mine),
                **{name: fmean(float(row[name]) for row in mine) for name in _MEASURES},
            }
            for region in regions
            for mine in [[row for row in rows if row["region"] == region]]
        ]


_MEASURES = (
    "dice",
    "hd95_mm",
    "lesion_dice",
    "lesion_hd95_mm",
    "lesions_found",
    "lesions_missed",
    "lesions_false",
    "surface_dice",
    "truth_ml",
    "predicted_ml",
)


def evaluate(
    predictions: Path,
    data: SiteData,
    *,
    regions: Sequence[Region] = (),
    tolerance_mm: float = TOLERANCE_MM,
    lesion_rule: LesionRule = GLIOMA,
    on_case: Callable[[int, int], None] = lambda _done, _total: None,
) -> Evaluation:
    """Score the masks below a folder against those of a cohort.

    Args:
        predictions: Folder that `medfl predict` wrote for the cohort.
        data: The cohort, with masks; both are in its label scheme.
        regions: What to score; all that the scheme can show if empty.
        tolerance_mm: Of the surface Dice.
        lesion_rule: What counts as one lesion.
        on_case: Called with (cases done, cases in all).

    Raises:
        ConfigError: If the scheme cannot show a region.
        DataError: If there are no cases with masks, or two would share a path.
    """
    wanted = tuple(regions) or scheme_regions(data.mask_scheme)
    unknown = [region for region in wanted if region not in scheme_regions(data.mask_scheme)]
    if unknown:
        raise ConfigError(
            f"--region: expected regions out of {list(scheme_regions(data.mask_scheme))} "
            f"(label_scheme {data.label_scheme!r}), found {unknown}."
        )
    survey = survey_cohort(data)
    cases = [(patient.patient_id, case) for patient in survey.patients for case in patient.cases]
    if not cases:
        raise DataError(str(survey.problems[0]))
    places = names_of_masks(survey.patients, data=data)
    scores: list[CaseScore] = []
    left_out: list[tuple[str, str]] = []
    on_case(0, len(cases))
    for done, (patient_id, case) in enumerate(cases, start=1):
        try:
            path = predictions / places[case.case_id]
            truth, predicted, spacing = _compared(case, path, data, wanted)
            scores += _scores(
                truth,
                predicted,
                patient=patient_id,
                case=case.case_id,
                regions=wanted,
                spacing_mm=spacing,
                tolerance_mm=tolerance_mm,
                lesion_rule=lesion_rule,
            )
        except DataError as error:
            left_out.append((case.case_id, str(error)))
        on_case(done, len(cases))
    if not scores:
        raise DataError(
            f"{predictions}: expected masks of the cohort, found none: {left_out[0][1]}"
        )
    return Evaluation(
        scores=tuple(scores),
        left_out=tuple(left_out),
        tolerance_mm=tolerance_mm,
        lesion_rule=lesion_rule,
    )


def write_evaluation(evaluation: Evaluation, out: Path) -> None:
    """Write `cases.csv`, `patients.csv`, `summary.json` and `evaluation.png`.

    Raises:
        ConfigError: If one of them exists.
    """
    for name in (CASES, PATIENTS, SUMMARY, PICTURE):
        if (out / name).exists():
            raise ConfigError(f"{out / name}: expected a new file, found one that exists.")
    out.mkdir(parents=True, exist_ok=True)
    _write_rows(out / CASES, [asdict(one) for one in evaluation.scores])
    _write_rows(out / PATIENTS, evaluation.by_patient())
    write_atomically(out / SUMMARY, (to_json(_summary(evaluation), indent=2) + "\n").encode())
    with written_aside(out / PICTURE) as draft:
        draw_evaluation(evaluation).savefig(draft, dpi=150)


def draw_evaluation(evaluation: Evaluation) -> Figure:
    """Dice of every patient by region, whole and lesion-wise; segmented against drawn volume."""
    rows = evaluation.by_patient()
    regions = list(dict.fromkeys(str(row["region"]) for row in rows))
    figure = Figure(figsize=(13.0, 4.2), layout="constrained")
    *left, right = figure.subplots(1, 3)
    random = np.random.default_rng(0)  # spreads points that would hide each other
    for position, region in enumerate(regions):
        mine = [row for row in rows if row["region"] == region]
        colour = f"C{position}"
        spread = position + random.uniform(-0.15, 0.15, len(mine))
        for axes, measure in zip(left, ("dice", "lesion_dice"), strict=True):
            dice = [float(row[measure]) for row in mine]
            axes.scatter(spread, dice, s=18, alpha=0.6, color=colour, linewidths=0)
            axes.hlines(median(dice), position - 0.3, position + 0.3, color=colour, linewidth=2)
        truth = [float(row["truth_ml"]) for row in mine]
        predicted = [float(row["predicted_ml"]) for row in mine]
        right.scatter(truth, predicted, s=18, alpha=0.6, color=colour, linewidths=0, label=region)
    for axes, name in zip(left, ("Dice", "Lesion-wise Dice"), strict=True):
        axes.set_xticks(range(len(regions)), regions)
        axes.set_ylim(-0.03, 1.03)
        axes.set_ylabel(f"{name}, one point a patient, line at the median")
    volumes = (float(row[key]) for row in rows for key in ("truth_ml", "predicted_ml"))
    limit = 1.05 * max(1.0, *volumes)
    right.plot([0, limit], [0, limit], color="tab:gray", linewidth=1, zorder=0)
    right.set(xlim=(0, limit), ylim=(0, limit), aspect="equal")
    right.set_xlabel("volume as drawn, ml")
    right.set_ylabel("volume as segmented, ml")
    right.legend(frameon=False)
    for axes in (*left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _summary(evaluation: Evaluation) -> dict[str, object]:
    """Means over patients, with the settings that they depend on."""
    rule = evaluation.lesion_rule
    return {
        "settings": {
            "surface_dice_tolerance_mm": evaluation.tolerance_mm,
            "lesion_dilation_voxels": rule.dilation_voxels,
            "lesions_above_mm3": rule.above_mm3,
            "lesion_penalty_mm": PENALTY_MM,
        },
        "cases": len({one.case for one in evaluation.scores}),
        "cases_left_out": len(evaluation.left_out),
        "regions": evaluation.summary(),
    }


def _compared(
    case: Case, path: Path, data: SiteData, regions: Sequence[Region]
) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    """Truth and prediction of a case as regions, and the spacing of their grid in mm."""
    if case.mask is None:
        raise DataError(f"{case.case_id}: expected a mask to compare with, found none.")
    truth, header = _regions(case.mask, data, regions)
    predicted, other = _regions(path, data, regions)
    if not header.same_grid(other):
        raise DataError(
            f"{path}: expected the grid of {case.mask.name}, found {header.difference(other)}."
        )
    return truth, predicted, tuple(float(mm) for mm in voxel_sizes(header.affine))


def _scores(
    truth: Tensor,
    predicted: Tensor,
    *,
    patient: str,
    case: str,
    regions: Sequence[Region],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
    lesion_rule: LesionRule,
) -> list[CaseScore]:
    surfaces = surface_dices(predicted, truth, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
    drawn, segmented = (volumes_ml(mask, spacing_mm=spacing_mm) for mask in (truth, predicted))
    whole = score(predicted, truth, regions=regions, spacing_mm=spacing_mm)
    lesions = score_lesions(
        predicted, truth, regions=regions, spacing_mm=spacing_mm, rule=lesion_rule
    )
    return [
        CaseScore(
            patient=patient,
            case=case,
            region=region,
            dice=whole[index].dice,
            hd95_mm=_computed(whole[index].hd95_mm),
            lesion_dice=lesions[index].dice,
            lesion_hd95_mm=_computed(lesions[index].hd95_mm),
            lesions_found=lesions[index].found,
            lesions_missed=lesions[index].missed,
            lesions_false=lesions[index].false,
            surface_dice=surfaces[index],
            truth_ml=drawn[index],
            predicted_ml=segmented[index],
        )
        for index, region in enumerate(regions)
    ]


def _computed(distance_mm: float | None) -> float:
    if distance_mm is None:
        raise TypeError("Expected a distance, found none: it was not asked for.")
    return distance_mm


def _regions(path: Path, data: SiteData, regions: Sequence[Region]) -> tuple[Tensor, Header]:
    if not path.exists():
        raise DataError(f"{path}: expected a mask, found none.")
    try:
        header = read_header(path)
        voxels = read_voxels(path, header)
        found = regions_of(torch.from_numpy(voxels), scheme=data.mask_scheme, regions=regions)
    except (FileFaults, DataError) as error:
        raise DataError(f"{path}: {error}") from None
    return found, header


def _write_rows(path: Path, rows: Sequence[dict[str, str | float]]) -> None:
    with written_aside(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
