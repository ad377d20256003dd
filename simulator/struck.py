"""Wrong weights that last: a program with the weights that its machine reads.

A weight that is wrong for every image and in every read is another weight. Running the
network with it is exact whatever the adders do, and costs a clean run however many
weights are wrong; updates of the sums (`updates.py`) cost each wrong weight anew.
"""

from __future__ import annotations

import numpy as np

from fsim.types import LEVEL

from .batch import Batch
from .kernels import memory
from .ops import ArrayOp, code_range
from .sites import Placement


def settled(placement: Placement, rows: np.ndarray) -> tuple[Placement, np.ndarray]:
    """(the machine with its lasting wrong weights in place, the FAULT rows that are left).

    Taken in are the weight rows of an operation if all of them strike every image and
    every residency; the others of the same word could act before them.
    """
    if not (rows["image"] < 0).any():  # of one image each: most trials of bit errors
        return placement, rows
    left, codes = _split(placement, rows)
    return placement.with_weights(codes) if codes else placement, rows[left]


def settled_batch(placement: Placement, batch: Batch) -> tuple[Placement, Batch]:
    """`settled` for the faults of a batch of inferences, all of whose rows count."""
    if not (batch.slot < 0).any():
        return placement, batch
    left, codes = _split(placement, batch.rows)
    if left.all():
        return placement, batch
    found = placement.with_weights(codes) if codes else placement
    return found, Batch(batch.rows[left], batch.slot[left])


def _split(placement: Placement, rows: np.ndarray) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """((rows,) bool: left to strike by themselves, operation -> codes that are read)."""
    weights = placement.accel.component_index("weights")
    of_weights = rows["component"] == weights
    left, codes = np.ones(len(rows), bool), {}
    for layer in np.unique(rows["layer"][of_weights]).tolist():
        index = np.flatnonzero(of_weights & (rows["layer"] == layer))
        op = placement.program.ops[layer]
        if not _lasting(placement, op, rows[index]):
            continue
        read = read_weights(op, rows, index)
        lo, hi = code_range(op.weight_bits, True)
        if read.min() < lo or read.max() > hi:  # masks of a foreign trace, beyond the word
            continue
        left[index] = False
        if not np.array_equal(read, op.weight):
            codes[layer] = read
    return left, codes


def _lasting(placement: Placement, op: ArrayOp, rows: np.ndarray) -> bool:
    """Whether all rows strike every image and every residency of their words."""
    if (rows["image"] >= 0).any():
        return False
    if placement.weights_once(op):
        return True
    end = placement.position_tiles(op.index) - 1
    spans = (rows["effect"] == LEVEL) & (rows["first"] <= 0) & (rows["last"] >= end)
    return bool(spans.all())


def read_weights(op: ArrayOp, rows: np.ndarray, index: np.ndarray) -> np.ndarray:
    """What the machine reads for the weights of `op`: rows[index] acting in their order.

    Returns int64 codes of the weights' shape.
    """
    codes = op.weight.astype(np.int64).reshape(1, -1)
    memory.apply_words(codes, rows, index, np.zeros(len(index), np.int64))
    return codes.reshape(op.weight.shape)
