"""Sums of products that lose low bits one by one: what no matrix product gives.

sum over k of floor(x w / 2^t). Modulo 2^32, and so modulo any power of two below: where
products and sums wrap at the same width, wrapping the sum of whole truncated products once
gives what wrapping each of them and every addition gives, because reduction modulo 2^b is
a ring homomorphism.
"""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel


@kernel
def convolve(codes, weight, geometry, truncate, rows, out):
    """Rows [begin, end) of a convolution's sums, modulo 2^32.

    codes     (n, h, w, c) of any integer type of at most 16 bits
    weight    (groups, kh, kw, c / groups, o / groups) int32 of at most 16 bits
    geometry  (stride y, x, padding top, left, dilation y, x)
    truncate  t, low bits dropped from each product
    rows      (begin, end) of the output rows
    out       (n, end - begin, ow, o) int32, overwritten
    """
    images, h, w, _ = codes.shape
    groups, kh, kw, channels, filters = weight.shape
    ow = out.shape[2]
    sums = np.empty(filters, np.int32)
    shift = np.int32(truncate)
    for image in range(images):
        for oy in range(rows[0], rows[1]):
            for ox in range(ow):
                for g in range(groups):
                    sums[:] = 0
                    for ky in range(kh):
                        y = oy * geometry[0] + ky * geometry[4] - geometry[2]
                        if y < 0 or y >= h:
                            continue
                        for kx in range(kw):
                            x = ox * geometry[1] + kx * geometry[5] - geometry[3]
                            if x < 0 or x >= w:
                                continue
                            for c in range(channels):
                                # A test for zeros would cost more than the sums it saves.
                                code = np.int32(codes[image, y, x, g * channels + c])
                                column = weight[g, ky, kx, c]
                                for o in range(filters):
                                    product = np.int32(code * column[o])
                                    sums[o] = np.int32(sums[o] + np.int32(product >> shift))
                    first = g * filters
                    for o in range(filters):
                        out[image, oy - rows[0], ox, first + o] = sums[o]
