"""Compiled simulation of the systolic array with its sequencer, from the first edge to the last.

Faults in control change which edge does what, so that no fold can be taken from a plan: all PEs
step through all cycles. `cycle.py` beside this file is the specification.
"""

from __future__ import annotations

import numpy as np

from fsim.accel_models.registers import read_faults
from fsim.jit import kernel

from ..schedule import COUNTER_BITS, COUNTERS
from .cycle import check, hang

# What an event strikes, and the columns of the event table.
_X, _W, _P, _STEP, _FOLD, _NET = range(6)
_WHAT, _ROW, _COL, _FIRST, _LAST, _AND, _OR, _XOR, _BITS = range(9)

_MASK = (1 << COUNTER_BITS) - 1


@kernel
def _wrapped(value, bits):
    """`value` reduced to `bits` bits of two's complement."""
    shift = 64 - bits
    return (value << shift) >> shift


@kernel
def _struck(value, event):
    value = ((value & event[_AND]) | event[_OR]) ^ event[_XOR]
    return _wrapped(value, event[_BITS])


@kernel
def _added(x, y, acc_bits, saturate):
    if saturate:
        top = (np.int64(1) << (acc_bits - 1)) - 1
        return max(-top - 1, min(top, x + y))
    return _wrapped(x + y, acc_bits)


@kernel
def _after(x, w, p, counters, events, t):
    """Act with the faults of cycle t on the registers, in the order of the table."""
    for e in range(events.shape[0]):
        event = events[e]
        if event[_WHAT] == _NET or not event[_FIRST] <= t <= event[_LAST]:
            continue
        i, j = event[_ROW], event[_COL]
        if event[_WHAT] == _X:
            x[i, j] = _struck(x[i, j], event)
        elif event[_WHAT] == _W:
            w[i, j] = _struck(w[i, j], event)
        elif event[_WHAT] == _P:
            p[i, j] = _struck(p[i, j], event)
        else:
            counters[event[_WHAT] - _STEP] = _struck(counters[event[_WHAT] - _STEP], event)


@kernel
def _product(x, w, i, j, bits, events, t):
    """What edge t captures of the product of one PE."""
    value = _wrapped(x * w, bits)
    for e in range(events.shape[0]):
        event = events[e]
        mine = event[_WHAT] == _NET and event[_ROW] == i and event[_COL] == j
        if mine and event[_FIRST] <= t <= event[_LAST]:
            value = _struck(value, event)
    return value


@kernel
def _at(matrix, i, j):
    """An element, and 0 beyond the matrix."""
    if 0 <= i < matrix.shape[0] and 0 <= j < matrix.shape[1]:
        return matrix[i, j]
    return np.int64(0)


