"""Which pixels differ, as bits: lists of the pixels that read them.

`masks` (words,) uint64 holds the rows of bits of all operations (`delta_table.py`) and, at
its end, room for one more row. What is listed is marked as well, until it is settled. A list
of pixels has a column for each:

WINDOW  byte offset in the frames of the first code that the pixel reads of input a
OTHER   of input b, where both have the pixel's own geometry
TARGET  of the pixel's own first code
PLACE   row << 32 | column
FLAG    0; not 0 once codes are found to differ
"""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel

from .delta_lanes import count_bits, even_bits, first_bit, keep_bits, list_bits
from .delta_table import (
    AT,
    DH,
    DW,
    HIGH,
    KH,
    KW,
    LEFT,
    LOW,
    MASK,
    PIXEL,
    ROW,
    SH,
    SPAN,
    SW,
    TOP,
    A,
    B,
    H,
    W,
)

WINDOW, OTHER, TARGET, PLACE, FLAG = range(5)

MORE = 8
"""Entries after a list's end that repeat the last one."""

NOWHERE = 1 << 40
"""LOW of an operation without a bit; its HIGH is -1."""


@kernel
def mark(ops, number, y, x, masks):
    """Note that a pixel differs."""
    word = ops[number, MASK] + y * ops[number, SPAN] + (x >> 6)
    masks[word] |= np.uint64(1) << np.uint64(x & 63)
    ops[number, LOW] = min(ops[number, LOW], y)
    ops[number, HIGH] = max(ops[number, HIGH], y)


@kernel
def unmark(ops, number):
    """No row has a bit."""
    ops[number, LOW], ops[number, HIGH] = NOWHERE, -1


@kernel
def settle(ops, number, masks, lists):
    """Of the pixels that are marked, those of the list, keep those whose codes differ."""
    base, span = ops[number, MASK], ops[number, SPAN]
    flags = np.int64(lists.ctypes.data) + 8 * FLAG * np.int64(lists.shape[1])
    first, last = np.int64(NOWHERE), np.int64(-1)
    for y in range(ops[number, LOW], ops[number, HIGH] + 1):
        found = np.uint64(0)
        for at in range(base + y * span, base + (y + 1) * span):
            listed = masks[at]
            if listed:
                kept = keep_bits(listed, flags)
                flags += 8 * count_bits(listed)
                masks[at] = kept
                found |= kept
        if found:
            first, last = min(first, y), y
    ops[number, LOW], ops[number, HIGH] = first, last


@kernel
def _shifted(masks, line, span, word, shift):
    """Bits 64 * word + shift .. of the row at `line`, which may begin before it or end beyond."""
    at, rest = word + (shift >> 6), np.uint64(shift & 63)
    value = np.uint64(0)
    if at >= 0 and at < span:
        value = masks[line + at] >> rest
    if rest and at + 1 >= 0 and at + 1 < span:
        value |= masks[line + at + 1] << (np.uint64(64) - rest)
    return value


@kernel
def _dilated(masks, line, span, word, columns, apart, left):
    """Word of the bits x of which some x - left + i * apart, i < columns, is set."""
    value = np.uint64(0)
    for i in range(columns):
        value |= _shifted(masks, line, span, word, i * apart - left)
    return value


