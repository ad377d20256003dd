"""What differs, and which faults were there, in words."""

from __future__ import annotations

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.simulator.reference import first_difference
from fsim.types import FOREVER, STATE

from .check import require


def same(expected, got, what: str, source: str = "in the reference") -> None:
    """AssertionError with the first element that is not as in `source`."""
    problem = difference(expected, got, what, source)
    require(not problem, problem)


def difference(expected, got, what: str, source: str = "in the reference") -> str:
    """The first difference of two integer arrays in words; "" if there is none."""
    expected, got = np.asarray(expected), np.asarray(got)
    if expected.shape != got.shape:
        return f"{what}: shape must be {expected.shape}, got {got.shape}"
    found = first_difference(expected, got)
    if found is None:
        return ""
    index, wanted, had = found
    return f"{what}: element {list(index)} must be {wanted} as {source}, got {had}"


def in_words(accel: Accel, table: np.ndarray) -> str:
    """Faults in words, one after another."""
    found = []
    for number, row, col, word, effect, first, last, and_, or_, xor in table.tolist():
        component = accel.components[number]
        where = f"{component.name}({row},{col}{'' if word < 0 else f',{word}'})"
        when = f"cycle {first}" if effect == STATE else f"cycles {first}..{last}"
        if last == FOREVER:
            when = f"from cycle {first} on"
        found.append(f"{where} and {and_:#x} or {or_:#x} xor {xor:#x} {when}")
    return "; ".join(found)
