"""The pipelined systolic array, register by register and cycle by cycle: the specification.

Four register stages a PE: s1 operands, s2 and s3 product, mac_out sum. Operands
are registered twice in parallel: s1_* feeds the PE's own multiplier, *_old the
neighbour. S[t] is the state after clock edge t; X[t] are the inputs of the ports
in cycle t.

Semantics: the parametric arrays of Systolic-Tensors (R x C, op_width 32) with
the signed product.

Fault sites of PE (i, j): s1_x s1_w x_old w_old (WS also w_reg) of operand_bits;
s2_p s3_p of product_bits; mac_out (WS also s1_psum s2_psum s3_psum) of acc_bits;
v1 v3 en_out of 1 bit; and the net `mul`, the product on its way to s2_p. The
other registers below (v2, c1 to c3, clr_out, the delay lines in front of the
array) exist in the machine and are no fault sites.
"""

from __future__ import annotations

import numpy as np

from fsim.accel_models.registers import (
    Waveform,
    held,
    padded,
    read_faults,
    register_names,
    state,
)
from fsim.types import wrap


def run(accel, a, b, d, table, waveform=False):
    """Multiply on the array, with faults.

    a, b      (m, k) and (k, n) int64 codes
    d         (m, n) int64 added to the product, or None for zeros
    table     (f, 10) int64 fault table, see `fsim.types.fault_table`
    waveform  keep every register of every cycle

    Returns out, int64 (m, n), and None or the waves: fault site -> int64
    (cycles, rows, cols), and "out" -> mac_out, int64: of all PEs, row-major
    (cycles, rows * cols), in OS; of the bottom row (cycles, cols) in WS.
    """
    m, n = len(a), b.shape[1]
    d = [[0] * n for _ in range(m)] if d is None else d.tolist()
    faults = read_faults(accel, table)
    waves = Waveform(waveform, register_names(accel))
    simulate = _run_os if accel.dataflow == "os" else _run_ws
    out = simulate(accel, a.tolist(), b.tolist(), d, faults, waves)
    return np.array(out, np.int64), waves.arrays()


# Output stationary -----------------------------------------------------------


def _run_os(accel, a, b, d, faults, waves):
    """One pass a tile, m0 outer, n0 inner. The array has no way in for d, which
    is added outside when a tile is read."""
    rows, cols = accel.rows, accel.cols
    m, k, n = len(a), len(b), len(b[0])
    out = [[0] * n for _ in range(m)]
    S = state((*register_names(accel), "v2", "c1", "c2", "c3", "clr_out"), rows, cols)
    # Delay lines: i + 1 registers of (x, en, en & clr) before row i, j + 1 of w
    # before column j.
    S.xline = [[(0, 0, 0)] * (i + 1) for i in range(rows)]
    S.wline = [[0] * (j + 1) for j in range(cols)]
    faults.after_edge(S, -1)
    t = 0
    for m0 in range(0, m, rows):
        for n0 in range(0, n, cols):
            for c in range(k + rows + cols + 2):
                en = int(c < k)
                clr = int(c == 0)
                x = [padded(a, m0 + i, c) for i in range(rows)]
                w = [padded(b, c, n0 + j) for j in range(cols)]
                S = _edge_os(accel, S, x, w, en, clr, faults, t)
                faults.after_edge(S, t)
                waves.record(S, [value for row in S.mac_out for value in row])
                t += 1
            for i in range(min(rows, m - m0)):
                for j in range(min(cols, n - n0)):
                    out[m0 + i][n0 + j] = wrap(d[m0 + i][n0 + j] + S.mac_out[i][j], accel.acc_bits)
    return out


def _edge_os(accel, S, x, w, en, clr, faults, t):
    """S[t] before its faults, from S[t - 1] and the ports of cycle t."""
    new = held(S)
    new.xline = [[(x[i], en, en & clr), *line[:-1]] for i, line in enumerate(S.xline)]
    new.wline = [[w[j], *line[:-1]] for j, line in enumerate(S.wline)]
    for i in range(accel.rows):
        for j in range(accel.cols):
            if j == 0:
                x_in, en_in, clr_in = S.xline[i][-1]
            else:
                x_in, en_in, clr_in = S.x_old[i][j - 1], S.en_out[i][j - 1], S.clr_out[i][j - 1]
            w_in = S.wline[j][-1] if i == 0 else S.w_old[i - 1][j]

            new.s1_x[i][j] = new.x_old[i][j] = x_in
            new.s1_w[i][j] = new.w_old[i][j] = w_in
            new.v1[i][j] = new.en_out[i][j] = en_in
            new.c1[i][j] = new.clr_out[i][j] = en_in & clr_in

            new.v2[i][j], new.c2[i][j] = S.v1[i][j], S.c1[i][j]
            mul = wrap(S.s1_x[i][j] * S.s1_w[i][j], accel.product_bits)
            new.s2_p[i][j] = faults.on_net("mul", i, j, t, mul) if S.v1[i][j] else 0

            new.v3[i][j], new.c3[i][j] = S.v2[i][j], S.c2[i][j]
            new.s3_p[i][j] = S.s2_p[i][j] if S.v2[i][j] else 0

            if S.v3[i][j]:
                # clr, which came along in c1 to c3, loads the first product.
                total = (0 if S.c3[i][j] else S.mac_out[i][j]) + S.s3_p[i][j]
                new.mac_out[i][j] = wrap(total, accel.acc_bits)
    return new


