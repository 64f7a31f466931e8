"""The same study in every trust mode, and the noise that is measured on its first update."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from tests.federations import STUDY, Federation, changed

pytestmark = pytest.mark.slow


@pytest.fixture
def pipeline(recipe: Callable[[str], ModuleType]) -> ModuleType:
    return recipe("trust_modes")


def toml(values: dict[str, object], *, at: str = "") -> str:
    """Tables as TOML; JSON's lists, texts and numbers are TOML's."""
    plain = {name: value for name, value in values.items() if not isinstance(value, dict)}
    lines = [f"{name} = {json.dumps(value)}" for name, value in plain.items()]
    for name, inner in values.items():
        if isinstance(inner, dict) and inner:
            lines += [f"[{at}{name}]", toml(inner, at=f"{at}{name}.")]
    return "\n".join(lines)


def test_modes_differ_by_the_noise_that_the_plan_says(
    pipeline: ModuleType, federation: Federation, tmp_path: Path
) -> None:
    study = tmp_path / "study.toml"
    values = changed(
        STUDY,
        {"aggregation": {"min_sites": 3}, "privacy": {"noise": "operating-system"}},
    )
    study.write_text(toml(values))
    arguments = ["--study", str(study), "--epsilon", "8", "--seed", "1", "--jobs", "1"]
    for name, file in federation.files.items():
        if name == "west":  # who has one patient
            continue
        text = file.read_text()
        patients = next(
            line.split("=")[1].split("#")[0].strip()
            for line in text.splitlines()
            if line.startswith("declared_patients")
        )
        assert f"weight = {patients}.0" in text
        arguments += ["--site", str(file)]
    out = tmp_path / "out"
    ended = CliRunner().invoke(pipeline.app, [*arguments, "--out", str(out)])
    assert ended.exit_code == 0, ended.output
    rows = [line.split(",") for line in (out / "trust_modes.csv").read_text().splitlines()]
    noise = {row[0]: (float(row[-2]), float(row[-1])) for row in rows[1:]}
    for measured, planned in noise.values():
        assert measured == pytest.approx(planned, rel=0.02)
    assert noise["secure"][1] == pytest.approx(noise["local"][1] / 3**0.5, rel=0.05)
    assert noise["secure"][1] <= noise["hybrid"][1] <= noise["local"][1]
    assert (out / "trust_modes.png").stat().st_size > 5000
