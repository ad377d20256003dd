"""Permanent defects of the weight memory: cells that are stuck, the same for a whole chip.

Each stored bit of each weight is a cell of its own. A cell is stuck for the whole trial
with a fixed probability and then reads 1 or 0 whatever was written; cells are
independent. This is adSAF on bits (`fault_models/statistical/weights.py`, AdSAFBits) as
damage of the machine.

Every weight has cells of its own, as in a crossbar that holds all weights at once; a
layer that the network uses twice has one set of them. In a shared SRAM the weights of
several layers meet the same cells one after another: that is a chip's map (`chip_map.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fsim.errors import FaultError
from fsim.types import FAULT, FOREVER, LEVEL

from .rows import extend_masks, flip_rows

SA1_SHARE = 0.163
"""Share of stuck cells that read 1; 0.837 read 0. FTT-NAS (arXiv 2003.10375) and its
reference implementation; recalled origin: a 4 Mb HfO2 test chip (Chen et al., IEEE
Transactions on Computers 2015) with 9.04 % and 1.75 % of its cells."""

# Random streams: one per block of words for the stuck cells, one for what they read.
_STUCK, _READS = 1 << 21, 1 << 22


@dataclass(frozen=True)
class StuckCells:
    """Stuck cells of the weight memory, those of its check bits included.

    p          probability in [0, 1] that a cell is stuck
    sa1_share  share of the stuck cells that read 1, the others read 0
    """

    p: float
    sa1_share: float = SA1_SHARE

    name = "stuck-cells"
    unit = "trial"

    def blocks(self, space) -> list:
        """(weight words of a SiteSpace, block whose cells hold them) of every layer.

        A layer that the network uses again, with the same codes, has the cells of its first
        use. FaultError if there are no weight words.
        """
        ops, first, found = space.placement.program.ops, {}, []
        for block in space.placement.blocks:
            if block.memory == "weights":
                uses = first.setdefault((block.component, block.name.split("#")[0]), [])
                codes = _codes(ops[block.layer])
                same = (b for b in uses if np.array_equal(_codes(ops[b.layer]), codes))
                holder = next(same, block)
                uses.append(block)
                if block in space.blocks:
                    found.append((block, holder))
        if not found:
            raise FaultError(
                "stuck cells need words of the weight memory (weights) among the chosen sites "
                "and layers, got none"
            )
        return found

    def cells(self, space) -> int:
        """Cells that may be stuck: words x bits, however often the words are read."""
        holders = {holder.number: holder for _, holder in self.blocks(space)}
        return sum(block.words * block.bits for block in holders.values())

    def rows(self, space, trial: int, images: np.ndarray, draws) -> np.ndarray:
        """FAULT rows of one chip, one a stuck cell and use, for all images (image -1).

        A row strikes every residency of its word: LEVEL, from residency 0 for ever.
        A cell that is stuck at what is written in it has a row too.
        """
        every = np.array([-1], np.int64)
        parts, events, count = [np.zeros(0, FAULT)], {}, 0
        for block, holder in self.blocks(space):
            component = space.accel.component_index(block.component)
            cells = block.words * block.bits
            _, stuck = draws.bits(cells, self.p, _STUCK + holder.number, trial, every)
            stream = _READS + holder.number
            _, ones = draws.bits(len(stuck), self.sa1_share, stream, trial, every)
            if holder.number not in events:
                events[holder.number], count = count, count + len(stuck)
            word, bit = np.divmod(stuck, block.bits)
            mask = extend_masks(bit, block.bits, block.signed)
            at_1 = np.zeros(len(stuck), bool)
            at_1[ones] = True
            parts.append(
                flip_rows(
                    len(stuck), trial=trial, event=events[holder.number] + np.arange(len(stuck)),
                    image=-1, layer=block.layer, component=component, word=word, effect=LEVEL,
                    first=0, last=FOREVER, and_mask=np.where(at_1, -1, ~mask),
                    or_mask=np.where(at_1, mask, 0),
                )
            )  # fmt: skip
        return np.concatenate(parts)


def _codes(op) -> np.ndarray:
    """Weight codes of an operation, or of the one that a part of a joined space holds."""
    return op.weight if hasattr(op, "weight") else op.op.weight
