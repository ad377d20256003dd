"""Faults in layers of a machine that runs whole layers, image by image.

`engine.FaultHooks` hands over the rows that strike one operation. Here they become what a
family's `layer.py` takes: the operands that each tile's passes read, with the errors of
weights and of fetched activations in them, and a fault table of registers and partial sums.
"""

from __future__ import annotations

import numpy as np

from fsim.errors import FaultError
from fsim.types import LEVEL, fault_table

from . import exact, lower
from .kernels import memory
from .ops import ArrayOp, MatMul
from .sites import Placement


def changed_sums(
    placement: Placement, op: ArrayOp, inputs, acc, rows: np.ndarray, backend: str
) -> tuple[np.ndarray, np.ndarray]:
    """Final sums of one image that faults change.

    inputs   codes of the image that `op` read; acc: its exact sums without bias
    rows     FAULT rows that strike it, memory errors of codes that all passes read excepted
    backend  "auto" or "reference"; FaultError for another
    Returns (flat index into acc, sum with the bias, wrapped) int64.
    """
    accel, low = placement.accel, placement.lowered[op.index]
    if backend not in ("auto", "replay", "reference"):
        raise FaultError(f"backend of {accel.name} must be auto or reference, got {backend!r}")
    codes, weights = _plain(placement, op, inputs)
    changed = _changed(placement, op, codes, weights, rows)
    names = [component.name for component in accel.components]
    memories = names.index("acts"), names.index("weights")
    table = fault_table(rows[~np.isin(rows["component"], memories)])
    bias = np.broadcast_to(op.bias, low.outputs).astype(np.int64)
    if low.outputs == low.groups * low.n:
        bias = bias.reshape(low.groups, low.n)
    else:
        bias = np.broadcast_to(bias, (low.groups, low.n))
    flat = acc.reshape(-1)

    def clean(group, m, n):
        return flat[lower.psum_word(low, group, m, n)].astype(np.int64)

    if backend == "reference":
        group, m, n, value = _reference(
            placement, op, codes, weights, changed, bias, table, clean
        )  # fmt: skip
    else:
        operands = accel.layer.Operands(codes, weights, changed)
        group, m, n, value = accel.layer.changed_sums(
            accel, low, operands, clean, bias, table, op.truncate
        )
    return lower.psum_word(low, group, m, n), value


def _plain(placement: Placement, op: ArrayOp, inputs):
    """(group -> (h, w, c) codes, group -> (kh, kw, c, n) weights), int32."""
    low = placement.lowered[op.index]
    if isinstance(op, MatMul):
        left = inputs[0].reshape(low.groups, low.m, 1, low.k).astype(np.int32)
        right = inputs[1].reshape(low.groups, 1, 1, low.k, low.n).astype(np.int32)
        return left.__getitem__, right.__getitem__
    cache, key = placement._cache, op.index
    if key not in cache:
        shape = low.outputs, low.channels, low.kernel_h, low.kernel_w
        cache[key] = exact.grouped(op.weight.reshape(shape), low.groups)
    whole = inputs[0].reshape(low.h, low.w, low.c)

    def codes(group: int) -> np.ndarray:
        first = group * low.channels
        return np.ascontiguousarray(whole[:, :, first : first + low.channels], np.int32)

    return codes, cache[key].__getitem__


def _changed(placement: Placement, op: ArrayOp, codes, weights, rows) -> dict:
    """(group, block of filters, strip) -> operands of those passes, where errors change them."""
    accel, low = placement.accel, placement.lowered[op.index]
    loops = placement.loops(op.index)
    blocks, strips = -(-low.n // loops.n), placement.position_tiles(op.index)
    found: dict[tuple[int, int, int], tuple] = {}

    def put(key, which: int, words: np.ndarray) -> None:
        """Set what the passes of a tile read: their codes (0) or their weights (1)."""
        read = list(found.get(key) or (codes(key[0]), weights(key[0])))
        read[which] = words
        found[key] = tuple(read)

    mine = rows[rows["component"] == accel.component_index("weights")]
    if len(mine):
        group, k, n = lower.weight_position(low, mine["word"])
        block, address = n // loops.n, k * low.n + n
        first, last = np.maximum(mine["first"], 0), np.minimum(mine["last"], strips - 1)
        last = np.where(mine["effect"] == LEVEL, last, first)
        if placement.weights_once(op):
            first, last = np.zeros_like(first), np.full_like(last, strips - 1)
        for key in np.unique(np.stack([group, block], 1), axis=0).tolist():
            here = (group == key[0]) & (block == key[1])
            spans = np.unique(np.stack([first[here], last[here]], 1), axis=0)
            for strip in sorted({s for a, b in spans.tolist() for s in range(a, b + 1)}):
                now = here & (first <= strip) & (strip <= last)
                put((*key, strip), 1, _struck(weights(key[0]), address[now], mine[now]))
    mine = rows[(rows["component"] == accel.component_index("acts")) & (rows["first"] > 0)]
    if len(mine):
        _, fetch = placement.fetch_of(op, mine["first"])
        rest, strip = np.divmod(fetch, strips)
        group, block = np.divmod(rest, blocks)
        pixel, channel = np.divmod(mine["word"], low.c)
        address = pixel * low.channels + channel - group * low.channels
        for key in np.unique(np.stack([group, block, strip], 1), axis=0).tolist():
            now = (group == key[0]) & (block == key[1]) & (strip == key[2])
            now &= channel // low.channels == group
            if now.any():
                put(tuple(key), 0, _struck(codes(key[0]), address[now], mine[now]))
    return found


def _struck(words: np.ndarray, address: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A copy of operands with rows acting on flat addresses, in their order."""
    rows = rows.copy()
    rows["word"] = address
    words = np.ascontiguousarray(words).copy()
    each = np.arange(len(rows))
    memory.apply_words(words.reshape(1, -1), rows, each, np.zeros(len(rows), np.int64))
    return words


def _reference(placement: Placement, op: ArrayOp, codes, weights, changed, bias, table, clean):
    """(group, position, filter, value) of all sums that differ, by the array in plain Python."""
    accel, low = placement.accel, placement.lowered[op.index]

    def deliver(group: int, block: int, strip: int):
        code, weight = changed.get((group, block, strip), (None, None))
        code = codes(group) if code is None else code
        weight = weights(group) if weight is None else weight
        return code.tolist(), weight.transpose(3, 2, 0, 1).tolist()

    sums = accel.array.run_layer(accel, low, deliver, bias.tolist(), table, op.truncate)
    keys = np.array(list(sums), np.int64).T
    values = np.array(list(sums.values()), np.int64)
    plain = clean(*keys) + bias[keys[0], keys[2]]
    shift = 64 - accel.acc_bits
    differs = ((plain << shift) >> shift) != values
    return (*keys[:, differs], values[differs])
