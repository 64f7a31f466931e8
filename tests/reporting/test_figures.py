from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medfl.errors import ReportError
from medfl.reporting import figures
from medfl.reporting.montage import draw_montage
from medfl.runs.results import RunResults, read_run

RunBuilder = Callable[..., Path]

SITES = ("North", "South", "East", "West")
ROUNDS = 10

NAMES = {
    "epsilon_by_round",
    "dice_by_variant",
    "dice_by_round",
    "dice_by_site",
    "hd95_by_variant",
    "montage",
}


@pytest.fixture(scope="module")
def run(finished_run: Path) -> RunResults:
    return read_run(finished_run)


@pytest.mark.slow
def test_every_figure_is_a_picture_with_something_on_it(run: RunResults) -> None:
    style_before = dict(mpl.rcParams)
    files = figures.draw_figures(run)
    assert set(files) == NAMES
    for name, file in files.items():
        assert file.path == run.folder / "figures" / f"{name}.png"
        with Image.open(file.path) as picture:
            assert picture.format == "PNG"
            pixels = np.asarray(picture.convert("RGB"))
        assert min(pixels.shape[:2]) > 300
        assert len(np.unique(pixels @ np.array([1, 256, 65536]))) > 50  # shades
        marked = (pixels != pixels[0, 0]).any(axis=-1)
        assert 0.02 < marked.mean() < 0.98
        assert len(file.alt) > 30
    assert dict(mpl.rcParams) == style_before


def test_budgets_that_differ_are_all_on_the_picture(run: RunResults) -> None:
    # The panels share an axis, and the site that is drawn last is the strictest.
    budgets = {name: 30.0 - 7 * place for place, name in enumerate(run.privacy)}
    privacy = {
        name: loss.model_copy(update={"budget": budgets[name]})
        for name, loss in run.privacy.items()
    }
    figure = figures.epsilon_by_round(replace(run, privacy=privacy))
    for panel, budget in zip(figure.axes, budgets.values(), strict=True):
        assert panel.lines[0].get_ydata()[0] == budget
        assert panel.get_ylim()[0] == 0 < budget < panel.get_ylim()[1]


def test_only_figures_with_data_are_drawn(build_run: RunBuilder) -> None:
    files = figures.draw_figures(read_run(build_run(metrics=False, pictures=0)))
    assert set(files) == {"epsilon_by_round"}


def test_losses_are_drawn_round_by_round_under_the_budget(run: RunResults) -> None:
    figure = figures.epsilon_by_round(run)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [panel.get_title() for panel in panels] == list(SITES)
    for panel, site in zip(panels, SITES, strict=True):
        budget, losses, lost = panel.get_lines()
        assert set(budget.get_ydata()) == {8.0}
        assert list(losses.get_xdata()) == list(range(1, ROUNDS + 1))
        expected = [row.sites[site].epsilon for row in run.rounds]
        assert list(losses.get_ydata()) == expected
        assert list(lost.get_xdata()) == ([4] if site == "South" else [])
        assert panel.get_ylim()[1] > 8.0
        assert panel.get_xlabel() == "Round"
    assert "epsilon" in panels[0].get_ylabel()


def test_unlimited_losses_are_said_in_words(build_run: RunBuilder) -> None:
    run = read_run(build_run(noise_multiplier=0.0, pictures=0, metrics=False))
    (panel, *_) = figures.epsilon_by_round(run).axes
    assert any("no limit" in text.get_text() for text in panel.texts)


@pytest.mark.parametrize("name", ["$\\frac{", "x" * 40], ids=["formula", "longest name"])
def test_any_name_of_a_site_can_be_drawn(build_run: RunBuilder, name: str) -> None:
    run = read_run(build_run(sites=(name, *SITES[1:]), pictures=0))
    with mpl.rc_context(figures.STYLE):
        figure = figures.dice_by_site(run)
        figure.canvas.draw()
    label = figure.axes[0].get_xticklabels()[0].get_text()
    assert label == (name if len(name) <= 16 else "x" * 15 + "…")


