"""Replay of `rram`: only folds and columns that faults touch are read bit by bit.

All other sums are integer products; the memory of partial sums adds them up in the order
of the folds, with the bit errors of its own words.
"""

from __future__ import annotations

import numpy as np

from fsim.types import T_AND, T_COL, T_COMPONENT, T_FIRST, T_OR, T_WORD, T_XOR

from .schedule import exact, fold_cycles
from .tile import IFMAP, WORD_LINE, _wrapped, acting, faulty_sums


def run(accel, a, b, d, table, out, everything):
    """Overwrite the outputs that faults touch; returns them as (m, n) bool.

    a (m, k), b (k, n), d (m, n) int64; out (m, n) int64, changed
    table       (f, 10) int64; rows of the memory "psums" strike word m_index * n + n_index
                as fold `first` stores it
    everything  all outputs
    """
    (m, k), n = a.shape, b.shape[1]
    rows, cols, length = accel.rows, accel.cols, fold_cycles(accel, m)
    stored = table[:, T_COMPONENT] == accel.component_index("psums")
    struck, table = table[stored], table[~stored]
    touched = np.zeros((m, n), bool)
    folds = -(-k // rows)
    for tile, n0 in enumerate(range(0, n, cols)):
        here = [acting(table, (tile * folds + f) * length, length) for f in range(folds)]
        width = min(cols, n - n0)
        hit = [_columns(events, width) for events in here]
        wanted = np.logical_or.reduce(hit)
        words = struck[:, T_WORD] % n - n0
        inside = (words >= 0) & (words < width)
        wanted[words[inside]] = True
        if everything:
            wanted[:] = True
        columns = np.flatnonzero(wanted)
        if not len(columns):
            continue
        total = d[:, n0 + columns].astype(np.int64)
        for f in range(folds):
            part_a = a[:, f * rows : (f + 1) * rows]
            part_b = b[f * rows : (f + 1) * rows, n0 : n0 + width]
            # An ADC that cuts off makes other sums than integers do.
            slow = columns if not exact(accel) else columns[hit[f][columns]]
            sums = _wrapped(part_a @ part_b[:, columns], accel.acc_bits)
            if len(slow):
                at = np.searchsorted(columns, slow)
                base = (tile * folds + f) * length
                sums[:, at] = faulty_sums(accel, part_a, _wide(part_b, cols), here[f], base, slow)
            total = _wrapped(total + sums, accel.acc_bits)
            _strike(total, struck[inside], columns + n0, n, f, accel.acc_bits)
        out[:, n0 + columns] = total
        touched[:, n0 + columns] = True
    return touched


def _columns(events: np.ndarray, width: int) -> np.ndarray:
    """(width,) bool: columns of a fold that some of its faults may reach."""
    component, col = events[:, T_COMPONENT], events[:, T_COL]
    found = np.zeros(width, bool)
    lines = (component == IFMAP) | (component == WORD_LINE)
    found[col[~lines & (col < width)]] = True
    if lines.any():
        found[:] = True
    return found


def _wide(b: np.ndarray, cols: int) -> np.ndarray:
    return np.pad(b, ((0, 0), (0, cols - b.shape[1])))


def _strike(total, struck, columns, n, fold, bits) -> None:
    """Bit errors of the sums that `fold` stores, in place."""
    for row in struck[struck[:, T_FIRST] == fold]:
        m, column = divmod(int(row[T_WORD]), n)
        j = int(np.searchsorted(columns, column))
        value = ((total[m, j] & row[T_AND]) | row[T_OR]) ^ row[T_XOR]
        total[m, j] = _wrapped(value, bits)
