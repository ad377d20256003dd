"""Which trials a campaign runs: shards, in an order that earlier results may shape.

A design is a generator of stages. A stage is a list of shards (trial numbers); when all of
them are counted the design is asked for the next. What it yields depends on the counts
alone, so that every engine and every resumed run sees the same shards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fsim.errors import ConfigError
from fsim.simulator.statistics import sample_size
from fsim.simulator.stratified import needed_budget, neyman_allocation

from .rules import Rule
from .tally import Tally

PILOT = 30
"""Trials of each stratum before Neyman's allocation, by default."""

_GROWTH = 2.0  # at most so many times the trials so far in one stage towards a width


@dataclass(frozen=True)
class Allocation:
    """Trials of each stratum that are known before anything runs.

    counts  (strata,) trials of each
    """

    counts: tuple[int, ...]


def date_2009(sizes, margin: float, t: float | None, p: float, rounding: str,
              confidence: float) -> Allocation:  # fmt: skip
    """The finite-population sample size in each stratum (DATE 2009)."""
    return Allocation(
        tuple(
            sample_size(size, margin, t, confidence=confidence, p=p, rounding=rounding)
            for size in sizes
        )
    )


def shards_of(frame_trials, counts, done, size: int) -> list[np.ndarray]:
    """Shards with the next `counts` trials of each stratum, stratum by stratum.

    frame_trials  (stratum, first, last) -> trial numbers
    done          (strata,) trials already planned
    size          trials of a shard
    """
    parts = [
        frame_trials(h, int(first), int(first + count))
        for h, (first, count) in enumerate(zip(done, counts))
        if count
    ]
    if not parts:
        return []
    every = np.concatenate(parts)
    return [every[i : i + size] for i in range(0, len(every), size)]


@dataclass(frozen=True)
class Design:
    """How a campaign samples.

    rule        when to stop
    sizes       members of each stratum; None: unlimited (flips, chips)
    trials_of   (stratum, first, last) -> trial numbers
    allocation  fixed trials of each stratum, or None
    pilot       with strata and no allocation: trials of each before Neyman's allocation
    shard       trials of a shard
    """

    rule: Rule
    sizes: tuple
    trials_of: object
    allocation: Allocation | None
    pilot: int
    shard: int

    def __post_init__(self):
        if self.allocation is not None:
            for count, size in zip(self.allocation.counts, self.sizes):
                if size is not None and count > size:
                    raise ConfigError(f"a stratum has {size} members, got {count} trials of it")

        pilot = sum(min(self.pilot, self.pilot if s is None else s) for s in self.sizes)
        if self.allocation is None and len(self.sizes) > 1 and pilot > self.rule.most:
            raise ConfigError(
                f"{len(self.sizes)} strata with a pilot of {self.pilot} faults each need at least "
                f"{pilot:,} trials, got {self.rule.most:,}: raise --trials (or --max-trials) or "
                "lower --pilot"
            )

    @property
    def fixed(self) -> bool:
        """Whether all trials are known before anything runs."""
        return self.allocation is not None

    def stages(self, tally: Tally) -> Iterator[list[np.ndarray]]:
        """Lists of shards; `tally` is up to date whenever the next list is asked for."""
        strata = len(self.sizes)
        done = np.zeros(strata, np.int64)

        def stage(counts):
            shards = shards_of(self.trials_of, counts, done, self.shard)
            done[:] += counts
            return shards

        if self.allocation is not None:
            yield stage(np.array(self.allocation.counts, np.int64))
            return
        limits = np.array([1 << 62 if s is None else s for s in self.sizes], object)
        if strata == 1:
            while True:  # one shard after another, for as long as the rule wants more
                room = min(int(limits[0]) - int(done[0]), self.rule.most - int(done[0]))
                if room < 1:
                    return
                yield stage(np.array([min(self.shard * 16, room)]))
            return
        pilot = np.array([min(self.pilot, int(limit)) for limit in limits], np.int64)
        yield stage(pilot)
        while True:
            room = self.rule.most - int(done.sum())
            if room < 1 or self.rule.done(tally, self.sizes):
                return
            failures = tally.of(self.rule.metric)
            if self.rule.name == "width":
                wanted = needed_budget(
                    failures, tally.trials, self.sizes, self.rule.value,
                    confidence=self.rule.confidence,
                )  # fmt: skip
                most = math.ceil(_GROWTH * int(done.sum()))
                budget = min(max(wanted, self.shard), most, room)
            else:
                budget = room
            more = neyman_allocation(failures, tally.trials, self.sizes, budget)
            if not more.sum():
                return
            yield stage(more)
