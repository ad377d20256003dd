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

    def of(group: int, block: int, strip: int):
        key = group, block, strip
        if key not in found:
            found[key] = codes(group).copy(), weights(group).copy()
        return found[key]

    for row in rows[rows["component"] == accel.component_index("weights")]:
        group, k, n = (int(x) for x in lower.weight_position(low, int(row["word"])))
        window, c = divmod(k, low.channels)
        first, last = int(row["first"]), int(row["last"])
        if placement.weights_once(op):
            first, last = 0, strips - 1
        elif row["effect"] != LEVEL:
            last = first
        for strip in range(max(first, 0), min(last, strips - 1) + 1):
            words = of(group, n // loops.n, strip)[1]
            at = (*divmod(window, low.kernel_w), c, n)
            words[at] = _struck(words[at], row)
    fetched = rows["component"] == accel.component_index("acts")
    for row in rows[fetched & (rows["first"] > 0)]:
        _, fetch = placement.fetch_of(op, int(row["first"]))
        rest, strip = divmod(int(fetch), strips)
        group, block = divmod(rest, blocks)
        y, x, channel = np.unravel_index(int(row["word"]), (low.h, low.w, low.c))
        if channel // low.channels == group:
            words = of(group, block, strip)[0]
            at = y, x, channel - group * low.channels
            words[at] = _struck(words[at], row)
    return found


def _struck(word, row) -> int:
    return ((int(word) & int(row["and_mask"])) | int(row["or_mask"])) ^ int(row["xor_mask"])


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
