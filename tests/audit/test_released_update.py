"""One update of a site that really runs is read bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medfl.audit.canary_run import small_federation
from medfl.audit.released_update import ReleasedUpdate, look_at_update
from medfl.config import SiteConfig, StudyConfig
from medfl.errors import ConfigError
from medfl.privacy.ledger.ledger import Ledger

Federation = tuple[StudyConfig, list[SiteConfig]]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """The small federation of the audit."""
    return small_federation(tmp_path_factory.mktemp("update") / "hospitals")


def look(federation: Federation, scratch: Path) -> ReleasedUpdate:
    """Audit the first of its sites."""
    study, sites = federation
    return look_at_update(study, sites[0], scratch=scratch)


@pytest.mark.slow
def test_an_update_consists_of_noisy_integers_and_is_charged_in_the_scratch_folder(
    federation: Federation, tmp_path: Path
) -> None:
    found = look(federation, tmp_path)
    assert found.keeps_promise
    assert found.weights > 20_000
    assert found.off_grid == 0
    assert found.noise_std == pytest.approx(1, abs=0.03)
    with Ledger.open(tmp_path / "sites" / "north" / "ledger") as ledger:
        assert ledger.steps(run="audit") == 1


@pytest.mark.slow
def test_an_update_of_a_warm_up_is_read_by_the_numbers_of_its_round(
    federation: Federation, tmp_path: Path
) -> None:
    study, sites = federation
    values = study.model_dump(mode="json")
    values["privacy"]["clip_norm_schedule"] = {"warmup_rounds": 2}
    values["training"]["learning_rate_schedule"] = {"warmup_rounds": 4}
    found = look((StudyConfig.model_validate_json(json.dumps(values)), sites), tmp_path)
    assert found.keeps_promise
    assert found.noise_std == pytest.approx(1, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    "bug", ["no noise", "noise halved", "even noise", "a sum in float32", "a bit in a mantissa"]
)
def test_anything_else_in_an_update_is_caught(
    bug: str, federation: Federation, tmp_path: Path, plant: Callable[[str], None]
) -> None:
    plant(bug)
    found = look(federation, tmp_path)
    assert not found.keeps_promise
    assert (found.off_grid > 0) == (bug in ("a sum in float32", "a bit in a mantissa"))


def test_a_study_that_hides_the_sum_of_a_step_is_refused(
    federation: Federation, tmp_path: Path
) -> None:
    study, sites = federation
    adam = study.model_copy(
        update={"training": study.training.model_copy(update={"optimizer": "adam"})}
    )
    with pytest.raises(ConfigError, match="sgd"):
        look_at_update(adam, sites[0], scratch=tmp_path)
