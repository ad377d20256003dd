"""What a few wrong codes of one image change in the rest of a network.

The image's golden codes are known. Each fault begins with changed codes of one operation;
from there on, in the order of the operations, every pixel that reads a changed one is made
again, all its channels, in place. Pixels that are equal to the golden ones go no further.
In the end those that changed are put back, and the next fault finds the golden image.

Whole pixels need many more products than the differences of single codes would. But those
differences have to be found, listed and matched with weights one by one. Done with VPDPBUSD
where few words of a window changed, that took 8 % longer on ResNet-20 and 28 % on MobileNet-V2.
"""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel

from .delta_lanes import (
    add_products16,
    byte,
    copy_words,
    count_bits,
    differ16,
    first_bit,
    last_bit,
    put_byte,
)
from .delta_psums import psum_codes
from .delta_rows import MORE, list_same, list_windows, mark, settle, unmark
from .delta_table import (
    ACC_BITS,
    ADD,
    AT,
    AVERAGE,
    CONV,
    CONV_VNNI,
    COPY,
    DEPTHWISE,
    DEPTHWISE_VNNI,
    HIGH,
    KIND,
    LAST,
    LOW,
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
from .delta_work import add, convolve, convolve_bytes, copy, depthwise, depthwise_bytes, pool, relu
from .replay import wrap

SHORT = 1024
"""Bytes of a row up to which whole rows are put back."""

__all__ = ["CONV", "CONV_VNNI", "KIND", "propagate", "psum_codes"]


@kernel
def _strike(ops, number, begin, end, index, code, masks, frame, golden):
    """Change codes of an operation; whether any is another one."""
    width, pixel, channels, span = (
        ops[number, W],
        ops[number, PIXEL],
        ops[number, C],
        ops[number, SPAN],
    )
    base, row, zero, rows = ops[number, AT], ops[number, ROW], ops[number, ZERO], ops[number, MASK]
    for i in range(begin, end):
        at = index[i] // channels
        y = at // width
        x = at - y * width
        to = base + y * row + x * pixel + index[i] - at * channels
        put_byte(np.int64(code[i]) + zero, frame + to)
        mark(ops, number, y, x, masks)
    first, last = ops[number, LOW], ops[number, HIGH]
    unmark(ops, number)
    for y in range(first, last + 1):
        for word in range(span):
            bits, masks[rows + y * span + word] = masks[rows + y * span + word], np.uint64(0)
            while bits:
                x = 64 * word + first_bit(bits)
                bits &= bits - np.uint64(1)
                to, differs = base + y * row + x * pixel, np.int64(0)
                for c in range(0, pixel, 16):
                    differs |= differ16(frame + to + c, golden + to + c, (pixel - c) >> 2)
                if differs:
                    mark(ops, number, y, x, masks)
    return ops[number, HIGH] >= 0


@kernel
def _last(ops, number, masks, frame, golden, weights, sums):
    """What the sums of the answer become larger by.

    weights  (pixels, channels filled up, classes filled up to 16) int8, pixels in the order of
             the rows; address, as frame and golden
    sums     (classes filled up,) int32, overwritten
    """
    a, classes = ops[number, A], len(sums)
    pixel, span, width, sums_at = ops[a, PIXEL], ops[a, SPAN], ops[a, W], np.int64(sums.ctypes.data)
    sums[:] = 0
    for y in range(ops[a, LOW], ops[a, HIGH] + 1):
        for word in range(span):
            bits = masks[ops[a, MASK] + y * span + word]
            while bits:
                x = 64 * word + first_bit(bits)
                bits &= bits - np.uint64(1)
                at = ops[a, AT] + y * ops[a, ROW] + x * pixel
                place = weights + ops[number, WEIGHT] + (y * width + x) * pixel * classes
                for c in range(0, pixel, 16):
                    words = differ16(frame + at + c, golden + at + c, (pixel - c) >> 2)
                    while words:
                        begin = c + 4 * first_bit(np.uint64(words))
                        words &= words - 1
                        for k in range(begin, begin + 4):
                            change = byte(frame + at + k) - byte(golden + at + k)
                            for o in range(0, classes, 16):
                                add_products16(sums_at + 4 * o, place + k * classes + o, change)


@kernel
def _put_back(ops, number, masks, frame, golden):
    """The golden codes, and no bit; frame and golden are addresses."""
    pixel, span, row = ops[number, PIXEL], ops[number, SPAN], ops[number, ROW]
    low, high, rows = ops[number, LOW], ops[number, HIGH], ops[number, MASK]
    base = ops[number, AT] + low * row
    if row <= SHORT:  # looking for the pixels takes longer than copying all
        copy_words(golden + base, frame + base, (high - low) * row + ops[number, W] * pixel)
    for y in range(low, high + 1):
        for word in range(span):
            bits, masks[rows + y * span + word] = masks[rows + y * span + word], np.uint64(0)
            if row > SHORT and bits:  # from the first pixel that differs to the last
                x = first_bit(bits)
                at = base + (y - low) * row + (64 * word + x) * pixel
                copy_words(golden + at, frame + at, (last_bit(bits) + 1 - x) * pixel)
    unmark(ops, number)


@kernel
def _count(ops, number, masks):
    """How many pixels differ."""
    count, span, first = np.int64(0), ops[number, SPAN], ops[number, MASK]
    for i in range(ops[number, LOW] * span, (ops[number, HIGH] + 1) * span):
        count += count_bits(masks[first + i])
    return count


@kernel
def propagate(
    ops, limits, steps, weights, bias, wide, offset, factors, frames, golden_acc, order, image,
    first, begin, index, code, words, pixels, acc, differs, spread,
):  # fmt: skip
    """Faults one after another.

    ops, limits    (o, FIELDS) int64 and (o, 2) float32, the clamp
    steps, weights, bias, wide, offset, factors
                   int32, int8, int32, int64, int64, float32, parts of operations
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
    ops, last, classes = ops.copy(), len(ops) - 1, golden_acc.shape[1]
    work, masks = np.empty(frames.shape[1], np.uint8), np.zeros(2 * words, np.uint64)
    lists, sums = np.zeros((5, pixels + MORE), np.int64), np.zeros(-(-classes // 16) * 16, np.int32)
    held, golden, bytes_held = np.int64(-1), np.int64(0), np.int64(frames.shape[1])
    steps_at, weights_at = np.int64(steps.ctypes.data), np.int64(weights.ctypes.data)
    bias_at, wide_at = np.int64(bias.ctypes.data), np.int64(wide.ctypes.data)
    offset_at, factors_at = np.int64(offset.ctypes.data), np.int64(factors.ctypes.data)
    for number in range(last + 1):
        unmark(ops, number)
    for f in order:
        # Here and not before the loop: numba frees an array after the last line that names it.
        frame = np.int64(work.ctypes.data)
        if image[f] != held:
            held = image[f]
            golden = np.int64(frames.ctypes.data) + held * bytes_held
            copy_words(golden, frame, bytes_held)
        for o in range(classes):
            acc[f, o] = golden_acc[held, o]
        differs[f] = False
        if len(spread):
            spread[f] = 0
        start, end = first[f], first[f]
        if not _strike(ops, start, begin[f], begin[f + 1], index, code, masks, frame, golden):
            continue
        for number in range(start + 1, last + 1):
            kind, a, b = ops[number, KIND], ops[number, A], ops[number, B]
            if kind == 0 or (ops[a, HIGH] < 0 and (b < 0 or ops[b, HIGH] < 0)):
                continue
            if kind == LAST:
                _last(ops, number, masks, frame, golden, weights_at, sums)
                for o in range(classes):
                    acc[f, o] = wrap(golden_acc[held, o] + sums[o], ops[number, ACC_BITS])
                    differs[f] |= acc[f, o] != golden_acc[held, o]
                break
            end = number
            lo, hi = limits[number, 0], limits[number, 1]
            if kind == ADD:
                add(ops, number, lo, hi, frame, masks)
                continue
            if kind == RELU or b >= 0:
                count = list_same(ops, number, masks, lists)
            else:
                count = list_windows(ops, number, masks, lists)
            if kind == CONV_VNNI:
                convolve_bytes(ops, number, lo, hi, frame, count, lists, steps_at, weights_at,
                               bias_at, factors_at)  # fmt: skip
            elif kind == CONV:
                convolve(ops, number, lo, hi, frame, count, lists, steps_at, weights_at, bias_at,
                         wide_at, offset_at, factors_at)  # fmt: skip
            elif kind == DEPTHWISE_VNNI:
                depthwise_bytes(ops, number, lo, hi, frame, count, lists, steps_at, weights_at,
                                bias_at, factors_at)  # fmt: skip
            elif kind == DEPTHWISE:
                depthwise(ops, number, lo, hi, frame, count, lists, steps_at, weights_at, bias_at,
                          wide_at, offset_at, factors_at)  # fmt: skip
            elif kind == RELU:
                relu(ops, number, lo, hi, frame, count, lists)
            elif kind == COPY:
                copy(ops, number, frame, count, lists)
            else:
                pool(ops, number, kind == AVERAGE, lo, hi, frame, count, lists)
            settle(ops, number, masks, lists)
        for number in range(start, end + 1):
            if ops[number, HIGH] >= 0:
                if len(spread):
                    spread[f, number] = _count(ops, number, masks)
                _put_back(ops, number, masks, frame, golden)
