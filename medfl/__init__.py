"""medfl: patient-level differentially private federated learning for medical imaging.

What is listed here is the public interface; everything else may change with a minor version. Names
are imported when they are first used, so that `import medfl` takes milliseconds and no torch.

A study from files to a report::

    import medfl

    study = medfl.load_study("study.toml")
    sites = [medfl.load_site(path) for path in ("north.toml", "south.toml")]
    plan = medfl.plan_study(study, sites)             # noise and epsilon, before anything runs
    medfl.run_study(study, sites, out="runs/first")   # as `medfl simulate` does
    results = medfl.read_run("runs/first")
    page = medfl.write_report("runs/first")

- Files: `load_site`, `load_study`, and what they return, `SiteConfig` and `StudyConfig`.
- Patients: `SiteCohort` of one site, `write_hospitals` for synthetic ones, `read_volume` of one
  image.
- Privacy: `Mechanism`, `Charge`, `epsilon`, `noise_multiplier_for`.
- Studies: `plan_study` and `StudyPlan`, `run_study` and `Summary`, watched by a `Progress`.
- Results: `read_run` and `RunResults`, `dice_table`, `difference_table`, `gains_table`, `gain`,
  `mean_dice`, `write_report`.
- Attacks: `audit_run`, which returns an `Audit`, and `audit_table`.
- Models: `Predictor` and `predict_case`.
- Errors: all are a `MedflError`, whose `code` is a short word.
"""

import importlib
import os
from typing import TYPE_CHECKING

from medfl.version import __version__

if TYPE_CHECKING:
    from medfl.audit.run_audit import Audit, audit_run
    from medfl.config import SiteConfig, StudyConfig, load_site, load_study
    from medfl.data.nifti.volume import read_volume
    from medfl.errors import (
        BudgetExceeded,
        ConfigError,
        DataError,
        FederationError,
        LedgerError,
        MedflError,
        ModelError,
        PolicyRefused,
        PrivacyError,
        ReportError,
    )
    from medfl.phantom.hospitals import write_hospitals
    from medfl.prediction.cohort import predict_case
    from medfl.prediction.predictor import Predictor
    from medfl.privacy.accounting.accountant import epsilon, noise_multiplier_for
    from medfl.privacy.accounting.charges import Charge
    from medfl.privacy.mechanism import Mechanism
    from medfl.reporting.audit_table import audit_table
    from medfl.reporting.estimates import Estimate, mean_dice
    from medfl.reporting.report import write_report
    from medfl.reporting.tables import Table
    from medfl.reporting.utility_tables import (
        dice_table,
        difference_table,
        gain,
        gains_table,
    )
    from medfl.runs.records import Summary
    from medfl.runs.results import RunResults, read_run
    from medfl.server.progress import Progress, Silent
    from medfl.study.plan import StudyPlan, plan_study
    from medfl.study.run import run_study
    from medfl.study.site_cohort import SiteCohort

# Flower reads these when it is first imported, and would otherwise call its makers' servers from
# inside a hospital. A user who wants that can set them beforehand.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

_HOME = {
    "medfl.audit.run_audit": ("Audit", "audit_run"),
    "medfl.config": ("SiteConfig", "StudyConfig", "load_site", "load_study"),
    "medfl.data.nifti.volume": ("read_volume",),
    "medfl.errors": (
        "BudgetExceeded",
        "ConfigError",
        "DataError",
        "FederationError",
        "LedgerError",
        "MedflError",
        "ModelError",
        "PolicyRefused",
        "PrivacyError",
        "ReportError",
    ),
    "medfl.phantom.hospitals": ("write_hospitals",),
    "medfl.prediction.cohort": ("predict_case",),
    "medfl.prediction.predictor": ("Predictor",),
    "medfl.privacy.accounting.accountant": ("epsilon", "noise_multiplier_for"),
    "medfl.privacy.accounting.charges": ("Charge",),
    "medfl.privacy.mechanism": ("Mechanism",),
    "medfl.reporting.audit_table": ("audit_table",),
    "medfl.reporting.estimates": ("Estimate", "mean_dice"),
    "medfl.reporting.report": ("write_report",),
    "medfl.reporting.tables": ("Table",),
    "medfl.reporting.utility_tables": ("dice_table", "difference_table", "gain", "gains_table"),
    "medfl.runs.records": ("Summary",),
    "medfl.runs.results": ("RunResults", "read_run"),
    "medfl.server.progress": ("Progress", "Silent"),
    "medfl.study.plan": ("StudyPlan", "plan_study"),
    "medfl.study.run": ("run_study",),
    "medfl.study.site_cohort": ("SiteCohort",),
}
"""Where each public name is defined."""

__all__ = [
    "Audit",
    "BudgetExceeded",
    "Charge",
    "ConfigError",
    "DataError",
    "Estimate",
    "FederationError",
    "LedgerError",
    "Mechanism",
    "MedflError",
    "ModelError",
    "PolicyRefused",
    "Predictor",
    "PrivacyError",
    "Progress",
    "ReportError",
    "RunResults",
    "Silent",
    "SiteCohort",
    "SiteConfig",
    "StudyConfig",
    "StudyPlan",
    "Summary",
    "Table",
    "__version__",
    "audit_run",
    "audit_table",
    "dice_table",
    "difference_table",
    "epsilon",
    "gain",
    "gains_table",
    "load_site",
    "load_study",
    "mean_dice",
    "noise_multiplier_for",
    "plan_study",
    "predict_case",
    "read_run",
    "read_volume",
    "run_study",
    "write_hospitals",
    "write_report",
]


def __getattr__(name: str) -> object:
    for module, names in _HOME.items():
        if name in names:
            value: object = getattr(importlib.import_module(module), name)
            globals()[name] = value  # the next time it is found without this function
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
