"""What a few wrong codes of one image change in the rest of a network.

The image's golden codes and sums are known. Each fault begins with changed codes of one
operation; from there on, in the order of the operations, every pixel that reads a changed
one is made again: from its golden sums and what changed in its window, four channels (a
word) at a time, or from the whole window where much did. Words that are equal to the
golden ones are dropped. In the end those that changed are put back, and the next fault
finds the golden image.

Tensors lie in one buffer of bytes, as "frames": (h, w, c) with the channels filled up to
whole words and zeros around that convolutions read as padding. The zeros and the filling
are never written.
"""

from __future__ import annotations

import numpy as np
from numba.extending import overload

from fsim.jit import kernel

from . import vnni
from .replay import wrap
from .requantise import _round_shift
from .vnni_pixel import (
    changed1,
    changed2,
    changed4,
    difference,
    gather1,
    gather2,
    gather4,
    whole1,
    whole2,
    whole4,
)

CONV_VNNI, CONV, DEPTHWISE, ADD, AVERAGE, MAXIMUM, RELU, COPY, LAST = range(1, 10)
"""Kinds of operations. LAST is the linear layer that gives the answer."""

FIELDS = (
    "kind", "a", "b", "at", "row", "pixel", "h", "w", "c", "signed", "list", "words", "sums",
    "kh", "kw", "sh", "sw", "top", "left", "dh", "dw", "flip", "slots", "steps", "weight",
    "bias", "factor", "m0", "m1", "shift", "c_in", "c_out", "acc_bits",
    "per", "flat", "gather", "narrow",
)  # fmt: skip
"""Columns of the table of operations, int64.

a, b          operations it reads; at: byte of the frame's pixel (0, 0), channel 0
row, pixel    bytes from one row, one pixel to the next
list, words   where its pixels begin in `pixels`, and their words in `changed`
sums          where its golden sums begin
kh .. dw      window, stride, padding at the top and left, dilation; of COPY: sh, sw the
              stride, top and left the offset, c_in and c_out first channels
steps, weight, bias, factor
              where its part begins in `steps`, `weights`, `bias`, `factors`
m0, m1, shift  of additions and averages, as in `ops.py`; of COPY the first channels of
              two inputs that are joined
per, flat     input channels of one group; whether slots run over (channel, row, column), as
              of a flattened map, and not over (row, column, channel)
gather        where the part's weights + 128 begin in `weights`, of CONV_VNNI
narrow        of ADD: float32 holds every sum exactly
"""

WIDE = 2
"""Mark of a pixel with a difference that fits no signed byte; 1 marks the others."""

(KIND, A, B, AT, ROW, PIXEL, H, W, C, SIGNED, LIST, WORDS, SUMS, KH, KW, SH, SW, TOP, LEFT, DH,
 DW, FLIP, SLOTS, STEPS, WEIGHT, BIAS, FACTOR, M0, M1, SHIFT, C_IN, C_OUT,
 ACC_BITS, PER, FLAT, GATHER, NARROW) = range(len(FIELDS))  # fmt: skip


@kernel
def _code(frames, at, signed):
    value = np.int32(frames[at])
    return value - 256 if signed and value > 127 else value


@kernel
def _at(op, pixel):
    """Byte of a pixel's first channel."""
    y = pixel // op[W]
    return op[AT] + y * op[ROW] + (pixel - y * op[W]) * op[PIXEL]


@kernel
def _touch(op, pixel, pixels, marks, counts, number):
    """Put an output pixel on its operation's list, once."""
    at = op[LIST] + pixel
    if not marks[at]:
        marks[at] = 1
        pixels[op[LIST] + counts[number]] = pixel
        counts[number] += 1


