"""The sampling frame: every (fault site, image) of a campaign, numbered and cut into strata.

A site is a bit of a register in a cycle, a bit of a stored word in a residency, or a bit
of a register that is stuck for good. Transient faults strike one inference: a member is a
(site, image). Of lasting damage, and where every fault is to meet several images, the
fault is the unit: a member is a site, and meets the images that the campaign gives it.

Trial numbers interleave the strata: trial = (index in the stratum's order) x strata +
stratum. A frame needs sizes alone, so that finished campaigns are analysed without their
network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fsim.errors import ConfigError
from fsim.fault_models.cells import Cell
from fsim.simulator.sampling import MAX_SITES

AXES = ("layer", "component", "bit")
"""What strata may be told apart by."""


@dataclass(frozen=True, eq=False)
class Stratum:
    """Members that are drawn alike.

    number  position among the strata
    key     axis -> name or bit, for the axes strata are told apart by
    cells   (c,) numbers of its cells; bit: the only bit of them it has, or -1
    sites   (c,) sites of each cell that are in it
    """

    number: int
    key: dict[str, str | int]
    cells: np.ndarray
    bit: int
    sites: np.ndarray

    @cached_property
    def offsets(self) -> np.ndarray:
        """(c + 1,) where each cell's sites begin."""
        return np.concatenate([[0], np.cumsum(self.sites)])


@dataclass(frozen=True, eq=False)
class Frame:
    """All members of a campaign of single faults.

    cells     all sites, none twice
    images    of the run
    each      images that a fault meets; None: one, and (site, image) is the member
    stratify  axes of AXES that strata are told apart by
    Raises ConfigError for what cannot be numbered.
    """

    cells: Sequence[Cell]
    images: int
    each: int | None = None
    stratify: tuple[str, ...] = ()

    def __post_init__(self):
        if self.each is not None and not 1 <= self.each <= self.images:
            raise ConfigError(f"a fault must meet 1 to {self.images} images, got {self.each}")
        unknown = [axis for axis in self.stratify if axis not in AXES]
        if unknown or len(set(self.stratify)) < len(self.stratify):
            raise ConfigError(
                f"strata must be told apart by {', '.join(AXES)}, each once, "
                f"got {','.join(self.stratify)}"
            )
        if not self.size:
            raise ConfigError("a campaign must have at least one site, got none")
        if self.size > MAX_SITES:
            raise ConfigError(
                f"a campaign must have at most {MAX_SITES} faults to choose from, got {self.size}"
            )

    @cached_property
    def strata(self) -> tuple[Stratum, ...]:
        """In the order in which their cells come."""
        return tuple(self._strata())

    def _strata(self) -> Iterable[Stratum]:
        found: dict[tuple, list[tuple[int, int]]] = {}
        for number, cell in enumerate(self.cells):
            if not cell.words:
                continue
            names = {"layer": cell.layer_name, "component": cell.component_name}
            for bit in range(cell.bits) if "bit" in self.stratify else (-1,):
                key = tuple(bit if axis == "bit" else names[axis] for axis in self.stratify)
                sites = cell.words if bit >= 0 else cell.sites
                found.setdefault(key, []).append((number, sites))
        at = self.stratify.index("bit") if "bit" in self.stratify else None
        for number, (key, members) in enumerate(found.items()):
            cells, sites = (np.array(column, np.int64) for column in zip(*members))
            bit = -1 if at is None else key[at]
            yield Stratum(number, dict(zip(self.stratify, key)), cells, bit, sites)

    @property
    def sites(self) -> int:
        """Sites of one image."""
        return sum(cell.sites for cell in self.cells)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Members of each stratum."""
        per_site = self.images if self.each is None else 1
        return tuple(int(s.offsets[-1]) * per_site for s in self.strata)

    @property
    def size(self) -> int:
        """Members of all strata."""
        return self.sites * (self.images if self.each is None else 1)

    @property
    def unit_images(self) -> int:
        """Images a trial has."""
        return self.each or 1

    def split(self, trial: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(stratum, index in its order) of trial numbers."""
        index, stratum = np.divmod(np.asarray(trial, np.int64), len(self.strata))
        return stratum, index

    def trials(self, stratum: int, first: int, last: int) -> np.ndarray:
        """Trial numbers of entries [first, last) of a stratum's order."""
        return np.arange(first, last, dtype=np.int64) * len(self.strata) + stratum

    def to_json(self) -> dict:
        """JSON values from which `from_json` makes the same frame."""
        return {
            "cells": [
                [c.layer, c.layer_name, c.component, c.component_name, c.words, c.bits]
                for c in self.cells
            ],
            "images": self.images,
            "each": self.each,
            "stratify": list(self.stratify),
        }

    @staticmethod
    def from_json(value: dict) -> Frame:
        """The frame of `to_json`; ConfigError for anything else."""
        try:
            cells = tuple(
                Cell(int(a), str(b), int(c), str(d), int(e), int(f), None)
                for a, b, c, d, e, f in value["cells"]
            )
            if len(cells) > 1 << 20 or any(c.words < 0 or not 1 <= c.bits <= 64 for c in cells):
                raise ValueError("sizes out of range")
            each = value["each"]
            return Frame(
                cells, int(value["images"]), None if each is None else int(each),
                tuple(str(axis) for axis in value["stratify"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"a sampling frame must have cells and images, got {error}") from None
