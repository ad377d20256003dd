"""Wrong weights and struck partial sums as updates of exact sums, many images at once.

Exact where adders wrap, which is a ring homomorphism: a wrong weight adds its
difference times the code it meets, and a struck partial sum carries its difference
to the final sum.
"""

from __future__ import annotations

import numpy as np

from . import lower
from .batch import Batch
from .kernels import memory
from .lower import Lowered
from .ops import ArrayOp
from .sites import Placement

_MASKS = ("and_mask", "or_mask", "xor_mask")


def changed_sums(
    placement: Placement,
    op: ArrayOp,
    codes: np.ndarray,
    acc: np.ndarray,
    batch: Batch,
    weights: np.ndarray,
    psums: np.ndarray,
    images: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Final sums that memory errors change in one convolution or linear layer.

    codes           (images, ...) what the layer read
    acc             (images, ...) exact sums without bias
    weights, psums  indices of rows of `batch`
    images          (images,) bool: those that rows of slot -1 strike
    Returns (flat index into acc, sum with the bias, wrapped); where an index comes
    twice the later value counts.
    """
    low = placement.lowered[op.index]
    codes = np.ascontiguousarray(codes).reshape(len(codes), low.h, low.w, low.c)
    acc = acc.reshape(len(codes), low.m, low.outputs)
    bias = np.ascontiguousarray(np.broadcast_to(op.bias, low.outputs), np.int64)
    geometry = (
        low.h, low.w, low.channels, low.out_w, low.kernel_w, *low.stride, *low.padding, *low.dilation,
    )  # fmt: skip
    acc_bits = placement.accel.acc_bits
    image, output, k, delta = wrong = _weight_errors(op, low, batch, weights, images)

    columns = image * low.outputs + output
    count = int(np.count_nonzero(np.diff(columns))) + 1 if len(columns) else 0
    where, value = np.empty(count * low.m, np.int64), np.empty(count * low.m, np.int64)
    if count:
        memory.weight_errors(codes, acc, bias, geometry, low.n, acc_bits, *wrong, (where, value))
    if not len(psums):
        return where, value

    struck = _psum_errors(low, batch, psums, images)
    slots = low.k if placement.accel.dataflow == "os" else placement.accel.rows
    where_p, value_p = np.empty(len(struck[0]), np.int64), np.empty(len(struck[0]), np.int64)
    narrow = codes.itemsize == 1 and op.weight.min() >= -128 and op.weight.max() <= 127
    hit = memory.psum_errors(
        codes, flat_weight(placement, op), acc, bias, geometry, low.n, acc_bits, slots, narrow,
        struck, wrong, (where_p, value_p),
    )  # fmt: skip
    # A sum that both kinds change was computed with both by psum_errors: it comes last.
    return np.concatenate([where, where_p[:hit]]), np.concatenate([value, value_p[:hit]])


def flat_weight(placement: Placement, op: ArrayOp) -> np.ndarray:
    """(o, k) int32 weight codes in slot order, made once an operation."""
    cache = placement._cache
    if op.index not in cache:
        low = placement.lowered[op.index]
        matrices = [lower.weight_matrix(low, op, None, g).T for g in range(low.groups)]
        cache[op.index] = np.ascontiguousarray(np.concatenate(matrices), np.int32)
    return cache[op.index]


def _each_image(batch: Batch, index, images) -> tuple[np.ndarray, np.ndarray]:
    """(index, slot) with rows for all images repeated for each of them, order kept."""
    slot = batch.slot[index]
    every = slot < 0
    if not every.any():
        return index, slot
    numbers = np.flatnonzero(images)
    times = np.where(every, len(numbers), 1)
    slots = np.repeat(slot, times)
    slots[slots < 0] = np.tile(numbers, int(every.sum()))
    return np.repeat(index, times), slots


def _weight_errors(op: ArrayOp, low: Lowered, batch: Batch, index, images):
    """(image, output, k, delta) int64 of wrong weights, sorted by (image, output)."""
    if not len(index):
        return (np.zeros(0, np.int64),) * 4
    index, slot = _each_image(batch, index, images)
    word = batch.column("word", index)
    key = slot * op.weight.size + word
    order = np.argsort(key, kind="stable")
    key, index = key[order], index[order]
    codes = op.weight.reshape(-1)[word[order]]
    new = np.empty(len(key), np.int64)
    runs = memory.struck_words(codes, key, *(batch.column(name, index) for name in _MASKS), new)
    key, first = np.unique(key, return_index=True)
    image, word = np.divmod(key, op.weight.size)
    group, k, n = lower.weight_position(low, word)
    output = group * low.n + n
    delta = new[:runs] - codes[first]
    order = np.argsort(image * low.outputs + output, kind="stable")
    return image[order], output[order], k[order], delta[order]


def _psum_errors(low: Lowered, batch: Batch, index, images):
    """(image, word, fold, and, or, xor) int64, sorted by (image, word, fold)."""
    index, slot = _each_image(batch, index, images)
    word, fold = batch.column("word", index), batch.column("first", index)
    key = (slot * (low.m * low.outputs) + word) * (int(fold.max()) + 1) + fold
    order = np.argsort(key, kind="stable")
    masks = (batch.column(name, index[order]) for name in _MASKS)
    return (slot[order], word[order], fold[order], *masks)
