"""`audit_run`: every attack there is, on the code that runs here and on a finished run.

Some need no run: the mechanism test measures the engine of this installation, patients are taken
away in turn from a tiny federation, one update is read bit for bit, and canaries are looked for in
a small federation. The others look at the run: what taking its own patients away changes, whether
the losses of its model betray who was trained on, and what one update betrays of a synthetic one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medfl.audit.beside import beside
from medfl.audit.canary_run import CANARIES, GUESSED, CanaryAudit, audit_study, small_federation
from medfl.audit.inversion import ITERATIONS, Inversion, invert_update
from medfl.audit.inversion_figure import draw
from medfl.audit.mechanism_probe import MechanismProbe, probe_mechanism
from medfl.audit.membership import MembershipAttack, attack_run
from medfl.audit.path_federation import path_federation
from medfl.audit.released_update import ReleasedUpdate, look_at_update
from medfl.audit.sensitivity import PathSensitivity, sensitivity_on_path
from medfl.config import SiteConfig, StudyConfig
from medfl.config.site import Trust
from medfl.errors import ConfigError
from medfl.json_text import to_json
from medfl.privacy.mechanism import Clipping, Mechanism
from medfl.protocol.messages import Declaration
from medfl.runs.audit_records import PICTURE
from medfl.runs.files import AUDIT
from medfl.server.ledger import FederationLedger
from medfl.server.run_folder import RunFolder

_PATIENT_SEED = 3  # of the synthetic patient whose update is inverted

# Of the path: rounds a site, and patients that each of them chooses from.
_DRAWS, _PATIENTS = 2, 5
_DRAWS_OF_RUN, _PATIENTS_OF_RUN = 1, 3  # a run's images are large: a bound on time

Advance = Callable[[str, int, int], None]
"""Told the part of the audit, what is done of it, and all of it."""


def unwatched(*_: object) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, kw_only=True)
class InstallationAudit:
    """What was found of the code that runs here.

    Attributes:
        mechanism: Of the engine.
        path: Of the way from files to sums, in a tiny federation.
        update: Of one update, bit for bit.
        canaries: Of a small federation.
    """

    mechanism: MechanismProbe
    path: PathSensitivity
    update: ReleasedUpdate
    canaries: CanaryAudit

    @property
    def passed(self) -> bool:
        """Whether nothing that was measured contradicts what is promised."""
        kept = (self.mechanism, self.path, self.update)
        return all(part.keeps_promise for part in kept) and self.canaries.consistent

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON types; infinite ones stay floats."""
        return {
            "passed": self.passed,
            "mechanism": self.mechanism.to_dict(),
            "path": self.path.to_dict(),
            "update": self.update.to_dict(),
            "canaries": self.canaries.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Audit(InstallationAudit):
    """What was found of the code that runs here and of a finished run.

    Attributes:
        path_of_run: Of the way from the run's own files to sums; None without the sites' files.
        membership: Of the run's models; none without the sites' files.
        inversion: Of one update under the run's mechanism.
    """

    path_of_run: PathSensitivity | None
    membership: tuple[MembershipAttack, ...]
    inversion: Inversion

    @property
    def passed(self) -> bool:
        """Whether nothing that was measured contradicts what is promised."""
        held = all(attack.verdict == "consistent" for attack in self.membership)
        on_path = self.path_of_run is None or self.path_of_run.keeps_promise
        return held and on_path and super().passed

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON types; infinite ones stay floats."""
        return super().to_dict() | {
            "path_of_run": self.path_of_run.to_dict() if self.path_of_run else None,
            "membership": [asdict(attack) for attack in self.membership],
            "inversion": _figures(self.inversion),
        }


def audit_installation(
    *,
    clipping: Clipping,
    advance: Advance,
    trust: Trust = "local",
    canaries: int = CANARIES,
) -> InstallationAudit:
    """Attack the code that runs here.

    Args:
        clipping: How gradients are clipped in the mechanism test.
        trust: What the attacker with canaries sees: every update, or the sum of each round.
        advance: Progress.
        canaries: An even number; fewer take less time, and can show less.

    Returns:
        What was found.

    Raises:
        MedflError: If an attack cannot be made.
    """
    advance("mechanism test", 0, 1)
    mechanism = probe_mechanism(noise_origin="operating-system", clipping=clipping)
    advance("mechanism test", 1, 1)
    with tempfile.TemporaryDirectory(prefix="medfl-audit-") as scratch:
        path = sensitivity_on_path(
            *path_federation(Path(scratch) / "path"),
            scratch=Path(scratch) / "taken-away",
            draws=_DRAWS,
            patients=_PATIENTS,
            advance=lambda done, total: advance("patients taken away", done, total),
        )
        study, sites = small_federation(Path(scratch) / "hospitals")
        update = look_at_update(study, sites[0], scratch=Path(scratch) / "update")
        if trust != "local":
            study, sites = small_federation(Path(scratch) / "summed", trust=trust)
        found = audit_study(
            study,
            sites,
            canaries=canaries,
            guessed=canaries * GUESSED // CANARIES,
            out=Path(scratch) / "run",
            generator=np.random.default_rng(),  # from the operating system: the coins are secret
            advance=lambda done, total: advance("canaries", done, total),
        )
    return InstallationAudit(mechanism=mechanism, path=path, update=update, canaries=found)


def audit_run(
    folder: str | Path,
    sites: Sequence[SiteConfig],
    *,
    advance: Advance = unwatched,
    canaries: int = CANARIES,
    iterations: int = ITERATIONS,
) -> Audit:
    """Attack this installation and a finished run; write ``audit.json`` and a picture into it.

    Args:
        folder: The run folder.
        sites: The run's sites, all with open data, whose patients are attacked and taken away; none
            to leave that out.
        advance: Progress.
        canaries: Of the small federation, an even number; fewer take less time, and can show less.
        iterations: Of each gradient inversion; fewer recover less.

    Returns:
        What was found.

    Raises:
        ConfigError: If the folder holds no finished run, or the sites are not the run's.
        PolicyRefused: If a site's patients are not open data.
        MedflError: If an attack cannot be made.
    """
    folder = Path(folder)
    study, weakest = _read(folder)
    membership: tuple[MembershipAttack, ...] = ()
    path_of_run = None
    with beside(
        invert_update,  # nearly half of the work, and alone with a network of its own
        mechanism=_as_seen(weakest.mechanism.in_round(1)),
        steps=study.total_steps,
        delta=weakest.delta,
        seed=_PATIENT_SEED,
        iterations=iterations,
    ) as inverting:
        if sites:
            advance("membership", 0, 1)
            membership = attack_run(study, sites, run_folder=folder)
            advance("membership", 1, 1)
            path_of_run = _path_of_run(study, sites, advance=advance)
        installation = audit_installation(
            clipping=weakest.mechanism.clipping,
            advance=advance,
            trust=study.privacy.trust,
            canaries=canaries,
        )
        inversion = inverting.result(
            advance=lambda done, total: advance("gradient inversion", done, total)
        )
    (folder / PICTURE).parent.mkdir(exist_ok=True)
    draw(inversion, folder / PICTURE)
    audit = Audit(
        mechanism=installation.mechanism,
        path=installation.path,
        update=installation.update,
        path_of_run=path_of_run,
        canaries=installation.canaries,
        membership=membership,
        inversion=inversion,
    )
    RunFolder(folder).write(AUDIT, AUDIT.kind.validate_json(to_json(audit.to_dict())))
    return audit


def _as_seen(mechanism: Mechanism) -> Mechanism:
    """The noise around what the server sees, as if there were nobody else in a sum."""
    return replace(mechanism, trust="local", honest_sites=1)


def _path_of_run(
    study: StudyConfig, sites: Sequence[SiteConfig], *, advance: Advance
) -> PathSensitivity:
    with tempfile.TemporaryDirectory(prefix="medfl-audit-") as scratch:
        return sensitivity_on_path(
            study,
            sites,
            scratch=Path(scratch),
            draws=_DRAWS_OF_RUN,
            patients=_PATIENTS_OF_RUN,
            advance=lambda done, total: advance("the run's patients taken away", done, total),
        )


def _figures(inversion: Inversion) -> dict[str, Any]:
    """What is said of the picture; the volumes stay out of it."""
    names = (
        "correlation_without_noise",
        "correlation_with_noise",
        "noise_over_signal",
        "epsilon",
        "delta",
        "noise_origin",
    )
    return {name: getattr(inversion, name) for name in names}


def _read(folder: Path) -> tuple[StudyConfig, Declaration]:
    """The run's study, and what the site with the weakest guarantee declared."""
    path = folder / "study.json"
    try:
        study = StudyConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"{path}: expected the study of a finished run, found none.") from None
    declarations = FederationLedger(RunFolder(folder)).declarations
    if not declarations:
        raise ConfigError(f"{folder}: expected a finished run, found one that no site joined.")
    return study, min(
        declarations.values(), key=lambda declared: declared.mechanism.noise_multiplier
    )
