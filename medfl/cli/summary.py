"""A run in a few figures, when it has ended."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from medfl.runs.records import Summary


def print_summary(summary: Summary) -> None:
    """What every site has spent and, where scores leave the sites, how good the models are."""
    console = Console()
    table = Table(title=f"Study {summary.study}: {summary.minutes:.1f} minutes")
    regions = sorted({name for dice in summary.dice.values() for name in dice})
    for name in ("", "epsilon spent / budget", *(f"Dice {region}" for region in regions)):
        table.add_column(name, justify="left" if not name else "right")
    of_site = summary.dice_by_site.get("federated", {})
    for name, spent in summary.sites.items():
        dice = [_dice(of_site.get(name, {}).get(region)) for region in regions]
        table.add_row(name, f"{spent.epsilon:.2f} / {spent.budget:g}", *dice)
    table.add_section()
    for variant, dice_of in summary.dice.items():
        table.add_row(f"all, {variant}", "", *[_dice(dice_of.get(region)) for region in regions])
    console.print(table)
    for name, code in summary.idle.items():
        console.print(
            f"{name} took part in NO round of this run, most often with the code {code!r}: nothing "
            "of its patients is in the model.",
            style="bold red",
        )
    for name, missed in summary.absent.items():
        console.print(f"{name} took no part in {missed}.", style="bold red", markup=False)
    for name, code in summary.undelivered.items():
        console.print(
            f"{name} does not have the final model (code {code!r}). The same command with --resume "
            "sends it again; nothing is trained or charged for it.",
            style="bold",
        )


def _dice(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
