"""Errors in stored words, for many images at once.

Weight errors are rank-one updates of the accumulators of their image; an error
in a stored partial sum is a difference carried to the final sum. Both are exact
where adders wrap, because wrapping is a ring homomorphism. Where adders
saturate the replay kernel walks instead.
"""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel

from .replay import wrap


@kernel
def apply_words(codes, image, word, and_, or_, xor):
    """Mask stored codes in place: codes[image, word]; image -1 means every image.

    codes (n, words) of any integer dtype; the others (f,) int64, masks as rows
    store them, so that a masked code stays in the range of its dtype.
    """
    for i in range(len(image)):
        w = word[i]
        lo, hi = image[i], image[i] + 1
        if image[i] < 0:
            lo, hi = 0, codes.shape[0]
        for b in range(lo, hi):
            codes[b, w] = ((np.int64(codes[b, w]) & and_[i]) | or_[i]) ^ xor[i]


@kernel
def struck_words(code, key, and_, or_, xor, out):
    """Fold masks of equal keys, in order: out[i] is the code after all of run i.

    code, key, and_, or_, xor  (f,) int64, equal keys adjacent; code is the
    stored value. Returns the number of runs.
    """
    runs = 0
    for i in range(len(key)):
        if i == 0 or key[i] != key[i - 1]:
            out[runs] = code[i]
            runs += 1
        out[runs - 1] = ((out[runs - 1] & and_[i]) | or_[i]) ^ xor[i]
    return runs


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


@kernel
def _dot(inputs, weights, narrow):
    """Sum of products; narrow: 8-bit codes, so that 32 bits hold it for 2^17 of them."""
    if narrow and len(inputs) <= 1 << 16:
        short = np.int32(0)
        for i in range(len(inputs)):
            short += np.int32(inputs[i]) * weights[i]
        return np.int64(short)
    total = np.int64(0)
    for i in range(len(inputs)):
        total += np.int64(inputs[i]) * np.int64(weights[i])
    return total


@kernel
def _partial(codes, weight, geometry, b, m, output, group, begin, end, narrow):
    """Sum of the products of slots [begin, end) of an output.

    A row of windows that lie side by side is one run of memory, if there is one group.
    """
    h, w, cg, out_w, kw, sh, sw, pt, pl, dh, dw = geometry
    total = np.int64(0)
    if begin >= end:
        return total
    y0, x0 = m // out_w * sh - pt, m % out_w * sw - pl
    joined = dw == 1 and codes.shape[3] == cg
    run = kw * cg if joined else cg
    for number in range(begin // run, -(-end // run)):
        first, last = max(begin, number * run), min(end, (number + 1) * run)
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
            row = codes[b, y].reshape(w * cg)
            total += _dot(row[first + low : last + low], weight[output, first:last], narrow)
        else:
            c = group * cg + first - number * run
            total += _dot(
                codes[b, y, x, c : c + last - first], weight[output, first:last], narrow
            )
    return total


@kernel
def weight_errors(codes, acc, bias, geometry, per_group, acc_bits, image, output, k, delta, out):
    """Final sums of every output that reads a wrong weight.

    codes     (images, h, w, c) input codes
    acc       (images, m, o) exact sums without bias, float or integer
    image, output, k, delta  (f,) int64 errors sorted by (image, output); delta is
              what is added to the code
    out       (index, value) int64 (g * m,) to fill, g being the number of distinct
              (image, output): flat indices into acc, and sums
    """
    h, w, cg, out_w, kw, sh, sw, pt, pl, dh, dw = geometry
    index, value = out
    positions, outputs = acc.shape[1], acc.shape[2]
    at, i = 0, 0
    while i < len(image):
        end = i + 1
        while end < len(image) and image[end] == image[i] and output[end] == output[i]:
            end += 1
        b, o = image[i], output[i]
        group = o // per_group
        for m in range(positions):
            index[at + m] = (b * positions + m) * outputs + o
            value[at + m] = np.int64(acc[b, m, o]) + bias[o]
        for e in range(i, end):
            # Row by row: no division and no look at padding for every output.
            window, c = k[e] // cg, group * cg + k[e] % cg
            dy, dx = window // kw * dh - pt, window % kw * dw - pl
            for row in range(positions // out_w):
                y = row * sh + dy
                if y < 0 or y >= h:
                    continue
                for column in range(out_w):
                    x = column * sw + dx
                    if x >= 0 and x < w:
                        value[at + row * out_w + column] += delta[e] * np.int64(codes[b, y, x, c])
        for m in range(at, at + positions):
            value[m] = wrap(value[m], acc_bits)
        at += positions
        i = end


@kernel
def psum_errors(
    codes,
    weight,
    acc,
    bias,
    geometry,
    per_group,
    acc_bits,
    fold_slots,
    narrow,
    psums,
    weights,
    out,
):
    """Final sums of outputs whose partial sums were hit in memory.

    weight    (o, k) int32 codes
    fold_slots  slots after which a sum is stored (k itself: stored once)
    narrow    codes and weights have 8 bits
    psums     (image, word, fold, and, or, xor) arrays (f,) int64 sorted by
              (image, word, fold); word is m * outputs + o
    weights   (image, output, k, delta) arrays of wrong weights, sorted by
              (image, output), that the same outputs read
    out       (index, value) int64 (f,) to fill; returns how many
    """
    image, word, fold, and_, or_, xor = psums
    w_image, w_output, w_k, w_delta = weights
    index, value = out
    positions, outputs = acc.shape[1], acc.shape[2]
    size = weight.shape[1]
    count, at, i = 0, 0, 0
    while i < len(image):
        end = i + 1
        while end < len(image) and image[end] == image[i] and word[end] == word[i]:
            end += 1
        b, m, o = image[i], word[i] // outputs, word[i] % outputs
        group = o // per_group
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
        carried = np.int64(0)
        for f in range(i, end):
            limit = min((fold[f] + 1) * fold_slots, size)
            stored = bias[o] + carried
            if 2 * limit <= size:
                stored += _partial(codes, weight, geometry, b, m, o, group, 0, limit, narrow)
            else:
                rest = _partial(codes, weight, geometry, b, m, o, group, limit, size, narrow)
                stored += whole - rest
            e = lo
            while e < len(w_image) and w_image[e] == b and w_output[e] == o:
                if w_k[e] < limit:
                    stored += w_delta[e] * _read(codes, geometry, b, m, w_k[e], group)
                e += 1
            stored = wrap(stored, acc_bits)
            struck = wrap(((stored & and_[f]) | or_[f]) ^ xor[f], acc_bits)
            carried += struck - stored
        index[count] = (b * positions + m) * outputs + o
        value[count] = wrap(final + carried, acc_bits)
        count += 1
        i = end
    return count
