"""Exact convolution of 8-bit codes with AVX512-VNNI, requantisation included.

Sixteen output channels are the lanes of a register; a tile of output pixels stays
in registers over the whole window (`vnni_code.py`). So sums need not go through
memory at all, unless someone asks for them.

Input of one image is laid out anew ("frame"): four channels to a 32-bit word,
columns apart by stride, so that neighbouring pixels of an output row read
neighbouring words for any stride and dilation.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

from fsim.jit import kernel

from .vnni_code import (
    LANES,
    PIXELS,
    WIDE,
    dot,
    spread4,
    spread8,
    spread16,
    supported,
    tile8x2,
    tile16x1,
)

__all__ = ["LANES", "convolve", "dot", "geometry", "pack", "run", "supported"]


def pack(weight: np.ndarray) -> np.ndarray:
    """Weights (o, c, kh, kw), |code| <= 128, as `convolve` reads them.

    Pairs of blocks of LANES outputs, then a single one if their number is odd; in
    each (slots, blocks, LANES, 4) int8, a slot being four channels of a window
    position: slots run over (channels / 4, kh, kw). Outputs and channels that do
    not exist are 0. Flat int8, at a multiple of 64 bytes.
    """
    o, c, kh, kw = weight.shape
    blocks, words = -(-o // LANES), -(-c // 4)
    full = np.zeros((blocks * LANES, words * 4, kh, kw), np.int8)
    full[:o, :c] = weight
    # (block, lane, word, byte, kh, kw) -> (block, slot, lane, byte)
    full = full.reshape(blocks, LANES, words, 4, kh, kw).transpose(0, 2, 4, 5, 1, 3)
    full = full.reshape(blocks, words * kh * kw, LANES, 4)
    parts = [full[b : b + 2].transpose(1, 0, 2, 3).reshape(-1) for b in range(0, blocks, 2)]
    flat = np.concatenate(parts)
    room = np.empty(len(flat) + 63, np.int8)
    aligned = room[-room.ctypes.data % 64 :][: len(flat)]
    aligned[...] = flat
    return aligned


def geometry(shape, window, stride, padding, dilation) -> tuple[np.ndarray, tuple[int, ...]]:
    """(steps, sizes) of a convolution for `convolve`.

    shape    (h, w, c) of the map; window (kh, kw, oh, ow)
    padding  (left, right, top, bottom)
    steps    (slots,) int32: words from an output pixel's first to each slot's
    sizes    plain numbers of the frame and the output
    """
    h, w, c = shape
    kh, kw, oh, ow = window
    left, right, top, bottom = padding
    sh, sw = stride
    dh, dw = dilation
    words, rows, columns = -(-c // 4), h + top + bottom, -(-(w + left + right) // sw)
    word, i, j = np.meshgrid(np.arange(words), np.arange(kh), np.arange(kw), indexing="ij")
    steps = ((word * sw + j * dw % sw) * rows + i * dh) * columns + j * dw // sw
    sizes = (h, w, c, left, top, words, sw, rows, columns, sh, oh, ow)
    return np.ascontiguousarray(steps.reshape(-1), np.int32), sizes


@kernel
def _fill_frame(source, flip, sizes, frame):
    """One image (h * w * c,) uint8 into the inside of its frame; flip is XORed to each byte."""
    h, w, c, left, top, words, sw, rows, columns = sizes[:9]
    plane = sw * rows * columns  # from one word of a pixel to the next
    source_at, frame_at = np.int64(source.ctypes.data), np.int64(frame.ctypes.data)
    bits = np.uint32(flip) * np.uint32(0x01010101)
    words_of_four = c // 16 * 4 if c % 4 == 0 else 0
    for y in range(h):
        for side in range(sw):
            first = (side - left) % sw
            start = (side * rows + y + top) * columns + (first + left) // sw
            count = (w - first + sw - 1) // sw
            line, stride = (y * w + first) * c, sw * c
            for k in range(0, words_of_four, 4):
                at, to = source_at + line + 4 * k, frame_at + 4 * (start + k * plane)
                x = 0
                while x + 16 <= count:
                    spread16(at + x * stride, stride, to + 4 * x, 4 * plane, np.int32(bits))
                    x += 16
                if x + 8 <= count:
                    spread8(at + x * stride, stride, to + 4 * x, 4 * plane, np.int32(bits))
                    x += 8
                if x + 4 <= count:
                    spread4(at + x * stride, stride, to + 4 * x, 4 * plane, np.int32(bits))
                    x += 4
                for rest in range(x, count):
                    for i in range(k, k + 4):
                        byte = line + rest * stride + 4 * i
                        frame[start + i * plane + rest] = _word(source, byte, 4) ^ bits
            for i in range(words_of_four, words):
                if c - 4 * i == 3:  # colour images: a loop of known length
                    for x in range(count):
                        byte = line + x * stride + 4 * i
                        frame[start + i * plane + x] = _word(source, byte, 3) ^ bits
                else:
                    for x in range(count):
                        byte = line + x * stride + 4 * i
                        frame[start + i * plane + x] = _word(source, byte, min(4, c - 4 * i)) ^ bits


@kernel
def _word(source, at, count):
    """`count` <= 4 bytes as one word, the first lowest."""
    word = np.uint32(0)
    for i in range(count):
        word |= np.uint32(source[at + i]) << np.uint32(8 * i)
    return word


@kernel
def convolve(codes, flip, weight, steps, sizes, scaling, frame, sums, out):
    """Convolution of 8-bit codes: sums, codes, or both.

    codes    (n, h * w * c) uint8, or the bytes of int8
    flip     0 for uint8; 128 for int8, whose codes are then taken 128 larger, the
             zeros of the padding too
    weight, steps, sizes  of `pack` and `geometry`
    scaling  (bias, multiplier, lo, hi) as `requantise_float` takes them, the vectors
             (blocks * LANES,) float32 with anything for outputs that do not exist
    frame    uint32 scratch of `run`'s size
    sums     (n, oh * ow * o) int32, overwritten; (0, oh * ow * o) if not wanted
    out      (n, oh * ow * o) bytes of the codes, overwritten; (0, oh * ow * o) likewise
    """
    bias, multiplier, lo, hi = scaling
    columns, sh, oh, ow = sizes[8:]
    pixels = oh * ow
    outputs = sums.shape[1] // pixels
    slots = np.int64(len(steps))
    per_block = slots * 64
    blocks = (outputs + LANES - 1) // LANES
    frame[:] = np.uint32(flip) * np.uint32(0x01010101)
    frame_at, steps_at = np.int64(frame.ctypes.data), np.int64(steps.ctypes.data)
    weight_at = np.int64(weight.ctypes.data)
    bias_at, factor_at = np.int64(bias.ctypes.data), np.int64(multiplier.ctypes.data)
    sums_at, codes_at = np.int64(sums.ctypes.data), np.int64(out.ctypes.data)
    wants_sums, wants_codes = len(sums) > 0, len(out) > 0
    for image in range(len(codes)):
        _fill_frame(codes[image], flip, sizes, frame)
        for block in range(0, blocks, 2):
            pair = block + 1 < blocks
            w = weight_at + block * per_block
            b, f = bias_at + block * LANES * 4, factor_at + block * LANES * 4
            channels = outputs - block * LANES
            for y in range(oh):
                row = frame_at + 4 * y * sh * columns
                target = (image * pixels + y * ow) * outputs + block * LANES
                for x in range(0, ow, WIDE if pair else PIXELS):
                    at = target + x * outputs
                    s = sums_at + 4 * at if wants_sums else 0
                    z = codes_at + at if wants_codes else 0
                    if pair:
                        tile8x2(row + 4 * x, steps_at, slots, w, b, f, lo, hi, s, z,
                                 outputs, channels, ow - x)  # fmt: skip
                    else:
                        tile16x1(row + 4 * x, steps_at, slots, w, b, f, lo, hi, s, z,
                                  outputs, channels, ow - x)  # fmt: skip


@functools.lru_cache(maxsize=4)
def _workers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "fsim-vnni")


def run(codes, flip, weight, steps, sizes, scaling, sums, out) -> None:
    """`convolve` of (n, ...) arrays on the threads that numba has, images shared among them.

    codes, out  uint8 or int8, C-contiguous; sums int32; one of the two may have n = 0
    """
    count = len(codes)
    if not count:
        return
    size = max(sums.size, out.size) // count
    arguments = (
        codes.reshape(count, -1).view(np.uint8),
        sums.reshape(len(sums), size),
        out.reshape(len(out), size).view(np.uint8),
    )
    words, sw, rows, columns = sizes[5:9]

    def part(begin, end):
        # A tile may read beyond the last row.
        frame = np.empty(words * sw * rows * columns + PIXELS, np.uint32)
        source, held, new = (array[begin:end] for array in arguments)
        convolve(source, flip, weight, steps, sizes, scaling, frame, held, new)

    chunks = min(numba.get_num_threads(), count)
    if chunks < 2:
        part(0, count)
        return
    cuts = [count * i // chunks for i in range(chunks + 1)]
    list(_workers(chunks).map(part, cuts[:-1], cuts[1:]))
