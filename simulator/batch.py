"""The fault rows of a batch of inferences, found by operation and component."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fsim.types import FAULT

from .kernels import memory


@dataclass(frozen=True, eq=False)
class Batch:
    """The faults of a batch of inferences.

    rows    FAULT rows; their trial and image are not looked at
    slot    (rows,) int64 inference of the batch that each row strikes, -1 for all
    chosen  (s,) int64 ascending indices of the rows that count; None: all of them
    """

    rows: np.ndarray
    slot: np.ndarray
    chosen: np.ndarray | None = None

    def part(self, begin: int, end: int) -> Batch:
        """The faults of inferences [begin, end) alone, numbered from 0.

        Rows are shared, not copied: a batch under a bit error rate has 100,000.
        """
        inside = (self.slot < 0) | ((self.slot >= begin) & (self.slot < end))
        if self.chosen is None:
            if begin == 0 and inside.all():
                return self
            chosen = np.flatnonzero(inside)
        else:
            chosen = self.chosen[inside[self.chosen]]
        return Batch(self.rows, np.where(self.slot < 0, -1, self.slot - begin), chosen)

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray, int]:
        """(indices by (layer, component), where each pair begins, components)."""
        rows, chosen = self.rows, self.chosen
        if chosen is None:
            chosen = np.arange(len(rows))
        components = int(rows["component"].max(initial=0)) + 1
        layers = int(rows["layer"].max(initial=-1)) + 2
        return *memory.group_rows(rows, chosen, layers, components), components

    def of(self, layer: int, first: int, last: int | None = None) -> np.ndarray:
        """Indices of the rows that strike components [first, last] of a layer.

        In their order; those for every layer (layer -1) last.
        """
        order, begins, components = self._sorted
        last = first if last is None else last
        if first >= components:
            return order[:0]
        last = min(last, components - 1)
        found = []
        for number in (layer + 1, 0):
            at = number * components
            if at + components < len(begins):
                found.append(order[begins[at + first] : begins[at + last + 1]])
        mine = [part if first == last else np.sort(part) for part in found if len(part)]
        if not mine:
            return order[:0]
        return mine[0] if len(mine) == 1 else np.concatenate(mine)


def no_faults() -> Batch:
    """A batch without faults."""
    return Batch(np.zeros(0, FAULT), np.zeros(0, np.int64))
