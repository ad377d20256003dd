"""Schedule of `rram`: a crossbar that is programmed, then read one input bit a cycle.

A weight w is held as two magnitudes, the cells `g_pos` for w > 0 and `g_neg` for w < 0,
each cut into slices of cell_bits, least significant first; the pair's other cells are
at level 0. Two crossbars for the two signs: PRIME (Chi et al., ISCA 2016); slices of 2-bit
cells and input bits one after another: ISAAC (Shafiee et al., ISCA 2016). A magnitude has
operand_bits bits, so that -2^(operand_bits-1) is a weight too.

A fold (n outer, k inner) lasts rows + m * operand_bits + 1 cycles: one row of cells is
programmed at each of the first `rows` edges (assumed: real writes take far longer), then
every position streams its operand_bits bits, and one edge empties the pipeline. One ADC
for each bit line (assumed; ISAAC shares one among the 128 of a crossbar).
"""

from __future__ import annotations

from fsim.types import Component

from ..accel import Accel
from ..families import Loops
from ..plan import ceil_div

_ALL = ("reference", "tile", "replay")

UNSIGNED = frozenset(("g_pos", "g_neg", "adc_pos", "adc_neg"))
"""Components whose words are not two's complement."""


def slices(accel: Accel) -> int:
    """Cells that hold one magnitude."""
    return ceil_div(accel.operand_bits, accel.parameters["cell_bits"])


def full_level(accel: Accel) -> int:
    """The highest level of a cell, that of full conductance."""
    return (1 << accel.parameters["cell_bits"]) - 1


def cell_width(accel: Accel) -> int:
    """Bits of a conductance: those of the level and of its fraction."""
    return accel.parameters["cell_bits"] + accel.parameters["fraction_bits"]


def adc_width(accel: Accel) -> int:
    """Bits of an ADC's code; without adc_bits, as many as the largest column current needs."""
    fraction = accel.parameters["fraction_bits"]
    largest = accel.rows * ((1 << cell_width(accel)) - 1)
    rounded = (largest + (1 << fraction >> 1)) >> fraction
    return accel.parameters["adc_bits"] or rounded.bit_length()


def sum_width(accel: Accel) -> int:
    """Bits of what the shift-and-add of one column's ADCs can make, sign included."""
    bits, count = accel.parameters["cell_bits"], slices(accel)
    places = sum(1 << (bits * s) for s in range(count))
    return (((1 << adc_width(accel)) - 1) * places).bit_length() + 1


def exact(accel: Accel) -> bool:
    """Whether no column current of cells without faults is cut off by its ADC."""
    return (1 << adc_width(accel)) - 1 >= accel.rows * full_level(accel)


def components(accel: Accel) -> tuple[Component, ...]:
    """Registers and nets of the crossbar and its periphery, in fault-row order."""
    lines, columns, count = (accel.rows, 1), (1, accel.cols), slices(accel)
    cell, adc = cell_width(accel), adc_width(accel)
    return (
        Component("ifmap", accel.operand_bits, "register", "ifmap", _ALL,
                  "input code of a row, shifted out bit by bit", lines),
        Component("word_line", 1, "net", "ifmap", _ALL, "input bit that drives a row", lines),
        Component("g_pos", cell, "register", "filter", _ALL,
                  "conductance of a cell for weights above 0; word = slice", None, count),
        Component("g_neg", cell, "register", "filter", _ALL,
                  "conductance of a cell for weights below 0; word = slice", None, count),
        Component("adc_pos", adc, "register", "product", _ALL,
                  "code of a bit line of g_pos; word = slice", columns, count),
        Component("adc_neg", adc, "register", "product", _ALL,
                  "code of a bit line of g_neg; word = slice", columns, count),
        Component("sum", sum_width(accel), "net", "product", _ALL,
                  "shift-and-add of a column's slices and signs", columns),
        Component("acc", accel.acc_bits, "register", "psum", _ALL,
                  "sum of a column over the input bits", columns),
    )  # fmt: skip


def fold_cycles(accel: Accel, m: int) -> int:
    """Cycles from the first programming edge of a fold to its last sum."""
    return accel.rows + m * accel.operand_bits + 1


def cycles(accel: Accel, m: int, k: int, n: int) -> int:
    """Cycles of one GEMM (m,k)(k,n): folds times cycles a fold."""
    return ceil_div(k, accel.rows) * ceil_div(n, accel.cols) * fold_cycles(accel, m)


def loops(accel: Accel) -> Loops:
    """Every weight is programmed once; a fold stores a sum for each position."""
    return Loops(None, accel.rows, accel.cols, accel.rows, weights_once=True)


def plain_limit(accel: Accel) -> int | None:
    """The arithmetic is that of integers unless an ADC may cut off a current."""
    return None if exact(accel) else -1
