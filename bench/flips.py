"""Single accumulator flips of a network as differences, timed by part, and the slow way.

A fault is one flipped bit of one accumulator of one convolution in one image, uniform over
all bits of all accumulators of all convolutions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from fsim.fault_models.bit_errors import OneFlip
from fsim.simulator import program as P
from fsim.simulator.batch import Batch
from fsim.simulator.delta import Delta, Propagated
from fsim.simulator.draws import Draws
from fsim.simulator.engine import FaultHooks
from fsim.simulator.sites import Placement, select
from fsim.simulator.statistics import classify, top1

PARTS = ("drawing sites", "accumulators to codes", "propagation", "classification")


@dataclass
class Round:
    """What one round of faults gave.

    seconds  by part; outcome (f,) codes of statistics.Outcome
    """

    seconds: dict[str, float]
    image: np.ndarray
    rows: np.ndarray
    found: Propagated
    outcome: np.ndarray

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def rate(self) -> float:
        return len(self.rows) / self.total


class Campaign:
    """Faults in the accumulators of all convolutions of a network."""

    def __init__(self, placement: Placement, images: np.ndarray, threads: int = 1):
        self.placement, self.images, self.threads = placement, images, threads
        convolutions = [op.name for op in placement.program.ops if isinstance(op, P.Conv)]
        self.space = select(placement, convolutions, ("psums",))
        self.faults, self.draws = OneFlip(("psums",)), Draws(0)
        start = time.perf_counter()
        self.delta = Delta(placement, images)
        self.golden_seconds = time.perf_counter() - start
        self.top1 = top1(self.delta.logits)

    def run(self, count: int, number: int) -> Round:
        """`count` faults, every image struck as often; other numbers are other faults."""
        clock = [time.perf_counter()]

        def lap():
            clock.append(time.perf_counter())

        rows = self.faults.rows(self.space, number, np.arange(count), self.draws)
        image = rows["image"] % len(self.images)
        lap()
        struck = self.delta.psum_hits(image, rows)
        lap()
        found = self.delta.propagate(struck, threads=self.threads)
        lap()
        scale = self.placement.program.ops[-1].multiplier
        classes = top1(found.acc.astype(np.float32) * scale)
        outcome = classify(self.delta.acc[image], found.acc, self.top1[image], classes)
        lap()
        seconds = dict(zip(PARTS, np.diff(clock).tolist()))
        return Round(seconds, image, rows, found, outcome)


@dataclass(frozen=True)
class Compared:
    """A sample run again as a whole.

    wrong    faults whose sums are not those of the whole run, of `faults`
    windows  multiply-adds a fault, all inputs of every pixel that reads a changed one
    changed  the same, changed inputs alone
    """

    faults: int
    wrong: int
    windows: float
    changed: float


def compare(campaign: Campaign, done: Round, count: int) -> Compared:
    """The first faults of a round against the slow way: the whole network for each fault."""
    program = campaign.placement.program
    image, rows = done.image[:count], done.rows[:count]
    convolutions = [op for op in program.ops if isinstance(op, P.Conv)]
    sources = sorted({op.inputs[0] for op in convolutions})
    golden = P.run(program, campaign.images, keep=sources).kept
    hooks = FaultHooks(campaign.placement, Batch(rows, np.arange(len(rows))))
    whole = P.run(program, campaign.images[image], hooks=hooks, keep=sources)
    wrong = int((whole.acc != done.found.acc[: len(rows)]).any(1).sum())
    windows = changed = 0
    for op in convolutions:
        source = op.inputs[0]
        differs = (whole.kept[source] != golden[source][image]).sum(-1).astype(np.float32)
        if not differs.any():
            continue
        out, per_group, height, width = op.weight.shape
        left, right, top, bottom = op.padding
        padded = F.pad(torch.from_numpy(differs)[:, None], (left, right, top, bottom))
        window = torch.ones(1, 1, height, width)
        reads = F.conv2d(padded, window, stride=op.stride, dilation=op.dilation)
        windows += int((reads > 0).sum()) * op.weight.size
        changed += int(reads.sum()) * (out // op.groups)
    return Compared(len(rows), wrong, windows / len(rows), changed / len(rows))
