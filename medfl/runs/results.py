"""`read_run`: a run folder as one frozen, checked value.

A report is only as true as its files. A file that is missing, damaged, or at odds with another one
ends in a `ReportError` that names the file, the rule and what was found; nothing is guessed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

from medfl.config import StudyConfig
from medfl.config.site import Modality
from medfl.errors import ReportError
from medfl.runs.attendance import MissedRounds, missed_rounds
from medfl.runs.audit_records import Audit
from medfl.runs.files import (
    ATTENDANCE,
    AUDIT,
    ENVIRONMENT,
    EVENTS,
    FEDERATION,
    PLAN,
    PRIVACY,
    ROUNDS,
    SITES,
    STUDY,
    Document,
    parsed,
    text_of,
)
from medfl.runs.metrics_table import read_scores
from medfl.runs.records import (
    FIRST_REVISION,
    VARIANT_ORDER,
    Environment,
    Event,
    Federation,
    PatientOfSites,
    Plan,
    Round,
    Score,
    Site,
    SitePrivacy,
    Variant,
)

Guarantee = Literal["given", "simulated", "overstated", "none"]

_ROUNDING = 1.05  # a round's epsilon uses a coarser grid than the final one, never a smaller value
_OVERSTATING = "0.1."  # versions of medfl whose promises were too small
_SYNTHETIC = "synthetic-"  # folders of pictures that may be shown

# What a plan and the mechanism of an event have in common, as numbers.
_AGREED = ("sampling_prob", "noise_multiplier", "clip_norm", "local_steps", "declared_patients")

_ANY_OBJECT = TypeAdapter(dict[str, Any])

OfSite = TypeVar("OfSite", Plan, SitePrivacy)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Files of one synthetic patient: image, true labels, predicted labels."""

    image: Path
    truth: Path
    segmentation: Path


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """Everything that a report is made from.

    Attributes:
        sites: In the order of `sites.json`.
        plans: By site; only sites that took part.
        privacy: By site; only sites that took part.
        federation: Of all sites together.
        absent: Sites that rounds were begun without, with the rounds and the reasons.
        rounds: Of the federated variant, ascending.
        events: Reported to the server in the federated variant.
        scores: Of all variants; empty where no metrics were released.
        predictions: Synthetic patients only; empty where there are none.
        audit: None where the run was not attacked on purpose.
    """

    folder: Path
    study: StudyConfig
    environment: Environment
    sites: tuple[Site, ...]
    plans: Mapping[str, Plan]
    privacy: Mapping[str, SitePrivacy]
    federation: Federation
    absent: Mapping[str, tuple[MissedRounds, ...]]
    rounds: tuple[Round, ...]
    events: tuple[Event, ...]
    scores: tuple[Score, ...]
    predictions: tuple[Prediction, ...]
    audit: Audit | None

    @property
    def un_noised_sites(self) -> tuple[str, ...]:
        """Sites at which a federated step had no noise, or whose loss is unlimited."""
        bare = {plan.site for plan in self.plans.values() if plan.noise_multiplier == 0}
        bare |= {event.site for event in self.events if event.mechanism.noise_multiplier == 0}
        bare |= {loss.site for loss in self.privacy.values() if math.isinf(loss.epsilon_pld)}
        return tuple(site.name for site in self.sites if site.name in bare)

    @property
    def guarantee(self) -> Guarantee:
        """The strongest claim that every step of the run allows.

        ``none`` if any step was un-noised; ``overstated`` if any was one of medfl 0.1, whose
        promise was too small; ``simulated`` if any noise came from a seed.
        """
        if self.un_noised_sites:
            return "none"
        if self.was_overstated:
            return "overstated"
        return "simulated" if self.has_seeded_noise else "given"

    @property
    def was_overstated(self) -> bool:
        """Whether any step was one of medfl 0.1, as events, sites or the environment tell."""
        revisions = {event.mechanism.revision for event in self.events}
        revisions |= {loss.revision for loss in self.privacy.values()}
        by_version = self.environment.medfl.startswith(_OVERSTATING)
        return FIRST_REVISION in revisions or by_version

    @property
    def has_seeded_noise(self) -> bool:
        """Whether any noise came from a seed."""
        return any(loss.noise_origin == "seeded" for loss in self.privacy.values())

    @property
    def sites_with_affected_steps(self) -> tuple[SitePrivacy, ...]:
        """Sites whose ledger holds steps of medfl 0.1, from this run or an earlier one."""
        return tuple(loss for loss in self.privacy.values() if loss.affected_steps)

    @property
    def largest_loss(self) -> SitePrivacy:
        """The site with the largest epsilon; it bounds every patient who is at one site only."""
        return max(self.privacy.values(), key=lambda loss: loss.epsilon_pld)

    @property
    def largest_delta(self) -> float:
        """With the largest epsilon it holds at every site, whatever delta each of them uses."""
        return max(loss.delta for loss in self.privacy.values())

    @property
    def is_open_data(self) -> bool:
        """True where every site holds public or synthetic patients."""
        return all(site.purpose == "open-data" for site in self.sites)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The variants that were scored, the federated one first."""
        scored = {score.variant for score in self.scores}
        return tuple(variant for variant in VARIANT_ORDER if variant in scored)

    def scored_rounds(self, variant: Variant) -> tuple[int, ...]:
        """The rounds after which a variant was scored, ascending; the last is its final model."""
        return tuple(sorted({score.round for score in self.scores if score.variant == variant}))

    def scores_of(self, variant: Variant, *, at: int = -1) -> tuple[Score, ...]:
        """The scores of a variant after one round; of its final model by default."""
        number = at if at >= 0 else max(self.scored_rounds(variant), default=0)
        return tuple(
            score for score in self.scores if (score.variant, score.round) == (variant, number)
        )


def read_run(folder: str | Path) -> RunResults:
    """Read and check a run folder.

    Args:
        folder: As the federation wrote it. `metrics.csv`, `predictions` and `audit.json` may be
            absent.

    Returns:
        Typed values that agree with each other.

    Raises:
        ReportError: If a file is missing, damaged, or contradicts another one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ReportError(f"{folder}: expected a run folder, found none")
    _require_finished(folder)
    study, rounds, events = STUDY.read(folder), ROUNDS.read(folder), EVENTS.read(folder)
    run = RunResults(
        folder=folder,
        study=study,
        environment=ENVIRONMENT.read(folder),
        sites=SITES.read(folder),
        plans=_by_site(PLAN, folder),
        privacy=_by_site(PRIVACY, folder),
        federation=FEDERATION.read(folder),
        absent=_absent(folder, rounds=max((row.round for row in rounds), default=0)),
        rounds=tuple(row for row in rounds if row.variant == "federated"),
        events=tuple(row for row in events if row.variant == "federated"),
        scores=read_scores(folder),
        predictions=_predictions(folder / "predictions", shown=study.input.modalities[-1]),
        audit=_audit(folder),
    )
    for check in (
        _check_sites,
        _check_rounds,
        _check_mechanisms,
        _check_losses,
        _check_federation,
        _check_releases,
    ):
        check(run)
    return run


