"""A study of secure sums is the same bits however many sites work at once, and goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medfl.privacy.ledger.ledger import Ledger
from medfl.server.run_folder import RunFolder
from medfl.study.run import run_study
from tests.federations import Finished
from tests.study.test_secure_sums import secure, sites_of, steps
from tests.study.test_side_by_side import Noted, assert_same, models, workers

pytestmark = pytest.mark.slow


def stop() -> None:
    raise KeyboardInterrupt


def test_side_by_side_is_the_same_bits(federation: Any) -> None:
    study, sites = secure(federation), sites_of(federation)
    one, two = federation.scratch / "one", federation.scratch / "two"
    run_study(study, sites, out=one)
    run_study(study, sites, out=two, jobs=2)
    assert models(one)
    assert_same(two, one)
    assert workers() == []


def test_a_run_that_was_stopped_in_a_round_goes_on_with_the_next(federation: Any) -> None:
    """The site that had computed stays charged; the round has no update of anybody."""
    study = secure(federation, training={"rounds": 3})
    sites, out = sites_of(federation), federation.scratch / "run"
    with pytest.raises(KeyboardInterrupt):
        run_study(study, sites, out=out, progress=Noted(at=4, action=stop))
    finished = Finished(path=out)
    assert len(finished.folder.rounds()) == 1
    assert [steps(finished, site.name) for site in sites] == [2, 1, 1]

    kept = RunFolder(out).read_state(study=study)
    assert kept is not None
    run_study(study, sites, out=out, resume=True)
    assert set(finished.outcomes(2).values()) == {("rejected", "secure-sum-void")}
    assert set(finished.outcomes(3).values()) == {("admitted", "")}
    assert [steps(finished, site.name) for site in sites] == [3, 2, 2]
    for site in sites:
        with Ledger.open(finished.state(site.name) / "ledger") as ledger:
            paid = [entry.content["round"] for entry in ledger.entries() if entry.kind == "charge"]
        assert paid == ([1, 2, 3] if site.name == "east" else [1, 3])
    assert not all(torch.equal(kept.weights[name], finished.weights[name]) for name in kept.weights)
