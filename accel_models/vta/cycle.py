"""The GEMM core of VTA, register by register and cycle by cycle: the specification.

Made from sources, not checked against RTL. What is stated (apache/tvm-vta,
hardware/chisel/src/main/scala/core/TensorGemm.scala, classes MAC, DotProduct and
MatrixVectorMultiplication): a core of 1 x 16 activations by 16 x 16 weights; per lane and
k the registers rA and rB in front of a multiplier; a multiply-add whose addend is tied to
0, one bit wider than the product; a tree of adders, each a bit wider than its inputs, with
one level of registers (four words of 19 bits for 16 products of 16); a delay pipe of two
words for the sum so far; a final addition that wraps at 32 bits and goes to the
accumulator memory. Lanes hand nothing to each other, and weights are read from their
memory in every operation.

What is read into it here:

* The order of operations: tiles of weights n outer, k inner, and the rows of activations
  one after another for each. Real programs choose their own by micro-ops. The memories
  are as large as a product needs.
* Addresses and the micro-ops they come from are as scheduled and no fault sites.
* Between operations the memories' ports show 0. Nothing that is latched then is written.

S[t] is the state after clock edge t. An operation latches its operands at one edge, the
sums of the tree at the next, and at the third its result is written.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from fsim.accel_models.registers import Waveform, grid, padded, read_faults, register_names
from fsim.types import wrap

from .schedule import group


def run(accel, a, b, d, table, waveform=False):
    """Multiply on the core, with faults.

    a, b      (m, k) and (k, n) int64 codes
    d         (m, n) int64, the accumulator memory before the first tile, or None for zeros
    table     (f, 10) int64 fault table, see `fsim.types.fault_table`
    waveform  keep every register of every cycle

    Returns out, int64 (m, n), and None or the waves: register -> int64 (cycles, rows,
    cols) of its grid, and "out" -> what the final adders show at each edge, int64
    (cycles, cols).
    """
    rows, cols = accel.rows, accel.cols
    (m, k), n = a.shape, b.shape[1]
    a, b = a.tolist(), b.tolist()
    # A word of the accumulator memory is all lanes wide; idle lanes write theirs too.
    memory = np.zeros((m, n + -n % cols), np.int64)
    memory[:, :n] = 0 if d is None else d
    memory = memory.tolist()
    faults = read_faults(accel, table)
    waves = Waveform(waveform, register_names(accel))
    operations = _operations(accel, m, k, n)

    heights = {c.name: c.grid[0] for c in accel.components if c.kind == "register"}
    S = SimpleNamespace(**{name: grid(height, cols) for name, height in heights.items()})
    faults.after_edge(S, -1)
    for t in range(max(operations) + 3):
        sums = _sums(accel, S, faults, t)
        if t - 2 in operations:
            row, _, n0 = operations[t - 2]
            memory[row][n0 : n0 + cols] = sums
        new = SimpleNamespace(
            rA=grid(rows, cols),
            rB=grid(rows, cols),
            tree=_tree(accel, S, faults, t),
            acc0=grid(1, cols),
            acc1=[S.acc0[0][:]],
        )
        if t in operations:
            row, k0, n0 = operations[t]
            for j in range(cols):
                for i in range(rows):
                    new.rA[i][j] = padded(a, row, k0 + i)
                    new.rB[i][j] = padded(b, k0 + i, n0 + j)
                new.acc0[0][j] = memory[row][n0 + j]
        S = new
        faults.after_edge(S, t)
        waves.record(S, sums)
    return np.array(memory, np.int64)[:, :n], waves.arrays()


def _operations(accel, m, k, n):
    """Edge at which an operation latches its operands -> (row of A, k0, n0)."""
    apart = int(accel.parameters["issue_cycles"])
    found, t = {}, 0
    for n0 in range(0, n, accel.cols):
        for k0 in range(0, k, accel.rows):
            for row in range(m):
                found[t + row * apart] = row, k0, n0
            # What row 0 wrote by edge t + 2 can be read for edge t + 3.
            t += max(m * apart, 3)
    return found


def _tree(accel, S, faults, t):
    """What edge t latches inside the trees: sums of groups of products."""
    size = group(accel)
    sums = grid(-(-accel.rows // size), accel.cols)
    for i in range(accel.rows):
        for j in range(accel.cols):
            product = wrap(S.rA[i][j] * S.rB[i][j], accel.product_bits)
            product = faults.on_net("mul", i, j, t, product)
            # Adders are as wide as their sums need.
            sums[i // size][j] += faults.on_net("mac", i, j, t, product)
    return sums


def _sums(accel, S, faults, t):
    """What the final adders show for edge t, by lane."""
    found = []
    for j in range(accel.cols):
        dot = faults.on_net("dot", 0, j, t, sum(row[j] for row in S.tree))
        found.append(wrap(S.acc1[0][j] + dot, accel.acc_bits))
    return found
