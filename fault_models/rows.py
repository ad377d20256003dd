"""Rows from arrays of sites: the last step of every fault model."""

from __future__ import annotations

import numpy as np

from fsim.types import FAULT, STATE


def extend_masks(bit: np.ndarray, bits: int, signed) -> np.ndarray:
    """Masks of single bits as rows store them (see `explicit.extend`), int64."""
    mask = np.int64(1) << np.asarray(bit, np.int64)
    top = (np.asarray(bit) == bits - 1) & np.asarray(signed) & (bits > 1)
    return np.where(top, -mask, mask)


def flip_rows(count: int, **columns) -> np.ndarray:
    """`count` FAULT rows that invert bits; other columns as given."""
    rows = np.zeros(count, FAULT)
    rows["row"] = rows["col"] = rows["word"] = -1
    rows["and_mask"], rows["effect"] = -1, STATE
    for name, values in columns.items():
        rows[name] = values
    return rows


def spread_masks(mask: np.ndarray, bits, signed) -> np.ndarray:
    """Masks of any bits of a word, (f,) int64 without sign, as rows store them."""
    bits = np.asarray(bits, np.int64)
    top = ((mask >> (bits - 1)) & 1).astype(bool) & np.asarray(signed) & (bits > 1)
    return np.where(top, mask - (np.int64(1) << bits), mask)