@kernel
def _touch_windows(op, source, number, first, pixels, marks, counts):
    """Output pixels whose window holds a changed pixel of `source`, operation `first`."""
    kh, kw, sh, sw, dh, dw = op[KH], op[KW], op[SH], op[SW], op[DH], op[DW]
    top, left, height, width, places = op[TOP], op[LEFT], op[H], op[W], op[LIST]
    count = counts[number]
    for i in range(counts[first]):
        pixel = pixels[source[LIST] + i]
        y = pixel // source[W]
        x = pixel - y * source[W]
        for ky in range(kh):
            down = y + top - ky * dh
            if down < 0:
                continue
            if sh > 1:
                if down % sh:
                    continue
                down //= sh
            if down >= height:
                continue
            for kx in range(kw):
                across = x + left - kx * dw
                if across < 0:
                    continue
                if sw > 1:
                    if across % sw:
                        continue
                    across //= sw
                if across < width:
                    to = down * width + across
                    if not marks[places + to]:
                        marks[places + to] = 1
                        pixels[places + count] = to
                        count += 1
    counts[number] = count


@kernel
def _touch_same(op, source, number, first, pixels, marks, counts):
    for i in range(counts[first]):
        _touch(op, pixels[source[LIST] + i], pixels, marks, counts, number)


@kernel
def _room(words):
    """Places in `changed` for the words of a pixel: one more, and an even number."""
    return (words + 2) // 2 * 2


def _differ(at, words, place, work, golden, work32, golden32, changed, differences):
    """Note which words of a pixel differ, and by what where VNNI needs it; how many do.

    at      byte of the pixel's first channel; place: where its words are noted
    Returns the number, plus 1 << 32 if a difference fits no signed byte.
    """


@overload(_differ, jit_options={"error_model": "numpy"})
def _differ_for(at, words, place, work, golden, work32, golden32, changed, differences):
    if not vnni.supported():

        def plain(at, words, place, work, golden, work32, golden32, changed, differences):
            count, begin = np.int64(0), at >> 2
            for word in range(words):
                if work32[begin + word] != golden32[begin + word]:
                    changed[place + count] = word
                    count += 1
            return count

        return plain

    def differ(at, words, place, work, golden, work32, golden32, changed, differences):
        new, known = np.int64(work.ctypes.data) + at, np.int64(golden.ctypes.data) + at
        to = np.int64(differences.ctypes.data) + 4 * place
        names = np.int64(changed.ctypes.data) + 4 * place
        count, beyond = np.int64(0), np.int64(0)
        for first in range(0, words, 16):
            found = difference(new + 4 * first, known + 4 * first, first, words - first,
                               to + 4 * count, names + 4 * count)  # fmt: skip
            count += found & 0xFFFFFFFF
            beyond |= found >> 32
        if count & 1:
            differences[place + count], changed[place + count] = 0, 0
        return count | beyond << 32

    return differ


@kernel
def _compare(op, pixel, at, work, golden, work32, golden32, marks, changed, differences, changes):
    """`_differ` for a pixel of the table; how many words differ."""
    words = op[PIXEL] >> 2
    place = op[WORDS] + pixel * _room(words)
    found = _differ(at, words, place, work, golden, work32, golden32, changed, differences)
    if found >> 32:
        marks[op[LIST] + pixel] = WIDE
    changes[op[LIST] + pixel] = found & 0xFFFFFFFF
    return found & 0xFFFFFFFF


@kernel
def _window(op, source, pixel, marks, changed, changes, places):
    """What changed in a pixel's window, as (byte in the frames, slot) in `places`; how many."""
    y = pixel // op[W]
    x = pixel - y * op[W]
    top, left = y * op[SH] - op[TOP], x * op[SW] - op[LEFT]
    words, count = source[PIXEL] >> 2, 0
    for ky in range(op[KH]):
        down = top + ky * op[DH]
        if down < 0 or down >= source[H]:
            continue
        for kx in range(op[KW]):
            across = left + kx * op[DW]
            if across < 0 or across >= source[W]:
                continue
            read = down * source[W] + across
            if not marks[source[LIST] + read]:
                continue
            at = source[AT] + down * source[ROW] + across * source[PIXEL]
            slot = (ky * op[KW] + kx) * words
            begin = source[WORDS] + read * _room(words)
            for i in range(changes[source[LIST] + read]):
                word = changed[begin + i]
                places[count, 0], places[count, 1] = at + 4 * word, slot + word
                count += 1
    return count


