"""The matrix unit of a TPU v1, register by register and cycle by cycle: the specification.

Made from documents, not checked against RTL. Source of what is stated: Jouppi et al.,
ISCA 2017 (arXiv 1704.04760), section 2: activations enter from the left and weights from
the top; the unit holds one tile of weights and one more for double buffering, "to hide
the 256 cycles it takes to shift a tile in"; weights "are preloaded, and take effect with
the advancing wave alongside the first data of a new block"; 16-bit products are collected
in 32-bit accumulators below the array.

What the paper does not say, and how it is read here:

* Shifting a tile in: the word of the last row enters first; the words of column j enter j
  cycles after those of column 0; a PE begins to shift with the wave that takes its shadow
  weight over, and all PEs of a column stop when its last word has entered. So the load
  of the next tile begins at once and never overtakes the wave. (A buffer that is free is
  filled: the Weight FIFO holds the next tiles.)
* The wave: in the cycle in which PE (i, j) captures the first activation of a tile, its
  shadow weight is copied (not swapped) to the active one.
* Width of the sums in the array: that of the accumulators, acc_bits, wrapping.
* Control (the wave's token, the shift enable) is as scheduled and no fault site.
* The triangle of registers that skews the activations in front of the array is no fault
  site of its own: a word in it is one that `act` of column 0 holds some cycles later.

S[t] is the state after clock edge t. Fault sites of PE (i, j): act, w_shadow, w_active,
psum, and the net `mul`, the product that edge t adds.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from fsim.accel_models.registers import Waveform, grid, padded, read_faults, register_names, state
from fsim.types import wrap


def run(accel, a, b, d, table, waveform=False):
    """Multiply on the array, with faults.

    a, b      (m, k) and (k, n) int64 codes
    d         (m, n) int64, the accumulators before the first tile, or None for zeros
    table     (f, 10) int64 fault table, see `fsim.types.fault_table`
    waveform  keep every register of every cycle

    Returns out, int64 (m, n), and None or the waves: register -> int64
    (cycles, rows, cols), and "out" -> psum of the bottom row, int64 (cycles, cols).
    """
    rows, cols = accel.rows, accel.cols
    (m, k), n = a.shape, b.shape[1]
    acc = np.zeros((m, n), np.int64).tolist() if d is None else d.tolist()
    a, b = a.tolist(), b.tolist()
    faults = read_faults(accel, table)
    waves = Waveform(waveform, register_names(accel))
    tiles = [(n0, k0) for n0 in range(0, n, cols) for k0 in range(0, k, rows)]
    step = max(m, rows)
    start = [rows + p * step for p in range(len(tiles))]
    load = [0, *start[:-1]]  # when the words of a tile begin to enter column 0

    S = state(register_names(accel), rows, cols)
    faults.after_edge(S, -1)
    for t in range(start[-1] + m + rows + cols - 1):
        inputs = SimpleNamespace(
            act=[_activation(a, tiles, start, i, t) for i in range(rows)],
            word=[_word(b, tiles, load, rows, j, t) for j in range(cols)],
            shift=[[_shifts(load, rows, i, j, t) for j in range(cols)] for i in range(rows)],
            take=[[t - i - j in start for j in range(cols)] for i in range(rows)],
        )
        S = _edge(accel, S, inputs, faults, t)
        faults.after_edge(S, t)
        waves.record(S, S.psum[-1])
        for (n0, _), begin in zip(tiles, start):
            for j in range(min(cols, n - n0)):
                row = t - (begin + rows + j)  # row of A whose sum is at the bottom
                if 0 <= row < m:
                    acc[row][n0 + j] = wrap(acc[row][n0 + j] + S.psum[-1][j], accel.acc_bits)
    return np.array(acc, np.int64), waves.arrays()


def _activation(a, tiles, start, i, t):
    """What enters the left of row i at edge t: 0 where no tile has a row for it."""
    for (_, k0), begin in zip(tiles, start):
        if 0 <= t - i - begin < len(a):
            return padded(a, t - i - begin, k0 + i)
    return 0


def _word(b, tiles, load, rows, j, t):
    """What enters the top of the shadow weights of column j at edge t, last row first."""
    for (n0, k0), begin in zip(tiles, load):
        if 0 <= t - j - begin < rows:
            return padded(b, k0 + rows - 1 - (t - j - begin), n0 + j)
    return 0


def _shifts(load, rows, i, j, t):
    """Whether the shadow weight of PE (i, j) takes the one above at edge t."""
    return any(begin + i + j <= t < begin + j + rows for begin in load)


def _edge(accel, S, inputs, faults, t):
    """S[t] before its faults, from S[t - 1] and the inputs of cycle t."""
    new = SimpleNamespace(
        act=[[inputs.act[i], *S.act[i][:-1]] for i in range(accel.rows)],
        w_shadow=[row[:] for row in S.w_shadow],
        w_active=[row[:] for row in S.w_active],
        psum=grid(accel.rows, accel.cols),
    )
    for i in range(accel.rows):
        for j in range(accel.cols):
            product = wrap(S.act[i][j] * S.w_active[i][j], accel.product_bits)
            above = 0 if i == 0 else S.psum[i - 1][j]
            new.psum[i][j] = wrap(above + faults.on_net("mul", i, j, t, product), accel.acc_bits)
            if inputs.take[i][j]:
                new.w_active[i][j] = S.w_shadow[i][j]
            if inputs.shift[i][j]:
                new.w_shadow[i][j] = inputs.word[j] if i == 0 else S.w_shadow[i - 1][j]
    return new
