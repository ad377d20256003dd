"""What the compiled simulations of every family share outside their kernels.

A kernel walks the array PE by PE: data only ever flow right and down, so a PE
can be run through a whole phase on the recorded streams of its left and upper
neighbours, with its registers in local variables. Two things follow, and both
are exact:

* a PE that no fault can reach need not be run, its streams are known;
* a phase that no fault can reach need not be run either, its results are those
  of integer arithmetic.

This module holds the plain part: faults sorted by PE, and the arithmetic.
"""

from __future__ import annotations

import numpy as np

from fsim.errors import FaultError
from fsim.types import (
    LEVEL,
    STATE,
    T_AND,
    T_COL,
    T_COMPONENT,
    T_EFFECT,
    T_FIRST,
    T_LAST,
    T_OR,
    T_ROW,
    T_XOR,
)

# Columns of the table kernels take: one row a fault, sorted by PE.
E_SLOT, E_FIRST, E_LAST, E_AND, E_OR, E_XOR, E_BITS, E_ROW, E_COL = range(9)

NET = -1
"""E_SLOT of a fault on the product net; registers have slots from 0."""


def faults_by_pe(
    accel, table: np.ndarray, slots: dict[str, int], cycles: int
) -> tuple[np.ndarray, np.ndarray]:
    """A fault table as kernels want it.

    table   (f, 10) int64, columns T_*
    slots   register name -> slot in the kernel's state vector
    cycles  length of the schedule; faults that would act only later are left out

    Returns events (f, 9) int64 with the columns E_*, sorted by PE and in table
    order within one PE, and start (rows*cols + 1,) int64: the events of PE (i, j)
    are events[start[i*cols + j] : start[i*cols + j + 1]].

    FaultError if a row is outside the array, on a memory, or a `state` fault
    on a net.
    """
    table = np.asarray(table, np.int64).reshape(-1, 10)
    events = np.empty((len(table), 9), np.int64)
    for e, row in enumerate(table):
        index = int(row[T_COMPONENT])
        if not 0 <= index < len(accel.components):
            raise FaultError(
                f"component must be in [0, {len(accel.components) - 1}], got {index} "
                f"(fault row {e}, accelerator {accel.name!r})"
            )
        component = accel.components[index]
        if component.kind == "memory":
            raise FaultError(
                f"backend tile serves registers and nets, got the memory "
                f"{component.name!r} (fault row {e})"
            )
        effect = int(row[T_EFFECT])
        if effect not in (STATE, LEVEL) or (component.kind == "net" and effect == STATE):
            raise FaultError(
                f"a net takes level faults, a register state or level faults, got effect "
                f"{effect} on {component.name!r} (fault row {e})"
            )
        if not (0 <= row[T_ROW] < accel.rows and 0 <= row[T_COL] < accel.cols):
            raise FaultError(
                f"a fault must lie in the {accel.rows}x{accel.cols} array, got PE "
                f"({row[T_ROW]}, {row[T_COL]}) (fault row {e}, component {component.name!r})"
            )
        events[e] = (
            slots.get(component.name, NET),
            max(row[T_FIRST], -1),  # nothing lies before the reset state
            row[T_FIRST] if effect == STATE else row[T_LAST],
            row[T_AND],
            row[T_OR],
            row[T_XOR],
            component.bits,
            row[T_ROW],
            row[T_COL],
        )
    # A state fault acts after a clock edge, and there is none before cycle 0.
    acts = (table[:, T_EFFECT] == LEVEL) | (table[:, T_FIRST] >= 0)
    acts &= table[:, T_FIRST] < cycles
    events = events[acts]
    pe = events[:, E_ROW] * accel.cols + events[:, E_COL]
    order = np.argsort(pe, kind="stable")
    start = np.searchsorted(pe[order], np.arange(accel.rows * accel.cols + 1))
    return np.ascontiguousarray(events[order]), start.astype(np.int64)