def _convolve(ops, number, first, lo, hi, work, golden, work32, golden32, known, pixels, marks,
              counts, changed, differences, changes, places, parts, steps, weights, bias,
              factors):  # fmt: skip
    """All touched pixels of a convolution of kind CONV_VNNI, operation `number`.

    One function for the whole operation: most of the time is spent here, and calls and
    views of the table cost as much as a pixel.
    """


@overload(_convolve, jit_options={"error_model": "numpy"})
def _convolve_for(ops, number, first, lo, hi, work, golden, work32, golden32, known, pixels, marks,
                  counts, changed, differences, changes, places, parts, steps, weights, bias,
                  factors):  # fmt: skip
    if not vnni.supported():  # LLVM ends the process if it meets the instruction
        return lambda ops, number, first, lo, hi, work, golden, work32, golden32, known, pixels, \
            marks, counts, changed, differences, changes, places, parts, steps, weights, bias, \
            factors: None  # fmt: skip

    def convolve(ops, number, first, lo, hi, work, golden, work32, golden32, known, pixels, marks,
                 counts, changed, differences, changes, places, parts, steps, weights, bias,
                 factors):  # fmt: skip
        kh, kw, sh, sw = ops[number, KH], ops[number, KW], ops[number, SH], ops[number, SW]
        top, left, dh, dw = ops[number, TOP], ops[number, LEFT], ops[number, DH], ops[number, DW]
        height, width, channels = ops[first, H], ops[first, W], ops[first, PIXEL] >> 2
        source_at, source_row, source_pixel = ops[first, AT], ops[first, ROW], ops[first, PIXEL]
        source_list, source_words = ops[first, LIST], ops[first, WORDS]
        source_room = _room(channels)
        out_w, out_row, out_pixel = ops[number, W], ops[number, ROW], ops[number, PIXEL]
        out_at, out_list, out_words = ops[number, AT], ops[number, LIST], ops[number, WORDS]
        outputs, slots, words = ops[number, C], ops[number, SLOTS], ops[number, PIXEL] >> 2
        room = _room(words)
        flip = np.int32(ops[number, FLIP] * 0x01010101)
        work_at, golden_at = np.int64(work.ctypes.data), np.int64(golden.ctypes.data)
        places_at, parts_at = np.int64(places.ctypes.data), np.int64(parts.ctypes.data)
        changed_at = np.int64(changed.ctypes.data)
        differences_at = np.int64(differences.ctypes.data)
        weights_at = np.int64(weights.ctypes.data)
        first_bias = np.int64(bias.ctypes.data) + 4 * ops[number, BIAS]
        first_factor = np.int64(factors.ctypes.data) + 4 * ops[number, FACTOR]
        first_sum = np.int64(known.ctypes.data) + 4 * ops[number, SUMS]
        steps_at = np.int64(steps.ctypes.data) + 4 * ops[number, STEPS]
        kept = 0
        for i in range(counts[number]):
            pixel = np.int64(pixels[out_list + i])
            y = pixel // out_w
            x = pixel - y * out_w
            down0, across0 = y * sh - top, x * sw - left
            count, total, slot, wide = 0, 0, 0, False
            for ky in range(kh):
                down = down0 + ky * dh
                if down < 0 or down >= height:
                    slot += kw * channels
                    continue
                for kx in range(kw):
                    across = across0 + kx * dw
                    if across >= 0 and across < width:
                        read = down * width + across
                        mark = marks[source_list + read]
                        if mark:
                            begin = 4 * (source_words + read * source_room)
                            size = np.int64(changes[source_list + read])
                            parts[count, 0] = differences_at + begin
                            parts[count, 1] = changed_at + begin
                            parts[count, 2], parts[count, 3] = size, slot
                            parts[count, 4] = source_at + down * source_row + across * source_pixel
                            count += 1
                            total += size
                            wide |= mark == WIDE
                    slot += channels
            target = out_at + y * out_row + x * out_pixel
            codes, rest = work_at + target, outputs
            b, f = first_bias, first_factor
            sums = first_sum + 4 * pixel * outputs
            if 2 * total >= slots:
                weight = weights_at + ops[number, WEIGHT]
                window = work_at + source_at + down0 * source_row + across0 * source_pixel
                while rest > 0:
                    if rest > 48:
                        whole4(window, steps_at, slots, flip, weight, b, f, lo, hi, codes, rest)
                        size = 64
                    elif rest > 16:
                        whole2(window, steps_at, slots, flip, weight, b, f, lo, hi, codes, rest)
                        size = 32
                    else:
                        whole1(window, steps_at, slots, flip, weight, b, f, lo, hi, codes, rest)
                        size = 16
                    weight += slots * size * 4
                    b, f = b + 4 * size, f + 4 * size
                    codes += size
                    rest -= size
            elif wide:
                total = 0
                for j in range(count):
                    begin = (parts[j, 1] - changed_at) >> 2
                    for k in range(parts[j, 2]):
                        word = np.int64(changed[begin + k])
                        places[total, 0] = parts[j, 4] + 4 * word
                        places[total, 1] = parts[j, 3] + word
                        total += 1
                weight = weights_at + ops[number, WEIGHT]
                while rest > 0:
                    if rest > 48:
                        changed4(work_at, golden_at, places_at, total, flip, weight, sums, b, f,
                                 lo, hi, codes, rest)  # fmt: skip
                        size = 64
                    elif rest > 16:
                        changed2(work_at, golden_at, places_at, total, flip, weight, sums, b, f,
                                 lo, hi, codes, rest)  # fmt: skip
                        size = 32
                    else:
                        changed1(work_at, golden_at, places_at, total, flip, weight, sums, b, f,
                                 lo, hi, codes, rest)  # fmt: skip
                        size = 16
                    weight += slots * size * 4
                    sums, b, f = sums + 4 * size, b + 4 * size, f + 4 * size
                    codes += size
                    rest -= size
            else:
                weight = weights_at + ops[number, GATHER]
                while rest > 0:
                    if rest > 48:
                        gather4(parts_at, count, weight, sums, b, f, lo, hi, codes, rest)
                        size = 64
                    elif rest > 16:
                        gather2(parts_at, count, weight, sums, b, f, lo, hi, codes, rest)
                        size = 32
                    else:
                        gather1(parts_at, count, weight, sums, b, f, lo, hi, codes, rest)
                        size = 16
                    weight += slots * size * 4
                    sums, b, f = sums + 4 * size, b + 4 * size, f + 4 * size
                    codes += size
                    rest -= size
            found = _differ(target, words, out_words + pixel * room, work, golden, work32,
                            golden32, changed, differences)  # fmt: skip
            if found:
                if found >> 32:
                    marks[out_list + pixel] = WIDE
                changes[out_list + pixel] = found & 0xFFFFFFFF
                pixels[out_list + kept] = pixel
                kept += 1
            else:
                marks[out_list + pixel] = 0
        counts[number] = kept

    return convolve


