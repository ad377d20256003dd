"""Faults that are fixed in a chip: which cells of a memory fail, at what, and the rows of it.

Every cell has a number between 0 and 1, drawn once per chip; it fails where its number is below
the failure probability of the operating point. So the map belongs to the chip (seed and trial),
and the cells that fail at one probability are among those that fail at any higher one.

Cells are those of the on-chip memory, check bits included, as the machine's description and its
address map (`simulator/address_map.py`) have them: tensors meet the same cells one after
another, in the half of a double buffer that they take; of one that does not fit, words that are
written over each other meet them too. A failing cell reads one value of its own, whatever was
written. Rows are of image -1:

    weights   LEVEL: for ever if the words are written once, else one for each residency
    acts, psums  STATE with masks that force the bit, one for each residency: what the memory
              gives back of every word that is written there
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fsim.errors import FaultError
from fsim.types import FOREVER, LEVEL, STATE

from .rows import extend_masks, flip_rows
from .uniform import uniform

# Random streams: numbers of cells and the values they read, by memory.
_CELLS, _VALUES = 6 << 20, (6 << 20) + 16

MEMORIES = ("acts", "weights", "psums")

_CHUNK = 1 << 16  # cells of one random counter
_MOST = 1 << 33  # cells of a memory whose map is drawn


def memories_of(text: str) -> tuple[str, ...]:
    """`weights+acts` as names of MEMORIES; FaultError for others."""
    names = tuple(text.split("+"))
    if len(set(names)) < len(names) or any(name not in MEMORIES for name in names):
        raise FaultError(f"memories must be of {'+'.join(MEMORIES)}, got {text!r}")
    return names


@dataclass(frozen=True)
class Failing:
    """Cells of one memory of one chip that fail.

    cell  (f,) int64 ascending; u: (f,) their numbers; one: (f,) bool, they read 1
    """

    cell: np.ndarray
    u: np.ndarray
    one: np.ndarray


def failing(draws, memory: str, cells: int, p: float, share: float, trial: int) -> Failing:
    """The cells of a chip's memory whose number is below p, and what they read.

    share  of failing cells that read 1, independently of everything else
    """
    if cells > _MOST:
        raise FaultError(f"a chip's map must have at most {_MOST} cells, got {cells} ({memory})")
    stream = MEMORIES.index(memory)
    found, numbers = [np.zeros(0, np.int64)], [np.zeros(0)]
    for begin in range(0, -(-cells // _CHUNK) if p > 0 else 0, 16):
        chunks = np.arange(begin, min(begin + 16, -(-cells // _CHUNK)), dtype=np.int64)
        u = uniform(draws, _CHUNK, _CELLS + stream, trial, chunks).reshape(-1)
        u = u[: cells - begin * _CHUNK]
        below = np.flatnonzero(u < p)
        found.append(below + begin * _CHUNK)
        numbers.append(u[below])
    cell = np.concatenate(found)
    value = _values(draws, _VALUES + stream, trial, cell)
    return Failing(cell, np.concatenate(numbers), value < share)


def _values(draws, stream: int, trial: int, cell: np.ndarray) -> np.ndarray:
    """A uniform number for each cell, the same whichever others are asked for."""
    out = np.empty(len(cell))
    chunk = cell // _CHUNK
    for number in np.unique(chunk).tolist():
        mine = chunk == number
        u = uniform(draws, _CHUNK, stream, trial, np.array([number]))[0]
        out[mine] = u[cell[mine] - number * _CHUNK]
    return out


@lru_cache(maxsize=8)
def _map(draws, memory, cells, p, share, trial) -> Failing:
    return failing(draws, memory, cells, p, share, trial)


def blocks_of(space, memories: tuple[str, ...]) -> list:
    """The blocks of the memories in a site space; FaultError if there are none."""
    found = [block for block in space.blocks if block.memory in memories]
    if not found:
        raise FaultError(
            f"a chip's map needs words of {' or '.join(memories)} among the chosen sites and "
            "layers, got none"
        )
    return found


def cells_of(buffer) -> tuple[int, int, int]:
    """(banks, rows of each, columns) of a memory, both halves of a double buffer."""
    words = buffer.memory_words * (2 if buffer.double_buffered else 1)
    columns = buffer.row_words * (buffer.word_bits + buffer.check_bits)
    return buffer.banks, words // (buffer.banks * buffer.row_words), columns


def chip_rows(space, memories, p: float, share: float, trial: int, draws) -> np.ndarray:
    """FAULT rows of one chip: one for each failing cell, tensor and residency.

    Rows of one cell share an event. Cells that no word of the chosen layers meets have none.
    """
    table = [component.name for component in space.accel.components]
    parts, events, count = [flip_rows(0)], {}, 0
    for block in blocks_of(space, memories):
        shape = cells_of(space.accel.buffers[block.memory])
        fails = _map(draws, block.memory, int(np.prod(shape)), p, share, trial)
        if block.memory not in events:
            events[block.memory], count = count, count + len(fails.cell)
        lasting = block.memory == "weights"
        numbers = block.first + np.arange(block.contents) if block.word is None else (
            np.unique(block.residency)
        )  # fmt: skip
        for residency in numbers.tolist():
            which, word, bit = _met(space, block, residency, shape, fails.cell)
            mask = extend_masks(bit, block.bits, block.signed)
            one = fails.one[which]
            parts.append(
                flip_rows(
                    len(which), event=events[block.memory] + which, layer=block.layer,
                    component=table.index(block.component), word=word,
                    effect=LEVEL if lasting else STATE, first=residency,
                    last=FOREVER if lasting and len(numbers) == 1 else residency,
                    and_mask=np.where(one, -1, ~mask), or_mask=np.where(one, mask, 0),
                )
            )  # fmt: skip
    rows = np.concatenate(parts)
    rows["trial"], rows["image"] = trial, -1
    return rows


def _met(space, block, residency: int, shape, cell):
    """(which of the cells, word, bit) that a residency of a block keeps bits in."""
    banks, rows, columns = shape
    at = space.address_map(block, residency)
    rest, column = np.divmod(cell, columns)
    bank, row = np.divmod(rest, rows)
    word, bit, check = at.cell(bank, row, column)
    is_check = block.component != block.memory
    which = np.flatnonzero((word >= 0) & (check == is_check))
    step = at.capacity * (1 if is_check else at.per_line)
    most = at.lines if is_check else at.words
    times = (most - 1 - word[which]) // step + 1  # words written over each other
    turn = np.arange(int(times.sum())) - np.repeat(np.cumsum(times) - times, times)
    which = np.repeat(which, times)
    word = word[which] + turn * step
    return which, word if is_check else block.unpacked(word, residency), bit[which]


def expected_rows(space, memories, p: float) -> float:
    """Mean number of rows of one chip."""
    return p * sum(block.exposed_bits for block in blocks_of(space, memories))
