"""What a few wrong codes of one image change in the rest of a network.

The image's golden codes are known. Each fault begins with changed codes of one operation;
from there on, in the order of the operations, every pixel that reads a changed one is made
again, all its channels, in place. Pixels that are equal to the golden ones go no further.
In the end those that changed are put back, and the next fault finds the golden image.

Whole pixels need many more products than the differences of single codes would. But those
differences have to be found, listed and matched with weights one by one, which takes longer.
"""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel

from .delta_lanes import copy16, count_bits, differ16, first_bit
from .delta_psums import psum_codes
from .delta_rows import NOWHERE, list_same, list_windows, mark, settle
from .delta_table import (
    ACC_BITS,
    ADD,
    AT,
    AVERAGE,
    CONV,
    CONV_VNNI,
    COPY,
    DEPTHWISE,
    KIND,
    LAST,
    MASK,
    PIXEL,
    RELU,
    ROW,
    SPAN,
    WEIGHT,
    ZERO,
    A,
    B,
    C,
    W,
)
from .delta_work import add, convolve, convolve_bytes, copy, depthwise, pool, relu
from .replay import wrap

__all__ = ["CONV", "CONV_VNNI", "KIND", "propagate", "psum_codes"]


@kernel
def _strike(ops, number, index, code, masks, low, high, work, golden):
    """Change codes of an operation; whether any is another one."""
    width, pixel = ops[number, W], ops[number, PIXEL]
    for i in range(len(index)):
        at = index[i] // ops[number, C]
        y = at // width
        x = at - y * width
        to = ops[number, AT] + y * ops[number, ROW] + x * pixel + index[i] - at * ops[number, C]
        work[to] = np.uint8((code[i] + ops[number, ZERO]) & 255)
        mark(ops, number, y, x, masks, low, high)
    first, last = low[number], high[number]
    low[number], high[number] = NOWHERE, -1
    for y in range(first, last + 1):
        for word in range(ops[number, SPAN]):
            at = ops[number, MASK] + y * ops[number, SPAN] + word
            bits, masks[at] = masks[at], np.uint64(0)
            while bits:
                x = 64 * word + first_bit(bits)
                bits &= bits - np.uint64(1)
                to = ops[number, AT] + y * ops[number, ROW] + x * pixel
                for c in range(0, pixel, 16):
                    if differ16(work.ctypes.data + to + c, golden + to + c, (pixel - c) >> 2):
                        mark(ops, number, y, x, masks, low, high)
    return high[number] >= 0


@kernel
def _last(ops, number, masks, low, high, work, golden, weights, sums, acc, golden_acc):
    """Sums of the answer, from the golden ones; whether they differ.

    weights (pixels, channels filled up, classes) int8, pixels in the order of the rows
    """
    a, classes = ops[number, A], len(golden_acc)
    pixel, span = ops[a, PIXEL], ops[a, SPAN]
    sums[:classes] = 0
    for y in range(low[a], high[a] + 1):
        for word in range(span):
            bits = masks[ops[a, MASK] + y * span + word]
            while bits:
                x = 64 * word + first_bit(bits)
                bits &= bits - np.uint64(1)
                at = ops[a, AT] + y * ops[a, ROW] + x * pixel
                place = ops[number, WEIGHT] + (y * ops[a, W] + x) * pixel * classes
                for k in range(ops[a, C]):
                    change = np.int32(work[at + k]) - np.int32(golden[at + k])
                    if change:
                        for o in range(classes):
                            sums[o] += change * np.int32(weights[place + k * classes + o])
    differs = False
    for o in range(classes):
        acc[o] = wrap(golden_acc[o] + sums[o], ops[number, ACC_BITS])
        differs |= acc[o] != golden_acc[o]
    return differs


@kernel
def _put_back(ops, number, masks, low, high, work, golden):
    """The golden codes, and no bit; work and golden are addresses."""
    pixel, span = ops[number, PIXEL], ops[number, SPAN]
    for y in range(low[number], high[number] + 1):
        for word in range(span):
            bits = masks[ops[number, MASK] + y * span + word]
            masks[ops[number, MASK] + y * span + word] = 0
            while bits:
                x = 64 * word + first_bit(bits)
                bits &= bits - np.uint64(1)
                at = ops[number, AT] + y * ops[number, ROW] + x * pixel
                for c in range(0, pixel, 16):
                    copy16(golden + at + c, work + at + c, (pixel - c) >> 2)
    low[number], high[number] = NOWHERE, -1


