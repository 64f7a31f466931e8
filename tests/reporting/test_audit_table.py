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
from medfl.reporting.results import read_run

pytestmark = pytest.mark.slow

RunBuilder = Callable[..., Path]

FIGURE = {"found": 1.02, "promised": 1.0, "standard_error": 0.018}
AUDIT: dict[str, Any] = {
    "passed": True,
    "mechanism": {
        "sensitivity": FIGURE,
        "noise_std": FIGURE,
        "noise_std_of_small_batches": FIGURE,
        "inclusion": FIGURE,
        "keeps_promise": True,
    },
    "canaries": {
        "claimed_epsilon": 4.0,
        "claimed_mu": 0.99,
        "delta": 1e-5,
        "confidence": 0.95,
        "canaries": 2000,
        "guessed": 400,
        "correct": 282,
        "shown": {"epsilon": 0.6859, "mu": 0.28},
        "largest_showable": {"epsilon": 4.8366, "mu": 1.72},
        "estimate": {"epsilon": 2.8, "epsilon_low": 2.4, "epsilon_high": 3.2},
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


def test_the_page_shows_the_audit_with_its_picture(build_run: RunBuilder) -> None:
    page = write_report(attacked(build_run())).read_text()
    assert "No attack found more than is promised" in page
    assert "not attacked on purpose" not in page
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


@pytest.mark.parametrize("missing", ["passed", "mechanism", "canaries", "membership", "inversion"])
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
