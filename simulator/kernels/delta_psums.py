"""What hits in the memory of partial sums make of codes."""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel

from .delta_table import (
    ACC_BITS,
    AT,
    BIAS,
    DH,
    DW,
    FLAT,
    KH,
    KW,
    LEFT,
    PER,
    PIXEL,
    ROW,
    SH,
    SUMS,
    SW,
    TOP,
    ZERO,
    A,
    C,
    W,
)
from .replay import wrap


@kernel
def _prefix(op, source, o, pixel, frame, plain, end):
    """Sum of the products of slots [0, end) of one output; plain (o, slots) int8."""
    y = pixel // op[W]
    x = pixel - y * op[W]
    total, per, windows = np.int64(0), op[PER], op[KH] * op[KW]
    first = o // (op[C] * per // source[C]) * per  # channel of the output's group
    for k in range(end):
        if op[FLAT]:
            c = k // windows
            window = k - c * windows
        else:
            window = k // per
            c = k - window * per
        ky = window // op[KW]
        at = source[AT] + (y * op[SH] - op[TOP] + ky * op[DH]) * source[ROW]
        at += (x * op[SW] - op[LEFT] + (window - ky * op[KW]) * op[DW]) * source[PIXEL]
        code = np.int64(frame[at + first + c]) - source[ZERO]
        total += code * np.int64(plain[o * per * windows + k])
    return total


@kernel
def psum_codes(ops, limits, plain, plain_at, bias, factors, fold_slots, frames, known, image,
               layer, rows, index, code):  # fmt: skip
    """The code that one hit in the memory of partial sums makes of an output.

    plain       int8 weights (o, slots) of each operation, from plain_at on
    bias        (..,) int64 by operation, from ops[BIAS] on, as `factors`
    fold_slots  (o,) slots after which a sum is stored
    frames, known  (images, ..) golden codes and sums without bias
    image, layer, rows  (f,) the image, the operation and the FAULT record: word (m, o),
                first the fold
    index, code (f,) int64 and int32, overwritten: place in the codes (h, w, c), new code
    """
    for f in range(len(rows)):
        op = ops[layer[f]]
        source, row = ops[op[A]], rows[f]
        pixel = row.word // op[C]
        o = row.word - pixel * op[C]
        size = op[KH] * op[KW] * op[PER]
        limit = (row.first + 1) * fold_slots[layer[f]]
        whole = np.int64(known[image[f], op[SUMS] + row.word])
        part = whole
        if limit < size:
            weights = plain[plain_at[layer[f]] :]
            part = _prefix(op, source, o, pixel, frames[image[f]], weights, limit)
        stored = wrap(bias[op[BIAS] + o] + part, op[ACC_BITS])
        struck = wrap(((stored & row.and_mask) | row.or_mask) ^ row.xor_mask, op[ACC_BITS])
        value = wrap(struck + whole - part, op[ACC_BITS])
        v = np.float32(value) * factors[op[BIAS] + o]
        v = v if v > limits[layer[f], 0] else limits[layer[f], 0]
        v = v if v < limits[layer[f], 1] else limits[layer[f], 1]
        index[f], code[f] = row.word, np.int32(np.rint(v))
