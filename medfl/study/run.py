"""The main job: plan, federate, run baselines, draw pictures, and account for all of it."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

import torch
from safetensors.torch import load_file

from medfl.config import SiteConfig, StudyConfig
from medfl.config.site import Region
from medfl.errors import ConfigError
from medfl.protocol.messages import Declaration
from medfl.protocol.study_model import trained_parameters
from medfl.runs.attendance import absences
from medfl.runs.files import ENVIRONMENT, FEDERATION, FINAL_MODEL, PLAN, PRIVACY, SITES, SUMMARY
from medfl.runs.records import (
    Environment,
    LossLimit,
    Plan,
    Round,
    Site,
    SitePrivacy,
    Spent,
    Summary,
    Variant,
)
from medfl.server.account import federation_summary, privacy_summary
from medfl.server.ledger import FederationLedger
from medfl.server.progress import Progress, Silent
from medfl.server.run_folder import RunFolder
from medfl.site.seen_patients import require_unseen
from medfl.site.state import simulated_state
from medfl.study.baselines import run_baseline
from medfl.study.pictures import write_pictures
from medfl.study.simulation import Engine, check_sites, prepare_folder, simulate
from medfl.study.starting_point import seen_by_start
from medfl.study.tensorboard_log import TensorBoardLog
from medfl.study.workers import Workers, one_thread
from medfl.version import __version__

LIBRARIES = ("torch", "monai", "opacus", "flwr", "dp-accounting", "numpy", "nibabel")


def run_study(
    study: StudyConfig,
    sites: Sequence[SiteConfig],
    *,
    out: str | Path,
    engine: Engine = "inprocess",
    jobs: int = 1,
    resume: bool = False,
    progress: Progress | None = None,
    command: str = "",
) -> Summary:
    """Run a study with its baselines and leave a folder that a report can be made from.

    Args:
        study: The study.
        sites: The sites.
        out: The run folder.
        engine: What calls the apps.
        jobs: Sites that work side by side in-process, each in a process of one thread; no more
            than there are sites. With 1 they work in this process, one after the other. The
            results are the same, bit for bit. Ray shares the machine itself.
        resume: Go on with the run in `out`.
        progress: Who watches; nobody if None.
        command: The command that repeats the run, for the report; empty if there is none.

    Returns:
        The content of ``summary.json``.

    Raises:
        MedflError: If the run cannot go on; what was done stays in the folder.
        ValueError: If `jobs` is less than 1.
    """
    if engine == "ray" and jobs > 1:
        raise ConfigError(
            f"Expected jobs = 1 for --engine ray, which shares the machine itself, found {jobs}."
        )
    begin = time.monotonic()
    out, progress = Path(out), progress or Silent()
    check_sites(study, sites)
    workers = Workers(min(jobs, len(sites)))
    # Here, so that the person who wrote the study is told why; a site would only answer a code.
    trained_parameters(study)
    seen = seen_by_start(study, out=out)
    for site in sites:
        # In the run, the site would be left out of the federation, and not of the baselines.
        require_unseen(simulated_state(site, run_folder=out), seen)
    prepare_folder(out, study=study, resume=resume)
    folder = RunFolder(out)
    with one_thread(), workers:
        with TensorBoardLog(out / "tensorboard", watched=progress) as watched:
            simulate(study, sites, out=out, engine=engine, progress=watched, workers=workers)
        minutes = (time.monotonic() - begin) / 60
        _describe(folder, study, command=command)
        done = {score.variant for score in folder.scores()}
        start = load_file(out / "checkpoints" / "initial.safetensors")
        for name in study.evaluation.baselines:
            if name not in done:
                run_baseline(
                    name,
                    study,
                    sites,
                    out=out,
                    engine=engine,
                    start=start,
                    progress=progress,
                    workers=workers,
                )
        workers.close()  # the rest is done here
        return _account(folder, study, minutes=minutes, progress=progress)


def finish_run(
    folder: RunFolder, study: StudyConfig, *, minutes: float, command: str, progress: Progress
) -> Summary:
    """Describe and account for a run that another process has brought to its end.

    Args:
        folder: The run folder.
        study: The study, without baselines.
        minutes: How long the run took.
        command: The command that repeats the run; empty if there is none.
        progress: Who watches.

    Returns:
        The content of ``summary.json``.

    Raises:
        FederationError: If the run folder is damaged.
    """
    _describe(folder, study, command=command)
    return _account(folder, study, minutes=minutes, progress=progress)


def _account(
    folder: RunFolder, study: StudyConfig, *, minutes: float, progress: Progress
) -> Summary:
    """Pictures of the final model, what it cost, and the summary."""
    progress.phase("pictures")
    write_pictures(
        study,
        model=folder.path / FINAL_MODEL,
        out=folder.path / "predictions",
    )
    progress.phase("privacy accounting")
    privacy = privacy_summary(folder)
    folder.write(PRIVACY, privacy)
    overlaps = [group.sites for group in study.overlap]
    folder.write(FEDERATION, federation_summary(folder, overlaps=overlaps))
    summary = _summary(folder, study, privacy, minutes=minutes)
    folder.write(SUMMARY, summary)
    return summary


def _describe(folder: RunFolder, study: StudyConfig, *, command: str) -> None:
    """Everything that is fixed by now: sites, plan, environment."""
    # Also the sites that joined before a crash and did not come back.
    declarations = FederationLedger(folder).declarations
    folder.write(SITES, tuple(_site(declaration) for declaration in declarations.values()))
    folder.write(PLAN, tuple(_plan(study, declaration) for declaration in declarations.values()))
    folder.write(ENVIRONMENT, environment(study, command=command))


def _site(declaration: Declaration) -> Site:
    return Site(
        name=declaration.site,
        purpose=declaration.purpose,
        declared_patients=declaration.declared_patients,
        weight=declaration.weight,
        policy=LossLimit(epsilon=declaration.epsilon_budget, delta=declaration.delta),
        modalities=declaration.modalities,
    )


def _plan(study: StudyConfig, declaration: Declaration) -> Plan:
    mechanism = declaration.mechanism
    return Plan(
        site=declaration.site,
        noise_multiplier=mechanism.noise_multiplier,
        sampling_prob=mechanism.sampling_prob,
        clip_norm=mechanism.clip_norm,
        clipping=mechanism.clipping,
        local_steps=mechanism.local_steps,
        rounds=study.training.rounds,
        declared_patients=mechanism.declared_patients,
        divisor=mechanism.divisor,
        delta=declaration.delta,
        epsilon=declaration.epsilon,
        epsilon_budget=declaration.epsilon_budget,
        noise_to_signal=mechanism.share_std / mechanism.clip_norm / mechanism.divisor,
    )


def environment(study: StudyConfig, *, command: str) -> Environment:
    """Versions, commit and machine, for anyone who wants to reproduce a run."""
    versions = {name.replace("-", "_"): importlib.metadata.version(name) for name in LIBRARIES}
    return Environment(
        medfl=__version__,
        python=platform.python_version(),
        **versions,
        commit=_commit(),
        platform=platform.platform(),
        cpu_threads=torch.get_num_threads(),
        config_digest=study.digest,
        started=datetime.now(UTC).replace(microsecond=0),
        command=command,
    )


def _commit() -> str:
    """The commit of a development checkout; empty for an installed package."""
    try:
        result = subprocess.run(  # noqa: S603
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()


def _summary(
    folder: RunFolder, study: StudyConfig, privacy: Sequence[SitePrivacy], *, minutes: float
) -> Summary:
    over_patients: dict[Variant, dict[Region, list[float]]] = defaultdict(lambda: defaultdict(list))
    by_site: dict[Variant, dict[str, dict[Region, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    scores = folder.scores()
    last = {score.variant: score.round for score in scores}
    for score in scores:
        if score.round == last[score.variant]:
            over_patients[score.variant][score.region].append(score.dice)
            by_site[score.variant][score.site][score.region].append(score.dice)
    return Summary(
        study=study.id,
        minutes=round(minutes, 2),
        sites={loss.site: Spent(epsilon=loss.epsilon_pld, budget=loss.budget) for loss in privacy},
        dice={variant: _means(regions) for variant, regions in over_patients.items()},
        dice_by_site={
            variant: {site: _means(regions) for site, regions in sites.items()}
            for variant, sites in by_site.items()
        },
        idle=_idle(folder.rounds()),
        undelivered=folder.undelivered(),
        absent=absences(folder.attendance(), rounds=study.training.rounds),
    )


def _idle(rounds: Sequence[Round]) -> dict[str, str]:
    codes: dict[str, Counter[str]] = defaultdict(Counter)
    active = set()
    for line in rounds:
        for name, at in line.sites.items():
            codes[name][at.code] += 1
            if at.outcome == "admitted":
                active.add(name)
    return {
        name: lost.most_common(1)[0][0]
        for name, lost in sorted(codes.items())
        if name not in active
    }


def _means(by_region: Mapping[Region, Sequence[float]]) -> dict[Region, float]:
    return {region: fmean(values) for region, values in by_region.items()}
