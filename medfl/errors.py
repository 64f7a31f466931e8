"""Every failure that medfl raises on purpose.

Drawn as a tree; `code` is all that may leave a site (the text stays local)::

    MedflError                    internal
    ├── ConfigError               config            a TOML file breaks a rule
    ├── DataError                 data              a cohort cannot be used
    ├── ModelError                model             a network or a checkpoint cannot be used
    ├── PrivacyError              privacy
    │   ├── BudgetExceeded        budget-exceeded   the ledger refuses to overspend
    │   ├── PolicyRefused         policy-*          the proposal is weaker than the site's policy
    │   ├── LedgerError           ledger            missing, damaged, edited or restored ledger
    │   ├── PermitExhausted       permit-exhausted  a noisy step without a charge
    │   └── SecureSumRefused      secure-sum-*      a site was asked for what could single it out
    ├── FederationError           federation
    │   ├── MessageError          message-*         a record is malformed
    │   ├── QuorumError           quorum            too few usable sites
    │   └── SecureSumError        secure-sum-*      no sum, or a contribution that is no part of it
    ├── ReportError               report            a run folder cannot be read
    │   └── PdfUnavailable        report-pdf        nothing here can print a report
    └── Interrupted               stopped           somebody stopped the command
"""

from __future__ import annotations

from typing import ClassVar


class MedflError(Exception):
    """Base of all domain failures.

    Args:
        message: One sentence for the person at this machine: what was expected and what was found.
            It may name local files and therefore never leaves the site.
        code: The word that may leave the site; the class's own by default.
    """

    default_code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code or self.default_code


class ConfigError(MedflError):
    """A configuration file breaks a rule; the message names file, key, rule and value."""

    default_code = "config"


class DataError(MedflError):
    """A cohort, case or image cannot be used as the configuration says."""

    default_code = "data"


class ModelError(MedflError):
    """A network or checkpoint cannot be used here."""

    default_code = "model"


class PrivacyError(MedflError):
    """The promised privacy could not be kept, so nothing was computed."""

    default_code = "privacy"


class BudgetExceeded(PrivacyError):
    """The charge would take the cohort beyond its lifetime budget."""

    default_code = "budget-exceeded"


class PolicyRefused(PrivacyError):
    """The server proposed something weaker than the site's own policy."""

    default_code = "policy"


class LedgerError(PrivacyError):
    """The ledger is missing, damaged, edited or older than its head."""

    default_code = "ledger"


class PermitExhausted(PrivacyError):
    """A noisy step was attempted that no charge covers."""

    default_code = "permit-exhausted"


class SecureSumRefused(PrivacyError):
    """A site was asked for what could show one site's contribution to a secure sum."""

    default_code = "secure-sum"


class FederationError(MedflError):
    """A round or a run cannot go on."""

    default_code = "federation"


class MessageError(FederationError):
    """A message between server and site breaks its schema."""

    default_code = "message"


class QuorumError(FederationError):
    """Fewer usable sites than the study demands."""

    default_code = "quorum"


class SecureSumError(FederationError):
    """A message of a secure sum cannot be used, or the round has no sum."""

    default_code = "secure-sum"


class ReportError(MedflError):
    """A run folder is incomplete or damaged."""

    default_code = "report"


class PdfUnavailable(ReportError):
    """What prints a report is not installed; the report itself was written."""

    default_code = "report-pdf"


class Interrupted(MedflError):
    """Somebody stopped a command, which has put everything in order since."""

    default_code = "stopped"
