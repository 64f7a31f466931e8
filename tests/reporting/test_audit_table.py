"""What the report says of attacks on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from medfl.errors import ReportError
from medfl.reporting.audit_table import audit_table
from medfl.reporting.report import write_report
from medfl.runs.results import read_run

pytestmark = pytest.mark.slow

RunBuilder = Callable[..., Path]


def figure(name: str, found: float, **ends: float) -> dict[str, Any]:
    """One figure of the mechanism test."""
    promised = {"mu": 8.0, "off_grid": 0.0, "noise_between_steps": 0.0}.get(name, 1.0)
    value = {"name": name, "found": found, "promised": promised, "holds": True}
    return value | {"at_least": None, "at_most": None} | ends


PATH = {
    "removals": 27,
    "largest": 0.99214,
    "worlds": 29,
    "changed": 0,
    "off_grid": 0,
    "failures": 0,
    "sites": [],
    "keeps_promise": True,
}
AUDIT: dict[str, Any] = {
    "passed": True,
    "mechanism": {
        "figures": [
            figure("sensitivity", 1.02, at_most=1.0531),
            figure("noise_std", 0.999, at_least=0.995),
            figure("noise_in_common", 1.004, at_least=0.896, at_most=1.108),
            figure("noise_between_steps", 0.069, at_most=0.11),
            figure("off_grid", 0.0, at_least=0.0, at_most=0.0),
        ],
        "noise_origin": "operating-system",
        "clipping": "normalised",
        "steps": 1260,
        "values": 3936240,
        "keeps_promise": True,
    },
    "path": PATH,
    "update": {
        "weights": 24905,
        "off_grid": 0,
        "odd": 12450,
        "noise_std": 1.0,
        "odd_reach": 400.0,
        "least_noise_std": 0.98,
        "keeps_promise": True,
    },
    "path_of_run": PATH | {"removals": 31, "largest": 0.97},
    "canaries": {
        "claimed_epsilon": 4.0,
        "claimed_mu": 0.99,
        "delta": 1e-5,
        "confidence": 0.95,
        "canaries": 2000,
        "guessed": 400,
        "correct": 282,
        "shown": {"epsilon": 0.6859, "mu": 0.28, "epsilon_of_mu": 0.9},
        "largest_showable": {"epsilon": 4.8366, "mu": 1.72, "epsilon_of_mu": 7.3},
        "estimate": {
            "mu": 0.7,
            "mu_low": 0.6,
            "mu_high": 0.8,
            "epsilon": 2.8,
            "epsilon_low": 2.4,
            "epsilon_high": 3.2,
        },
        "consistent": True,
    },
    "membership": [
        {
            "variant": "federated",
            "rates": {
                "members": 67,
                "non_members": 22,
                "auc": 0.38,
                "auc_low": 0.24,
                "auc_high": 0.53,
                "tpr": 0.015,
                "tpr_low": 0.0,
                "tpr_high": 0.08,
                "fpr_high": 0.154,
                "smallest_fpr": 0.045,
                "advantage": 0.2,
                "advantage_by_chance": 0.3,
            },
            "bound": {
                "mu": 2.1,
                "membership_advantage": 0.7,
                "tpr_at_1_percent_fpr": 0.4,
            },
            "largest_tpr": 0.691,
            "verdict": "consistent",
        }
    ],
    "inversion": {
        "correlation_without_noise": 0.98,
        "correlation_with_noise": -0.03,
        "noise_over_signal": "inf",
        "epsilon": 8.0,
        "delta": 1e-5,
        "noise_origin": "operating-system",
    },
}


def attacked(run: Path, **changes: Any) -> Path:
    """Put an audit into a run folder."""
    (run / "audit").mkdir()
    Image.new("L", (30, 10)).save(run / "audit" / "inversion.png")
    (run / "audit.json").write_text(json.dumps(AUDIT | changes))
    return run


def test_every_attack_stands_beside_its_promise_and_its_ceiling(build_run: RunBuilder) -> None:
    audit = read_run(attacked(build_run())).audit
    assert audit is not None
    rows = {row[0]: row[1:] for row in audit_table(audit).rows}
    bound = next(cells for name, cells in rows.items() if "lower bound on ε" in name)
    assert bound == ("≤ 4.00", "≥ 0.685", "4.83", "holds")  # a lower bound is rounded down
    members = next(cells for name, cells in rows.items() if "final model (67" in name)
    assert members[0].startswith("≤ 69.1")
    assert len(rows) == len(audit_table(audit).rows)
    assert rows["How far one patient moves a step, over C"] == (
        "≤ 1",
        "1.020 (by chance up to 1.053)",
        "–",
        "holds",
    )
    assert rows["Noise of a step, over σ C, in its weakest place"][:2] == (
        "≥ 1",
        "0.999 (by chance from 0.995)",
    )
    assert rows["Noise on the sum of all weights, over that of independent noise"][:2] == (
        "1",
        "1.004 (by chance 0.896 to 1.108)",
    )
    assert rows["Noise shared by two steps of a round (correlation)"][0] == "0"
    assert rows["Released values that are not on the grid"][:2] == ("0", "0")


def test_patients_taken_away_are_counted_by_federation(build_run: RunBuilder) -> None:
    audit = read_run(attacked(build_run())).audit
    assert audit is not None
    rows = {row[0]: row[1:] for row in audit_table(audit).rows}
    tiny = next(cells for name, cells in rows.items() if "of a tiny federation" in name)
    assert tiny == ("≤ 1", "0.9921", "–", "holds")
    of_run = next(cells for name, cells in rows.items() if "31 patients taken away" in name)
    assert of_run[1] == "0.9700"
    update = next(cells for name, cells in rows.items() if "24,905 weights" in name)
    assert update == ("0", "0", "–", "holds")


def test_a_run_whose_sites_were_not_named_shows_the_tiny_federation_only(
    build_run: RunBuilder,
) -> None:
    audit = read_run(attacked(build_run(), path_of_run=None)).audit
    assert audit is not None
    names = [row[0] for row in audit_table(audit).rows]
    assert sum("taken away in turn" in name for name in names) == 1


def test_a_path_on_which_others_change_is_broken(build_run: RunBuilder) -> None:
    broken = PATH | {"changed": 3, "failures": 2, "keeps_promise": False}
    audit = read_run(attacked(build_run(), path_of_run=broken)).audit
    assert audit is not None
    row = next(row for row in audit_table(audit).rows if row[2].startswith("3"))
    assert row[2:] == ("3, and 2 values unknown", "–", "BROKEN")


def test_the_page_shows_the_audit_with_its_picture(build_run: RunBuilder) -> None:
    page = write_report(attacked(build_run())).read_text()
    assert "No attack found more than is promised" in page
    assert "not attacked on purpose" not in page
    assert "3,936,240 released numbers" in page
    assert 'alt="One synthetic patient' in page


def test_a_broken_promise_is_said_loudly(build_run: RunBuilder) -> None:
    broken = AUDIT["canaries"] | {"consistent": False}
    page = write_report(attacked(build_run(), passed=False, canaries=broken)).read_text()
    assert "do not rely on this report" in page
    assert "BROKEN" in page
    assert "No attack found" not in page


def test_a_run_that_was_not_attacked_says_so(build_run: RunBuilder) -> None:
    run = build_run()
    assert read_run(run).audit is None
    assert "This run was not attacked on purpose" in write_report(run).read_text()


@pytest.mark.parametrize(
    "missing",
    ["passed", "mechanism", "path", "update", "path_of_run", "canaries", "membership", "inversion"],
)
def test_a_damaged_audit_is_refused(missing: str, build_run: RunBuilder) -> None:
    run = attacked(build_run())
    (run / "audit.json").write_text(
        json.dumps({name: value for name, value in AUDIT.items() if name != missing})
    )
    with pytest.raises(ReportError, match=rf"audit\.json.*{missing}"):
        read_run(run)


def test_a_missing_picture_is_named(build_run: RunBuilder) -> None:
    run = attacked(build_run())
    (run / "audit" / "inversion.png").unlink()
    with pytest.raises(ReportError, match=r"inversion\.png"):
        write_report(run)


def test_an_audit_of_an_earlier_version_is_left_out(build_run: RunBuilder) -> None:
    run = attacked(build_run(), mechanism={"sensitivity": {"found": 0.99}, "keeps_promise": True})
    assert read_run(run).audit is None


def test_an_audit_without_a_mechanism_is_a_damaged_one(build_run: RunBuilder) -> None:
    run = attacked(build_run())
    (run / "audit.json").write_text("{}")
    with pytest.raises(ReportError, match=r"audit\.json"):
        read_run(run)
