"""Many faults in one product, each struck alone, simulated cycle by cycle in one compiled call.

The simulation is that of `tile.py`, output stationary; here is only what a caller in Python
would do around it for every fault: find the PEs that the fault can reach, start at the
boundary before it, compare, put back what it changed.
"""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel
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
    T_XOR,
)

from ..span import (
    E_AND,
    E_BITS,
    E_COL,
    E_FIRST,
    E_LAST,
    E_OR,
    E_ROW,
    E_SLOT,
    E_XOR,
    ceil_to,
    faults_by_pe,
    golden,
    never_saturates,
    pad,
)
from .tile import MOVING, PSUM, STILL, _output_stationary, force


@kernel
def _each(a, bt, d, clean, shape, widths, slots, bits, table, cycles, waves, port):
    """(run, output, value) of outputs that differ from `clean`, one fault of `table` a run.

    a, bt, d, clean  padded as `_output_stationary` takes them; shape (rows, cols, m, n)
    slots, bits      (components,) int64: slot of the state vector (-1: net), width
    waves, port      of size 0
    """
    rows, cols, m, n = shape[0], shape[1], shape[2], shape[3]
    n_folds = bt.shape[0] // cols
    length = a.shape[1] + rows + cols - 2
    folds = cycles // length
    out = clean.copy()
    state = np.zeros((rows, cols, 3), np.int64)
    event = np.empty((1, 9), np.int64)
    pe_start = np.zeros(rows * cols + 1, np.int64)
    all_pes = np.empty((rows + cols, 4), np.int64)
    span = np.empty(2, np.int64)
    found = np.empty((max(16, 4 * table.shape[0]), 3), np.int64)
    count = 0
    for f in range(table.shape[0]):
        level = table[f, T_EFFECT] == LEVEL
        first = max(table[f, T_FIRST], -1)
        # A state fault acts after a clock edge, and there is none before cycle 0.
        if first >= cycles or (not level and table[f, T_FIRST] < 0):
            continue
        i, j, slot = table[f, T_ROW], table[f, T_COL], slots[table[f, T_COMPONENT]]
        event[0, E_SLOT], event[0, E_FIRST] = slot, first
        event[0, E_LAST] = table[f, T_LAST] if level else first
        event[0, E_AND], event[0, E_OR] = table[f, T_AND], table[f, T_OR]
        event[0, E_XOR], event[0, E_BITS] = table[f, T_XOR], bits[table[f, T_COMPONENT]]
        event[0, E_ROW], event[0, E_COL] = i, j
        size = 1
        if slot == MOVING:
            size = cols - j
        elif slot == STILL:
            size = rows - i
        for q in range(size):
            all_pes[q, 0] = i + q if slot == STILL else i
            all_pes[q, 1] = j + q if slot == MOVING else j
            all_pes[q, 2] = q > 0 and slot == MOVING
            all_pes[q, 3] = q > 0 and slot == STILL
        pes = all_pes[:size]
        pe_start[i * cols + j + 1 :] = 1
        start = max(first, 0) // length
        span[0], span[1] = start, event[0, E_LAST]
        for q in range(size):
            for r in range(3):
                state[pes[q, 0], pes[q, 1], r] = 0
            if start:
                m0, n0 = ((start - 1) // n_folds) * rows, ((start - 1) % n_folds) * cols
                state[pes[q, 0], pes[q, 1], PSUM] = clean[m0 + pes[q, 0], n0 + pes[q, 1]]
        if i == 0 and j == 0:
            state[0, 0, MOVING] = a[(start // n_folds) * rows, 0]
            state[0, 0, STILL] = bt[(start % n_folds) * cols, 0]
        if first == -1 and slot >= 0:
            force(state[i, j], event, 0, 1, -1)
        end = _output_stationary(
            a, bt, d, shape, widths, pes, event, pe_start, span, state, out, waves, port
        )
        pe_start[i * cols + j + 1 :] = 0
        for fold in range(start, min(end, folds)):
            m0, n0 = (fold // n_folds) * rows, (fold % n_folds) * cols
            for q in range(size):
                x, y = m0 + pes[q, 0], n0 + pes[q, 1]
                if out[x, y] == clean[x, y]:
                    continue
                if x < m and y < n:
                    if count == found.shape[0]:
                        more = np.empty((2 * count, 3), np.int64)
                        more[:count] = found
                        found = more
                    found[count, 0], found[count, 1] = f, x * n + y
                    found[count, 2] = out[x, y]
                    count += 1
                out[x, y] = clean[x, y]
    return found[:count]


def run_each(accel, a, b, d, table, clean=None) -> np.ndarray | None:
    """What each fault of `table` changes, struck alone: (changes, 3) int64, sorted.

    a, b, d, table, clean  as of `tile.run`
    Columns: number of the fault, output m * n_size + n, its value. None where this way does not
    serve: another dataflow, counters as registers, sums that may saturate.
    FaultError as of `tile.run`.
    """
    if accel.dataflow != "os" or accel.parameters.get("sequencer"):
        return None
    if accel.overflow == "saturate" and not never_saturates(accel, a, b, d):
        return None
    rows, cols = accel.rows, accel.cols
    (m, k), n = a.shape, b.shape[1]
    mp, np_ = ceil_to(m, rows), ceil_to(n, cols)
    cycles = (np_ // cols) * (mp // rows) * (k + rows + cols - 2)
    table = np.ascontiguousarray(np.asarray(table, np.int64).reshape(-1, 10))
    names = {"ifmap": MOVING, "filter": STILL, "psum": PSUM}
    _check(accel, table, names, cycles)
    slots = np.array([names.get(c.name, -1) for c in accel.components], np.int64)
    bits = np.array([c.bits for c in accel.components], np.int64)
    d = np.zeros((m, n), np.int64) if d is None else d
    found = _each(
        pad(a, mp, k), pad(b.T, np_, k), pad(d, mp, np_),
        pad(golden(accel, a, b, d) if clean is None else clean, mp, np_),
        np.array([rows, cols, m, n]),
        np.array([accel.product_bits, accel.acc_bits, int(accel.overflow == "saturate")]),
        slots, bits, table, cycles, np.zeros((3, 0, rows, cols), np.int64),
        np.zeros((0, rows * cols), np.int64),
    )  # fmt: skip
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def _check(accel, table, names, cycles: int) -> None:
    """`faults_by_pe`'s refusals; only rows that could be refused are looked at one by one."""
    component, effect = table[:, T_COMPONENT], table[:, T_EFFECT]
    kinds = np.array([c.kind for c in accel.components])
    known = (component >= 0) & (component < len(kinds))
    kind = kinds[np.where(known, component, 0)]
    bad = ~known | (kind == "memory") | (effect < 0) | (effect > LEVEL)
    bad |= (kind == "net") & (effect != LEVEL)
    bad |= (table[:, T_ROW] < 0) | (table[:, T_ROW] >= accel.rows)
    bad |= (table[:, T_COL] < 0) | (table[:, T_COL] >= accel.cols)
    if bad.any():
        faults_by_pe(accel, table[np.flatnonzero(bad)[:1]], names, cycles)
