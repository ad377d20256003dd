"""The paper's dynamic fixed point: one power-of-two step for a whole tensor.

FTT-NAS (arXiv 2003.10375) quantises weights and features to 8 bits with the
fraction length that "minimal overflow" gives. The formulas are those of its
reference implementation (nics_fix_pytorch, as aw_nas uses it):

    S    = ceil(log2(max(max|x|, 1e-5)))
    step = 2^(S - (bits - 1))
    code = clamp(round half to even(x / step), low, high)

The range is taken anew at every call, in training and in evaluation alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from fsim.errors import ConfigError

from .gradient import straight_through
from .parameters import choice, whole

GRIDS = ("paper", "hardware")
"""paper: codes -2^(bits-1) .. +2^(bits-1), 257 of them at 8 bits, as the reference
implementation clamps to +2^S; hardware: two's complement, 256 codes at 8 bits."""

SMALLEST_RANGE = 1e-5
"""Floor of max|x| (nics_fix_pytorch, quant.py), so that a tensor of zeros has a step."""

_SIGNIFICAND_BITS = {
    torch.bfloat16: 8, torch.float16: 11, torch.float32: 24, torch.float64: 53,
}  # fmt: skip
"""Whole numbers up to 2 to this power are exact in the dtype."""


class Encoded(NamedTuple):
    """Codes of a tensor, without gradient.

    codes     shape of the tensor, whole numbers as float32 or float64
    step      0-dim, dtype of `codes`: what one code is worth, a power of two
    exponent  0-dim int32: S, where 2^S is the end of the grid
    """

    codes: torch.Tensor
    step: torch.Tensor
    exponent: torch.Tensor


class Quantised(NamedTuple):
    """A tensor on the grid.

    value     shape, dtype and device of the tensor, gradient straight-through
    step      0-dim: what one code is worth, a power of two
    exponent  0-dim int32: S, where 2^S is the end of the grid
    """

    value: torch.Tensor
    step: torch.Tensor
    exponent: torch.Tensor

    @property
    def codes(self) -> torch.Tensor:
        """int32 codes, shape of `value`."""
        return (self.value.detach().to(self.step.dtype) / self.step).to(torch.int32)


def _power_of_two(exponent: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """2^exponent, put together from its bits: pow and ldexp need not be exact on a GPU."""
    if dtype == torch.float64:
        return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)
    return ((exponent + 127) << 23).view(torch.float32)


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """Dynamic fixed point with `bits` bits (2 to 16) on one of the two GRIDS."""

    bits: int = 8
    grid: str = "paper"

    def __post_init__(self):
        whole("bits", self.bits, 2, 16)
        choice("grid", self.grid, GRIDS)

    @property
    def low(self) -> int:
        """The least code."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """The greatest code."""
        return (1 << (self.bits - 1)) - (self.grid == "hardware")

    @property
    def codes(self) -> int:
        """How many codes the grid has."""
        return self.high - self.low + 1

    def encode(self, x: torch.Tensor) -> Encoded:
        """Codes of `x`, any shape, on its device; nothing waits for the device.

        Half-precision tensors are computed in float32. A tensor that holds nan or an
        infinity has no range: all its codes are nan, so that a diverged network is
        seen and not clamped into shape. Raises ConfigError unless the dtype is
        floating and holds every code exactly.
        """
        digits = _SIGNIFICAND_BITS.get(x.dtype)
        if digits is None or self.bits - 1 > digits:
            raise ConfigError(
                f"a tensor for {self.bits}-bit fixed point must have a floating dtype that "
                f"holds the codes up to 2^{self.bits - 1}, got {x.dtype}"
            )
        with torch.no_grad():
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            x = x.detach().to(dtype)
            if x.numel():
                least, most = torch.aminmax(x)
                largest = torch.maximum(-least, most)
            else:
                largest = x.new_zeros(())
            # x = mantissa * 2^exponent with mantissa in [0.5, 1): a logarithm would
            # put exact powers of two one off on some platforms.
            mantissa, exponent = torch.frexp(largest.clamp_min(SMALLEST_RANGE))
            exponent = (exponent - (mantissa == 0.5).to(torch.int32)).to(torch.int32)
            step = _power_of_two(exponent - (self.bits - 1), dtype)
            step = torch.where(torch.isfinite(largest), step, torch.nan)
            codes = (x / step).round_().clamp_(self.low, self.high)
            return Encoded(codes, step, exponent)

    def quantise(self, x: torch.Tensor) -> Quantised:
        """`x` rounded to the grid, with the gradient of `x` everywhere.

        The clamp has no gradient of its own: the range covers max|x|, so that on the
        hardware grid at most the topmost codes meet it.
        """
        codes, step, exponent = self.encode(x)
        value = straight_through(x, (codes * step).to(x.dtype))
        return Quantised(value, step, exponent)
