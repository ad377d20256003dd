"""Bits lost between two refreshes of a dynamic memory, with a map that is fixed in each chip.

The retention time of a cell is log-normally distributed over the cells, and leakage follows
Arrhenius' law, so that all retention times shrink by one factor as the temperature rises:

    ln t(cell) ~ Normal(ln median, sigma) at the reference temperature
    t(T) = t(T_ref) exp(Ea / k (1 / T - 1 / T_ref)),   k = 8.617333262e-5 eV/K (CODATA 2018)
    P(lost) = P(t(T) < refresh) = Phi((ln refresh - ln median(T)) / sigma)

Hamamoto, Sugiura and Sawada, "On the retention time distribution of dynamic random access
memory (DRAM)", IEEE Trans. Electron Devices 45(6), 1998; cells by temperature in commodity
parts: Liu et al., ISCA 2013. A real distribution has a tail of leaky cells beside the main one:
give the median and sigma of the part that your refresh interval meets. They are those of a
process: there are no defaults. Cells whose retention varies in time are not modelled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .chip_map import chip_rows, expected_rows, memories_of
from .parameters import parameter, within

BOLTZMANN = 8.617333262e-5
"""eV per K (CODATA 2018)."""

KELVIN = 273.15


def retention_factor(celsius: float, reference: float, energy: float) -> float:
    """Retention time at a temperature over that at `reference` (degrees Celsius), energy in eV."""
    turns = 1.0 / (celsius + KELVIN) - 1.0 / (reference + KELVIN)
    return math.exp(energy / BOLTZMANN * turns)


@dataclass(frozen=True)
class Retention:
    """The cells of one chip that lose their bit before the next refresh.

    A lost bit reads what an empty capacitor stands for: 0 in a true cell, 1 in an anti-cell,
    which a cell is for good. What is written stays right until it is lost, and every word is
    read after it: refresh is taken to be shorter than a residency.
    """

    refresh: float = parameter("seconds between two refreshes of a cell")
    celsius: float = parameter("temperature in degrees Celsius")
    median: float = parameter("seconds: median retention time at the reference temperature")
    sigma: float = parameter("standard deviation of ln(retention time)")
    energy: float = parameter("activation energy of the leakage in eV")
    reference: float = parameter("degrees Celsius of the median", 85.0)
    memories: str = parameter("memories of such cells, joined by +", "weights")
    anti_share: float = parameter("share of anti-cells, whose lost bit reads 1", 0.5)

    name = "retention"
    unit = "trial"
    lasting = True

    def __post_init__(self):
        for name in ("refresh", "median", "sigma"):
            within(getattr(self, name), 0.0, 1e12, name, strict=True)
        for name in ("celsius", "reference"):
            within(getattr(self, name), -200.0, 1000.0, name)
        within(self.energy, 0.0, 5.0, "energy")
        within(self.anti_share, 0.0, 1.0, "anti_share")
        memories_of(self.memories)

    @property
    def p(self) -> float:
        """Probability that a cell loses its bit."""
        # In logarithms: no temperature overflows.
        turns = 1.0 / (self.celsius + KELVIN) - 1.0 / (self.reference + KELVIN)
        median = math.log(self.median) + self.energy / BOLTZMANN * turns
        return 0.5 * math.erfc((median - math.log(self.refresh)) / (self.sigma * math.sqrt(2.0)))

    def expected(self, space, images: int) -> float:
        """Mean number of rows of a chip."""
        return expected_rows(space, memories_of(self.memories), self.p)

    def rows(self, space, trial: int, images: np.ndarray, draws) -> np.ndarray:
        """FAULT rows of one chip, for all images (image -1)."""
        names = memories_of(self.memories)
        return chip_rows(space, names, self.p, self.anti_share, trial, draws)
