"""`medfl cache` as a hospital's administrator runs it before and after a study."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfl.config import load_site


@pytest.fixture
def north(hospital_file: Callable[..., Path], synthetic_patients: Path, tmp_path: Path) -> Path:
    """The file of a hospital with images of its own."""
    file = hospital_file("north")
    images = tmp_path / "images"
    shutil.copytree(synthetic_patients / "north", images)
    file.write_text(file.read_text().replace(str(synthetic_patients / "north"), str(images)))
    return file


def test_a_cache_is_filled_once_measured_and_emptied(medfl: Any, north: Path, study: Path) -> None:
    filled = medfl("cache", "fill", north, study)
    assert filled.code == 0, filled.err
    cache = load_site(north).state / "cache"
    before = {path: path.stat().st_mtime_ns for path in cache.glob("*.case")}
    assert len(before) == 4
    again = medfl("cache", "fill", north, study)
    assert again.out == filled.out == medfl("cache", "size", north).out
    assert "GB of 60 GB" in filled.out
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*.case")} == before
    assert "4 prepared cases deleted" in medfl("cache", "clear", north).out
    assert list(cache.iterdir()) == []


def test_patients_who_cannot_be_prepared_are_named_and_the_others_prepared(
    medfl: Any, north: Path, study: Path
) -> None:
    site = load_site(north)
    images = sorted(site.data.root.glob("*/*_flair.nii.gz"))[:2]
    for image in images:
        image.write_bytes(image.read_bytes()[:200])
    ended = medfl("cache", "fill", north, study)
    assert ended.code == 2
    assert "Traceback" not in ended.err
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert [image.parent.name in line for image, line in zip(images, lines, strict=True)] == [
        True,
        True,
    ]
    assert len(list((site.state / "cache").glob("*.case"))) == 2


def test_mistakes_are_named(medfl: Any, north: Path, study: Path) -> None:
    medfl("cache", "fill", north, study.with_name("none.toml")).refused(2, "none.toml")
    medfl("cache", "fill", north.with_name("none.toml"), study).refused(2, "none.toml")
    north.write_text(north.read_text().replace("threads = 1", "cache_gigabytes = 1e-4"))
    medfl("cache", "fill", north, study).refused(2, "cache_gigabytes", "4 patients", "0.0001")
    study.write_text(study.read_text().replace('"t2f"', '"t2w", "t2f"'))
    text = north.read_text().replace('"t1c", "t2w", "t2f"', '"t1c", "t2f"')
    north.write_text(text)
    medfl("cache", "fill", north, study).refused(2, "north", "data.modalities", "t2w")
