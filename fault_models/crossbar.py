"""Defects and variation of the cells of a resistive crossbar (`accel_models/rram`).

Every weight of every layer has cells of its own, as on a chip whose crossbars hold the whole
network at once (ISAAC, Shafiee et al., ISCA 2016; PRIME, Chi et al., ISCA 2016): the rows of
a cell act in the cycles of the fold that holds its weight. A layer that the network uses
again with the same codes has the cells of its first use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np

from fsim.accel_models.rram import schedule
from fsim.errors import FaultError
from fsim.types import LEVEL

from .parameters import one_of, parameter, within
from .rows import flip_rows
from .stuck_cells import SA1_SHARE, StuckCells

# Random streams of this family: + number of the block whose weights the cells hold.
_STUCK, _READS, _SPREAD = 8 << 20, (8 << 20) + (1 << 18), (8 << 20) + (2 << 18)

_DRAW = 53  # bits of a uniform number


def _blocks(space, what: str) -> list:
    """(weights, block whose cells hold them) of every layer; FaultError on other machines."""
    if space.accel.family != "rram":
        raise FaultError(
            f"{what} needs a machine of family rram, whose weights are in cells, got "
            f"{space.accel.name} of family {space.accel.family}"
        )
    return StuckCells(0.0).blocks(space)


def _cells(space, block) -> int:
    """Cells of a block's weights; cell = (word * slices + slice) * 2 + sign, 0 for g_pos."""
    return block.words * schedule.slices(space.accel) * 2


