"""What every statistical fault model is: draw faults, apply them to a tensor.

`draw` uses the random generator and no values; `apply` uses no randomness. So a
fault map can be drawn once and applied to every batch (a chip with permanent
faults), or `model(x, generator=...)` draws a fresh one each call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fsim.errors import ConfigError

from .fixed_point import Encoded, FixedPoint
from .gradient import straight_through
from .parameters import choice

TARGETS = ("features", "weights")


@dataclass(frozen=True, kw_only=True)
class FaultModel(ABC):
    """Base of the models. Values are quantised to the model's fixed point first.

    bits, grid  the fixed point, see FixedPoint
    target      what the model is meant for: features or weights; filled in where the
                model allows only one
    on_bits     `corrupt` takes whole codes of the grid only

    Features means the output of a convolution or linear layer, after the batch
    normalisation that follows it directly and before the activation function: the
    two are one operation on the accelerator, and the paper injects there.
    """

    bits: int = 8
    grid: str = "paper"
    target: str | None = None

    name: ClassVar[str]
    targets: ClassVar[tuple[str, ...]]
    grids: ClassVar[tuple[str, ...]] = ("paper", "hardware")
    on_bits: ClassVar[bool] = False

    def __post_init__(self):
        choice("grid", self.grid, self.grids)
        FixedPoint(bits=self.bits, grid=self.grid)
        if self.target is None:
            object.__setattr__(self, "target", self.targets[0])
        choice("target", self.target, self.targets)

    @property
    def fixed_point(self) -> FixedPoint:
        return FixedPoint(bits=self.bits, grid=self.grid)

    @abstractmethod
    def draw(
        self, shape: Sequence[int], *, generator: torch.Generator, macs: int | None = None
    ) -> torch.Tensor:
        """Faults of a tensor of `shape`, on the generator's device.

        macs  multiply-adds of one output value; only models with a rate per MAC need it

        The tensor's layout is the model's; it can be stored and given to `apply`
        again. For features a shape of (1, C, H, W) gives one map for all images.
        """

    @abstractmethod
    def corrupt(
        self, encoded: Encoded, faults: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(codes after the faults, bool mask of where the gradient passes or None: everywhere)."""

    def apply(self, x: torch.Tensor, faults: torch.Tensor) -> torch.Tensor:
        """`x` on the grid with `faults`; shape, dtype and device of `x`."""
        encoded = self.fixed_point.encode(x)
        with torch.no_grad():
            codes, passes = self.corrupt(encoded, faults)
            value = (codes * encoded.step).to(x.dtype)
        return straight_through(x, value, passes)

    def __call__(
        self, x: torch.Tensor, *, generator: torch.Generator, macs: int | None = None
    ) -> torch.Tensor:
        """`x` on the grid with faults drawn afresh: each element of the batch has its own.

        Raises ConfigError unless the generator is on the device of `x`.
        """
        if generator.device.type != x.device.type:
            raise ConfigError(
                f"the generator must be on the device of the tensor, {x.device}, "
                f"got one on {generator.device}"
            )
        return self.apply(x, self.draw(x.shape, generator=generator, macs=macs))