@kernel
def _add(ops, number, a, b, lo, hi, work, golden, work32, golden32, pixels, marks, counts, changed,
         differences, changes):  # fmt: skip
    """All touched pixels of an addition, in the words that changed in either operand:
    clamp(round_half_even((m0 a + m1 b) / 2^shift))."""
    width, words, channels = ops[number, W], ops[number, PIXEL] >> 2, ops[number, C]
    room = _room(words)
    m0, m1, shift = ops[number, M0], ops[number, M1], ops[number, SHIFT]
    narrow, scale = ops[number, NARROW] != 0, np.float32(2.0 ** -np.float64(shift))
    f0, f1, low, high = np.float32(m0), np.float32(m1), np.int64(lo), np.int64(hi)
    signed_a, signed_b = ops[a, SIGNED], ops[b, SIGNED]
    kept = 0
    for i in range(counts[number]):
        pixel = np.int64(pixels[ops[number, LIST] + i])
        y = pixel // width
        x = pixel - y * width
        to = ops[number, AT] + y * ops[number, ROW] + x * ops[number, PIXEL]
        one = ops[a, AT] + y * ops[a, ROW] + x * ops[a, PIXEL]
        other = ops[b, AT] + y * ops[b, ROW] + x * ops[b, PIXEL]
        for side in range(2):
            of = b if side else a
            if not marks[ops[of, LIST] + pixel]:
                continue
            begin = ops[of, WORDS] + pixel * room
            for j in range(changes[ops[of, LIST] + pixel]):
                channel = 4 * np.int64(changed[begin + j])
                for o in range(channel, min(channel + 4, channels)):
                    p, q = _code(work, one + o, signed_a), _code(work, other + o, signed_b)
                    if narrow:
                        v = (np.float32(p) * f0 + np.float32(q) * f1) * scale
                        v = v if v > lo else lo
                        v = v if v < hi else hi
                        work[to + o] = np.uint8(np.int32(np.rint(v)) & 255)
                    else:
                        value = _round_shift(m0 * np.int64(p) + m1 * np.int64(q), shift)
                        work[to + o] = np.uint8(min(max(value, low), high) & 255)
        found = _differ(to, words, ops[number, WORDS] + pixel * room, work, golden, work32,
                        golden32, changed, differences)  # fmt: skip
        if found:
            if found >> 32:
                marks[ops[number, LIST] + pixel] = WIDE
            changes[ops[number, LIST] + pixel] = found & 0xFFFFFFFF
            pixels[ops[number, LIST] + kept] = pixel
            kept += 1
        else:
            marks[ops[number, LIST] + pixel] = 0
    counts[number] = kept


