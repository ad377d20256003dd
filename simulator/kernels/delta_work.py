"""The pixels of one operation made again, those on a list (`delta_rows.py`)."""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel

from .delta_code import (
    bytes1x1,
    bytes1x2,
    bytes1x4,
    bytes2x1,
    bytes2x2,
    bytes2x4,
    bytes3x4,
    bytes4x1,
    bytes4x2,
    bytes4x4,
    bytes8x1,
    bytes8x2,
    depthwise64,
    shorts1x1,
    shorts4x1,
    wide1x1,
)
from .delta_lanes import (
    add16,
    add16_wide,
    average16,
    byte,
    copy16,
    depthwise16,
    first_bit,
    maximum16,
    put_byte,
    relu16,
)
from .delta_rows import FLAG, NOWHERE, OTHER, PLACE, TARGET, WINDOW
from .delta_table import (
    ACC_BITS,
    AT,
    BIAS,
    C_IN,
    C_OUT,
    DH,
    DW,
    HIGH,
    KH,
    KW,
    LEFT,
    LOW,
    M0,
    M1,
    MASK,
    NARROW,
    PIXEL,
    ROW,
    RUNS,
    SH,
    SHIFT,
    SPAN,
    STEPS,
    SW,
    TOP,
    WEIGHT,
    WORDS,
    ZERO,
    A,
    B,
    C,
    H,
    W,
)


@kernel
def _places(lists):
    """Addresses of the columns WINDOW, TARGET and FLAG of a list."""
    first, size = np.int64(lists.ctypes.data), 8 * np.int64(lists.shape[1])
    return first + WINDOW * size, first + TARGET * size, first + FLAG * size


@kernel
def convolve_bytes(ops, number, lo, hi, frame, count, lists, steps, weights, bias, factors):
    """Kind CONV_VNNI; tables as addresses."""
    windows, targets, flags = _places(lists)
    steps += 4 * ops[number, STEPS]
    b, f = bias + 4 * ops[number, BIAS], factors + 4 * ops[number, BIAS]
    runs, words, zero = ops[number, RUNS], ops[number, WORDS], ops[number, ZERO]
    weight, left = weights + ops[number, WEIGHT], ops[number, PIXEL] >> 2
    channel = np.int64(0)
    while left > 0:
        blocks = 4 if left > 12 else 2 if left > 4 else 1
        i = np.int64(0)
        while i < count:
            x, t, g, more = windows + 8 * i, targets + 8 * i, flags + 8 * i, count - i
            if blocks == 4:
                if more == 1:
                    bytes1x4(frame, x, t, g, steps, runs, words, weight, b, 0, f, 0, lo, hi, zero,
                             channel, left)  # fmt: skip
                    i += 1
                elif more == 2:
                    bytes2x4(frame, x, t, g, steps, runs, words, weight, b, 0, f, 0, lo, hi, zero,
                             channel, left)  # fmt: skip
                    i += 2
                elif more == 3 or more == 6 or more == 5:
                    bytes3x4(frame, x, t, g, steps, runs, words, weight, b, 0, f, 0, lo, hi, zero,
                             channel, left)  # fmt: skip
                    i += 3
                else:
                    bytes4x4(frame, x, t, g, steps, runs, words, weight, b, 0, f, 0, lo, hi, zero,
                             channel, left)  # fmt: skip
                    i += 4
            elif blocks == 2:
                if more == 1:
                    bytes1x2(frame, x, t, g, steps, runs, words, weight, b, 0, f, 0, lo, hi, zero,
                             channel, left)  # fmt: skip
                    i += 1
                elif more == 2:
                    bytes2x2(frame, x, t, g, steps, runs, words, weight, b, 0, f, 0, lo, hi, zero,
                             channel, left)  # fmt: skip
                    i += 2
                elif more <= 4:
                    bytes4x2(frame, x, t, g, steps, runs, words, weight, b, 0, f, 0, lo, hi, zero,
                             channel, left)  # fmt: skip
                    i += 4
                else:
                    bytes8x2(frame, x, t, g, steps, runs, words, weight, b, 0, f, 0, lo, hi, zero,
                             channel, left)  # fmt: skip
                    i += 8
            elif more == 1:
                bytes1x1(frame, x, t, g, steps, runs, words, weight, b, 0, f, 0, lo, hi, zero,
                         channel, left)  # fmt: skip
                i += 1
            elif more == 2:
                bytes2x1(frame, x, t, g, steps, runs, words, weight, b, 0, f, 0, lo, hi, zero,
                         channel, left)  # fmt: skip
                i += 2
            elif more <= 4:
                bytes4x1(frame, x, t, g, steps, runs, words, weight, b, 0, f, 0, lo, hi, zero,
                         channel, left)  # fmt: skip
                i += 4
            else:
                bytes8x1(frame, x, t, g, steps, runs, words, weight, b, 0, f, 0, lo, hi, zero,
                         channel, left)  # fmt: skip
                i += 8
        weight += runs * words * blocks * 64
        b, f = b + 64 * blocks, f + 64 * blocks
        channel += 16 * blocks
        left -= 4 * blocks


