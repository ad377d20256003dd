"""Schedule of `tpu-v1-like`: the next tile's weights shift in while the present one computes.

Tile p streams m rows from cycle start(p) on, start(p) = rows + p * max(m, rows): the
first tile is loaded before anything else, every later one behind the wave of the tile
before it, which hides its `rows` load cycles unless m is smaller. `cycle.py` beside this
file says what happens in each cycle.

A product is one tile after another for all its m rows: that m may exceed the entries of
the accumulator memory (4096 in the TPU), which would cut it into several, is not modelled.
"""

from __future__ import annotations

from fsim.types import Component

from ..accel import Accel
from ..plan import ACC_OUT, FIRST, LATER, MOVING, PRODUCT, WEIGHT, Plan, Segment, ceil_div

_ALL = ("reference", "tile", "replay")
ACT, SHADOW, ACTIVE, PSUM, MUL = range(5)


def components(accel: Accel) -> tuple[Component, ...]:
    """Registers and nets of one PE, in fault-row order."""
    word = accel.operand_bits
    return (
        Component("act", word, "register", "ifmap", _ALL, "activation, moves right"),
        Component("w_shadow", word, "register", "filter", _ALL, "next weight, shifts in"),
        Component("w_active", word, "register", "filter", _ALL, "weight that multiplies"),
        Component("psum", accel.acc_bits, "register", "psum", _ALL, "partial sum, moves down"),
        Component("mul", accel.product_bits, "net", "product", _ALL, "product into the adder"),
    )


def tiles(accel: Accel, m: int, k: int, n: int) -> tuple[int, int]:
    """(number of weight tiles, cycles from the start of one to that of the next)."""
    return ceil_div(k, accel.rows) * ceil_div(n, accel.cols), max(m, accel.rows)


def cycles(accel: Accel, m: int, k: int, n: int) -> int:
    """Cycles of one GEMM: to the last sum at the bottom of the last column."""
    count, step = tiles(accel, m, k, n)
    return accel.rows + (count - 1) * step + m + accel.rows + accel.cols - 1


def plan(accel: Accel, m: int, k: int, n: int) -> Plan:
    """The accumulation plan of one GEMM; base is the start of a tile."""
    rows = accel.rows
    _, step = tiles(accel, m, k, n)

    def shadow(distance: int, phases: int) -> tuple[Segment, Segment]:
        """Way and rest of a weight whose tile begins to shift in `distance` before it starts."""
        return (
            Segment((SHADOW,) * 2, WEIGHT, (rows - 1 - distance, -1, 0, 1, 1), "row",
                    hi=(-1, 1, 0), phases=phases),
            Segment((SHADOW,) * 2, WEIGHT, (rows - 1 - distance, 0, 0, 1, 0),
                    hold=(-1, 1, 0, 1), phases=phases),
        )  # fmt: skip

    segments = (
        Segment((ACT,) * 2, MOVING, (0, 1, 1, 0, 1), "col", hi=(0, 0, 1)),
        *shadow(rows, FIRST),
        *shadow(step, LATER),
        Segment((ACTIVE,) * 2, WEIGHT, (0, 1, 0, 1, 0), hold=(0, 1, 1, 1)),
        Segment((MUL,) * 2, PRODUCT, (1, 1, 1, 1, 0)),
        Segment((PSUM,) * 2, ACC_OUT, (1, 1, 1, 1, 0)),
    )
    return Plan(
        m=m,
        k=k,
        n=n,
        rows=rows,
        cols=accel.cols,
        output_stationary=False,
        folds=ceil_div(k, rows),
        slots=rows,
        base0=rows,
        phase_cycles=step,
        init_d=False,
        chain=False,
        product_bits=accel.product_bits,
        acc_bits=accel.acc_bits,
        saturate=False,
        transposed=False,
        segments=segments,
    )
