"""Errors in stored words, for many images at once.

Weight errors are rank-one updates of the accumulators of their image; an error
in a stored partial sum is a difference carried to the final sum. Both are exact
where adders wrap, because wrapping is a ring homomorphism. Where adders
saturate the replay kernel walks instead.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from fsim.jit import kernel

from . import vnni
from .replay import wrap


@kernel
def group_rows(rows, chosen, layers, components):
    """Rows by (layer, component), their order kept.

    rows    FAULT records; chosen (s,) int64 indices of those that count
    layers  more than the largest layer, from -1 on: layer l is group l + 1
    Returns (order (s,), begins (layers * components + 1,)) int64.
    """
    begins = np.zeros(layers * components + 1, np.int64)
    for i in chosen:
        begins[(rows[i].layer + 1) * components + rows[i].component + 1] += 1
    for group in range(layers * components):
        begins[group + 1] += begins[group]
    order = np.empty(len(chosen), np.int64)
    at = begins.copy()
    for i in chosen:
        group = (rows[i].layer + 1) * components + rows[i].component
        order[at[group]] = i
        at[group] += 1
    return order, begins


@kernel
def sort_keys(rows, index, slot, words, folds, out):
    """Keys that sort rows by (inference, word, residency), then by their own order.

    index, slot  (f,) int64: row and the inference it strikes
    words, folds  more than any word and any `first`; (inferences * words * folds * f)
              must stay below 2^63
    out       (f,) int64, overwritten; key % f is the position in `index`
    """
    count = len(index)
    for i in range(count):
        row = rows[index[i]]
        fold = row.first if folds > 1 else 0
        out[i] = ((slot[i] * words + row.word) * folds + fold) * count + i


@kernel
def apply_words(codes, rows, index, slot):
    """Mask stored codes (n, words) of any integer dtype in place.

    Row index[i] strikes codes[slot[i]], -1 meaning all; masks, as rows store them,
    keep a code in the range of its dtype.
    """
    for i in range(len(index)):
        row = rows[index[i]]
        w = row.word
        lo, hi = slot[i], slot[i] + 1
        if slot[i] < 0:
            lo, hi = 0, codes.shape[0]
        for b in range(lo, hi):
            codes[b, w] = ((np.int64(codes[b, w]) & row.and_mask) | row.or_mask) ^ row.xor_mask


@kernel
def wrong_weights(rows, index, slot, order, weight, shape, out):
    """What wrong weights differ by, from rows in the order (inference, word).

    order   (f,) int64 positions in index and slot
    weight  flat codes, (o, c, kh, kw) as PyTorch keeps them; shape (c, kh * kw)
    out     (image, output, k, delta) int64 (f,) to fill; returns how many
    """
    image, output, k, delta = out
    channels, windows = shape
    size = channels * windows
    count, i = 0, 0
    while i < len(order):
        b, word = slot[order[i]], rows[index[order[i]]].word
        code = np.int64(weight[word])
        new = code
        while i < len(order) and slot[order[i]] == b and rows[index[order[i]]].word == word:
            row = rows[index[order[i]]]
            new = ((new & row.and_mask) | row.or_mask) ^ row.xor_mask
            i += 1
        o = word // size
        rest = word - o * size
        c = rest // windows
        image[count], output[count], delta[count] = b, o, new - code
        k[count] = (rest - c * windows) * channels + c
        count += 1
    return count


@kernel
def read_errors(codes, rows, index, slot, order, geometry, sizes, scope, out):
    """What wrong words of single fetches change in the products that read them.

    codes   (images, h, w, c) input codes
    order   (f,) int64 positions in index and slot, sorted by (inference, word, fetch)
    sizes   (groups, positions, kernel height)
    scope   (f, 7) int64 of each position in index: group, begin and end of the output
            positions, slots and output channels that read its fetch
    out     (key, k, begin, end, delta) int64, f times the window's size, to fill: key
            (image * groups + group) * positions + m, a slot, the output channels, and what
            is added to the code; returns how many
    """
    h, w, cg, out_w, kw, sh, sw, pt, pl, dh, dw = geometry
    groups, positions, kh = sizes
    keys, slots, begins, ends, deltas = out
    channels = codes.shape[3]
    out_h = positions // out_w
    flat = codes.reshape(codes.shape[0], -1)
    count, i = 0, 0
    while i < len(order):
        at, b = order[i], slot[order[i]]
        word, fetch = rows[index[at]].word, rows[index[at]].first
        code = np.int64(flat[b, word])
        new = code
        while i < len(order) and slot[order[i]] == b:
            row = rows[index[order[i]]]
            if row.word != word or row.first != fetch:
                break
            new = ((new & row.and_mask) | row.or_mask) ^ row.xor_mask
            i += 1
        pixel, channel = word // channels, word % channels
        y, x, group = pixel // w, pixel % w, channel // cg
        if new == code or group != scope[at, 0]:
            continue
        for window in range(kh * kw):
            down, across = y + pt - window // kw * dh, x + pl - window % kw * dw
            if down < 0 or across < 0 or down % sh or across % sw:
                continue
            if down // sh >= out_h or across // sw >= out_w:
                continue
            m, k = down // sh * out_w + across // sw, window * cg + channel % cg
            if scope[at, 1] <= m < scope[at, 2] and scope[at, 3] <= k < scope[at, 4]:
                keys[count], slots[count] = (b * groups + group) * positions + m, k
                begins[count], ends[count], deltas[count] = scope[at, 5], scope[at, 6], new - code
                count += 1
    return count


@kernel
def _first(keys, key):
    """Where `key` begins in sorted keys."""
    lo, hi = 0, len(keys)
    while lo < hi:
        middle = (lo + hi) // 2
        if keys[middle] < key:
            lo = middle + 1
        else:
            hi = middle
    return lo


@kernel
def _wrong_of(wrong, b, o):
    """[begin, end) of the wrong weights of an image and output channel."""
    image, output = wrong[0], wrong[1]
    lo, hi = 0, len(image)
    while lo < hi:
        middle = (lo + hi) // 2
        if image[middle] < b or (image[middle] == b and output[middle] < o):
            lo = middle + 1
        else:
            hi = middle
    end = lo
    while end < len(image) and image[end] == b and output[end] == o:
        end += 1
    return lo, end


@kernel
def _met(weight, wrong, lo, hi, o, k):
    """The weight that output channel o's slot k meets, wrong ones [lo, hi) included."""
    value = np.int64(weight[o, k])
    for e in range(lo, hi):
        if wrong[2][e] == k:
            value += wrong[3][e]
    return value


