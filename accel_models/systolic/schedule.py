"""Schedule of `systolic`: one register for each operand and for the sum in every PE.

Folds follow one another without overlap and last as long as SCALE-Sim counts
(v3, compute classes): weight stationary M + 2R + C - 2, output stationary
K + R + C - 2; input stationary is weight stationary on transposed operands.
`cycle.py` beside this file says what happens in each of those cycles.
"""

from __future__ import annotations

from fsim.types import Component

from ..accel import Accel
from ..plan import ACC_OUT, MOVING, PRODUCT, WEIGHT, Plan, Segment, ceil_div

_ALL = ("reference", "tile", "replay")
IFMAP, FILTER, PSUM, MUL = range(4)

COUNTERS = ("step", "fold")
"""Registers of the sequencer, if the machine has it: `sequencer/cycle.py` says what they do."""

COUNTER_BITS = 16


def components(accel: Accel) -> tuple[Component, ...]:
    """Registers and nets of one PE, in fault-row order."""
    bits, stationary = accel.operand_bits, {"ws": "filter", "is": "ifmap"}.get(accel.dataflow)
    held = {name: " (stationary)" if name == stationary else "" for name in ("ifmap", "filter")}
    found = (
        Component("ifmap", bits, "register", "ifmap", _ALL, "activation operand" + held["ifmap"]),
        Component("filter", bits, "register", "filter", _ALL, "weight operand" + held["filter"]),
        Component("psum", accel.acc_bits, "register", "psum", _ALL, "partial sum"),
        Component("mul", accel.product_bits, "net", "product", _ALL, "product into the adder"),
    )
    if not accel.parameters.get("sequencer"):
        return found
    cycle_level = ("reference", "tile")
    return found + tuple(
        Component(name, COUNTER_BITS, "register", "control", cycle_level, about, grid=(1, 1))
        for name, about in zip(COUNTERS, ("edge within the fold", "number of the fold"))
    )


def cycles(accel: Accel, m: int, k: int, n: int) -> int:
    """Cycles of one GEMM (m,k)(k,n): folds times cycles a fold."""
    if accel.dataflow == "is":
        m, n = n, m
    folds, fold_cycles = fold_shape(accel, m, k, n)
    return folds * fold_cycles


def fold_shape(accel: Accel, m: int, k: int, n: int) -> tuple[int, int]:
    """(folds, cycles of each) of a product; of the transposed one for input stationary."""
    rows, cols = accel.rows, accel.cols
    if accel.dataflow == "os":
        return ceil_div(m, rows) * ceil_div(n, cols), k + rows + cols - 2
    return ceil_div(k, rows) * ceil_div(n, cols), m + 2 * rows + cols - 2


def plan(accel: Accel, m: int, k: int, n: int) -> Plan:
    """The accumulation plan; for input stationary, of the transposed product."""
    transposed = accel.dataflow == "is"
    if transposed:
        m, n = n, m
    rows = accel.rows
    _, fold_cycles = fold_shape(accel, m, k, n)
    output_stationary = accel.dataflow == "os"
    if output_stationary:
        segments = (
            Segment((IFMAP,) * 2, MOVING, (-1, 1, 1, 0, 1), "col", hi=(0, 0, 1)),
            Segment((FILTER,) * 2, WEIGHT, (-1, 1, 0, 1, 1), "row", hi=(0, 1, 0)),
            Segment((MUL,) * 2, PRODUCT, (0, 1, 1, 1, 0)),
            Segment((PSUM,) * 2, ACC_OUT, (0, 1, 1, 1, 0), last_hold=fold_cycles - 1),
        )
    else:
        moving, held = (FILTER, IFMAP) if transposed else (IFMAP, FILTER)
        segments = (
            Segment((moving,) * 2, MOVING, (rows - 1, 1, 1, 0, 1), "col", hi=(0, 0, 1)),
            # The weight shifts down to its row while the fold loads, then stays.
            Segment((held,) * 2, WEIGHT, (rows - 1, -1, 0, 0, 1), "row", hi=(-1, 1, 0)),
            Segment((held,) * 2, WEIGHT, (rows - 1, 0, 0, 0, 0), hold=(rows - 1, 1, 1, 1)),
            Segment((MUL,) * 2, PRODUCT, (rows, 1, 1, 1, 0)),
            Segment((PSUM,) * 2, ACC_OUT, (rows, 1, 1, 1, 0)),
        )
    return Plan(
        m=m,
        k=k,
        n=n,
        rows=rows,
        cols=accel.cols,
        output_stationary=output_stationary,
        folds=1 if output_stationary else ceil_div(k, rows),
        slots=k if output_stationary else rows,
        base0=0,
        phase_cycles=fold_cycles,
        init_d=output_stationary,
        chain=False,
        product_bits=accel.product_bits,
        acc_bits=accel.acc_bits,
        saturate=accel.overflow == "saturate",
        transposed=transposed,
        segments=segments,
    )