def _cell_rows(space, trial, block, cell, event, **masks) -> np.ndarray:
    """FAULT rows of some cells of a block, one each, in the cycles of their weights' folds."""
    accel, low = space.accel, space.placement.lowered[block.layer]
    rest, sign = np.divmod(cell, 2)
    word, part = np.divmod(rest, schedule.slices(accel))
    # Weight words are (output, channel, kernel row, kernel column), inputs of the array in
    # the order kernel row, kernel column, channel: `simulator/lower.py`.
    rest, kernel_x = np.divmod(word, low.kernel_w)
    rest, kernel_y = np.divmod(rest, low.kernel_h)
    output, channel = np.divmod(rest, low.channels)
    group, n = np.divmod(output, low.n)
    k = (kernel_y * low.kernel_w + kernel_x) * low.channels + channel
    fold, row = np.divmod(k, accel.rows)
    tile, col = np.divmod(n, accel.cols)
    length = schedule.fold_cycles(accel, low.m)
    first = group * schedule.cycles(accel, low.m, low.k, low.n)
    first = first + (tile * -(-low.k // accel.rows) + fold) * length
    pos, neg = (accel.component_index(name) for name in ("g_pos", "g_neg"))
    return flip_rows(
        len(cell), trial=trial, event=event, image=-1, layer=block.layer,
        component=np.where(sign == 0, pos, neg), row=row, col=col,
        word=part if schedule.slices(accel) > 1 else -1,
        effect=LEVEL, first=first, last=first + length - 1, **masks,
    )  # fmt: skip


@dataclass(frozen=True)
class CrossbarStuck:
    """Stuck cells of a crossbar: level 0 (off) or full conductance, for a whole chip.

    Each cell of each weight is stuck with probability p, independently; the share that
    conducts fully is that of the paper's test chip (see `stuck_cells.SA1_SHARE`).
    """

    p: float = parameter("probability that a cell is stuck")
    sa1_share: float = parameter("share of stuck cells at full conductance", SA1_SHARE)

    name = "crossbar-stuck"
    unit = "trial"
    lasting = True

    def __post_init__(self):
        within(self.p, 0.0, 1.0, "p")
        within(self.sa1_share, 0.0, 1.0, "sa1_share")

    def expected(self, space, images: int) -> float:
        """Mean number of rows of a chip."""
        return self.p * sum(_cells(space, block) for block, _ in _blocks(space, self.name))

    def rows(self, space, trial: int, images: np.ndarray, draws) -> np.ndarray:
        """FAULT rows of one chip, one for each stuck cell and use, for all images (image -1)."""
        blocks = _blocks(space, self.name)
        every, parts, count = np.array([-1], np.int64), [flip_rows(0)], 0
        full = schedule.full_level(space.accel) << space.accel.parameters["fraction_bits"]
        for block, holder in blocks:
            cells = _cells(space, block)
            _, stuck = draws.bits(cells, self.p, _STUCK + holder.number, trial, every)
            stream = _READS + holder.number
            _, ones = draws.bits(len(stuck), self.sa1_share, stream, trial, every)
            value = np.zeros(len(stuck), np.int64)
            value[ones] = full
            event = count + np.arange(len(stuck))
            count += len(stuck)
            parts.append(
                _cell_rows(space, trial, block, stuck, event, and_mask=0, or_mask=value)
            )  # fmt: skip
        return np.concatenate(parts)


LAWS = ("lognormal", "normal")


@dataclass(frozen=True)
class CrossbarVariation:
    """Conductances of a crossbar's cells that differ from the programmed ones, for a whole chip.

    lognormal: g exp(sigma Z), the programmed g being the median; a cell at level 0 stays there.
    normal: g + sigma G Z, G being full conductance, cut off at 0. Z is standard normal and
    independent from cell to cell; which law and sigma a technology has is for its data to say
    (assumed). A conductance is rounded to the machine's multiples of 2^-fraction_bits of a
    level and cut off just below the level above the highest. What a cell becomes is looked up
    in a table of integers, so that it is the same everywhere.
    """

    sigma: float = parameter("standard deviation: of ln g, or in full conductances")
    law: str = parameter("lognormal or normal", "lognormal")

    name = "crossbar-variation"
    unit = "trial"
    lasting = True

    def __post_init__(self):
        within(self.sigma, 0.0, 10.0, "sigma", strict=True)
        one_of(self.law, LAWS, "law")

    def expected(self, space, images: int) -> float:
        """Rows of a chip, at most: cells that can differ from what is programmed."""
        return float(
            sum(
                np.count_nonzero(self._differing(space, _programmed(space, block)))
                for block, _ in _blocks(space, self.name)
            )
        )

    def _differing(self, space, units: np.ndarray) -> np.ndarray:
        return units > 0 if self.law == "lognormal" else np.ones(len(units), bool)

    def rows(self, space, trial: int, images: np.ndarray, draws) -> np.ndarray:
        """FAULT rows of one chip: a row for each cell that is not as programmed."""
        blocks = _blocks(space, self.name)
        accel = space.accel
        if not accel.parameters["fraction_bits"]:
            raise FaultError(
                f"{self.name} needs conductances finer than a level: parameters.fraction_bits of "
                f"{accel.name} must be at least 1, got 0"
            )
        full = schedule.full_level(accel) << accel.parameters["fraction_bits"]
        count, parts = 0, [flip_rows(0)]
        for block, holder in blocks:
            units = _programmed(space, block)
            cells = np.flatnonzero(self._differing(space, units))
            u = draws.sites(
                1 << _DRAW, len(units), _SPREAD + holder.number, trial, np.array([-1], np.int64)
            )[0, cells]  # fmt: skip
            units = units[cells]
            value = units.copy()
            for unit in np.unique(units).tolist():
                table = thresholds(
                    self.law, self.sigma, unit, full, schedule.cell_width(accel)
                )  # fmt: skip
                mine = units == unit
                value[mine] = np.searchsorted(table, u[mine], "right")
            changed = value != units
            cells, value = cells[changed], value[changed]
            event = count + np.arange(len(cells))
            count += len(cells)
            parts.append(
                _cell_rows(space, trial, block, cells, event, and_mask=0, or_mask=value)
            )  # fmt: skip
        return np.concatenate(parts)


def _programmed(space, block) -> np.ndarray:
    """Conductances of a block's cells as programmed, in units, int64."""
    accel = space.accel
    op = space.placement.program.ops[block.layer]
    codes = op.weight.reshape(-1).astype(np.int64)
    signs = np.stack([np.maximum(codes, 0), np.maximum(-codes, 0)], axis=1)
    shift = np.arange(schedule.slices(accel)) * accel.parameters["cell_bits"]
    levels = (signs[:, None, :] >> shift[:, None]) & schedule.full_level(accel)
    return levels.reshape(-1) << accel.parameters["fraction_bits"]


@lru_cache(maxsize=256)
def thresholds(law: str, sigma: float, unit: int, full: int, bits: int) -> np.ndarray:
    """Table for drawing a conductance: (2^bits - 1,) int64, ascending.

    unit, full  what is programmed, and full conductance, in units
    For u uniform in [0, 2^53) the cell's conductance is the number of entries <= u: entry v is
    floor(2^53 P(rounded conductance <= v)), computed with 50 decimal digits.
    """
    table = []
    with localcontext() as context:
        context.prec = 50
        spread = Decimal(sigma)
        for v in range((1 << bits) - 1):
            edge = Decimal(2 * v + 1) / 2
            if law == "normal":
                z = (edge - unit) / (spread * full)
            elif unit == 0:
                table.append(1 << _DRAW)
                continue
            else:
                z = (edge / unit).ln() / spread
            table.append(math.floor(normal_cdf(z) * (1 << _DRAW)))
    found = np.array(table, np.int64)
    found.setflags(write=False)
    return found


_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494")


def normal_cdf(z: Decimal) -> Decimal:
    """P(Z <= z) of a standard normal Z, to the precision of the decimal context.

    1/2 + phi(z) (z + z^3/3 + z^5/(3 5) + ...): Abramowitz and Stegun, 26.2.11. Beyond 12
    standard deviations it is taken as 0 and 1, which is right to 2^-107.
    """
    if abs(z) > 12:
        return Decimal(0 if z < 0 else 1)
    square, term, total, n = z * z, z, Decimal(0), 1
    while abs(term) > Decimal("1e-45"):
        total += term
        n += 2
        term = term * square / n
    density = (-square / 2).exp() / (2 * _PI).sqrt()
    return Decimal("0.5") + density * total