@kernel
def fetched_sums(weight, acc, bias, per_group, acc_bits, wrong, read, scratch, out):
    """Final sums of the outputs that wrong fetched words change, but for those of
    columns with wrong weights, which `weight_errors` gives.

    read     of `read_errors`, sorted by key
    scratch  (o,) int64
    out      (index, value) int64 to fill, as many as `read` covers output channels;
             returns how many
    """
    keys, slots, begins, ends, deltas = read
    index, value = out
    positions, outputs = acc.shape[1], acc.shape[2]
    groups = outputs // per_group
    count, i = 0, 0
    while i < len(keys):
        key = keys[i]
        image, m, group = key // (groups * positions), key % positions, key // positions % groups
        scratch[:] = 0
        while i < len(keys) and keys[i] == key:
            for o in range(begins[i], ends[i]):
                scratch[o] += deltas[i] * np.int64(weight[o, slots[i]])
            i += 1
        for o in range(group * per_group, (group + 1) * per_group):
            if scratch[o] != 0:
                lo, hi = _wrong_of(wrong, image, o)
                if lo < hi:
                    continue
                index[count] = (image * positions + m) * outputs + o
                value[count] = wrap(np.int64(acc[image, m, o]) + bias[o] + scratch[o], acc_bits)
                count += 1
    return count


@kernel
def _read(codes, geometry, b, m, k, group):
    """Input code that slot k of output position m reads; 0 for padding."""
    h, w, cg, out_w, kw, sh, sw, pt, pl, dh, dw = geometry
    window, c = k // cg, k % cg
    y = m // out_w * sh + window // kw * dh - pt
    x = m % out_w * sw + window % kw * dw - pl
    if y < 0 or y >= h or x < 0 or x >= w:
        return np.int64(0)
    return np.int64(codes[b, y, x, group * cg + c])


