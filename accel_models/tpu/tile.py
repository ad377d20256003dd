"""Compiled cycle-level simulation of the `tpu` family.

Everything moves one PE a cycle, right or down: in the time of its own, c = t - i - j,
PE (i, j) sees what its neighbours show at the same c. So the array can be run PE by PE
on recorded streams, tile by tile in that time, although in clock cycles one tile still
computes while the next has begun.

The phase of a tile is what happens from the edge after its first activation to the edge
that captures the first activation of the next: c - start = 1 .. step. Phase -1 is the
load of the first tile. Between phases a PE holds an activation, the shadow weight and the
active one, which are known where no fault acted before; its sum is not read again.
"""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel
from fsim.types import FOREVER

from ..span import (
    E_COL,
    E_FIRST,
    E_ROW,
    active_columns,
    ceil_to,
    faults_by_pe,
    golden,
    last_cycle,
    pad,
)
from ..systolic.tile import add_columns, force, force_net, multiply_add, span_of, wrap

ACT, SHADOW, ACTIVE, PSUM = range(4)
"""Slots of the state vector."""


@kernel
def _phases(
    at, b, d, shape, widths, columns, events, pe_start, span, state, acc, out, waves, port
):  # fmt: skip
    """Phases from `span[0]` on.

    at        (kp, m) int64, A transposed, kp a multiple of rows
    b         (kp, np) int64, np a multiple of cols; d (m, np) int64
    shape     (rows, cols), widths (product_bits, acc_bits), int64
    columns   (c,) int64, ascending: the columns to simulate
    events    (f, 9) int64, pe_start (rows*cols + 1,) int64: see `faults_by_pe`
    span      (first phase, last cycle in which a fault acts), int64
    state     (rows, cols, 4) int64 before the first phase; changed
    acc       (m, cols) int64, the accumulators before the first phase; changed
    out       (m, np) int64, results of every column group finished here
    waves     (4, cycles, rows, cols) int64 or of size 0: S[t], not recorded then
    port      (cycles, cols) int64, as `waves`: psum of the bottom row

    Returns the first tile not simulated. If it is inside a column group, `acc` holds
    that group's sums so far.
    """
    rows, cols = shape[0], shape[1]
    product_bits, acc_bits = widths[0], widths[1]
    m = at.shape[1]
    folds = at.shape[0] // rows
    tiles = folds * (b.shape[1] // cols)
    step = max(m, rows)
    cycles = rows + (tiles - 1) * step + m + rows + cols - 1
    record = waves.size > 0
    # Cycle c of a phase is entry c - low: before it starts there are PEs still in reset.
    low = -(rows + cols - 2) if record else 0
    width = max(step, rows, m + rows + cols) - low + 1
    acts = np.zeros((rows, width), np.int64)
    words = np.zeros(width, np.int64)
    psum = np.zeros(width, np.int64)
    regs = np.zeros(4, np.int64)

    for phase in range(span[0], tiles + record):
        base = 0 if phase < 0 else rows + phase * step
        begin = low if phase < 0 else 1
        end = rows if phase < 0 else step
        if phase == tiles:  # the last sums have left: for the waveform alone
            end = cycles - 1 - base
        computes = 0 <= phase < tiles
        loads = phase + 1 < tiles  # the next tile's weights
        k0, n0 = (phase % folds) * rows, (phase // folds) * cols
        next_k, next_n = ((phase + 1) % folds) * rows, ((phase + 1) // folds) * cols
        if computes and k0 == 0:
            for j in columns:
                for row in range(m):
                    acc[row, j] = d[row, n0 + j]
        left = -2
        for j in columns:
            if j - 1 != left:  # the left neighbour is not simulated: its stream is A's
                for i in range(rows):
                    for c in range(begin, end + 1):
                        acts[i, c - low] = at[k0 + i, c] if computes and c < m else 0
                    if loads:
                        acts[i, end - low] = at[next_k + i, 0]
            left = j
            words[:] = 0
            if loads:
                for c in range(max(begin, 0), rows):
                    words[c - low] = b[next_k + rows - 1 - c, next_n + j]
            if phase + 2 < tiles:
                row = ((phase + 2) % folds) * rows + rows - 1
                words[end - low] = b[row, ((phase + 2) // folds) * cols + j]
            psum[:] = 0
            for i in range(rows):
                x, shadow = state[i, j, ACT], state[i, j, SHADOW]
                w, p = state[i, j, ACTIVE], state[i, j, PSUM]
                lo, hi = pe_start[i * cols + j], pe_start[i * cols + j + 1]
                first, last = span_of(events, lo, hi)
                t0 = base + i + j
                if not record and (last < t0 + begin or first > t0 + end):
                    # Nothing strikes: edge c adds the product of the operands of c - 1, and
                    # both streams go on as they came.
                    first_sum = psum[begin - low] + wrap(x * w, product_bits)
                    psum[begin - low] = wrap(first_sum, acc_bits)
                    sums = psum[begin - low + 1 : end - low + 1]
                    multiply_add(sums, acts[i, begin - low : end - low], w, product_bits, acc_bits)
                    x, p = acts[i, end - low], psum[end - low]
                    if loads:
                        if rows - 1 - i >= begin:
                            shadow = words[rows - 1 - i - low]
                        w = shadow
                    if phase + 2 < tiles:
                        shadow = words[end - low]
                else:
                    for c in range(begin, end + 1):
                        t = t0 + c
                        at_c = c - low
                        if t < 0:  # still in reset
                            acts[i, at_c], words[at_c], psum[at_c] = x, shadow, p
                            continue
                        product = wrap(x * w, product_bits)
                        hit = first <= t <= last
                        if hit:
                            product = force_net(product, events, lo, hi, t)
                        p = wrap(psum[at_c] + product, acc_bits)
                        x = acts[i, at_c]
                        if c == end and loads:
                            w = shadow
                        if loads and 0 <= c < rows - i or c == end and phase + 2 < tiles:
                            shadow = words[at_c]
                        if hit:
                            regs[ACT], regs[SHADOW], regs[ACTIVE], regs[PSUM] = x, shadow, w, p
                            force(regs, events, lo, hi, t)
                            x, shadow, w, p = regs[ACT], regs[SHADOW], regs[ACTIVE], regs[PSUM]
                        acts[i, at_c], words[at_c], psum[at_c] = x, shadow, p
                        if record and t < cycles:
                            waves[ACT, t, i, j] = x
                            waves[SHADOW, t, i, j] = shadow
                            waves[ACTIVE, t, i, j] = w
                            waves[PSUM, t, i, j] = p
                            if i == rows - 1:
                                port[t, j] = p
                state[i, j, ACT], state[i, j, SHADOW] = x, shadow
                state[i, j, ACTIVE], state[i, j, PSUM] = w, p
            if computes:
                for row in range(m):
                    acc[row, j] = wrap(acc[row, j] + psum[row + 1 - low], acc_bits)
        if computes and k0 + rows == at.shape[0]:
            for j in columns:
                for row in range(m):
                    out[row, n0 + j] = acc[row, j]
        if not record and base + end >= span[1] and phase + 1 < tiles:
            if _is_golden(at, b, rows, cols, columns, phase + 1, state):
                return phase + 1
    return tiles


@kernel
def _is_golden(at, b, rows, cols, columns, phase, state):
    """Whether `state` is what a fault-free run has before the phase of tile `phase`."""
    folds = at.shape[0] // rows
    tiles = folds * (b.shape[1] // cols)
    k0, n0 = (phase % folds) * rows, (phase // folds) * cols
    for j in columns:
        for i in range(rows):
            if state[i, j, ACT] != at[k0 + i, 0] or state[i, j, ACTIVE] != b[k0 + i, n0 + j]:
                return False
            shadow = b[k0 + i, n0 + j]  # copied, so it is still there
            if phase + 1 < tiles:
                row = ((phase + 1) % folds) * rows + rows - 1
                shadow = b[row, ((phase + 1) // folds) * cols + j]
            if state[i, j, SHADOW] != shadow:
                return False
    return True


def _golden_state(at, b, rows, cols, phase) -> np.ndarray:
    """(rows, cols, 4) int64: the state that `_is_golden` compares with."""
    folds = len(at) // rows
    tiles = folds * (b.shape[1] // cols)
    k0, n0 = (phase % folds) * rows, (phase // folds) * cols
    state = np.zeros((rows, cols, 4), np.int64)
    state[:, :, ACT] = at[k0 : k0 + rows, :1]
    state[:, :, ACTIVE] = state[:, :, SHADOW] = b[k0 : k0 + rows, n0 : n0 + cols]
    if phase + 1 < tiles:
        row, n0 = ((phase + 1) % folds) * rows + rows - 1, ((phase + 1) // folds) * cols
        state[:, :, SHADOW] = b[row, n0 : n0 + cols]
    return state


def run(accel, a, b, d, table, waveform=False, clean=None):
    """One GEMM on the array, cycle by cycle where faults can have an effect.

    a         (m, k), b (k, n), int64 codes of operand_bits; d (m, n) int64 or None
    table     (f, 10) int64 faults, see `fsim.types.fault_table`
    waveform  simulate everything and return every register
    clean     (m, n) int64 fault-free result if the caller has it already

    Returns out (m, n) int64 and None, or register name -> (cycles, rows, cols) int64,
    S[t] after the faults of cycle t, with "out": (cycles, cols) psums of the bottom row.

    Raises FaultError for a fault outside the array or of a memory.
    """
    rows, cols = accel.rows, accel.cols
    (m, k), n = a.shape, b.shape[1]
    kp, np_ = ceil_to(k, rows), ceil_to(n, cols)
    folds, step = kp // rows, max(m, rows)
    tiles = folds * (np_ // cols)
    cycles = rows + (tiles - 1) * step + m + rows + cols - 1
    slots = {"act": ACT, "w_shadow": SHADOW, "w_active": ACTIVE, "psum": PSUM}
    events, pe_start = faults_by_pe(accel, table, slots, cycles)
    if not waveform and not len(events):
        return golden(accel, a, b, d) if clean is None else clean.copy(), None

    at, b_pad = pad(a.T, kp, m), pad(b, kp, np_)
    d_pad = pad(np.zeros((m, n), np.int64) if d is None else d, m, np_)
    state = np.zeros((rows, cols, 4), np.int64)
    acc = np.zeros((m, cols), np.int64)
    start, last = -1, FOREVER
    columns = np.arange(cols, dtype=np.int64)
    out = np.zeros((m, np_), np.int64)
    if not waveform:
        # The first cycle, in its PE's own time, in which a fault acts.
        own = events[:, E_FIRST] - events[:, E_ROW] - events[:, E_COL]
        start, last = max((int(own.min()) - 1 - rows) // step, -1), last_cycle(events)
        columns = active_columns(accel, events, (ACT,))
        out = pad(golden(accel, a, b, d) if clean is None else clean, m, np_)
    if start < 0:
        for e in np.flatnonzero(events[:, E_FIRST] == -1):
            force(state[events[e, E_ROW], events[e, E_COL]], events, e, e + 1, -1)
    elif start < tiles:
        state = _golden_state(at, b_pad, rows, cols, start)
        n0, k0 = (start // folds) * cols, (start % folds) * rows
        if k0:
            acc[:] = d_pad[:, n0 : n0 + cols]
            add_columns(at, b_pad, 0, k0, n0, columns, accel.product_bits, accel.acc_bits, acc)

    recorded = cycles if waveform else 0
    waves = np.zeros((4, recorded, rows, cols), np.int64)
    port = np.zeros((recorded, cols), np.int64)
    stop = _phases(
        at,
        b_pad,
        d_pad,
        np.array([rows, cols]),
        np.array([accel.product_bits, accel.acc_bits]),
        columns,
        events,
        pe_start,
        np.array([start, last]),
        state,
        acc,
        out,
        waves,
        port,
    )
    if stop < tiles and stop % folds:
        n0, k0 = (stop // folds) * cols, (stop % folds) * rows
        add_columns(at, b_pad, k0, kp, n0, columns, accel.product_bits, accel.acc_bits, acc)
        out[:, n0 + columns] = acc[:, columns]
    out = np.ascontiguousarray(out[:, :n])
    if not waveform:
        return out, None
    return out, {**{name: waves[slot] for name, slot in slots.items()}, "out": port}
