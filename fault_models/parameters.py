"""Parameters of fault models: fields of their classes, with a line on each.

A fault model that has a name (`families.py`) is a frozen dataclass whose fields are numbers or
text; `parameter` declares one. From these declarations come the help, the checks of what people
write, and the JSON values in a trace.
"""

from __future__ import annotations

import dataclasses
import math

from fsim.errors import FaultError

_MUST = object()


def parameter(about: str, default=_MUST):
    """A field of a fault model; without a default it must be given."""
    if default is _MUST:
        return dataclasses.field(metadata={"about": about})
    return dataclasses.field(default=default, metadata={"about": about})


def within(value, low: float, high: float, what: str, *, strict: bool = False) -> float:
    """`value` if it is a finite number in [low, high] (strict: (low, high)); FaultError else."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    good = good and math.isfinite(value)
    if not good or not (low < value < high if strict else low <= value <= high):
        interval = f"({low:g}, {high:g})" if strict else f"[{low:g}, {high:g}]"
        raise FaultError(f"{what} must be a number in {interval}, got {value!r}")
    return value


def one_of(value, choices, what: str):
    """`value` if it is among the choices; FaultError otherwise."""
    if value not in choices:
        raise FaultError(f"{what} must be one of {', '.join(choices)}, got {value!r}")
    return value


def kind_of(field: dataclasses.Field, where: str) -> type:
    """int, float or str, as the field is declared; FaultError if it is none of them."""
    named = getattr(field.type, "__name__", field.type)  # text under postponed annotations
    kind = {"int": int, "float": float, "str": str}.get(named)
    if kind is None:
        raise FaultError(f"{field.name} of {where} must be declared int, float or str, got {named}")
    return kind


def read_value(field: dataclasses.Field, value, where: str):
    """A parameter's value from text or JSON, of the type that its field has."""
    kind = kind_of(field, where)
    if kind is str and isinstance(value, str):
        return value
    good = isinstance(value, (int, float, str)) and not isinstance(value, bool) and kind is not str
    try:
        if good:
            return kind(value) if not isinstance(value, float) or kind is float else _whole(value)
    except (ValueError, OverflowError):
        pass
    said = {int: "a whole number", float: "a number", str: "text"}[kind]
    raise FaultError(f"{field.name} of {where} must be {said}, got {str(value)[:60]!r}")


def _whole(value: float) -> int:
    if value != int(value):
        raise ValueError
    return int(value)
