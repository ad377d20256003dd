"""Bit errors of memories: each bit of each resident word flips with a fixed probability.

The rate is per bit and residency (from a write of the word to its next write or
last read), the flip comes before the first read, and bits are independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fsim.errors import FaultError
from fsim.types import FAULT

from .cells import Cell
from .rows import extend_masks, flip_rows

_ONE_FLIP = (1 << 20) + 3  # random stream; error rates use the numbers of the blocks
_SCRUB = 1 << 23  # and this number beyond them for scrub intervals


@dataclass(frozen=True)
class BitErrors:
    """Bit error rates of the three memories, the check bits of each included.

    acts, weights, psums  probability in [0, 1] of a flip per bit and residency
    hw_batch  images between two writes of the weights; None: written once a trial
    """

    acts: float = 0.0
    weights: float = 0.0
    psums: float = 0.0
    hw_batch: int | None = 1

    name = "ber"

    @property
    def unit(self) -> str:
        """What is independent: images, unless a row of weights stands for several."""
        return "image" if self.hw_batch == 1 or not self.weights else "trial"

    def rows(self, space, trial: int, images: np.ndarray, draws) -> np.ndarray:
        """FAULT rows of one trial for some images, (f,).

        space   a SiteSpace; its blocks are what the rates multiply
        images  (i,) int64 indices. Rows of weights carry the first image of their
                batch (-1: the whole trial) and stand for all of it.
        """
        images = np.asarray(images, np.int64)
        if self.hw_batch is None:
            batches = np.array([-1], np.int64)
        else:
            batches = np.unique(images // self.hw_batch * self.hw_batch)
        components = {component.name: i for i, component in enumerate(space.accel.components)}
        drawn = []
        for block in space.blocks:
            p = getattr(self, block.memory)
            if p > 0:
                units = batches if block.memory == "weights" else images
                index, position = draws.bits(block.exposed_bits, p, block.number, trial, units)
                drawn.append((block, units, index, position))
        rows = np.empty(sum(len(position) for *_, position in drawn), FAULT)
        begin = 0
        for block, units, index, position in drawn:
            end = begin + len(position)
            component = components[block.component]
            block.write_flips(rows[begin:end], begin, trial, units[index], component, position)
            together = 1
            if block.memory == "weights":
                together = len(images) if self.hw_batch is None else self.hw_batch
            intervals = block.scrub_intervals(space.accel.buffers[block.memory], together)
            if intervals > 1 and end > begin:
                stream = _SCRUB + block.number
                rows["col"][begin:end] = _intervals(intervals, stream, trial, units, index, draws)
            begin = end
        return rows


def _intervals(count: int, stream: int, trial: int, units, index, draws) -> np.ndarray:
    """(f,) scrub interval of each flip, uniform: those of a unit follow one another.

    index  (f,) int64 ascending: unit of each flip
    """
    some, begin, sizes = np.unique(index, return_index=True, return_counts=True)
    drawn = draws.sites(count, int(sizes.max()), stream, trial, units[some])
    rank = np.arange(len(index)) - np.repeat(begin, sizes)
    return drawn[np.repeat(np.arange(len(some)), sizes), rank]


@dataclass(frozen=True)
class OneFlip:
    """Exactly one flip an image, uniform over the bits that an error rate multiplies.

    components  memories it may strike, their check bits included
    """

    components: tuple[str, ...] = ("acts", "weights", "psums")

    name = "one-flip"
    hw_batch = 1
    unit = "image"

    permanent = False

    def cells(self, space) -> tuple[Cell, ...]:
        """All sites: bits of words x residencies; FaultError if there are none."""
        names = [component.name for component in space.accel.components]
        found = tuple(
            Cell(block.layer, block.name, names.index(block.component), block.component,
                 block.exposed_words, block.bits, block)
            for block in space.blocks
            if block.memory in self.components
        )  # fmt: skip
        if not any(cell.sites for cell in found):
            raise FaultError(
                f"a flip in a memory needs words of {' or '.join(self.components)} among the "
                "chosen sites and layers, got none"
            )
        return found

    def rows_at(self, space, cells, which, word, bit) -> np.ndarray:
        """The flips at some sites, one FAULT row each; image -1, trial and event 0.

        which, word, bit  (f,) int64: number of the cell, word (and residency) and bit in it
        """
        rows = flip_rows(len(which), image=-1)
        for number in np.unique(which):
            here = np.flatnonzero(which == number)
            cell = cells[number]
            block = cell.source
            residency, address, at = block.site(word[here] * block.bits + bit[here])
            rows["layer"][here], rows["component"][here] = cell.layer, cell.component
            rows["word"][here], rows["first"][here], rows["last"][here] = (
                address, residency, residency,
            )  # fmt: skip
            rows["xor_mask"][here] = extend_masks(at, block.bits, block.signed)
        return rows

    def rows(self, space, trial: int, images: np.ndarray, draws) -> np.ndarray:
        """FAULT rows of one trial, one for each image, in the order of the images."""
        images = np.asarray(images, np.int64)
        cells = self.cells(space)
        offsets = np.cumsum([0] + [cell.sites for cell in cells])
        position = draws.sites(int(offsets[-1]), 1, _ONE_FLIP, trial, images)[:, 0]
        which = np.searchsorted(offsets, position, "right") - 1
        bits = np.array([cell.bits for cell in cells])[which]
        rows = self.rows_at(space, cells, which, *np.divmod(position - offsets[which], bits))
        rows["trial"], rows["image"], rows["event"] = trial, images, np.arange(len(images))
        return rows
