"""Replay on `vta-like`: recompute the outputs that faults touch.

An operation's values stand in each register for one cycle, so that one output is a walk
over its tiles of k: where no fault is near, a dot product; else the lane's registers and
nets in the order of the pipeline. `mark` finds the outputs, by the cycles of the rows that
an operation of the struck lane works on.
"""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel
from fsim.simulator.kernels.replay import wrap
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
    T_WORD,
    T_XOR,
)

from .schedule import ACC0, ACC1, DOT, MAC, MUL, RA, RB, TREE, group, tiles

# Edges after that of the operands at which a component holds the value (or, a net, is used).
_DELAY = np.zeros(8, np.int64)
_DELAY[[MUL, MAC, TREE, ACC1]] = 1
_DELAY[DOT] = 2

_FAR = np.int64(1) << 60
"""Cycles beyond any schedule; keeps differences of cycles in int64."""

# Columns of the integer vector that describes a product to the kernels.
G_K, G_ROWS, G_COLS, G_FOLDS, G_STEP, G_APART, G_GROUP, G_PRODUCT, G_ACC = range(9)


def geometry(accel, m: int, k: int, n: int) -> np.ndarray:
    """One product (m,k)(k,n) as the kernels want it, (9,) int64 with the columns G_*."""
    _, step = tiles(accel, m, k, n)
    return np.array(
        [
            k,
            accel.rows,
            accel.cols,
            -(-k // accel.rows),
            step,
            int(accel.parameters["issue_cycles"]),
            group(accel),
            accel.product_bits,
            accel.acc_bits,
        ],
        np.int64,
    )


@kernel
def strike(value, table, faults, count, component, row, t, bits):
    """`value` of an element of the lane after the faults that act on it in cycle t.

    faults  the first `count` are the rows of `table` in this lane, in table order
    """
    for i in range(count):
        f = faults[i]
        if table[f, T_COMPONENT] != component or table[f, T_ROW] != row:
            continue
        if table[f, T_FIRST] <= t <= table[f, T_LAST]:
            value = ((value & table[f, T_AND]) | table[f, T_OR]) ^ table[f, T_XOR]
            value = wrap(value, bits[component])
    return value


@kernel
def near(table, faults, count, t):
    """Whether any fault of the lane meets the operation whose operands come at edge t."""
    for i in range(count):
        f = faults[i]
        at = t + _DELAY[table[f, T_COMPONENT]]
        if table[f, T_FIRST] <= at <= table[f, T_LAST]:
            return True
    return False


@kernel
def operate(a_row, b_col, k0, acc, t, vector, table, faults, count, bits):
    """One operation of one lane, with faults: the sum that it writes.

    a_row, b_col  (k,) int64; its slots are k0 to k0 + rows - 1, beyond k they are 0
    acc           the sum so far, as read
    t             edge that latches the operands
    """
    product_bits = vector[G_PRODUCT]
    total = np.int64(0)
    node = np.int64(0)
    for i in range(vector[G_ROWS]):
        x = np.int64(0)
        w = np.int64(0)
        if k0 + i < vector[G_K]:
            x = a_row[k0 + i]
            w = b_col[k0 + i]
        x = strike(x, table, faults, count, RA, i, t, bits)
        w = strike(w, table, faults, count, RB, i, t, bits)
        product = wrap(x * w, product_bits)
        product = strike(product, table, faults, count, MUL, i, t + 1, bits)
        node += strike(product, table, faults, count, MAC, i, t + 1, bits)
        if (i + 1) % vector[G_GROUP] == 0 or i + 1 == vector[G_ROWS]:
            at = i // vector[G_GROUP]
            total += strike(node, table, faults, count, TREE, at, t + 1, bits)
            node = np.int64(0)
    total = strike(total, table, faults, count, DOT, 0, t + 2, bits)
    acc = strike(acc, table, faults, count, ACC0, 0, t, bits)
    acc = strike(acc, table, faults, count, ACC1, 0, t + 1, bits)
    return wrap(acc + total, vector[G_ACC])


@kernel
def walk(a_row, b_col, start, word, row, tile, vector, table, faults, count, bits):
    """One output with all faults.

    start  its bias; word its address in the memory of sums: rows of the table with that
           T_WORD act on the sum that the tile T_FIRST of k stores there
    row    its row of A; tile, the number of its tile of n
    """
    acc = start
    folds, rows, step = vector[G_FOLDS], vector[G_ROWS], vector[G_STEP]
    spare = 64 - vector[G_PRODUCT]
    for fold in range(folds):
        t = (tile * folds + fold) * step + row * vector[G_APART]
        k0 = fold * rows
        if count and near(table, faults, count, t):
            acc = operate(a_row, b_col, k0, acc, t, vector, table, faults, count, bits)
        else:
            for i in range(k0, min(k0 + rows, vector[G_K])):
                acc += ((a_row[i] * b_col[i]) << spare) >> spare
            acc = wrap(acc, vector[G_ACC])
        for f in range(table.shape[0]):
            if table[f, T_WORD] == word and table[f, T_FIRST] == fold:
                acc = ((acc & table[f, T_AND]) | table[f, T_OR]) ^ table[f, T_XOR]
                acc = wrap(acc, vector[G_ACC])
    return acc


@kernel
def mark(vector, table, touched):
    """Set touched[m, n] for every output that a fault meets."""
    m, n = touched.shape
    folds, step, apart = vector[G_FOLDS], vector[G_STEP], vector[G_APART]
    for f in range(table.shape[0]):
        if table[f, T_WORD] >= 0:
            touched[table[f, T_WORD] // n, table[f, T_WORD] % n] = 1
            continue
        delay = _DELAY[table[f, T_COMPONENT]]
        for column in range(table[f, T_COL], n, vector[G_COLS]):
            base = column // vector[G_COLS] * folds * step
            for _ in range(folds):
                first = table[f, T_FIRST] - delay - base
                last = table[f, T_LAST] - delay - base
                for row in range(max(0, -(-first // apart)), min(m - 1, last // apart) + 1):
                    touched[row, column] = 1
                base += step


@kernel
def recompute(a, b_t, d, vector, table, bits, touched, out):
    """Overwrite the touched outputs.

    a (m, k), b_t (n, k), d (m, n) int64; table (f, 10) int64, STATE rows with last = first
    bits (components,) int64 widths; touched (m, n) uint8
    """
    m, n = out.shape
    faults = np.empty(max(1, table.shape[0]), np.int64)
    for column in range(n):
        count = 0
        for f in range(table.shape[0]):
            if table[f, T_WORD] < 0 and table[f, T_COL] == column % vector[G_COLS]:
                faults[count] = f
                count += 1
        for row in range(m):
            if touched[row, column]:
                out[row, column] = walk(
                    a[row],
                    b_t[column],
                    d[row, column],
                    row * n + column,
                    row,
                    column // vector[G_COLS],
                    vector,
                    table,
                    faults,
                    count,
                    bits,
                )


def run(accel, a, b, d, table, out, everything=False) -> np.ndarray:
    """Patch `out` (m, n) int64 with the faulty values of all touched outputs.

    a (m, k), b (k, n), d (m, n) int64; table (f, 10) int64: registers and nets, and rows
    with a word >= 0, flips of sums in the accumulator memory (see `simulator/replay.py`)
    everything  walk all outputs

    Returns the touched outputs as a (m, n) bool array.
    """
    table = np.array(table, np.int64).reshape(-1, 10)
    np.clip(table[:, T_FIRST], -1, _FAR, out=table[:, T_FIRST])
    np.minimum(table[:, T_LAST], _FAR, out=table[:, T_LAST])
    state = table[:, T_EFFECT] == STATE
    table[state, T_LAST] = table[state, T_FIRST]
    vector = geometry(accel, len(a), *b.shape)
    touched = np.full(out.shape, everything, np.uint8)
    if not everything:
        mark(vector, table, touched)
    patched = np.ascontiguousarray(out)
    recompute(
        np.ascontiguousarray(a),
        np.ascontiguousarray(b.T),
        np.ascontiguousarray(d),
        vector,
        table,
        np.array([component.bits for component in accel.components], np.int64),
        touched,
        patched,
    )
    if patched is not out:
        out[...] = patched
    return touched.astype(bool)
