"""How the commands speak of charges whose promise was too small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medfl.privacy.accounting.reassessment import Reassessment


def warning(found: Reassessment) -> str:
    """A block of lines for a person; empty where no charge is affected."""
    if not found.steps:
        return ""
    from medfl.reporting.wording import at_most, counted

    lines = [
        "",
        f"WARNING: medfl 0.1 charged {counted(found.steps, 'step')} of "
        f"{counted(len(found.runs), 'run')} here, and its promise was too small:",
        *(f"  study {study}, run {run}" for study, run in found.runs),
        f"Charged for them: epsilon {at_most(found.stated)} at delta {found.delta:g}. What holds:",
    ]
    if found.released:
        lines += [
            "  against anyone who reads the low bits of released values, as a study's server can:",
            "    no bound",
            "  against anyone who knows the values as real numbers only:",
            "    no bound" if found.bound is None else f"    epsilon <= {at_most(found.bound)}",
            "Do not rely on this budget for these patients: what it shows as left is not. Tell",
            "the person responsible for their data, ask the servers of these studies to delete the",
            "stored updates, and begin no further study on these patients until that is decided.",
            "medfl cannot call back what was released, and changes no charge.",
        ]
    else:
        lines.append("  no result of these steps was released: nothing of them has left the site.")
    return "\n".join(lines)


def as_json(found: Reassessment) -> dict[str, Any]:
    """The same as JSON types, under one key; empty where no charge is affected."""
    if not found.steps:
        return {}
    from medfl.privacy.ledger.recount import json_number

    return {
        "affected": {
            "charged_by": "medfl 0.1",
            "steps": found.steps,
            "released_steps": found.released,
            "runs": [{"study": study, "run": run} for study, run in found.runs],
            "stated_epsilon": json_number(found.stated),
            "bound_for_real_numbers": found.bound,
            "bound_for_low_bits": None if found.released else 0.0,
        }
    }
