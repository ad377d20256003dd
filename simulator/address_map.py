"""Where a memory keeps the words of a tensor: bank, row and column of every bit.

A memory is made of memory words of `word_bits` data bits and the check bits of its
protection. Tensor words are packed into them in order, the first in the lowest bits,
word_bits // bits to a memory word; bits that are left over hold nothing.

Memory word a (its address) lies in bank a % banks (bank interleaving by the lowest address
bits); within its bank it is number a // banks. A row holds `row_words` of them, in groups of
`interleave` (column multiplexing): bit b of the words of a group lie side by side, so that
cells next to each other belong to different memory words. With w = a // banks % row_words,

    column = ((w // interleave) * (word_bits + check_bits) + b) * interleave + w % interleave

where b counts the data bits from 0 and then the check bits.

Allocation. A tensor begins at the first row of the memory. In a double-buffered memory each
new content - the tensor of the next operation, the next fetch of a tile - takes the other
half. Tensors that are on chip at the same time, as the sides of a residual are, are not kept
apart: each has the place it would have alone. A tensor that does not fit is written over
itself: its memory word number l has address l modulo the words of its part.

Source of the arrangement: column multiplexing and its use against multiple-cell upsets are
those of Baeg, Wen and Wong, IEEE Transactions on Nuclear Science 56 (2009) 2111.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fsim.accel_models.accel import Buffer
from fsim.errors import MappingError

from .sites import Block, Placement


@dataclass(frozen=True)
class AddressMap:
    """The cells of one tensor in one memory.

    bits        of a tensor word; words: tensor words, numbered from 0 in the order in which
                they are packed
    word_bits, check_bits, banks, interleave, row_words  of the memory, see `accel.Buffer`
    capacity    memory words that the tensor's part of the memory has, whole rows
    first       address of the first of them

    One to one between (word, bit), check bits included, and cells, as long as the tensor
    fits: `lines` <= `capacity`. All methods take and give int64 arrays of one shape (or
    numbers) and broadcast.
    """

    bits: int
    words: int
    word_bits: int
    check_bits: int
    banks: int
    interleave: int
    row_words: int
    capacity: int
    first: int = 0

    @staticmethod
    def of(buffer: Buffer, bits: int, words: int, half: int = 0) -> AddressMap:
        """The map of a tensor of `words` words of `bits` bits.

        half  which half of a double-buffered memory, 0 or 1
        MappingError if a memory word does not hold a tensor word, or the memory no row.
        """
        if bits > buffer.word_bits or not buffer.memory_words:
            raise MappingError(
                f"a memory word must hold a word of {bits} bits and the memory a row of them, got "
                f"word_bits {buffer.word_bits} and {buffer.memory_words} memory words"
            )
        capacity = buffer.memory_words
        return AddressMap(
            bits, words, buffer.word_bits, buffer.check_bits, buffer.banks, buffer.interleave,
            buffer.row_words, capacity, capacity * half if buffer.double_buffered else 0,
        )  # fmt: skip

    @property
    def per_line(self) -> int:
        """Tensor words of a memory word."""
        return self.word_bits // self.bits

    @property
    def lines(self) -> int:
        """Memory words that the tensor takes."""
        return -(-self.words // self.per_line)

    @property
    def stored_bits(self) -> int:
        """Data and check bits of a memory word."""
        return self.word_bits + self.check_bits

    @property
    def columns(self) -> int:
        """Cells of a row, check bits included."""
        return self.row_words * self.stored_bits

    @property
    def rows(self) -> range:
        """Rows of each bank that the tensor may take."""
        step = self.banks * self.row_words
        return range(self.first // step, (self.first + self.capacity) // step)

    def place(self, word, bit):
        """(bank, row, column) of data bits: tensor word and bit of it, 0 the lowest."""
        line, at = np.divmod(np.asarray(word, np.int64), self.per_line)
        return self._cell_of(line, at * self.bits + bit)

    def place_check(self, line, bit):
        """(bank, row, column) of check bits: number of the memory word, and check bit."""
        return self._cell_of(np.asarray(line, np.int64), self.word_bits + np.asarray(bit))

    def _cell_of(self, line, b):
        local, bank = np.divmod(self.first + line % self.capacity, self.banks)
        row, w = np.divmod(local, self.row_words)
        group, lane = np.divmod(w, self.interleave)
        return bank, row, (group * self.stored_bits + b) * self.interleave + lane

    def cell(self, bank, row, column):
        """(word, bit, check) of what cells hold of the tensor.

        check  bool: a check bit; `word` is then the number of its memory word
        Word -1 for a cell outside the memory and for one that holds nothing of this tensor.
        Of a tensor that does not fit: what was written first.
        """
        bank, row, column = np.broadcast_arrays(
            *(np.asarray(x, np.int64) for x in (bank, row, column))
        )
        rest, lane = np.divmod(column, self.interleave)
        group, b = np.divmod(rest, self.stored_bits)
        local = row * self.row_words + group * self.interleave + lane
        line = local * self.banks + bank - self.first
        inside = (bank >= 0) & (bank < self.banks) & (column >= 0) & (column < self.columns)
        inside &= (row >= 0) & (line >= 0) & (line < min(self.capacity, self.lines))
        check = inside & (b >= self.word_bits)
        at, bit = np.divmod(b, self.bits)
        word = np.where(check, line, line * self.per_line + at)
        bit = np.where(check, b - self.word_bits, bit)
        inside &= check | ((at < self.per_line) & (word < self.words))
        return np.where(inside, word, -1), np.where(inside, bit, -1), check

    def neighbours(self, word, bit, offsets, check=False):
        """What the cells around some bits hold: one physical event strikes them together.

        word, bit  (f,) int64 as `cell` gives them; check (f,) bool or one for all
        offsets    (o, 2) of (rows down, columns to the right); (0, 0) is the bit itself
        Returns (word, bit, check), each (f, o), as `cell` gives them: -1 beyond the bank's
        edge and where nothing of this tensor is. Banks are arrays of their own.
        """
        word, bit = np.asarray(word, np.int64), np.asarray(bit, np.int64)
        data, held = self.place(word, bit), self.place_check(word, bit)
        bank, row, column = (np.where(check, h, d)[..., None] for d, h in zip(data, held))
        down, right = np.asarray(offsets, np.int64).reshape(-1, 2).T
        return self.cell(bank, row + down, column + right)


def tensor_map(placement: Placement, block: Block, residency: int | None = None) -> AddressMap:
    """The cells that the words of a block have in one of its residencies.

    block      of the placement; of check bits: the map of the words they protect
    residency  number as in FAULT rows; None: the block's first

    Words of the map are numbered as they are packed, `Block.packed` and `Block.unpacked`:
    of a tensor that stays on chip by their address, of a fetched tile among those fetched.
    """
    memory = block.memory
    data = [b for b in placement.blocks if b.component == memory]
    mine = next(b for b in data if (b.layer, b.first) == (block.layer, block.first))
    residency = mine.first if residency is None else residency
    before = 0  # contents that the memory had before this one
    for other in data:
        if other is mine:
            break
        before += other.contents
    half = (before + mine.content(residency)) % 2
    return AddressMap.of(
        placement.accel.buffers[memory], mine.bits, mine.words_in(residency), half
    )  # fmt: skip
