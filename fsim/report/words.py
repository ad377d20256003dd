"""Numbers as a page shows them: never a share without what is known about it."""

from __future__ import annotations

import math

METRICS = {
    "sdc_critical": "critical SDC",
    "sdc": "any SDC",
    "sdc_benign": "benign SDC",
    "masked": "masked",
    "due": "detected",
    "hang": "hang",
    "corrected": "corrected",
}
"""Metric or outcome -> its short name."""

FAULTS = {
    "seu": "single-event upsets: one bit of one register in one cycle",
    "mbu": "upsets of two adjacent bits of one register in one cycle",
    "transient": "transients: one bit of a product net in one cycle",
    "intermittent": "intermittent faults: one bit of a register or net stuck for some cycles",
    "stuck0": "one bit of a register or net stuck at 0 for good",
    "stuck1": "one bit of a register or net stuck at 1 for good",
}
"""Kinds of single faults in words."""

_UNIT = "\u00a0%"  # a line does not end between a number and its unit


def percent(value: float | None, digits: int = 2) -> str:
    """0.000314 -> "0.031 %": so many digits that count, and never more than are honest."""
    if value is None or math.isnan(value):
        return "unknown"
    value *= 100
    if value == 0:
        return f"0{_UNIT}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value)) + 1e-9))
    places = min(places, 2) if abs(value) >= 1 else min(places, 9)
    return f"{value:.{places}f}{_UNIT}"


def estimate(found: dict) -> str:
    """The estimate of an interval, no finer than the interval lets it be known."""
    return _fixed(found["estimate"], _places(found))


def bounds(found: dict) -> str:
    """The limits of an interval: "0.024 – 0.092 %"."""
    low, high = (_fixed(found[end], _places(found)) for end in ("low", "high"))
    return f"{low.removesuffix(_UNIT)} – {high}"


def share(found: dict) -> str:
    """An interval with its estimate: "0.050 % (0.024 – 0.092 %)"."""
    return f"{estimate(found)} ({bounds(found)})"


def _places(found: dict) -> int:
    """Decimals at which the width of an interval has two digits that count."""
    ends = [found[end] for end in ("low", "high")]
    if None in ends or ends[1] <= ends[0]:
        return 2
    return min(9, max(0, 1 - math.floor(math.log10(100 * (ends[1] - ends[0])) + 1e-9)))


def _fixed(value: float | None, places: int) -> str:
    if value is None or math.isnan(value):
        return "unknown"
    return f"0{_UNIT}" if value == 0 else f"{100 * value:.{places}f}{_UNIT}"


def count(value: int) -> str:
    """12800 -> "12,800"."""
    return f"{value:,}"


def capital(text: str) -> str:
    """The first letter in upper case, the others as they are."""
    return text[:1].upper() + text[1:]


def number(value: float | None, digits: int = 3) -> str:
    """A rate or another number without a unit."""
    return "unknown" if value is None else f"{value:.{digits}g}"


def plural(n: int, what: str) -> str:
    """1 -> "1 trial", 2 -> "2 trials"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"
