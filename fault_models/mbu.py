"""Multi-bit upsets: patterns of neighbouring bits of one word, from a table of their shares.

One particle deposits charge in several neighbouring cells. How often two, three or more bits of
a word are upset, and in which pattern, depends on the process, the cell layout and the particle:
Ibe et al., "Impact of scaling on neutron-induced soft error in SRAMs from a 250 nm to a 22 nm
design rule", IEEE Trans. Electron Devices 57(7), 2010. There is no default table: take one that
was measured on your process. JESD89A defines the terms: an MBU is several bits of one word, an
MCU several cells of whichever words (`mcu.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fsim.errors import FaultError

from .bit_errors import OneFlip
from .parameters import parameter
from .rows import flip_rows, spread_masks
from .shapes import shapes_of
from .uniform import choose, uniform
from .upsets import check_sites, register_cells, register_flips

# Random streams of this family; that of a pattern is _PLACE + its number.
_PATTERN, _PLACE = 5 << 20, (5 << 20) + 1

WHERE = ("registers", "memories")


@dataclass(frozen=True)
class MultiBitUpset:
    """One upset for each image: a pattern by its share, at a place uniform over those it fits.

    A place is a lowest bit of a word at which the whole pattern lies in the word, in every
    cycle (registers: the flip follows a clock edge) or residency (memories: before the first
    read). Neighbouring bits of a number are taken to be neighbouring cells.
    """

    patterns: str = parameter("shares of patterns, highest bit first: '11:0.8 111:0.2'")
    where: str = parameter("registers or memories", "registers")

    name = "mbu-patterns"
    unit = "image"
    lasting = False

    def __post_init__(self):
        if self.where not in WHERE:
            raise FaultError(f"where must be one of {', '.join(WHERE)}, got {self.where!r}")
        _ = self.table

    @cached_property
    def table(self) -> tuple[tuple[int, int, float], ...]:
        """(bits, span, share) of each pattern: bits as a number whose lowest bit is 1."""
        found = []
        for shape in shapes_of(self.patterns, "patterns", flat=True):
            span = shape.size[1]
            found.append((sum(1 << (span - 1 - c) for _, c in shape.cells), span, shape.share))
        return tuple(found)

    def _cells(self, space):
        if self.where == "memories":
            return OneFlip().cells(space)
        table = space.accel.components
        sites = [site for site in space.registers if table[site.component].kind == "register"]
        check_sites(sites, "a multi-bit upset", ("register",), space)
        return register_cells(sites)

    def rows(self, space, trial: int, images: np.ndarray, draws) -> np.ndarray:
        """FAULT rows of one trial, one for each image, in the order of the images."""
        images = np.asarray(images, np.int64)
        cells = self._cells(space)
        words = np.array([cell.words for cell in cells], np.int64)
        bits = np.array([cell.bits for cell in cells], np.int64)
        chosen = choose(
            uniform(draws, 1, _PATTERN, trial, images)[:, 0], [row[2] for row in self.table]
        )
        rows = flip_rows(len(images))
        for number, (pattern, span, _) in enumerate(self.table):
            places = np.maximum(bits - span + 1, 0)
            total = int((words * places).sum())
            if not total:
                raise FaultError(
                    f"pattern {pattern:b} must fit a word, got at most {bits.max()} bits "
                    f"({self.where})"
                )
            here = np.flatnonzero(chosen == number)
            position = draws.sites(total, 1, _PLACE + number, trial, images[here])[:, 0]
            offsets = np.concatenate([[0], np.cumsum(words * places)])
            which = np.searchsorted(offsets, position, "right") - 1
            word, low = np.divmod(position - offsets[which], places[which])
            rows[here] = self._rows_at(space, cells, which, word, low, pattern)
        rows["trial"], rows["image"], rows["event"] = trial, images, np.arange(len(images))
        return rows

    def _rows_at(self, space, cells, which, word, low, pattern):
        if self.where == "memories":
            rows = OneFlip().rows_at(space, cells, which, word, low)
        else:
            rows = register_flips(space, cells, which, word, low)
        bits = np.array([cell.bits for cell in cells], np.int64)[which]
        signed = np.array([cell.source.signed for cell in cells])[which]
        rows["xor_mask"] = spread_masks(np.int64(pattern) << low, bits, signed)
        return rows
