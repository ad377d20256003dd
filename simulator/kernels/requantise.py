"""Accumulators to codes, and the integer operations between array layers.

Every kernel works on flat C-contiguous arrays whose fastest axis is the channel.
Per-channel vectors come "tiled": repeated to a few hundred entries, because a
loop over 16 channels is too short to be worth vector registers.

The one rounding rule is round half to even. A float32 product is rounded once
(`np.rint`), an integer quotient by comparing the bits shifted out with one half.
"""

from __future__ import annotations

import functools

import numba
import numpy as np

from fsim.jit import kernel, parallel_kernel, prange

TILE = 512
"""Least length of a tiled per-channel vector, and the grain of a parallel loop."""


def tiled(vector: np.ndarray) -> np.ndarray:
    """`vector` (c,) repeated a whole number of times to at least TILE entries."""
    return np.ascontiguousarray(np.tile(vector, -(-TILE // len(vector))))


@kernel
def requantise_float(acc, bias, multiplier, lo, hi, out):
    """Codes from accumulators held in float32 where |acc| + |bias| <= 2^24.

    acc         (r * o,) float32 holding integers, flat
    bias        float32 holding integers, tiled; the sum is then exact in float32
                and cannot reach a 32-bit wrap
    multiplier  float32, tiled as bias
    lo, hi      float32 holding integers: the clamp, done before rounding, which
                gives the same code because both are integers
    out         (r * o,) integer codes, overwritten
    """
    length = bias.size
    whole = acc.size // length
    # Loops from 0 only: an index that may be negative keeps them from becoming vectors.
    for t in range(whole):
        base = t * length
        for j in range(length):
            v = (acc[base + j] + bias[j]) * multiplier[j]
            v = v if v > lo else lo
            v = v if v < hi else hi
            out[base + j] = np.int32(np.rint(v))
    base = whole * length
    for j in range(acc.size - base):
        v = (acc[base + j] + bias[j]) * multiplier[j]
        v = v if v > lo else lo
        v = v if v < hi else hi
        out[base + j] = np.int32(np.rint(v))


@parallel_kernel
def requantise_float_parallel(acc, bias, multiplier, lo, hi, out, chunks):
    """As `requantise_float`, in `chunks` pieces on the threads numba has."""
    length = bias.size
    grain = -(-acc.size // (length * chunks)) * length
    for chunk in prange(chunks):
        begin = min(chunk * grain, acc.size)
        end = min(begin + grain, acc.size)
        requantise_float(acc[begin:end], bias, multiplier, lo, hi, out[begin:end])


@kernel
def _scale_one(value, shift, multiplier, lo, hi):
    """Code of one accumulator (int64, bias included) after a wrap to 64 - shift bits."""
    wrapped = (np.int64(value) << shift) >> shift
    v = np.float32(wrapped) * multiplier
    v = v if v > lo else lo
    v = v if v < hi else hi
    return np.int64(np.rint(v))


@parallel_kernel
def requantise_integer(acc, bias, multiplier, acc_bits, lo, hi, out):
    """Codes from accumulators of any width, with the wrap of the array.

    acc         (r, o) float32, int32 or int64 holding integers, WITHOUT bias
    bias        (o,) int64
    multiplier  (o,) float32
    acc_bits    width of the array's accumulators: acc + bias wraps to it
    lo, hi      float32 holding integers
    out         (r, o) integer codes, overwritten
    """
    shift = 64 - acc_bits
    for r in prange(acc.shape[0]):
        for o in range(acc.shape[1]):
            value = np.int64(acc[r, o]) + bias[o]
            out[r, o] = _scale_one(value, shift, multiplier[o], lo, hi)


@kernel
def requantise_at(index, value, multiplier, acc_bits, lo, hi, out):
    """Overwrite single codes from the given final accumulators.

    index       (f,) int64, flat positions in `out`; the channel is index % o
    value       (f,) int64, accumulators with the bias included; wrapped to acc_bits
    multiplier  (o,) float32
    out         (r * o,) integer codes, changed at `index` only
    """
    shift = 64 - acc_bits
    channels = multiplier.size
    for i in range(index.size):
        m = multiplier[index[i] % channels]
        out[index[i]] = _scale_one(value[i], shift, m, lo, hi)


@kernel
def _round_shift(value, shift):
    """value / 2^shift, round half to even; value is an integer, shift >= 1."""
    return (value + ((value >> shift) & 1) + (1 << (shift - 1)) - 1) >> shift


@kernel
def add_narrow(a, b, m0, m1, scale, lo, hi, out):
    """Residual addition: clamp(round_half_even((m0 a + m1 b) / 2^shift)) in float32.

    a, b    (n,) integer codes;  m0, m1, lo, hi float32 holding integers
    scale   float32, 2^-shift
    out     (n,) integer codes, overwritten
    Only where |m0 a| + |m1 b| <= 2^24 for every code: then products, sum and scaling
    by a power of two are exact, and rint rounds the true value. Vectors of float32
    multiply several times faster than those of int32.
    """
    for i in range(a.size):
        v = (np.float32(a[i]) * m0 + np.float32(b[i]) * m1) * scale
        v = v if v > lo else lo
        v = v if v < hi else hi
        out[i] = np.int32(np.rint(v))


@parallel_kernel
def add_narrow_parallel(a, b, m0, m1, scale, lo, hi, out, chunks):
    """As `add_narrow`, in `chunks` pieces on the threads numba has."""
    grain = -(-a.size // chunks)
    for chunk in prange(chunks):
        begin = min(chunk * grain, a.size)
        end = min(begin + grain, a.size)
        add_narrow(a[begin:end], b[begin:end], m0, m1, scale, lo, hi, out[begin:end])


@parallel_kernel
def add_wide(a, b, m0, m1, shift, lo, hi, out):
    """As `add_narrow` in int64 with `shift` itself, for codes of any width up to 16 bits."""
    for i in prange(a.size):
        v = _round_shift(np.int64(a[i]) * m0 + np.int64(b[i]) * m1, shift)
        out[i] = min(max(v, lo), hi)


@parallel_kernel
def rescale(a, m0, shift, lo, hi, out):
    """clamp(round_half_even(m0 a / 2^shift)) of codes a (n,), in int64."""
    for i in prange(a.size):
        out[i] = min(max(_round_shift(np.int64(a[i]) * m0, shift), lo), hi)


@parallel_kernel
def average_pool(a, kernel_hw, stride, padding, m0, shift, lo, hi, out):
    """Sum of each window, times m0 / 2^shift, round half to even, clamp.

    a        (n, h, w, c) codes;  out (n, oh, ow, c) codes, overwritten
    padding  (left, top); a position outside the map adds zero
    The divisor of the mean is part of m0.
    """
    kh, kw = kernel_hw
    sh, sw = stride
    left, top = padding
    n, h, w, c = a.shape
    oh, ow = out.shape[1], out.shape[2]
    for image in prange(n):
        total = np.empty(c, np.int64)
        for y in range(oh):
            for x in range(ow):
                total[:] = 0
                for i in range(max(y * sh - top, 0), min(y * sh - top + kh, h)):
                    for j in range(max(x * sw - left, 0), min(x * sw - left + kw, w)):
                        for k in range(c):
                            total[k] += a[image, i, j, k]
                for k in range(c):
                    v = _round_shift(total[k] * m0, shift)
                    out[image, y, x, k] = min(max(v, lo), hi)


@parallel_kernel
def max_pool(a, kernel_hw, stride, padding, dilation, out):
    """Largest code of each window; positions outside the map do not count.

    a (n, h, w, c) codes; out (n, oh, ow, c) same dtype, overwritten;
    padding (left, top). Every window holds at least one position of the map.
    """
    kh, kw = kernel_hw
    sh, sw = stride
    left, top = padding
    dh, dw = dilation
    n, h, w, c = a.shape
    oh, ow = out.shape[1], out.shape[2]
    for image in prange(n):
        for y in range(oh):
            for x in range(ow):
                first = True
                for i in range(kh):
                    row = y * sh - top + i * dh
                    if row < 0 or row >= h:
                        continue
                    for j in range(kw):
                        col = x * sw - left + j * dw
                        if col < 0 or col >= w:
                            continue
                        for k in range(c):
                            if first or a[image, row, col, k] > out[image, y, x, k]:
                                out[image, y, x, k] = a[image, row, col, k]
                        first = False


@kernel
def quantise_flat(values, inverse_scale, lo, hi, out):
    """Codes clamp(round_half_even(x * inverse_scale)) of (n,) float32; NaN gives 0."""
    for i in range(values.size):
        v = values[i] * inverse_scale
        v = v if v == v else np.float32(0)
        v = v if v > lo else lo
        v = v if v < hi else hi
        out[i] = np.int32(np.rint(v))


@kernel
def dequantise(acc, bias, scale, acc_bits, out, lowest, highest):
    """Real values of accumulators: wrap(acc + bias) * scale.

    acc    (r, o) float32, int32, int64 or float64 holding integers, without bias
    bias   (o,) int64; scale (o,) float32
    out    (r, o) float32, overwritten
    lowest, highest  (o,) float32, overwritten: ends of each output's range
    """
    shift = 64 - acc_bits
    lowest[:] = np.inf
    highest[:] = -np.inf
    for r in range(acc.shape[0]):
        for o in range(acc.shape[1]):
            value = ((np.int64(acc[r, o]) + bias[o]) << shift) >> shift
            v = np.float32(value) * scale[o]
            out[r, o] = v
            lowest[o] = v if v < lowest[o] else lowest[o]
            highest[o] = v if v > highest[o] else highest[o]


@parallel_kernel
def quantise_images(images, inverse_scale, lo, hi, out):
    """Codes of the network's input: clamp(round_half_even(x * inverse_scale)).

    images         (n, c, h * w) float32
    inverse_scale  float32, one multiplication
    out            (n, h * w, c) integer codes, overwritten (channels last)
    """
    n, c, pixels = images.shape
    for image in prange(n):
        for k in range(c):
            for p in range(pixels):
                v = images[image, k, p] * inverse_scale
                v = v if v > lo else lo
                v = v if v < hi else hi
                out[image, p, k] = np.int32(np.rint(v))


def set_threads(count: int) -> int:
    """Let parallel kernels called from this thread use `count` threads; the old count.

    More than numba started with are not to be had: then all of them are used.
    """
    before = numba.get_num_threads()
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    return before


def threads() -> int:
    """Threads that parallel kernels called from this thread use."""
    return numba.get_num_threads()


@functools.lru_cache(maxsize=1)
def concurrent() -> bool:
    """Whether several threads may call parallel kernels at the same time.

    Numba's own "workqueue" layer, its last resort where no OpenMP or TBB library
    is found, ends the process when they do.
    """
    one = np.zeros(1, np.int64)
    rescale(one, 1, 1, 0, 0, one)  # numba picks its layer at the first launch
    return numba.threading_layer() != "workqueue"