def _dot(inputs, weights):
    """Sum of products, int64; of 8-bit codes and weights for less than 2^16 of them."""


@overload(_dot, jit_options={"error_model": "numpy"})
def _dot_for(inputs, weights):
    narrow = inputs.dtype in (types.uint8, types.int8) and weights.dtype == types.int8
    if narrow and inputs.dtype == types.uint8 and vnni.supported():
        return lambda inputs, weights: vnni.dot(inputs, weights)
    short = np.int32 if narrow else np.int64

    def plain(inputs, weights):
        total = short(0)
        for i in range(len(inputs)):
            total += short(inputs[i]) * short(weights[i])
        return np.int64(total)

    return plain


@kernel
def _partial(flat, channels, weight, geometry, b, m, output, group, begin, end):
    """Sum of the products of slots [begin, end) of an output.

    A row of windows that lie side by side is one run of memory, if there is one group.
    """
    h, w, cg, out_w, kw, sh, sw, pt, pl, dh, dw = geometry
    total = np.int64(0)
    if begin >= end:
        return total
    out_y = m // out_w
    y0, x0 = out_y * sh - pt, (m - out_y * out_w) * sw - pl
    joined = dw == 1 and channels == cg
    run = kw * cg if joined else cg
    windows = weight.shape[1] // run
    for number in range(windows):  # most have few: cheaper than two divisions
        first, last = max(begin, number * run), min(end, (number + 1) * run)
        if first >= last:
            continue
        if joined:
            y, low = y0 + number * dh, x0 * cg - number * run
        else:
            y, x = y0 + number // kw * dh, x0 + number % kw * dw
            low = x * cg - number * run
            if x < 0 or x >= w:
                continue
        if y < 0 or y >= h:
            continue
        if joined:
            first, last = max(first, -low), min(last, w * cg - low)
            if first >= last:
                continue
            row = y * w * cg + low
            total += _dot(flat[b, row + first : row + last], weight[output, first:last])
        else:
            at = (y * w + x) * channels + group * cg - number * run
            total += _dot(flat[b, at + first : at + last], weight[output, first:last])
    return total


