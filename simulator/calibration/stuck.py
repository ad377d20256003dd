"""adSAF from stuck cells of the weight memory: codes written against codes read.

adSAF on bits (FTT-NAS, arXiv 2003.10375; AdSAFBits): every bit of a code is a cell that is
stuck with p, at 1 for a share of the stuck cells. A cell that is stuck at what was written
in it shows nothing, so that both rates are counted where they can be seen:

    p0 = P(stuck at 0)   cells read 0 of the cells written 1
    p1 = P(stuck at 1)   cells read 1 of the cells written 0
    p = p0 + p1          sa1_share = p1 / p

The two groups of cells are disjoint and cells independent, so p0 and p1 are two
independent binomial shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fsim.errors import ConfigError

from ..draws import Draws
from ..sites import SiteSpace
from ..statistics import Interval, clopper_pearson
from ..struck import settled
from .fits import CONFIDENCE, POOR_P, chi_square


@dataclass(frozen=True, eq=False)
class StuckCounts:
    """Bits of stored weights as written and as read, over all trials.

    names    of the layers; a layer that is used twice counts once
    bits     of a word
    written  (layers, bits, 2) cells written 0 and 1, bit 0 least significant
    wrong    (layers, bits, 2) of these, read as the other value
    codes    (layers,) of the written codes: (words,) int64
    differences  {code read - code written: how many words}
    faults   stuck cells that were drawn
    """

    names: tuple[str, ...]
    bits: int
    written: np.ndarray
    wrong: np.ndarray
    codes: tuple[np.ndarray, ...]
    differences: dict[int, int]
    trials: int
    faults: int


@dataclass(frozen=True, eq=False)
class StuckFit:
    """adSAF on bits fitted to the counts.

    p0, p1    rates of cells stuck at 0 and at 1, Clopper-Pearson
    p, sa1_share   with intervals that hold together (see `fit_stuck`); share None: nothing stuck
    expected  (layers,) wrong bits of the fit; observed those found
    chi2, dof, p_value  fit over layers, bits and written values; p_value None where fewer
              than two cells of the table can be compared
    poor      why the model describes this poorly; empty: nothing speaks against it
    """

    p0: Interval
    p1: Interval
    p: Interval
    sa1_share: Interval | None
    observed: np.ndarray
    expected: np.ndarray
    chi2: float
    dof: int
    p_value: float | None
    poor: tuple[str, ...]


def observe_stuck(
    space: SiteSpace,
    model,
    *,
    seed: int,
    trials: int,
    on_trial: Callable[[int], None] = lambda done: None,
) -> StuckCounts:
    """Counts over the chips of StuckCells; no image runs, since the codes are all there is.

    Raises ConfigError for layers whose weights have different widths, and for protected ones.
    """
    if "weights" in space.accel.protected:
        raise ConfigError(
            "stuck cells must be of weights without protection to fit adSAF, whose bits fail "
            f"independently, got {space.accel.buffers['weights'].protection}"
        )
    holders = {holder.number: holder for _, holder in model.blocks(space)}
    blocks = [holder for _, holder in sorted(holders.items())]
    bits = blocks[0].bits
    if any(block.bits != bits for block in blocks):
        widths = sorted({block.bits for block in blocks})
        raise ConfigError(f"weights must be of one width to fit adSAF, got {widths} bits")
    program, everyone = space.placement.program, np.zeros(0, np.int64)
    written = np.zeros((len(blocks), bits, 2), np.int64)
    wrong = np.zeros_like(written)
    places = np.arange(bits)
    most = 1 << bits
    differences, faults, draws = np.zeros(2 * most, np.int64), 0, Draws(seed)
    codes = tuple(program.ops[block.layer].weight.reshape(-1) for block in blocks)
    for trial in range(trials):
        rows = model.rows(space, trial, everyone, draws)
        faults += len(rows)
        machine, left = settled(space.placement, rows)
        assert not len(left), "stuck cells are taken in whole"
        for at, (block, before) in enumerate(zip(blocks, codes)):
            after = machine.program.ops[block.layer].weight.reshape(-1)
            was = (before[:, None] >> places) & 1
            flipped = ((before ^ after)[:, None] >> places) & 1
            for value in (0, 1):
                mine = was == value
                written[at, :, value] += mine.sum(0)
                wrong[at, :, value] += (mine & (flipped == 1)).sum(0)
            differences += np.bincount(after - before + most, minlength=2 * most)
        on_trial(trial + 1)
    found = {int(i) - most: int(differences[i]) for i in np.flatnonzero(differences)}
    names = tuple(block.name for block in blocks)
    return StuckCounts(names, bits, written, wrong, codes, found, trials, faults)


def fit_stuck(written: np.ndarray, wrong: np.ndarray) -> StuckFit:
    """Rates of stuck cells from (layers, bits, 2) counts; see StuckCounts.

    The intervals of p and sa1_share are the extremes over a rectangle of (p0, p1) that
    holds both with 95 %: its sides are Clopper-Pearson at sqrt(95 %), p0 and p1 being
    independent. So p and the share lie in theirs at once, with 95 % or more.
    """
    n = written.sum((0, 1))
    k = wrong.sum((0, 1))
    p1, p0 = (clopper_pearson(int(k[v]), int(n[v]), confidence=CONFIDENCE) for v in (0, 1))
    side = math.sqrt(CONFIDENCE)
    one, zero = (clopper_pearson(int(k[v]), int(n[v]), confidence=side) for v in (0, 1))
    share = None
    e0, e1 = (0.0 if math.isnan(i.estimate) else i.estimate for i in (p0, p1))
    method = "Clopper-Pearson of both rates"
    low, high = zero.low + one.low, zero.high + one.high
    p = Interval(min(1.0, low), min(1.0, high), min(1.0, e0 + e1), method, CONFIDENCE)
    if e0 + e1:
        low = one.low / (one.low + zero.high)
        high = one.high / (one.high + zero.low)
        share = Interval(low, high, e1 / (e0 + e1), method, CONFIDENCE)
    rates = np.array([e1, e0])
    expected = written * rates
    variance = expected * (1 - rates)
    chi2, dof, value = chi_square(
        wrong.reshape(-1), expected.reshape(-1), variance.reshape(-1), expected.reshape(-1), 2
    )
    poor = ()
    if value is not None and value < POOR_P:
        poor = ("stuck cells are not equally likely over layers and bits",)
    return StuckFit(
        p0, p1, p, share, wrong.sum((1, 2)), expected.sum((1, 2)), chi2, dof, value, poor
    )
