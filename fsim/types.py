"""The values every layer shares: a fault as data, and arithmetic of fixed width.

This module depends on numpy alone; everything else may import it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import FaultError

STATE = 0
"""Effect of a fault applied once to the stored value, after clock edge `first`.
The value carries it until it is overwritten (a single-event upset)."""

LEVEL = 1
"""Effect of a fault applied to the element's output in every cycle of
[`first`, `last`]; what a register recirculates stays forced (stuck-at,
intermittent contact, transient on a net)."""

EFFECTS = ("state", "level")

FOREVER = np.iinfo(np.int64).max
"""`last` of a permanent fault. Its `first` is -1: the reset state is forced too."""

FAULT = np.dtype(
    [
        ("trial", "<i8"),  # index of the trial the row belongs to
        ("event", "<i8"),  # index of the physical event in the trial (an MCU is several rows)
        ("image", "<i4"),  # index of the image in the run; -1: every image
        ("layer", "<i4"),  # index of the operation in the program; -1 in a single GEMM
        ("call", "<i4"),  # which use of a shared module; 0 for the first
        ("component", "<i4"),  # index into the machine's component table
        ("row", "<i4"),  # PE row; -1 where the component has no rows
        ("col", "<i4"),  # PE column; -1 where the component has no columns
        ("word", "<i8"),  # address in a memory; -1 for registers and nets
        ("effect", "<i4"),  # STATE or LEVEL
        ("first", "<i8"),  # cycle (registers) or residency (memories, see docs) it starts at
        ("last", "<i8"),  # last cycle of a LEVEL fault; equals `first` for STATE
        ("and_mask", "<i8"),
        ("or_mask", "<i8"),
        ("xor_mask", "<i8"),
    ]
)
"""One row a fault: value' = wrap(((value & and) | or) ^ xor, width)."""

# Columns of the plain int64 table that kernels and cycle models take.
T_COMPONENT, T_ROW, T_COL, T_WORD, T_EFFECT, T_FIRST, T_LAST, T_AND, T_OR, T_XOR = range(10)
_TABLE_FIELDS = (
    "component",
    "row",
    "col",
    "word",
    "effect",
    "first",
    "last",
    "and_mask",
    "or_mask",
    "xor_mask",
)


def fault_table(rows: np.ndarray) -> np.ndarray:
    """FAULT rows as a C-contiguous (f, 10) int64 table with the columns T_*.

    The order of rows is kept: where several faults meet on one element in one
    cycle they act in this order.
    """
    table = np.empty((len(rows), len(_TABLE_FIELDS)), np.int64)
    for i, field in enumerate(_TABLE_FIELDS):
        table[:, i] = rows[field]
    return table


def wrap(value: int, bits: int) -> int:
    """`value` reduced to `bits` bits of two's complement; 1 bit is unsigned.

    The plain-Python definition; kernels have their own and tests compare them.
    """
    value &= (1 << bits) - 1
    if bits > 1 and value >> (bits - 1):
        value -= 1 << bits
    return value


KINDS = ("flip", "stuck0", "stuck1")


@dataclass(frozen=True)
class Fault:
    """One fault on a named component, as a person writes it.

    component  name in the machine's component table (`fsim accel show NAME`)
    row, col   PE coordinates, from 0
    bit        bit position, 0 is least significant; or
    mask       several bits at once (a multi-bit upset)
    kind       "flip", "stuck0" or "stuck1"
    cycle      flip: the clock edge after which the stored bit is inverted (on a
               combinational net: the one cycle in which it is inverted).
               stuck: first cycle; None means permanent from reset on
    last       stuck: last cycle of an intermittent fault; None means for ever.
               flip: if given, the bit is inverted in every cycle of [cycle, last]
    word       address in a memory component
    image      index of the image; None means every image
    layer      name of the layer, in a network; None means every layer
    """

    component: str
    row: int = 0
    col: int = 0
    bit: int | None = None
    mask: int | None = None
    kind: str = "flip"
    cycle: int | None = None
    last: int | None = None
    word: int | None = None
    image: int | None = None
    layer: str | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise FaultError(f"fault kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if (self.bit is None) == (self.mask is None):
            raise FaultError(
                f"a fault needs either bit= or mask=, got bit={self.bit}, mask={self.mask} "
                f"(component {self.component!r})"
            )


@dataclass(frozen=True)
class Component:
    """One kind of storage element or net of a machine.

    name      the machine's own (RTL) name
    bits      width of one word; 1-bit words are unsigned, others two's complement
    kind      "register" (holds a value, takes STATE and LEVEL faults),
              "net" (combinational, LEVEL faults only) or "memory" (words, not PEs)
    role      "ifmap", "filter", "product", "psum", "control": what it carries
    backends  which backends serve faults in it, from "reference", "tile", "replay"
    about     one line for `fsim accel show`
    grid      (rows, columns) of such elements, where that is not one in every PE
    words     of a register file in each place of the grid; a fault's `word` then is
              the one it strikes, and -1 where there is one word only
    shared    rows of the grid that share one element: rows r to r + shared - 1 are the
              same one if r is a multiple of it
    """

    name: str
    bits: int
    kind: str
    role: str
    backends: tuple[str, ...]
    about: str
    grid: tuple[int, int] | None = None
    words: int = 1
    shared: int = 1