@kernel
def weight_errors(
    codes, weight, acc, bias, geometry, per_group, acc_bits, wrong, read, scratch, out
):
    """Final sums of the outputs that wrong weights change.

    codes    (images, h, w, c) input codes
    acc      (images, m, o) exact sums without bias, float or integer
    wrong    (image, output, k, delta) int64 (f,) sorted by (image, output); delta is
             what is added to the code
    read     of `read_errors`, sorted by key: wrong codes that the same outputs read
    scratch  (m,) int64
    out      (index, value) int64 to fill, m entries for each (image, output): flat
             indices into acc, and sums with the bias, wrapped; returns how many
    """
    h, w, cg, out_w, kw, sh, sw, pt, pl, dh, dw = geometry
    image, output, k, delta = wrong
    index, value = out
    keys, slots, begins, ends, deltas = read
    positions, outputs = acc.shape[1], acc.shape[2]
    groups = outputs // per_group
    count, i = 0, 0
    while i < len(image):
        b, o = image[i], output[i]
        group = o // per_group
        scratch[:] = 0
        begin = i
        while i < len(image) and image[i] == b and output[i] == o:
            # Row by row: no division and no look at padding for every output.
            window, c = k[i] // cg, group * cg + k[i] % cg
            dy, dx = window // kw * dh - pt, window % kw * dw - pl
            for row in range(positions // out_w):
                y = row * sh + dy
                if y < 0 or y >= h:
                    continue
                for column in range(out_w):
                    x = column * sw + dx
                    if x >= 0 and x < w:
                        scratch[row * out_w + column] += delta[i] * np.int64(codes[b, y, x, c])
            i += 1
        key = (b * groups + group) * positions
        e = _first(keys, key) if len(keys) else 0
        while e < len(keys) and keys[e] < key + positions:
            if begins[e] <= o < ends[e]:
                scratch[keys[e] - key] += deltas[e] * _met(weight, wrong, begin, i, o, slots[e])
            e += 1
        for m in range(positions):
            if scratch[m] != 0:  # half of what a ReLU lets through is zero
                index[count] = (b * positions + m) * outputs + o
                value[count] = wrap(np.int64(acc[b, m, o]) + bias[o] + scratch[m], acc_bits)
                count += 1
    return count


@kernel
def psum_errors(
    codes, weight, acc, bias, geometry, per_group, acc_bits, fold_slots, rows, index, slot,
    order, wrong, read, out,
):  # fmt: skip
    """Final sums of outputs whose partial sums were hit in memory.

    weight      (o, k) int32 codes, or int8 if k < 2^16
    fold_slots  slots after which a sum is stored (k itself: stored once)
    rows        FAULT records; word is m * outputs + o, first the fold
    index, slot  (f,) int64: row and inference; order (f,) int64 positions in them,
                sorted by (inference, word, fold)
    wrong       (image, output, k, delta) int64 of wrong weights that the same outputs
                read, sorted by (image, output)
    read        of `read_errors`, sorted by key: wrong codes that the same outputs read
    out         (index, value) int64 (f,) to fill; returns how many
    """
    keys, slots, begins, ends, deltas = read
    w_image, w_output, w_k, w_delta = wrong
    where, value = out
    positions, outputs = acc.shape[1], acc.shape[2]
    size = weight.shape[1]
    channels = codes.shape[3]
    flat = codes.reshape(codes.shape[0], -1)
    count, at, i = 0, 0, 0
    while i < len(order):
        b, word = slot[order[i]], rows[index[order[i]]].word
        m = word // outputs
        o = word - m * outputs
        group = o // per_group if per_group < outputs else 0
        # Wrong weights of this image and output: both lists go through the images in order.
        while at < len(w_image) and w_image[at] < b:
            at += 1
        lo = at
        while lo < len(w_image) and w_image[lo] == b and w_output[lo] < o:
            lo += 1
        whole = np.int64(acc[b, m, o])
        final = whole + bias[o]
        e = lo
        while e < len(w_image) and w_image[e] == b and w_output[e] == o:
            final += w_delta[e] * _read(codes, geometry, b, m, w_k[e], group)
            e += 1
        hi = e
        # Wrong codes that this output position's products read.
        key = (b * (outputs // per_group) + group) * positions + m
        r_lo = _first(keys, key) if len(keys) else 0
        r = r_lo
        while r < len(keys) and keys[r] == key:
            if begins[r] <= o < ends[r]:
                final += deltas[r] * _met(weight, wrong, lo, hi, o, slots[r])
            r += 1
        carried = np.int64(0)
        while i < len(order) and slot[order[i]] == b and rows[index[order[i]]].word == word:
            row = rows[index[order[i]]]
            limit = min((row.first + 1) * fold_slots, size)
            stored = bias[o] + carried
            if 2 * limit <= size:
                stored += _partial(flat, channels, weight, geometry, b, m, o, group, 0, limit)
            else:
                rest = _partial(flat, channels, weight, geometry, b, m, o, group, limit, size)
                stored += whole - rest
            e = lo
            while e < len(w_image) and w_image[e] == b and w_output[e] == o:
                if w_k[e] < limit:
                    stored += w_delta[e] * _read(codes, geometry, b, m, w_k[e], group)
                e += 1
            r = r_lo
            while r < len(keys) and keys[r] == key:
                if begins[r] <= o < ends[r] and slots[r] < limit:
                    stored += deltas[r] * _met(weight, wrong, lo, hi, o, slots[r])
                r += 1
            stored = wrap(stored, acc_bits)
            struck = ((stored & row.and_mask) | row.or_mask) ^ row.xor_mask
            carried += wrap(struck, acc_bits) - stored
            i += 1
        where[count] = (b * positions + m) * outputs + o
        value[count] = wrap(final + carried, acc_bits)
        count += 1
    return count
