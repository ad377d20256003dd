"""Many faults in one product, each struck alone: the outputs that each changes, in one call."""

from __future__ import annotations

import numpy as np

from fsim.accel_models.plan import (
    P_COLS,
    P_FOLDS,
    P_N,
    P_N_TILES,
    P_OUTPUT_STATIONARY,
    P_ROWS,
)
from fsim.jit import kernel

from .replay import mark, walk


@kernel
def replay_each(a, b_t, d, clean, plan, segments, bits, tables):
    """Outputs that faults change; row f of `tables` is the only fault of run f.

    a (m, k), b_t (n, k), d (m, n), clean (m, n) int64: operands as of `replay` and the
    fault-free result; plan, segments, bits as of `replay`; tables (f, 10) int64
    Returns (run, output m * n_size + n, value), int64, of the outputs that differ from `clean`,
    in that order.
    """
    rows, cols, folds = plan[P_ROWS], plan[P_COLS], plan[P_FOLDS]
    n_tiles, n_size = plan[P_N_TILES], plan[P_N]
    size = clean.shape[0] * n_size
    # Marks are looked through eight at a time: most are 0 for most faults.
    marks = np.zeros(-(-size // 8) * 8, np.uint8)
    words = marks.view(np.int64)
    touched = marks[:size].reshape(clean.shape)
    most = max(1, segments.shape[0])
    scratch = (
        np.empty((most, 5), np.int64), np.empty((most, 7), np.int64), np.empty(most, np.int64)
    )  # fmt: skip
    space = 1024
    found = np.empty((space, 3), np.int64)
    count = 0
    for f in range(tables.shape[0]):
        table = tables[f : f + 1]
        mark(plan, segments, table, touched)
        for word in range(words.shape[0]):
            if words[word] == 0:
                continue
            for index in range(word * 8, min(word * 8 + 8, size)):
                if not marks[index]:
                    continue
                m, n = index // n_size, index % n_size
                if plan[P_OUTPUT_STATIONARY]:
                    phase, p = m // rows * n_tiles + n // cols, m % rows
                else:
                    phase, p = n // cols * folds, m
                value = walk(
                    a[m], b_t[n], d[m, n], index, plan, segments, table, bits, phase, p,
                    n % cols, scratch,
                )  # fmt: skip
                if value == clean[m, n]:
                    continue
                if count == space:
                    space *= 2
                    grown = np.empty((space, 3), np.int64)
                    grown[:count] = found
                    found = grown
                found[count, 0], found[count, 1], found[count, 2] = f, index, value
                count += 1
            words[word] = 0
    return found[:count].copy()