@kernel
def convolve(ops, number, lo, hi, frame, count, lists, steps, weights, bias, wide, offset,
             factors):  # fmt: skip
    """Kind CONV; tables as addresses."""
    windows, targets, flags = _places(lists)
    steps += 4 * ops[number, STEPS]
    first = ops[number, BIAS]
    shift, narrow = 64 - ops[number, ACC_BITS], ops[number, NARROW]
    runs, words, zero = ops[number, RUNS], ops[number, WORDS], ops[number, ZERO]
    weight, left = weights + ops[number, WEIGHT], ops[number, PIXEL] >> 2
    channel = np.int64(0)
    while left > 0:
        f, b = factors + 4 * (first + channel), bias + 4 * (first + channel)
        v, o = wide + 8 * (first + channel), offset + 8 * (first + channel)
        i = np.int64(0)
        while i < count:
            x, t, g, more = windows + 8 * i, targets + 8 * i, flags + 8 * i, count - i
            if not narrow:
                wide1x1(frame, x, t, g, steps, runs, words, weight, v, o, f, shift, lo, hi, zero,
                        channel, left)  # fmt: skip
                i += 1
            elif more == 1:
                shorts1x1(frame, x, t, g, steps, runs, words, weight, b, 0, f, 0, lo, hi, zero,
                          channel, left)  # fmt: skip
                i += 1
            else:
                shorts4x1(frame, x, t, g, steps, runs, words, weight, b, 0, f, 0, lo, hi, zero,
                          channel, left)  # fmt: skip
                i += 4
        weight += runs * words * 128
        channel += 16
        left -= 4


@kernel
def depthwise_bytes(ops, number, lo, hi, frame, count, lists, steps, weights, bias, factors):
    """Kind DEPTHWISE_VNNI; tables as addresses."""
    steps += 4 * ops[number, STEPS]
    pixel, groups, zero = ops[number, PIXEL], ops[number, RUNS], ops[number, ZERO]
    b, f = bias + 4 * ops[number, BIAS], factors + 4 * ops[number, BIAS]
    for i in range(count):
        window, target = frame + lists[WINDOW, i], frame + lists[TARGET, i]
        flag, weight = np.int64(0), weights + ops[number, WEIGHT]
        for c in range(0, pixel, 64):
            flag |= depthwise64(window + c, steps, groups, weight, b + 4 * c, f + 4 * c, lo, hi,
                                zero, target + c, (pixel - c) >> 2)  # fmt: skip
            weight += groups * 256
        lists[FLAG, i] = flag


@kernel
def depthwise(ops, number, lo, hi, frame, count, lists, steps, weights, bias, wide, offset,
              factors):  # fmt: skip
    """Kind DEPTHWISE; tables as addresses."""
    steps += 4 * ops[number, STEPS]
    weight, pixel, first = weights + ops[number, WEIGHT], ops[number, PIXEL], ops[number, BIAS]
    shift, narrow = 64 - ops[number, ACC_BITS], ops[number, NARROW]
    positions, zero = ops[number, RUNS], ops[number, ZERO]
    for i in range(count):
        window, target = frame + lists[WINDOW, i], frame + lists[TARGET, i]
        flag = np.int64(0)
        for c in range(0, pixel, 16):
            flag |= depthwise16(
                window + c, steps, positions, weight + c, pixel, narrow, bias + 4 * (first + c),
                offset + 8 * (first + c), wide + 8 * (first + c), factors + 4 * (first + c), shift,
                lo, hi, zero, target + c, (pixel - c) >> 2,
            )  # fmt: skip
        lists[FLAG, i] = flag


