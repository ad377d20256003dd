"""Where single faults can strike, as a list that can be numbered from end to end.

A campaign needs more than draws: how many sites there are, which layer, component and bit
each belongs to, and the fault at a given one. A `Cell` is a set of like sites, (words) x
(bits); a fault model with single faults has

    cells(space) -> tuple[Cell, ...]             all its sites, none twice
    rows_at(space, cells, which, word, bit)      one FAULT row for each site
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Cell:
    """Like sites: one register or net during one layer, or residencies of one memory.

    layer, layer_name          operation; -1 and "(all)" for damage that lasts
    component, component_name  in the machine's table
    words   registers: PEs x cycles of one image's schedule, PE fastest; memories: words x
            residencies; lasting damage: PEs
    bits    of one word
    source  the RegisterSites or Block it was made from
    """

    layer: int
    layer_name: str
    component: int
    component_name: str
    words: int
    bits: int
    source: object

    @property
    def sites(self) -> int:
        """Bits that a fault can strike, for one image."""
        return self.words * self.bits
