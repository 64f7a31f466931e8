"""`audit_run`: every attack there is, on the code that runs here and on a finished run.

Two attacks need no run: the mechanism test measures the engine of this installation, and canaries
are looked for in a small federation of its own. The other two look at the run: whether the losses
of its model betray who was trained on, and what one update betrays of a synthetic patient.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medfl.audit.canary_run import CANARIES, GUESSED, CanaryAudit, audit_study, small_federation
from medfl.audit.inversion import Inversion, invert_update
from medfl.audit.inversion_figure import draw
from medfl.audit.mechanism_test import MechanismTest, mechanism_test
from medfl.audit.membership import MembershipAttack, attack_run
from medfl.config import SiteConfig, StudyConfig
from medfl.errors import ConfigError
from medfl.federation.federation_ledger import FederationLedger
from medfl.federation.messages import Declaration
from medfl.federation.run_folder import RunFolder
from medfl.privacy.mechanism import Clipping
from medfl.reporting.audit_records import PICTURE

RESULT = "audit.json"

_PATIENT_SEED = 3  # of the synthetic patient whose update is inverted

Advance = Callable[[str, int, int], None]
"""Told the part of the audit, what is done of it, and all of it."""


@dataclass(frozen=True, kw_only=True)
class InstallationAudit:
    """What was found of the code that runs here.

    Attributes:
        mechanism: Of the engine.
        canaries: Of a small federation.
    """

    mechanism: MechanismTest
    canaries: CanaryAudit

    @property
    def passed(self) -> bool:
        """Whether nothing that was measured contradicts what is promised."""
        return self.mechanism.keeps_promise and self.canaries.consistent

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON types; infinite ones stay floats."""
        return {
            "passed": self.passed,
            "mechanism": self.mechanism.to_dict(),
            "canaries": self.canaries.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Audit(InstallationAudit):
    """What was found of the code that runs here and of a finished run.

    Attributes:
        membership: Of the run's models; none without the sites' files.
        inversion: Of one update under the run's mechanism.
    """

    membership: tuple[MembershipAttack, ...]
    inversion: Inversion

    @property
    def passed(self) -> bool:
        """Whether nothing that was measured contradicts what is promised."""
        held = all(attack.verdict == "consistent" for attack in self.membership)
        return held and super().passed

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON types; infinite ones stay floats."""
        return super().to_dict() | {
            "membership": [asdict(attack) for attack in self.membership],
            "inversion": _figures(self.inversion),
        }


def audit_installation(*, clipping: Clipping, advance: Advance) -> InstallationAudit:
    """Attack the code that runs here.

    Args:
        clipping: How gradients are clipped in the mechanism test.
        advance: Progress.

    Returns:
        What was found.

    Raises:
        MedflError: If an attack cannot be made.
    """
    advance("mechanism test", 0, 1)
    mechanism = mechanism_test(noise_origin="operating-system", clipping=clipping)
    advance("mechanism test", 1, 1)
    with tempfile.TemporaryDirectory(prefix="medfl-audit-") as scratch:
        study, sites = small_federation(Path(scratch) / "hospitals")
        canaries = audit_study(
            study,
            sites,
            canaries=CANARIES,
            guessed=GUESSED,
            out=Path(scratch) / "run",
            generator=np.random.default_rng(),  # from the operating system: the coins are secret
            advance=lambda done, total: advance("canaries", done, total),
        )
    return InstallationAudit(mechanism=mechanism, canaries=canaries)


def audit_run(folder: Path, sites: Sequence[SiteConfig], *, advance: Advance) -> Audit:
    """Attack this installation and a finished run; write ``audit.json`` and a picture into it.

    Args:
        folder: The run folder.
        sites: The run's sites, all with open data, for the membership attack; none to leave it out.
        advance: Progress.

    Returns:
        What was found.

    Raises:
        ConfigError: If the folder holds no finished run, or the sites are not the run's.
        PolicyRefused: If a site's patients are not open data.
        MedflError: If an attack cannot be made.
    """
    study, weakest = _read(folder)
    membership: tuple[MembershipAttack, ...] = ()
    if sites:
        advance("membership", 0, 1)
        membership = attack_run(study, sites, run_folder=folder)
        advance("membership", 1, 1)
    installation = audit_installation(clipping=weakest.mechanism.clipping, advance=advance)
    inversion = invert_update(
        mechanism=weakest.mechanism,
        steps=study.total_steps,
        delta=weakest.delta,
        seed=_PATIENT_SEED,
        on_iteration=lambda done, total: advance("gradient inversion", done, total),
    )
    (folder / PICTURE).parent.mkdir(exist_ok=True)
    draw(inversion, folder / PICTURE)
    audit = Audit(
        mechanism=installation.mechanism,
        canaries=installation.canaries,
        membership=membership,
        inversion=inversion,
    )
    RunFolder(folder).write_json(RESULT, audit.to_dict())
    return audit


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
