"""Compiled: one PE of `eyeriss-like` in one pass, with and without faults.

`struck_sums` goes through the pass edge by edge as `cycle.py` does and takes any mix of
faults; `row_sums` is the same pass without faults, as the sums it amounts to.
"""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel
from fsim.simulator.kernels.replay import wrap
from fsim.types import LEVEL, T_AND, T_COMPONENT, T_EFFECT, T_FIRST, T_LAST, T_OR, T_WORD, T_XOR

# Columns of the pass's integer vector.
R_WINDOW, R_FILTERS, R_STEP, R_FRESH, R_OUTPUTS, R_TRUNCATE, R_PRODUCT, R_ACC = range(8)


def vector(accel, row, truncate: int) -> np.ndarray:
    """A RowPass as int64 for the kernels (columns R_*)."""
    return np.array(
        [row.window, row.p, row.step, row.fresh, row.outputs, truncate,
         accel.product_bits, accel.acc_bits], np.int64,
    )  # fmt: skip


@kernel
def _force(value, table, r, bits):
    return wrap(((value & table[r, T_AND]) | table[r, T_OR]) ^ table[r, T_XOR], bits)


@kernel
def _active(table, r, t):
    if table[r, T_EFFECT] == LEVEL:
        return table[r, T_FIRST] <= t <= table[r, T_LAST]
    return table[r, T_FIRST] == t


@kernel
def _edge(pads, offset, table, bits, t):
    """Faults of the scratchpads (components 0 to 2) after edge t."""
    for r in range(len(table)):
        number = table[r, T_COMPONENT]
        if number < 3 and _active(table, r, t):
            at = offset[number] + table[r, T_WORD]
            pads[at] = _force(pads[at], table, r, bits[number])
    return t + 1


@kernel
def row_sums(row, ifmap, filters, out):
    """out (F, p) int64: the sums of a pass, without the incoming ones.

    row      columns R_*; ifmap, filters int64 as `cycle.run_pe` takes them
    """
    n, p, shift = row[R_WINDOW], row[R_FILTERS], row[R_TRUNCATE]
    for f in range(row[R_OUTPUTS]):
        for j in range(p):
            out[f, j] = 0
        for i in range(n):
            x = ifmap[f * row[R_STEP] + i]
            if x != 0:
                for j in range(p):
                    out[f, j] += (x * filters[i * p + j]) >> shift
        for j in range(p):
            out[f, j] = wrap(out[f, j], row[R_ACC])


@kernel
def struck_sums(row, sizes, bits, ifmap, filters, table, out):
    """out (F, p) int64: the sums of a pass under faults, without the incoming ones.

    sizes  (3,) int64 words of the scratchpads; bits (components,) int64 widths
    table  (f, 10) int64 columns T_*, cycles those of the pass, no faults of buses
    """
    n, p, shift, fresh = row[R_WINDOW], row[R_FILTERS], row[R_TRUNCATE], row[R_FRESH]
    offset = np.zeros(4, np.int64)
    for i in range(3):
        offset[i + 1] = offset[i] + sizes[i]
    pads = np.zeros(offset[3], np.int64)
    weights, sums = offset[1], offset[2]
    gated = np.ones(sizes[0], np.uint8)
    products = 0
    for r in range(len(table)):
        products += table[r, T_COMPONENT] == 3
    t = _edge(pads, offset, table, bits, np.int64(-1))
    for word in range(n * p):
        pads[weights + word] = filters[word]
        if word < n:
            pads[word], gated[word] = ifmap[word], ifmap[word] == 0
        t = _edge(pads, offset, table, bits, t)
    for f in range(row[R_OUTPUTS]):
        first = n - fresh  # cell of the first new pixel; the pixel lies as far in the window
        arrived = np.int64(0) if f > 0 else fresh
        if arrived < fresh and fresh == n:
            pads[0], gated[0] = ifmap[f * row[R_STEP]], ifmap[f * row[R_STEP]] == 0
            arrived = 1
            t = _edge(pads, offset, table, bits, t)
        for i in range(n):
            for j in range(p):
                value = np.int64(0)
                if gated[i] == 0:
                    value = wrap((pads[i] * pads[weights + i * p + j]) >> shift, row[R_PRODUCT])
                if products:
                    for r in range(len(table)):
                        if table[r, T_COMPONENT] == 3 and _active(table, r, t):
                            value = _force(value, table, r, bits[3])
                if i:
                    value += pads[sums + j]
                pads[sums + j] = wrap(value, row[R_ACC])
                if arrived < fresh:
                    pixel = ifmap[f * row[R_STEP] + first + arrived]
                    pads[first + arrived], gated[first + arrived] = pixel, pixel == 0
                    arrived += 1
                t = _edge(pads, offset, table, bits, t)
        for j in range(p):
            out[f, j] = pads[sums + j]
            t = _edge(pads, offset, table, bits, t)
        if f + 1 < row[R_OUTPUTS]:
            for _ in range(fresh):
                for cell in range(sizes[0] - 1):
                    pads[cell], gated[cell] = pads[cell + 1], gated[cell + 1]
                t = _edge(pads, offset, table, bits, t)


