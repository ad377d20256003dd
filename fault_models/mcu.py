"""Multi-cell upsets: clusters of neighbouring cells, and the words that these cells belong to.

One particle upsets several cells; which words they are of is a matter of the layout: the
address map of the machine's memories (`simulator/address_map.py`; banks, columns and
interleaving are keys of a buffer). Without interleaving a cluster strikes bits of one memory
word and of those in the rows above and below, with interleaving one bit of several words; the
check bits of protected words are cells too. JESD89A defines the terms; sizes and shapes by
process: Ibe et al., IEEE Trans. Electron Devices 57(7), 2010. There is no default table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fsim.accel_models.accel import CHECK
from fsim.errors import FaultError
from fsim.types import STATE

from .bit_errors import OneFlip
from .parameters import parameter
from .rows import flip_rows, spread_masks
from .shapes import shapes_of
from .uniform import choose, uniform

# Random streams of this family; those of a shape are _PLACE and _ACCEPT + its number.
_SHAPE, _PLACE, _ACCEPT = (5 << 20) + (1 << 16), (5 << 20) + (2 << 16), (5 << 20) + (3 << 16)


@dataclass(frozen=True)
class MultiCellUpset:
    """One event for each image: a cluster of cells of one tensor during one residency.

    Given the shape, every place of the cluster and residency in which it has at least one live
    cell is equally likely: a cell that holds a bit, or check bit, that an error rate would
    multiply. Cells of a cluster that hold nothing of the tensor are struck without effect. All
    words of an event flip before their first read, as under a bit error rate. A row is a word,
    rows of one event have its number.
    """

    shapes: str = parameter("shares of shapes of cells: 2x2, or '11:0.7 1/1:0.2 10/01:0.1'")
    memories: str = parameter("memories that may be struck", "acts+weights+psums")

    name = "mcu"
    unit = "image"
    lasting = False

    def __post_init__(self):
        known = ("acts", "weights", "psums")
        bad = [name for name in self.memories.split("+") if name not in known]
        if bad:
            raise FaultError(f"memories must be of {'+'.join(known)}, got {self.memories!r}")
        _ = self.table

    @cached_property
    def table(self):
        """Shapes with their shares."""
        return shapes_of(self.shapes, "shapes")

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
        return rows[np.lexsort((rows["word"], rows["component"], rows["event"]))]

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
        found, parts = np.zeros(len(left), bool), [flip_rows(0)]
        for at in range(len(left)):
            for step in range(attempts):
                which = int(np.searchsorted(offsets, position[at, step], "right")) - 1
                struck = _Cluster(space, cells, which, int(position[at, step] - offsets[which]))
                live = struck.under(shape.offsets() - shape.offsets()[role[at, step]])
                if u[at, step] * live < 1.0:
                    rows = struck.rows()
                    rows["event"] = left[at]
                    parts.append(rows)
                    found[at] = True
                    break
        return found, np.concatenate(parts)


class _Cluster:
    """The cells around one live bit, and what they hold.

    cells  of all live bits; which: the one that has it; site: its number in that cell
    """

    def __init__(self, space, cells, which: int, site: int):
        block = cells[which].source
        names = [block.memory, block.memory + CHECK]
        self.of = {
            cell.component_name: cell
            for cell in cells
            if cell.component_name in names and cell.layer == block.layer
            and cell.source.first == block.first
        }  # fmt: skip
        self.memory, self.space = block.memory, space
        self.residency, word, bit = (int(x) for x in block.site(np.int64(site)))
        check = block.component != block.memory
        self.map = space.address_map(block, self.residency)
        # The map's own numbers: of data words their place among those the residency holds.
        line = word if check else int(block.packed(word, self.residency)) // self.map.per_line
        if check:
            self.at = self.map.place_check(word, bit)
        else:
            self.at = self.map.place(block.packed(word, self.residency), bit)
        self.turn = line // self.map.capacity  # of a tensor that is written over itself

    def under(self, move: np.ndarray) -> int:
        """Look at the cells at some offsets (o, 2); how many are live and may be chosen."""
        bank, row, column = self.at
        word, bit, check = self.map.cell(bank, row + move[:, 0], column + move[:, 1])
        step = self.turn * self.map.capacity
        later = word + np.where(check, step, step * self.map.per_line)
        most = np.where(check, self.map.lines, self.map.words)
        self.word = np.where((word >= 0) & (later < most), later, -1)
        self.bit, self.check = bit, check
        live = self.word >= 0
        for name, kind in ((self.memory, ~check), (self.memory + CHECK, check)):
            if name not in self.of:
                live &= ~kind
        return int(live.sum())

    def rows(self) -> np.ndarray:
        """One row for each struck word, with its bits together; trial, image, event open."""
        table = [component.name for component in self.space.accel.components]
        parts = [flip_rows(0)]
        blocks = [b for b in self.space.placement.blocks
                  if b.memory == self.memory and b.layer == self._layer
                  and b.first == self._first]  # fmt: skip
        for block in blocks:
            is_check = block.component != self.memory
            mine = (self.word >= 0) & (self.check == is_check)
            words, which = np.unique(self.word[mine], return_inverse=True)
            mask = np.zeros(len(words), np.int64)
            np.bitwise_or.at(mask, which, np.int64(1) << self.bit[mine])
            if not is_check and len(words):
                words = block.unpacked(words, self.residency)
            parts.append(
                flip_rows(
                    len(words), layer=block.layer, component=table.index(block.component),
                    word=words, effect=STATE, first=self.residency, last=self.residency,
                    xor_mask=spread_masks(mask, block.bits, block.signed),
                )
            )  # fmt: skip
        return np.concatenate(parts)

    @property
    def _layer(self) -> int:
        return next(iter(self.of.values())).layer

    @property
    def _first(self) -> int:
        return next(iter(self.of.values())).source.first
