"""Checks of a model's parameters: one line, what must hold and what was got."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real

from fsim.errors import ConfigError
from fsim.parse import nearest


def _shown(value: object) -> str:
    return repr(value)[:80]


def probability(name: str, value: object) -> float:
    """`value` as a float in [0, 1]; bool and nan are none."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name} must be a number in [0, 1], got {_shown(value)}")
    return float(value) + 0.0  # -0.0 is 0


def at_least(name: str, value: object, low: float) -> float:
    """`value` as a finite float >= low."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or value < low:
        raise ConfigError(f"{name} must be a finite number >= {low:g}, got {_shown(value)}")
    return float(value)


def between(name: str, value: object, low: float, high: float) -> float:
    """`value` as a float with low < value < high."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not low < value < high:
        raise ConfigError(f"{name} must be a number in ({low:g}, {high:g}), got {_shown(value)}")
    return float(value)


def whole(name: str, value: object, low: int, high: int) -> int:
    """`value` as an int with low <= value <= high."""
    integral = isinstance(value, Integral) and not isinstance(value, bool)
    if not integral or not low <= value <= high:
        raise ConfigError(f"{name} must be a whole number in {low}..{high}, got {_shown(value)}")
    return int(value)


def choice(name: str, value: object, choices: Iterable[str]) -> str:
    """`value`, which must be one of the texts `choices`."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        near = nearest(value, choices) if isinstance(value, str) else ""
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {_shown(value)}{near}")
    return value
