"""Windows of a feature map as matrix rows, and integer convolution by loops.

Feature maps are channels last; a window's columns run over (kh, kw, c).
"""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel, parallel_kernel, prange


@parallel_kernel
def im2col(codes, window, stride, padding, dilation, fill, out):
    """Rows of a convolution's GEMM.

    codes    (n, h, w, c) integer codes
    window   (kh, kw, oh, ow): size of the kernel and of the output
    padding  (left, top)
    fill     code outside the map
    out      (n * oh * ow, kh * kw * c), type as codes, overwritten
    """
    kh, kw, oh, ow = window
    sh, sw = stride
    left, top = padding
    dh, dw = dilation
    n, h, w, c = codes.shape
    for line in prange(n * oh):
        image = line // oh
        y = line % oh
        for x in range(ow):
            row = line * ow + x
            column = 0
            for i in range(kh):
                source_y = y * sh - top + i * dh
                for j in range(kw):
                    source_x = x * sw - left + j * dw
                    if source_y < 0 or source_y >= h or source_x < 0 or source_x >= w:
                        for k in range(c):
                            out[row, column + k] = fill
                    else:
                        for k in range(c):
                            out[row, column + k] = codes[image, source_y, source_x, k]
                    column += c


@parallel_kernel
def convolve(codes, weight, stride, padding, dilation, groups, out):
    """Convolution by loops in int64: the slow path that takes everything.

    codes    (n, h, w, c) int64 codes
    weight   (o, kh, kw, c / groups) int64
    padding  (left, top)
    out      (n, oh, ow, o) int64, overwritten
    """
    n, h, w, c = codes.shape
    o, kh, kw, per_group = weight.shape
    oh, ow = out.shape[1], out.shape[2]
    sh, sw = stride
    left, top = padding
    dh, dw = dilation
    for line in prange(n * oh):
        image = line // oh
        y = line % oh
        for x in range(ow):
            for f in range(o):
                first = (f // (o // groups)) * per_group
                total = np.int64(0)
                for i in range(kh):
                    source_y = y * sh - top + i * dh
                    if source_y < 0 or source_y >= h:
                        continue
                    for j in range(kw):
                        source_x = x * sw - left + j * dw
                        if source_x < 0 or source_x >= w:
                            continue
                        for k in range(per_group):
                            total += (
                                codes[image, source_y, source_x, first + k] * weight[f, i, j, k]
                            )
                out[image, y, x, f] = total


@parallel_kernel
def matmul(a, b, out):
    """out[i] = a[i] b[i] in int64; a (s, m, k), b (s, k, p), out (s, m, p), all int64."""
    s, m, k = a.shape
    p = b.shape[2]
    for line in prange(s * m):
        i = line // m
        r = line % m
        for j in range(p):
            out[i, r, j] = 0
        for q in range(k):
            x = a[i, r, q]
            for j in range(p):
                out[i, r, j] += x * b[i, q, j]


@kernel
def shift_and_pad(codes, border, offset, out):
    """Codes + offset as uint8 inside a border of `offset` (the shifted zero).

    codes   (n, h, w, c) integer codes
    border  (left, top)
    out     (n, top + h + bottom, left + w + right, c) uint8, overwritten
    """
    left, top = border
    n, h, w, c = codes.shape
    full_h, full_w = out.shape[1], out.shape[2]
    for image in range(n):
        for y in range(full_h):
            inside = top <= y < top + h
            for x in range(full_w):
                if inside and left <= x < left + w:
                    for k in range(c):
                        out[image, y, x, k] = np.int32(codes[image, y - top, x - left, k]) + offset
                else:
                    for k in range(c):
                        out[image, y, x, k] = offset
