"""The plain systolic array, register by register and cycle by cycle: the specification.

One operand, one weight and one sum register a PE (`ifmap`, `filter`, `psum`) and
the net `mul`, the product on its way to the adder. Operands enter skewed at the
edges, folds (tiles) follow each other without overlap, and a fold takes as many
cycles as SCALE-Sim counts. S[t] is the state after clock edge t.

A PE multiplies what is in its own registers; the sum is captured at the next
edge. Sums leave the adder wrapped to acc_bits, or held at the ends of that range
where the machine saturates.

Weight and input stationary are one machine: C = A B with B resident, or
C^T = B^T A^T with A^T resident. Registers are named after the tensor they hold,
so the resident one is `filter` in the first and `ifmap` in the second.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from fsim.accel_models.registers import Waveform, grid, padded, read_faults, register_names, state
from fsim.types import wrap

from .sequencer import cycle as sequenced


def run(accel, a, b, d, table, waveform=False):
    """Multiply on the array, with faults.

    a, b      (m, k) and (k, n) int64 codes
    d         (m, n) int64 added to the product, or None for zeros
    table     (f, 10) int64 fault table, see `fsim.types.fault_table`
    waveform  keep every register of every cycle

    Returns out, int64 (m, n), and None or the waves: register -> int64
    (cycles, rows, cols), and "out" -> psum, int64: of all PEs, row-major
    (cycles, rows * cols), in OS; of the bottom row (cycles, cols) otherwise.
    """
    d = np.zeros((len(a), b.shape[1]), np.int64) if d is None else d
    if accel.parameters.get("sequencer"):
        edges = _edge_stationary, _edge_os
        return sequenced.run(accel, a, b, d, table, waveform, edges)
    faults = read_faults(accel, table)
    waves = Waveform(waveform, register_names(accel))
    if accel.dataflow == "os":
        out = _run_os(accel, a.tolist(), b.tolist(), d.tolist(), faults, waves)
    elif accel.dataflow == "ws":
        flow = (a.tolist(), b.tolist(), d.tolist())
        out = _run_stationary(accel, "ifmap", "filter", *flow, faults, waves)
    else:
        flow = (b.T.tolist(), a.T.tolist(), d.T.tolist())
        out = zip(*_run_stationary(accel, "filter", "ifmap", *flow, faults, waves))
    return np.array(list(out), np.int64), waves.arrays()


def _add(accel, x: int, y: int) -> int:
    """The machine's adder."""
    if accel.overflow == "saturate":
        top = (1 << (accel.acc_bits - 1)) - 1
        return max(-top - 1, min(top, x + y))
    return wrap(x + y, accel.acc_bits)


# Weight and input stationary ---------------------------------------------------


def _run_stationary(accel, moving, resident, a, b, d, faults, waves):
    """C = D + A B with B resident; folds n0 outer, k0 inner.

    moving, resident  names of the registers that hold A and B

    A sum leaves at the bottom of its column, and the accumulator memory outside
    the array adds it to the sums of the folds before.
    """
    rows, cols = accel.rows, accel.cols
    m, k, n = len(a), len(b), len(b[0])
    acc = [row[:] for row in d]
    S = state(register_names(accel), rows, cols)
    faults.after_edge(S, -1)
    t = 0
    for n0 in range(0, n, cols):
        for k0 in range(0, k, rows):
            for c in range(m + 2 * rows + cols - 2):
                # Row k0 + rows - 1 enters first and ends at the bottom.
                word = (
                    [padded(b, k0 + rows - 1 - c, n0 + j) for j in range(cols)]
                    if c < rows
                    else None
                )
                edge = [padded(a, c + 1 - rows - i, k0 + i) for i in range(rows)]
                S = _edge_stationary(accel, moving, resident, S, edge, word, faults, t)
                faults.after_edge(S, t)
                waves.record(S, S.psum[-1])
                t += 1
                for j in range(min(cols, n - n0)):
                    row = c - (rows + rows - 1 + j)  # row of A whose sum is at the bottom
                    if 0 <= row < m:
                        acc[row][n0 + j] = _add(accel, acc[row][n0 + j], S.psum[-1][j])
    return acc


