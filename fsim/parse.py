"""Values that people write as text: faults, assignments, shapes, probabilities."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable

from .errors import ConfigError, FaultError
from .types import KINDS, Fault

_FIELDS = tuple(field.name for field in dataclasses.fields(Fault))
_TEXT_FIELDS = tuple(
    field.name for field in dataclasses.fields(Fault) if field.type.startswith("str")
)
_LIMIT = 1 << 62


def nearest(text: str, choices: Iterable[str]) -> str:
    """ "; did you mean X?" if something in `choices` is close to `text`, else ""."""
    near = difflib.get_close_matches(text, list(choices), 1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def parse_fault(text: str) -> Fault:
    """The fault that e.g. `component=c1,row=2,col=3,bit=5,kind=flip,cycle=17` stands for.

    Keys are the fields of `fsim.types.Fault`; numbers are decimal or 0x, 0o, 0b.
    FaultError names the key that is unknown, missing, given twice or no number,
    the nearest valid one, and the text it stood in.
    """
    values: dict[str, object] = {}
    for part in text.split(","):
        key, sign, value = (piece.strip() for piece in part.partition("="))
        if not sign or not value:
            raise FaultError(f"a fault must be key=value,key=value,..., got {part!r} in {text!r}")
        if key not in _FIELDS:
            raise FaultError(
                f"a key of a fault must be one of {', '.join(_FIELDS)}, got {key!r} in {text!r}"
                + nearest(key, _FIELDS)
            )
        if key in values:
            raise FaultError(f"a key of a fault must be given once, got {key} twice in {text!r}")
        values[key] = value if key in _TEXT_FIELDS else _whole(key, value, text)
    if "component" not in values:
        raise FaultError(f"a fault must name its component (component=NAME), got {text!r}")
    kind = values.get("kind", "flip")
    if kind not in KINDS:
        raise FaultError(
            f"kind of a fault must be one of {', '.join(KINDS)}, got {kind!r} in {text!r}"
            + nearest(str(kind), KINDS)
        )
    try:
        return Fault(**values)
    except FaultError as error:
        raise FaultError(f"{error} in {text!r}") from None


def _whole(key: str, value: str, text: str) -> int:
    try:
        number = int(value, 0)
    except ValueError:
        raise FaultError(
            f"{key} of a fault must be a whole number, got {value[:60]!r} in {text[:200]!r}"
        ) from None
    if not -1 <= number < _LIMIT:
        raise FaultError(
            f"{key} of a fault must be >= -1 and < 2^62, got {value[:60]} in {text[:200]!r}"
        )
    return number


def parse_assignments(items: Iterable[str]) -> dict[str, str]:
    """`["rows=8", "cols=4"]` as {"rows": "8", "cols": "4"}; ConfigError if malformed."""
    values: dict[str, str] = {}
    for item in items:
        key, sign, value = (piece.strip() for piece in item.partition("="))
        if not (key and sign and value):
            raise ConfigError(f"a setting must be KEY=VALUE, got {item!r}")
        if key in values:
            raise ConfigError(f"a setting must be given once, got {key} twice ({item!r})")
        values[key] = value
    return values


def parse_shape(text: str) -> tuple[int, int, int]:
    """`"64,576,32"` as (m, k, n), each at least 1."""
    parts = text.split(",")
    try:
        m, k, n = (int(part) for part in parts)
    except ValueError:
        raise ConfigError(
            f"the shape of a product must be three whole numbers m,k,n, got {text[:60]!r}"
        ) from None
    if min(m, k, n) < 1 or max(m, k, n) > 1 << 31:
        raise ConfigError(f"m, k and n must be from 1 to 2^31, got {text!r}")
    return m, k, n


def parse_probability(text: str) -> float:
    """A number in [0, 1]; ConfigError for anything else, nan included."""
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"a probability must be a number, got {text[:60]!r}") from None
    if not 0.0 <= value <= 1.0:  # false for nan
        raise ConfigError(f"a probability must be in [0, 1], got {text[:60]}")
    return value + 0.0  # -0.0 is 0


def parse_seconds(text: str) -> float:
    """A duration from 0 to a day, in seconds; ConfigError for anything else, nan included."""
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"a duration must be a number of seconds, got {text[:60]!r}") from None
    if not 0.0 <= value <= 86400.0:  # false for nan
        raise ConfigError(f"a duration must be from 0 to 86400 seconds, got {text[:60]}")
    return value
