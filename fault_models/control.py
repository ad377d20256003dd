"""Faults of control: valid, propagate and enable bits, counters and state of the sequencer.

The same single faults as those of data (`upsets.py`), among the registers whose role is
control. What they do - skipped or repeated multiply-adds, the wrong buffer, operands from
another address, a schedule that ends early or never - is the machine's business: the cycle-level
reference and the tile simulation have these registers, the accumulation plan has not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fsim.errors import FaultError

from .parameters import one_of, parameter, within
from .upsets import SingleFault

KINDS = ("seu", "stuck0", "stuck1", "intermittent")


@dataclass(frozen=True)
class ControlFault:
    """One fault of a control register, uniform over their bits, PEs and cycles."""

    kind: str = parameter("seu, stuck0, stuck1 or intermittent (at 1)", "seu")
    duration: int = parameter("cycles of an intermittent fault", 16)

    name = "control"

    def __post_init__(self):
        one_of(self.kind, KINDS, "kind")
        within(self.duration, 1, 1 << 40, "duration")

    @cached_property
    def _single(self) -> SingleFault:
        return SingleFault(self.kind, duration=self.duration)

    @property
    def unit(self) -> str:
        """As of `SingleFault`."""
        return self._single.unit

    @property
    def permanent(self) -> bool:
        """Whether the fault is a defect of the machine."""
        return self._single.permanent

    lasting = False
    """It has sites that can be numbered, so that campaigns need no chips."""

    def _space(self, space):
        table = space.accel.components
        sites = tuple(s for s in space.registers if table[s.component].role == "control")
        if not sites:
            named = [c.name for c in table if c.role == "control"]
            raise FaultError(
                f"a control fault needs a control register among the chosen sites and layers, "
                f"{space.accel.name} ({space.accel.dataflow}) has {', '.join(named) or 'none'}"
            )
        return type(space)(space.placement, space.blocks, sites)

    def cells(self, space):
        """All sites; FaultError if the machine or the choice has no control register."""
        return self._single.cells(self._space(space))

    def rows_at(self, space, cells, which, word, bit) -> np.ndarray:
        """The faults at some sites, as `SingleFault.rows_at`."""
        return self._single.rows_at(space, cells, which, word, bit)

    def rows(self, space, trial: int, images: np.ndarray, draws) -> np.ndarray:
        """FAULT rows of one trial: one for each image, or one for all (image -1)."""
        return self._single.rows(self._space(space), trial, images, draws)
