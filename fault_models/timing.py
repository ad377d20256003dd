"""Timing errors of the multiplier: top product bits that miss the clock as voltage falls and
transistors age.

Delay by voltage, the alpha-power law (Sakurai and Newton, IEEE JSSC 25(2), 1990):

    delay ~ V / (V - Vth)^alpha

Threshold shift by bias temperature instability, the power law of the reaction-diffusion model
(Alam and Mahapatra, Microelectronics Reliability 45(1), 2005; duty in Bhardwaj et al., CICC
2006), scaled from one stated point, (shift, 10 years at reference temperature, always on):

    dVth(years, T, duty) = shift (duty years / 10)^n exp(-Ea / k (1 / T - 1 / T_ref)),  n = 1/6

The duty enters with the exponent of time: of t years, duty t are spent under stress and
recovery in between is not counted, an upper bound.

Path delay by bit: a product bit waits for the carries of all lower ones, so its longest path
grows with its position. Taken to be linear, as in an array multiplier whose carries ripple: bit
i of w has (1 - depth + depth i / (w - 1)) of the top bit's delay, which is 1 - slack of the clock
period at nominal voltage, new, and varies from operation to operation with the operands: normal
with relative standard deviation `spread`. A path that is late holds the value of the operation
before, which differs from the right one with probability `toggle`:

    P(bit i wrong in a cycle) = toggle P(delay_i factor (1 + spread Z) > period)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fsim.errors import FaultError
from fsim.types import LEVEL

from .parameters import parameter, within
from .retention import BOLTZMANN, KELVIN
from .rows import extend_masks, flip_rows

_BITS = 7 << 20  # random streams of this family: + 64 layer + bit


def alpha_power_delay(volt: float, threshold: float, alpha: float) -> float:
    """V / (V - Vth)^alpha, in units of its own; FaultError unless V > Vth."""
    if not volt > threshold:
        raise FaultError(
            f"volt must be above the threshold for the alpha-power law, got {volt:g} V with a "
            f"threshold of {threshold:.4g} V"
        )
    return volt / (volt - threshold) ** alpha


def bti_shift(
    years: float, celsius: float, duty: float, *, shift: float, energy: float,
    reference: float = 125.0, exponent: float = 1 / 6,
) -> float:  # fmt: skip
    """Threshold shift in V, from that of 10 years always on at `reference` degrees Celsius."""
    turns = 1.0 / (celsius + KELVIN) - 1.0 / (reference + KELVIN)
    return shift * (duty * years / 10.0) ** exponent * math.exp(-energy / BOLTZMANN * turns)


@dataclass(frozen=True)
class TimingErrors:
    """Late bits of the product nets, independent of one another in bit, PE, cycle and image.

    A late bit is a LEVEL flip of one cycle. Every cycle of a PE counts, idle ones too. The
    value that a late bit keeps is not followed: a flip with probability `toggle` stands for it.
    """

    volt: float = parameter("supply voltage in V")
    threshold: float = parameter("threshold voltage of new transistors in V")
    nominal: float = parameter("voltage at which `slack` is left, in V")
    slack: float = parameter("share of the clock period left by the top bit, nominal and new")
    spread: float = parameter("relative standard deviation of a path's delay")
    alpha: float = parameter("exponent of the alpha-power law", 1.3)
    depth: float = parameter("share of the top bit's delay that grows with the bit", 0.75)
    toggle: float = parameter("probability that the bit before differs", 0.5)
    years: float = parameter("age of the circuit", 0.0)
    celsius: float = parameter("temperature in degrees Celsius (of aging)", 85.0)
    duty: float = parameter("share of the age under stress", 0.5)
    shift: float = parameter("V of BTI after 10 years, always on, at 125 C", 0.0)
    energy: float = parameter("activation energy of BTI in eV", 0.1)

    name = "timing"
    unit = "image"
    lasting = False

    def __post_init__(self):
        for name in ("volt", "nominal"):
            within(getattr(self, name), 0.0, 100.0, name, strict=True)
        within(self.threshold, 0.0, 100.0, "threshold")
        within(self.spread, 0.0, 10.0, "spread", strict=True)
        within(self.alpha, 0.5, 3.0, "alpha")
        for name in ("depth", "toggle", "duty"):
            within(getattr(self, name), 0.0, 1.0, name)
        within(self.slack, 0.0, 1.0, "slack")
        within(self.years, 0.0, 1000.0, "years")
        within(self.celsius, -200.0, 1000.0, "celsius")
        within(self.shift, 0.0, 10.0, "shift")
        within(self.energy, 0.0, 5.0, "energy")
        _ = self.factor

    @property
    def factor(self) -> float:
        """Delay over that of a new circuit at nominal voltage."""
        aged = self.threshold + bti_shift(
            self.years, self.celsius, self.duty, shift=self.shift, energy=self.energy
        )
        new = alpha_power_delay(self.nominal, self.threshold, self.alpha)
        return alpha_power_delay(self.volt, aged, self.alpha) / new

    def probabilities(self, bits: int) -> np.ndarray:
        """(bits,) float64: P(bit wrong in a cycle)."""
        place = np.arange(bits) / max(bits - 1, 1)
        delay = (1.0 - self.slack) * (1.0 - self.depth + self.depth * place) * self.factor
        late = []
        for value in delay.tolist():
            z = math.inf if value == 0.0 else (1.0 / value - 1.0) / self.spread
            late.append(0.5 * math.erfc(z / math.sqrt(2.0)))
        return self.toggle * np.array(late)

    def _sites(self, space):
        table = space.accel.components
        found = [
            site for site in space.registers
            if table[site.component].kind == "net" and table[site.component].role == "product"
        ]  # fmt: skip
        if not found:
            raise FaultError(
                "timing errors need a product net among the chosen sites and layers, got none on "
                f"{space.accel.name}"
            )
        return found

    def expected(self, space, images: int) -> float:
        """Mean number of rows for some images."""
        return images * sum(
            float(self.probabilities(s.bits).sum()) * s.pes * s.cycles for s in self._sites(space)
        )

    def rows(self, space, trial: int, images: np.ndarray, draws) -> np.ndarray:
        """FAULT rows of one trial for some images, one a wrong bit, each an event."""
        images = np.asarray(images, np.int64)
        parts = [flip_rows(0)]
        for site in self._sites(space):
            for bit, p in enumerate(self.probabilities(site.bits).tolist()):
                stream = _BITS + 64 * site.layer + bit
                index, position = draws.bits(site.pes * site.cycles, p, stream, trial, images)
                if not len(index):
                    continue
                cycle, pe = np.divmod(position, site.pes)
                _, width, files = site.grid
                pe, number = np.divmod(pe, files)
                row, col = np.divmod(pe, width)
                parts.append(
                    flip_rows(
                        len(index), image=images[index], layer=site.layer,
                        component=site.component, row=row * site.shared, col=col,
                        word=number if files > 1 else -1, effect=LEVEL, first=cycle, last=cycle,
                        xor_mask=extend_masks(np.full(len(index), bit), site.bits, site.signed),
                    )
                )  # fmt: skip
        rows = np.concatenate(parts)
        rows = rows[np.argsort(rows["image"], kind="stable")]
        rows["trial"], rows["event"] = trial, np.arange(len(rows))
        return rows
