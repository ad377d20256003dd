"""Memory errors as updates of exact sums, many images at once.

Exact where adders wrap, which is a ring homomorphism: a wrong weight adds its
difference times the code it meets, a wrong fetched code its own times the weights, and
a struck partial sum carries its difference to the final sum. Exact for weights and
codes also where adders saturate and bounds prove that none of them ever does.
"""

from __future__ import annotations

import numpy as np

from fsim.types import fault_table

from . import lower
from .batch import Batch
from .kernels import memory
from .lower import Lowered
from .ops import ArrayOp
from .replay import own_walk
from .sites import Placement


def changed_sums(
    placement: Placement,
    op: ArrayOp,
    codes: np.ndarray,
    acc: np.ndarray,
    batch: Batch,
    weights: np.ndarray,
    psums: np.ndarray,
    fetched: np.ndarray,
    images: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Final sums that memory errors change in one convolution or linear layer.

    codes           (images, ...) what the layer read
    acc             (images, ...) exact sums without bias
    weights, psums, fetched  indices of rows of `batch`; fetched: of codes that some
                    products fetched for themselves
    images          (images,) bool: those that rows of slot -1 strike
    Returns (flat index into acc, sum with the bias, wrapped); where an index comes
    twice the later value counts.
    """
    low = lower.plain(placement.lowered[op.index])
    codes = np.ascontiguousarray(codes).reshape(len(codes), low.h, low.w, low.c)
    acc = acc.reshape(len(codes), low.m, low.outputs)
    bias = np.ascontiguousarray(np.broadcast_to(op.bias, low.outputs), np.int64)
    geometry = (
        low.h, low.w, low.channels, low.out_w, low.kernel_w,
        *low.stride, *low.padding, *low.dilation,
    )  # fmt: skip
    acc_bits = placement.accel.acc_bits
    wrong = _weight_errors(op, low, batch, weights, images)
    read = _read_errors(placement, op, codes, batch, fetched, images, geometry)
    columns = wrong[0] * low.outputs + wrong[1]
    space = (int(np.count_nonzero(np.diff(columns))) + 1) * low.m if len(columns) else 0
    psums, slot = _each_image(batch, psums, images)
    space += int((read[3] - read[2]).sum()) + len(psums)
    where, value = np.empty(space, np.int64), np.empty(space, np.int64)
    weight = flat_weight(placement, op)
    count = 0
    if len(columns):
        scratch = np.empty(low.m, np.int64)
        count = memory.weight_errors(
            codes, weight, acc, bias, geometry, low.n, acc_bits, wrong, read, scratch,
            (where, value),
        )  # fmt: skip
    if len(read[0]):
        scratch = np.empty(low.outputs, np.int64)
        count += memory.fetched_sums(
            weight, acc, bias, low.n, acc_bits, wrong, read, scratch,
            (where[count:], value[count:]),
        )  # fmt: skip
    if len(psums):
        slots = placement.accel.loops.fold or low.k
        folds = int(batch.rows["first"][psums].max()) + 1
        order = _order(batch, psums, slot, low.m * low.outputs, folds)
        # A sum that several kinds change is computed with all of them here: it comes last.
        count += memory.psum_errors(
            codes, weight, acc, bias, geometry, low.n, acc_bits, slots, batch.rows, psums, slot,
            order, wrong, read, (where[count:], value[count:]),
        )  # fmt: skip
    return where[:count], value[:count]


def flat_weight(placement: Placement, op: ArrayOp) -> np.ndarray:
    """(o, k) weight codes, the window place by place, int8 where that holds them, made once."""
    cache = placement._cache
    if op.index not in cache:
        low = lower.plain(placement.lowered[op.index])
        matrices = [lower.weight_matrix(low, op, None, g).T for g in range(low.groups)]
        weight = np.concatenate(matrices)
        narrow = weight.min() >= -128 and weight.max() <= 127 and low.k < 1 << 16
        cache[op.index] = np.ascontiguousarray(weight, np.int8 if narrow else np.int32)
    return cache[op.index]


def slot_order(placement: Placement, op: ArrayOp):
    """(weight (o, k), window) of a layer in the machine's order of slots.

    window  ((channels of a group, width of the output, strides, rows and columns of padding
            above and left), (k, 3) int64: row, column and channel of each slot in the
            window; channel -1 where a block is filled up, and weight 0)
    """
    low = placement.lowered[op.index]
    ky, kx, c = lower.window_slots(low)
    slots = np.stack([ky * low.dilation[0], kx * low.dilation[1], c], axis=1).astype(np.int64)
    at = (ky * low.kernel_w + kx) * low.channels + c
    weight = flat_weight(placement, op)[:, np.where(c < 0, 0, at)]
    weight[:, c < 0] = 0
    sizes = low.channels, low.out_w, *low.stride, *low.padding
    return np.ascontiguousarray(weight), (sizes, slots)


def stored_sums(placement: Placement, op: ArrayOp, codes, batch: Batch, weights, psums, images):
    """`changed_sums` for hit partial sums of a machine that walks its outputs itself.

    Outputs are made anew from the codes that were read, with the wrong weights; a layer that
    some products fetch codes for by themselves is the engine's matter.
    """
    low = placement.lowered[op.index]
    codes = np.ascontiguousarray(codes).reshape(len(codes), low.h, low.w, low.c)
    wrong = _weight_errors(op, low, batch, weights, images)
    window = lower.plain(low)
    _, k, _ = (np.asarray(x) for x in lower.weight_position(
        low, lower.weight_word(window, wrong[1] // low.n, wrong[2], wrong[1] % low.n)
    ))  # fmt: skip
    psums, slot = _each_image(batch, psums, images)
    order = _order(batch, psums, slot, low.m * low.outputs, placement.folds(op.index))
    weight, window = slot_order(placement, op)
    rows = batch.rows[psums[order]]
    bias = np.ascontiguousarray(np.broadcast_to(op.bias, low.outputs), np.int64)
    return own_walk(placement.accel).stored_sums(
        placement.accel, low.m, low.n, codes, bias, weight, window,
        (wrong[0], wrong[1], k.astype(np.int64), wrong[3]), fault_table(rows),
        slot[order].astype(np.int64),
    )  # fmt: skip


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


def _order(batch: Batch, index, slot, words: int, folds: int) -> np.ndarray:
    """Positions in `index` sorted by (slot, word, first), then as they are."""
    count = len(index)
    key = np.empty(count, np.int64)
    if (int(slot.max()) + 1) * words * folds * count < 1 << 63:
        memory.sort_keys(batch.rows, index, slot, words, folds, key)
        key.sort()
        return key % count
    rows = batch.rows[index]
    return np.lexsort((rows["first"], rows["word"], slot))


def _weight_errors(op: ArrayOp, low: Lowered, batch: Batch, index, images):
    """(image, output, k, delta) int64 of wrong weights, sorted by (image, output)."""
    index, slot = _each_image(batch, index, images)
    wrong = tuple(np.empty(len(index), np.int64) for _ in range(4))
    if not len(index):
        return wrong
    order = _order(batch, index, slot, op.weight.size, 1)
    shape = low.channels, low.kernel_h * low.kernel_w
    flat = op.weight.reshape(-1)
    count = memory.wrong_weights(batch.rows, index, slot, order, flat, shape, wrong)
    return tuple(column[:count] for column in wrong)


def _read_errors(placement: Placement, op: ArrayOp, codes, batch: Batch, index, images, geometry):
    """(key, k, begin, end, delta) of `memory.read_errors`, sorted by key."""
    index, slot = _each_image(batch, index, images)
    low = lower.plain(placement.lowered[op.index])
    space = len(index) * low.kernel_h * low.kernel_w
    read = tuple(np.empty(space, np.int64) for _ in range(5))
    if not space:
        return read
    first = batch.rows["first"][index].astype(np.int64)
    order = _order(batch, index, slot, low.h * low.w * low.c, int(first.max()) + 1)
    _, fetch = placement.fetch_of(op, first)
    fetches, which = np.unique(fetch, return_inverse=True)
    scope = np.array([_scope(placement, low, op.index, int(f)) for f in fetches], np.int64)
    sizes = low.groups, low.m, low.kernel_h
    count = memory.read_errors(
        codes, batch.rows, index, slot, order, geometry, sizes, scope[which], read
    )
    order = np.argsort(read[0][:count], kind="stable")
    return tuple(column[:count][order] for column in read)


def _scope(placement: Placement, low: Lowered, layer: int, fetch: int) -> tuple[int, ...]:
    """Of one fetch: group, and begin and end of output positions, slots, output channels."""
    group, m, k, n = placement.fetch_scope(layer, fetch)
    begin, end, _ = n.indices(low.n)
    first = group * low.n
    return group, *m.indices(low.m)[:2], *k.indices(low.k)[:2], first + begin, first + end