def _require_finished(folder: Path) -> None:
    """Say of a run that has stopped how far it came; a damaged one is told file by file."""
    written_last = (ENVIRONMENT, PRIVACY, FEDERATION)
    if any((folder / file.name).exists() for file in written_last):
        return
    if (folder / STUDY.name).exists():
        planned = STUDY.read(folder).training.rounds
        path = folder / ROUNDS.name
        done = path.read_bytes().count(b"\n") if path.exists() else 0
        raise ReportError(
            f"{folder}: expected a finished run, found one that stopped after {done} of {planned} "
            "rounds. Continue it with --resume; `medfl dashboard` shows how far it is."
        )


def _audit(folder: Path) -> Audit | None:
    """The audit; none where an earlier version made it, which looked at less than is shown."""
    path = folder / AUDIT.name
    if not path.exists():
        return None
    found = parsed(text_of(path), _ANY_OBJECT, where=str(path))
    if "figures" not in found.get("mechanism", {"figures": ()}):
        return None
    return AUDIT.read(folder)


def _absent(folder: Path, *, rounds: int) -> Mapping[str, tuple[MissedRounds, ...]]:
    """Nobody in the folders of earlier versions, which took no note of it."""
    starts = ATTENDANCE.read(folder) if (folder / ATTENDANCE.name).exists() else ()
    return missed_rounds(starts, rounds=rounds)


