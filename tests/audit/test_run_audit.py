"""The whole audit of a finished run, as the command line does it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from medfl.audit.canary_run import small_federation
from medfl.audit.run_audit import audit_run
from medfl.cli import main
from medfl.config import SiteConfig, StudyConfig
from medfl.errors import ConfigError, PolicyRefused
from medfl.server.progress import Silent
from medfl.study.run import run_study


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[SiteConfig]]:
    """A finished run of the small federation, and its sites."""
    folder = tmp_path_factory.mktemp("audited")
    study, sites = small_federation(folder / "hospitals")
    # Everything that may change from round to round, and a decay, which no canary's run may have.
    values = study.model_dump(mode="json")
    values["privacy"]["clip_norm_schedule"] = {"shape": "linear", "final_fraction": 0.1}
    values["training"] |= {"learning_rate_schedule": {"warmup_rounds": 2}, "weight_decay": 0.01}
    study = StudyConfig.model_validate_json(json.dumps(values))
    run_study(study, sites, out=folder / "run", engine="inprocess", resume=False, progress=Silent())
    return folder / "run", sites


@pytest.mark.slow
def test_every_attack_is_set_beside_its_promise_in_run_folder_and_report(
    run: tuple[Path, list[SiteConfig]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, sites = run
    files = [str(folder.parent / "hospitals" / f"{site.name}.toml") for site in sites]
    monkeypatch.setattr(sys, "argv", ["medfl", "audit", str(folder), *files])
    with pytest.raises(SystemExit) as end:
        main()
    seen = capsys.readouterr()
    assert not end.value.code, seen.err
    found = json.loads((folder / "audit.json").read_text())
    assert found["passed"] is True
    assert found["mechanism"]["keeps_promise"] is True
    for path in (found["path"], found["path_of_run"]):
        assert path["removals"] > 0
        assert path["largest"] <= 1
        assert path["changed"] == 0
    assert [site["site"] for site in found["path_of_run"]["sites"]] == [site.name for site in sites]
    assert found["update"]["off_grid"] == 0
    canaries = found["canaries"]
    assert canaries["shown"]["epsilon"] <= canaries["claimed_epsilon"]
    assert canaries["claimed_epsilon"] < canaries["largest_showable"]["epsilon"]
    assert [attack["variant"] for attack in found["membership"]] == ["federated"]
    assert found["inversion"]["correlation_without_noise"] > 0.8
    assert abs(found["inversion"]["correlation_with_noise"]) < 0.3
    assert (folder / "audit" / "inversion.png").stat().st_size > 10_000
    assert "largest showable" in seen.out
    page = (folder / "report.html").read_text()
    assert "No attack found more than is promised" in page
    # Nothing of a single patient is in it.
    for site in sites:
        assert not any(patient.name in page for patient in site.data.root.iterdir())


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"study\.json: expected the study of a finished run"):
        audit_run(tmp_path, [], advance=lambda *_: None)


@pytest.mark.slow
def test_the_patients_of_a_hospital_are_not_attacked(
    run: tuple[Path, list[SiteConfig]],
) -> None:
    folder, sites = run
    policy = sites[0].privacy.model_copy(update={"share_metrics": False, "allow_baselines": False})
    hospital = sites[0].model_copy(update={"purpose": "hospital", "privacy": policy})
    with pytest.raises(PolicyRefused, match="open-data"):
        audit_run(folder, [hospital, sites[1]], advance=lambda *_: None)
