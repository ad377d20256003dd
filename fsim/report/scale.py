"""The colour scale of heat maps: its steps, and what a colour may not claim."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .palette import STEPS

FEW = 30
"""Trials below which a cell has no say in how far the scale reaches."""

_WIDE = 0.5  # an interval wider than this tells nothing of a share, however large it is


@dataclass(frozen=True)
class Scale:
    """Shares as steps of colour.

    edges  (STEPS - 1,) shares at which a step ends, rising
    """

    edges: tuple[float, ...]

    def step(self, value: float) -> int:
        """0 .. STEPS - 1: the step of a share."""
        return sum(value > edge for edge in self.edges)

    def uncertain(self, found: dict) -> bool:
        """Whether an interval is too wide for its estimate to have a colour of its own.

        It is if it is wider than twice the estimate (fewer than about six events; where there
        was no event: if the share may still lie above the first step), or than one half.
        """
        estimate, width = found["estimate"], found["high"] - found["low"]
        if estimate is None:
            return True
        if estimate <= self.edges[0] and found["high"] <= self.edges[0]:
            return False
        return width > min(2 * estimate, _WIDE)


def scale_of(cells: Iterable[tuple[dict, int]]) -> Scale:
    """The scale for (interval, trials) of all cells of a picture.

    It reaches to the largest estimate of at least FEW trials; where all cells are smaller, to
    the largest lower limit. Steps are equal, from zero, where half of those estimates are more
    than an eighth of the largest; else each is 2 or 2.5 times the one before.
    """
    cells = list(cells)
    seen = sorted(found["estimate"] for found, n in cells if n >= FEW and found["estimate"])
    lows = [found["low"] for found, n in cells if n and found["low"] > 0]
    most = seen[-1] if seen else max(lows, default=0.01)
    if seen and seen[len(seen) // 2] > most / 8:
        return Scale(_even(most))
    edges = [_up(most)]
    while len(edges) < STEPS:
        edges.append(_down(edges[-1]))
    return Scale(tuple(reversed(edges[1:])))


def _even(most: float) -> tuple[float, ...]:
    """Equal steps of a round number from zero to `most`."""
    step = most / STEPS
    power = 10.0 ** math.floor(math.log10(step))
    size = next(f for f in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if f * power * (1 + 1e-9) >= step)
    return tuple(float(f"{k * size * power:.6g}") for k in range(1, STEPS))


def _up(value: float) -> float:
    """The least of 1, 2, 5, 10, ... times a power of ten that is not below, at most 1."""
    power = 10.0 ** math.floor(math.log10(value) + 1e-12)
    for factor in (1, 2, 5, 10):
        if value <= factor * power * (1 + 1e-9):
            return min(1.0, float(f"{factor * power:.6g}"))
    raise AssertionError(value)


def _down(value: float) -> float:
    """The one before a number of 1, 2, 5, 10, ..."""
    power = 10.0 ** math.floor(math.log10(value) + 1e-12)
    lead = round(value / power)
    return float(f"{ {1: 0.5, 2: 1, 5: 2}[lead] * power:.6g}")