# Weight stationary -----------------------------------------------------------


def _run_ws(accel, a, b, d, faults, waves):
    """One pass a tile, n0 outer, k0 inner. The sums of a pass are fed back
    through the array in the next k-tile; d is what the first one is fed.

    The sums of the idle columns beyond n are kept and fed back like any other:
    they never reach the result, but faults make them visible at the port.
    """
    rows, cols = accel.rows, accel.cols
    m, k, n = len(a), len(b), len(b[0])
    width = n + -n % cols
    acc = [row + [0] * (width - n) for row in d]
    S = state((*register_names(accel), "v2"), rows, cols)
    # Delay lines: 4 i + 1 registers of (x, en & !clr) before row i, because a sum
    # takes four cycles to reach the next row; j + 1 of psum before column j.
    S.xline = [[(0, 0)] * (4 * i + 1) for i in range(rows)]
    S.psline = [[0] * (j + 1) for j in range(cols)]
    faults.after_edge(S, -1)
    t = 0
    for n0 in range(0, n, cols):
        for k0 in range(0, k, rows):
            read = [[0] * cols for _ in range(m)]
            for c in range(5 * rows + m + cols - 1):
                load = c < rows
                row = c - rows if rows <= c < rows + m else None
                en, clr = int(load or row is not None), int(load)
                w = [padded(b, k0 + rows - 1 - c, n0 + j) if load else 0 for j in range(cols)]
                x = [0 if row is None else padded(a, row, k0 + i) for i in range(rows)]
                psum = [0 if row is None else acc[row][n0 + j] for j in range(cols)]
                S = _edge_ws(accel, S, x, w, psum, en, clr, faults, t)
                faults.after_edge(S, t)
                waves.record(S, S.mac_out[-1])
                t += 1
                for j in range(cols):
                    done = c - (rows + 4 * (rows - 1) + j + 4)  # row of a whose sum is below
                    if 0 <= done < m:
                        read[done][j] = S.mac_out[-1][j]
            for i in range(m):
                acc[i][n0 : n0 + cols] = read[i]
    return [row[:n] for row in acc]


def _edge_ws(accel, S, x, w, psum_init, en, clr, faults, t):
    """S[t] before its faults, from S[t - 1] and the ports of cycle t."""
    new = held(S)
    run = en & (1 - clr)
    load = en & clr  # global: reaches every PE in this cycle
    new.xline = [[(x[i], run), *line[:-1]] for i, line in enumerate(S.xline)]
    new.psline = [[psum_init[j] if run else 0, *line[:-1]] for j, line in enumerate(S.psline)]
    for i in range(accel.rows):
        for j in range(accel.cols):
            x_in, en_in = S.xline[i][-1] if j == 0 else (S.x_old[i][j - 1], S.en_out[i][j - 1])
            w_in = w[j] if i == 0 else S.w_old[i - 1][j]
            psum_in = S.psline[j][-1] if i == 0 else S.mac_out[i - 1][j]

            if load:
                new.w_reg[i][j] = new.w_old[i][j] = w_in
            else:
                new.w_old[i][j] = S.w_reg[i][j]
            new.x_old[i][j] = new.s1_x[i][j] = x_in
            new.s1_w[i][j] = S.w_reg[i][j]
            new.s1_psum[i][j] = psum_in if en_in else 0
            new.v1[i][j] = new.en_out[i][j] = en_in

            new.v2[i][j] = S.v1[i][j]
            mul = wrap(S.s1_x[i][j] * S.s1_w[i][j], accel.product_bits)
            new.s2_p[i][j] = faults.on_net("mul", i, j, t, mul) if S.v1[i][j] else 0
            new.s2_psum[i][j] = S.s1_psum[i][j] if S.v1[i][j] else 0

            new.v3[i][j] = S.v2[i][j]
            new.s3_p[i][j] = S.s2_p[i][j] if S.v2[i][j] else 0
            new.s3_psum[i][j] = S.s2_psum[i][j] if S.v2[i][j] else 0

            if S.v3[i][j]:
                new.mac_out[i][j] = wrap(S.s3_psum[i][j] + S.s3_p[i][j], accel.acc_bits)
    return new
