"""Faults of a campaign's trials: drawn from a frame, from counts of flips, as chips, or given.

Each population has `draw(trials) -> Drawn` and a `frame` or strata of its own; a trial's
faults are a function of (seed, trial) alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fsim.errors import ConfigError
from fsim.simulator.draws import Draws
from fsim.simulator.model_rows import model_rows, numbered_rows
from fsim.simulator.sampling import MAX_SITES, draw_sites, entries_of_order
from fsim.simulator.sites import SiteSpace
from fsim.types import FAULT

from .frame import Frame

# Random streams of this family, beyond those of blocks and upsets; strata count up.
_ORDER = 1 << 24
_IMAGES, _FLIPS, _FLIP_IMAGE, _FLIP_SCRUB = _ORDER - 1, _ORDER - 2, _ORDER - 3, _ORDER - 4


@dataclass(frozen=True, eq=False)
class Drawn:
    """Faults of some trials.

    trial  (t,) int64 ascending
    rows   (f,) FAULT, sorted by trial; begin (t + 1,) where each trial's begin
    image  (t, e) int64: the images each trial meets, ascending
    """

    trial: np.ndarray
    rows: np.ndarray
    begin: np.ndarray
    image: np.ndarray

    @property
    def single(self) -> bool:
        """Whether every trial has exactly one row."""
        return len(self.rows) == len(self.trial) and bool((np.diff(self.begin) == 1).all())

    def some(self, which: np.ndarray) -> Drawn:
        """Trials `which` (s,) int64 ascending alone."""
        sizes = np.diff(self.begin)[which]
        begin = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        index = np.repeat(self.begin[which] - begin[:-1], sizes) + np.arange(begin[-1])
        return Drawn(self.trial[which], self.rows[index], begin, self.image[which])


class SingleFaults:
    """One fault a trial, without repetition, from every stratum of a frame.

    space  where faults may strike; model: a fault model with `cells` and `rows_at`
    each, stratify  as in Frame
    """

    def __init__(self, space: SiteSpace, model, images: int, *, each=None, stratify=(), seed=0):
        self.space, self.model, self.seed = space, model, seed
        self.frame = Frame(model.cells(space), images, each, tuple(stratify))

    def draw(self, trials: np.ndarray) -> Drawn:
        """One FAULT row a trial; it carries its image, or -1 where a fault meets several."""
        frame = self.frame
        trial = np.sort(np.asarray(trials, np.int64))
        stratum, index = frame.split(trial)
        which, word, bit = (np.empty(len(trial), np.int64) for _ in range(3))
        image = np.empty((len(trial), frame.unit_images), np.int64)
        order = np.argsort(stratum, kind="stable")
        cuts = np.flatnonzero(np.diff(stratum[order])) + 1
        for here in np.split(order, cuts) if len(order) else ():
            number = int(stratum[here[0]])
            mine = frame.strata[number]
            member = entries_of_order(
                frame.sizes[number], index[here], seed=self.seed, stream=_ORDER + number
            )
            if frame.each is None:
                member, image[here, 0] = np.divmod(member, frame.images)
            cell = np.searchsorted(mine.offsets, member, "right") - 1
            rest = member - mine.offsets[cell]
            which[here] = mine.cells[cell]
            if mine.bit >= 0:
                word[here], bit[here] = rest, mine.bit
            else:
                bits = np.array([frame.cells[c].bits for c in mine.cells])[cell]
                word[here], bit[here] = np.divmod(rest, bits)
        rows = numbered_rows(self.model, self.space, frame.cells, which, word, bit)
        rows["trial"] = trial
        if frame.each is None:
            rows["image"] = image[:, 0]
        elif frame.each == frame.images:
            image[...] = np.arange(frame.images)
        else:
            for number, one in enumerate(trial.tolist()):
                image[number] = self._images_of(one)
        return Drawn(trial, rows, np.arange(len(trial) + 1), image)

    def _images_of(self, trial: int) -> np.ndarray:
        """The images that a fault meets: without repetition, sorted."""
        wanted, size = self.frame.each, self.frame.each
        while True:  # a prefix of an endless sequence, until enough are distinct
            found = draw_sites(
                self.frame.images, size, seed=self.seed, stream=_IMAGES, trial=trial
            )  # fmt: skip
            distinct = found[np.sort(np.unique(found, return_index=True)[1])]
            if len(distinct) >= wanted:
                return np.sort(distinct[:wanted])
            size += 2 * (wanted - len(distinct)) + 8


class Flips:
    """Exactly j flips of distinct bits in one inference, for each j of some counts.

    Under a bit error rate p every set of j bits is equally likely given j, and j is
    Binomial(bits, p): what these trials find answers every rate (`flip_strata`).

    flips  ascending counts, the strata; model: a fault model of memory bits with cells
    Trial = index x strata + stratum.
    """

    def __init__(self, space: SiteSpace, model, images: int, flips, *, seed=0):
        self.space, self.model, self.images, self.seed = space, model, images, seed
        self.flips = tuple(int(j) for j in flips)
        self.cells = model.cells(space)
        self.bits = sum(cell.sites for cell in self.cells)
        rising = all(a < b for a, b in zip(self.flips, self.flips[1:]))
        if not self.flips or self.flips[0] < 1 or self.flips[-1] > self.bits or not rising:
            raise ConfigError(
                f"numbers of flips must rise from 1 to at most {self.bits}, the exposed bits, "
                f"got {', '.join(map(str, self.flips[:8]))}"
            )
        buffers = space.accel.buffers
        self._intervals = np.array(
            [c.source.scrub_intervals(buffers[c.source.memory]) for c in self.cells]
        )
        self._offsets = np.concatenate([[0], np.cumsum([cell.sites for cell in self.cells])])

    def draw(self, trials: np.ndarray) -> Drawn:
        trial = np.sort(np.asarray(trials, np.int64))
        image = np.empty((len(trial), 1), np.int64)
        parts, events = [], []
        for number, one in enumerate(trial.tolist()):
            wanted = size = self.flips[one % len(self.flips)]
            image[number] = draw_sites(
                self.images, 1, seed=self.seed, stream=_FLIP_IMAGE, trial=one
            )  # fmt: skip
            while True:
                found = draw_sites(self.bits, size, seed=self.seed, stream=_FLIPS, trial=one)
                distinct = found[np.sort(np.unique(found, return_index=True)[1])]
                if len(distinct) >= wanted:
                    break
                size += 2 * (wanted - len(distinct)) + 8
            parts.append(distinct[:wanted])
            events.append(np.arange(wanted))
        sizes = np.array([len(part) for part in parts], np.int64)
        position = np.concatenate([np.zeros(0, np.int64), *parts])
        which = np.searchsorted(self._offsets, position, "right") - 1
        bits = np.array([cell.bits for cell in self.cells])[which]
        word, bit = np.divmod(position - self._offsets[which], bits)
        rows = self.model.rows_at(self.space, self.cells, which, word, bit)
        rows["trial"] = np.repeat(trial, sizes)
        rows["image"] = np.repeat(image[:, 0], sizes)
        if self._intervals.max() > 1:
            # Modulo: uniform but for one part in 2^30 at the most.
            drawn = [
                draw_sites(MAX_SITES, size, seed=self.seed, stream=_FLIP_SCRUB, trial=int(one))
                for one, size in zip(trial, sizes)
            ]
            rows["col"] = np.concatenate(drawn) % self._intervals[which]
        rows["event"] = np.concatenate([np.zeros(0, np.int64), *events])
        return Drawn(trial, rows, np.concatenate([[0], np.cumsum(sizes)]), image)


class Chips:
    """Machines with fixed fault maps: each trial is one chip, which meets all images.

    model  a fault model whose rows last for a whole trial (image -1)
    """

    def __init__(self, space: SiteSpace, model, images: int, *, seed=0):
        self.space, self.model, self.images, self.draws = space, model, images, Draws(seed)

    def draw(self, trials: np.ndarray) -> Drawn:
        trial = np.sort(np.asarray(trials, np.int64))
        every = np.arange(self.images, dtype=np.int64)
        parts = [model_rows(self.model, self.space, int(one), every, self.draws) for one in trial]
        rows = np.concatenate([np.zeros(0, FAULT), *parts])
        begin = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        return Drawn(trial, rows, begin, np.broadcast_to(every, (len(trial), self.images)))


class FaultList:
    """Faults that were given: each trial's rows as they are.

    rows  FAULT sorted by trial. Rows of a trial have one image, or image -1: all images
    """

    def __init__(self, rows: np.ndarray, images: int):
        self.rows, self.images = rows, images
        self.numbers, self._first = np.unique(rows["trial"], return_index=True)
        self._end = np.append(self._first[1:], len(rows))
        first = rows["image"][self._first]
        if not np.array_equal(np.repeat(first, self._end - self._first), rows["image"]):
            raise ConfigError("all faults of a trial must have one image, or -1 for all images")
        self.every = bool(len(first)) and bool((first < 0).all())
        if not self.every and (first < 0).any():
            raise ConfigError(
                "a fault list must have an image for every trial, or -1 in all of them"
            )

    def draw(self, trials: np.ndarray) -> Drawn:
        trial = np.sort(np.asarray(trials, np.int64))
        at = np.searchsorted(self.numbers, trial)
        sizes = self._end[at] - self._first[at]
        begin = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        index = np.repeat(self._first[at] - begin[:-1], sizes) + np.arange(begin[-1])
        rows = self.rows[index]
        if self.every:
            image = np.broadcast_to(np.arange(self.images), (len(trial), self.images))
        else:
            image = rows["image"][begin[:-1]].astype(np.int64)[:, None]
        return Drawn(trial, rows, begin, image)