def _edge_stationary(accel, moving, resident, S, edge, word, faults, t):
    """S[t] before its faults.

    edge  by row: what enters the moving registers of column 0
    word  by column: what enters the resident registers of row 0 while they are
          loaded, or None: they hold
    """
    x, w = getattr(S, moving), getattr(S, resident)
    psum = grid(accel.rows, accel.cols)
    for i in range(accel.rows):
        for j in range(accel.cols):
            mul = faults.on_net("mul", i, j, t, wrap(x[i][j] * w[i][j], accel.product_bits))
            psum[i][j] = _add(accel, 0 if i == 0 else S.psum[i - 1][j], mul)
    new = SimpleNamespace(psum=psum)
    # ifmap(i, j)' = ifmap(i, j-1), and from the edge at j = 0.
    setattr(new, moving, [[edge[i], *x[i][:-1]] for i in range(accel.rows)])
    # filter(i, j)' = filter(i-1, j), and `word` at i = 0.
    setattr(new, resident, [row[:] for row in (w if word is None else [word, *w[:-1]])])
    return new


# Output stationary -----------------------------------------------------------


def _run_os(accel, a, b, d, faults, waves):
    """C = D + A B, one fold a tile of C; folds m0 outer, n0 inner."""
    rows, cols = accel.rows, accel.cols
    m, k, n = len(a), len(b), len(b[0])
    out = [[0] * n for _ in range(m)]
    folds = [(m0, n0) for m0 in range(0, m, rows) for n0 in range(0, n, cols)]
    length = k + rows + cols - 2

    def edges(fold, c):
        """What edge c of a fold latches into column 0 of ifmap and row 0 of filter.

        The first word of a fold, k = 0 of row and column 0, is latched by the last
        edge of the fold before: c = -1.
        """
        m0, n0 = folds[fold]
        if c == length - 1 and fold + 1 < len(folds):
            return edges(fold + 1, -1)
        left = [padded(a, m0 + i, c + 1 - i) for i in range(rows)]
        top = [padded(b, c + 1 - j, n0 + j) for j in range(cols)]
        return left, top

    S = state(register_names(accel), rows, cols)
    left, top = edges(0, -1)
    for i in range(rows):
        S.ifmap[i][0] = left[i]
    S.filter[0][:] = top
    faults.after_edge(S, -1)
    for fold, (m0, n0) in enumerate(folds):
        for c in range(length):
            t = fold * length + c
            bias = [[padded(d, m0 + i, n0 + j) for j in range(cols)] for i in range(rows)]
            S = _edge_os(accel, S, *edges(fold, c), bias, k, c, faults, t)
            faults.after_edge(S, t)
            waves.record(S, [value for row in S.psum for value in row])
        for i in range(min(rows, m - m0)):
            for j in range(min(cols, n - n0)):
                out[m0 + i][n0 + j] = S.psum[i][j]
    return out


def _edge_os(accel, S, left, top, bias, k, c, faults, t):
    """S[t] before its faults; c is the edge's number in the fold."""
    psum = [row[:] for row in S.psum]
    for i in range(accel.rows):
        for j in range(accel.cols):
            step = c - i - j  # which of the k products PE (i, j) has before it
            if 0 <= step < k:
                product = wrap(S.ifmap[i][j] * S.filter[i][j], accel.product_bits)
                mul = faults.on_net("mul", i, j, t, product)
                psum[i][j] = _add(accel, bias[i][j] if step == 0 else S.psum[i][j], mul)
    return SimpleNamespace(
        ifmap=[[left[i], *S.ifmap[i][:-1]] for i in range(accel.rows)],
        filter=[top[:], *(row[:] for row in S.filter[:-1])],
        psum=psum,
    )