@kernel
def _reading(masks, line, span, word, columns, apart, left, stride):
    """The same, of every stride-th bit."""
    if stride == 1:
        return _dilated(masks, line, span, word, columns, apart, left)
    value = np.uint64(0)
    if stride == 2:
        for half in range(2):
            bits = even_bits(_dilated(masks, line, span, 2 * word + half, columns, apart, left))
            value |= bits << np.uint64(32 * half)
        return value
    for part in range(stride):
        bits = _dilated(masks, line, span, stride * word + part, columns, apart, left)
        while bits:
            at = 64 * part + first_bit(bits)
            bits &= bits - np.uint64(1)
            if at % stride == 0:
                value |= np.uint64(1) << np.uint64(at // stride)
    return value


@kernel
def _repeat_last(count, lists):
    for i in range(count, count + MORE):
        lists[WINDOW, i], lists[TARGET, i] = lists[WINDOW, count - 1], lists[TARGET, count - 1]


@kernel
def list_windows(ops, number, masks, lists):
    """List the pixels whose window in input a holds one that differs; how many."""
    a = ops[number, A]
    kh, sh, top, dh = ops[number, KH], ops[number, SH], ops[number, TOP], ops[number, DH]
    kw, sw, left, dw = ops[number, KW], ops[number, SW], ops[number, LEFT], ops[number, DW]
    height, width, words = ops[number, H], ops[number, W], ops[number, SPAN]
    span, rows, first, last = ops[a, SPAN], ops[a, MASK], ops[a, LOW], ops[a, HIGH]
    line, marks = len(masks) - span, ops[number, MASK]
    columns, size = np.int64(lists.ctypes.data), 8 * np.int64(lists.shape[1])
    down, across = ops[a, ROW], ops[a, PIXEL]
    source, target = ops[a, AT] - left * across, ops[number, AT]
    below, along = ops[number, ROW], ops[number, PIXEL]
    begin = max(0, -(((kh - 1) * dh - top - first) // sh))
    end = min(height - 1, (last + top) // sh)
    ops[number, LOW], ops[number, HIGH] = begin, end
    count = np.int64(0)
    if height * width == 1:  # whatever it reads of the map
        masks[marks] = 1
        return list_bits(np.uint64(1), count, columns, size, source - top * down, 0, 0, 0, target,
                         0, 0)  # fmt: skip
    # Most maps: a row is one word, and so is what the windows of its pixels read.
    short = width * sw <= 64 and span == 1 and sw <= 2 and left < 64 and (kw - 1) * dw - left < 64
    inside = (np.uint64(1) << np.uint64(width)) - np.uint64(1) if width < 64 else ~np.uint64(0)
    for y in range(begin, end + 1):
        row = y * sh - top
        upper, lower = 0, kh
        while row + upper * dh < first:
            upper += 1
        while row + (lower - 1) * dh > last:
            lower -= 1
        if short:
            joined, bits = np.uint64(0), np.uint64(0)
            for i in range(upper, lower):
                joined |= masks[rows + row + i * dh]
            for i in range(kw):
                shift = i * dw - left
                bits |= joined >> np.uint64(shift) if shift >= 0 else joined << np.uint64(-shift)
            if sw == 2:
                bits = even_bits(bits)
            bits &= inside
            masks[marks + y] = bits
            count = list_bits(bits, count, columns, size, source + row * down,
                              sw * across, 0, 0, target + y * below, along, y << 32)  # fmt: skip
            continue
        for k in range(span):
            bits = np.uint64(0)
            for i in range(upper, lower):
                bits |= masks[rows + (row + i * dh) * span + k]
            masks[line + k] = bits
        for k in range(words):
            bits = _reading(masks, line, span, k, kw, dw, left, sw)
            if width - 64 * k < 64:
                bits &= (np.uint64(1) << np.uint64(width - 64 * k)) - np.uint64(1)
            x = 64 * k
            masks[marks + y * words + k] = bits
            count = list_bits(
                bits, count, columns, size, source + row * down + x * sw * across, sw * across, 0,
                0, target + y * below + x * along, along, y << 32 | x,
            )  # fmt: skip
    if count:
        _repeat_last(count, lists)
    return count


@kernel
def list_same(ops, number, masks, lists):
    """List the pixels that differ in input a or b, of the same size; how many."""
    a, b = ops[number, A], ops[number, B]
    other = b if b >= 0 else a
    span, count = ops[number, SPAN], np.int64(0)
    rows, others = ops[a, MASK], ops[other, MASK]
    columns, size = np.int64(lists.ctypes.data), 8 * np.int64(lists.shape[1])
    down, across, source = ops[a, ROW], ops[a, PIXEL], ops[a, AT]
    under, beside, second = ops[other, ROW], ops[other, PIXEL], ops[other, AT]
    below, along, target = ops[number, ROW], ops[number, PIXEL], ops[number, AT]
    begin, end = min(ops[a, LOW], ops[other, LOW]), max(ops[a, HIGH], ops[other, HIGH])
    ops[number, LOW], ops[number, HIGH], marks = begin, end, ops[number, MASK]
    for y in range(begin, end + 1):
        for k in range(span):
            bits = masks[rows + y * span + k] | masks[others + y * span + k]
            x = 64 * k
            masks[marks + y * span + k] = bits
            count = list_bits(
                bits, count, columns, size, source + y * down + x * across, across,
                second + y * under + x * beside, beside, target + y * below + x * along, along,
                y << 32 | x,
            )  # fmt: skip
    return count
