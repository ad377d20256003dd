"""Run hardware faults and count what they do to each layer, given its inputs.

A statistical model of features replaces the faults of one layer's own arithmetic;
what a layer inherits comes through its inputs, in the model as in the machine. So
the sums that a layer's registers, wires and partial sums change are compared with
the sums of the same inputs (`Hooks.accumulated` hands over exactly these), while
the faulty values go on to the next layer. Flipped bits of stored codes and weights
are counted apart: they are another model (iBF).

Features are compared where the models strike them: after the batch normalisation
(folded into the sums here) and before the activation function, on the model's grid
of `bits` bits with the step 2^(S - bits + 1), 2^S >= max|x| of the fault-free
feature over all images (arXiv 2003.10375; `fault_models/statistical/fixed_point.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .. import program as P
from ..batch import Batch
from ..draws import Draws
from ..engine import FaultHooks, clean_hooks
from ..inject import BATCH, slots_of
from ..ops import ArrayOp, Op
from ..protection import read_rows
from ..sites import Placement, SiteSpace
from .counts import Flips, Layer, Products, Tally

SMALLEST_RANGE = 1e-5
"""Floor of max|x|, as the statistical models have it."""


@dataclass(frozen=True)
class Observation:
    """All counts of some trials."""

    products: Products
    acts: Flips
    weights: Flips
    trials: int
    images: int
    faults: int


def observe(
    space: SiteSpace,
    images: np.ndarray,
    model,
    *,
    seed: int,
    trials: int,
    backend: str = "auto",
    on_trial: Callable[[int], None] = lambda done: None,
) -> Observation:
    """Counts over trials of a fault model.

    images    (n, c, h, w) float32 network inputs
    model     of `fsim.fault_models`, for example UpsetRate or BitErrors
    on_trial  called with the number of trials done
    """
    placement = space.placement
    layers = layers_of(placement, images)
    tally = Tally(space, layers, trials * len(images))
    draws, everything = Draws(seed), np.arange(len(images), dtype=np.int64)
    hw_batch = getattr(model, "hw_batch", 1)
    clean, faults = clean_hooks(placement), 0
    weights = placement.accel.component_index("weights")
    for trial in range(trials):
        rows = model.rows(space, trial, everything, draws)
        faults += len(rows)
        if placement.accel.protected:
            key = rows["image"].astype(np.int64)
            rows = read_rows(placement, rows, key, len(images), hw_batch).rows
        tally.written(rows[rows["component"] == weights], len(images), hw_batch)
        for begin in range(0, len(images), BATCH):
            size = min(BATCH, len(images) - begin)
            struck, slot = slots_of(rows, begin, size, weights, hw_batch)
            watch = _Watch(placement, struck, slot, clean, tally, backend)
            watch.unit = trial * len(images) + begin
            P.run(placement.program, images[begin : begin + size], hooks=watch)
        on_trial(trial + 1)
    return Observation(*tally.result(), trials, len(images), faults)


def layers_of(placement: Placement, images: np.ndarray) -> tuple[Layer, ...]:
    """The array operations, with the steps of their features over `images`."""
    program = placement.program
    ops = program.array_ops
    most = dict.fromkeys((op.index for op in ops), 0.0)
    for begin in range(0, len(images), BATCH):
        part = images[begin : begin + BATCH]
        kept = P.run(program, part, keep_acc=[op.index for op in ops]).kept_acc
        for op in ops:
            real = np.abs(kept[op.index] + op.bias) * _real_scale(op)
            most[op.index] = max(most[op.index], float(real.max(initial=0.0)))
    bits, last = placement.accel.operand_bits, program.ops[-1].index
    return tuple(
        Layer(op.index, op.name, placement.lowered[op.index].k, math.prod(op.shape),
              _step(most[op.index], bits), op.index == last)
        for op in ops
    )  # fmt: skip


def _real_scale(op: ArrayOp) -> np.ndarray:
    """(o,) or (1,) float64: real value of one unit of the accumulator."""
    return np.asarray(op.multiplier, np.float64) * op.scale


def _step(most: float, bits: int) -> float:
    mantissa, exponent = math.frexp(max(most, SMALLEST_RANGE))
    return math.ldexp(1.0, exponent - (mantissa == 0.5) - (bits - 1))


class _Watch:
    """Hooks that strike as the machine does and count what each layer's own faults change."""

    def __init__(self, placement, rows, slot, clean, tally, backend):
        self.placement, self.clean, self.tally, self.unit = placement, clean, tally, 0
        self.machine = FaultHooks(placement, Batch(rows, slot), backend)
        own = (rows["component"] < self.machine.acts) | (rows["component"] == self.machine.psums)
        self.own = self.machine
        if not own.all():
            self.own = FaultHooks(placement, Batch(rows[own], slot[own]), backend)

    def stored(self, op: Op, codes: np.ndarray) -> None:
        before = codes.copy()
        self.machine.stored(op, codes)
        self.tally.codes(op, 0, before, codes)

    def loaded(self, op: Op, slot: int, codes: np.ndarray) -> np.ndarray:
        read = self.machine.loaded(op, slot, codes)
        self.tally.codes(op, 1 + slot, codes, read)
        return read

    def accumulated(self, op: ArrayOp, inputs, acc):
        replaced = self.machine.accumulated(op, inputs, acc)
        own = replaced
        if self.own is not self.machine:
            own = self.own.accumulated(op, inputs, acc)
        if own is not None and len(own[0]):
            # Where adders saturate, sums without faults differ from plain arithmetic too.
            plain = None if self.clean is None else self.clean.accumulated(op, inputs, acc)
            self.tally.sums(op, acc, own, plain, self.unit, self.placement.accel.acc_bits)
        return replaced