def _by_site(file: Document[tuple[OfSite, ...]], folder: Path) -> dict[str, OfSite]:
    rows = file.read(folder)
    found = {row.site: row for row in rows}
    _expect(
        folder / file.name, "one entry a site", [row.site for row in rows], len(found) == len(rows)
    )
    return found


def _predictions(folder: Path, *, shown: Modality) -> tuple[Prediction, ...]:
    if not folder.is_dir():
        return ()
    found = []
    for case in sorted(path for path in folder.iterdir() if path.is_dir()):
        # The page travels: nothing may get into it that could be a real patient.
        rule = f"folders of synthetic patients only, named {_SYNTHETIC}*"
        _expect(folder, rule, case.name, case.name.startswith(_SYNTHETIC))
        files = [case / f"{name}.nii.gz" for name in (shown, "truth", "segmentation")]
        for path in files:
            _expect(path, "an image beside the other two", "no file", path.is_file())
        found.append(Prediction(image=files[0], truth=files[1], segmentation=files[2]))
    return tuple(found)


def _check_sites(run: RunResults) -> None:
    names = [site.name for site in run.sites]
    distinct = len(set(names)) == len(names)
    _expect(run.folder / "sites.json", "one or more distinct sites", names, distinct and names)
    mentions: dict[str, Sequence[str]] = {
        "plan.json": list(run.plans),
        "privacy.json": list(run.privacy),
        "federation.json": [name for group in _combinations(run) for name in group.sites],
        "rounds.jsonl": [name for row in run.rounds for name in row.sites],
        "federation_ledger.jsonl": [event.site for event in run.events],
        "metrics.csv": [score.site for score in run.scores],
    }
    for file, mentioned in mentions.items():
        unknown = sorted(set(mentioned) - set(names))
        _expect(run.folder / file, "sites of sites.json", unknown, not unknown)
    took_part = {
        name for row in run.rounds for name, at in row.sites.items() if at.outcome == "admitted"
    }
    took_part |= {event.site for event in run.events if event.admitted}
    for file, present in (("plan.json", run.plans), ("privacy.json", run.privacy)):
        absent = sorted(took_part - set(present))
        _expect(run.folder / file, "an entry for each site that took part", absent, not absent)
    _expect(run.folder / "privacy.json", "one or more sites", "none", bool(run.privacy))
    unplanned = sorted(set(run.privacy) - set(run.plans))
    _expect(run.folder / "plan.json", "an entry for each site charged", unplanned, not unplanned)


def _check_rounds(run: RunResults) -> None:
    path = run.folder / "rounds.jsonl"
    numbers = [row.round for row in run.rounds]
    _expect(path, "one or more federated rounds", "none", bool(numbers))
    ascending = all(earlier < later for earlier, later in itertools.pairwise(numbers))
    _expect(path, "ascending federated rounds", numbers, ascending)
    planned = run.study.training.rounds
    _expect(path, f"at most the study's {planned} rounds", numbers[-1], numbers[-1] <= planned)