def test_bars_are_means_over_patients(run: RunResults) -> None:
    (axes,) = figures.dice_by_variant(run).axes
    scores = [score for score in run.scores if score.variant == "federated"]
    expected = np.mean(
        [score.dice for score in scores if (score.round, score.region) == (ROUNDS, "WT")]
    )
    heights: list[float] = [bar.get_height() for bar in axes.patches]
    assert min(abs(height - expected) for height in heights) < 1e-12
    assert len(heights) == 4 * 3 + 1  # the threshold knows the whole tumour only
    assert "Dice" in axes.get_ylabel()


def test_distances_have_a_unit_and_leave_out_models_without_any(run: RunResults) -> None:
    figure = figures.hd95_by_variant(run)
    assert "mm" in figure.axes[0].get_ylabel()
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == 4
    assert "Brightness threshold" not in names


def test_models_differ_in_colour_and_shape() -> None:
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)
    assert len(set(figures.MARKERS.values())) == len(figures.MARKERS)


def shown(run: RunResults, panel: int) -> Any:
    """The grey values on a panel of the montage, rows from anterior to posterior."""
    return np.asarray(draw_montage(run).axes[panel].images[0].get_array())


def overwrite(folder: Path, name: str, voxels: np.ndarray, affine: np.ndarray) -> None:
    path = folder / "predictions" / "synthetic-1" / f"{name}.nii.gz"
    nib.save(nib.Nifti1Image(voxels, affine), path)


@pytest.mark.parametrize("flipped", [False, True], ids=["RAS", "LPS"])
def test_montage_shows_the_largest_slice_in_radiological_view(
    build_run: RunBuilder, flipped: bool
) -> None:
    folder = build_run(pictures=1)
    image = np.zeros((30, 40, 20), dtype=np.float32)
    image[4:26, 4:36] = 1
    image[20:24, 30:34, 12] = 9  # right and anterior, on slice 12
    truth = np.zeros(image.shape, dtype=np.uint8)
    truth[10:12, 10:12, 5] = 1
    truth[10:20, 10:20, 12] = 1
    affine = np.eye(4)
    if flipped:
        affine = np.diag([-1.0, -1.0, 1.0, 1.0])
        image, truth = image[::-1, ::-1], truth[::-1, ::-1]
    for name, voxels in (("t2f", image), ("truth", truth), ("segmentation", truth)):
        overwrite(folder, name, voxels, affine)
    grey = shown(read_run(folder), 0)
    rows, columns = np.nonzero(grey == grey.max())
    assert rows.max() < grey.shape[0] / 2  # anterior is up
    assert columns.max() < grey.shape[1] / 2  # the patient's right is on the left
    assert grey[0, 0] == 0
    assert grey.shape == (32 + 6, 22 + 6)  # cut to the head and a margin of 3 voxels


def test_montage_copes_with_an_empty_prediction(build_run: RunBuilder) -> None:
    folder = build_run(pictures=1)
    overwrite(folder, "segmentation", np.zeros((56, 66, 40), dtype=np.uint8), np.eye(4))
    figure = draw_montage(read_run(folder))
    outlines = [len(axes.collections) for axes in figure.axes]
    assert outlines[0] == 3
    assert outlines[1] == 0


def test_montage_shows_at_most_four_patients(build_run: RunBuilder) -> None:
    assert len(draw_montage(read_run(build_run(pictures=5))).axes) == 8


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>not found</html>",
        gzip.compress(b"short", mtime=0),
        gzip.compress(bytes(400), mtime=0)[:-5],
    ],
    ids=["empty", "a web page", "no header", "torn"],
)
def test_montage_refuses_what_is_no_image(build_run: RunBuilder, content: bytes) -> None:
    folder = build_run(pictures=1)
    (folder / "predictions" / "synthetic-1" / "t2f.nii.gz").write_bytes(content)
    with pytest.raises(ReportError, match=r"t2f\.nii\.gz: expected"):
        draw_montage(read_run(folder))


@pytest.mark.parametrize("shape", [(56, 66, 39), (56, 66, 40, 2)])
def test_montage_refuses_volumes_that_do_not_fit(
    build_run: RunBuilder, shape: tuple[int, ...]
) -> None:
    folder = build_run(pictures=1)
    overwrite(folder, "segmentation", np.zeros(shape, dtype=np.uint8), np.eye(4))
    with pytest.raises(ReportError, match=r"segmentation\.nii\.gz: expected"):
        draw_montage(read_run(folder))
