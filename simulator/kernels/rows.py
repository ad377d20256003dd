"""FAULT rows written in one pass."""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel
from fsim.types import STATE


@kernel
def write_flips(rows, event, trial, image, layer, component, position, block, word, residency):
    """Overwrite FAULT rows with flips of single bits of stored words.

    event      number of the first row's event; the others follow
    image      (f,) int64; position (f,) int64 in the block's exposed bits
    block      (words, bits, first, signed) of the block
    word, residency  (s,) int64 of each exposed word of a fetched tensor; else empty
    """
    words, bits, first, signed = block
    for i in range(len(position)):
        index = position[i] // bits
        bit = position[i] - index * bits
        if len(word):
            at, time = word[index], residency[index]
        else:
            time = index // words
            at = index - time * words
            time += first
        mask = np.int64(1) << bit
        row = rows[i]
        row.trial, row.event, row.image = trial, event + i, image[i]
        row.layer, row.call, row.component = layer, 0, component
        row.row, row.col, row.word = -1, -1, at
        row.effect, row.first, row.last = STATE, time, time
        row.and_mask, row.or_mask = -1, 0
        # A mask of the sign bit is extended, as masked codes are (see explicit.extend).
        row.xor_mask = -mask if signed and bit == bits - 1 and bits > 1 else mask