def active_columns(accel, events: np.ndarray, spreading: tuple[int, ...]) -> np.ndarray:
    """Columns that a fault can reach, ascending, int64.

    A fault stays in its column unless its slot is in `spreading`: registers
    that hand their value to the right reach all columns from theirs on.
    """
    reached = np.zeros(accel.cols, bool)
    for event in events:
        j = event[E_COL]
        if event[E_SLOT] in spreading:
            reached[j:] = True
        else:
            reached[j] = True
    return np.flatnonzero(reached).astype(np.int64)


def active_pes(accel, events, rightwards: tuple[int, ...], downwards: tuple[int, ...]):
    """PEs that a fault can reach where no partial sums travel (output stationary).

    Returns (p, 4) int64 in row-major order: row, column, whether the left and
    whether the upper neighbour is among them.
    """
    reached = np.zeros((accel.rows, accel.cols), bool)
    for event in events:
        i, j = event[E_ROW], event[E_COL]
        reached[i, j] = True
        if event[E_SLOT] in rightwards:
            reached[i, j:] = True
        if event[E_SLOT] in downwards:
            reached[i:, j] = True
    i, j = np.nonzero(reached)
    pes = np.empty((len(i), 4), np.int64)
    pes[:, 0], pes[:, 1] = i, j
    pes[:, 2] = reached[i, j - 1] & (j > 0)
    pes[:, 3] = reached[i - 1, j] & (i > 0)
    return pes


def every_pe(accel) -> np.ndarray:
    """All PEs in the form of `active_pes`."""
    i, j = np.divmod(np.arange(accel.rows * accel.cols, dtype=np.int64), accel.cols)
    return np.stack([i, j, j > 0, i > 0], axis=1).astype(np.int64)


def last_cycle(events: np.ndarray) -> int:
    """Last cycle in which any fault acts; -2 without faults, FOREVER if one stays."""
    return int(events[:, E_LAST].max()) if len(events) else -2


def wrap_array(values: np.ndarray, bits: int) -> np.ndarray:
    """int64 values reduced to `bits` (2 to 64) bits of two's complement."""
    shift = np.int64(64 - bits)
    return (values << shift) >> shift


def pad(x: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """`x` in the upper left of a C-contiguous (rows, cols) int64 array of zeros."""
    out = np.zeros((rows, cols), np.int64)
    out[: x.shape[0], : x.shape[1]] = x
    return out


def ceil_to(value: int, step: int) -> int:
    """`value` rounded up to a multiple of `step`."""
    return -(-value // step) * step


def _peak(x: np.ndarray) -> int:
    """Largest magnitude in `x`, 0 if it is empty."""
    return max(-int(x.min()), int(x.max()), 0) if x.size else 0


def product_sums(accel, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(m, k) x (k, n) int64 codes -> (m, n) int64: sums of products of product_bits.

    Not reduced to acc_bits. float64 BLAS where every partial sum stays below
    2^53 and is therefore exact in any order.
    """
    peak = _peak(a) * _peak(b)
    if peak > (1 << (accel.product_bits - 1)) - 1:
        out = np.zeros((a.shape[0], b.shape[1]), np.int64)
        for k in range(a.shape[1]):
            out += wrap_array(np.multiply.outer(a[:, k], b[k]), accel.product_bits)
        return out
    if peak * a.shape[1] <= 1 << 53:
        return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)
    return a @ b


def golden(accel, a: np.ndarray, b: np.ndarray, d: np.ndarray | None) -> np.ndarray:
    """A x B + D reduced to acc_bits: what a wrapping machine gives without faults."""
    sums = product_sums(accel, a, b)
    return wrap_array(sums if d is None else sums + d, accel.acc_bits)


def never_saturates(accel, a: np.ndarray, b: np.ndarray, d: np.ndarray | None) -> bool:
    """Whether bounds prove that no partial sum, in any order, leaves acc_bits."""
    bound = _peak(a) * _peak(b) * a.shape[1] + (0 if d is None else _peak(d))
    return bound <= (1 << (accel.acc_bits - 1)) - 1
