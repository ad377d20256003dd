"""Compiled cycle-level simulation of the `vta` family.

Lanes hand nothing to each other, so only those with faults are simulated, and nothing
outlives an operation but the sum it writes: simulation starts with the tile of weights
whose operations the first fault can meet, with the sums of the tiles before, and ends
with the tile of the last fault.
"""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel
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
    T_XOR,
)

from ..registers import read_faults
from ..span import ceil_to, golden, pad
from ..systolic.tile import add_columns, wrap
from .schedule import ACC0, ACC1, DOT, LATENCY, MAC, MUL, RA, RB, TREE, cycles, group, tiles


@kernel
def _force(values, table, lane, component, t, bits):
    """Act with the faults of cycle t on the (height,) values of a component in a lane."""
    for f in range(table.shape[0]):
        if table[f, T_COMPONENT] != component or table[f, T_COL] != lane:
            continue
        if table[f, T_FIRST] <= t <= table[f, T_LAST]:
            row = table[f, T_ROW]
            value = ((values[row] & table[f, T_AND]) | table[f, T_OR]) ^ table[f, T_XOR]
            values[row] = wrap(value, bits[component])


@kernel
def _lane(at, b, d, lane, shape, table, bits, span, acc, out, waves, port):
    """One lane from the first cycle of tile span[0] to the last write of tile span[1] - 1.

    at     (kp, m) int64, A transposed; b (kp, np); d, out (m, np) int64
    shape  (rows, cols, group, step, issue_cycles, product_bits, acc_bits), int64
    table  (f, 10) int64, STATE rows with last = first; bits (components,) widths
    acc    (m,) int64, the lane's sums before the first tile; changed
    waves  (components, cycles, rows, cols) int64 or of size 0; port (cycles, cols)
    """
    rows, cols, size, step, apart = shape[0], shape[1], shape[2], shape[3], shape[4]
    product_bits, acc_bits = shape[5], shape[6]
    m = at.shape[1]
    folds = at.shape[0] // rows
    record = waves.size > 0
    nodes = -(-rows // size)
    x, w, mac = np.zeros(rows, np.int64), np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    tree, dot = np.zeros(nodes, np.int64), np.zeros(1, np.int64)
    acc0, acc1 = np.zeros(1, np.int64), np.zeros(1, np.int64)
    _force(x, table, lane, RA, -1, bits)
    _force(w, table, lane, RB, -1, bits)
    _force(tree, table, lane, TREE, -1, bits)
    _force(acc0, table, lane, ACC0, -1, bits)
    _force(acc1, table, lane, ACC1, -1, bits)
    begin = span[0] * step
    for t in range(begin, (span[1] - 1) * step + (m - 1) * apart + 3):
        dot[0] = 0
        for i in range(nodes):
            dot[0] += tree[i]
        _force(dot, table, lane, DOT, t, bits)
        total = wrap(acc1[0] + dot[0], acc_bits)
        tile, row = (t - 2) // step, (t - 2) % step // apart
        if t - 2 >= begin and (t - 2) % step % apart == 0 and row < m:
            acc[row] = total
            if tile % folds == folds - 1:
                out[row, tile // folds * cols + lane] = total

        for i in range(rows):
            mac[i] = wrap(x[i] * w[i], product_bits)
        _force(mac, table, lane, MUL, t, bits)
        _force(mac, table, lane, MAC, t, bits)
        tree[:] = 0
        for i in range(rows):
            tree[i // size] += mac[i]
        acc1[0] = acc0[0]
        x[:] = 0
        w[:] = 0
        acc0[0] = 0
        tile, row = t // step, t % step // apart
        if tile < span[1] and t % step % apart == 0 and row < m:
            k0, column = tile % folds * rows, tile // folds * cols + lane
            for i in range(rows):
                x[i], w[i] = at[k0 + i, row], b[k0 + i, column]
            acc0[0] = d[row, column] if k0 == 0 else acc[row]
        _force(x, table, lane, RA, t, bits)
        _force(w, table, lane, RB, t, bits)
        _force(tree, table, lane, TREE, t, bits)
        _force(acc0, table, lane, ACC0, t, bits)
        _force(acc1, table, lane, ACC1, t, bits)
        if record:
            for i in range(rows):
                waves[RA, t, i, lane], waves[RB, t, i, lane] = x[i], w[i]
            for i in range(nodes):
                waves[TREE, t, i, lane] = tree[i]
            waves[ACC0, t, 0, lane], waves[ACC1, t, 0, lane] = acc0[0], acc1[0]
            port[t, lane] = total


def run(accel, a, b, d, table, waveform=False, clean=None):
    """One GEMM on the core, cycle by cycle where faults can have an effect.

    a         (m, k), b (k, n), int64 codes of operand_bits; d (m, n) int64 or None
    table     (f, 10) int64 faults, see `fsim.types.fault_table`
    waveform  simulate everything and return every register
    clean     (m, n) int64 fault-free result if the caller has it already

    Returns out (m, n) int64 and None, or register name -> int64 (cycles, rows, cols) of its
    grid, S[t] after the faults of cycle t, with "out": (cycles, cols) final sums.

    Raises FaultError for a fault outside the core or of a memory.
    """
    read_faults(accel, table)  # checks every row
    rows, cols = accel.rows, accel.cols
    (m, k), n = a.shape, b.shape[1]
    length = cycles(accel, m, k, n)
    table = np.array(table, np.int64).reshape(-1, 10)
    state = table[:, T_EFFECT] == STATE
    table[state, T_LAST] = table[state, T_FIRST]
    # A state fault acts after a clock edge, and there is none before cycle 0.
    table = table[(table[:, T_FIRST] < length) & ~(state & (table[:, T_FIRST] < 0))]
    if not waveform and not len(table):
        return golden(accel, a, b, d) if clean is None else clean.copy(), None

    kp, np_ = ceil_to(k, rows), ceil_to(n, cols)
    at, b_pad = pad(a.T, kp, m), pad(b, kp, np_)
    d_pad = pad(np.zeros((m, n), np.int64) if d is None else d, m, np_)
    folds = kp // rows
    count, step = tiles(accel, m, k, n)
    if waveform:
        lanes, span = np.arange(cols), (0, count)
        out = np.zeros((m, np_), np.int64)
    else:
        lanes = np.unique(table[:, T_COL])
        # A fault meets operations whose operands came up to two edges before.
        first = max(int(table[:, T_FIRST].min()) - (LATENCY - 1), 0) // step
        span = (min(first, count - 1), min(int(table[:, T_LAST].max()) // step + 1, count))
        span = (span[0], max(span[1], span[0] + 1))
        out = pad(golden(accel, a, b, d) if clean is None else clean, m, np_)
    widths = (accel.product_bits, accel.acc_bits)
    acc = np.zeros((m, cols), np.int64)
    if span[0] % folds:
        n0, k0 = span[0] // folds * cols, span[0] % folds * rows
        acc[:] = d_pad[:, n0 : n0 + cols]
        add_columns(at, b_pad, 0, k0, n0, lanes, *widths, acc)
    recorded = length if waveform else 0
    waves = np.zeros((8, recorded, rows, cols), np.int64)
    port = np.zeros((recorded, cols), np.int64)
    apart = int(accel.parameters["issue_cycles"])
    for lane in lanes:
        sums = acc[:, lane].copy()
        _lane(
            at,
            b_pad,
            d_pad,
            lane,
            np.array([rows, cols, group(accel), step, apart, *widths]),
            table,
            np.array([component.bits for component in accel.components], np.int64),
            np.array(span),
            sums,
            out,
            waves,
            port,
        )
        acc[:, lane] = sums
    if span[1] % folds:
        n0, k0 = span[1] // folds * cols, span[1] % folds * rows
        add_columns(at, b_pad, k0, kp, n0, lanes, *widths, acc)
        out[:, n0 + lanes] = acc[:, lanes]
    out = np.ascontiguousarray(out[:, :n])
    if not waveform:
        return out, None
    found = {}
    for number, component in enumerate(accel.components):
        if component.kind == "register":
            height = component.grid[0]
            found[component.name] = np.ascontiguousarray(waves[number, :, :height])
    return out, {**found, "out": port}