def _check_mechanisms(run: RunResults) -> None:
    for plan in run.plans.values():
        expected = plan.sampling_prob * plan.declared_patients
        rule = f"divisor = sampling_prob * declared_patients = {expected:.6g} at {plan.site!r}"
        same = math.isclose(plan.divisor, expected, rel_tol=1e-6)
        _expect(run.folder / "plan.json", rule, plan.divisor, same)
    path, rounds = run.folder / "federation_ledger.jsonl", run.study.training.rounds
    for event in (event for event in run.events if event.admitted):
        rule = f"an admitted event {event.sequence} of one of the study's {rounds} rounds"
        _expect(path, rule, event.round, 1 <= event.round <= rounds)
        # An event without noise is no contradiction but a fact: it takes the guarantee away.
        if event.mechanism.noise_multiplier > 0:
            agreed, found = run.plans[event.site].model_dump(), event.mechanism
            agreed["clip_norm"] *= run.study.clip_norm(event.round) / run.study.privacy.clip_norm
            same = all(
                math.isclose(agreed[name], getattr(found, name), rel_tol=1e-9) for name in _AGREED
            )
            rule = f"the planned mechanism in the admitted event {event.sequence}"
            _expect(path, rule, found, same)


def _check_losses(run: RunResults) -> None:
    for loss in run.privacy.values():
        # A round that a site stayed away from counts as spent until the site says otherwise.
        heard = [row.sites[loss.site] for row in run.rounds if loss.site in row.sites]
        reported = [site.epsilon for site in heard if site.outcome == "admitted"]
        limit = max(loss.epsilon_pld, loss.lifetime_epsilon) * _ROUNDING
        largest = max(reported, default=0.0)
        rule = f"an epsilon of {loss.site!r} that covers its rounds, up to {largest:.6g}"
        _expect(run.folder / "privacy.json", rule, loss.epsilon_pld, largest <= limit)
        said = [e for e in run.events if e.site == loss.site and not e.presumed]
        charged = sum(event.steps for event in said)
        rule = f"steps of {loss.site!r} that cover the {charged} of its events"
        _expect(run.folder / "privacy.json", rule, loss.steps, charged <= loss.steps)


def _combinations(run: RunResults) -> tuple[PatientOfSites, ...]:
    pair = run.federation.any_two_sites
    return (*run.federation.overlaps, pair) if pair is not None else run.federation.overlaps


def _check_federation(run: RunResults) -> None:
    path, found = run.folder / "federation.json", run.federation
    rule = "overlaps exactly where patients are not disjoint"
    is_maximum = found.composition.startswith("maximum")
    agrees = found.disjoint == is_maximum == (not found.overlaps)
    _expect(path, rule, (found.disjoint, found.composition, len(found.overlaps)), agrees)
    covered = [loss.epsilon_pld for loss in run.privacy.values()]
    covered += [group.epsilon for group in found.overlaps]
    rule = f"an epsilon that covers every site and overlap, up to {max(covered):.6g}"
    _expect(path, rule, found.epsilon, found.epsilon >= max(covered))
    rule = f"a delta that covers every site's, up to {run.largest_delta:g}"
    _expect(path, rule, found.delta, found.delta >= run.largest_delta)
    pair, sites = found.any_two_sites, len(run.privacy)
    _expect(path, "any two sites where there are two", pair, (pair is not None) == (sites > 1))
    trust, is_secure = run.study.privacy.trust, found.secure_sum is not None
    rule = f"a secure sum exactly where the study's trust is 'secure', here {trust!r}"
    _expect(path, rule, found.secure_sum, is_secure == (trust == "secure"))


def _check_releases(run: RunResults) -> None:
    """Scores of a hospital's patients must not have left it, so they are not reported."""
    hospitals = sorted(site.name for site in run.sites if site.purpose == "hospital")
    scored = sorted({score.site for score in run.scores} & set(hospitals))
    _expect(run.folder / "metrics.csv", "no scores of a hospital's patients", scored, not scored)


def _expect(path: Path, rule: str, found: object, holds: object) -> None:
    if not holds:
        raise ReportError(f"{path}: expected {rule}, found {str(found)[:200]}")