@kernel
def pixels(codes, y, channel, q, padding, out):
    """The ifmap row that enters PEs: out int64, channel innermost, zeros outside.

    codes  (h, w, c) of one group, any integer type; channel: first of the block
    """
    h, w, channels = codes.shape
    for index in range(len(out)):
        x, c = index // q - padding, channel + index % q
        out[index] = 0
        if 0 <= y < h and 0 <= x < w and c < channels:
            out[index] = codes[y, x, c]


@kernel
def filter_words(weights, i, channel, first, q, p, out):
    """The filter row of a block: out int64 (S q p), filter innermost, zeros outside.

    weights  (kh, kw, c, n) of one group; i: kernel row; channel, first: of the block
    """
    _, kw, channels, filters = weights.shape
    for s in range(kw):
        for c in range(q):
            for j in range(p):
                value = np.int64(0)
                if channel + c < channels and first + j < filters:
                    value = np.int64(weights[i, s, channel + c, first + j])
                out[(s * q + c) * p + j] = value


@kernel
def difference(row, sizes, bits, ifmap, filters, read, held, table, clean, out):
    """out (F, p) int64: struck sums of a pass less its clean ones.

    ifmap, filters  as the buffer has them; read, held: as they arrive
    clean           (F, p) scratch
    """
    row_sums(row, ifmap, filters, clean)
    struck_sums(row, sizes, bits, read, held, table, out)
    for f in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[f, j] -= clean[f, j]


@kernel
def struck_words(
    codes, weights, geometry, per_pass, truncate, bits, position, n, table, extra, row0, n0, sums
):
    """Partial sums struck in the buffer, one after another: final `sums`, changed in place.

    codes, weights  (h, w, c) and (kh, kw, c, n) of the group
    geometry        (stride y, x, padding top, left, out_w)
    per_pass        channels of a pass; bits: of a sum
    position, n     (f,) of each sum; table (f, 10) its fault, `first` the pass that stored it,
                    ascending for each sum
    extra           (f,) what faults of the PEs add to it in later passes
    sums            (positions, filters) int64 from position row0 and filter n0 on
    """
    h, w, channels = codes.shape
    kh, kw = weights.shape[:2]
    for i in range(len(table)):
        y, x = divmod(position[i], geometry[4])
        later = extra[i]
        for ky in range(kh):
            row = y * geometry[0] + ky - geometry[2]
            for kx in range(kw):
                col = x * geometry[1] + kx - geometry[3]
                if 0 <= row < h and 0 <= col < w:
                    for c in range((table[i, T_FIRST] + 1) * per_pass, channels):
                        product = np.int64(codes[row, col, c]) * np.int64(weights[ky, kx, c, n[i]])
                        later += product >> truncate
        p, o = position[i] - row0, n[i] - n0
        held = wrap(sums[p, o] - later, bits)
        sums[p, o] = wrap(_force(held, table, i, bits) + later, bits)
