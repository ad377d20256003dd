"""Replay of `fpga`: walk the outputs whose PE, row or column a fault can reach."""

from __future__ import annotations

import numpy as np

from fsim.types import (
    STATE,
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
)

from .schedule import fold_cycles
from .tile import FILTER, IFMAP, MUL_LUT, numbers, tables, walk_outputs

_FAR = 1 << 60  # beyond any schedule


def run(accel, a, b, d, table, out, everything):
    """Overwrite the outputs that faults touch; returns them as (m, n) bool.

    a (m, k), b (k, n), d (m, n) int64; out (m, n) int64, changed
    table       (f, 10) int64; rows of the memory "psums" strike word m_index * n + n_index
    everything  all outputs
    """
    stored = table[:, T_COMPONENT] == accel.component_index("psums")
    struck, table = table[stored], table[~stored]
    (m, k), n = a.shape, b.shape[1]
    touched = _touched(accel, table, m, k, n)
    touched.reshape(-1)[struck[:, T_WORD]] = True
    if everything:
        touched[:] = True
    result = np.ascontiguousarray(out)
    walk_outputs(
        np.ascontiguousarray(a), np.ascontiguousarray(b.T), np.ascontiguousarray(d),
        _ordered(table), numbers(accel), *tables(accel), touched, result,
    )  # fmt: skip
    spare = 64 - accel.acc_bits
    for row in struck:
        at = divmod(int(row[T_WORD]), n)
        value = ((result[at] & row[T_AND]) | row[T_OR]) ^ row[T_XOR]
        result[at] = (value << spare) >> spare
    if result is not out:
        out[...] = result
    return touched


def _ordered(table: np.ndarray) -> np.ndarray:
    """Rows as they act in a cycle: faults of tables last, there STATE first and by cycle."""
    of_tables = table[:, T_COMPONENT] >= MUL_LUT
    level = of_tables & (table[:, T_EFFECT] != STATE)
    time = np.where(of_tables & ~level, table[:, T_FIRST], 0)
    return np.ascontiguousarray(table[np.lexsort((time, level, of_tables))])


def _touched(accel, table, m, k, n) -> np.ndarray:
    """(m, n) bool: outputs that some fault may reach."""
    rows, cols, length = accel.rows, accel.cols, fold_cycles(accel, k)
    height, width = -(-m // rows), -(-n // cols)
    found = np.zeros((height, rows, width, cols), bool)
    folds = np.arange(height * width).reshape(height, width)
    scrub = accel.parameters["scrub_cycles"]
    for row in table.tolist():
        component, i, j = row[T_COMPONENT], row[T_ROW], row[T_COL]
        first, last = row[T_FIRST], min(row[T_LAST], _FAR)
        if component >= MUL_LUT and row[T_EFFECT] == STATE:
            last = (first // scrub + 1) * scrub if scrub else _FAR
        # A fold's first words are latched by the last edge of the fold before.
        hit = (folds * length <= last + 1) & ((folds + 1) * length > first)
        height_of = slice(i, None) if component == FILTER else slice(i, i + 1)
        width_of = slice(j, None) if component == IFMAP else slice(j, j + 1)
        found[:, height_of, :, width_of] |= hit[:, None, :, None]
    return np.ascontiguousarray(found.reshape(height * rows, width * cols)[:m, :n])