@kernel
def _store_sums(op, at, sums, limits, work, bias, factors):
    """Codes of a pixel from its sums without bias."""
    lo, hi = limits[0], limits[1]
    shift = 64 - op[ACC_BITS]
    for o in range(op[C]):
        value = np.int64(sums[o]) + np.int64(bias[op[BIAS] + o])
        v = np.float32((value << shift) >> shift) * factors[op[FACTOR] + o]
        v = v if v > lo else lo
        v = v if v < hi else hi
        work[at + o] = np.uint8(np.int32(np.rint(v)) & 255)


@kernel
def _conv(op, source, pixel, count, limits, sums, work, golden, known, places, weights, bias,
          factors):  # fmt: skip
    """A convolution without VNNI; weights (slots * 4, c) int8."""
    outputs, begin = op[C], op[SUMS] + pixel * op[C]
    for o in range(outputs):
        sums[o] = known[begin + o]
    for i in range(count):
        at, row = np.int64(places[i, 0]), op[WEIGHT] + np.int64(places[i, 1]) * 4 * outputs
        for j in range(4):
            change = _code(work, at + j, source[SIGNED]) - _code(golden, at + j, source[SIGNED])
            if change != 0:
                for o in range(outputs):
                    sums[o] += change * np.int32(weights[row + j * outputs + o])
    _store_sums(op, _at(op, pixel), sums, limits, work, bias, factors)


@kernel
def _depthwise(op, source, pixel, count, limits, sums, work, golden, known, places, weights, bias,
               factors):  # fmt: skip
    """A convolution whose every output reads its own channel; weights (slots * 4,) int8."""
    begin, words = op[SUMS] + pixel * op[C], source[PIXEL] >> 2
    for o in range(op[C]):
        sums[o] = known[begin + o]
    for i in range(count):
        at, slot = np.int64(places[i, 0]), np.int64(places[i, 1])
        word = slot % words
        for j in range(min(4, op[C] - 4 * word)):
            change = _code(work, at + j, source[SIGNED]) - _code(golden, at + j, source[SIGNED])
            sums[4 * word + j] += change * np.int32(weights[op[WEIGHT] + 4 * slot + j])
    _store_sums(op, _at(op, pixel), sums, limits, work, bias, factors)


@kernel
def _average(op, source, pixel, count, limits, sums, work, golden, known, places):
    """clamp(round_half_even(sum * m0 / 2^shift))."""
    begin, words = op[SUMS] + pixel * op[C], source[PIXEL] >> 2
    for o in range(op[C]):
        sums[o] = known[begin + o]
    for i in range(count):
        at, word = np.int64(places[i, 0]), np.int64(places[i, 1]) % words
        for j in range(min(4, op[C] - 4 * word)):
            change = _code(work, at + j, source[SIGNED]) - _code(golden, at + j, source[SIGNED])
            sums[4 * word + j] += change
    lo, hi, to = np.int64(limits[0]), np.int64(limits[1]), _at(op, pixel)
    for o in range(op[C]):
        value = _round_shift(np.int64(sums[o]) * op[M0], op[SHIFT])
        work[to + o] = np.uint8(min(max(value, lo), hi) & 255)