@kernel
def _count(ops, number, masks, low, high):
    """How many pixels differ."""
    count, span = np.int64(0), ops[number, SPAN]
    for i in range(low[number] * span, (high[number] + 1) * span):
        count += count_bits(masks[ops[number, MASK] + i])
    return count


@kernel
def propagate(
    ops, limits, steps, weights, bias, wide, offset, factors, frames, golden_acc, order, image,
    first, begin, index, code, words, pixels, acc, differs, spread,
):  # fmt: skip
    """Faults one after another.

    ops, limits    (o, FIELDS) int64 and (o, 2) float32, the clamp
    steps, weights, bias, wide, offset, factors
                   int32, int8, float32, int64, int64, float32, parts of operations
    frames, golden_acc
                   (images, bytes) uint8 and (images, classes) int64, the golden ones
    order          (g,) which faults; those of one image one after another
    image, first   (f,) their images and the operations whose codes they change, before LAST
    begin          (f + 1,) where their changes begin: index in the codes (h, w, c), and code
    words, pixels  words of all rows of bits; most pixels of an operation
    acc, differs   (f, classes) int64 sums of the answer and (f,) whether they are not the
                   golden ones, overwritten at `order`
    spread         (f, o) int32, overwritten likewise: pixels of each operation that differ;
                   or (0, o): not wanted
    """
    last = len(ops) - 1
    work = np.empty(frames.shape[1], np.uint8)
    masks, line = np.zeros(words, np.uint64), np.empty(words, np.uint64)
    low, high = np.full(len(ops), NOWHERE), np.full(len(ops), -1)
    lists = np.zeros((5, pixels + 8), np.int64)
    sums = np.empty(golden_acc.shape[1], np.int32)
    frame, held = np.int64(work.ctypes.data), np.int64(-1)
    steps_at, weights_at = np.int64(steps.ctypes.data), np.int64(weights.ctypes.data)
    bias_at, wide_at = np.int64(bias.ctypes.data), np.int64(wide.ctypes.data)
    offset_at, factors_at = np.int64(offset.ctypes.data), np.int64(factors.ctypes.data)
    for f in order:
        golden = frames[image[f]]
        if image[f] != held:
            work[:] = golden
            held = image[f]
        golden_at = np.int64(golden.ctypes.data)
        acc[f] = golden_acc[held]
        differs[f] = False
        if len(spread):
            spread[f] = 0
        start, a, b = first[f], begin[f], begin[f + 1]
        if not _strike(ops, start, index[a:b], code[a:b], masks, low, high, work, golden_at):
            continue
        end = start
        for number in range(start + 1, last + 1):
            kind, a, b = ops[number, KIND], ops[number, A], ops[number, B]
            if kind == 0 or (high[a] < 0 and (b < 0 or high[b] < 0)):
                continue
            if kind == LAST:
                differs[f] = _last(ops, number, masks, low, high, work, golden, weights, sums,
                                   acc[f], golden_acc[held])  # fmt: skip
                break
            end = number
            lo, hi = limits[number, 0], limits[number, 1]
            if kind == ADD or kind == RELU or b >= 0:
                count = list_same(ops, number, masks, low, high, lists)
            else:
                count = list_windows(ops, number, masks, low, high, line, lists)
            if kind == CONV_VNNI:
                convolve_bytes(ops, number, lo, hi, frame, count, lists, steps_at, weights_at,
                               bias_at, factors_at)  # fmt: skip
            elif kind == ADD:
                add(ops, number, lo, hi, frame, count, lists)
            elif kind == CONV:
                convolve(ops, number, lo, hi, frame, count, lists, steps_at, weights_at, bias_at,
                         wide_at, offset_at, factors_at)  # fmt: skip
            elif kind == DEPTHWISE:
                depthwise(ops, number, lo, hi, frame, count, lists, steps_at, weights_at, bias_at,
                          wide_at, offset_at, factors_at)  # fmt: skip
            elif kind == RELU:
                relu(ops, number, lo, hi, frame, count, lists)
            elif kind == COPY:
                copy(ops, number, work, count, lists)
            else:
                pool(ops, number, kind == AVERAGE, lo, hi, frame, count, lists)
            settle(ops, number, count, lists, masks, low, high)
        for number in range(start, end + 1):
            if high[number] >= 0:
                if len(spread):
                    spread[f, number] = _count(ops, number, masks, low, high)
                _put_back(ops, number, masks, low, high, frame, golden_at)
