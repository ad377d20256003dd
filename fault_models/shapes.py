"""Shapes of upsets that strike neighbouring cells, and tables of their shares.

A shape is a picture of cells in their physical neighbourhood, 1 struck and 0 not: rows of
cells from the top, `/` between rows. `11` are two cells side by side, `1/1` one above the
other, `10/01` a diagonal pair, `101` two with one between them; `2x2` is short for `11/11`
(rows x columns). A table gives shares: `11:0.8 111:0.2`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from fsim.errors import FaultError

MAX_CELLS = 64


@dataclass(frozen=True)
class Shape:
    """Struck cells of one upset, and its share of all upsets.

    cells  (row, column) offsets, sorted; the smallest row and the smallest column are 0
    """

    cells: tuple[tuple[int, int], ...]
    share: float

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns) of the smallest rectangle around it."""
        return tuple(1 + max(cell[axis] for cell in self.cells) for axis in (0, 1))

    def offsets(self) -> np.ndarray:
        """(cells, 2) int64."""
        return np.array(self.cells, np.int64)


def shapes_of(text: str, what: str, *, flat: bool = False) -> tuple[Shape, ...]:
    """The shapes of a table; one without a share stands alone and has all of it.

    flat  refuse shapes of several rows
    Raises FaultError for what is no picture, for shares that do not sum to 1 (to 1e-9), and
    for a shape that comes twice.
    """
    found = []
    for piece in text.split():
        picture, colon, share = piece.partition(":")
        found.append(Shape(_cells(picture, what), _share(share, what) if colon else math.nan))
    if len(found) == 1 and math.isnan(found[0].share):
        found = [Shape(found[0].cells, 1.0)]
    if not found or any(math.isnan(shape.share) for shape in found):
        raise FaultError(f"{what} must be shapes with shares, 11:0.8 111:0.2, got {text[:60]!r}")
    total = math.fsum(shape.share for shape in found)
    if abs(total - 1.0) > 1e-9:
        raise FaultError(f"shares of {what} must sum to 1, got {total:.12g} in {text[:60]!r}")
    if len({shape.cells for shape in found}) < len(found):
        raise FaultError(f"{what} must name each shape once, got {text[:60]!r}")
    if flat and any(shape.size[0] > 1 for shape in found):
        raise FaultError(f"{what} must be shapes of one row, bits of one word, got {text[:60]!r}")
    return tuple(found)


def _cells(picture: str, what: str) -> tuple[tuple[int, int], ...]:
    whole = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", picture)
    if whole:
        rows, cols = int(whole[1]), int(whole[2])
        if rows * cols > MAX_CELLS:
            raise FaultError(f"{what} must have at most {MAX_CELLS} cells, got {picture}")
        return tuple((r, c) for r in range(rows) for c in range(cols))
    if not re.fullmatch(r"[01]{1,64}(/[01]{1,64})*", picture) or len(picture) > 256:
        raise FaultError(
            f"{what} must be pictures of cells such as 11, 1/1 or 2x2, got {picture[:60]!r}"
        )
    cells = [
        (r, c) for r, row in enumerate(picture.split("/")) for c, x in enumerate(row) if x == "1"
    ]
    if not 0 < len(cells) <= MAX_CELLS:
        raise FaultError(f"{what} must strike 1 to {MAX_CELLS} cells, got {picture[:60]!r}")
    top, left = (min(cell[axis] for cell in cells) for axis in (0, 1))
    return tuple(sorted((r - top, c - left) for r, c in cells))


def _share(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value <= 1.0:  # false for nan
        raise FaultError(f"a share of {what} must be a number in (0, 1], got {text[:40]!r}")
    return value