@kernel
def _maximum(op, source, pixel, count, work, places):
    """Largest code of the window in the channels that changed."""
    y = pixel // op[W]
    x = pixel - y * op[W]
    to, words = _at(op, pixel), source[PIXEL] >> 2
    for i in range(count):
        word = np.int64(places[i, 1]) % words
        for o in range(4 * word, min(4 * word + 4, op[C])):
            most = np.int32(-1 << 20)
            for ky in range(op[KH]):
                down = y * op[SH] - op[TOP] + ky * op[DH]
                if down < 0 or down >= source[H]:
                    continue
                for kx in range(op[KW]):
                    across = x * op[SW] - op[LEFT] + kx * op[DW]
                    if across < 0 or across >= source[W]:
                        continue
                    at = source[AT] + down * source[ROW] + across * source[PIXEL] + o
                    most = max(most, _code(work, at, source[SIGNED]))
            work[to + o] = np.uint8(most & 255)


@kernel
def _relu(op, source, pixel, limits, work, changed, changes):
    lo, hi = np.int64(limits[0]), np.int64(limits[1])
    to, at = _at(op, pixel), _at(source, pixel)
    begin = source[WORDS] + pixel * _room(source[PIXEL] >> 2)
    for i in range(changes[source[LIST] + pixel]):
        word = np.int64(changed[begin + i])
        for o in range(4 * word, min(4 * word + 4, op[C])):
            value = np.int64(_code(work, at + o, source[SIGNED]))
            work[to + o] = np.uint8(min(max(value, lo), hi) & 255)


@kernel
def _copies(op, source, number, first, slot, work, pixels, marks, counts):
    """Changed pixels of one input of a COPY put where they belong.

    A slice reads every (sh, sw)-th pixel from (top, left) on; padding has negative
    offsets. An input of a concatenation has its own first channel, in M0 and M1.
    """
    c_out = op[M0] if slot == 0 else op[M1]
    if slot == 0 and op[B] < 0:
        c_out = op[C_OUT]
    count = min(source[C] - op[C_IN], op[C] - c_out)
    for i in range(counts[first]):
        pixel = pixels[source[LIST] + i]
        y = pixel // source[W]
        x = pixel - y * source[W]
        down, across = y - op[TOP], x - op[LEFT]
        if down < 0 or across < 0 or down % op[SH] or across % op[SW]:
            continue
        down, across = down // op[SH], across // op[SW]
        if down >= op[H] or across >= op[W]:
            continue
        at = source[AT] + y * source[ROW] + x * source[PIXEL] + op[C_IN]
        to = op[AT] + down * op[ROW] + across * op[PIXEL] + c_out
        for o in range(count):
            work[to + o] = work[at + o]
        _touch(op, down * op[W] + across, pixels, marks, counts, number)


@kernel
def _put_back(op, number, work32, golden32, pixels, marks, counts, changed, changes):
    words = op[PIXEL] >> 2
    for i in range(counts[number]):
        pixel = pixels[op[LIST] + i]
        marks[op[LIST] + pixel] = 0
        at, begin = _at(op, pixel) >> 2, op[WORDS] + pixel * _room(words)
        for j in range(changes[op[LIST] + pixel]):
            word = changed[begin + j]
            work32[at + word] = golden32[at + word]
    counts[number] = 0


