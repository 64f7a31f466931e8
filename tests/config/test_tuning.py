"""What a study says its settings were chosen on."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from medfl.config.tuning import StudyTuning


@pytest.mark.parametrize(
    "values",
    [
        {"on": "public"},
        {"on": "public", "collections": ("BraTS-2021", "TCGA-LGG")},
        {"on": "sites", "runs": 12},
    ],
)
def test_what_can_be_said(values: dict[str, Any]) -> None:
    StudyTuning(**values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"on": "nothing"}, "'public' or 'sites'"),
        ({"on": "sites"}, "runs >= 2"),
        ({"on": "sites", "runs": 0}, "greater than or equal to 1"),
        ({"on": "sites", "runs": 5, "collections": ("TCGA-LGG",)}, "TCGA-LGG"),
        ({"on": "public", "runs": 3}, "found 'public', 3"),
        ({"on": "public", "collections": ("b", "a")}, "alphabetical order"),
        ({"on": "public", "collections": ("a", "a")}, "distinct"),
    ],
)
def test_what_contradicts_itself_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        StudyTuning(**values)
