"""A site begins no round that nobody waits for any more: it would be charged for nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("late_seconds", "found", "charges"),
    [(1.0, ("refused", "message-late"), 1), (-30.0, ("admitted", ""), 2)],
    ids=["over", "under way"],
)
def test_a_round_that_is_over_is_refused_before_it_is_charged(
    late_seconds: float, found: tuple[str, str], charges: int, federation: Any
) -> None:
    def waits(site: str, message: Any, answer: Any) -> Any:
        metadata = message.metadata
        if (site, metadata.message_type, metadata.group_id) == ("east", "train", "1"):
            metadata.created_at = time.time() - metadata.ttl - late_seconds
        return answer()

    finished = federation.run(federation.study(), federation.sites(), fault=waits)
    assert finished.outcomes(1)["east"] == found
    assert finished.outcomes(2)["east"] == ("admitted", "")
    assert finished.charges("east") == charges
