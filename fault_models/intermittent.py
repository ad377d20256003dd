"""Intermittent faults with a duty cycle: bursts that come back with a period.

A loose contact or a marginal path fails for a while, recovers, and fails again at the same
place: Constantinescu, "Intermittent faults and effects on reliability of integrated circuits",
RAMS 2008, describes such bursts; how long they are and how often they come back depends on the
defect, its temperature and its voltage, so that there are no defaults.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fsim.errors import FaultError
from fsim.types import LEVEL

from .parameters import one_of, parameter, within
from .rows import flip_rows, spread_masks
from .uniform import uniform
from .upsets import check_sites

# Random streams of this family.
_SITE, _PHASE, _ACTIVE = (5 << 20) + (4 << 16), (5 << 20) + (4 << 16) + 1, (5 << 20) + (4 << 16) + 2

VALUES = ("stuck1", "stuck0", "flip")

MAX_WINDOWS = 1 << 20
"""Windows of one event: more are a mistake in the period."""


@dataclass(frozen=True)
class Intermittent:
    """One intermittent fault for each image: a bit of a register or net, in bursts.

    Time is that of one image's inference, the cycles of its layers one after another (of the
    layers that faults may strike). Bursts begin at phase, phase + period, ...; in each of
    these periods the fault is active with probability `active`, independently of the others,
    and then acts for `burst` cycles: the duty cycle is active * burst / period. A burst that
    reaches into the next layer goes on there, as a row of its own; a burst under way when the
    inference begins (phase < 0 by as much) counts too. All rows of an image are one event.
    """

    period: int = parameter("cycles from the begin of one burst to that of the next")
    burst: int = parameter("cycles that a burst lasts, at most the period")
    active: float = parameter("probability that a period has its burst", 1.0)
    phase: int = parameter("cycle at which the first period begins; -1: at random", -1)
    value: str = parameter("stuck1, stuck0 or flip: what a burst does to the bit", "stuck1")

    name = "intermittent-duty"
    unit = "image"
    lasting = False

    def __post_init__(self):
        within(self.period, 1, 1 << 40, "period")
        within(self.burst, 1, self.period, "burst")
        within(self.active, 0.0, 1.0, "active")
        within(self.phase, -1, self.period - 1, "phase")
        one_of(self.value, VALUES, "value")

    @property
    def duty(self) -> float:
        """Share of all cycles in which the fault acts."""
        return self.active * self.burst / self.period

    def expected(self, space, images: int) -> float:
        """Mean number of rows for some images, but for bursts cut by a layer's end."""
        return images * max(1.0, self.active * self._cycles(space) / self.period)

    def _cycles(self, space) -> int:
        return sum({site.layer: site.cycles for site in space.registers}.values())

    def rows(self, space, trial: int, images: np.ndarray, draws) -> np.ndarray:
        """FAULT rows of one trial: the windows of each image's fault, in time."""
        check_sites(space.registers, "an intermittent fault", ("register", "net"), space)
        images = np.asarray(images, np.int64)
        cycles = {site.layer: site.cycles for site in space.registers}
        begin = np.concatenate([[0], np.cumsum(list(cycles.values()))])
        periods = int(begin[-1]) // self.period + 2
        if periods > MAX_WINDOWS:
            raise FaultError(
                f"an inference of {begin[-1]} cycles must have at most {MAX_WINDOWS} periods, "
                f"got period {self.period}"
            )
        once = {site.component: site for site in reversed(space.registers)}
        sites = [once[number] for number in sorted(once)]
        offsets = np.concatenate([[0], np.cumsum([site.bits * site.pes for site in sites])])
        position = draws.sites(int(offsets[-1]), 1, _SITE, trial, images)[:, 0]
        which = np.searchsorted(offsets, position, "right") - 1
        if self.phase < 0:
            phase = draws.sites(self.period, 1, _PHASE, trial, images)[:, 0]
        else:
            phase = np.full(len(images), self.phase, np.int64)
        parts = [flip_rows(0)]
        for number, site in enumerate(which):
            mine = images[number : number + 1]
            on = uniform(draws, periods, _ACTIVE, trial, mine)[0] < self.active
            # The period before the first may reach into the inference.
            first = phase[number] + (np.flatnonzero(on) - 1) * self.period
            window = _windows(first, first + self.burst - 1, begin, list(cycles))
            rows = self._rows_of(space, sites[site], position[number] - offsets[site], window)
            rows["image"], rows["event"] = images[number], number
            parts.append(rows)
        rows = np.concatenate(parts)
        rows["trial"] = trial
        return rows

    def _rows_of(self, space, site, position, window) -> np.ndarray:
        word, bit = divmod(int(position), site.bits)
        _, width, files = site.grid
        pe, number = divmod(word, files)
        row, col = divmod(pe, width)
        layer, first, last = window
        signed = {s.layer: s.signed for s in space.registers if s.component == site.component}
        struck = np.isin(layer, list(signed))
        layer, first, last = layer[struck], first[struck], last[struck]
        mask = spread_masks(
            np.full(len(layer), np.int64(1) << bit), site.bits,
            np.array([signed[index] for index in layer.tolist()], bool),
        )  # fmt: skip
        rows = flip_rows(
            len(layer), layer=layer, component=site.component, row=row * site.shared, col=col,
            word=number if files > 1 else -1, effect=LEVEL, first=first, last=last,
        )  # fmt: skip
        if self.value == "flip":
            rows["xor_mask"] = mask
        elif self.value == "stuck1":
            rows["or_mask"] = mask
        else:
            rows["and_mask"] = ~mask
        return rows


def _windows(first, last, begin, layers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows [first, last] of an inference's time cut at the ends of its layers.

    begin  (layers + 1,) cycle at which each begins, and the end
    Returns (layer, first, last) of the pieces, cycles of their layer.
    """
    pieces = []
    for number, layer in enumerate(layers):
        low = np.maximum(first, begin[number]) - begin[number]
        high = np.minimum(last, begin[number + 1] - 1) - begin[number]
        inside = low <= high
        pieces.append((np.full(int(inside.sum()), layer, np.int64), low[inside], high[inside]))
    return tuple(np.concatenate(column) for column in zip(*pieces))
