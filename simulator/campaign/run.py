"""The loop of a campaign: shards out, results in, counted in their order.

Results may come from anywhere and in any order; they are counted and written in the order
of the design. What a campaign finds is therefore the same on one thread, on a cluster and
after any number of kills, and so is its file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fsim.errors import FsimError

from .design import Design
from .tally import Tally, events

_DEATHS = 3
"""Times that workers may die one after another with nothing done in between."""


class Interrupted(FsimError):
    """A campaign was asked to stop; what is done is kept."""


@dataclass(frozen=True, eq=False)
class Stored:
    """Trials that earlier runs of the same campaign have written, sorted by trial.

    trial (t,) int64; outcome (t, images) uint8 codes
    """

    trial: np.ndarray
    outcome: np.ndarray

    def find(self, trials: np.ndarray) -> np.ndarray:
        """(trials,) int64 where each is stored, -1 if it is not."""
        if not len(self.trial):
            return np.full(len(trials), -1)
        at = np.minimum(np.searchsorted(self.trial, trials), len(self.trial) - 1)
        return np.where(self.trial[at] == trials, at, -1)


def run(
    design: Design,
    split: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    tally: Tally,
    engine,
    *,
    stored: Stored,
    write: Callable[[np.ndarray, np.ndarray], None],
    progress: Callable[[Tally], None] = lambda tally: None,
    stopping: Callable[[], bool] = lambda: False,
    part: tuple[int, int] | None = None,
) -> None:
    """Run a campaign to the end of its design.

    split     trials -> (stratum, index) of each
    engine    has submit(trials) -> future of (FAULT rows, OUTCOME rows); `restart` after
              `engine.Died`; `window`, the most shards that should be under way
    stored    trials that need not be run again
    write     is given the rows of new trials, in order
    progress  is called after every shard that was counted
    stopping  asked before every shard; if true, what is under way is finished, counted and
              written, and Interrupted raised
    part      (k, n): only every n-th shard from the k-th on, counted from 1; a fixed design
    """
    number = 0
    for shards in design.stages(tally):
        if part is not None:
            k, n = part
            shards = [s for i, s in enumerate(shards, number) if i % n == k - 1]
        number += len(shards)
        if _stage(design, split, tally, engine, shards, stored, write, progress, stopping):
            return
        if part is None and not design.fixed and design.rule.done(tally, design.sizes):
            return


def _stage(design, split, tally, engine, shards, stored, write, progress, stopping) -> bool:
    """Run the shards of a stage; True if the rule ended the campaign before their end."""
    waiting, pending = deque(shards), deque()
    deaths = 0
    one_by_one = len(design.sizes) == 1 and not design.fixed
    while waiting or pending:
        stop = stopping()
        while waiting and len(pending) < engine.window and not stop:
            shard = np.sort(waiting.popleft())
            at = stored.find(shard)
            missing = shard[at < 0]
            future = engine.submit(missing) if len(missing) else None
            pending.append((shard, at, missing, future))
        if not pending:
            raise Interrupted("stopped")
        shard, at, missing, future = pending[0]
        try:
            result = future.result() if future is not None else None
        except engine.Died as error:
            deaths += 1
            if deaths > _DEATHS:
                raise FsimError(
                    f"workers died {deaths} times without finishing a shard: {error}"
                ) from None
            engine.restart()
            pending = deque(
                (s, a, m, engine.submit(m) if f is not None else None) for s, a, m, f in pending
            )
            continue
        deaths = 0
        pending.popleft()
        _count(design, split, tally, shard, at, missing, result, stored, write)
        progress(tally)
        if one_by_one and design.rule.done(tally, design.sizes):
            engine.drop([future for *_, future in pending if future is not None])
            return True
    return False


def _count(design, split, tally, shard, at, missing, result, stored, write) -> None:
    """Count one shard, and write what was not stored."""
    outcome = np.empty((len(shard), tally.images), np.uint8)
    known = at >= 0
    outcome[known] = stored.outcome[at[known]]
    if result is not None:
        rows, table = result
        outcome[~known] = table["outcome"].reshape(len(missing), tally.images)
    hits = events(outcome, design.rule.metric).sum(axis=1)
    keep = design.rule.keep(tally, hits)
    tally.add(split(shard[:keep])[0], outcome[:keep])
    if result is None:
        return
    if keep < len(shard):
        last = shard[keep - 1]
        rows, table = rows[rows["trial"] <= last], table[table["trial"] <= last]
    write(rows, table)


