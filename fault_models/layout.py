"""Where the bits of stored words lie on the chip, as fault models need it.

A layout has two methods that undo each other, on int64 arrays of any equal shapes:

    place(word, bit) -> (bank, row, column)    the cell of a bit
    cell(bank, row, column) -> (word, bit)     the bit in a cell; word -1 where there is none

Cells are neighbours if they are in one bank and their rows and columns differ by little. With
column interleaving, the bits of `interleave` words lie side by side (all their bits 0, then all
bits 1, ...), so that a cluster of cells strikes one bit of several words instead of several
bits of one: the usual arrangement of SRAM behind column multiplexers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fsim.errors import FaultError


@dataclass(frozen=True)
class Interleaved:
    """Words in order: over banks first, then `interleave` to a row, then rows.

    words, bits  of the tensor; interleave: words of a physical row; banks: of the memory
    """

    words: int
    bits: int
    interleave: int = 1
    banks: int = 1

    def __post_init__(self):
        for name in ("words", "bits", "interleave", "banks"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise FaultError(f"{name} of a layout must be a whole number above 0, got {value}")

    def place(self, word, bit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(bank, row, column) of bits."""
        index, bank = np.divmod(np.asarray(word, np.int64), self.banks)
        row, slot = np.divmod(index, self.interleave)
        return bank, row, np.asarray(bit, np.int64) * self.interleave + slot

    def cell(self, bank, row, column) -> tuple[np.ndarray, np.ndarray]:
        """(word, bit) in cells; word -1 outside the memory and beyond the tensor."""
        bank, row, column = (np.asarray(x, np.int64) for x in (bank, row, column))
        bit, slot = np.divmod(column, self.interleave)
        word = (row * self.interleave + slot) * self.banks + bank
        inside = (row >= 0) & (column >= 0) & (bit < self.bits) & (word < self.words)
        inside &= (bank >= 0) & (bank < self.banks)
        return np.where(inside, word, -1), np.where(inside, bit, 0)
