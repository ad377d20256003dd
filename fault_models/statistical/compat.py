"""Choices of the paper's reference implementation (aw_nas), by name.

Each mode is a part of a configuration: {"compat": "mibb-awnas-27d1aeb", "p_m": 1e-4}.
They reproduce what that code computes in distribution, not its random numbers, and
serve for comparison only; its README names commit 27d1aeb for the experiments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .draws import at_random, below
from .features import reciprocal
from .model import FaultModel
from .parameters import probability

COMPAT: dict[str, dict[str, object]] = {
    # Every bias is +2^S, because a setter switches the "max value mode" on again, and
    # the sum is clamped to +-max|x|. Probability 1 / floor(1 / p).
    "mibb-awnas-27d1aeb": {
        "model": "mibb", "grid": "paper", "bits": 8, "probability": "reciprocal",
        "bias": "largest", "clamp": "max-abs", "clamp_gradient": "zero",
    },
    # Later commits: uniform biases, clamped to +-2^S; the probability is still rounded.
    "mibb-awnas": {
        "model": "mibb", "grid": "paper", "bits": 8, "probability": "reciprocal",
        "bias": "uniform", "clamp": "grid", "clamp_gradient": "zero",
    },
    # fixed_point_rram_patch_all.py, which its README names for the weight experiments.
    "adsaf-awnas-all": {"model": "adsaf", "grid": "paper", "bits": 8, "mode": "awnas"},
    # fixed_point_rram_patch_bit.py, which its search script copies: the rate asked for
    # is ignored (0.1 per bit), and no gradient reaches the weights.
    "adsaf-awnas-bit": {
        "model": "adsaf-bits", "grid": "paper", "bits": 8, "cells": "differential",
        "p": 0.1, "sa1_share": 0.16, "gradient": "none",
    },
    # inject_bitflip of aw_nas/objective/fault_injection.py.
    "bitflip-awnas": {"model": "bitflip-awnas", "grid": "paper", "bits": 8},
}  # fmt: skip
"""Mode -> the parameters it fixes."""


@dataclass(frozen=True, kw_only=True)
class AwnasBitFlip(FaultModel):
    """One bit of a faulty feature flips, on a code of half a step.

    p  probability that a value is faulty, used as 1 / floor(1 / p)

    The reference implementation divides by 2^(S-8), not 2^(S-7), so that every code is
    even, then flips one of the 8 low bits of the 32-bit integer, uniformly: bit 7 is
    worth 2^(S-1) and is no sign. Nothing is clamped. Gradient: 1.
    """

    p: float

    name = "bitflip-awnas"
    on_bits = True
    targets = ("features",)
    grids = ("paper",)

    def __post_init__(self):
        super().__post_init__()
        probability("p", self.p)

    def draw(self, shape, *, generator, macs=None):
        """int32 of `shape`: mask of the bit that flips, 0 where there is no fault."""
        return at_random(
            shape,
            reciprocal(self.p),
            generator,
            lambda count: torch.bitwise_left_shift(1, below(self.bits, (count,), generator)),
        )

    def corrupt(self, encoded, faults):
        flipped = (2 * encoded.codes).to(torch.int32) ^ faults
        # Codes of a tensor with nan are nan; as integers they would look sound.
        return 0.5 * flipped + encoded.codes * 0, None