@kernel
def _last(op, source, count, work, golden, pixels, changed, changes, weights, sums, acc,
          golden_acc):  # fmt: skip
    """Sums of the answer, from the golden ones; whether they differ.

    weights (pixels, channels filled up, classes) int8, pixels in the order of the rows
    """
    classes, words = len(golden_acc), source[PIXEL] >> 2
    for o in range(classes):
        sums[o] = 0
    for i in range(count):
        pixel = pixels[source[LIST] + i]
        at, begin = _at(source, pixel), source[WORDS] + pixel * _room(words)
        place = op[WEIGHT] + pixel * source[PIXEL] * classes
        for j in range(changes[source[LIST] + pixel]):
            word = np.int64(changed[begin + j])
            for k in range(4 * word, 4 * word + 4):
                change = _code(work, at + k, source[SIGNED])
                change -= _code(golden, at + k, source[SIGNED])
                if change != 0:
                    for o in range(classes):
                        sums[o] += change * np.int32(weights[place + k * classes + o])
    differs = False
    for o in range(classes):
        acc[o] = wrap(golden_acc[o] + sums[o], op[ACC_BITS])
        differs |= acc[o] != golden_acc[o]
    return differs


@kernel
def propagate(
    ops, limits, steps, weights, bias, factors, work, golden, known, golden_acc, pixels, marks,
    counts, changed, differences, changes, places, parts, sums, first, begin, index, code, acc,
    spread,
):  # fmt: skip
    """Faults of one image, one after another.

    ops, limits    (o, FIELDS) int64 and (o, 2) float32, the clamp
    steps, weights, bias, factors
                   int32, int8, float32 or int32 as an operation's kind has it, float32
    work, golden   frames of the image; equal, and equal again in the end
    known          int32 golden sums of products (without bias) and averages
    golden_acc     (classes,) int64 sums of the answer
    pixels, marks, changes
                   int32, uint8, uint16 scratch, a place for each pixel of each operation;
                   counts (o,) int64; marks and counts all 0
    changed, differences
                   int32 scratch, `_room` of each pixel
    places, parts  (most words of a window, 2) int32, (most pixels of one, 5) int64 scratch;
                   sums (most channels,) int32
    first          (f,) the operation whose codes a fault changes, before LAST
    begin          (f + 1,) where its changes begin: index in the codes (h, w, c), and code
    acc            (f, classes) int64, overwritten
    spread         (f, o) int32, overwritten: pixels of each operation that differ; or
                   (0, o): not wanted
    Returns (f,) bool: whether the answer differs.
    """
    last = len(ops) - 1
    classes = len(golden_acc)
    work32, golden32 = work.view(np.uint32), golden.view(np.uint32)
    found = np.zeros(len(first), np.bool_)
    for f in range(len(first)):
        start = first[f]
        op = ops[start]
        for i in range(begin[f], begin[f + 1]):
            pixel = index[i] // op[C]
            work[_at(op, pixel) + index[i] - pixel * op[C]] = np.uint8(code[i] & 255)
            _touch(op, pixel, pixels, marks, counts, start)
        for o in range(classes):
            acc[f, o] = golden_acc[o]
        end, live = start, True
        for number in range(start, last + 1):
            op = ops[number]
            kind, a, b = op[KIND], op[A], op[B]
            if kind == LAST:
                if counts[a] > 0:
                    found[f] = _last(op, ops[a], counts[a], work, golden, pixels, changed, changes,
                                     weights, sums, acc[f], golden_acc)  # fmt: skip
                break
            if number > start:
                if kind == 0 or (counts[a] == 0 and (b < 0 or counts[b] == 0)):
                    continue
                if kind == COPY:
                    if counts[a] > 0:
                        _copies(op, ops[a], number, a, 0, work, pixels, marks, counts)
                    if b >= 0 and counts[b] > 0:
                        _copies(op, ops[b], number, b, 1, work, pixels, marks, counts)
                elif kind == ADD:
                    _touch_same(op, ops[a], number, a, pixels, marks, counts)
                    _touch_same(op, ops[b], number, b, pixels, marks, counts)
                elif kind == RELU:
                    _touch_same(op, ops[a], number, a, pixels, marks, counts)
                else:
                    _touch_windows(op, ops[a], number, a, pixels, marks, counts)
            end = number
            if kind == CONV_VNNI and number > start:
                _convolve(ops, number, a, limits[number, 0], limits[number, 1], work, golden,
                          work32, golden32, known, pixels, marks, counts, changed, differences,
                          changes, places, parts, steps, weights, bias, factors)  # fmt: skip
                continue
            if kind == ADD and number > start:
                _add(ops, number, a, b, limits[number, 0], limits[number, 1], work, golden, work32,
                     golden32, pixels, marks, counts, changed, differences, changes)  # fmt: skip
                continue
            kept = 0
            for i in range(counts[number]):
                pixel = np.int64(pixels[op[LIST] + i])
                if number == start or kind == COPY:
                    pass
                elif kind == RELU:
                    _relu(op, ops[a], pixel, limits[number], work, changed, changes)
                else:
                    count = _window(op, ops[a], pixel, marks, changed, changes, places)
                    if kind == CONV:
                        _conv(op, ops[a], pixel, count, limits[number], sums, work, golden, known,
                              places, weights, bias, factors)  # fmt: skip
                    elif kind == DEPTHWISE:
                        _depthwise(op, ops[a], pixel, count, limits[number], sums, work, golden,
                                   known, places, weights, bias, factors)  # fmt: skip
                    elif kind == AVERAGE:
                        _average(op, ops[a], pixel, count, limits[number], sums, work, golden,
                                 known, places)  # fmt: skip
                    else:
                        _maximum(op, ops[a], pixel, count, work, places)
                at = _at(op, pixel)
                if _compare(op, pixel, at, work, golden, work32, golden32, marks, changed,
                            differences, changes):  # fmt: skip
                    pixels[op[LIST] + kept] = pixel
                    kept += 1
                else:
                    marks[op[LIST] + pixel] = 0
            counts[number] = kept
            if number == start and kept == 0:
                live = False
                break
        if len(spread):
            for number in range(last + 1):
                spread[f, number] = counts[number] if live else 0
        for number in range(start, end + 1):
            if counts[number] > 0:
                _put_back(ops[number], number, work32, golden32, pixels, marks, counts, changed,
                          changes)  # fmt: skip
    return found


