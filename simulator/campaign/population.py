"""What a campaign draws from: every (fault site, image), numbered and cut into strata.

A site is a bit of a register in a cycle, a bit of a stored word in a residency, or a bit
of a register that is stuck for good. Transient faults strike one inference: the
population is sites x images. Of lasting damage, and where every fault is to meet several
images, the fault is the unit: the population is the sites, and each meets the images
that a campaign gives it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fsim.errors import ConfigError
from fsim.simulator.sampling import MAX_SITES, entries_of_order
from fsim.simulator.sites import SiteSpace

AXES = ("layer", "component", "bit")
"""What strata may be told apart by."""

_ORDER_STREAM = 1 << 24  # random orders of strata; images of a fault use the next one
_IMAGES_STREAM = _ORDER_STREAM - 1


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


class Population:
    """The members of a campaign.

    space     where faults may strike
    model     a fault model with `cells` and `rows_at` (see fault_models.cells)
    images    images of the run
    each      images that a fault meets; None: one, and (site, image) is the member
    stratify  axes of AXES that strata are told apart by
    seed      of the random orders
    """

    def __init__(
        self,
        space: SiteSpace,
        model,
        images: int,
        *,
        each: int | None = None,
        stratify: Iterable[str] = (),
        seed: int = 0,
    ):
        if each is not None and not 1 <= each <= images:
            raise ConfigError(f"a fault can meet 1 to {images} images, got {each}")
        self.space, self.model, self.images, self.each = space, model, images, each
        self.seed, self.stratify = seed, tuple(stratify)
        unknown = [axis for axis in self.stratify if axis not in AXES]
        if unknown or len(set(self.stratify)) < len(self.stratify):
            raise ConfigError(
                f"strata must be told apart by {', '.join(AXES)}, each once, "
                f"got {','.join(self.stratify)}"
            )
        self.cells = model.cells(space)
        self.strata = tuple(self._strata())
        if self.size > MAX_SITES:
            raise ConfigError(
                f"a campaign must have at most {MAX_SITES} faults to choose from, got {self.size}"
            )

    def _strata(self) -> Iterable[Stratum]:
        found: dict[tuple, list[tuple[int, int]]] = {}
        for number, cell in enumerate(self.cells):
            if not cell.words:
                continue
            names = {"layer": cell.layer_name, "component": cell.component_name}
            bits = range(cell.bits) if "bit" in self.stratify else (-1,)
            for bit in bits:
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
    def sizes(self) -> np.ndarray:
        """(strata,) int64 members of each stratum."""
        per_site = self.images if self.each is None else 1
        return np.array([int(s.offsets[-1]) * per_site for s in self.strata], np.int64)

    @property
    def size(self) -> int:
        """Members of all strata."""
        return sum(int(size) for size in self.sizes)

    def split(self, trial: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(stratum, index in its random order) of trial numbers."""
        index, stratum = np.divmod(np.asarray(trial, np.int64), len(self.strata))
        return stratum, index

    def trials(self, stratum: int, first: int, last: int) -> np.ndarray:
        """Trial numbers of entries [first, last) of a stratum's order."""
        return np.arange(first, last, dtype=np.int64) * len(self.strata) + stratum

    def draw(self, trial: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The faults of some trials.

        Returns (rows, image): one FAULT row a trial, and (trials, each or 1) int64 images
        that it meets. Without `each` a row carries its image, else -1.
        """
        trial = np.asarray(trial, np.int64)
        stratum, index = self.split(trial)
        which, word, bit = (np.empty(len(trial), np.int64) for _ in range(3))
        image = np.empty((len(trial), self.each or 1), np.int64)
        for number in np.unique(stratum).tolist():
            here = np.flatnonzero(stratum == number)
            mine = self.strata[number]
            member = entries_of_order(
                int(self.sizes[number]), index[here], seed=self.seed, stream=_ORDER_STREAM + number
            )
            if self.each is None:
                member, image[here, 0] = np.divmod(member, self.images)
            cell = np.searchsorted(mine.offsets, member, "right") - 1
            rest = member - mine.offsets[cell]
            which[here] = mine.cells[cell]
            if mine.bit >= 0:
                word[here], bit[here] = rest, mine.bit
            else:
                bits = np.array([self.cells[c].bits for c in mine.cells])[cell]
                word[here], bit[here] = np.divmod(rest, bits)
        rows = self.model.rows_at(self.space, self.cells, which, word, bit)
        rows["trial"] = trial
        if self.each is None:
            rows["image"] = image[:, 0]
        elif self.each == self.images:
            image[...] = np.arange(self.images)
        else:
            for number, one in enumerate(trial.tolist()):
                image[number] = self._images_of(one)
        return rows, image

    def _images_of(self, trial: int) -> np.ndarray:
        """The images that a fault meets: without repetition, sorted."""
        drawn = np.empty(0, np.int64)
        size = self.each
        while len(drawn) < self.each:
            from fsim.simulator.sampling import draw_sites

            found = draw_sites(
                self.images, size, seed=self.seed, stream=_IMAGES_STREAM, trial=trial
            )
            drawn = found[np.sort(np.unique(found, return_index=True)[1])]
            size += 2 * (self.each - len(drawn)) + 8
        return np.sort(drawn[: self.each])

    def describe(self) -> dict:
        """Sizes as JSON values, for a plan."""
        return {
            "sites_per_image": self.sites,
            "members": self.size,
            "strata": len(self.strata),
            "images_per_fault": self.each or 1,
            "log10_members": round(math.log10(max(self.size, 1)), 2),
        }
