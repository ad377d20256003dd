"""Multi-cell upsets: clusters of neighbouring cells, and the words that these cells belong to.

One particle upsets several cells; which words they are of is a matter of the layout
(`layout.py`): without interleaving bits of one word and of the words above and below, with
interleaving one bit of several words. JESD89A defines the terms; sizes and shapes by process:
Ibe et al., IEEE Trans. Electron Devices 57(7), 2010. There is no default table of shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fsim.errors import FaultError
from fsim.types import STATE

from .bit_errors import OneFlip
from .layout import Interleaved
from .parameters import parameter
from .rows import flip_rows, spread_masks
from .shapes import shapes_of
from .uniform import choose, uniform

# Random streams of this family; those of a shape are _PLACE and _ACCEPT + its number.
_SHAPE, _PLACE, _ACCEPT = (5 << 20) + (1 << 16), (5 << 20) + (2 << 16), (5 << 20) + (3 << 16)


@dataclass(frozen=True)
class MultiCellUpset:
    """One event for each image: a cluster of cells of one tensor during one residency.

    Given the shape, every place of the cluster at which it has at least one live cell is
    equally likely: a cell that holds a bit of a word during a residency that an error rate
    would multiply. Cells of a cluster that hold no such word are struck without effect. All
    words of an event flip before their first read, as under a bit error rate. A row is a word,
    rows of one event have its number.
    """

    shapes: str = parameter("shares of shapes of cells: 2x2, or '11:0.7 1/1:0.2 10/01:0.1'")
    interleave: int = parameter("words whose bits lie side by side in a row of cells", 1)
    banks: int = parameter("banks that consecutive words are spread over", 1)
    memories: str = parameter("memories that may be struck", "acts+weights+psums")

    name = "mcu"
    unit = "image"
    lasting = False

    def __post_init__(self):
        Interleaved(1, 1, self.interleave, self.banks)
        known = ("acts", "weights", "psums")
        bad = [name for name in self.memories.split("+") if name not in known]
        if bad:
            raise FaultError(f"memories must be of {'+'.join(known)}, got {self.memories!r}")
        _ = self.table

    @cached_property
    def table(self):
        """Shapes with their shares."""
        return shapes_of(self.shapes, "shapes")

    def layout(self, space, block):
        """The layout of one tensor in its memory."""
        return Interleaved(block.words, block.bits, self.interleave, self.banks)

    def rows(self, space, trial: int, images: np.ndarray, draws) -> np.ndarray:
        """FAULT rows of one trial: some for each image, sorted by image, then by word."""
        images = np.asarray(images, np.int64)
        cells = OneFlip(tuple(self.memories.split("+"))).cells(space)
        u = uniform(draws, 1, _SHAPE, trial, images)[:, 0]
        chosen = choose(u, [shape.share for shape in self.table])
        parts = [flip_rows(0)]
        for number, shape in enumerate(self.table):
            here = np.flatnonzero(chosen == number)
            left, attempts = here, 4 * len(shape.cells)
            while len(left):  # a prefix of an endless sequence, until one is accepted
                found, rows = self._tried(
                    space, cells, shape, number, trial, images, left, attempts, draws
                )  # fmt: skip
                parts.append(rows)
                left, attempts = left[~found], 4 * attempts
        rows = np.concatenate(parts)
        rows["trial"], rows["image"] = trial, images[rows["event"]]
        return rows[np.lexsort((rows["word"], rows["event"]))]

    def _tried(self, space, cells, shape, number, trial, images, left, attempts, draws):
        """((left,) bool: one of the attempts was accepted, rows of those that were).

        An attempt puts a random cell of the cluster on a random live cell. A cluster with k
        live cells comes up in k ways, so it is accepted with probability 1/k.
        """
        offsets = np.concatenate([[0], np.cumsum([cell.sites for cell in cells])])
        total, size = int(offsets[-1]), len(shape.cells)
        position, role = np.divmod(
            draws.sites(total * size, attempts, _PLACE + number, trial, images[left]), size
        )
        u = uniform(draws, attempts, _ACCEPT + number, trial, images[left])
        open_ = np.ones(len(left), bool)
        parts = [flip_rows(0)]
        for step in range(attempts):
            which = np.searchsorted(offsets, position[:, step], "right") - 1
            for block in np.unique(which[open_]).tolist():
                mine = np.flatnonzero(open_ & (which == block))
                site = position[mine, step] - offsets[block]
                word, bit, residency = self._cluster(
                    space, cells[block].source, shape, site, role[mine, step]
                )
                live = word >= 0
                accepted = u[mine, step] * live.sum(axis=1) < 1.0
                if accepted.any():
                    parts.append(
                        _event_rows(cells[block], word[accepted], bit[accepted],
                                    residency[accepted], left[mine[accepted]])
                    )  # fmt: skip
                    open_[mine[accepted]] = False
            if not open_.any():
                break
        return ~open_, np.concatenate(parts)

    def _cluster(self, space, block, shape, site, role):
        """(word, bit) (f, cells) of clusters, word -1 where nothing live is; residency (f,)."""
        residency, word, bit = block.site(site)
        layout = self.layout(space, block)
        bank, row, column = layout.place(word, bit)
        offset = shape.offsets()
        move = offset[None, :, :] - offset[role][:, None, :]
        words, bits = layout.cell(
            np.broadcast_to(bank[:, None], move.shape[:2]),
            row[:, None] + move[..., 0],
            column[:, None] + move[..., 1],
        )
        if block.word is not None:  # not every word is fetched in every residency
            keys = block.residency * block.words + block.word
            wanted = residency[:, None] * block.words + words
            words = np.where(np.isin(wanted, keys) & (words >= 0), words, -1)
        return words, bits, residency


def _event_rows(cell, word, bit, residency, event) -> np.ndarray:
    """One row for each struck word of each event: its bits together."""
    number, _ = live = np.nonzero(word >= 0)
    keys = np.stack([event[number], residency[number], word[live]])
    unique, which = np.unique(keys, axis=1, return_inverse=True)
    mask = np.zeros(unique.shape[1], np.int64)
    np.bitwise_or.at(mask, which.reshape(-1), np.int64(1) << bit[live])
    block = cell.source
    return flip_rows(
        unique.shape[1], event=unique[0], layer=cell.layer, component=cell.component,
        word=unique[2], effect=STATE, first=unique[1], last=unique[1],
        xor_mask=spread_masks(mask, block.bits, block.signed),
    )  # fmt: skip
