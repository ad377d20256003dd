"""Lowering: an operation on codes as matrix products, with index maps both ways.

A convolution becomes one product (m, k)(k, n) per group and image: m counts
output positions row by row, k counts the window as (kernel row, kernel column,
channel) - the order in which a channels-last map is read - and n the group's
output channels. A linear layer is a 1 x 1 convolution over its leading
positions; a matmul has one product per leading index.

Machines that take a block of channels at a time and move over the window with it
count (block, kernel row, kernel column, channel in the block), `Lowered.block`: the
last block is filled up with channels that read 0 and have weights 0. Sums in plain
arithmetic do not depend on that order; cycles, and what a fault meets, do.

Addresses. Feature-map word: flat index into the codes as held, (h, w, c).
Weight word: flat index into the weight tensor as PyTorch keeps it,
(o, c / groups, kh, kw). Partial-sum word: flat index into (h_out, w_out, o).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from .ops import ArrayOp, Conv, Linear, MatMul, Program


@dataclass(frozen=True)
class Lowered:
    """Geometry of one array operation as `groups` products (m, k)(k, n) an image.

    h, w, c           input as held (a vector is 1 x 1 x f)
    out_h, out_w      output positions; m = out_h * out_w
    outputs           output channels, groups * n
    kernel_h, ...     window; padding is (top, left), negative indices read zero
    block             channels that a window is counted by, 0: all at each of its places
    """

    groups: int
    m: int
    k: int
    n: int
    h: int
    w: int
    c: int
    out_h: int
    out_w: int
    outputs: int
    kernel_h: int = 1
    kernel_w: int = 1
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    block: int = 0

    @property
    def channels(self) -> int:
        """Input channels of one group."""
        return self.c // self.groups

    @property
    def macs(self) -> int:
        """Multiply-adds of one image, without those that fill up a block."""
        return self.groups * self.m * plain(self).k * self.n


def plain(low: Lowered) -> Lowered:
    """The same operation with its window counted place by place, all channels at each."""
    if not low.block:
        return low
    return replace(low, k=low.kernel_h * low.kernel_w * low.channels, block=0)


def lower(program: Program, op: ArrayOp, block: int = 0) -> Lowered:
    """The geometry of an array operation; block: see `Lowered`, for windows of several places."""
    source = program.ops[op.inputs[0]]
    if isinstance(op, Conv):
        c, h, w = source.shape
        outputs, _, kernel_h, kernel_w = op.weight.shape
        _, out_h, out_w = op.shape
        left, _, top, _ = op.padding
        channels = c // op.groups
        block = block if kernel_h * kernel_w > 1 else 0
        padded = -(-channels // block) * block if block else channels
        return Lowered(
            groups=op.groups,
            m=out_h * out_w,
            k=kernel_h * kernel_w * padded,
            n=outputs // op.groups,
            h=h,
            w=w,
            c=c,
            out_h=out_h,
            out_w=out_w,
            outputs=outputs,
            kernel_h=kernel_h,
            kernel_w=kernel_w,
            stride=tuple(op.stride),
            padding=(top, left),
            dilation=tuple(op.dilation),
            block=block,
        )
    if isinstance(op, Linear):
        positions, features = math.prod(source.layout[:-1]), source.layout[-1]
        outputs = op.weight.shape[0]
        return Lowered(
            1, positions, features, outputs, positions, 1, features, positions, 1, outputs
        )
    *lead, m, k = source.layout
    n = program.ops[op.inputs[1]].layout[-1]
    return Lowered(math.prod(lead), m, k, n, m, 1, k, m, 1, n)


def moving_matrix(low: Lowered, op: ArrayOp, codes: np.ndarray, group: int) -> np.ndarray:
    """(m, k) int64: the first operand of one group's product for one image.

    codes  the input codes of the image as held
    """
    if isinstance(op, MatMul):
        return codes.reshape(low.groups, low.m, low.k)[group].astype(np.int64)
    address = word_addresses(low, group)
    flat = codes.reshape(-1)
    taken = flat[np.maximum(address, 0)].astype(np.int64)
    taken[address < 0] = 0
    return taken


def weight_matrix(low: Lowered, op: ArrayOp, other: np.ndarray | None, group: int) -> np.ndarray:
    """(k, n) int64: the second operand of one group's product.

    other  for a matmul, the second input's codes of the image
    """
    if isinstance(op, MatMul):
        return other.reshape(low.groups, low.k, low.n)[group].astype(np.int64)
    weight = op.weight.reshape(low.outputs, low.channels, low.kernel_h, low.kernel_w)
    mine = weight[group * low.n : (group + 1) * low.n]
    if low.block:
        ky, kx, c = window_slots(low)
        taken = mine[:, c, ky, kx].astype(np.int64)  # a channel -1 is the last one, and cleared
        taken[:, c < 0] = 0
        return np.ascontiguousarray(taken.T)
    return np.ascontiguousarray(mine.transpose(2, 3, 1, 0).reshape(low.k, low.n), np.int64)


def word_addresses(low: Lowered, group: int) -> np.ndarray:
    """(m, k) int64: feature-map word that slot k of output position m reads, -1 for padding."""
    y = _axis(low.out_h, low.kernel_h, low.stride[0], low.dilation[0], low.padding[0], low.h)
    x = _axis(low.out_w, low.kernel_w, low.stride[1], low.dilation[1], low.padding[1], low.w)
    ky, kx, c = window_slots(low)
    rows, cols = y[:, None, ky], x[None, :, kx]  # axes: out_h, out_w, k
    address = (rows * low.w + cols) * low.c + c + group * low.channels
    address = np.where((rows < 0) | (cols < 0) | (c < 0), -1, address)
    return address.reshape(low.m, low.k)


def window_slots(low: Lowered) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(kernel row, kernel column, channel of the group) of each slot, (k,) int64.

    The channel is -1 where a block is filled up.
    """
    if not low.block:
        shape = low.kernel_h, low.kernel_w, low.channels
        ky, kx, c = np.indices(shape).reshape(3, -1)
        return ky, kx, c
    blocks = -(-low.channels // low.block)
    shape = blocks, low.kernel_h, low.kernel_w, low.block
    begin, ky, kx, c = np.indices(shape).reshape(4, -1)
    c = begin * low.block + c
    return ky, kx, np.where(c < low.channels, c, -1)


def _slot(low: Lowered, ky, kx, c):
    """The slot of a channel at a place of the window; scalars or int arrays."""
    if not low.block:
        return (ky * low.kernel_w + kx) * low.channels + c
    begin, c = np.divmod(c, low.block)
    return ((begin * low.kernel_h + ky) * low.kernel_w + kx) * low.block + c


def _axis(out: int, kernel: int, stride: int, dilation: int, padding: int, size: int):
    """(out, kernel) int64: input index along one axis, -1 outside."""
    index = np.arange(out)[:, None] * stride + np.arange(kernel)[None, :] * dilation - padding
    return np.where((index < 0) | (index >= size), -1, index)


def uses(low: Lowered, word: int) -> list[tuple[int, int, int]]:
    """Every (group, m, k) that reads a feature-map word; the inverse of `word_addresses`."""
    pixel, channel = divmod(word, low.c)
    y, x = divmod(pixel, low.w)
    group, c = divmod(channel, low.channels)
    found = []
    for ky in range(low.kernel_h):
        for kx in range(low.kernel_w):
            oy, off_y = divmod(y + low.padding[0] - ky * low.dilation[0], low.stride[0])
            ox, off_x = divmod(x + low.padding[1] - kx * low.dilation[1], low.stride[1])
            if off_y or off_x or not (0 <= oy < low.out_h and 0 <= ox < low.out_w):
                continue
            found.append((group, oy * low.out_w + ox, int(_slot(low, ky, kx, c))))
    return found


def weight_position(low: Lowered, word):
    """(group, k, n) of weight words (scalars or int arrays)."""
    rest, kx = np.divmod(word, low.kernel_w)
    rest, ky = np.divmod(rest, low.kernel_h)
    output, c = np.divmod(rest, low.channels)
    group, n = np.divmod(output, low.n)
    return group, _slot(low, ky, kx, c), n


def weight_word(low: Lowered, group, k, n):
    """Weight word of (group, k, n); the inverse of `weight_position`.

    There is none where a block is filled up.
    """
    window, c = np.divmod(k, low.block or low.channels)
    ky, kx = np.divmod(window, low.kernel_w)
    if low.block:
        begin, ky = np.divmod(ky, low.kernel_h)
        c = c + begin * low.block
    output = group * low.n + n
    return ((output * low.channels + c) * low.kernel_h + ky) * low.kernel_w + kx


def psum_word(low: Lowered, group, m, n):
    """Partial-sum word of output (group, m, n); also its index in the flat accumulators.

    For a matmul the groups are leading positions: ((group, m), n).
    """
    if low.outputs == low.groups * low.n:
        return m * low.outputs + group * low.n + n
    return (group * low.m + m) * low.n + n


def psum_position(low: Lowered, word):
    """(group, m, n) of partial-sum words; the inverse of `psum_word`."""
    if low.outputs == low.groups * low.n:
        m, output = np.divmod(word, low.outputs)
        group, n = np.divmod(output, low.n)
        return group, m, n
    rest, n = np.divmod(word, low.n)
    group, m = np.divmod(rest, low.m)
    return group, m, n
