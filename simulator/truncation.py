"""Networks on machines whose products lose low bits before they are added.

Such a machine keeps floor(x w / 2^t) of a product and adds in few bits that wrap. Two
things make a network of integers fit it, both chosen on the calibration images:

t        of a layer, the smallest for which no sum passes half of the accumulator's range
         there: twice the largest sum still fits. An output whose sums are more than 4 times
         the median output's (a large bias over small weights) does not set t for all: its
         weights get a coarser scale. Bias and requantisation are of sums in units of 2^t
         products.
centred  floor takes something from every product, (2^t - 1) / 2^(t + 1) units on average
         where the low bits of products are evenly spread. What it takes from a layer's sums
         on average, output by output, is measured and given back in the bias.

The method is fsim's own; Chen et al., IEEE JSSC 52(1), 2017 state 16-bit fixed point with
truncation at a configurable position and not how positions were found.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from . import exact
from . import program as P

IMAGES = 64
"""Calibration images, at most, on which the loss is measured."""

PASSES = 2
"""The loss of a layer depends on the codes it reads, which the biases before it move."""


OUTLIER = 4.0
"""Times the median output's largest sum beyond which an output does not set t."""


def shift_for(sums: np.ndarray, acc_bits: int) -> int:
    """Low bits that products lose: the smallest t >= 0 with |sum| / 2^t <= 2^(acc_bits - 2).

    sums  (o,) float64 largest |sum| of whole products of each output
    """
    largest = min(float(sums.max()), OUTLIER * float(np.median(sums)) or np.inf)
    room = 2.0 ** (acc_bits - 2)
    return max(0, math.ceil(math.log2(largest / room))) if largest > room else 0


def centred(program: P.Program, images: np.ndarray) -> P.Program:
    """The same program with the mean loss of truncation in its biases.

    images  (n, c, ...) float32 calibration images
    """
    if not program.truncated:
        return program
    found = program
    for _ in range(PASSES):
        lost = _mean_loss(found, images[:IMAGES])
        ops = tuple(
            replace(op, bias=op.bias + lost[op.index]) if op.index in lost else op
            for op in program.ops
        )
        found = replace(program, ops=ops)
    return found


def _mean_loss(program: P.Program, images: np.ndarray) -> dict[int, np.ndarray]:
    """Operation -> (o,) int64: mean of sum(x w) / 2^t less the sum of truncated products.

    A matmul, whose bias is one number, has one.
    """
    struck = [op for op in program.array_ops if op.truncate]
    wanted = {i for op in struck for i in op.inputs}
    kept = P.run(program, images, keep=wanted).kept
    lost = {}
    for op in struck:
        codes = [np.ascontiguousarray(kept[i]) for i in op.inputs]
        whole = exact.prepare(replace(program.problem(op), truncate=0))(*codes)
        short = program.ready(op).exact(*codes)
        # The truncated sums are modulo 2^32, and the loss is less than k units.
        loss = whole.astype(np.float64) / 2.0**op.truncate - short
        loss -= np.rint(loss / 2.0**32) * 2.0**32
        mean = loss.reshape(-1, loss.shape[-1]).mean(0)
        lost[op.index] = np.rint(mean if len(op.bias) > 1 else mean.mean(keepdims=True)).astype(
            np.int64
        )
    return lost
