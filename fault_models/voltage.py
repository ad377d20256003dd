"""Bit errors of SRAM below its safe voltage, with a map that is fixed in each chip.

The lowest voltage at which a cell works differs from cell to cell because its transistors do;
each cell has one, normally distributed over the cells:

    BER(V) = P(cell's lowest voltage > V) = Phi((mean - V) / sigma)

Mukhopadhyay, Mahmoodi and Roy, IEEE TCAD 24(12), 2005 derive cell failures from normally
distributed thresholds. Measured curves are often given as exponential instead,

    BER(V) = min(1, 10^(-(V - volt_of_1) / decade)),

as the straight lines of log BER over V in Chandramoorthy et al., HPCA 2019, and Stutz et al.,
"Bit error robustness for energy-efficient DNN accelerators", MLSys 2021; the latter use maps of
real chips, in which errors persist and those at a higher voltage are among those at a lower.
The numbers are those of a process: there are no defaults.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .chip_map import chip_rows, expected_rows, memories_of
from .parameters import one_of, parameter, within

LAWS = ("normal", "exponential")


def normal_ber(volt: float, mean: float, sigma: float) -> float:
    """Phi((mean - volt) / sigma): the share of cells whose lowest voltage is above `volt`."""
    return 0.5 * math.erfc((volt - mean) / (sigma * math.sqrt(2.0)))


def exponential_ber(volt: float, volt_of_1: float, decade: float) -> float:
    """10^(-(volt - volt_of_1) / decade), at most 1: a decade of errors for `decade` volts."""
    return min(1.0, 10.0 ** min(0.0, -(volt - volt_of_1) / decade))


@dataclass(frozen=True)
class LowVoltage:
    """The cells of one chip that fail at a supply voltage, the same for all its images.

    A failing cell reads 1 or 0 whatever is written, the value drawn once for each cell: a cell
    too weak to be written or held falls to its preferred state.
    """

    volt: float = parameter("supply voltage in V")
    mean: float = parameter("normal: mean of the cells' lowest voltage; exponential: V of BER 1")
    sigma: float = parameter("normal: its standard deviation in V; exponential: V per decade")
    law: str = parameter("normal or exponential", "normal")
    memories: str = parameter("memories at this voltage, joined by +", "weights")
    sa1_share: float = parameter("share of failing cells that read 1", 0.5)

    name = "sram-voltage"
    unit = "trial"
    lasting = True

    def __post_init__(self):
        within(self.volt, 0.0, 100.0, "volt")
        within(self.mean, 0.0, 100.0, "mean")
        within(self.sigma, 0.0, 100.0, "sigma", strict=True)
        within(self.sa1_share, 0.0, 1.0, "sa1_share")
        one_of(self.law, LAWS, "law")
        memories_of(self.memories)

    @property
    def p(self) -> float:
        """Probability that a cell fails."""
        law = normal_ber if self.law == "normal" else exponential_ber
        return law(self.volt, self.mean, self.sigma)

    def expected(self, space, images: int) -> float:
        """Mean number of rows of a chip."""
        return expected_rows(space, memories_of(self.memories), self.p)

    def rows(self, space, trial: int, images: np.ndarray, draws) -> np.ndarray:
        """FAULT rows of one chip, for all images (image -1)."""
        names = memories_of(self.memories)
        return chip_rows(space, names, self.p, self.sa1_share, trial, draws)
