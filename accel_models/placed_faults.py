"""Faults for cycle-level references whose elements lie on grids and in register files.

`registers.py` serves machines with one register of each kind in every PE. Here an element
is found by (component, row, column, word), and its word may be unsigned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fsim.errors import FaultError
from fsim.types import (
    LEVEL,
    T_AND,
    T_COL,
    T_COMPONENT,
    T_EFFECT,
    T_FIRST,
    T_LAST,
    T_OR,
    T_ROW,
    T_WORD,
    T_XOR,
    wrap,
)


@dataclass(frozen=True)
class PlacedFault:
    """One row of the fault table.

    place     (component's name, row, column, word); word 0 of a single register
    net       the element stores nothing
    level     acts in every cycle of [first, last]; else once, after clock edge `first`
    unsigned  the word is not two's complement
    """

    place: tuple[str, int, int, int]
    net: bool
    level: bool
    first: int
    last: int
    and_mask: int
    or_mask: int
    xor_mask: int
    bits: int
    unsigned: bool

    def active(self, t: int) -> bool:
        """Whether the fault acts in cycle t; t = -1 is the reset state."""
        if self.level:
            return self.first <= t <= self.last
        return self.first == t >= 0

    def force(self, value: int) -> int:
        """((value & and) | or) ^ xor, reduced to the word's width."""
        forced = ((value & self.and_mask) | self.or_mask) ^ self.xor_mask
        return forced & ((1 << self.bits) - 1) if self.unsigned else wrap(forced, self.bits)


def placed_faults(accel, table: np.ndarray, unsigned=frozenset()) -> list[PlacedFault]:
    """The faults of a table with the columns T_* of `fsim.types`, in its order.

    unsigned  names of components whose words are not two's complement

    FaultError where a row names no register or net of `accel`, a place outside its grid
    or words, or a STATE fault of a net, which stores nothing.
    """
    found = []
    for number, entry in enumerate(np.asarray(table).tolist()):
        where = f"(row {number} of the fault table)"
        index = entry[T_COMPONENT]
        if not 0 <= index < len(accel.components):
            raise FaultError(
                f"component must be 0 to {len(accel.components) - 1}, got {index} {where}"
            )
        component = accel.components[index]
        if component.kind == "memory":
            raise FaultError(
                f"a cycle-level run takes faults of registers and nets, "
                f"got memory {component.name!r} {where}"
            )
        rows, cols, words = accel.grid(component)
        word = 0 if words == 1 and entry[T_WORD] == -1 else entry[T_WORD]
        row, col = entry[T_ROW], entry[T_COL]
        if not (0 <= row < rows and 0 <= col < cols and 0 <= word < words):
            raise FaultError(
                f"a fault of {component.name!r} must lie inside {rows} x {cols} places of "
                f"{words} words, got row={row}, col={col}, word={word} {where}"
            )
        level, net = entry[T_EFFECT] == LEVEL, component.kind == "net"
        if net and not level:
            raise FaultError(
                f"net {component.name!r} stores nothing and takes LEVEL faults only, "
                f"got a STATE fault {where}"
            )
        found.append(
            PlacedFault(
                (component.name, row, col, word), net, level, entry[T_FIRST], entry[T_LAST],
                entry[T_AND], entry[T_OR], entry[T_XOR], component.bits,
                component.name in unsigned,
            )
        )  # fmt: skip
    return found
