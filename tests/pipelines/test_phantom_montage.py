"""The picture of the synthetic hospitals is drawn by its command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

SCRIPT = Path(__file__).resolve().parents[2] / "pipelines" / "phantom_montage.py"


@pytest.mark.slow
def test_every_hospital_is_shown(tmp_path: Path) -> None:
    out = tmp_path / "phantoms.png"
    subprocess.run([sys.executable, str(SCRIPT), str(out)], timeout=120, check=True)
    picture = imread(out)[..., :3].mean(axis=2)
    assert picture.shape[1] == 900
    # Four rows of five pictures on black.
    bands = np.array_split(picture, 4)
    assert all((band > 0.3).mean() > 0.05 for band in bands)
