"""Faults of weights in RRAM crossbars: stuck cells and variation of the conductance.

adSAF (arbitrarily distributed stuck-at faults) is the weight model of FTT-NAS
(arXiv 2003.10375), section 3; whole weights follow its reference implementation,
the formula on bits is recalled from the paper. The paper names the two laws of
variation, but their printed formulas were not available: see the classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fsim.errors import ConfigError

from ..stuck_cells import SA1_SHARE
from .draws import LEAST, at_random, bit_masks, threshold, uniform, words
from .features import sign_extended
from .model import FaultModel
from .parameters import at_least, between, choice, probability

HEALTHY, STUCK_AT_0, STUCK_AT_1 = 0, 1, 2
"""States of a cell in the fault maps of AdSAF."""


@dataclass(frozen=True, kw_only=True)
class AdSAF(FaultModel):
    """Whole weights stuck: each weight is the difference of two cells, w = w+ - w-.

    p          probability that a cell is stuck
    sa1_share  share of stuck cells that are stuck at 1

    A cell holds the magnitude of a weight of its sign, else 0. A cell stuck at 1 reads
    m = max|w| of the quantised tensor, a cell stuck at 0 reads 0; the two cells of a
    weight are independent. Gradient: 0 at a struck weight, that is where either cell is
    stuck at 1 or the cell in use is stuck at 0; 1 elsewhere. m counts as a constant.

    mode "awnas" is the reference implementation: of floor(100 / p) equally likely
    numbers, 17 are stuck at 1 and 83 at 0 (sa1_share has no effect), and where both
    cells of a negative weight are stuck at 1 the weight stays as it was.
    """

    p: float
    sa1_share: float = SA1_SHARE
    mode: str = "paper"

    name = "adsaf"
    targets = ("weights",)

    def __post_init__(self):
        super().__post_init__()
        probability("p", self.p)
        probability("sa1_share", self.sa1_share)
        choice("mode", self.mode, ("paper", "awnas"))
        if self.mode == "awnas" and self.sa1_share != SA1_SHARE:
            raise ConfigError(
                f"sa1_share must be {SA1_SHARE} in mode awnas, which cannot change it, "
                f"got {self.sa1_share!r}"
            )

    @property
    def rates(self) -> tuple[float, float]:
        """Probabilities of a cell to be stuck at 0 and to be stuck at 1."""
        if self.mode == "awnas":
            numbers = int(100 / self.p) if self.p > LEAST else math.inf
            return 83 / numbers, 17 / numbers
        return self.p * (1.0 - self.sa1_share), self.p * self.sa1_share

    def draw(self, shape, *, generator, macs=None):
        """(2, *shape) int8: state of the positive and of the negative cell of each weight."""
        sa0, sa1 = self.rates
        share = threshold(sa1 / (sa0 + sa1)) if sa0 + sa1 else 0

        def states(count: int) -> torch.Tensor:
            return (words((count,), generator) < share).to(torch.int32).add_(STUCK_AT_0)

        return at_random((2, *shape), sa0 + sa1, generator, states).to(torch.int8)

    def corrupt(self, encoded, faults):
        w = encoded.codes
        most = w.abs().amax() if w.numel() else encoded.step
        stuck, at_1 = faults != HEALTHY, faults == STUCK_AT_1
        held = torch.stack((w.clamp_min(0), (-w).clamp_min(0)))
        struck = (at_1 | (stuck & (held > 0))).any(0)
        read = held.masked_fill_(stuck, 0)
        # both at 1: +m - m
        codes = read[0] - read[1] + most * (at_1[0].to(w.dtype) - at_1[1].to(w.dtype))
        if self.mode == "awnas":
            codes = torch.where(at_1[0] & at_1[1] & (w < 0), w, codes)
        return codes, ~struck


@dataclass(frozen=True, kw_only=True)
class AdSAFBits(FaultModel):
    """Bits of the code stuck: every bit is a cell of its own.

    p          probability that a cell is stuck
    sa1_share  share of stuck cells that are stuck at 1

    code' = (code & ~stuck) | (stuck & ones); each bit of `stuck` is 1 with p and each
    bit of `ones` with sa1_share, all independent.

    cells "twos-complement": the `bits` bits of the code on the hardware grid, as the
    paper's formula has it. cells "differential": bits - 1 bits of magnitude on each of
    two arrays, w = w+ - w-; the magnitude 2^(bits-1) has one bit more, which cannot be
    stuck.

    Gradient "unchanged": 1 where the code is what was written, 0 where stuck bits changed
    it; half of the stuck bits hold the right value and cost nothing. "identity": 1
    everywhere; "none": 0 everywhere, which is what the reference implementation does.
    """

    grid: str = "hardware"
    p: float
    sa1_share: float = SA1_SHARE
    cells: str = "twos-complement"
    gradient: str = "unchanged"

    name = "adsaf-bits"
    on_bits = True
    targets = ("weights",)

    def __post_init__(self):
        super().__post_init__()
        probability("p", self.p)
        probability("sa1_share", self.sa1_share)
        choice("cells", self.cells, ("twos-complement", "differential"))
        choice("gradient", self.gradient, ("unchanged", "identity", "none"))
        if self.cells == "twos-complement":
            choice("grid with cells 'twos-complement'", self.grid, ("hardware",))

    def draw(self, shape, *, generator, macs=None):
        """(arrays, 2, *shape) int32: masks of stuck bits and of ones; one array or two."""
        differential = self.cells == "differential"
        bits = self.bits - differential
        size = (1 + differential, *shape)
        stuck = bit_masks(size, bits, self.p, generator)
        ones = bit_masks(size, bits, self.sa1_share, generator)
        return torch.stack((stuck, stuck & ones), 1)

    def corrupt(self, encoded, faults):
        written = encoded.codes.to(torch.int32)
        if self.cells == "differential":
            parts = torch.stack((written.clamp_min(0), (-written).clamp_min(0)))
            read = (parts & ~faults[:, 0]) | faults[:, 1]
            codes = read[0] - read[1]
        else:
            codes = sign_extended((written & ~faults[0, 0]) | faults[0, 1], self.bits)
        passes = None
        if self.gradient != "identity":
            passes = (codes == written) & (self.gradient == "unchanged")
        # Codes of a tensor with nan are nan; as integers they would look sound.
        return codes + encoded.codes * 0, passes


@dataclass(frozen=True, kw_only=True)
class _Variation(FaultModel):
    """Each quantised weight is read times a positive random factor.

    sigma  spread of the law, without unit

    The result lies between the codes. Gradient: the factor, since d(w * a) / dw = a.
    """

    sigma: float

    targets = ("weights",)

    def __post_init__(self):
        super().__post_init__()
        at_least("sigma", self.sigma, 0.0)

    def corrupt(self, encoded, faults):
        factor = faults.to(encoded.codes.dtype)
        return encoded.codes * factor, factor


@dataclass(frozen=True, kw_only=True)
class LogNormalVariation(_Variation):
    """w' = w * exp(sigma * n) with n standard normal: the conductance is log-normal.

    The median of the factor is 1 and its mean exp(sigma^2 / 2). FTT-NAS writes
    LogNormal(w0; sigma) without more that could be retrieved; this reading is common
    for RRAM (for example Chen et al., DATE 2017) and is an assumption here.
    """

    name = "log-normal"

    def draw(self, shape, *, generator, macs=None):
        """float32 of `shape`: the factors."""
        normal = torch.special.ndtri(uniform(shape, generator))
        return normal.mul_(self.sigma).exp_().float()


@dataclass(frozen=True, kw_only=True)
class ReciprocalNormalVariation(_Variation):
    """w' = w / (1 + sigma * n) with n standard normal: the resistance is normal.

    least_resistance  the law of the relative resistance 1 + sigma * n is cut off below
                      this positive value (and renormalised), because a resistance is
                      positive and a cell's conductance bounded

    FTT-NAS writes ReciprocalNormal(w0; sigma) without more that could be retrieved;
    this reading, and the cut, are assumptions here.
    """

    least_resistance: float = 0.1

    name = "reciprocal-normal"

    def __post_init__(self):
        super().__post_init__()
        between("least_resistance", self.least_resistance, 0.0, 1.0)

    def draw(self, shape, *, generator, macs=None):
        """float32 of `shape`: the factors, at most 1 / least_resistance."""
        u = uniform(shape, generator)
        if self.sigma == 0.0:
            return torch.ones_like(u, dtype=torch.float32)
        cut = 0.5 * math.erfc((1.0 - self.least_resistance) / (self.sigma * math.sqrt(2.0)))
        normal = torch.special.ndtri(u.mul_(1.0 - cut).add_(cut))
        resistance = normal.mul_(self.sigma).add_(1.0).clamp_min_(self.least_resistance)
        return resistance.reciprocal_().float()


def draw_chip(
    model: FaultModel, weights: Mapping[str, torch.Tensor], *, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Fault maps of all weights of one chip: name -> map, to be given to `model.apply`.

    Drawn in the order of the names, so that the order of the mapping does not matter.
    """
    return {name: model.draw(weights[name].shape, generator=generator) for name in sorted(weights)}
