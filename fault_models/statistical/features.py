"""Faults of features: MiBB, iBB and iBF of FTT-NAS (arXiv 2003.10375), section 3.

The names stand for multiply-accumulate i.i.d. bit bias, i.i.d. bit bias and
i.i.d. bit flip. How sure the formulas are: MiBB agrees with the reference
implementation; iBF and iBB are recalled from the paper and not in its code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fsim.errors import ConfigError

from .draws import LEAST, at_random, below, bit_masks
from .model import FaultModel
from .parameters import choice, probability, whole

MAX_MACS = 1 << 40


def macs_per_output(weight: torch.Tensor) -> int:
    """M, the multiply-adds of one output value, from a layer's weight.

    weight  (C_out, C_in / groups, k_h, k_w) of a convolution, (out, in) of a linear layer

    A 3 x 3 convolution of 80 channels has 720, a depthwise one 9. Stride, dilation
    and padding do not count.
    """
    return math.prod(weight.shape[1:])


def probability_of_output(p: float, macs: int) -> float:
    """1 - (1 - p)^macs without cancellation: an output is hit if any of its MACs is."""
    if p >= 1.0:
        return 1.0
    return -math.expm1(macs * math.log1p(-p))


def _checked_macs(model: str, macs: int | None) -> int:
    if macs is None:
        raise ConfigError(f"{model} has a rate per MAC: macs of one output must be given")
    return whole("macs", macs, 1, MAX_MACS)


@dataclass(frozen=True, kw_only=True)
class MiBB(FaultModel):
    """A faulty MAC adds one power of two to the output it contributes to.

    p_m  probability that one multiply-add is faulty

    An output of M multiply-adds is faulty with p = 1 - (1 - p_m)^M. It then gets one
    bias, uniform over the 2 * bits values +-2^0 .. +-2^(bits-1) steps, and the sum is
    clamped. Gradient: 1, and with clamp_gradient "zero" (as the clamp of the
    reference implementation has it) 0 where the clamp changed the sum; "identity"
    passes it there as well.

    The other parameters exist to reproduce the reference implementation (`compat`):

    probability  "exact", or "reciprocal": 1 / floor(1 / p), which is p or more
    bias         "uniform", or "largest": always +2^(bits-1) steps
    clamp        "grid", or "max-abs": to +-max|x| of the quantised tensor
    """

    p_m: float
    probability: str = "exact"
    bias: str = "uniform"
    clamp: str = "grid"
    clamp_gradient: str = "zero"

    name = "mibb"
    targets = ("features",)

    def __post_init__(self):
        super().__post_init__()
        probability("p_m", self.p_m)
        choice("probability", self.probability, ("exact", "reciprocal"))
        choice("bias", self.bias, ("uniform", "largest"))
        choice("clamp", self.clamp, ("grid", "max-abs"))
        choice("clamp_gradient", self.clamp_gradient, ("zero", "identity"))

    def p(self, macs: int) -> float:
        """Probability that an output of `macs` multiply-adds is faulty."""
        p = probability_of_output(self.p_m, _checked_macs(self.name, macs))
        return reciprocal(p) if self.probability == "reciprocal" else p

    def draw(self, shape, *, generator, macs=None):
        """int32 of `shape`: the bias in steps, 0 where there is no fault."""
        return at_random(
            shape, self.p(macs), generator, lambda count: self._biases(count, generator)
        )

    def _biases(self, count: int, generator: torch.Generator) -> torch.Tensor:
        if self.bias == "largest":
            most = 1 << (self.bits - 1)
            return torch.full((count,), most, dtype=torch.int32, device=generator.device)
        index = below(2 * self.bits, (count,), generator)
        sign = 1 - 2 * (index & 1)
        return torch.bitwise_left_shift(1, index >> 1).mul_(sign)

    def corrupt(self, encoded, faults):
        total = encoded.codes + faults
        if self.clamp == "grid":
            low, high = self.fixed_point.low, self.fixed_point.high
            clamped = total.clamp(low, high)
        else:
            high = encoded.codes.abs().amax() if encoded.codes.numel() else encoded.step
            clamped = total.clamp(-high, high)
        return clamped, (clamped == total if self.clamp_gradient == "zero" else None)


def reciprocal(p: float) -> float:
    """1 / floor(1 / p): what `randint(0, int(1 / p)) < 1` of the reference amounts to."""
    return 1.0 / int(1.0 / p) if p > LEAST else 0.0


@dataclass(frozen=True, kw_only=True)
class IBB(FaultModel):
    """Every bit position of an output adds +-2^i steps with probability r, independently.

    r        probability per bit position, or per MAC and bit position
    per_mac  False: r is used as it is; True: 1 - (1 - r)^M, which is the paper's r * M
             as long as that is small, and a probability beyond it

    The sum of the biases is clamped to the grid. Signs are fair and independent.
    Gradient as in MiBB.
    """

    r: float
    per_mac: bool = False
    clamp_gradient: str = "zero"

    name = "ibb"
    targets = ("features",)

    def __post_init__(self):
        super().__post_init__()
        probability("r", self.r)
        if not isinstance(self.per_mac, bool):
            raise ConfigError(f"per_mac must be true or false, got {self.per_mac!r}")
        choice("clamp_gradient", self.clamp_gradient, ("zero", "identity"))

    def draw(self, shape, *, generator, macs=None):
        """int32 of `shape`: the summed bias in steps."""
        rate = self.r
        if self.per_mac:
            rate = probability_of_output(rate, _checked_macs(self.name, macs))

        def signed_sum(hit: torch.Tensor) -> torch.Tensor:
            plus = below(1 << self.bits, hit.shape, generator).bitwise_and_(hit)
            return 2 * plus - hit  # the positive powers less the negative ones

        return bit_masks(shape, self.bits, rate, generator, signed_sum)

    def corrupt(self, encoded, faults):
        total = encoded.codes + faults
        clamped = total.clamp(self.fixed_point.low, self.fixed_point.high)
        return clamped, (clamped == total if self.clamp_gradient == "zero" else None)


@dataclass(frozen=True, kw_only=True)
class IBF(FaultModel):
    """Every bit of the two's complement code flips with probability r, independently.

    For features and for weights. Gradient: 1 everywhere. Only the hardware grid has
    codes of `bits` bits: +2^(bits-1) of the paper's grid has none.
    """

    grid: str = "hardware"
    r: float

    name = "ibf"
    on_bits = True
    targets = ("features", "weights")
    grids = ("hardware",)

    def __post_init__(self):
        super().__post_init__()
        probability("r", self.r)

    def draw(self, shape, *, generator, macs=None):
        """int32 of `shape`: masks of the bits that flip."""
        return bit_masks(shape, self.bits, self.r, generator)

    def corrupt(self, encoded, faults):
        codes = sign_extended(encoded.codes.to(torch.int32) ^ faults, self.bits)
        # Codes of a tensor with nan are nan; as integers they would look sound.
        return codes + encoded.codes * 0, None


def sign_extended(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """The lowest `bits` bits of int32 codes, read as two's complement."""
    top = 1 << (bits - 1)
    return ((codes & (2 * top - 1)) ^ top) - top