@kernel
def add(ops, number, lo, hi, frame, masks):
    """Kind ADD, without a list: clamp(round_half_even((m0 a + m1 b) / 2^shift))."""
    a, b, zero, pixel = ops[number, A], ops[number, B], ops[number, ZERO], ops[number, PIXEL]
    m0, m1, shift, narrow = (
        ops[number, M0],
        ops[number, M1],
        ops[number, SHIFT],
        ops[number, NARROW],
    )
    excess, scale = m0 * ops[a, ZERO] + m1 * ops[b, ZERO], 2.0 ** -np.float64(shift)
    f0, f1, f2 = np.float32(m0 * scale), np.float32(m1 * scale), np.float32(excess * scale)
    low, high, span = np.int64(lo), np.int64(hi), ops[number, SPAN]
    rows, others, own = ops[a, MASK], ops[b, MASK], ops[number, MASK]
    first, last = np.int64(NOWHERE), np.int64(-1)
    for y in range(min(ops[a, LOW], ops[b, LOW]), max(ops[a, HIGH], ops[b, HIGH]) + 1):
        line = frame + ops[a, AT] + y * ops[a, ROW]
        beside = frame + ops[b, AT] + y * ops[b, ROW]
        below = frame + ops[number, AT] + y * ops[number, ROW]
        for k in range(span):
            bits, kept = masks[rows + y * span + k] | masks[others + y * span + k], np.uint64(0)
            while bits:
                x = (64 * k + first_bit(bits)) * pixel
                rest, flag = bits & (bits - np.uint64(1)), np.int64(0)
                for c in range(x, x + pixel, 16):
                    words = (x + pixel - c) >> 2
                    if narrow:
                        flag |= add16(line + c, beside + c, below + c, f0, f1, f2, lo, hi, zero,
                                      words)  # fmt: skip
                    else:
                        flag |= add16_wide(line + c, beside + c, below + c, m0, m1, excess, shift,
                                           low, high, zero, words)  # fmt: skip
                kept |= bits ^ rest if flag else np.uint64(0)
                bits = rest
            masks[own + y * span + k] = kept
            if kept:
                first, last = min(first, y), y
    ops[number, LOW], ops[number, HIGH] = first, last


@kernel
def relu(ops, number, lo, hi, frame, count, lists):
    """Kind RELU."""
    zero_in, zero, pixel = ops[ops[number, A], ZERO], ops[number, ZERO], ops[number, PIXEL]
    low, high = np.int64(lo), np.int64(hi)
    for i in range(count):
        source, target = frame + lists[WINDOW, i], frame + lists[TARGET, i]
        flag = np.int64(0)
        for c in range(0, pixel, 16):
            flag |= relu16(source + c, target + c, zero_in, low, high, zero, (pixel - c) >> 2)
        lists[FLAG, i] = flag


@kernel
def _inside(first, apart, count, size):
    """(first position inside a map of `size`, number of positions) of a window's one axis."""
    skip = max(0, -(first // apart)) if first < 0 else 0
    end = min(count, max(0, (size - first + apart - 1) // apart))
    return skip, max(0, end - skip)


@kernel
def pool(ops, number, average, lo, hi, frame, count, lists):
    """Kinds AVERAGE, clamp(round_half_even(sum * m0 / 2^shift)), and MAXIMUM."""
    a, zero, pixel = ops[number, A], ops[number, ZERO], ops[number, PIXEL]
    dh, dw, m0, shift = ops[number, DH], ops[number, DW], ops[number, M0], ops[number, SHIFT]
    down, across = dh * ops[a, ROW], dw * ops[a, PIXEL]
    low, high = np.int64(lo), np.int64(hi)
    for i in range(count):
        y, x = lists[PLACE, i] >> 32, lists[PLACE, i] & 0xFFFFFFFF
        top, left = y * ops[number, SH] - ops[number, TOP], x * ops[number, SW] - ops[number, LEFT]
        skipped, rows = _inside(top, dh, ops[number, KH], ops[a, H])
        passed, columns = _inside(left, dw, ops[number, KW], ops[a, W])
        first = frame + lists[WINDOW, i] + skipped * down + passed * across
        target, flag = frame + lists[TARGET, i], np.int64(0)
        excess = ops[a, ZERO] * rows * columns
        for c in range(0, pixel, 16):
            words = (pixel - c) >> 2
            if average:
                flag |= average16(first + c, rows, columns, down, across, target + c, m0, excess,
                                  shift, low, high, zero, words)  # fmt: skip
            else:
                flag |= maximum16(first + c, rows, columns, down, across, target + c, words)
        lists[FLAG, i] = flag


@kernel
def _move(source, target, size):
    """`size` bytes from one address to another; whether they differed."""
    flag = np.int64(0)
    whole = size & ~np.int64(15)
    for c in range(0, whole, 16):
        flag |= copy16(source + c, target + c, 4)
    for c in range(whole, size):
        flag |= byte(source + c) ^ byte(target + c)
        put_byte(byte(source + c), target + c)
    return flag


@kernel
def copy(ops, number, frame, count, lists):
    """Kind COPY: a slice, padding, or two inputs one after the other.

    Listed are only pixels that are another pixel of the input, not what lies around it.
    """
    a, b = ops[number, A], ops[number, B]
    for i in range(count):
        one, target = frame + lists[WINDOW, i], frame + lists[TARGET, i]
        if b < 0:
            size = min(ops[a, C] - ops[number, C_IN], ops[number, C] - ops[number, C_OUT])
            flag = _move(one + ops[number, C_IN], target + ops[number, C_OUT], size)
        else:
            flag = _move(one, target + ops[number, M0], ops[a, C])
            flag |= _move(frame + lists[OTHER, i], target + ops[number, M1], ops[b, C])
        lists[FLAG, i] = flag