@kernel
def window_sums(op, source, frames, out):
    """Sums of the windows of an average; frames (images, bytes), out (images, h * w * c)."""
    for image in range(len(frames)):
        for pixel in range(op[H] * op[W]):
            y = pixel // op[W]
            x = pixel - y * op[W]
            for o in range(op[C]):
                total = np.int32(0)
                for ky in range(op[KH]):
                    down = y * op[SH] - op[TOP] + ky * op[DH]
                    if down < 0 or down >= source[H]:
                        continue
                    for kx in range(op[KW]):
                        across = x * op[SW] - op[LEFT] + kx * op[DW]
                        if across < 0 or across >= source[W]:
                            continue
                        at = source[AT] + down * source[ROW] + across * source[PIXEL] + o
                        total += _code(frames[image], at, source[SIGNED])
                out[image, pixel * op[C] + o] = total


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
        code = _code(frame, at + first + c, source[SIGNED])
        total += code * np.int64(plain[o * per * windows + k])
    return total


@kernel
def psum_codes(ops, limits, plain, plain_at, offset, bias, factors, fold_slots, frames, known,
               image, layer, rows, index, code):  # fmt: skip
    """The code that one hit in the memory of partial sums makes of an output.

    plain       int8 weights (o, slots) of each operation, from plain_at on
    offset, bias  (..,) int64 by operation, from ops[BIAS] on, as `factors`: what `known`
                holds beyond the sum, and the bias
    fold_slots  (o,) slots after which a sum is stored
    frames, known  (images, ..) golden codes and sums
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
        whole = np.int64(known[image[f], op[SUMS] + row.word]) - offset[op[BIAS] + o]
        part = whole
        if limit < size:
            weights = plain[plain_at[layer[f]] :]
            part = _prefix(op, source, o, pixel, frames[image[f]], weights, limit)
        stored = wrap(bias[op[BIAS] + o] + part, op[ACC_BITS])
        struck = wrap(((stored & row.and_mask) | row.or_mask) ^ row.xor_mask, op[ACC_BITS])
        value = wrap(struck + whole - part, op[ACC_BITS])
        v = np.float32(value) * factors[op[FACTOR] + o]
        v = v if v > limits[layer[f], 0] else limits[layer[f], 0]
        v = v if v < limits[layer[f], 1] else limits[layer[f], 1]
        index[f], code[f] = row.word, np.int32(np.rint(v))
