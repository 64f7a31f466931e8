"""Numbers and names as people read them.

A privacy loss is a promise, so it is rounded up and what is left of a budget is rounded down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal

from medfl.config.schedule import StudySchedule
from medfl.config.site import Modality
from medfl.reporting.estimates import Estimate
from medfl.reporting.texts import ENGLISH, Texts
from medfl.runs.records import Region, Variant
from medfl.runs.results import Guarantee

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_REGIONS: dict[Region, str] = {"TC": "region.TC", "WT": "region.WT", "ET": "region.ET"}
_MODALITIES: dict[Modality, str] = {
    "t1n": "modality.t1n",
    "t1c": "modality.t1c",
    "t2w": "modality.t2w",
    "t2f": "modality.t2f",
}
_FEDERATED: dict[Guarantee, str] = {
    "given": "variant.federated.given",
    "simulated": "variant.federated.simulated",
    "overstated": "variant.federated.overstated",
    "none": "variant.federated.none",
}
_BASELINES: dict[Variant, str] = {
    "non-private": "variant.non-private",
    "local-only": "variant.local-only",
    "alone": "variant.alone",
    "adapted": "variant.adapted",
    "pooled": "variant.pooled",
    "initial-only": "variant.initial-only",
    "threshold": "variant.threshold",
}


def variant_name(variant: Variant, *, guarantee: Guarantee, texts: Texts = ENGLISH) -> str:
    """The name of a variant in figures and tables; "private" only where it is earned."""
    return texts(_FEDERATED[guarantee] if variant == "federated" else _BASELINES[variant])


def region_name(region: Region, texts: Texts = ENGLISH) -> str:
    """``Whole tumour``."""
    return texts(_REGIONS[region])


def region_label(region: Region, texts: Texts = ENGLISH) -> str:
    """``Whole tumour (WT)``."""
    return texts("region.label", name=region_name(region, texts), code=region)


def modality_name(modality: Modality, texts: Texts = ENGLISH) -> str:
    """``T1 with contrast``."""
    return texts(_MODALITIES[modality])


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


def schedule(value: StudySchedule, texts: Texts = ENGLISH) -> str:
    """How a number changes from round to round, to stand behind it; empty where it does not."""
    warmup = texts.count("schedule.warmup", value.warmup_rounds) if value.warmup_rounds else ""
    if value.shape == "constant":
        return warmup
    way = "schedule.linear" if value.shape == "linear" else "schedule.cosine"
    return warmup + texts(way, fraction=plain(value.final_fraction))


def power(value: float) -> str:
    """A small probability as a power of ten, rounded up: ``10⁻⁵`` or ``2.5 × 10⁻⁴``."""
    return _scientific(Decimal(f"{value:.12g}"), digits=2, rounding=ROUND_CEILING)


def percent_at_most(fraction: float, texts: Texts = ENGLISH) -> str:
    """A share in per cent, rounded up and never above 100."""
    number = at_most(min(100.0, 100 * fraction))
    shown = number.rstrip("0").rstrip(".") if "." in number else number
    return texts("number.percent", number=shown)


def dice(value: float) -> str:
    """A Dice score with two decimals: patients are too few for more."""
    return f"{value:.2f}"


def dice_estimate(value: Estimate, texts: Texts = ENGLISH) -> str:
    """``0.71 (0.66 to 0.75)``."""
    return _interval(value, dice, texts)


def difference_estimate(value: Estimate, texts: Texts = ENGLISH) -> str:
    """``+0.03 (−0.01 to +0.06)``."""
    return _interval(value, signed, texts)


def millimetres(value: float) -> str:
    """A distance with two significant digits."""
    return significant(value, digits=2)


def millimetre_estimate(value: Estimate, texts: Texts = ENGLISH) -> str:
    """``5.2 (3.1 to 9.0)`` in mm."""
    return _interval(value, millimetres, texts)


def shortened(name: str, *, length: int = 16) -> str:
    """A name that fits a figure; tables give it in full."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def counted(count: int, singular: str, plural: str = "") -> str:
    """``1 site``, ``4 sites``: for commands, which speak English."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def signed(value: float) -> str:
    """A difference with two decimals and its sign."""
    text = f"{value:+.2f}".replace("-", "−")
    return "0.00" if text in ("+0.00", "−0.00") else text


def _interval(value: Estimate, show: Callable[[float], str], texts: Texts) -> str:
    shown = {"value": value.value, "low": value.low, "high": value.high}
    return texts("number.interval", **{name: show(number) for name, number in shown.items()})


def _scientific(value: Decimal, *, digits: int, rounding: str) -> str:
    exponent = value.adjusted()
    mantissa = value.scaleb(-exponent).quantize(Decimal(1).scaleb(1 - digits), rounding=rounding)
    if mantissa.adjusted() > 0:
        mantissa, exponent = mantissa.scaleb(-1), exponent + 1
    ten = f"10{str(exponent).translate(_SUPERSCRIPT)}"
    plain = format(mantissa.normalize(), "f")
    return ten if plain == "1" else f"{plain} × {ten}"
