"""Faults that are fixed in a chip: which cells of a memory fail, at what, and the rows of it.

Every cell has a number between 0 and 1, drawn once per chip; it fails where its number is below
the failure probability of the operating point. So the map belongs to the chip (seed and trial),
and the cells that fail at one probability are among those that fail at any higher one.

Cells are those of the on-chip memory, as large as the machine's description says. A tensor's
word w is in the words' place w modulo what fits, so tensors (and the tiles of one that does not
fit) meet the same cells one after another. A failing cell reads one value, whatever was
written: its own, drawn once, or for all the same.

    weights   LEVEL rows, every residency, image -1
    acts, psums  STATE rows with masks that force the bit, one for each residency: what the
              memory gives back of every word that is written there
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
    found = [block for block in space.blocks if block.component in memories]
    if not found:
        raise FaultError(
            f"a chip's map needs words of {' or '.join(memories)} among the chosen sites and "
            "layers, got none"
        )
    return found


def words_that_fit(space, block) -> int:
    """Words of a block's width in its memory (of a double buffer: in one half), at least 1."""
    return max(1, space.accel.buffers[block.component].usable_bits // block.bits)


def chip_rows(space, memories, p: float, share: float, trial: int, draws) -> np.ndarray:
    """FAULT rows of one chip: one for each failing cell, tensor and (acts, psums) residency.

    Rows of one cell share an event. Cells that no word of the chosen layers meets have none.
    """
    parts, events, count = [flip_rows(0)], {}, 0
    for block in blocks_of(space, memories):
        fit = words_that_fit(space, block)
        cells = space.accel.buffers[block.component].usable_bits
        key = block.component
        fails = _map(draws, key, cells, p, share, trial)
        if key not in events:
            events[key], count = count, count + len(fails.cell)
        place, bit = np.divmod(fails.cell, block.bits)
        here = np.flatnonzero(place < min(fit, block.words))
        times = (block.words - 1 - place[here]) // fit + 1
        which = np.repeat(here, times)
        turn = np.arange(len(which)) - np.repeat(np.cumsum(times) - times, times)
        word = place[which] + turn * fit
        mask = extend_masks(bit[which], block.bits, block.signed)
        rows = flip_rows(
            len(which), event=events[key] + which, layer=block.layer,
            component=space.accel.component_index(block.component), word=word,
            and_mask=np.where(fails.one[which], -1, ~mask),
            or_mask=np.where(fails.one[which], mask, 0),
        )  # fmt: skip
        if block.component == "weights":
            rows["effect"], rows["first"], rows["last"] = LEVEL, 0, FOREVER
        else:
            rows = _each_residency(block, rows)
        parts.append(rows)
    rows = np.concatenate(parts)
    rows["trial"], rows["image"] = trial, -1
    return rows


def _each_residency(block, rows) -> np.ndarray:
    """Rows of cells repeated for every residency that their words have."""
    if block.word is None:
        residency = block.first + np.arange(int(block.residencies))
        out = np.repeat(rows, len(residency))
        out["first"] = np.tile(residency, len(rows))
    else:
        order = np.argsort(block.word, kind="stable")
        word = block.word[order]
        low, high = (np.searchsorted(word, rows["word"], side) for side in ("left", "right"))
        out = np.repeat(rows, high - low)
        at = np.arange(len(out)) - np.repeat(np.cumsum(high - low) - (high - low), high - low)
        out["first"] = block.residency[order][np.repeat(low, high - low) + at]
    out["effect"], out["last"] = STATE, out["first"]
    return out


def expected_rows(space, memories, p: float) -> float:
    """Mean number of rows of one chip."""
    total = 0.0
    for block in blocks_of(space, memories):
        once = block.component == "weights"
        total += block.words * block.bits if once else block.exposed_bits
    return p * total