@kernel
def _stationary(a, b, numbers, events, out, waves, counts):
    """Weight stationary: sums added to `out` (d before). Cycles taken, or -1: a hang.

    a (m, k), b (k, n); numbers: rows, cols, product bits, acc bits, saturate, folds, length
    waves (3, cycles, rows, cols) and counts (cycles, 2): recorded as far as they reach
    """
    rows, cols, product_bits, acc_bits, saturate, folds, length = numbers
    m, n = out.shape
    k_folds = -(-a.shape[1] // rows)
    x = np.zeros((rows, cols), np.int64)
    w, p = np.zeros_like(x), np.zeros_like(x)
    counters = np.zeros(2, np.int64)
    _after(x, w, p, counters, events, -1)
    t = 0
    while counters[1] & _MASK != folds:
        if t == 2 * folds * length:
            return -1
        step, fold = counters[0] & _MASK, counters[1] & _MASK
        n0, k0 = fold // k_folds * cols, fold % k_folds * rows
        if fold >= folds:
            n0, k0 = n, a.shape[1]
        for i in range(rows - 1, -1, -1):
            for j in range(cols):  # from below: what is above is still of the cycle before
                above = p[i - 1, j] if i else 0
                mul = _product(x[i, j], w[i, j], i, j, product_bits, events, t)
                p[i, j] = _added(above, mul, acc_bits, saturate)
        for i in range(rows):
            for j in range(cols - 1, 0, -1):
                x[i, j] = x[i, j - 1]
            x[i, 0] = _at(a, step + 1 - rows - i, k0 + i)
        if step < rows:
            for j in range(cols):
                for i in range(rows - 1, 0, -1):
                    w[i, j] = w[i - 1, j]
                w[0, j] = _at(b, k0 + rows - 1 - step, n0 + j)
        _next(counters, step, fold, length)
        _after(x, w, p, counters, events, t)
        _record(x, w, p, counters, waves, counts, t)
        for j in range(cols):
            row = step - (2 * rows - 1 + j)
            if 0 <= row < m and n0 + j < n:
                total = out[row, n0 + j]
                out[row, n0 + j] = _added(total, p[rows - 1, j], acc_bits, saturate)
        t += 1
    return t


@kernel
def _output(a, b, d, numbers, events, out, waves, counts):
    """Output stationary; arguments and answer as of `_stationary`, `out` zero before."""
    rows, cols, product_bits, acc_bits, saturate, folds, length = numbers
    m, k = a.shape
    n = b.shape[1]
    n_folds = -(-n // cols)
    x = np.zeros((rows, cols), np.int64)
    w, p = np.zeros_like(x), np.zeros_like(x)
    counters = np.zeros(2, np.int64)
    x[0, 0], w[0, 0] = a[0, 0], b[0, 0]
    _after(x, w, p, counters, events, -1)
    t = 0
    while counters[1] & _MASK != folds:
        if t == 2 * folds * length:
            return -1
        step, fold = counters[0] & _MASK, counters[1] & _MASK
        m0, n0 = fold // n_folds * rows, fold % n_folds * cols
        if fold >= folds:
            m0, n0 = m, n
        for i in range(rows):
            for j in range(cols):
                number = step - i - j
                if 0 <= number < k:
                    mul = _product(x[i, j], w[i, j], i, j, product_bits, events, t)
                    before = p[i, j] if number else _at(d, m0 + i, n0 + j)
                    p[i, j] = _added(before, mul, acc_bits, saturate)
        at, next_m, next_n = step + 1, m0, n0
        if step == length - 1:  # the first word of the fold that follows
            at, next_m = 0, (fold + 1) // n_folds * rows
            next_n = (fold + 1) % n_folds * cols
            if fold + 1 >= folds:
                next_m, next_n = m, n
        for i in range(rows):
            for j in range(cols - 1, 0, -1):
                x[i, j] = x[i, j - 1]
            x[i, 0] = _at(a, next_m + i, at - i)
        for j in range(cols):
            for i in range(rows - 1, 0, -1):
                w[i, j] = w[i - 1, j]
            w[0, j] = _at(b, at - j, next_n + j)
        _next(counters, step, fold, length)
        _after(x, w, p, counters, events, t)
        _record(x, w, p, counters, waves, counts, t)
        if step == length - 1:
            for i in range(min(rows, m - m0)):
                for j in range(min(cols, n - n0)):
                    out[m0 + i, n0 + j] = p[i, j]
        t += 1
    return t


@kernel
def _next(counters, step, fold, length):
    last = step == length - 1
    counters[0] = _wrapped(0 if last else step + 1, COUNTER_BITS)
    counters[1] = _wrapped(fold + 1 if last else fold, COUNTER_BITS)


@kernel
def _record(x, w, p, counters, waves, counts, t):
    if t < waves.shape[1]:
        waves[0, t], waves[1, t], waves[2, t] = x, w, p
        counts[t] = counters


def run(accel, a, b, d, table, waveform=False):
    """As `tile.run` of the array without a sequencer; HangError if there is no result."""
    folds, length = check(accel, table, len(a), len(b), b.shape[1])
    moving, held = ("filter", "ifmap") if accel.dataflow == "is" else ("ifmap", "filter")
    events = _events(accel, table, {moving: _X, held: _W, "psum": _P, "mul": _NET})
    if accel.dataflow == "is":
        a, b, d = b.T, a.T, None if d is None else d.T
    a, b = (np.ascontiguousarray(matrix, np.int64) for matrix in (a, b))
    d = np.zeros((len(a), b.shape[1]), np.int64) if d is None else np.array(d, np.int64, order="C")
    recorded = 2 * folds * length if waveform else 0
    waves = np.zeros((3, recorded, accel.rows, accel.cols), np.int64)
    counts = np.zeros((recorded, 2), np.int64)
    numbers = (
        accel.rows, accel.cols, accel.product_bits, accel.acc_bits,
        int(accel.overflow == "saturate"), folds, length,
    )  # fmt: skip
    if accel.dataflow == "os":
        out = np.zeros_like(d)
        cycles = _output(a, b, d, numbers, events, out, waves, counts)
    else:
        out = d.copy()
        cycles = _stationary(a, b, numbers, events, out, waves, counts)
    if cycles < 0:
        raise hang(accel, folds * length)
    if accel.dataflow == "is":
        out = np.ascontiguousarray(out.T)
    if not waveform:
        return out, None
    psum = waves[2, :cycles]
    port = psum.reshape(cycles, -1) if accel.dataflow == "os" else psum[:, -1]
    found = {moving: waves[0, :cycles], held: waves[1, :cycles], "psum": psum, "out": port}
    for number, name in enumerate(COUNTERS):
        found[name] = counts[:cycles, number, None, None]
    return out, found


def _events(accel, table, slots) -> np.ndarray:
    """(f, 9) int64 faults: what they strike and when, in the order of the table."""
    faults = read_faults(accel, table)
    strikes = [*faults.registers, *(s for strikes in faults.nets.values() for s in strikes)]
    slots = {**slots, **dict(zip(COUNTERS, (_STEP, _FOLD)))}
    rows = [
        (slots[s.component], s.row, s.col, s.first, s.last if s.level else s.first,
         s.and_mask, s.or_mask, s.xor_mask, s.bits)
        for s in strikes if s.level or s.first >= 0
    ]  # fmt: skip
    return np.array(rows, np.int64).reshape(len(rows), 9)
