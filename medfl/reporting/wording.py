"""Numbers and names as people read them.

A privacy loss is a promise, so it is rounded up and what is left of a budget is rounded down.
"""

from __future__ import annotations

import math
from datetime import datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal

from medfl.config.schedule import StudySchedule
from medfl.reporting.estimates import Estimate
from medfl.runs.records import Region, Variant
from medfl.runs.results import Guarantee

REGION_NAMES: dict[Region, str] = {
    "TC": "Tumour core",
    "WT": "Whole tumour",
    "ET": "Enhancing tumour",
}
MODALITY_NAMES = {"t1n": "T1", "t1c": "T1 with contrast", "t2w": "T2", "t2f": "FLAIR"}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
_SPACE = "\u202f"  # narrow and unbreakable, between a number and its unit


def variant_name(variant: Variant, *, guarantee: Guarantee) -> str:
    """The name of a variant in figures and tables; "private" only where it is earned."""
    federated: dict[Guarantee, str] = {
        "given": "Federated, private",
        "simulated": "Federated, simulated noise",
        "overstated": "Federated, noise of medfl 0.1",
        "none": "Federated, without privacy",
    }
    names: dict[Variant, str] = {
        "federated": federated[guarantee],
        "non-private": "Federated, no noise",
        "local-only": "Each site alone, with noise",
        "alone": "Each site alone, no noise",
        "adapted": "Federated, adapted at home",
        "pooled": "All patients in one place, no noise",
        "initial-only": "Starting model",
        "threshold": "Brightness threshold",
    }
    return names[variant]


def significant(value: float, *, digits: int = 3, rounding: str = ROUND_HALF_EVEN) -> str:
    """`value` with so many significant digits, thousands separated; small ones as powers of ten."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    exact = Decimal(f"{value:.12g}")  # 5.8, where a sum of floats left 5.800000000000001
    if not -3 <= exact.adjusted() < 7:
        return _scientific(exact, digits=digits, rounding=rounding)
    rounded = exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), rounding=rounding)
    places = max(0, digits - 1 - rounded.adjusted())
    return f"{rounded:,.{places}f}".replace("-", "−")


def at_most(value: float) -> str:
    """An upper bound with three significant digits, rounded up."""
    return significant(value, rounding=ROUND_CEILING)


def at_least(value: float) -> str:
    """A lower bound with three significant digits, rounded down."""
    return significant(value, rounding=ROUND_FLOOR)


def plain(value: float) -> str:
    """A configured number as a person would type it."""
    return f"{value:.6g}"


def schedule(value: StudySchedule) -> str:
    """How a number changes from round to round, to stand behind it; empty where it does not."""
    warmup = (
        f" after {counted(value.warmup_rounds, 'round')} of warm-up" if value.warmup_rounds else ""
    )
    if value.shape == "constant":
        return warmup
    way = "linearly" if value.shape == "linear" else "as a cosine"
    return f"{warmup}, falling {way} to {plain(value.final_fraction)} of it in the last round"


def power(value: float) -> str:
    """A small probability as a power of ten, rounded up: ``10⁻⁵`` or ``2.5 × 10⁻⁴``."""
    return _scientific(Decimal(f"{value:.12g}"), digits=2, rounding=ROUND_CEILING)


def percent_at_most(fraction: float) -> str:
    """A share in per cent, rounded up and never above 100."""
    number = at_most(min(100.0, 100 * fraction))
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number}{_SPACE}%"


def dice(value: float) -> str:
    """A Dice score with two decimals: patients are too few for more."""
    return f"{value:.2f}"


def dice_estimate(value: Estimate) -> str:
    """``0.71 (0.66 to 0.75)``."""
    return f"{dice(value.value)} ({dice(value.low)} to {dice(value.high)})"


def difference_estimate(value: Estimate) -> str:
    """``+0.03 (−0.01 to +0.06)``."""
    shown = (signed(number) for number in (value.value, value.low, value.high))
    return "{} ({} to {})".format(*shown)


def millimetres(value: float) -> str:
    """A distance with two significant digits."""
    return significant(value, digits=2)


def millimetre_estimate(value: Estimate) -> str:
    """``5.2 (3.1 to 9.0)`` in mm."""
    return "{} ({} to {})".format(*map(millimetres, (value.value, value.low, value.high)))


def listing(names: list[str]) -> str:
    """``A``, ``A and B``, ``A, B and C``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def shortened(name: str, *, length: int = 16) -> str:
    """A name that fits a figure; tables give it in full."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def counted(count: int, singular: str, plural: str = "") -> str:
    """``1 site``, ``4 sites``."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def day(moment: datetime) -> str:
    """``31 January 2026``, in English whatever the machine's language."""
    return f"{moment.day} {_MONTHS[moment.month - 1]} {moment.year}"


def signed(value: float) -> str:
    """A difference with two decimals and its sign."""
    text = f"{value:+.2f}".replace("-", "−")
    return "0.00" if text in ("+0.00", "−0.00") else text


def _scientific(value: Decimal, *, digits: int, rounding: str) -> str:
    exponent = value.adjusted()
    mantissa = value.scaleb(-exponent).quantize(Decimal(1).scaleb(1 - digits), rounding=rounding)
    if mantissa.adjusted() > 0:
        mantissa, exponent = mantissa.scaleb(-1), exponent + 1
    ten = f"10{str(exponent).translate(_SUPERSCRIPT)}"
    plain = format(mantissa.normalize(), "f")
    return ten if plain == "1" else f"{plain} × {ten}"
