"""Gemmini's mesh, register by register and cycle by cycle: the specification.

One PE a tile, double-buffered: while one of the accumulators (OS) or weights
(WS) c1 and c2 works, the other is loaded for the next tile and drained of the
one before; `prop` says which, and toggles with every tile. S[t] is the state
after clock edge t; X[t] are the inputs of the mesh in cycle t.

Semantics: the Chisel-generated Mesh/Tile/PE/MacUnit of ucb-bar/gemmini with
tile_latency 0 and output_delay 1. The RTL is square; here the columns may differ
from the rows: chains, preload and drain are as long as the array has rows.

Registers of PE (i, j), all at its inputs:
    a      activation                                operand_bits
    b      OS: weight; WS: partial sum               operand_bits; acc_bits
    d      OS: bias in, result out; WS: weight       acc_bits; operand_bits
    c1 c2  OS: accumulators; WS: weights             acc_bits; operand_bits
    valid  gates every write but a's and its own     1
    prop   which of c1 and c2 works                  1
and the net `mul`, the product on its way to the adder (product_bits). The row of
output registers `oreg` below the array is no fault site.
"""

from __future__ import annotations

from typing import NamedTuple

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


class Token(NamedTuple):
    """What enters the mesh together: a by row, b and d by column, one `prop`.

    Skewed by one cycle a row (a) or column (b, d, valid, prop): element i of
    token g is at the mesh in cycle g + i.
    """

    a: list[int]
    b: list[int]
    d: list[int]
    prop: int


class Read(NamedTuple):
    """`oreg[j]` after edge t belongs to element (m, n) of the result."""

    t: int
    j: int
    m: int
    n: int


def run(accel, a, b, d, table, waveform=False):
    """Multiply on the mesh, with faults.

    a, b      (m, k) and (k, n) int64 codes
    d         (m, n) int64 added to the product, or None for zeros
    table     (f, 10) int64 fault table, see `fsim.types.fault_table`
    waveform  keep every register of every cycle

    Returns out, int64 (m, n), and None or the waves: register -> int64
    (cycles, rows, cols), and "out" -> oreg, int64 (cycles, cols).
    """
    rows, cols, acc_bits = accel.rows, accel.cols, accel.acc_bits
    m, n = len(a), b.shape[1]
    d = None if d is None else d.tolist()
    schedule, edge = (_tokens_os, _edge_os) if accel.dataflow == "os" else (_tokens_ws, _edge_ws)
    tokens, reads = schedule(a.tolist(), b.tolist(), d, rows, cols)
    faults = read_faults(accel, table)
    names = register_names(accel)
    waves = Waveform(waveform, names)

    due = {}
    for read in reads:
        due.setdefault(read.t, []).append(read)
    out = [[0] * n for _ in range(m)]
    S = state(names, rows, cols)
    faults.after_edge(S, -1)
    for t in range(len(tokens) + rows + cols):
        S, oreg = edge(accel, S, _inputs(tokens, rows, cols, t), faults, t)
        faults.after_edge(S, t)
        waves.record(S, oreg)
        for read in due.get(t, ()):
            # OS reads each element once. WS reads it once a k-tile, and the
            # accumulator memory outside the mesh adds.
            out[read.m][read.n] = wrap(out[read.m][read.n] + oreg[read.j], acc_bits)
    return np.array(out, np.int64), waves.arrays()


def _inputs(tokens: list[Token], rows: int, cols: int, t: int):
    """X[t]: in_a by row; in_b, in_d, in_valid, in_prop by column; 0 without a token."""

    nothing = Token([0] * rows, [0] * cols, [0] * cols, 0)

    def at(skew):
        return tokens[t - skew] if 0 <= t - skew < len(tokens) else nothing

    def valid(skew):
        return int(0 <= t - skew < len(tokens))

    in_a = [at(i).a[i] for i in range(rows)]
    above = [(at(j).b[j], at(j).d[j], valid(j), at(j).prop) for j in range(cols)]
    return in_a, above


def _edge_os(accel, S, X, faults, t):
    """S[t] before its faults, and oreg after edge t: output stationary."""
    in_a, above = X
    new = held(S)
    oreg = []
    for j in range(accel.cols):
        up_b, up_d, up_valid, up_prop = above[j]
        for i in range(accel.rows):
            a, b, d = S.a[i][j], S.b[i][j], S.d[i][j]
            c1, c2, valid, prop = S.c1[i][j], S.c2[i][j], S.valid[i][j], S.prop[i][j]

            prod = faults.on_net("mul", i, j, t, wrap(a * b, accel.product_bits))
            mac = wrap(prod + (c2 if prop else c1), accel.acc_bits)
            out_c = c1 if prop else c2

            new.a[i][j] = in_a[i] if j == 0 else S.a[i][j - 1]
            new.valid[i][j] = up_valid
            if up_valid:
                new.b[i][j], new.d[i][j], new.prop[i][j] = up_b, up_d, up_prop
            if valid:
                new.c1[i][j], new.c2[i][j] = (d, mac) if prop else (mac, d)

            up_b, up_d, up_valid, up_prop = b, out_c, valid, prop
        oreg.append(up_d)
    return new, oreg


