"""Which pixels differ, as bits: lists of the pixels that read them.

`masks` (words,) uint64 holds the rows of bits of all operations (`delta_table.py`); `low`
and `high` (operations,) int64 the first and last row with a bit, `low` > `high` where there
is none. A list of pixels has a column for each:

WINDOW  byte offset in the frames of the first code that the pixel reads of input a
OTHER   of input b, where both have the pixel's own geometry
TARGET  of the pixel's own first code
PLACE   row << 32 | column
FLAG    0; not 0 once codes are found to differ
"""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel

from .delta_lanes import even_bits, first_bit
from .delta_table import AT, DH, DW, KH, KW, LEFT, MASK, PIXEL, ROW, SH, SPAN, SW, TOP, A, B, H, W

WINDOW, OTHER, TARGET, PLACE, FLAG = range(5)

MORE = 8
"""Entries after a list's end that repeat the last one."""

NOWHERE = 1 << 40
"""`low` of an operation without a bit; its `high` is -1."""


@kernel
def mark(ops, number, y, x, masks, low, high):
    """Note that a pixel differs."""
    word = ops[number, MASK] + y * ops[number, SPAN] + (x >> 6)
    masks[word] |= np.uint64(1) << np.uint64(x & 63)
    low[number], high[number] = min(low[number], y), max(high[number], y)


@kernel
def settle(ops, number, count, lists, masks, low, high):
    """Mark the pixels of a list whose codes differ."""
    base, span, first, last = ops[number, MASK], ops[number, SPAN], np.int64(NOWHERE), np.int64(-1)
    for i in range(count):
        if lists[FLAG, i]:
            y, x = lists[PLACE, i] >> 32, lists[PLACE, i] & 0xFFFFFFFF
            masks[base + y * span + (x >> 6)] |= np.uint64(1) << np.uint64(x & 63)
            first, last = min(first, y), y
    low[number], high[number] = first, last


@kernel
def _shifted(line, span, word, shift):
    """Bits 64 * word + shift .. of a row, which may begin before it or end beyond."""
    at, rest = word + (shift >> 6), np.uint64(shift & 63)
    value = np.uint64(0)
    if at >= 0 and at < span:
        value = line[at] >> rest
    if rest and at + 1 >= 0 and at + 1 < span:
        value |= line[at + 1] << (np.uint64(64) - rest)
    return value


@kernel
def _dilated(line, span, word, columns, apart, left):
    """Word of the bits x of which some x - left + i * apart, i < columns, is set."""
    value = np.uint64(0)
    for i in range(columns):
        value |= _shifted(line, span, word, i * apart - left)
    return value


@kernel
def _reading(line, span, word, columns, apart, left, stride):
    """The same, of every stride-th bit."""
    if stride == 1:
        return _dilated(line, span, word, columns, apart, left)
    value = np.uint64(0)
    if stride == 2:
        for half in range(2):
            bits = even_bits(_dilated(line, span, 2 * word + half, columns, apart, left))
            value |= bits << np.uint64(32 * half)
        return value
    for part in range(stride):
        bits = _dilated(line, span, stride * word + part, columns, apart, left)
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
def list_windows(ops, number, masks, low, high, line, lists):
    """List the pixels whose window in input a holds one that differs; how many.

    line  uint64 scratch, the words of a row
    """
    a = ops[number, A]
    kh, sh, top, dh = ops[number, KH], ops[number, SH], ops[number, TOP], ops[number, DH]
    kw, sw, left, dw = ops[number, KW], ops[number, SW], ops[number, LEFT], ops[number, DW]
    width, span, words = ops[number, W], ops[a, SPAN], ops[number, SPAN]
    begin = max(0, -(((kh - 1) * dh - top - low[a]) // sh))
    end = min(ops[number, H] - 1, (high[a] + top) // sh)
    count = np.int64(0)
    for y in range(begin, end + 1):
        down = y * sh - top
        for k in range(span):
            line[k] = 0
        for i in range(kh):
            row = down + i * dh
            if row >= low[a] and row <= high[a]:
                for k in range(span):
                    line[k] |= masks[ops[a, MASK] + row * span + k]
        source = ops[a, AT] + down * ops[a, ROW] - left * ops[a, PIXEL]
        target = ops[number, AT] + y * ops[number, ROW]
        for k in range(words):
            bits = _reading(line, span, k, kw, dw, left, sw)
            if width - 64 * k < 64:
                bits &= (np.uint64(1) << np.uint64(width - 64 * k)) - np.uint64(1)
            while bits:
                x = 64 * k + first_bit(bits)
                bits &= bits - np.uint64(1)
                lists[WINDOW, count] = source + x * sw * ops[a, PIXEL]
                lists[TARGET, count] = target + x * ops[number, PIXEL]
                lists[PLACE, count] = y << 32 | x
                lists[FLAG, count] = 0
                count += 1
    if count:
        _repeat_last(count, lists)
    return count


@kernel
def list_same(ops, number, masks, low, high, lists):
    """List the pixels that differ in input a or b, of the same size; how many."""
    a, b = ops[number, A], ops[number, B]
    other = b if b >= 0 else a
    span, count = ops[number, SPAN], np.int64(0)
    for y in range(min(low[a], low[other]), max(high[a], high[other]) + 1):
        for k in range(span):
            bits = masks[ops[a, MASK] + y * span + k] | masks[ops[other, MASK] + y * span + k]
            while bits:
                x = 64 * k + first_bit(bits)
                bits &= bits - np.uint64(1)
                lists[WINDOW, count] = ops[a, AT] + y * ops[a, ROW] + x * ops[a, PIXEL]
                lists[OTHER, count] = ops[other, AT] + y * ops[other, ROW] + x * ops[other, PIXEL]
                lists[TARGET, count] = (
                    ops[number, AT] + y * ops[number, ROW] + x * ops[number, PIXEL]
                )
                lists[PLACE, count] = y << 32 | x
                lists[FLAG, count] = 0
                count += 1
    return count
