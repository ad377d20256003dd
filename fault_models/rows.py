"""Rows from arrays of sites: the last step of every fault model."""

from __future__ import annotations

import numpy as np

from fsim.types import FAULT, STATE


def extend_masks(bit: np.ndarray, bits: int, signed) -> np.ndarray:
    """Masks of single bits as rows store them (see `explicit.extend`), int64."""
    mask = np.int64(1) << np.asarray(bit, np.int64)
    top = (np.asarray(bit) == bits - 1) & np.asarray(signed) & (bits > 1)
    return np.where(top, -mask, mask)


_FLIP = {name: 0 for name in FAULT.names} | {
    "row": -1,
    "col": -1,
    "word": -1,
    "and_mask": -1,
    "effect": STATE,
}


def fill_flips(rows: np.ndarray, **columns) -> None:
    """Overwrite FAULT rows with ones that invert bits; other columns as given."""
    for name, value in (_FLIP | columns).items():
        rows[name] = value


def flip_rows(count: int, **columns) -> np.ndarray:
    """`count` FAULT rows that invert bits; other columns as given."""
    rows = np.empty(count, FAULT)
    fill_flips(rows, **columns)
    return rows