def _edge_ws(accel, S, X, faults, t):
    """S[t] before its faults, and oreg after edge t: weight stationary."""
    in_a, above = X
    new = held(S)
    oreg = []
    for j in range(accel.cols):
        up_b, up_d, up_valid, up_prop = above[j]
        for i in range(accel.rows):
            a, b, d = S.a[i][j], S.b[i][j], S.d[i][j]
            c1, c2, valid, prop = S.c1[i][j], S.c2[i][j], S.valid[i][j], S.prop[i][j]

            x = c2 if prop else c1
            prod = faults.on_net("mul", i, j, t, wrap(a * x, accel.product_bits))
            mac = wrap(prod + b, accel.acc_bits)
            out_c = c1 if prop else c2

            new.a[i][j] = in_a[i] if j == 0 else S.a[i][j - 1]
            new.valid[i][j] = up_valid
            if up_valid:
                new.b[i][j], new.d[i][j], new.prop[i][j] = up_b, up_d, up_prop
            if valid and prop:
                new.c1[i][j] = d
            elif valid:
                new.c2[i][j] = d

            up_b, up_d, up_valid, up_prop = mac, out_c, valid, prop
        oreg.append(up_b)
    return new, oreg


def _tokens_os(a, b, d, rows, cols):
    """Token stream and reads, output stationary; tiles m0 outer, n0 inner.

    Phase 0 preloads the first tile's bias, bottom row first. Phase p = 1.. runs
    tile p - 1 while the last `rows` tokens preload the tile after it. One more
    phase drains the last tile.
    """
    m, k, n = len(a), len(b), len(b[0])
    tiles = [(m0, n0) for m0 in range(0, m, rows) for n0 in range(0, n, cols)]
    length = max(k, rows)

    def bias(tile, step):
        """Word `step` of the preload of a tile: one row of d; zeros after the last tile."""
        if tile == len(tiles):
            return [0] * cols
        m0, n0 = tiles[tile]
        return [padded(d, m0 + rows - 1 - step, n0 + j) for j in range(cols)]

    none_a, none = [0] * rows, [0] * cols
    tokens = [Token(none_a, none, bias(0, step), 1) for step in range(rows)]
    reads, prop = [], 1
    for tile, (m0, n0) in enumerate(tiles):
        prop = 1 - prop
        for step in range(length):
            drain = step - (length - rows)
            tokens.append(
                Token(
                    [padded(a, m0 + i, step) for i in range(rows)],
                    [padded(b, step, n0 + j) for j in range(cols)],
                    bias(tile + 1, drain) if drain >= 0 else none,
                    prop,
                )
            )
        g0 = len(tokens)  # first token of the phase in which this tile drains
        for step in range(rows):
            for j in range(cols):
                if m0 + rows - 1 - step < m and n0 + j < n:
                    reads.append(Read(g0 + step + rows + j, j, m0 + rows - 1 - step, n0 + j))
    tokens += [Token(none_a, none, none, 1 - prop)] * rows
    return tokens, reads


def _tokens_ws(a, b, d, rows, cols):
    """Token stream and reads, weight stationary; tiles n0 outer, k0 inner.

    Phase 0 preloads the first tile's weights, bottom row first. Phase p = 1..
    streams the m rows of a through tile p - 1 while its last `rows` tokens
    preload the weights of the tile after it. The bias enters with the first
    k-tile.
    """
    m, k, n = len(a), len(b), len(b[0])
    tiles = [(k0, n0) for n0 in range(0, n, cols) for k0 in range(0, k, rows)]
    length = max(m, rows)

    def weights(tile, step):
        """Word `step` of the preload of a tile: one row of b; zeros after the last tile."""
        if tile == len(tiles):
            return [0] * cols
        k0, n0 = tiles[tile]
        return [padded(b, k0 + rows - 1 - step, n0 + j) for j in range(cols)]

    none_a, none = [0] * rows, [0] * cols
    tokens = [Token(none_a, none, weights(0, step), 1) for step in range(rows)]
    reads, prop = [], 1
    for tile, (k0, n0) in enumerate(tiles):
        prop = 1 - prop
        g0 = len(tokens)
        for row in range(length):
            load = row - (length - rows)
            tokens.append(
                Token(
                    [padded(a, row, k0 + i) for i in range(rows)],
                    [padded(d, row, n0 + j) for j in range(cols)] if k0 == 0 else none,
                    weights(tile + 1, load) if load >= 0 else none,
                    prop,
                )
            )
        for row in range(m):
            for j in range(min(cols, n - n0)):
                reads.append(Read(g0 + row + rows + j, j, row, n0 + j))
    return tokens, reads
