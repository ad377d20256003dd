"""Schedule of `gemmini-like`: a mesh whose c1/c2 registers swap roles every phase.

Phase 0 preloads; phase t + 1 computes tile (or fold) t while it loads the next
and drains the one before. Times follow from the token stream: token g reaches
the input registers of PE(i, j) after edge g + i + j and is processed one edge
later; a word that shifts down the column spends one cycle in d and one in c of
every row.
"""

from __future__ import annotations

from fsim.types import Component

from ..accel import Accel
from ..plan import (
    ACC_IN,
    ACC_OUT,
    DRAIN,
    MOVING,
    PRELOAD,
    PRODUCT,
    WEIGHT,
    Plan,
    Segment,
    ceil_div,
)

_DATA = ("reference", "tile", "replay")
_CONTROL = ("reference", "tile")
A, B, D, C1, C2, VALID, PROP, MUL = range(8)


def components(accel: Accel) -> tuple[Component, ...]:
    """Registers at the input of (or in) PE(i, j), and the product net."""
    word, acc = accel.operand_bits, accel.acc_bits
    if accel.dataflow == "os":
        b = Component("b", word, "register", "filter", _DATA, "weight operand, moves down")
        d = Component("d", acc, "register", "psum", _DATA, "bias-in and result-out chain")
        c, role, about = acc, "psum", "accumulator, swaps with the other every tile"
    else:
        b = Component("b", acc, "register", "psum", _DATA, "partial sum, moves down")
        d = Component("d", word, "register", "filter", _DATA, "weight load chain")
        c, role, about = word, "filter", "stationary weight, swaps with the other every fold"
    return (
        Component("a", word, "register", "ifmap", _DATA, "activation operand, moves right"),
        b,
        d,
        Component("c1", c, "register", role, _DATA, about),
        Component("c2", c, "register", role, _DATA, about),
        Component("valid", 1, "register", "control", _CONTROL, "token valid, moves down"),
        Component("prop", 1, "register", "control", _CONTROL, "selects c1 or c2, moves down"),
        Component("mul", accel.product_bits, "net", "product", _DATA, "product into the adder"),
    )


def _phases(accel: Accel, m: int, k: int, n: int) -> tuple[int, int]:
    """(number of tiles or folds, tokens of each)."""
    rows, cols = accel.rows, accel.cols
    if accel.dataflow == "os":
        return ceil_div(m, rows) * ceil_div(n, cols), max(k, rows)
    return ceil_div(k, rows) * ceil_div(n, cols), max(m, rows)


def cycles(accel: Accel, m: int, k: int, n: int) -> int:
    """Cycles of one GEMM as the RTL was driven: all tokens, then the pipeline's depth."""
    phases, tokens = _phases(accel, m, k, n)
    drain = accel.rows if accel.dataflow == "os" else 0
    return accel.rows + phases * tokens + drain + accel.rows + accel.cols


def plan(accel: Accel, m: int, k: int, n: int) -> Plan:
    """The accumulation plan of one GEMM."""
    rows = accel.rows
    _, tokens = _phases(accel, m, k, n)
    output_stationary = accel.dataflow == "os"
    c = (C1, C2)
    moving = Segment((A, A), MOVING, (0, 1, 1, 0, 1), "col", hi=(0, 0, 1))
    mul = Segment((MUL, MUL), PRODUCT, (1, 1, 1, 1, 0))
    if output_stationary:
        below = {"hops": "row", "lo": (1, 1, 0), "hi": (rows - 1, 0, 0)}
        segments = (
            moving,
            Segment((B, B), WEIGHT, (0, 1, 0, 1, 1), "row", hi=(0, 1, 0)),
            mul,
            Segment((D, D), PRELOAD, (-1, 0, -1, 1, 2), "row", hi=(0, 1, 0)),
            Segment(c, PRELOAD, (0, 0, -1, 1, 2), "row", hi=(0, 1, 0)),
            Segment(c, ACC_OUT, (1, 1, 1, 1, 0)),
            Segment((D, D), DRAIN, (tokens - 1, 0, -1, 1, 2), **below),
            Segment(c, DRAIN, (tokens, 0, -1, 1, 2), **below),
        )
    else:
        segments = (
            moving,
            Segment((D, D), WEIGHT, (-1, -1, 0, 1, 2), "row", hi=(0, 1, 0)),
            Segment(c, WEIGHT, (0, -1, 0, 1, 2), "row", hi=(-1, 1, 0)),
            Segment(c, WEIGHT, (0, 1, 0, 1, 0), hold=(0, 1, 1, 1)),
            mul,
            Segment((B, B), ACC_IN, (0, 1, 1, 1, 0)),
        )
    return Plan(
        m=m,
        k=k,
        n=n,
        rows=rows,
        cols=accel.cols,
        output_stationary=output_stationary,
        folds=1 if output_stationary else ceil_div(k, rows),
        slots=tokens if output_stationary else rows,
        base0=rows,
        phase_cycles=tokens,
        init_d=True,
        chain=False,
        product_bits=accel.product_bits,
        acc_bits=accel.acc_bits,
        saturate=False,
        transposed=False,
        segments=segments,
    )
